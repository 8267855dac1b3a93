"""Masks, embeddings, token-wise blocks, and operators that mix places."""

from __future__ import annotations

from fuzzing.draw import Draw, Source

VALID = (
    "ids != 0", "ids > 0", "torch.arange(N)[None, :] < lengths[:, None]", "mask != 0", "mask > 0.5", "mask.bool()",
    "~(ids == 0)", "~ids.eq(0)", "(ids != 0) & (times >= 0)", "torch.arange(N)[None, :] >= (N - lengths)[:, None]",
    "(ids != 0) & (torch.arange(N)[None, :] < lengths[:, None])", "(ids != 0).float() > 0", "ids.gt(0).logical_or(mask > 0)",
    "~((ids == 0) | ~(mask > 0))", "torch.logical_not(torch.logical_and(ids == 0, ~(times > 0)))", "(1 - (ids == 0).long()).bool()", "torch.where(ids == 0, 0, 1) == 1",
)  # fmt: skip
ZEROING = (
    "{x} * valid.unsqueeze(-1)", "{x} * valid[..., None].to({x}.dtype)", "{x}.masked_fill(~valid[..., None], 0.0)",
    "torch.where(valid[..., None], {x}, 0.0)", "torch.where(valid.unsqueeze(-1), {x}, torch.zeros_like({x}))",
    "{x} * mask.to({x}.dtype)[..., None]", "torch.einsum('bnd,bn->bnd', {x}, valid.to({x}.dtype))",
)  # fmt: skip
POSITIONS = (
    "torch.arange(N)", "torch.arange(N).expand(B, N)", "torch.cumsum(valid.long(), 1)", "(valid.cumsum(1) * valid).long()",
    "torch.arange(N - 1, -1, -1)", "(lengths[:, None] - 1 - torch.arange(N)).clamp(min=0)", "torch.arange(N).unsqueeze(0) + 1",
    "(valid.sum(1, keepdim=True) - torch.arange(N)).clamp(0, 15)", "valid.long().flip(1).cumsum(1).flip(1)", "torch.arange(N).flip(0)",
    "torch.where(valid, valid.long().cumsum(1), 0)", "(torch.log(1.0 + times.clamp(min=0).float()) * 3).long().clamp(max=23)", "times.clamp(min=0).float().sqrt().long().clamp(max=23)",
)  # fmt: skip


def embed(draw: Draw, source: Source) -> str:
    """ids (or float features) -> [B, N, D]."""
    D, at = source.width, "embedding."
    source.do(f"valid = {draw.pick('valid', VALID)}")
    if draw.flag(at + "features", 5):
        layer = source.module("project", f"nn.Linear(3, {D})")
        x = source.let("x", f"{layer}(features)")
    else:
        padding = draw.pick(at + "padding_idx", ["", ", padding_idx=0", "", ", padding_idx=0", ", scale_grad_by_freq=True"])
        source.setup.append(f"self.item = nn.Embedding(20, {D}{padding})")
        x = source.let("x", "self.item(ids)" + draw.pick(at + "scale", ["", f" * {D} ** 0.5"]))
    extra = draw.pick(at + "extra", ["", "position", "slice", "times", "features", "given", "category", "masked_items", "guarded"])
    if extra == "position":
        table = source.module("position", f"nn.Embedding(24, {D})")
        x = source.let("x", f"{x} + {table}({draw.pick(at + 'position', POSITIONS)})")
    elif extra == "slice":
        source.setup.append(f"self.table = nn.Parameter(torch.randn(24, {D}))")
        x = source.let("x", f"{x} + " + draw.pick(at + "slice", ["self.table[:N]", "self.table[:N].unsqueeze(0)", "self.table[None, :N]"]))
    elif extra == "times":
        layer = source.module("time", f"nn.Linear(1, {D})")
        x = source.let("x", f"{x} + {layer}(torch.log1p(times.abs().to({x}.dtype))[..., None])")
    elif extra == "features":
        layer = source.module("join", f"nn.Linear({D} + 3, {D})")
        x = source.let("x", f"{layer}(torch.cat([{x}, features], dim=-1))")
    elif extra == "given":
        x = source.let("x", f"{x} + given.unsqueeze(1)")
    elif extra == "category":
        table = source.module("category", f"nn.Embedding(4, {D})")
        x = source.let("x", f"torch.stack([{x}, {table}(ids % 4)], dim=2).sum(2)")
    elif extra == "masked_items":  # a mask that is no padding
        token = source.module("token", f"nn.Parameter(torch.randn({D}))")
        chosen = draw.pick(at + "chosen", ["(targets % 3 == 0)", "((ids % 3 == 1) & valid)", "(negatives < 7)"])
        x = source.let("x", draw.pick(at + "masked", [
            f"torch.where({chosen}[..., None], {token}, {x})", f"{x} * (~{chosen})[..., None] + {token} * {chosen}[..., None].to({x}.dtype)",
        ]))  # fmt: skip
    elif extra == "guarded":  # what stands in the padding of an input is never read
        layer = source.module("project", f"nn.Linear(3, {D})")
        x = source.let("x", f"{x} + {layer}(" + draw.pick(at + "guard", [
            "torch.where(valid[..., None], features, 0.0)", "features.masked_fill(~valid[..., None], 0.0)", "torch.nan_to_num(features) * valid[..., None]",
        ]) + ")")  # fmt: skip
    return zero(draw, source, x, at)


