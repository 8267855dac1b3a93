"""Optimizers of tables in files: the steps of torch's SGD, and row-wise Adagrad by its formula, over rows looked up."""

from __future__ import annotations

import copy
import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gr_compile
import gr_compile.lowering.inductor
from gr_compile import offload
from gr_compile.benchmarking.losses import SampledSoftmax
from gr_compile.offload.stored import stored_table

gr = torch.ops.gr
ROWS, WIDTH, TOKENS, R = 2000, 20, 25, 6
PASSES = "default,offload-negatives{segments=3}"


def table_in(path: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Embedding, Tensor]:
    torch.manual_seed(0)
    table = nn.Embedding(ROWS, WIDTH, dtype=dtype)
    weight = table.weight.detach().clone()
    return offload.move(table, path), weight


def operands(seed: int, groups: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    ids = torch.randint(0, ROWS, (groups or TOKENS, R), generator=generator)
    ids[:, 0] = 7  # one row that everybody looks up
    group = None if groups is None else torch.randint(0, groups, (TOKENS,), generator=generator)
    return query, ids, group, torch.randn(TOKENS, R, generator=generator).to(dtype)


@pytest.mark.parametrize("kernels", ["1", "0"], ids=["kernels", "reference"])
@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "deferred"])
@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_steps_are_those_of_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str, deferred: bool, adagrad: bool, dtype: torch.dtype
) -> None:
    """Two backwards a step, of unlike shapes; plain and cosine logits; negatives of tokens and of groups."""
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", kernels)
    table, weight = table_in(tmp_path / "t", dtype)
    exact, sums = weight.double(), torch.zeros(ROWS, dtype=torch.float64)
    lr, eps = 0.1, 1e-3
    update = offload.RowwiseAdagrad(table, lr, eps, deferred) if adagrad else offload.SGD(table, lr, deferred)
    for step in range(3):
        grad = torch.zeros_like(exact)
        for call, (groups, cosine) in enumerate(((None, None), (4, 0.5))):
            query, ids, group, seed = operands(10 * step + call, groups, dtype)
            query.requires_grad_()
            made = gr.segmented_logits(query, table.weight, ids, group, cosine, 3, 4)
            made.backward(seed)
            wide = exact.clone().requires_grad_()
            want = gr.sampled_logits(query.detach().double(), wide, ids, group, cosine, 3)
            torch.testing.assert_close(made.detach().double(), want.detach(), rtol=0.02, atol=0.1 if dtype == torch.float16 else 1e-4)
            grad += torch.autograd.grad(want, wide, seed.double())[0]
        touched = grad.abs().sum(1) > 0
        rate = torch.full((ROWS, 1), lr, dtype=torch.float64)
        if adagrad:
            sums += grad.square().mean(1)
            rate = lr / (sums.sqrt() + eps).unsqueeze(1)
        exact = torch.where(touched[:, None], exact - rate * grad, exact)
        update.step()
        update.zero_grad()
    offload.flush(table)
    tolerance = 0.02 if dtype == torch.float16 else 1e-4
    torch.testing.assert_close(table.weight.detach().double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(table.weight[3], weight[3])  # the padding
    still = (exact == weight.double()).all(1)
    assert still.any() and torch.equal(table.weight[still], weight[still])


@pytest.mark.parametrize("deferred", [False, True])
def test_a_compiled_model_trains_as_one_in_memory(tmp_path: Path, deferred: bool) -> None:
    def model() -> SampledSoftmax:
        torch.manual_seed(1)
        return SampledSoftmax(ROWS, WIDTH, 3, 8)

    plain, ours = model(), model()
    offload.move(ours.table, tmp_path / "t")
    optimizers = [torch.optim.SGD(plain.parameters(), 0.1), torch.optim.SGD([ours.states], 0.1),
                  offload.SGD(ours.table, 0.1, deferred)]  # fmt: skip
    fast = gr_compile.optimize(ours, passes=PASSES)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        targets = torch.randint(0, ROWS + 1, (3, 8), generator=generator)
        negatives = torch.randint(1, ROWS + 1, (3, 8, R), generator=generator)
        losses = []
        for one in (plain, fast):
            losses.append(one(targets, negatives))
            losses[-1].backward()
        torch.testing.assert_close(losses[0], losses[1])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    offload.flush(ours.table)
    torch.testing.assert_close(ours.table.weight, plain.table.weight, check_stride=False)
    torch.testing.assert_close(ours.states, plain.states)
    assert ours.table.weight.grad is None


@pytest.mark.parametrize("deferred", [False, True])
def test_a_file_cut_short_while_a_compiled_model_trains(tmp_path: Path, deferred: bool) -> None:
    """The error of the file comes out; states and checkpoint are as they were, and training goes on from them."""
    torch.manual_seed(1)
    model = SampledSoftmax(ROWS, WIDTH, 3, 8)
    offload.move(model.table, tmp_path / "t")
    optimizers = [torch.optim.SGD([model.states], 0.1), offload.SGD(model.table, 0.1, deferred)]
    fast = gr_compile.optimize(model, passes=PASSES)
    batch = torch.randint(0, ROWS + 1, (3, 8)), torch.randint(1, ROWS + 1, (3, 8, R))

    def step() -> float:
        loss = fast(*batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    step()
    offload.save(model.table, tmp_path / "copy")
    states, content = model.states.detach().clone(), (tmp_path / "copy").read_bytes()
    os.truncate(tmp_path / "t", 8192)
    with pytest.raises(offload.TableFileError, match="has 8192 bytes and must have"):
        step()
    assert torch.equal(model.states, states) and (tmp_path / "copy").read_bytes() == content
    offload.load(model.table, tmp_path / "copy")
    assert step() > step()


def test_a_step_prefetches_what_the_next_forward_begins_with(tmp_path: Path) -> None:
    """Where the step touched most of it; and what is written to the weight meanwhile is seen."""
    table, weight = table_in(tmp_path / "t")
    update = offload.SGD(table, 0.5)
    stored = stored_table(table.weight)
    assert stored is not None
    ids = torch.arange(ROWS).view(-1, 5)
    query = torch.ones(len(ids), WIDTH, requires_grad=True)
    for _ in range(2):
        gr.segmented_logits(query, table.weight, ids, None, None, -1, 6).sum().backward()
        update.step()
        weight -= 0.5
        stored.flush()  # waits for the buffers
        before = stored.traffic.bytes_read
        gr.segmented_logits(query[:9], table.weight, ids[:9], None, None, -1, 6)
        assert stored.traffic.bytes_read == before
        torch.testing.assert_close(table.weight.detach(), weight)
    with torch.no_grad():
        table.weight += 1
    found = gr.segmented_logits(query[:9], table.weight, ids[:9], None, None, -1, 6)
    torch.testing.assert_close(found, gr.sampled_logits(query[:9], weight + 1, ids[:9], None, None, -1))


def test_a_table_without_row_optimizer_has_a_gradient_like_any(tmp_path: Path) -> None:
    table, weight = table_in(tmp_path / "t")
    plain = weight.clone().requires_grad_()
    for seed in range(2):  # the second adds to the first
        query, ids, _, grad = operands(seed, None, torch.float32)
        gr.segmented_logits(query, table.weight, ids, None, 1e-6, -1, 4).backward(grad)
        gr.sampled_logits(query, plain, ids, None, 1e-6, -1).backward(grad)
    torch.testing.assert_close(table.weight.grad, plain.grad)
    torch.optim.SGD([table.weight], 0.1).step()
    torch.testing.assert_close(table.weight.detach(), weight - 0.1 * plain.grad)
    query, ids, _, _ = operands(5, None, torch.float32)
    found = gr.segmented_logits(query, table.weight, ids, None, None, -1, 4)
    torch.testing.assert_close(found, gr.sampled_logits(query, table.weight.clone(), ids, None, None, -1))
    assert [x.name for x in tmp_path.iterdir()] == ["t"]


def test_operands_that_change_after_the_backward_do_not_matter(tmp_path: Path) -> None:
    table, weight = table_in(tmp_path / "t")
    update = offload.SGD(table, 1.0)
    query, ids, _, grad = operands(0, None, torch.float32)
    want = weight - gr.sampled_logits_backward(grad, query, weight, ids, None, None, -1, False, False, True)[1]
    gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4).backward(grad)
    with torch.no_grad():
        query.zero_(), ids.zero_(), grad.zero_()
    update.step()
    torch.testing.assert_close(table.weight.detach(), want)


def test_zero_grad_drops_and_a_step_without_a_backward_is_an_error(tmp_path: Path) -> None:
    table, weight = table_in(tmp_path / "t")
    update = offload.SGD(table, 1.0)
    query, ids, _, grad = operands(0, None, torch.float32)
    gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4).backward(grad)
    update.zero_grad()
    with pytest.raises(RuntimeError, match=r"no backward has recorded lookups.*offload-negatives"):
        update.step()
    assert torch.equal(table.weight, weight)


