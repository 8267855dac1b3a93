"""`optimize`: how it is called, and that the result is the model in every respect but speed."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import threading

import pytest
import torch
from models import Events, Mlp, OldStyle, Sequences, assert_same_run, batch, graphs, optimize, vectors
from torch import nn

import gr_compile


def plain_function(x):
    return torch.relu(x) * 2


@functools.partial(gr_compile.optimize, target="eager")
def decorated_function(x):
    """Doubles what is positive."""
    return torch.relu(x) * 2


@gr_compile.optimize(target="eager")
class Decorated(nn.Module):
    def __init__(self, out: int = 3) -> None:
        super(Decorated, self).__init__()  # noqa: UP008
        self.linear = nn.Linear(4, out)

    def forward(self, x):
        return self.linear(x).relu()


class Derived(Decorated):
    def __init__(self) -> None:
        super().__init__(out=2)

    def forward(self, x):
        return super().forward(x) + 1


@pytest.fixture
def model() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


# ----------------------------------------------------------------------------------------- ways to call it
def test_a_function_by_call_and_as_a_decorator_bare_and_with_arguments():
    x = vectors()
    bare = gr_compile.optimize(plain_function, target="eager")
    with_arguments = gr_compile.optimize(passes="none", target="eager")(plain_function)
    for fast in (bare, with_arguments, decorated_function):
        torch.testing.assert_close(fast(x), plain_function(x))
        assert graphs(fast) == 1
    assert decorated_function.__name__ == "decorated_function"
    assert decorated_function.__doc__ == "Doubles what is positive."
    assert bare.original is plain_function


def test_the_bare_decorator_needs_no_parentheses():
    @gr_compile.optimize
    def f(x):
        return x + 1

    assert isinstance(f, gr_compile.optimize(target="eager")(plain_function).__class__)


def test_a_method_keeps_its_instance():
    class Scaler:
        factor = 3.0

        @gr_compile.optimize(target="eager")
        def scale(self, x):
            return x * self.factor

    scaler = Scaler()
    torch.testing.assert_close(scaler.scale(vectors()), vectors() * 3)
    assert scaler.scale.__self__ is scaler
    assert len(gr_compile.report(scaler.scale)) == 1


@pytest.mark.parametrize("model_class", [Decorated, Derived, gr_compile.optimize(OldStyle, target="eager")])
def test_a_class_makes_optimised_instances(model_class):
    fast = model_class().eval()
    x = vectors()
    eager = fast.original
    assert graphs(fast) == 0
    torch.testing.assert_close(fast(x), eager(x))
    assert graphs(fast) == 1, "the original runs eagerly"
    assert isinstance(fast, model_class) and isinstance(eager, model_class)
    assert eager.linear is fast.linear


def test_the_forward_of_a_class_derived_from_a_decorated_one_is_what_runs():
    fast = Derived()
    x = vectors()
    torch.testing.assert_close(fast(x), fast.linear(x).relu() + 1)


def test_instances_of_a_decorated_class_pickle_and_copy_before_and_after_the_first_call():
    fast = Decorated().eval()
    x, want = vectors(), None
    for _ in range(2):
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert type(twin) is Decorated and twin.linear is not fast.linear
            torch.testing.assert_close(twin(x), fast.original(x))
            assert graphs(twin) == 1
        want = fast(x)
    torch.testing.assert_close(want, fast.original(x))
    assert list(fast.state_dict()) == ["linear.weight", "linear.bias"]


def test_an_optimised_instance_goes_when_its_last_reference_goes():
    import weakref

    fast = Decorated()
    fast(vectors())
    weight = weakref.ref(fast.linear.weight)
    del fast
    torch._dynamo.reset()
    assert weight() is None


def test_a_class_can_have_registries_and_metaclasses():
    import abc

    names = []

    class Base(nn.Module, abc.ABC):
        def __init_subclass__(cls, *, kind, **keywords):
            names.append(kind)

    class Model(Base, kind="model"):
        def forward(self, x):
            return x + 1

    torch.testing.assert_close(optimize(Model())(vectors()), vectors() + 1)
    torch.testing.assert_close(optimize(Model)()(vectors()), vectors() + 1)
    assert names == ["model"]


@pytest.mark.parametrize("again", [optimize(Mlp()), optimize(plain_function), Decorated, Decorated()])
def test_what_is_optimised_already_is_refused(again):
    with pytest.raises(gr_compile.ConfigError, match=r"\.original"):
        gr_compile.optimize(again)


def test_the_original_of_an_optimised_one_can_be_optimised_otherwise(model):
    x = vectors()
    for original in (optimize(model).original, Decorated().original):
        torch.testing.assert_close(optimize(original, passes="none")(x), original(x))


@pytest.mark.parametrize("nothing", [3, int, "model"])
def test_what_is_no_model_is_refused(nothing):
    with pytest.raises(gr_compile.ConfigError, match=r"modules, nn\.Module classes and functions"):
        gr_compile.optimize(nothing)


def test_report_of_a_plain_model_is_an_error(model):
    with pytest.raises(gr_compile.ConfigError, match="Mlp does not come from"):
        gr_compile.report(model)


# ------------------------------------------------------------------------------------- the wrapper is the model
def test_the_wrapper_is_an_instance_of_the_models_class_and_knows_the_model(model):
    fast = optimize(model)
    assert isinstance(fast, Mlp) and type(fast).__name__ == "Mlp"
    assert fast.original is model
    assert graphs(fast) == 0
    model(vectors())
    assert graphs(fast) == 0, "the model stays eager"


def test_attributes_reach_through_both_ways(model):
    fast = optimize(model)
    fast.tag, model.extra = "changed", 7
    assert model.tag == "changed" and fast.extra == 7
    fast.second = nn.Linear(6, 2)
    assert model.second is fast.second
    del fast.extra
    assert not hasattr(model, "extra")
    fast.register_buffer("more", torch.zeros(1))
    assert "more" in model.state_dict()


def test_parameters_are_shared_and_state_dicts_have_the_models_keys(model):
    fast = optimize(model)
    assert [*map(id, fast.parameters())] == [*map(id, model.parameters())]
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [name for name, _ in fast.named_modules()] == [name for name, _ in model.named_modules()]


def test_state_dicts_load_both_ways_and_through_files(model):
    x, other = vectors(), optimize(Mlp().eval())
    fast = optimize(model)
    other(x)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))
    file = io.BytesIO()
    torch.save(Mlp().state_dict(), file)
    file.seek(0)
    fast(x)
    fast.load_state_dict(torch.load(file))
    torch.testing.assert_close(fast(x), model(x))


def test_train_eval_and_dtypes_follow_both_ways(model):
    fast, x = optimize(model), vectors()
    assert fast.train() is fast and model.training and model.drop.training
    model.eval()
    assert not fast.training
    fast(x)
    fast.double()
    assert model.first.weight.dtype == torch.float64
    torch.testing.assert_close(fast(x.double()), model(x.double()))
    model.bfloat16()
    assert fast(x.bfloat16()).dtype == torch.bfloat16
    fast.to(torch.float32)
    torch.testing.assert_close(fast(x), model(x))


def test_hooks_fire_whether_they_were_there_before_the_first_call_or_not(model):
    fast, x, events = optimize(model), vectors(), Events()
    model.register_forward_pre_hook(events.hook("before"))
    fast(x)
    fast.register_forward_hook(events.hook("after"))
    model.first.register_forward_hook(events.hook("inside"))
    fast(x)
    assert events.seen == ["before", "before", "inside", "after"]


def test_global_hooks_fire_once_a_module(model):
    events = Events()
    fast = optimize(model)
    handle = nn.modules.module.register_module_forward_hook(events.hook("module"))
    try:
        model(vectors())
        eager, events.seen = events.seen, []
        fast(vectors())
    finally:
        handle.remove()
    assert events.seen == eager


def test_backward_hooks_fire(model):
    fast, events = optimize(model), Events()
    model.first.weight.register_hook(events.hook("gradient"))
    fast(vectors()).sum().backward()
    assert events.seen == ["gradient"]


def test_calling_forward_is_calling_the_wrapper(model):
    fast = optimize(model)
    torch.testing.assert_close(fast.forward(vectors()), model(vectors()))
    assert graphs(fast) == 1


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_wrappers_copy_and_pickle_with_their_options(model, called, how):
    fast = optimize(model, passes="none")
    x = vectors()
    if called:
        fast(x)
    twin = how(fast)
    assert twin.original is not model and isinstance(twin, Mlp)
    torch.testing.assert_close(twin(x), model(x))
    assert graphs(twin) == 1 and gr_compile.report(twin)[0].pipeline == "none"


def test_wrappers_of_torch_compile_may_copy_the_arguments(model, monkeypatch):
    """Lightning's does, for every module that is compiled once it is imported."""
    compile = torch.compile

    def wrapper(*args, **kwargs):
        compiled = compile(*args, **kwargs)
        compiled._compile_kwargs = copy.deepcopy(kwargs)
        return compiled

    monkeypatch.setattr(torch, "compile", wrapper)
    fast = optimize(model)
    torch.testing.assert_close(fast(vectors()), model(vectors()))


