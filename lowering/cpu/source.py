"""The C++ source of a kernel: the runtime's headers around a `Program` that is printed from a score program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gr_compile.analysis.expr import Expr, const
from gr_compile.lowering.cpu.buckets import find_tables
from gr_compile.lowering.cpu.emit import Kernel, rough_nodes
from gr_compile.lowering.cpu.heads import Printer
from gr_compile.lowering.cpu.lanes import ELEMENT, INT32, Lanes, Unsupported, fits
from gr_compile.lowering.cpu.stages import Stages, stages
from gr_compile.ops.attention_blocks import QUERY, SEQUENCE
from gr_compile.ops.score_program import HEAD, ScoreProgram

_RUNTIME = Path(__file__).parent / "runtime"


@dataclass(frozen=True)
class Request:
    """Which kernel: of which program, for operands of which dtypes.

    Attributes:
        wanted: None for the forward; for the backward the leaves by which it differentiates.
        narrow: see gr_compile.lowering.cpu.lanes.
    """

    program: ScoreProgram
    qk_dtype: torch.dtype
    v_dtype: torch.dtype
    grad_dtype: torch.dtype
    leaf_dtypes: tuple[torch.dtype, ...]
    wanted: tuple[Expr, ...] | None
    narrow: bool

    @property
    def is_backward(self) -> bool:
        return self.wanted is not None


def runtime(name: str) -> str:
    """A header of the runtime, without what only makes it compile alone."""
    lines = (_RUNTIME / name).read_text().splitlines()
    return "\n".join(x for x in lines if x != "#pragma once" and not x.startswith('#include "'))


def registered(parts: list[str], entry: str) -> str:
    """The translation unit of `parts`, which registers its function `entry` with a host in C++, if there is one.

    What it registers is (name of the function, key, address); the key is the SHA-256 of what stands before the
    registration, so that one who prints the same kernel knows it.
    """
    text = "\n".join(parts) + "\n"
    line = f'static Registration registration("{entry}", "{_digest(text)}", (void*){entry});'
    return f"{text}{runtime('registration.h')}\n{line}\n"


def registered_key(text: str) -> str:
    """The key by which the kernel of a translation unit registers."""
    return _digest(text[: text.index(runtime("registration.h"))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def source(request: Request) -> str:
    """The translation unit. Unsupported: the reference has to compute this program."""
    program = request.program
    found = stages(program, request.wanted)
    kernel = _kernel(request, found)
    tail = "backward.h" if request.is_backward else "forward.h"
    parts = [_counts(found), *(runtime(x) for x in ("vector.h", "numeric.h", "product.h", "memory.h", "work.h"))]
    printer = Printer(kernel, found)
    parts += [_dtypes(request), _tables(kernel), *([printer.grads()] if request.is_backward else [])]
    parts += [_Program(request, found, kernel, printer).text(), runtime("blocks.h"), runtime(tail)]
    return registered(parts, "gr_attention_backward" if request.is_backward else "gr_attention_forward")


def _kernel(request: Request, found: Stages) -> Kernel:
    program = request.program
    types = dict(zip(program.leaves, request.leaf_dtypes))
    if request.qk_dtype == torch.float64 or request.v_dtype == torch.float64 or program.out_dtype == "f64":
        raise Unsupported("operands in float64")
    strange = [x for x in types.values() if x not in ELEMENT]
    if strange:
        raise Unsupported(f"a leaf of {strange[0]}")
    roots = tuple(found.plan.roots)
    lanes = Lanes(types, request.narrow)
    bounds = tuple(x for x in (program.key_low, program.key_high) if x is not None)
    loads = tuple(place for x in program.loads() for place in x.args[1])
    tables = find_tables((*roots, *bounds, *loads), lanes)
    first, extents = {}, 0
    ranks = {name: program.leaf_types.get(name, (1, ""))[0] for name in program.leaves}
    for name in program.leaves:
        first[name] = extents
        extents += ranks[name]
    numbered = {node: (number, table) for number, (node, table) in enumerate(tables.items())}
    rough = rough_nodes((*roots, *bounds))
    return Kernel(lanes, program.leaves, first, ranks, numbered, rough, exact=program.post is not None)


def _counts(found: Stages) -> str:
    counts = {"SHARED": len(found.shared), "SHARED_GRADS": len(found.shared_slopes)}
    return "\n".join(f"static constexpr int {name} = {count};" for name, count in counts.items())


def _dtypes(request: Request) -> str:
    names = {"QT": request.qk_dtype, "KT": request.qk_dtype, "VT": request.v_dtype, "GT": request.grad_dtype}
    out = {"f32": "float", "f16": "f16", "bf16": "bf16"}[request.program.out_dtype]
    return "\n".join([*(f"typedef {ELEMENT[x]} {name};" for name, x in names.items()), f"typedef {out} OT;"])


def _tables(kernel: Kernel) -> str:
    """Every bucket's thresholds and values, and how they are read."""
    text = [_BUCKET]
    for number, table in kernel.buckets.values():
        element = "int32_t" if fits(kernel.lanes.interval(table.argument), INT32) else "i64"
        limits = ", ".join(_integer(x) for x in table.thresholds)
        values = ", ".join(_integer(x) for pair in table.values for x in pair)
        text.append(f"static const {element} bucket{number}_at[] = {{{limits}}};")
        text.append(f"static const {element} bucket{number}_value[] = {{{values}}};")
        text.append(f"static const Bucket<{element}> bucket{number}{{bucket{number}_at, bucket{number}_value}};")
    return "\n".join(text)