def test_a_backward_after_the_step_is_an_error(tmp_path: Path) -> None:
    table, _ = table_in(tmp_path / "t")
    update = offload.SGD(table, 1.0)
    query, ids, _, grad = operands(0, None, torch.float32)
    first, second = (gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4) for _ in range(2))
    first.backward(grad)
    update.step()
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        second.backward(grad)


def test_schedules_and_checkpoints_of_the_optimizer(tmp_path: Path) -> None:
    def trained(path: Path, steps: int, restore: bool) -> Tensor:
        table, _ = table_in(path)
        update = offload.RowwiseAdagrad(table, 0.2, deferred=True)
        schedule = torch.optim.lr_scheduler.ExponentialLR(update, 0.5)
        for step in range(steps):
            if restore and step == 1:
                offload.save(table, tmp_path / "copy")
                state = copy.deepcopy(update.state_dict())
                offload.load(table, tmp_path / "copy")
                update.state[table.weight]["sum"].zero_()
                update.load_state_dict(state)
            query, ids, _, grad = operands(step, None, torch.float32)
            gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4).backward(grad)
            update.step()
            schedule.step()
        offload.flush(table)
        return table.weight.detach().clone()

    torch.testing.assert_close(trained(tmp_path / "a", 3, True), trained(tmp_path / "b", 3, False))


