"""What models return: last items, pools, logits, losses; one or several of them."""

from __future__ import annotations

from fuzzing.draw import Draw, Source

OUTPUTS = (
    "masked", "last", "mean", "raw", "mean", "masked", "loss", "logits", "sum_over_n", "max", "pool", "logits", "selected", "loss", "loss_transposed", "loss_rows",
    "loss_selected", "pairwise", "binary", "next", "contrastive", "scalar", "final", "first", "loss_ids", "all_items", "flat",
    "two_losses", "logits_selected", "norm", "candidates", "accuracy", "loss_mask_int", "softmax_rows", "mean_all", "stacked",
)  # fmt: skip
_LAST = (
    "{x}[torch.arange(B), lengths.clamp(min=1) - 1]", "{x}.gather(1, (lengths.clamp(min=1) - 1)[:, None, None].expand(-1, 1, {D})).squeeze(1)",
    "{x}[:, -1]", "{x}[torch.arange(B), (valid.sum(1) - 1).clamp(min=0)]", "{x}[:, -1, :]", "{x}.select(1, N - 1)",
    "{x}[torch.arange(B), valid.long().cumsum(1).argmax(1)]", "torch.take_along_dim({x}, (valid.sum(1) - 1).clamp(min=0)[:, None, None], 1)[:, 0]",
)  # fmt: skip
_MEAN = (
    "({x} * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)", "{x}.masked_fill(~valid[..., None], 0.0).sum(1) / lengths.clamp(min=1)[:, None]",
    "torch.einsum('bnd,bn->bd', {x}, valid.to({x}.dtype)) / N", "(valid.to({x}.dtype).unsqueeze(1) @ {x}).squeeze(1)", "({x} * valid[..., None]).mean(1)",
    "({x} * valid[..., None]).mean((0, 1))", "{x}[:, :, 0].masked_fill(~valid, 0.0).sum(-1)", "torch.where(valid[..., None], {x}, 0.0).sum(dim=(1, 2))",
    "({x}.transpose(1, 2) * valid[:, None]).sum(-1)", "({x}.reshape(B * N, {D}) * valid.view(-1, 1)).view(B, N, {D}).sum(1)",
)  # fmt: skip


def write_outputs(draw: Draw, source: Source, x: str) -> None:
    """Between one and three outputs."""
    for k in range(draw.pick("outputs", [1, 1, 1, 2])):
        _Head(draw, source, x, f"output{k}.").write(draw.pick(f"output{k}", OUTPUTS))
    extra = draw.pick("extra_output", ["", "", "", "", "valid", "lengths", "ids"])
    if extra:
        source.outputs.append(extra)