def test_functions_copy_and_pickle_as_functions_do():
    assert pickle.loads(pickle.dumps(decorated_function)) is decorated_function
    assert copy.deepcopy(decorated_function) is decorated_function
    fast = optimize(plain_function, passes="none")
    again = pickle.loads(pickle.dumps(fast))
    torch.testing.assert_close(again(vectors()), plain_function(vectors()))


# -------------------------------------------------------------------------------------------------- nesting
@pytest.mark.parametrize("inner", [lambda: optimize(Mlp().eval()), lambda: nn.Sequential(Decorated().eval())])
@pytest.mark.parametrize("compile_outer", [
    lambda m: m, optimize, lambda m: torch.compile(m, backend="eager", fullgraph=True),
], ids=["eager", "optimized", "compiled"])  # fmt: skip
def test_an_optimised_model_is_a_part_of_another(inner, compile_outer):
    torch.manual_seed(0)
    outer = nn.Sequential(inner(), nn.Linear(3, 2))
    want = copy.deepcopy(outer)(vectors())
    fast = compile_outer(outer)
    torch.testing.assert_close(fast(vectors()), want)
    assert all("_orig_mod" not in name and "original" not in name for name in outer.state_dict())
    if isinstance(getattr(fast, "original", None), nn.Module):
        assert graphs(fast) == 1


