"""What models do to whole sequences beside attention: rotations, in-place writes, checkpoints, two sequences in one."""

from __future__ import annotations

from fuzzing.draw import Draw, Source

_ROTATED = (
    "torch.cat([-{q}[..., {half}:], {q}[..., :{half}]], -1)", "torch.stack([-{q}[..., 1::2], {q}[..., ::2]], -1).flatten(-2)",
    "torch.cat((-{q}.chunk(2, -1)[1], {q}.chunk(2, -1)[0]), dim=-1)",
)  # fmt: skip
_PLACES = ("torch.arange(N)[None, :]", "valid.long().cumsum(1) - 1", "(valid.cumsum(1) * valid)", "torch.arange(N - 1, -1, -1)[None]")
IN_PLACE = (
    "{y} = {x}.clone(); {y}[~valid] = 0.0", "{y} = torch.zeros_like({x}); {y}[:, 1:] = {x}[:, :-1]", "{y} = {x} * 1.0; {y}.masked_fill_(~valid[..., None], 0.0)",
    "{y} = torch.zeros_like({x}); {y} += {x}; {y} *= 0.5", "{y} = {x} + 0.0; {y}[:, 0] = {y}[:, 0] * 2", "{y} = {x}.clone(); {y}[..., 0] = 0.0",
    "{y} = torch.empty_like({x}); {y}[..., :1] = {x}[..., 1:2]; {y}[..., 1:] = {x}[..., 1:]", "{y} = {x}.clone(); {y}[:, -1:] += 1.0",
    "{y} = torch.zeros(B, N, {D}, dtype={x}.dtype); {y}[valid] = {x}[valid].to({y}.dtype)", "{y} = ({x} + 1.0).mul_(0.5).add_({x}).clamp_(min=-1.0)",
    "{y} = {x}.new_zeros(B, N + 1, {D}); {y}[:, 1:].copy_({x}); {y} = {y}[:, 1:]", "{y} = {x}.clone(); {y}[torch.arange(B), lengths.clamp(min=1) - 1] = 0.0",
)  # fmt: skip
_INNER = ("torch.tanh(self.{l}(h))", "h + F.gelu(self.{l}(h))", "self.{l}(h) * torch.sigmoid(h)", "F.layer_norm(h, ({D},)) + self.{l}(h)")


def rotary(draw: Draw, source: Source, at: str, q: str, k: str, width: int) -> tuple[str, str]:
    """q and k, [B, H, N, d], turned by angles of their positions."""
    places = draw.pick(at + "rotary_places", _PLACES)
    rates = f"(100.0 ** (-torch.arange(0, {width}, 2) / {width}))"
    joined = draw.pick(at + "rotary_angles", ["torch.cat([{a}, {a}], -1)", "{a}.repeat_interleave(2, -1)", "{a}.repeat(1, 1, 2)"])
    a = source.let("angle", f"({places})[..., None].to({q}.dtype) * {rates}.to({q}.dtype)")
    angle = source.let("angle", joined.format(a=a) + "[:, None]")
    turned = draw.pick(at + "rotated", _ROTATED)

    def turn(name: str) -> str:
        return source.let("q", f"{name} * {angle}.cos() + {turned.format(q=name, half=width // 2)} * {angle}.sin()")

    return turn(q), turn(k)


def written(draw: Draw, source: Source, x: str, at: str) -> str:
    """[B, N, D] written to in place, where it is fresh."""
    y = source.fresh("y")
    source.do(*draw.pick(at + "write", IN_PLACE).format(x=x, y=y, D=source.width).split("; "))
    return y


def checkpointed(draw: Draw, source: Source, x: str, at: str) -> str:
    """[B, N, D] through a layer whose activations are computed again in the backward."""
    layer = source.module("inner", f"nn.Linear({source.width}, {source.width})").removeprefix("self.")
    inner = draw.pick(at + "inner", _INNER).format(l=layer, D=source.width)
    return source.let("x", f"torch.utils.checkpoint.checkpoint(lambda h: {inner}, {x}, use_reentrant=False)")


def joined(draw: Draw, source: Source, x: str, context: str, at: str) -> str:
    """Two sequences in one, mixed by attention, and the history of it again."""
    D = source.width
    both = source.let("both", f"torch.cat([{context}, {x}], dim=1)")
    keep = source.let("keep", draw.pick(at + "keep", [
        "torch.cat([context_valid, valid], 1)[:, None, :]", "torch.cat([context_valid, valid], 1).unsqueeze(1) & (torch.arange(N + M)[:, None] >= torch.arange(N + M))",
        "F.pad(valid, (M, 0), value=True)[:, None] & F.pad(context_valid, (0, N), value=True)[:, None]",
    ]))  # fmt: skip
    a, v = source.module("a", f"nn.Linear({D}, {D})"), source.module("v", f"nn.Linear({D}, {D})")
    weights = source.let("w", draw.pick(at + "weights", [
        f"({a}({both}) @ {both}.mT).masked_fill(~{keep}, -1e9).softmax(-1)", f"F.silu({a}({both}) @ {both}.mT) * {keep}",
        f"torch.where({keep}, {a}({both}) @ {both}.mT, float('-inf')).softmax(-1)",
    ]))  # fmt: skip
    return source.let("x", f"({weights} @ {v}({both}))" + draw.pick(at + "part", ["[:, M:]", ".split([M, N], 1)[1]", "[:, -N:]"]))