class _Head:
    def __init__(self, draw: Draw, source: Source, x: str, at: str) -> None:
        self.draw, self.source, self.x, self.at = draw, source, x, at
        self.D = source.width

    def _of(self, name: str, options: tuple[str, ...]) -> str:
        return self.draw.pick(self.at + name, options).format(x=self.x, D=self.D)

    def _classified(self) -> str:
        how = self.draw.pick(self.at + "logits", ["linear", "tied", "wide"])
        if how == "tied" and any(line.startswith("self.item ") for line in self.source.setup):
            return self.source.let("logits", f"{self.x} @ self.item.weight.t()")
        return self.source.let("logits", f"{self.source.module('classify', f'nn.Linear({self.D}, 20)')}({self.x})")

    def write(self, kind: str) -> None:
        """Append one output."""
        s, x, D = self.source, self.x, self.D
        plain = {
            "masked": ("{x} * valid[..., None]", "torch.where(valid[..., None], {x}, 0.0)"), "raw": ("{x}", "{x} * 2"), "last": _LAST, "mean": _MEAN,
            "sum_over_n": ("{x}.sum(1) / N", "{x}.mean(1)"), "scalar": ("{x}.sum()", "({x} * valid[..., None]).sum()", "({x} * valid[..., None]).pow(2).sum() / valid.sum().clamp(min=1)"),
            "max": ("{x}.masked_fill(~valid[..., None], float('-inf')).amax(1)", "{x}.amax(1)", "{x}.masked_fill(~valid[..., None], -1e9).max(1).values"),
            "selected": ("{x}[valid]", "{x}[ids != 0].relu()", "{x}.reshape(B * N, {D})[valid.view(-1)]", "torch.masked_select({x}, valid[..., None])"),
            "final": ("{x}[:, -1] * valid[:, -1:]", "{x}[:, -1:]", "{x}[:, N // 2:]"), "first": ("{x}[:, 0]", "{x}[:, :1]", "{x}[0]"),
            "flat": ("({x} * valid[..., None]).reshape(B * N, {D})", "({x} * valid[..., None]).permute(1, 0, 2)", "({x} * valid[..., None]).flatten()"),
            "contrastive": ("F.normalize({x}[:, -1], dim=-1) @ F.normalize({x}[:, 0], dim=-1).t()", "({x} * valid[..., None]).sum(1) @ ({x} * valid[..., None]).sum(1).t()"),
            "norm": ("({x} * valid[..., None]).norm(dim=-1)", "({x} * valid[..., None]).norm(dim=(1, 2))", "({x} * valid[..., None]).abs().amax((1, 2))"),
            "mean_all": ("({x} * valid[..., None]).mean()", "({x}[..., 0] * valid).mean(dim=-1)", "({x} * valid[..., None]).mean(dim=(1, 2))"),
            "accuracy": ("({x}.argmax(-1) * valid).sum()", "({x}.argmax(-1) == ids)[valid].float().sum()", "({x}.argmax(-1) == targets).logical_and(valid).sum(1)"),
            "stacked": ("torch.stack([{x} * valid[..., None], {x}.relu() * valid[..., None]])", "torch.stack([{x} * valid[..., None], {x}], 1)[:, 0]"),
        }  # fmt: skip
        if kind in plain:
            s.outputs.append(s.let("out", self._of("how", plain[kind])))
            return
        s.outputs.append(getattr(self, "_" + kind)(s, x, D))

    def _pool(self, s: Source, x: str, D: int) -> str:
        layer = s.module("pool", f"nn.Linear({D}, 1)")
        negative = self._of("negative", ("-1e9", "float('-inf')", "-1e4"))
        a = s.let("p", f"{layer}({x}).squeeze(-1).masked_fill(~valid, {negative}).softmax(-1)")
        return s.let("out", self._of("how", (f"torch.einsum('bn,bnd->bd', {a}, {x})", f"({a}.unsqueeze(-1) * {x}).sum(1)", f"torch.bmm({a}.unsqueeze(1), {x}).squeeze(1)")))

    def _logits(self, s: Source, x: str, D: int) -> str:
        return s.let("out", f"{self._classified()} * valid[..., None]")

    def _all_items(self, s: Source, x: str, D: int) -> str:
        return s.let("out", f"{self._classified()}" + self._of("how", (" * valid[..., None]", "", ".log_softmax(-1)")))

    def _logits_selected(self, s: Source, x: str, D: int) -> str:
        return s.let("out", self._classified() + self._of("how", ("[valid]", "[targets >= 0]", "[torch.arange(B), lengths.clamp(min=1) - 1]")))

    def _loss(self, s: Source, x: str, D: int) -> str:
        reduction = self._of("reduction", ("", "", ", reduction='sum'", ", label_smoothing=0.1"))
        flat = self._of("flat", (".view(B * N, 20)", ".reshape(-1, 20)", ".flatten(0, 1)"))
        return s.let("loss", f"F.cross_entropy({self._classified()}{flat}, targets.reshape(-1), ignore_index=-100{reduction})")

    def _loss_ids(self, s: Source, x: str, D: int) -> str:
        return s.let("loss", f"F.cross_entropy({self._classified()}.view(-1, 20), ids.view(-1), ignore_index=0)")

    def _loss_transposed(self, s: Source, x: str, D: int) -> str:
        return s.let("loss", f"F.cross_entropy({self._classified()}.transpose(1, 2), targets" + self._of("how", (")", ", reduction='none')")))

    def _loss_rows(self, s: Source, x: str, D: int) -> str:
        rows = s.let("rows", f"F.cross_entropy({self._classified()}.view(-1, 20), targets.clamp(min=0).view(-1), reduction='none')")
        return s.let("loss", self._of("how", (f"({rows}.view(B, N) * valid).sum() / valid.sum().clamp(min=1)", f"({rows} * valid.view(-1)).sum()", f"{rows}[valid.view(-1)].mean()", f"({rows}.view(B, N) * valid).sum(1) / lengths.clamp(min=1)")))

    def _loss_selected(self, s: Source, x: str, D: int) -> str:
        return s.let("loss", f"F.cross_entropy({self._classified()}[valid], targets.clamp(min=0)[valid], reduction='sum')")

    def _loss_mask_int(self, s: Source, x: str, D: int) -> str:
        rows = s.let("rows", f"{self._classified()}.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)")
        return s.let("loss", f"-({rows} * (targets != -100)).sum()" + self._of("how", ("", " / (targets != -100).sum().clamp(min=1)", " / (B * N)")))

    def _two_losses(self, s: Source, x: str, D: int) -> str:
        first = s.let("loss", f"F.cross_entropy({self._classified()}.view(B * N, 20), targets.view(B * N), reduction='sum')")
        second = s.let("loss", f"({x}[..., 0].sigmoid() * valid).sum()")
        return s.let("loss", f"{first} + 0.5 * {second}")

    def _pairwise(self, s: Source, x: str, D: int) -> str:
        table = s.module("candidates", f"nn.Embedding(20, {D})")
        good, bad = s.let("good", f"({x} * {table}(targets.clamp(min=0))).sum(-1)"), s.let("bad", f"({x} * {table}(negatives)).sum(-1)")
        return s.let("loss", self._of("how", (
            f"-(F.logsigmoid({good} - {bad}) * valid).sum() / valid.sum().clamp(min=1)", f"-F.logsigmoid({good} - {bad})[valid].sum()",
            f"F.softplus({bad} - {good}).masked_fill(targets < 0, 0.0).mean()", f"(1.0 + {bad} - {good}).clamp(min=0).where(valid, 0.0).sum(1)",
        )))  # fmt: skip

    def _binary(self, s: Source, x: str, D: int) -> str:
        layer = s.module("score", f"nn.Linear({D}, 1)")
        score = s.let("score", f"{layer}({x}).squeeze(-1)")
        wanted = f"(targets > 5).to({score}.dtype)"
        return s.let("loss", self._of("how", (
            f"F.binary_cross_entropy_with_logits({score}, {wanted}, weight=valid.to({score}.dtype))",
            f"(F.binary_cross_entropy_with_logits({score}, {wanted}, reduction='none') * valid).sum() / valid.sum().clamp(min=1)",
            f"F.binary_cross_entropy_with_logits({score}[valid], {wanted}[valid], reduction='sum')",
            f"(({score} - {wanted}) ** 2 * valid).mean()",
        )))  # fmt: skip

    def _next(self, s: Source, x: str, D: int) -> str:
        logits = self._classified()
        return s.let("loss", self._of("how", (
            f"F.cross_entropy({logits}[:, :-1].reshape(-1, 20), ids[:, 1:].reshape(-1), ignore_index=0, reduction='sum')",
            f"F.cross_entropy({logits}[:, :-1].transpose(1, 2), ids[:, 1:], ignore_index=0, reduction='sum')",
            f"(F.cross_entropy({logits}[:, :-1].permute(0, 2, 1), ids[:, 1:], reduction='none') * valid[:, 1:]).sum()",
        )))  # fmt: skip

    def _candidates(self, s: Source, x: str, D: int) -> str:
        table = s.module("candidates", f"nn.Embedding(20, {D})")
        items = s.let("items", f"{table}(torch.stack([targets.clamp(min=0), negatives], -1))")
        scores = s.let("scores", self._of("how", (f"({x}.unsqueeze(2) * {items}).sum(-1)", f"torch.einsum('bnd,bnkd->bnk', {x}, {items})", f"({items} @ {x}.unsqueeze(-1)).squeeze(-1)")))
        return s.let("loss", self._of("after", (f"({scores} * valid[..., None]).sum()", f"-({scores}.log_softmax(-1)[..., 0] * valid).sum(1)", f"{scores}[:, -1]")))

    def _softmax_rows(self, s: Source, x: str, D: int) -> str:
        return s.let("out", f"{self._classified()}.softmax(-1)[valid]")
