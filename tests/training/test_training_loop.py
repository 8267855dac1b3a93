"""The training loop: deterministic, resumes and accumulates exactly, learns, measures, says what is wrong."""

import copy

import pytest
import torch

from gr_compile.benchmarking.memory import PeakMemory
from gr_compile.model_zoo.turbogr import PUBLISHED
from gr_compile.training.checkpoint import CheckpointError, read_checkpoint
from gr_compile.training.data.synthetic import SyntheticSettings, generate
from gr_compile.training.loop import Trainer, TrainingError
from gr_compile.training.models import NAMES, ModelSettings
from gr_compile.training.settings import TrainSettings
from gr_compile.training.variants import build_seeded

# TurboGR's models keep their published widths, so a step of theirs takes seconds here.
MODELS = [pytest.param(name, marks=pytest.mark.slow) if name in PUBLISHED else name for name in NAMES]
SETTINGS = TrainSettings(
    epochs=3, batch_size=8, max_seq_len=12, learning_rate=5e-3, accumulate=2, clip_norm=1.0, seed=3
)


@pytest.fixture(scope="module")
def data():
    return generate(SyntheticSettings(num_users=45, num_items=30, median_length=10, sigma=0.5, max_length=20))


def make_trainer(data, name="sasrec", checkpoint=None, dropout=0.2, **changes):
    settings = TrainSettings(**{**SETTINGS.__dict__, **changes})
    model = ModelSettings(name, embedding_dim=8, num_layers=1, num_heads=2, head_dim=4, dropout=dropout)
    case = build_seeded(model, settings, data.num_items)
    return Trainer(case, case.module, data, settings, checkpoint=checkpoint, identity={"model": name})


def train(trainer):
    return trainer.train(measure_peak_flops=False)


def losses(result):
    return [record.loss for record in result.epochs]


def same_weights(first, second):
    pairs = zip(first.case.module.state_dict().values(), second.case.module.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_equal_seeds_give_equal_runs_and_others_do_not(data, name):
    first, again, other = (train(make_trainer(data, name, epochs=1, seed=seed)) for seed in (3, 3, 4))
    assert losses(first) == losses(again) != losses(other)
    assert first.test == again.test


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns(data, name):
    trainer = make_trainer(data, name, dropout=0.0, epochs=6, accumulate=1, learning_rate=1e-2)
    found = losses(train(trainer))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 7])
def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, stop):
    whole = make_trainer(data)
    expected = train(whole)
    path = tmp_path / "run.pt"
    first = make_trainer(data, checkpoint=path, max_steps=stop)
    train(first)
    torch.manual_seed(999)
    resumed = make_trainer(data, checkpoint=path)
    torch.manual_seed(888)
    resumed.resume()
    found = train(resumed)
    assert losses(found) == losses(expected)
    assert [r.hit_rate for r in found.epochs] == [r.hit_rate for r in expected.epochs]
    assert found.test == expected.test
    assert same_weights(whole, resumed)


def test_accumulated_steps_are_those_of_the_large_batch(data):
    small = make_trainer(data, dropout=0.0, batch_size=4, accumulate=3)
    large = make_trainer(data, dropout=0.0, batch_size=12, accumulate=1)
    torch.testing.assert_close(losses(train(small)), losses(train(large)), rtol=1e-4, atol=0)


def test_clipping_bounds_the_step(data):
    free, clipped = (make_trainer(data, epochs=1, clip_norm=c, dropout=0.0) for c in (0.0, 1e-6))
    start = copy.deepcopy(free.case.module.state_dict())
    optimizers = [torch.optim.SGD(t.case.module.parameters(), lr=1.0) for t in (free, clipped)]
    for trainer, optimizer in zip((free, clipped), optimizers):
        trainer.optimizer = optimizer
        trainer._step([next(trainer._batches("train").epoch())])
    moved = [
        sum((p - start[name]).square().sum() for name, p in t.case.module.state_dict().items()).sqrt()
        for t in (free, clipped)
    ]
    assert moved[1] <= 1.01e-6 < moved[0]


def test_bf16_autocast_trains_close_to_float32(data):
    full, half = (train(make_trainer(data, "hstu", epochs=1, dropout=0.0, bf16=b)) for b in (False, True))
    assert losses(full) != losses(half)
    assert abs(losses(full)[0] / losses(half)[0] - 1) < 0.05


def test_deterministic_is_switched_back(data):
    train(make_trainer(data, epochs=1, deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_not_finite_stops_the_run(data):
    trainer = make_trainer(data)
    with torch.no_grad():
        trainer.case.module.item_embedding.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at epoch 1, batch 1"):
        train(trainer)


def test_top_items_are_those_that_rank(data):
    trainer = make_trainer(data, "hstu", filter_history=True, top_k=5)
    found = trainer.evaluate("test")
    lists = trainer.top_items("test")
    targets = torch.cat([batch.last_targets for batch in trainer._batches("test").epoch()])
    hits = (lists == targets.unsqueeze(1)).any(dim=1).double().mean().item()
    assert abs(hits - found.hit_rate) < 1e-9


class TestCheckpoint:
    def test_another_run_is_refused(self, data, tmp_path):
        path = tmp_path / "run.pt"
        train(make_trainer(data, checkpoint=path, max_steps=1))
        with pytest.raises(CheckpointError, match="had batch_size = 8, this one"):
            make_trainer(data, checkpoint=path, batch_size=9).resume()
        with pytest.raises(CheckpointError, match="had model = 'sasrec'"):
            make_trainer(data, "hstu", checkpoint=path).resume()

    def test_damage_and_absence_are_said(self, data, tmp_path):
        path = tmp_path / "run.pt"
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            make_trainer(data, checkpoint=path).resume()
        train(make_trainer(data, checkpoint=path, max_steps=1))
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"hello"):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="damaged"):
                read_checkpoint(path)
        torch.save({"schema": 0}, path)
        with pytest.raises(CheckpointError, match="not a checkpoint of schema"):
            read_checkpoint(path)

    def test_writing_leaves_one_file_and_the_old_one_when_it_fails(self, data, tmp_path, monkeypatch):
        path = tmp_path / "run.pt"
        trainer = make_trainer(data, checkpoint=path)
        trainer.save()
        before = path.read_bytes()

        def fail(state, handle):
            handle.write(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(CheckpointError, match="disk full"):
            trainer.save()
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_resume_needs_a_name(self, data):
        with pytest.raises(TrainingError, match="none was named"):
            make_trainer(data).resume()


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"max_seq_len": 1}, {"learning_rate": 0.0}, {"max_steps": -1}]
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        TrainSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"name": "gpt"}, {"dropout": 1.0}, {"num_heads": 0}])
def test_model_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        ModelSettings(**wrong)
    with pytest.raises(ValueError, match="divides"):
        ModelSettings("sasrec", embedding_dim=10, num_heads=4)


def test_peak_memory_sees_what_came_and_went():
    memory = PeakMemory()
    memory.start()
    torch.ones(1 << 25)  # 128 MiB, freed at once
    if not memory.resettable:
        pytest.skip("this kernel's high-water mark cannot be reset")
    assert 120 << 20 < memory.read() - memory.baseline_bytes < 200 << 20
    memory.start()
    assert memory.read() - memory.baseline_bytes < 60 << 20
