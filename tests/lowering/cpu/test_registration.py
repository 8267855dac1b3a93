"""A host in C++ loads a kernel's library, is told of its function, and calls it."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from pathlib import Path

import pytest
import torch

from gr_compile.lowering.cpu import build, lookup, source

HOST = """
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
static int64_t (*entry)(const void*);
extern "C" void gr_register_kernel(const char* name, const char* key, void* address) {
  printf("%s %s\\n", name, key);
  entry = (int64_t(*)(const void*))address;
}
struct { int64_t threads, tokens, rows, width, grad_row, padding; const float* grad; const int64_t* ids; float* out; } a;
int main(int, char** arguments) {
  if (!dlopen(arguments[1], RTLD_NOW)) return puts(dlerror()), 1;
  float grad[] = {1, 2, 4}, out[2];
  int64_t ids[] = {1, 0, 1};
  a = {1, 3, 2, 1, 1, -1, grad, ids, out};
  if (!entry || entry(&a)) return 2;
  printf("%g %g\\n", out[0], out[1]);
}
"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The library of the gradient of a float32 table, in a cache of its own."""
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "cache"))
    build.library(lookup.source(torch.float32))
    (found,) = (tmp_path / "cache").rglob("*.so")
    return found


def test_a_host_is_told_of_the_kernel_and_calls_it(library: Path, tmp_path: Path) -> None:
    (tmp_path / "host.cpp").write_text(HOST)
    compiler = build._compiler()
    subprocess.run([compiler, "-rdynamic", "host.cpp", "-o", "host", "-ldl"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "host", library], capture_output=True, text=True, check=True).stdout
    key = source.registered_key(lookup.source(torch.float32))
    assert said.splitlines() == [f"gr_lookup_gradient {key}", "2 5"]


def test_without_a_host_nothing_is_registered(library: Path) -> None:
    assert ctypes.CDLL(str(library)).gr_lookup_gradient


def test_the_key_is_of_what_stands_before_it() -> None:
    text = source.registered(["int x;", "int y;"], "y")
    assert source.registered_key(text) == hashlib.sha256(b"int x;\nint y;\n").hexdigest()
    assert source.registered_key(text) in text
