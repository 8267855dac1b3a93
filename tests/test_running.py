"""Optimised models in training and inference as people run them: modes, accumulation, checkpoints, recompiles."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import pytest
import torch
from models import (
    Mlp,
    Places,
    Sequences,
    assert_same_run,
    batch,
    gradients,
    graphs,
    optimize,
    vectors,
)
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gr_compile


def losses(
    model: nn.Module, run: nn.Module, steps: int = 4, accumulate: int = 2, seed: int = 0
) -> list[float]:
    """Adam over the model's parameters, gradient accumulation and clipping; `run` computes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            ids, lengths = batch([6, 3, 1], 6, seed + step * accumulate + part)
            loss = run(ids, lengths).square().mean() / accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        found.append(float(loss.detach()))
    return found


# ------------------------------------------------------------------------------------------------ training
def test_training_agrees_with_eager_when_the_optimizer_holds_the_originals_parameters():
    torch.manual_seed(0)
    model = Sequences()
    eager = copy.deepcopy(model)
    fast = optimize(model)
    torch.testing.assert_close(losses(model, fast), losses(eager, eager), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        dict(model.named_parameters()), dict(eager.named_parameters()), rtol=1e-3, atol=1e-4
    )


def test_checkpoints_of_eager_and_optimised_runs_continue_one_another():
    torch.manual_seed(0)
    model, other = Sequences(), Sequences()
    fast, fast_other = optimize(model), optimize(other)
    losses(model, fast)
    other.load_state_dict(fast.state_dict())
    want = losses(copy.deepcopy(model), copy.deepcopy(model), seed=20)
    eager = copy.deepcopy(other)
    fast_other.load_state_dict(eager.state_dict())
    torch.testing.assert_close(losses(eager, eager, seed=20)[0], want[0])
    torch.testing.assert_close(losses(other, fast_other, seed=20)[0], want[0], rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_inputs():
    model = Mlp()
    fast, a = optimize(model), vectors().requires_grad_()
    b = a.detach().clone().requires_grad_()
    fast(a).square().sum().backward()
    model(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_dropout_is_drawn_anew_each_call_and_follows_the_seed():
    fast = optimize(Sequences(rate=0.5)).train()
    ids, lengths = batch([6, 3], 6)
    torch.manual_seed(1)
    first, second = fast(ids, lengths), fast(ids, lengths)
    torch.manual_seed(1)
    torch.testing.assert_close(fast(ids, lengths), first)
    assert not torch.equal(first, second)


class Saved:
    """Bytes that autograd keeps for the backward, parameters and inputs not counted."""

    def __init__(self, *own: torch.Tensor) -> None:
        self.own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self.storages: dict[int, int] = {}

    def __enter__(self) -> Saved:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.hooks.__exit__(*args)

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return x

    @property
    def total(self) -> int:
        return sum(self.storages.values())


class Peak(TorchDispatchMode):
    """The most bytes at a time that operators made and nobody has let go of, over the forward and the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and (storage := value.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size

    def watches(self, graph_module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """A compiler of AOTAutograd's that runs the graph as it stands, watched."""

        def run(args: list[Any]) -> Any:
            with self:
                values = [*args]
                args.clear()
                return fx.Interpreter(graph_module).boxed_run(values)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


class AotEager:
    """AOTAutograd, whose partitioner decides what is kept, without Inductor's code generation."""

    name = "aot_eager"

    def __init__(self, peak: Peak) -> None:
        self.compiler = aot_autograd(
            fw_compiler=peak.watches, bw_compiler=peak.watches, partition_fn=min_cut_rematerialization_partition
        )

    def compile(self, graph_module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        return self.compiler(graph_module, inputs)

    def supports(self, operator: str) -> bool:
        return True


@pytest.mark.parametrize("passes", ["none", "default", "default,eliminate-padding{mode=host}"])
def test_checkpointed_layers_give_the_same_gradients_keep_less_and_peak_lower(passes, monkeypatch):
    data, kept, peaks = batch([24, 20, 16, 24], 24), {}, {}
    for recompute in (False, True):
        peak = Peak()
        for module in ("backend", "compiled"):
            monkeypatch.setattr(f"gr_compile.{module}.find_target", lambda name, peak=peak: AotEager(peak))
        torch.manual_seed(0)
        model = Sequences(layers=6, recompute=recompute)
        fast = gr_compile.optimize(model, passes=passes, dynamic=True)
        with Saved(*model.parameters(), *model.buffers(), *data) as saved:
            loss = fast(*data).square().sum()
        kept[recompute] = saved.total
        assert gr_compile.report(fast)[0].not_captured is None
        torch.testing.assert_close(loss, model(*data).square().sum(), rtol=1e-5, atol=1e-6)
        found = gradients(model, loss)
        peaks[recompute] = peak.most
        wanted = gradients(model, model(*data).square().sum())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert kept[True] < 0.6 * kept[False], kept
    assert 0 < peaks[True] < 0.8 * peaks[False], peaks


# --------------------------------------------------------------------------------------------------- modes
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode_compile_once_each(mode):
    model = Sequences().eval()
    fast, data = optimize(model, dynamic=True), batch([6, 3, 0], 6)
    with mode():
        for _ in range(3):
            result = fast(*data)
    assert not result.requires_grad
    torch.testing.assert_close(result, model(*data).detach(), rtol=1e-5, atol=1e-6)
    assert graphs(fast) == 1
    assert_same_run(fast, model, *data)
    assert graphs(fast) == 2


def test_ambient_autocast_gives_eagers_dtype_and_answer():
    model = Sequences()
    fast, data = optimize(model, dynamic=True), batch([6, 3, 1], 6)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            want, got = model(*data), fast(*data)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    assert graphs(fast) == 1
    torch.testing.assert_close(fast(*data), model(*data), rtol=1e-5, atol=1e-6)
    assert graphs(fast) == 2
    found, wanted = (gradients(model, run(*data).float().square().sum()) for run in (fast, model))
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=1e-3)


def test_autocast_state_is_as_it_was_after_a_call():
    fast = optimize(Mlp())
    with torch.autocast("cpu", torch.bfloat16):
        fast(vectors())
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


# ---------------------------------------------------------------------------------------------- recompiles
def random_batches(count: int, seed: int = 0, longest: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """B and N in 2.., lengths with 0 and above N, batches that are all full and all empty."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.randint(low, high + 1, size, generator=generator)

    found = []
    for k in range(count):
        b, n = int(draw(2, 6)), int(draw(2, longest))
        lengths = draw(0, n + 2, (b,)).tolist() if k % 5 else [n if k % 2 else 0] * b
        found.append(batch(lengths, n, k))
    return found


def sweep(fast: nn.Module, model: nn.Module, count: int) -> None:
    fast(*batch([4, 2, 0], 5))
    fast(*batch([7, 3, 1, 2], 7))
    compiled, frames = graphs(fast), counters["stats"]["unique_graphs"]
    for ids, lengths in random_batches(count):
        torch.testing.assert_close(fast(ids, lengths), model(ids, lengths), rtol=1e-5, atol=1e-6)
    assert graphs(fast) == compiled <= 2
    assert counters["stats"]["unique_graphs"] == frames


@pytest.mark.parametrize("model_class", [Sequences, Places])
def test_after_two_warm_ups_no_batch_compiles_again(model_class):
    model = model_class().eval()
    sweep(optimize(model), model, 60)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_after_two_warm_ups_no_batch_of_500_compiles_again(training):
    model = Sequences(layers=2).train(training)
    sweep(gr_compile.optimize(model), model, 500)


def test_one_sequence_and_one_place_may_add_one_graph_each():
    model = Places().eval()
    fast = optimize(model)
    for data in (batch([4, 2, 0], 5), batch([7, 3, 1, 2], 7)):
        fast(*data)
    warm = graphs(fast)
    for data in (batch([5], 6), batch([3], 4), batch([0], 7), batch([1, 0, 1], 1), batch([1, 1], 1)):
        torch.testing.assert_close(fast(*data), model(*data), rtol=1e-5, atol=1e-6)
    assert graphs(fast) <= warm + 2


def test_train_eval_no_grad_and_autocast_take_one_graph_each():
    model = Sequences(rate=0.1)
    fast, data = optimize(model, dynamic=True), batch([6, 3, 0], 6)

    def once_in_each_mode() -> None:
        fast.train()(*data)
        fast.eval()(*data)
        with torch.no_grad():
            fast(*data)
        with torch.autocast("cpu", torch.bfloat16):
            fast(*data)

    once_in_each_mode()
    assert graphs(fast) == 4
    once_in_each_mode()
    assert graphs(fast) == 4


# -------------------------------------------------------------------------------------------- extreme batches
EXTREME = [batch([], 5), batch([0, 0, 0], 5), batch([5, 5], 5), batch([9, 0, 6], 5)]


@pytest.mark.parametrize("first", [batch([4, 2, 0], 5), *EXTREME[:2]], ids=["usual", "no row", "empty rows"])
def test_extreme_batches_are_right_whether_seen_first_or_later(first):
    torch.manual_seed(0)
    model = Places()
    fast = optimize(model)
    for data in (first, *EXTREME):
        assert_same_run(fast, model, *data)


class Features(nn.Module):
    """Padded feature vectors, masked by where: what stands at padded places cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, lengths):
        valid = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
        return torch.where(valid, self.linear(x).relu(), 0.0).sum(1)


def test_nan_at_padded_places_stays_where_eager_leaves_it():
    torch.manual_seed(0)
    model, (ids, lengths) = Features(), batch([4, 2, 0], 5)
    x = torch.randn(3, 5, 4).masked_fill((ids == 0)[..., None], float("nan"))
    fast = optimize(model)
    torch.testing.assert_close(fast(x, lengths), model(x, lengths), rtol=1e-5, atol=1e-6)
    assert not fast(x, lengths).isnan().any()