def zero(draw: Draw, source: Source, x: str, at: str, one_in: int = 2) -> str:
    """Perhaps write zeros at padded places."""
    return source.let("x", draw.pick(at + "zeroing", ZEROING).format(x=x)) if draw.flag(at + "zero", one_in) else x


def token_block(draw: Draw, source: Source, x: str, at: str) -> str:
    """[B, N, D] -> [B, N, D], every place by itself."""
    D, H = source.width, source.heads
    kind = draw.pick(at + "kind", [
        "linear", "norm", "feed_forward", "gate", "cat", "per_head", "transposed", "flat", "stack", "swiglu", "unflatten",
        "feature_softmax", "normalize", "experts", "flat_features", "reduce", "pad_features", "scale", "transposed_features",
        "gather", "matmul", "film", "chunks", "sort_features", "index_features",
    ])  # fmt: skip
    if kind == "linear":
        layer = source.module("linear", f"nn.Linear({D}, {D}, bias={draw.pick(at + 'bias', [True, False])})")
        return source.let("x", draw.pick(at + "residual", ["{f}({x})", "{x} + {f}({x})"]).format(f=layer, x=x))
    if kind == "norm":
        norm = source.module("norm", draw.pick(at + "norm", [
            f"nn.LayerNorm({D})", f"nn.LayerNorm({D}, elementwise_affine=False)", f"nn.RMSNorm({D})",
        ]))  # fmt: skip
        return source.let("x", f"{norm}({x})")
    if kind == "feed_forward":
        up, down = source.module("up", f"nn.Linear({D}, {2 * D})"), source.module("down", f"nn.Linear({2 * D}, {D})")
        act = draw.pick(at + "act", ["F.relu", "F.gelu", "F.silu", "torch.tanh", "F.softplus", "F.leaky_relu", "torch.sigmoid"])
        return source.let("x", f"{x} + {down}(F.dropout({act}({up}({x})), 0.0, self.training))")
    if kind == "gate":
        a, b = source.module("a", f"nn.Linear({D}, {D})"), source.module("b", f"nn.Linear({D}, {D})")
        return source.let("x", f"{x} + {a}({x}) * torch.sigmoid({b}({x}))")
    if kind == "swiglu":
        up, down = source.module("up", f"nn.Linear({D}, {2 * D})"), source.module("down", f"nn.Linear({D}, {D})")
        g, v = source.fresh("g"), source.fresh("v")
        split = draw.pick(at + "split", [f"{up}({x}).chunk(2, dim=-1)", f"torch.split({up}({x}), {D}, dim=-1)", f"{up}({x}).view(B, N, 2, {D}).unbind(2)"])
        source.do(f"{g}, {v} = {split}")
        return source.let("x", f"{x} + {down}(F.silu({g}) * {v})")
    if kind == "cat":
        layer = source.module("mix", f"nn.Linear({2 * D} + 1, {D})")
        return source.let("x", f"{layer}(torch.cat([{x}, {x} * {x}, times.to({x}.dtype).unsqueeze(-1) / 50], dim=-1))")
    if kind == "per_head":
        weight = source.module("weight", f"nn.Parameter(torch.randn({H}, {D // H}, {D // H}) / 2)")
        return source.let("x", f"torch.einsum('bnhd,hde->bnhe', {x}.view(B, N, {H}, {D // H}), {weight}).reshape(B, N, {D})")
    if kind == "matmul":
        weight = source.module("weight", f"nn.Parameter(torch.randn({D}, {D}) / 2)")
        return source.let("x", draw.pick(at + "spelling", [
            f"{x} @ {weight}", f"torch.matmul({x}, {weight}.t())", f"torch.einsum('bnd,de->bne', {x}, {weight})",
            f"torch.bmm({x}, {weight}.expand(B, {D}, {D}))", f"torch.addmm(given.new_zeros({D}), {x}.reshape(-1, {D}), {weight}).view(B, N, {D})",
            f"torch.baddbmm({x}, {x}, {weight}.repeat(B, 1, 1))", f"({weight} @ {x}.transpose(1, 2)).mT",
        ]))  # fmt: skip
    if kind == "transposed":
        layer = source.module("linear", f"nn.Linear({D}, {D})")
        return source.let("x", f"{layer}({x}.transpose(0, 1)).transpose(0, 1)")
    if kind == "transposed_features":
        return source.let("x", f"({x}.transpose(1, 2) - {x}.transpose(1, 2).mean(1, keepdim=True)).permute(0, 2, 1)")
    if kind == "flat":
        layer = source.module("linear", f"nn.Linear({D}, {D})")
        return source.let("x", f"{layer}({x}.{draw.pick(at + 'spelling', [f'reshape(B * N, {D})', f'reshape(-1, {D})', 'flatten(0, 1)'])}).view(B, N, {D})")
    if kind == "stack":
        a, b = source.module("a", f"nn.Linear({D}, {D})"), source.module("b", f"nn.Linear({D}, {D})")
        return source.let("x", f"torch.stack([{a}({x}), {b}({x})], dim={draw.pick(at + 'dim', [2, 0, 1, -1])})" + draw.pick(at + "reduce", [
            ".sum({d})", ".amax({d})", ".unbind({d})[1]", ".max({d}).values", ".mean({d})"]).format(d=draw.pick(at + "dim", [2, 0, 1, -1])))  # fmt: skip
    if kind == "unflatten":
        return source.let("x", f"{x}.unflatten(-1, ({H}, {D // H})).transpose(1, 2).contiguous().transpose(1, 2).flatten(2) * 0.5")
    if kind == "feature_softmax":
        return source.let("x", f"{x} + F.softmax({x}, dim=-1)")
    if kind == "normalize":
        return source.let("x", f"F.normalize({x} + 0.1, dim=-1)")
    if kind == "experts":
        gate = source.module("router", f"nn.Linear({D}, 2)")
        experts = source.module("experts", f"nn.Parameter(torch.randn(2, {D}, {D}) / 2)")
        return source.let("x", f"torch.einsum('bne,bned->bnd', F.softmax({gate}({x}), -1), torch.einsum('bnd,edf->bnef', {x}, {experts}))")
    if kind == "flat_features":
        layer = source.module("linear", f"nn.Linear({D // H}, {D // H})")
        return source.let("x", f"{layer}({x}.view(B * N * {H}, {D // H})).view(B, N, {D})")
    if kind == "reduce":
        return source.let("x", f"{x} - {x}." + draw.pick(at + "how", ["mean(-1, keepdim=True)", "amax(-1, keepdim=True)", "sum(2).unsqueeze(2) * 0.1", "std(-1, keepdim=True)", "norm(dim=-1, keepdim=True)"]))
    if kind == "pad_features":
        return source.let("x", f"F.pad({x}[..., 1:], (0, 1)) + {x}")
    if kind == "scale":
        return source.let("x", f"{x} * " + draw.pick(at + "by", [
            "(1 + torch.arange(N))[:, None] / N", "lengths[:, None, None] / N", "(given.sum(-1)[:, None, None])", "valid.sum(1)[:, None, None] / N",
            "(times.float().mean() + 1)", "(times[..., None] + 1).to(torch.float64).log1p()", "torch.linspace(0, 1, N)[None, :, None]",
        ]))  # fmt: skip
    if kind == "gather":
        return source.let("x", f"{x} + {x}.gather(2, (ids % {D}).unsqueeze(-1))")
    if kind == "film":
        film = source.module("film", f"nn.Linear({D}, {2 * D})")
        a, b = source.fresh("scale"), source.fresh("shift")
        source.do(f"{a}, {b} = {film}(given).unsqueeze(1).chunk(2, -1)")
        return source.let("x", f"{x} * (1 + {a}) + {b}")
    if kind == "chunks":
        return source.let("x", f"torch.cat([c * (k + 1) for k, c in enumerate({x}.split({D // 2}, -1))][::-1], -1)")
    if kind == "sort_features":
        return source.let("x", f"{x} + " + draw.pick(at + "how", [f"{x}.sort(-1).values", f"{x}.cumsum(-1)", f"{x}.flip(-1)", f"{x}.roll(1, -1)", f"F.glu(torch.cat([{x}, {x}], -1), -1)", f"{x}.topk(1, -1).values"]))
    return source.let("x", f"{x} * {x}[..., :1] + {x}[:, :, -1:] - {x}[:, :, 0].unsqueeze(-1)")


