"""What models return: last items, pools, logits, losses; one or several of them."""

from __future__ import annotations

from fuzzing.draw import Draw, Source

OUTPUTS = (
    "masked", "last", "mean", "raw", "mean", "masked", "loss", "logits", "sum_over_n", "max", "pool", "logits", "selected", "loss", "loss_transposed", "loss_rows",
    "loss_selected", "pairwise", "binary", "next", "contrastive", "scalar", "final", "first", "loss_ids", "all_items", "flat",
    "two_losses", "logits_selected", "norm", "candidates", "accuracy", "loss_mask_int", "softmax_rows", "mean_all", "stacked",
    "loss_weighted", "loss_masked", "bpr", "binary_sampled", "sampled_softmax", "shifted", "target_attention", "matched", "in_place", "rearranged",
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


def write_outputs(draw: Draw, source: Source, x: str, context: str | None) -> None:
    """Between one and three outputs."""
    for k in range(draw.pick("outputs", [1, 1, 1, 2])):
        _Head(draw, source, x, f"output{k}.", context).write(draw.pick(f"output{k}", OUTPUTS))
    extra = draw.pick("extra_output", ["", "", "", "", "valid", "lengths", "ids"])
    if extra:
        source.outputs.append(extra)


class _Head:
    def __init__(self, draw: Draw, source: Source, x: str, at: str, context: str | None) -> None:
        self.draw, self.source, self.x, self.at, self.context = draw, source, x, at, context
        self.D = source.width

    def _of(self, name: str, options: tuple[str, ...], **names: str) -> str:
        return self.draw.pick(self.at + name, options).format(x=self.x, D=self.D, **names)

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
            "rearranged": (
                "({x} * valid[..., None]).reshape(B, N, {D} // 2, 2).permute(0, 2, 3, 1).reshape(B, {D}, N)", "({x} * valid[..., None]).view(B, N, 2, -1).transpose(1, 2).flatten(0, 1)",
                "torch.einsum('bnd->dbn', {x} * valid[..., None])", "({x} * valid[..., None]).unsqueeze(2).expand(-1, -1, 3, -1).reshape(B, N * 3, {D})",
                "({x} * valid[..., None]).movedim(1, 0).contiguous().swapaxes(0, 1)",
            ),
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

    def _rows(self) -> str:
        """The cross entropy of every place, [B, N]."""
        return self.source.let("rows", f"F.cross_entropy({self._classified()}.flatten(0, 1), targets.clamp(min=0).flatten(), reduction='none').view(B, N)")

    def _loss_weighted(self, s: Source, x: str, D: int) -> str:
        weights = s.let("weights", self._of("weights", (
            "valid / lengths.clamp(min=1)[:, None]", "(0.9 ** (lengths[:, None] - 1 - torch.arange(N)).clamp(min=0)) * valid", "valid * (1.0 + times.clamp(min=0)).log()",
            "valid.float() / valid.sum().clamp(min=1)", "torch.where(valid, 1.0 / (1 + torch.arange(N)), 0.0)",
        )))  # fmt: skip
        return s.let("loss", f"({self._rows()} * {weights})" + self._of("how", (".sum()", f".sum() / {weights}.sum().clamp(min=1e-6)", ".sum(1)")))

    def _loss_masked(self, s: Source, x: str, D: int) -> str:
        chosen = s.let("chosen", self._of("chosen", ("(ids % 3 == 1)", "(targets % 3 == 0) & valid", "(negatives < 7) & valid", "targets > 3")))
        return s.let("loss", self._of("how", (
            f"F.cross_entropy({self._classified()}[{chosen}], ids[{chosen}], reduction='sum')", f"({self._rows()} * {chosen}).sum() / {chosen}.sum().clamp(min=1)",
            f"F.cross_entropy({self._classified()}.view(-1, 20), torch.where({chosen}, ids, -100).view(-1), reduction='sum')",
            f"F.cross_entropy({self._classified()}.reshape(-1, 20)[{chosen}.flatten()], ids.flatten()[{chosen}.flatten()], reduction='sum')",
        )))  # fmt: skip

    def _scored(self) -> tuple[str, str]:
        """Scores of the next item and of a sampled one, [B, N] each."""
        s, x, table = self.source, self.x, self._table()
        good = s.let("good", self._of("good", ("({x} * {t}(targets.clamp(min=0))).sum(-1)", "torch.einsum('bnd,bnd->bn', {x}, {t}(targets.clamp(min=0)))"), t=table))
        return good, s.let("bad", f"({x} * {table}(negatives)).sum(dim=2)")

    def _table(self) -> str:
        if any(line.startswith("self.item ") for line in self.source.setup) and self.draw.flag(self.at + "tied"):
            return "self.item"
        return self.source.module("candidates", f"nn.Embedding(20, {self.D})")

    def _bpr(self, s: Source, x: str, D: int) -> str:
        good, bad = self._scored()
        keep = self._of("keep", ("valid", "(targets > 0)", "(targets != -100) & valid"))
        return s.let("loss", self._of("how", (
            f"-(F.logsigmoid({good} - {bad}) * ({keep})).sum() / ({keep}).sum().clamp(min=1)", f"-torch.log(torch.sigmoid({good} - {bad}) + 1e-8)[{keep}].sum()",
            f"-(torch.sigmoid({good} - {bad}) + 1e-10).log().masked_select({keep}).sum()", f"(1 - ({good} - {bad}).sigmoid()).where({keep}, 0.0).sum(1)",
        )))  # fmt: skip

    def _binary_sampled(self, s: Source, x: str, D: int) -> str:
        good, bad = self._scored()
        keep = s.let("keep", self._of("keep", ("valid", "targets > 0", "torch.where(targets.flatten() > 0)[0]")))
        flat = ".flatten()" if "flatten" in s.body[-1] else ""
        loss = "F.binary_cross_entropy_with_logits({a}{f}[{k}], torch.{w}_like({a}{f}[{k}]), reduction='sum')"
        if self.draw.flag(self.at + "selected"):
            return s.let("loss", f"{loss.format(a=good, f=flat, k=keep, w='ones')} + {loss.format(a=bad, f=flat, k=keep, w='zeros')}")
        return s.let("loss", f"((-F.logsigmoid({good}) - F.logsigmoid(-{bad})) * (targets > 0)).sum() / (targets > 0).sum().clamp(min=1)")

    def _sampled_softmax(self, s: Source, x: str, D: int) -> str:
        table = self._table()
        positive = f"({x} * {table}(targets.clamp(min=0))).sum(-1, keepdim=True)"
        negative = self._of("negative", (f"{x} @ {table}(negatives[0, :3]).t()", f"torch.einsum('bnd,bkd->bnk', {x}, {table}(negatives[:, :2]))", f"{x} @ {table}.weight.t()"))
        logits = s.let("logits", f"torch.cat([{positive}, {negative}], -1)" + self._of("temperature", ("", " / 0.05", " - 1.5")))
        return s.let("loss", self._of("how", (
            f"F.cross_entropy({logits}[valid], torch.zeros_like(ids[valid]), reduction='sum')", f"-({logits}.log_softmax(-1)[..., 0] * valid).sum() / valid.sum().clamp(min=1)",
            f"(({logits}.logsumexp(-1) - {logits}[:, :, 0]) * valid).sum()", f"F.cross_entropy({logits}.flatten(0, 1), torch.where(targets > 0, 0, -100).flatten(), reduction='sum')",
        )))  # fmt: skip

    def _shifted(self, s: Source, x: str, D: int) -> str:
        labels = s.let("labels", self._of("labels", (
            "torch.where(valid[:, 1:], ids[:, 1:], -100)", "ids[:, 1:].masked_fill(~valid[:, 1:], -100)", "torch.where(valid, ids, -100)[..., 1:].contiguous()",
        )))  # fmt: skip
        return s.let("loss", f"F.cross_entropy({self._classified()}[..., :-1, :].contiguous().view(-1, 20), {labels}.reshape(-1), reduction='sum')")

    def _target_attention(self, s: Source, x: str, D: int) -> str:
        """Candidates, a raggedness of their own, read the history."""
        context = self._candidates_of(s)
        scores = s.let("a", f"torch.einsum('bmd,bnd->bmn', {context}, {x})" + self._of("scale", ("", f" / {D} ** 0.5")))
        weights = s.let("w", self._of("weights", (
            f"{scores}.masked_fill(~valid[:, None], -1e9).softmax(-1)", f"F.silu({scores}) * valid[:, None]", f"torch.where(valid[:, None], {scores}, float('-inf')).softmax(-1)",
        )))  # fmt: skip
        return s.let("out", f"({weights} @ {x})" + self._of("kept", (" * context_valid[..., None]", "[context_valid]", "", " * context_valid[..., None] + " + context)))

    def _matched(self, s: Source, x: str, D: int) -> str:
        context = self._candidates_of(s)
        scores = s.let("scores", f"{context} @ " + self._of("of", ("({x} * valid[..., None]).sum(1)[..., None]", "{x}[:, -1, :, None]", "{x}[torch.arange(B), lengths.clamp(min=1) - 1].unsqueeze(-1)")))
        return s.let("loss", f"{scores}.squeeze(-1)" + self._of("how", (".masked_fill(~context_valid, -1e9).log_softmax(-1)[:, 0]", " * context_valid", "[context_valid].sigmoid().sum()")))

    def _candidates_of(self, s: Source) -> str:
        if self.context is not None:
            return self.context
        if not any(line.startswith("context_valid") for line in s.body):
            s.do("M = context_ids.shape[1]", "context_valid = context_ids != 0")
        return s.let("context", f"{self._table()}(context_ids)")

    def _in_place(self, s: Source, x: str, D: int) -> str:
        y = s.fresh("y")
        s.do(*self._of("how", (
            "{y} = ({x} * valid[..., None]).sum(1); {y} /= valid.sum(1, keepdim=True).clamp(min=1)", "{y} = {x}.clone(); {y}.masked_fill_(~valid[..., None], 0.0)",
            "{y} = {x}.new_zeros(B, {D}); {y} += {x}[:, -1]", "{y} = {x}.new_zeros(B, {D}); {y}.index_add_(0, torch.arange(B).repeat_interleave(N)[valid.flatten()], {x}[valid])",
            "{y} = torch.zeros_like({x}); {y}[valid] = {x}[valid]", "{y} = {x}.new_full((B, N + 1, {D}), 2.0); {y}[:, :N] = {x} * valid[..., None]",
        ), y=y).split("; "))  # fmt: skip
        return y
