"""Print the stages of a score program as members of `struct Program` (see runtime/blocks.h for who calls them)."""

from __future__ import annotations

from typing import TypeAlias

from gr_compile.analysis.expr import Expr, size, walk
from gr_compile.lowering.cpu.emit import KEY, VECTORS, Kernel, Scope
from gr_compile.lowering.cpu.grads import grads_struct
from gr_compile.lowering.cpu.lanes import INT64, SCALAR_TYPE
from gr_compile.lowering.cpu.stages import LeafGradient, Stages, is_one
from gr_compile.ops.attention_blocks import QUERY, SEQUENCE
from gr_compile.ops.score_program import HEAD

_LOOP = "for (i64 c = w.c0; c < w.c1; c += W) {"
Loop: TypeAlias = tuple[list[str], list[str]]


class Printer:
    """The members of `Program` that compute columns, what heads share, and pairs."""

    def __init__(self, kernel: Kernel, stages: Stages) -> None:
        self.kernel, self.stages, self.program = kernel, stages, stages.program
        post = self.program.post
        self.post_reads_product = post is not None and any(x.op == "s" for x in walk(post))
        self.key_loads = [x for x in stages.gradients if x.side == "key"]
        self.tables = list(dict.fromkeys(x.load.args[0] for x in stages.gradients))

    # ------------------------------------------------------------------------------------------ scopes
    def scope(self, pairs: bool) -> Scope:
        found = Scope(self.kernel, pairs)
        for number, name in enumerate(self.program.sizes):
            found.give(size(name), f"a.sizes[{number}]", "i64")
        return found

    def _column(self, node: Expr) -> tuple[str, str, bool]:
        """Name of a column, the type of its elements, and whether each head has its own."""
        side = "key" if node in self.stages.columns["key"] else "query"
        number = self.stages.columns[side].index(node)
        if side == "query":
            type_ = SCALAR_TYPE[node.dtype]
        else:
            type_ = VECTORS[self.kernel.lanes.vector_type(node)]
        return f"{side}{number}", "char" if type_ == "bool" else type_, "h" in node.free

    def _pairs(self, with_shared: bool = True) -> Scope:
        """A scope inside the loop over columns: columns, indices and shared values are given."""
        scope = self.scope(pairs=True)
        scope.give(SEQUENCE, "w.b", "i64")
        scope.give(QUERY, "i", "i64")
        scope.give(HEAD, "w.h", "i64")
        scope.give(KEY, "j", "vi")
        for node in (*self.stages.columns["query"], *self.stages.columns["key"]):
            name, _, _ = self._column(node)
            is_query = node in self.stages.columns["query"]
            scope.give(node, f"{name}_", SCALAR_TYPE[node.dtype] if is_query else self.kernel.lanes.vector_type(node))
        if with_shared:
            for number, node in enumerate(self.stages.shared):
                scope.give(node, f"e{number}_", self.kernel.lanes.vector_type(node))
        product, softmax = self.program.product, self.program.softmax
        if product is not None:
            scope.give(product, "s_", "vd" if product.dtype == "f64" else "vf")
        if softmax is not None:
            scope.give(softmax, "sm_", "vf")
        return scope

    def _row_lines(self) -> list[str]:
        """What a row is given; the compiler drops what a loop does not read."""
        lines = ["const i64 i = a.query_positions[w.row];", "const uint32_t noise = row_noise(a.seed, w.b, w.h, i);"]
        for node in self.stages.columns["query"]:
            name, _, by_head = self._column(node)
            at = "w.h * a.query_rows + w.row" if by_head else "w.row"
            lines.append(f"const {SCALAR_TYPE[node.dtype]} {name}_ = {name}[{at}];")
        return lines

    def _key_lines(self, with_shared: bool) -> list[str]:
        """What the lanes of a loop are given."""
        lines = ["const vi j = load<vi>(key_place.data + w.key + c);"]
        for node in self.stages.columns["key"]:
            name, _, by_head = self._column(node)
            lanes = self.kernel.lanes.vector_type(node).replace("vm", "vi")
            at = "w.h * a.key_rows + w.key + c" if by_head else "w.key + c"
            lines.append(f"const {lanes} {name}_ = load<{lanes}>({name}.data + {at});")
        for number, node in enumerate(self.stages.shared if with_shared else ()):
            kind = self.kernel.lanes.vector_type(node)
            lanes = kind.replace("vm", "vi")
            pointer = f"(const {VECTORS[kind]}*)x.e[{number}].data"
            lines.append(f"const {lanes} e{number}_ = load<{lanes}>({pointer} + w.at + c);")
        return lines

    def _loop(self, body: list[str], given: list[str], with_shared: bool = True) -> Loop:
        """(lines before the loop, the loop) around `body`, which reads `given` in every step."""
        return self._row_lines(), [_LOOP, *self._key_lines(with_shared), *given, *body, "}"]

    # ----------------------------------------------------------------------------------------- columns
    def column_members(self) -> list[str]:
        lines = []
        for node in (*self.stages.columns["query"], *self.stages.columns["key"]):
            name, type_, _ = self._column(node)
            lines.append(f"Array<{type_}> {name};")
        return lines

    def allocate(self) -> str:
        lines = ["bool allocate() {", "bool ok = key_place.allocate(a.key_rows);"]
        for side in ("query", "key"):
            for node in self.stages.columns[side]:
                name, _, by_head = self._column(node)
                lines.append(f"ok = ok && {name}.allocate(a.{side}_rows{' * a.heads' if by_head else ''});")
        return "\n".join([*lines, "return ok;", "}"])

    def columns(self, side: str) -> str:
        """`bool query_columns(b, i, row)`: false where an integer is wider than assumed."""
        index = QUERY if side == "query" else KEY
        letter = index.args[0]
        lines = [f"bool {side}_columns(i64 b, i64 {letter}, i64 row) {{", "bool fits = true;"]
        if side == "key":
            lines.append("key_place[row] = (int32_t)j;")
        for by_head in (False, True):
            nodes = [x for x in self.stages.columns[side] if ("h" in x.free) == by_head]
            if not nodes:
                continue
            scope = self.scope(pairs=False)
            scope.give(SEQUENCE, "b", "i64")
            scope.give(index, letter, "i64")
            scope.give(HEAD, "h", "i64")
            if by_head:
                lines.append("for (i64 h = 0; h < a.heads; h++) {")
            stores = [y for node in nodes for y in self._store_column(node, scope, by_head, side)]
            lines += [*scope.lines, *stores, *(["}"] if by_head else [])]
        return "\n".join([*lines, "return fits;", "}"])

    def _store_column(self, node: Expr, scope: Scope, by_head: bool, side: str) -> list[str]:
        name, type_, _ = self._column(node)
        value = scope.value(node).text
        at = f"h * a.{side}_rows + row" if by_head else "row"
        if node.dtype == "b" and side == "key":
            return [f"{name}[{at}] = -(int32_t){value};"]
        checks = []
        if node.dtype == "i":
            low, high = self.kernel.lanes.interval(node)
            if (low, high) != INT64:
                checks = [f"fits &= {value} >= {low}LL && {value} <= {high}LL;"]
        return [*checks, f"{name}[{at}] = ({type_}){value};"]

    # ------------------------------------------------------------------------------------------ stages
    def shared(self) -> str:
        """What the heads share, for one row of a strip."""
        scope = self._pairs(with_shared=False)
        values = [scope.value(x) for x in self.stages.shared]
        body = list(scope.lines)
        for number, (node, value) in enumerate(zip(self.stages.shared, values)):
            kind = self.kernel.lanes.vector_type(node)
            lanes = kind.replace("vm", "vi")
            body.append(f"store<{lanes}>(({VECTORS[kind]}*)x.e[{number}].data + w.at + c, {scope.to(value, kind)});")
        before, loop = self._loop(body, [], with_shared=False)
        return "\n".join(["void shared(const Row& w, Strip& x) {", *before, *loop, "}"])

    def _product_line(self) -> list[str]:
        product = self.program.product
        if product is None:
            return []
        text = "load<vf>(x.s.data + w.at + c)"
        if self.kernel.rounds(product):
            text = f"round_{product.dtype}({text})"
        if product.dtype == "f64":
            return [f"const vd s_ = as<vd>({text});"]
        return [f"const vf s_ = {text};"]

    def _real(self, scope: Scope, node: Expr) -> str:
        """A float in float32 lanes."""
        return scope.to(scope.value(node), "vf")

    def forward(self) -> str:
        """`const float* forward(w, x)`: a row of products becomes weights, in the buffer that is returned."""
        lines = ["const float* forward(const Row& w, Strip& x) {"]
        buffer = "x.sm" if self.post_reads_product else "x.s"
        scope = self._pairs()
        score = self._real(scope, self.program.score)
        body = [*scope.lines, f"vf p = {score};"]
        if self.program.post is None:
            body.append("if (c + W > w.limit) p = where(in_range(c, w.limit), p, vf{});")
        loops = [self._loop([*body, f"store<vf>({buffer}.data + w.at + c, p);"], self._product_line())]
        if self.program.post is not None:
            loops.append(([], [self._softmax(buffer)]))
            if self.program.post is not self.program.softmax:
                loops.append(self._post(buffer))
        return "\n".join([*lines, *_joined(loops), f"return {buffer}.data;", "}"])

    def _softmax(self, buffer: str) -> str:
        zero = str(self.program.fully_masked == "zero").lower()
        return f"softmax_row({buffer}.data + w.at, w.c0, w.c1, w.limit, {zero});"

    def _post(self, buffer: str) -> Loop:
        assert self.program.post is not None
        scope = self._pairs()
        value = self._real(scope, self.program.post)
        given = [*(self._product_line() if self.post_reads_product else []), self._softmax_line(buffer)]
        tail = "if (c + W > w.limit) p = where(in_range(c, w.limit), p, vf{});"
        return self._loop([*scope.lines, f"vf p = {value};", tail, f"store<vf>({buffer}.data + w.at + c, p);"], given)

    def _softmax_line(self, buffer: str) -> str:
        softmax = self.program.softmax
        text = f"load<vf>({buffer}.data + w.at + c)"
        if softmax is not None and self.kernel.rounds(softmax):
            text = f"round_{softmax.dtype}({text})"
        return f"const vf sm_ = {text};"

    # ---------------------------------------------------------------------------------------- backward
    def backward(self) -> str:
        """`void backward(w, x, grads)`: weights into p (s without softmax), gradients of products into dp."""
        loops = self._pointwise() if self.program.post is None else self._through_softmax()
        return "\n".join(["void backward(const Row& w, Strip& x, Grads& grads) {", *_joined(loops), "}"])

    def _pointwise(self) -> list[Loop]:
        scope = self._pairs()
        body = [f"vf p = {self._real(scope, self.program.score)};"]
        given = [*self._product_line(), "vf g = load<vf>(x.dp.data + w.at + c);"]
        head, work, after = self._slopes(scope, self.stages.product_slope, False)
        tail = "if (c + W > w.limit) p = where(in_range(c, w.limit), p, vf{});"
        lines = [*scope.lines, *body, tail, "store<vf>(x.s.data + w.at + c, p);", *work]
        before, loop = self._loop(lines, given)
        return [([*head, *before], [*loop, *after])]

    def _through_softmax(self) -> list[Loop]:
        program = self.program
        assert program.post is not None
        first = self._pairs()
        score = self._real(first, program.score)
        loops = [
            self._loop([*first.lines, f"store<vf>(x.sm.data + w.at + c, {score});"], self._product_line()),
            ([], [self._softmax("x.sm")]),
        ]
        second = self._pairs()
        post = self._real(second, program.post)
        slope = self.stages.softmax_slope
        dsm = "vf{}" if slope is None else "g" if is_one(slope) else f"g * {self._real(second, slope)}"
        head, work, after = self._slopes(second, None, True)
        lines = [
            *second.lines,
            f"vf p = {post};",
            f"vf d = {dsm};",
            "if (c + W > w.limit) p = where(in_range(c, w.limit), p, vf{}), d = where(in_range(c, w.limit), d, vf{});",
            "store<vf>(x.p.data + w.at + c, p);",
            "store<vf>(x.dp.data + w.at + c, d);",
            "dot += d * sm_;",
            *work,
        ]
        product = self._product_line() if self.post_reads_product else []
        given = [*product, self._softmax_line("x.sm"), "vf g = load<vf>(x.dp.data + w.at + c);"]
        before, loop = self._loop(lines, given)
        loops.append((["vf dot = vf{};", *head, *before], [*loop, "const float inner = sum(dot);", *after]))
        third = self._pairs()
        head, work, after = self._slopes(third, self.stages.product_slope, False)
        given = [
            *self._product_line(),
            self._softmax_line("x.sm"),
            "vf g = sm_ * (load<vf>(x.dp.data + w.at + c) - inner);",
        ]
        before, loop = self._loop([*third.lines, *work], given)
        loops.append(([*head, *before], [*loop, *after]))
        return loops

    def _slopes(self, scope: Scope, product: Expr | None, after: bool) -> tuple[list[str], list[str], list[str]]:
        """(before, in, after the loop): gradients from g, the gradient of score or post, to products and leaves."""
        found = [x for x in self.stages.gradients if x.after_softmax == after]
        slopes = dict.fromkeys([*([] if product is None else [product]), *(x.slope for x in found)])
        names: dict[Expr, str] = {}
        work, head, end = [], [], []
        for number, slope in enumerate(slopes):
            names[slope] = f"d{number}"
            factor = "" if is_one(slope) else f" * {self._real(scope, slope)}"
            work.append(f"vf d{number} = g{factor};")
        if slopes:
            masked = " ".join(f"{x} = where(live, {x}, vf{{}});" for x in names.values())
            work.append(f"if (c + W > w.limit) {{ vi live = in_range(c, w.limit); {masked} }}")
        if not after:
            value = names[product] if product is not None else "vf{}"
            work.append(f"store<vf>(x.dp.data + w.at + c, {value});")
        for slope, is_after in self.stages.shared_slopes:
            if is_after == after:
                at = f"x.g[{self.stages.shared_slopes.index((slope, after))}].data + w.at + c"
                work.append(f"store<vf>({at}, load<vf>({at}) + {names[slope]});")
        for number, gradient in enumerate(found):
            if gradient.side == "query":
                head.append(f"vf q{number}_sum = vf{{}};")
                work.append(f"q{number}_sum += {names[gradient.slope]};")
                end += ["{", *self._row_scatter(gradient, f"sum(q{number}_sum)"), "}"]
            elif gradient.side == "key":
                head_at = "w.h * grads.rows + " if gradient.by_head else ""
                column = f"grads.key{self.key_loads.index(gradient)}.data"
                at = f"{column} + {head_at}w.key - a.key_offsets[w.b] + c"
                work.append(f"store<vf>({at}, load<vf>({at}) + {names[gradient.slope]});")
            elif gradient.side == "head":
                work.append(self._pair_scatter(scope, gradient.load, names[gradient.slope]))
        return head, work, end

    def _row_scatter(self, gradient: LeafGradient, value: str) -> list[str]:
        scope = self.scope(pairs=False)
        scope.prefix = "y"
        for node, name in ((SEQUENCE, "w.b"), (QUERY, "a.query_positions[w.row]"), (HEAD, "w.h")):
            scope.give(node, name, "i64")
        for place in gradient.load.args[1]:
            scope.value(place)
        offset = scope.place(gradient.load)[0]
        return [*scope.lines, f"grads.table{self._table(gradient.load)}[{offset}] += {value};"]

    def _table(self, load: Expr) -> int:
        return self.tables.index(load.args[0])

    def _pair_scatter(self, scope: Scope, load: Expr, value: str) -> str:
        """The statement that adds lanes to the leaf at the places of a load; those go to the scope's statements."""
        for place in load.args[1]:
            scope.value(place)
        offset, at, _, runs = scope.place(load)
        leaf, table = load.args[0], f"grads.table{self._table(load)}"
        if not runs:
            return f"scatter_lanes({table}.data + {offset}, grads.copy{self._table(load)}, {at}, {value});"
        extent = self.kernel.extent(leaf, self.kernel.ranks[leaf] - 1)
        return f"scatter_run({table}.data + {offset}, {at}, {extent}, w.contiguous, {value});"

    def scatter(self) -> str:
        """`void scatter(w, x, grads)`: a row of gradients that the heads share reaches its leaves."""
        scope = self._pairs()
        body: list[str] = []
        for number, (slope, after) in enumerate(self.stages.shared_slopes):
            body.append(f"vf g{number} = load<vf>(x.g[{number}].data + w.at + c);")
            for gradient in self.stages.gradients:
                if gradient.side == "shared" and (gradient.slope, gradient.after_softmax) == (slope, after):
                    body.append(self._pair_scatter(scope, gradient.load, f"g{number}"))
        before, loop = self._loop([*scope.lines, *body], [])
        lines = [*before, *loop] if body else []
        return "\n".join(["void scatter(const Row& w, Strip& x, Grads& grads) {", *lines, "}"])

    def flush(self) -> str:
        """`void flush(b, base, keys, grads)`: gradients of keys' columns reach their leaves."""
        lines = ["void flush(i64 b, i64 base, i64 keys, Grads& grads) {"]
        for number, gradient in enumerate(self.key_loads):
            scope = self.scope(pairs=False)
            for node, name in ((SEQUENCE, "b"), (KEY, "a.key_positions[base + r]"), (HEAD, "h")):
                scope.give(node, name, "i64")
            for place in gradient.load.args[1]:
                scope.value(place)
            offset = scope.place(gradient.load)[0]
            heads = "a.heads" if gradient.by_head else "1"
            value = f"grads.key{number}[h * grads.rows + r]"
            lines += [f"for (i64 h = 0; h < {heads}; h++)", "for (i64 r = 0; r < keys; r++) {", *scope.lines]
            lines += [f"grads.table{self._table(gradient.load)}[{offset}] += {value};", "}"]
        return "\n".join([*lines, "}"])

    def grads(self) -> str:
        """`struct Grads` of the tables and keys' columns that pairs scatter to."""
        return grads_struct(self.program.leaves, self.tables, self.key_loads)


def _joined(loops: list[Loop]) -> list[str]:
    """Every loop in a block of its own; what a loop leaves behind (`inner`) stays visible."""
    lines: list[str] = []
    depth = 0
    for before, loop in loops:
        lines += ["{", *before, *loop]
        depth += 1
    return [*lines, *["}"] * depth]