def test_an_optimised_function_is_inlined_into_a_compiled_one():
    fast = optimize(plain_function)
    compiled = torch.compile(lambda x: fast(x) + 1, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(vectors()), plain_function(vectors()) + 1)


def test_functional_call_replaces_the_parameters(model):
    fast = optimize(model)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.func.functional_call(fast, zeros, (vectors(),)).abs().sum() == 0


def test_many_models_of_one_class_do_not_share_a_limit_of_compilations():
    x = vectors()
    for _ in range(12):
        fast = optimize(Mlp().eval(), passes="none")
        fast(x)
        assert graphs(fast) == 1


def test_calls_leave_nothing_behind(model):
    import contextvars

    fast = optimize(model)
    fast(vectors())
    before = len(contextvars.copy_context())
    for _ in range(50):
        fast(vectors())
    assert len(contextvars.copy_context()) == before
    assert not torch._dynamo.config.capture_scalar_outputs, "torch.compile's settings are as they were"


def test_threads_may_share_an_optimised_model():
    model = Sequences().eval()
    fast, wrong = optimize(model), []

    def work(seed):
        for n in (4, 6, 9):
            ids, lengths = batch([n, 2, 0], n, seed)
            if not torch.allclose(fast(ids, lengths), model(ids, lengths), atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_dynamic_means_what_it_means_to_torch_compile(dynamic):
    model = Sequences()
    fast = optimize(model, dynamic=dynamic)
    for n in (5, 7, 8):
        assert_same_run(fast, model, *batch([n, 1, 3], n))
    assert graphs(fast) in {None: (1, 2), True: (1,), False: (3,)}[dynamic]


def test_inductor_gives_the_models_answer_and_gradients():
    model = Sequences()
    fast = gr_compile.optimize(model, dynamic=True)
    assert_same_run(fast, model, *batch([5, 2, 0], 5))
    assert graphs(fast) == 1
