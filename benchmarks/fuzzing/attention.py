"""Attention in the spellings people use: scores, biases, masks, activations, grouped heads, cross attention."""

from __future__ import annotations

from fuzzing.draw import Draw, Source
from fuzzing.sequences import rotary

CAUSAL = (
    "torch.ones(N, N, dtype=torch.bool).tril()", "torch.arange(N)[:, None] >= torch.arange(N)[None, :]", "self.causal[:N, :N]",
    "~torch.triu(torch.ones(N, N, dtype=torch.bool), diagonal=1)", "torch.tril(torch.ones(N, N)) != 0", "torch.tril(torch.ones((N, N), dtype=torch.bool))",
    "torch.full((N, N), -1.0).triu(1) >= 0", "torch.arange(N)[None, :].le(torch.arange(N)[:, None])",
)  # fmt: skip
WINDOW = (
    "(torch.arange(N)[:, None] - torch.arange(N)[None, :]).abs() <= 2", "torch.ones(N, N, dtype=torch.bool).triu(-2)",
    "(torch.arange(N)[:, None] - torch.arange(N)) < 3",
)  # fmt: skip
TERMS = (
    ["key"], ["causal", "key"], ["causal"], [], ["causal", "key", "query"], ["key", "query"], ["key", "window"], ["causal", "window"],
    ["causal", "query"], ["query"], ["causal", "key"], ["causal", "key", "window"], ["causal", "key", "query"], ["key_of_times"],
    ["causal", "diagonal_or_key"],
)  # fmt: skip
NEGATIVE = ("-1e9", "float('-inf')", "-1e4", "torch.finfo({s}.dtype).min")


