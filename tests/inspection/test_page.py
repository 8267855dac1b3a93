"""The HTML page: self-contained, safe, whole, and quick to make."""

from __future__ import annotations

import json
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gr_compile.graph_pass import GraphReport, Match, PassRecord, SourceLine
from gr_compile.inspection.dump import Dumper
from gr_compile.inspection.page import StageView, aligned_rows, page_data, render_page
from gr_compile.inspection.program import ProgramLine


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture
def page(tmp_path, run) -> str:
    return (Path(run().tell(Dumper(tmp_path)).dump) / "index.html").read_text()


def test_nothing_is_fetched(page):
    without_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", without_data)
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page
    for attribute in re.findall(r'(?:src|href)="([^"]*)"', without_data):
        assert attribute.startswith(("#", "data:"))


def test_the_markup_is_balanced(page):
    class Parser(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Parser()
    parser.feed(page)
    assert parser.open == []


def test_data_holds_every_stage_whole(page, tmp_path):
    data = embedded(page)
    assert [stage["name"] for stage in data["stages"]] == ["00_captured", "01_use-silu", "99_final"]
    assert [stage["pass"] for stage in data["stages"]] == [None, 0, None]
    source = next(tmp_path.rglob("01_use-silu.py")).read_text()
    text = "\n".join(data["lines"][line][0] for line in data["stages"][1]["lines"])
    assert text in source
    for before, after in zip(data["stages"], data["stages"][1:]):
        left, right = [], []
        for i, j, count in after["rows"]:
            left += [i + k for k in range(count) if i >= 0]
            right += [j + k for k in range(count) if j >= 0]
        assert left == list(range(len(before["lines"]))) and right == list(range(len(after["lines"])))
    miss = data["graph"]["passes"][0]["misses"][0]
    assert [miss["where"]["file"], miss["where"]["line"]] in [source[:2] for source in data["sources"]]


def test_changed_lines_of_one_node_stand_side_by_side():
    nodes = {0: "a", 1: "b", 2: "c", 3: "b", 4: "d"}
    assert list(aligned_rows([0, 1, 2], [0, 3, 2], nodes.get)) == [(0, 0), (1, 1), (2, 2)]
    assert list(aligned_rows([0, 1, 2], [0, 4, 3, 2], nodes.get)) == [(0, 0), (-1, 1), (1, 2), (2, 3)]
    assert list(aligned_rows([0, 2], [0], nodes.get)) == [(0, 0), (1, -1)]


def test_text_cannot_leave_the_data():
    evil = '</script><script>alert("1")</script><!--'
    line = ProgramLine(evil, "x", SourceLine(evil, 1, evil, evil))
    report = GraphReport(evil, "0", 0, "eager", evil, facts={evil: evil})
    page = render_page(report, [StageView("00_captured", "captured", None, (line,))], {})
    assert "<script>alert" not in page
    assert embedded(page)["lines"][0][0] == evil


def test_large_graphs_stay_cheap():
    where = [SourceLine("model.py", i, "forward", f"x = layer{i}(x)") for i in range(500)]
    lines = [
        ProgramLine(f"    v{i} = aten.add.Tensor(v{i - 1}, 1)  # f32[s0, 64]", f"v{i}", where[i % 500])
        for i in range(5000)
    ]
    generator = random.Random(0)
    stages = [StageView("00_captured", "captured", None, tuple(lines))]
    report = GraphReport("M", "0", 0, "inductor", "default")
    for index in range(1, 6):
        lines = [
            ProgramLine(line.text.replace("add", f"sub{index}"), line.node, line.where)
            if generator.random() < 0.05
            else line
            for line in lines
            if generator.random() > 0.01
        ]
        record = PassRecord(
            f"p{index}",
            f"p{index}",
            "forward",
            "bitwise",
            True,
            (Match("m", where=where[0]),),
            (),
            1,
            1,
            1,
            1,
            {},
            {},
        )
        report.passes.append(record)
        stages.append(StageView(f"{index:02d}_p{index}", f"p{index}", record, tuple(lines)))
    start = time.perf_counter()
    page = render_page(report, stages, {})
    assert time.perf_counter() - start < 5
    assert len(page) < 2_500_000, "equal lines are stored once"
    assert len(page_data(report, stages, {})["lines"]) < 7000
