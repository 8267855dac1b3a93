"""Operators that GE's own compute: what they are composed of gives what the operators give, in torch and in any graph."""

import itertools

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.lowering.torchair import composed
from gr_compile.lowering.torchair.composed import COMPOSED
from gr_compile.lowering.torchair.decompositions import decompositions
from gr_compile.lowering.torchair.target import AscendLowering

gr = torch.ops.gr
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 3, 9])
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345, -(2**63)])
def test_other_tokens_are_the_same_ones(tokens, count, seed):
    seed = torch.tensor(seed)
    got = composed.other_tokens(seed, tokens, count)
    assert got.dtype == torch.int64 and torch.equal(got, gr.other_tokens(seed, tokens, count))


def operands(tokens, items, width, dtype, bias, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, table = (torch.randn(n, width, generator=generator).to(dtype) for n in (tokens, items))
    b = torch.randn(items, generator=generator).to(dtype) if bias else None
    target = torch.randint(0, items, (tokens,), generator=generator)
    weight = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) < 0.7)
    return [x, table, b, target, weight.to(dtype), 0.7]


def same(got, want, dtype):
    assert got.shape == want.shape and got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1.0, float(want.abs().max())) if want.numel() else 0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "items"), [(5, 1), (0, 7), (9, 40), (6, 4096), (7, 10000)])
def test_losses_over_a_catalogue(tokens, items, bias, dtype):
    args = operands(tokens, items, 8, dtype, bias)
    same(composed.linear_cross_entropy_tokens(*args), gr.linear_cross_entropy_tokens(*args), dtype)
    same(composed.linear_cross_entropy(*args), gr.linear_cross_entropy(*args), dtype)
    for needs in ([True] * 3, [True, False, False], [False, True, False], [False, False, True]):
        got, want = composed.linear_cross_entropy_gradients(*args, needs), gr.linear_cross_entropy_gradients(*args, needs)
        for ours, theirs in zip(got, want, strict=True):
            same(ours, theirs, dtype)


def test_what_a_token_of_weight_0_holds_does_not_matter():
    x, table, bias, target, weight, scale = operands(9, 5000, 8, torch.float32, True)
    dirty, left = x.clone(), weight == 0
    assert left.any()
    dirty[left] = float("nan")
    args = [dirty, table, bias, target.masked_fill(left, -100), weight, scale]
    clean = [x, table, bias, target, weight, scale]
    assert torch.equal(composed.linear_cross_entropy_tokens(*args), composed.linear_cross_entropy_tokens(*clean))
    for got, want in zip(*(composed.linear_cross_entropy_gradients(*a, [True] * 3) for a in (args, clean))):
        assert torch.equal(got, want)


@pytest.mark.parametrize("bad", [-1, 50, 2**40])
def test_a_target_that_is_no_row_is_nan(bad):
    x, table, bias, target, _, scale = operands(4, 50, 8, torch.float32, False)
    target[2] = bad
    losses = composed.linear_cross_entropy_tokens(x, table, bias, target, torch.ones(4), scale)
    assert losses.isnan().tolist() == [False, False, True, False]
    loss, grad_x, *_ = composed.linear_cross_entropy_gradients(x, table, bias, target, torch.ones(4), scale, [True] * 3)
    assert loss.isnan() and grad_x.isnan().any(1).tolist() == [False, False, True, False]


def test_nothing_of_nothing():
    args = [torch.ones(0, 3), torch.ones(0, 3), None, torch.ones(0, dtype=torch.int64), torch.ones(0), 1.0]
    assert composed.linear_cross_entropy_tokens(*args).shape == (0,)
    loss, *grads = composed.linear_cross_entropy_gradients(*args, [True] * 3)
    assert loss == 0 and [tuple(grad.shape) for grad in grads] == [(0, 3), (0, 3), (0,)]


def test_a_catalogue_of_a_size_of_the_call_is_one_block():
    args = operands(6, 50, 8, torch.float32, True)

    def gradients(*tensors):
        return composed.linear_cross_entropy_gradients(*tensors, 0.7, [True] * 3)

    graph = make_fx(gradients, tracing_mode="symbolic")(*args[:5])
    more = operands(9, 5000, 8, torch.float32, True)
    for got, want in zip(graph(*more[:5]), gr.linear_cross_entropy_gradients(*more, [True] * 3), strict=True):
        same(got, want, torch.float32)


@pytest.mark.parametrize(("items", "blocks"), [(1, 1), (4096, 1), (4097, 2), (50_000, 13), (131_072, 32), (10**7, 32)])
def test_a_catalogue_is_cut_into_blocks(items, blocks):
    x = torch.empty(3, 4, device="meta")
    loss = composed._Loss(x, torch.empty(items, 4, device="meta"), None, x, x, 1.0)
    found = loss.blocks
    assert len(found) == blocks and found[0][0] == 0 and sum(count for _, count in found) == items
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(found))


def test_no_value_of_a_graph_has_logits_of_the_whole_catalogue():
    x, table, bias, target, weight, scale = operands(6, 10000, 8, torch.float32, True)

    def gradients(x, target, weight):
        return composed.linear_cross_entropy_gradients(x, table, bias, target, weight, scale, [True] * 3)

    graph = make_fx(gradients, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, target, weight)
    shapes = [node.meta["val"].shape for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    by_token = [{str(size) for size in shape if not isinstance(size, int)} and {*map(str, shape)} for shape in shapes]
    assert any("4096" in sizes for sizes in by_token) and not any("10000" in sizes for sizes in by_token)


def test_they_stand_for_the_operators():
    table = decompositions(lambda op: False)
    assert all(table[getattr(gr, name.removeprefix("gr::")).default] is made for name, made in COMPOSED.items())
    assert all(map(AscendLowering().supports, COMPOSED)) and not AscendLowering().supports("gr::dropout_share")