def _integer(value: int) -> str:
    return f"{value}LL" if value > -(1 << 63) else "INT64_MIN"


_BUCKET = """template <class T> struct Bucket { const T *at, *value; };
template <class T> static inline i64 bucket(const Bucket<T>& t, i64 cells, int shift, i64 base, i64 x) {
  float y = (float)(x | 1);
  int32_t bits; memcpy(&bits, &y, 4);
  i64 cell = clamp((bits >> shift) - base, cells);
  return t.value[2 * cell + (x >= t.at[cell])];
}
// Keys are mostly in the order of time, and most vectors of them lie in one bucket.
static inline vi bucket(const Bucket<int32_t>& t, i64 cells, int shift, i64 base, vi x) {
  i64 first = bucket(t, cells, shift, base, (i64)x[0]), last = bucket(t, cells, shift, base, (i64)x[W - 1]);
  if (first == last && ordered(x)) return as<vi>((int32_t)first);
  vi cell = clamp(((vi)as<vf>(x | 1) >> shift) - (int32_t)base, cells);
  return gather<vi>(t.value, 2 * cell - (vi)(x >= gather<vi>(t.at, cell)));
}
template <class T> static inline vl bucket(const Bucket<T>& t, i64 cells, int shift, i64 base, vl x) {
  for (int l = 0; l < W; l++) x[l] = bucket(t, cells, shift, base, (i64)x[l]);
  return x;
}"""


class _Program:
    """Prints `struct Program`: columns, hulls, heads, and the stages of a pair."""

    def __init__(self, request: Request, found: Stages, kernel: Kernel, printer: Printer) -> None:
        self.request, self.stages, self.kernel, self.printer = request, found, kernel, printer

    def text(self) -> str:
        program = self.request.program
        members = self.printer.column_members()
        extents = sum(self.kernel.ranks.values())
        constants = {
            "PRODUCT": program.product is not None,
            "SOFTMAX": program.post is not None,
            "NATURAL": program.post is not None and program.fully_masked == "natural",
            "POST_READS_PRODUCT": self.printer.post_reads_product,
            "HAS_LOW": program.key_low is not None,
            "HAS_HIGH": program.key_high is not None,
        }
        flags = " ".join(f"static constexpr bool {k} = {str(v).lower()};" for k, v in constants.items())
        heads = [
            self._function(f"i64 {name}(i64 h) const", getattr(program, name), {HEAD: "h"})
            for name in ("q_head", "k_head", "v_head")
        ]
        bounds = [
            self._function(f"i64 {name}(i64 b, i64 i) const", expr or const(0), {SEQUENCE: "b", QUERY: "i"})
            for name, expr in (("key_low", program.key_low), ("key_high", program.key_high))
        ]
        body = [
            "struct Program {",
            "const Args& a;",
            f"i64 extent[{extents + 1}], stride[{extents + 1}];",
            "Array<int32_t> key_place;",
            *members,
            flags,
            self._constructor(),
            *heads,
            *bounds,
            self.printer.allocate(),
            self.printer.columns("query"),
            self.printer.columns("key"),
            self.printer.shared(),
            self.printer.backward() if self.request.is_backward else self.printer.forward(),
            *([self.printer.scatter(), self.printer.flush()] if self.request.is_backward else []),
            "};",
        ]
        return "\n".join(body)

    def _constructor(self) -> str:
        lines = ["explicit Program(const Args& args) : a(args) {"]
        for name in self.request.program.leaves:
            first, rank = self.kernel.first_extent[name], self.kernel.ranks[name]
            for dim in range(rank):
                lines.append(f"extent[{first + dim}] = a.extents[{first + dim}];")
            for dim in reversed(range(rank)):
                step = "1" if dim == rank - 1 else f"stride[{first + dim + 1}] * extent[{first + dim + 1}]"
                lines.append(f"stride[{first + dim}] = {step};")
        return "\n".join([*lines, "}"])

    def _function(self, head: str, expr: Expr, indices: Mapping[Expr, str]) -> str:
        scope = self.printer.scope(pairs=False)
        for node, name in indices.items():
            scope.give(node, name, "i64")
        result = scope.value(expr)
        return "\n".join([f"{head} {{", *scope.lines, f"return {result.text};", "}"])

