"""docs/passes.md is what `gr-compile passes --markdown` prints."""

from __future__ import annotations

from documents import ROOT

from gr_compile.cli.passes import as_markdown, describe
from gr_compile.pipeline import list_passes


def test_the_page_is_the_generated_one():
    own = [pass_class for pass_class in list_passes() if pass_class.__module__.startswith("gr_compile.")]
    generated = as_markdown([describe(pass_class) for pass_class in own])
    committed = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    assert committed == generated, "run: gr-compile passes --markdown > docs/passes.md"