def test_sums_of_a_half_table_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    table, _ = table_in(tmp_path / "t", torch.float16)
    update = offload.RowwiseAdagrad(table, 0.2)
    update.state[table.weight]["sum"] += 1 / 3
    state = update.state_dict()
    update.load_state_dict(state)
    sums = update.state[table.weight]["sum"]
    assert sums.dtype == torch.float32 and torch.equal(sums, torch.full((ROWS,), 1 / 3))
    with pytest.raises(ValueError, match=r"the sums of another table"):
        update.load_state_dict({**state, "state": {0: {"sum": torch.zeros(3)}}})


def test_two_optimizers_and_bad_rates(tmp_path: Path) -> None:
    table, _ = table_in(tmp_path / "t")
    for lr in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"lr must be finite and not negative"):
            offload.SGD(table, lr)
    offload.SGD(table, 0.1)
    with pytest.raises(ValueError, match=r"has an optimizer already"):
        offload.SGD(table, 0.1)


def test_a_model_that_is_dropped_goes_with_what_it_has_recorded(tmp_path: Path) -> None:
    table, _ = table_in(tmp_path / "t")
    update = offload.SGD(table, 0.1)
    query, ids, _, grad = operands(0, None, torch.float32)
    gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4).backward(grad)
    stored = stored_table(table.weight)
    assert stored is not None and stored.recorded
    gone = weakref.ref(stored)
    del table, update, stored
    gc.collect()
    assert gone() is None


def test_a_deferred_step_that_nobody_took_is_said(tmp_path: Path) -> None:
    table, _ = table_in(tmp_path / "t")
    update = offload.SGD(table, 0.1, deferred=True)
    query, ids, _, grad = operands(0, None, torch.float32)
    gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4).backward(grad)
    update.step()
    with pytest.warns(UserWarning, match=r"last step of an optimizer is not in .*call flush\(\)"):
        del table, update
        gc.collect()


def test_a_state_dict_holds_a_deferred_step_and_one_that_is_loaded_does_not(tmp_path: Path) -> None:
    table, weight = table_in(tmp_path / "t")
    update = offload.SGD(table, 0.1, deferred=True)
    query, ids, _, grad = operands(0, None, torch.float32)
    query.requires_grad_()

    def step() -> None:
        gr.segmented_logits(query, table.weight, ids, None, None, -1, 4).backward(grad)
        update.step()

    step()
    want = weight - 0.1 * gr.sampled_logits_backward(grad, query, weight, ids, None, None, -1, False, False, True)[1]
    torch.testing.assert_close(table.state_dict()["weight"], want)
    step()
    table.load_state_dict({"weight": weight})
    logits = gr.segmented_logits(query, table.weight, ids, None, None, -1, 4)
    assert torch.equal(logits, gr.sampled_logits(query, weight, ids, None, None, -1))
    offload.save(table, tmp_path / "copy")
    step()
    with torch.no_grad():
        table.weight[5] = 0
    with pytest.raises(RuntimeError, match=r"written while a deferred step waits"):
        gr.segmented_logits(query, table.weight, ids, None, None, -1, 4)
    offload.load(table, tmp_path / "copy")
    logits = gr.segmented_logits(query, table.weight, ids, None, None, -1, 4)
    assert torch.equal(logits, gr.sampled_logits(query, weight, ids, None, None, -1))


def test_nan_and_inf_reach_the_rows_that_were_looked_up_with_them(tmp_path: Path) -> None:
    table, _ = table_in(tmp_path / "t")
    update = offload.SGD(table, 0.1)
    query, ids, _, grad = operands(0, None, torch.float32)
    grad[3, 2] = float("nan")
    gr.segmented_logits(query.requires_grad_(), table.weight, ids, None, None, -1, 4).backward(grad)
    update.step()
    reached = table.weight.isnan().any(1).nonzero().flatten()
    assert reached.tolist() == [int(ids[3, 2])]