def mixing_block(draw: Draw, source: Source, x: str, at: str) -> str:
    """[B, N, D] -> [B, N, D] through an operator that reads other places."""
    D = source.width
    kind = draw.pick(at + "kind", [
        "cumsum", "roll", "flip", "shift", "mean", "max", "softmax", "sort", "difference", "first", "convolution", "recurrent",
        "batch_norm", "pad", "batch_mean", "flat_roll", "gather_places", "einsum_places", "view_places", "transpose_places",
        "group_norm", "where_all", "slice_cat", "batch_softmax", "masked_mean", "last_row", "index_places", "unfold",
        "reversed_cumsum", "masked_softmax", "masked_cumsum",
    ])  # fmt: skip
    plain = {
        "cumsum": "{x}.cumsum(1) * 0.3", "roll": "torch.roll({x}, 1, dims=1)", "flip": "{x}.flip(1)",
        "shift": "torch.cat([torch.zeros_like({x}[:, :1]), {x}[:, :-1]], dim=1)", "mean": "{x} - {x}.mean(1, keepdim=True)",
        "max": "{x} - {x}.amax(1, keepdim=True)", "softmax": "F.softmax({x}, dim=1) * {x}", "sort": "{x}.sort(1).values",
        "difference": "{x} - F.pad({x}, (0, 0, 1, 0))[:, :-1]", "first": "{x} + {x}[:, :1]", "pad": "F.pad({x}[:, 1:], (0, 0, 0, 1))",
        "batch_mean": "{x} - {x}.mean(0, keepdim=True)", "flat_roll": "{x}.view(B * N, D).roll(1, 0).view(B, N, D)",
        "gather_places": "{x}.gather(1, (lengths.clamp(min=1) - 1)[:, None, None].expand(B, N, D)) + {x}",
        "einsum_places": "torch.einsum('bnd,bmd->bnd', {x}, {x}) * 0.1", "view_places": "{x}.reshape(B, D, N).transpose(1, 2)",
        "transpose_places": "{x}.transpose(1, 2).reshape(B, N, D)", "where_all": "{x} * {x}.sum((1, 2), keepdim=True).tanh()",
        "slice_cat": "torch.cat([{x}[:, N // 2:], {x}[:, :N // 2]], 1)", "batch_softmax": "{x} * F.softmax({x}, 0)",
        "masked_mean": "{x} - ({x} * valid[..., None]).sum(1, keepdim=True) / valid.sum(1).clamp(min=1)[:, None, None]",
        "last_row": "{x} + {x}[torch.arange(B), lengths.clamp(min=1) - 1].unsqueeze(1)",
        "index_places": "{x}[:, torch.arange(N - 1, -1, -1)] + {x}", "unfold": "F.pad({x}, (0, 0, 2, 0)).unfold(1, 3, 1).mean(-1)",
        "reversed_cumsum": "{x}.flip(1).cumsum(1).flip(1) * 0.3", "masked_cumsum": "({x} * valid[..., None]).cumsum(1) * 0.3",
        "masked_softmax": "{x} * {x}.masked_fill(~valid[..., None], -1e9).softmax(1)",
    }  # fmt: skip
    if kind in plain:
        return source.let("x", plain[kind].format(x=x).replace("D", str(D)))
    if kind == "convolution":
        layer = source.module("convolution", f"nn.Conv1d({D}, {D}, 3, padding=1)")
        return source.let("x", f"{layer}({x}.transpose(1, 2)).transpose(1, 2)")
    if kind == "recurrent":
        layer = source.module("recurrent", f"nn.GRU({D}, {D}, batch_first=True)")
        return source.let("x", f"{layer}({x})[0]")
    if kind == "group_norm":
        layer = source.module("norm", f"nn.GroupNorm(1, {D})")
        return source.let("x", f"{layer}({x}.transpose(1, 2)).transpose(1, 2)")
    layer = source.module("norm", f"nn.BatchNorm1d({D})")
    return source.let("x", f"{layer}({x}.reshape(B * N, {D})).view(B, N, {D})")