class Attention:
    """Writes one attention layer."""

    def __init__(self, draw: Draw, source: Source, at: str, x: str, context: str | None) -> None:
        self.draw, self.source, self.at, self.x = draw, source, at, x
        self.context = context
        self.keys, self.key_valid, self.M = (context, "context_valid", "M") if context else (x, "valid", "N")
        self.D, self.H = source.width, source.heads
        self.d = self.D // self.H

    def pick(self, name: str, options: list[str] | tuple[str, ...]) -> str:
        """A choice of this layer."""
        return self.draw.pick(self.at + name, options)

    def write(self) -> str:
        """The layer's output [B, N, D]."""
        form = self.pick("form", ["einsum", "matmul", "sdpa", "bmm", "single", "module", "folded", "bias_only", "hstu"])
        self.form = "matmul" if form == "bias_only" and self.context else form
        if form == "module":
            return self._module()
        if form == "single":
            self.H, self.d = 1, self.D
        y = self._heads()
        return self._finish(y)

    # ------------------------------------------------------------------------------------------- masks
    def _mask(self) -> str | None:
        """A boolean [B or 1, 1, N, M] expression, true where a pair is kept."""
        terms = self.draw.pick(self.at + "mask", TERMS)
        if self.context:
            terms = [t for t in terms if t in ("key", "query")]
        parts = [self._term(term) for term in terms]
        if not parts:
            return None
        how = self.pick("combined", ["and", "logical", "product", "not_or", "nested"])
        if how == "and":
            return " & ".join(f"({p})" for p in parts)
        if how == "logical":
            mask = parts[0]
            for part in parts[1:]:
                mask = f"torch.logical_and({mask}, {part})"
            return mask
        if how == "nested":
            mask = f"torch.logical_not({parts[0]})"
            for part in parts[1:]:
                mask = f"torch.logical_or({mask}, ~(({part}) & ~{mask}))"
            return f"torch.logical_not({mask})"
        if how == "product":
            return "(" + " * ".join(f"({p}).float()" for p in parts) + ") > 0"
        return "~(" + " | ".join(f"~({p})" for p in parts) + ")"

    def _term(self, term: str) -> str:
        if term == "causal":
            return f"({self.pick('causal', CAUSAL)})[None, None]"
        if term == "window":
            return f"({self.pick('window', WINDOW)}).view(1, 1, N, N)"
        if term == "query":
            return self.pick("query", ["valid[:, None, :, None]", "valid.unsqueeze(1).unsqueeze(-1)", "(ids != 0)[:, None, :, None]"])
        if term == "key_of_times":
            return "(times[:, None, :, None] >= times[:, None, None, :]) & (ids != 0)[:, None, None, :]"
        if term == "diagonal_or_key":
            return "torch.eye(N, dtype=torch.bool)[None, None] | valid[:, None, None, :]"
        v = self.key_valid
        spellings = [f"{v}[:, None, None, :]", f"{v}.view(B, 1, 1, {self.M})", f"{v}.unsqueeze(1).unsqueeze(2).expand(B, 1, N, {self.M})"]
        spellings += [f"{v}[:, None, None, :].expand(B, {self.H}, N, {self.M})", f"{v}[:, None, None].repeat(1, {self.H}, N, 1)"]
        if not self.context:
            spellings += ["mask.bool()[:, None, None, :]", "(torch.arange(N)[None, :] < lengths[:, None])[:, None, None]"]
        return self.pick("key", spellings)

    # ------------------------------------------------------------------------------------------ scores
    def _bias(self) -> str:
        if self.context:
            return ""
        kind = self.pick("bias", ["", "", "relative", "time", "alibi", "head", "toeplitz", "relative_single"])
        if kind == "relative":
            table = self.source.module("relative", f"nn.Embedding(49, {self.H}{self.pick('table', ['', '', '', ', padding_idx=24', ', scale_grad_by_freq=True'])})")
            return f" + {table}(torch.arange(N)[:, None] - torch.arange(N)[None, :] + 24).permute(2, 0, 1)" + self.pick("stopped", ["", "", "", ".detach()"])
        if kind == "relative_single":
            table = self.source.module("relative", "nn.Parameter(torch.randn(49))")
            return f" + {table}[torch.arange(N)[None, :] - torch.arange(N)[:, None] + 24]"
        if kind == "time":
            table = self.source.module("buckets", f"nn.Embedding(16, {self.H})")
            gap = "(times[:, :, None] - times[:, None, :])"
            bucket = self.pick("bucket", [
                f"{gap}.abs().clamp(max=15)", f"(torch.log({gap}.abs().clamp(min=1).to(torch.float32)) / 0.301).long().clamp(0, 15)",
                f"torch.floor(torch.log1p({gap}.abs().double())).int().clamp(max=15)", f"{gap}.clamp(min=0).sqrt().long().clamp(max=15)",
                f"({gap}.abs().float() / 0.7).sqrt().floor().to(torch.int64).clamp(0, 15)", f"torch.bucketize({gap}, torch.arange(0, 30, 2))",
            ])  # fmt: skip
            return f" + {table}({bucket}).permute(0, 3, 1, 2)"
        if kind == "alibi":
            slopes = f"(2.0 ** -torch.arange(1, {self.H} + 1))[:, None, None]"
            return f" - {slopes} * (torch.arange(N)[:, None] - torch.arange(N)[None, :]).abs()"
        if kind == "head":
            weight = self.source.module("head_bias", f"nn.Parameter(torch.randn({self.H}, 1, 1))")
            return f" + {weight}"
        if kind == "toeplitz":
            weight = self.source.module("toeplitz", "nn.Parameter(torch.randn(47))")
            t = self.source.let("t", f"F.pad({weight}[24 - N:23 + N], [0, N]).repeat(N)[..., :-N].reshape(N, 3 * N - 2)[:, N - 1:2 * N - 1]")
            return f" + {t}[None, None]"
        return ""

    def _projections(self) -> tuple[str, str, str]:
        """q, k, v as [B, H, N or M, d]; k and v may have fewer heads."""
        s, D, H, d, M = self.source, self.D, self.H, self.d, self.M
        self.kv = (2 if H == 4 else 1) if H > 1 and self.draw.flag(self.at + "grouped", 5) else H
        shaped = f"({H}, {d})"
        if self.kv == H and not self.context and self.draw.flag(self.at + "fused", 3):
            layer = s.module("qkv", f"nn.Linear({D}, {3 * H * d}, bias={self.draw.flag(self.at + 'qkv_bias')})")
            act = self.pick("qkv_act", ["{}", "F.silu({})"])
            q, k, v = s.fresh("q"), s.fresh("k"), s.fresh("v")
            how = self.pick("qkv_split", [
                f"[t.view(B, N, {H}, {d}).transpose(1, 2) for t in {{}}.chunk(3, dim=-1)]", f"{{}}.view(B, N, 3, {H}, {d}).permute(2, 0, 3, 1, 4)",
                f"{{}}.view(B, N, 3, {H}, {d}).transpose(1, 3).unbind(2)", f"[t.unflatten(-1, {shaped}).transpose(1, 2) for t in torch.split({{}}, [{H * d}] * 3, dim=-1)]",
            ])  # fmt: skip
            s.do(f"{q}, {k}, {v} = " + how.format(act.format(f"{layer}({self.x})")))
            return q, k, v
        queries = s.module("query", f"nn.Linear({D}, {H * d}, bias={self.draw.flag(self.at + 'q_bias')})")
        keys, values = s.module("key", f"nn.Linear({D}, {self.kv * d})"), s.module("value", f"nn.Linear({D}, {self.kv * d})")
        q = s.let("q", f"{queries}({self.x}).view(B, N, {H}, {d}).transpose(1, 2)")
        k = s.let("k", f"{keys}({self.keys}).view(B, {M}, {self.kv}, {d}).transpose(1, 2)")
        v = s.let("v", f"{values}({self.keys}).view(B, {M}, {self.kv}, {d}).permute(0, 2, 1, 3)")
        return q, k, v

    def _repeated(self, k: str) -> str:
        if self.kv == self.H:
            return k
        times = self.H // self.kv
        return self.source.let("k", self.pick("repeat", [
            f"{k}.repeat_interleave({times}, dim=1)", f"{k}[:, :, None].expand(B, {self.kv}, {times}, {self.M}, {self.d}).reshape(B, {self.H}, {self.M}, {self.d})",
            f"{k}.repeat(1, {times}, 1, 1)", f"torch.stack([{k}] * {times}, 2).flatten(1, 2)",
        ]))  # fmt: skip

    def _scores(self, q: str, k: str) -> str:
        H, d, M = self.H, self.d, self.M
        scale = self.pick("scale", ["", f" / {d} ** 0.5", f" * {d ** -0.5}"])
        if self.form == "bias_only":
            return ""
        if self.form == "einsum":
            return f"torch.einsum('bihd,bjhd->bhij', {q}.transpose(1, 2), {k}.transpose(1, 2)){scale}"
        if self.form == "hstu":
            return f"torch.einsum('bhid,bhjd->bhij', {q}, {k}){scale}"
        if self.form == "bmm":
            return f"torch.bmm({q}.reshape(B * {H}, N, {d}), {k}.reshape(B * {H}, {M}, {d}).transpose(1, 2)).view(B, {H}, N, {M}){scale}"
        return f"({q} @ {k}.transpose(-2, -1)){scale}"

    # ---------------------------------------------------------------------------------------- the layer
    def _heads(self) -> str:
        """[B, N, H * d]."""
        q, k, v = self._projections()
        if not self.context and self.d % 2 == 0 and self.draw.flag(self.at + "rotary", 6):
            q, k = rotary(self.draw, self.source, self.at, q, k, self.d)
        if self.form == "sdpa":
            return self._sdpa(q, k, v)
        k, v = self._repeated(k), self._repeated(v)
        s, draw = self.source, self.draw
        bias = self._bias()
        scores = self._scores(q, k)
        if not scores and not bias:
            scores = f"({q} @ {k}.mT)"
        a = s.let("a", f"({scores}{bias})" if scores else bias[3:])
        mask = self._mask()
        keep = s.let("keep", mask) if mask else None
        activation = self.pick("activation", ["softmax", "silu", "softmax", "softmax", "relu2", "none", "silu", "sigmoid"])
        weights = self._softmax(a, keep) if activation == "softmax" else self._pointwise(a, keep, activation)
        if draw.flag(self.at + "weights_out", 8):
            s.outputs.append(weights)
        if draw.flag(self.at + "stopped_weights", 20):
            weights = s.let("a", f"{weights}.detach()")
        if draw.flag(self.at + "dropout", 4):
            weights = s.let("a", f"F.dropout({weights}, 0.0)")
        if self.form == "folded" and "bias_only" not in self.form:
            o = f"torch.bmm({weights}.expand(B, {self.H}, N, {self.M}).reshape(B * {self.H}, N, {self.M}), {v}.reshape(B * {self.H}, {self.M}, {self.d})).view(B, {self.H}, N, {self.d})"
        else:
            o = self.pick("product", [
                f"{weights} @ {v}", f"torch.einsum('bhij,bhjd->bhid', {weights}.expand(B, {self.H}, N, {self.M}), {v})",
                f"torch.matmul({v}.transpose(-1, -2), {weights}.transpose(-1, -2)).transpose(-1, -2)",
            ])  # fmt: skip
        o = s.let("o", o)
        return s.let("y", self.pick("merge", [
            f"{o}.transpose(1, 2).reshape(B, N, {self.D})", f"{o}.permute(0, 2, 1, 3).contiguous().view(B, N, {self.D})", f"{o}.transpose(1, 2).flatten(2)",
        ]))  # fmt: skip

    def _softmax(self, a: str, keep: str | None) -> str:
        s, negative = self.source, self.pick("negative", NEGATIVE).format(s=a)
        if keep:
            a = s.let("a", self.pick("applied", [
                f"{a}.masked_fill(~{keep}, {negative})", f"torch.where({keep}, {a}, {negative})",
                f"{a} + torch.zeros(1, dtype={a}.dtype).masked_fill(~{keep}, {negative})",
                f"{a} + (1.0 - {keep}.to({a}.dtype)) * {'-1e9' if 'inf' in negative else negative}",
                f"{a} * {keep} + -1e9 * ~{keep}", f"{a}.clone().masked_fill_(~{keep}, {negative})", f"{a} + {keep}.to({a}.dtype).log()",
                f"{a} - 1e9 * (~{keep}).to({a}.dtype)", f"{a} + torch.full((1, 1, N, {self.M}), {negative}, dtype={a}.dtype).where(~{keep}, 0.0)",
            ]))  # fmt: skip
        spelling = self.pick("softmax", ["F.softmax({a}, dim=-1)", "{a}.softmax(-1)", "torch.softmax({a}.double(), dim=3).to({a}.dtype)", "({a} - {a}.amax(-1, keepdim=True)).softmax(-1)", "{a}.exp() / {a}.exp().sum(-1, keepdim=True)", "F.normalize(({a} - {a}.amax(-1, keepdim=True)).exp(), p=1, dim=-1)", "{a}.log_softmax(-1).exp()", "F.softmax({a}, dim=-1)"])
        weights = s.let("a", spelling.format(a=a))
        after = self.pick("after", ["", "", "", "zero", "keep", "query", "nan_to_num"])
        if after == "zero" or (after == "keep" and not keep):
            return weights
        table = {"keep": f"{weights} * {keep}", "query": f"{weights} * valid[:, None, :, None]", "nan_to_num": f"torch.nan_to_num({weights})"}
        return s.let("a", table[after]) if after else weights

    def _pointwise(self, a: str, keep: str | None, activation: str) -> str:
        s = self.source
        if keep and activation != "none" and self.draw.flag(self.at + "mask_before", 3):
            return self._masked_before(a, keep)
        over = self.pick("over", [" / N", "", " / max(N, 1)", " / lengths.clamp(min=1)[:, None, None, None]", " / 16"])
        table = {"silu": f"F.silu({a}){over}", "relu2": f"F.relu({a}) ** 2{over}", "none": f"{a}{over}", "sigmoid": f"torch.sigmoid({a}){over}"}
        weights = s.let("a", table[activation])
        if not keep:
            return weights
        return s.let("a", self.pick("applied_pointwise", [
            f"{weights} * {keep}", f"{weights}.masked_fill(~{keep}, 0.0)", f"torch.where({keep}, {weights}, 0.0)", f"{weights} * {keep}.to({weights}.dtype)",
        ]))  # fmt: skip

    def _masked_before(self, a: str, keep: str) -> str:
        """A number so small that the activation of it is 0, or nearly."""
        negative = self.pick("negative", NEGATIVE[:1] + NEGATIVE[2:]).format(s=a)
        masked = self.pick("applied_before", [
            f"{a}.masked_fill(~{keep}, {negative})", f"torch.where({keep}, {a}, {negative})", f"{a} + (~{keep}).to({a}.dtype) * {negative}",
            f"{a} + torch.zeros(1, dtype={a}.dtype).masked_fill(~{keep}, {negative})",
        ])  # fmt: skip
        activation = self.pick("small", ["F.relu({a}).square()", "F.silu({a})", "F.gelu({a})", "torch.sigmoid({a})", "F.gelu({a}, approximate='tanh')", "F.softplus({a})"])
        return self.source.let("a", activation.format(a=self.source.let("a", masked)))

    def _sdpa(self, q: str, k: str, v: str) -> str:
        s = self.source
        if self.kv != self.H and self.draw.flag(self.at + "by_repeat"):
            k, v, self.kv = self._repeated(k), self._repeated(v), self.H
        mask, extra = self._mask(), ""
        how = self.pick("sdpa_mask", ["bool", "float", "causal", "bias"])
        if how == "causal" and not self.context:
            extra = ", is_causal=True"
        elif mask:
            keep = s.let("keep", mask)
            if how == "bool":
                extra = f", attn_mask={keep}"
            else:
                fill = self.pick("sdpa_fill", ["-1e9", "float('-inf')", "torch.finfo(torch.float32).min"])
                bias = self._bias() if how == "bias" else ""
                additive = s.let("m", f"torch.zeros(1, dtype={q}.dtype).masked_fill(~{keep}, {fill}){bias}")
                extra = f", attn_mask={additive}"
        if self.kv != self.H:
            extra += ", enable_gqa=True"
        o = s.let("o", f"F.scaled_dot_product_attention({q}, {k}, {v}{extra})")
        return s.let("y", f"{o}.transpose(1, 2).reshape(B, N, {self.D})")

    def _module(self) -> str:
        s, layer = self.source, self.source.module("attention", f"nn.MultiheadAttention({self.D}, {self.H}, batch_first=True)")
        padding = self.pick("padding_mask", [f", key_padding_mask=~{self.key_valid}", "", f", key_padding_mask=~{self.key_valid}"])
        causal = "" if self.context else self.pick("module_mask", [
            "", ", attn_mask=torch.ones(N, N, dtype=torch.bool).triu(1)", ", attn_mask=nn.Transformer.generate_square_subsequent_mask(N, dtype={x}.dtype)",
        ]).format(x=self.x)  # fmt: skip
        if "generate_square" in causal and padding:
            padding = f", key_padding_mask=torch.zeros(B, {self.M}, dtype={self.x}.dtype).masked_fill(~{self.key_valid}, float('-inf'))"
        weights = self.pick("need_weights", ["False", "True"])
        y, w = s.fresh("y"), s.fresh("w")
        s.do(f"{y}, {w} = {layer}({self.x}, {self.keys}, {self.keys}{padding}{causal}, need_weights={weights})")
        if weights == "True" and self.draw.flag(self.at + "weights_out", 3):
            s.outputs.append(w)
        return s.let("x", self.pick("residual", ["{x} + {y}", "{y}"]).format(x=self.x, y=y))

    def _finish(self, y: str) -> str:
        s, gate = self.source, self.pick("finish", ["plain", "linear", "gate", "norm"])
        if gate == "linear":
            y = f"{s.module('out', f'nn.Linear({self.D}, {self.D})')}({y})"
        elif gate == "gate":
            y = f"F.layer_norm({y}, ({self.D},)) * F.silu({s.module('u', f'nn.Linear({self.D}, {self.D})')}({self.x}))"
        elif gate == "norm":
            y = f"{s.module('norm', f'nn.LayerNorm({self.D})')}({y})"
        return s.let("x", self.pick("residual", ["{x} + {y}", "{y}", "{x} + {y}"]).format(x=self.x, y=y))
