"""Print `struct Grads`: where a thread of the backward adds what pairs give to the leaves."""

from __future__ import annotations

from collections.abc import Sequence

from gr_compile.lowering.cpu.stages import LeafGradient

_SMALL = 4096  # elements of a table that each lane has a copy of


def grads_struct(leaves: Sequence[str], tables: Sequence[str], key_loads: Sequence[LeafGradient]) -> str:
    """A thread's tables and keys' columns, reduced in the order of the threads.

    `tables`: the leaves that have a table, in its order; `key_loads`: the loads by key, each with a column.
    """
    numbered = [(number, leaves.index(leaf)) for number, leaf in enumerate(tables)]
    keys = [(number, "heads * " if x.by_head else "") for number, x in enumerate(key_loads)]
    numels = [f"a.numels[{leaf}]" for _, leaf in numbered]
    copies = [f"copy{n} = a.numels[{leaf}] <= {_SMALL} ? a.numels[{leaf}] : 0;" for n, leaf in numbered]
    return "\n".join(
        [
            "struct Grads {",
            "i64 rows = 0, heads = 0;",
            *(f"Array<float> table{n}; i64 copy{n} = 0;" for n, _ in numbered),
            *(f"Array<float> key{n};" for n, _ in keys),
            "bool allocate(const Args& a, i64 keys) {",
            "rows = keys + W;",
            "heads = a.heads;",
            "bool ok = true;",
            *copies,
            *(f"ok = ok && table{n}.zeros(copy{n} ? copy{n} * W : a.numels[{leaf}]);" for n, leaf in numbered),
            *(f"ok = ok && key{n}.zeros({heads}rows);" for n, heads in keys),
            "return ok;",
            "}",
            "void begin(i64 keys) {",
            *(f"memset((void*)key{n}.data, 0, {heads}rows * sizeof(float));" for n, heads in keys),
            "}",
            f"static i64 floats(const Args& a) {{ return {' + '.join(['0', *numels])}; }}",
            "static void reduce(const Args& a, Grads** threads, i64 count) {",
            *(
                f"join(a.grad_leaves[{leaf}], a.numels[{leaf}], threads, count, "
                f"[](Grads& t) {{ return t.table{n}.data; }}, threads[0]->copy{n} ? W : 1, a.threads);"
                for n, leaf in numbered
            ),
            "}",
            _JOIN,
            "};",
        ]
    )



_JOIN = """template <class F>
static void join(float* out, i64 n, Grads** threads, i64 count, F table, int copies, i64 workers) {
#pragma omp parallel for num_threads(workers) if (n > 65536)
  for (i64 x = 0; x < n; x++) {
    float total = 0;
    for (i64 t = 0; t < count; t++)
      for (int l = 0; l < copies; l++) total += table(*threads[t])[l * n + x];
    out[x] = total;
  }
}"""
