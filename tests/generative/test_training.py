"""Losses, noise, several processes, faults of the disk, and what a run prints."""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from chem.statistics import Statistics, new_elements
from generative.callbacks import AtomicIO, Ema, newest
from generative.generator import Denoiser
from generative.loggers import loggers_for, quiet
from generative.models.diffcsp import build
from generative.noise import Share, mix, normal
from generative.training import Training, TrainSettings
from tests.generative import runs


def module(world: int = 1, rank: int = 0) -> Training:
    """A training whose trainer knows its place and nothing else."""
    torch.manual_seed(0)
    batch = runs.crystals(runs.arrays())
    denoiser: Denoiser = build(runs.TINY, Statistics.compute(batch))
    out = Training(denoiser, runs.settings(), seed=5, total_steps=12, names=[])
    out._trainer = SimpleNamespace(world_size=world, global_rank=rank)  # type: ignore[assignment]
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "step"}, "schedule = 'step', allowed: cosine, plateau"),
        ({"precision": "fp16"}, "precision = 'fp16', allowed: fp32, bf16"),
        ({"epochs": 0}, "epochs = 0, allowed: >= 1"),
        ({"val_every": 0}, "val_every = 0, allowed: >= 1"),
        ({"lr": 0.0}, "lr = 0.0, allowed: > 0"),
        ({"ema": 1.0}, r"ema = 1.0, allowed: 0 <= ema < 1"),
        ({"clip_value": -1.0}, "clip_value = -1.0, allowed: >= 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict, words: str):
    with pytest.raises(ValueError, match=words):
        TrainSettings(**changes)


@torch.no_grad()
def test_the_noise_of_a_step_is_a_function_of_seed_and_step():
    """Written out, so that a checkpoint of today goes on tomorrow with the noise it would have had."""
    training, batch = module(), runs.crystals(runs.arrays())[3:11]
    model, everyone = training.denoiser, torch.arange(8)
    parts = training._parts(batch, mix(5, 7, 0), everyone, batch, even=False)
    generator = torch.Generator().manual_seed(mix(5, 7, 0))
    t = (torch.rand(8, generator=generator) * 1000).floor() / 1000
    for field, rows in model.losses(batch, t, generator).items():
        assert torch.equal(parts[field], rows.sum() / len(rows))
    parts = training._parts(batch, mix(5, 1, 2**32), everyone, batch, even=True)
    generator = torch.Generator().manual_seed(mix(5, 1, 2**32))
    t = (torch.randperm(8, generator=generator) + 0.5) / 8
    rows = model.losses(batch, (t * 1000).floor() / 1000, generator)
    assert torch.equal(parts["frac_coords"], rows["frac_coords"].sum() / len(rows["frac_coords"]))
    assert float(parts["total"]) == pytest.approx(float(parts["frac_coords"] + parts["lattice"]))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_make_up_the_draw_of_one_process(world: int):
    batch = runs.crystals(runs.arrays())[5:18]
    for field, shape in (("frac_coords", (3,)), ("lattice", (3, 3))):
        whole = normal(batch.rows(field), shape, torch.float32, torch.Generator().manual_seed(1))
        for rank in range(world):
            share = Share(torch.Generator().manual_seed(1), batch["num_atoms"], rank, world)
            mine = batch[torch.arange(rank, 13, world)]
            kept = torch.arange(13)[rank::world]
            wanted = torch.cat([whole[batch.rows(field).index == i] for i in kept])
            assert torch.equal(normal(mine.rows(field), shape, torch.float32, share), wanted)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("one")
    assert runs.process(runs.run, runs.arrays(), out, {}) == 0
    return out


def test_two_processes_end_where_one_does(one_process: Path, tmp_path: Path):
    options = {"strategy": "ddp_fork", "devices": 2, "accelerator": "cpu"}
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, None, options) == 0
    one, two = (torch.load(out / "returned.pt", weights_only=True) for out in (one_process, tmp_path))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    a, b = (torch.load(runs.newest_of(out), weights_only=True) for out in (one_process, tmp_path))
    raw = [c["current_model_state"] for c in (a, b)]
    assert max(float((raw[0][name] - raw[1][name]).abs().max()) for name in raw[0]) < 1e-6
    # nine structures in batches of eight: in the second, one process has none
    first, second = (runs.lines(out / "validations.jsonl") for out in (one_process, tmp_path))
    assert [line["step"] for line in second] == [6, 12]
    for x, y in zip(first, second, strict=True):
        assert y == pytest.approx(x, rel=1e-5)


def test_two_processes_share_the_batches_of_one(one_process: Path, tmp_path: Path):
    options = {"strategy": "ddp_fork", "devices": 2, "accelerator": "cpu"}
    assert runs.process(runs.run, runs.arrays(), tmp_path, {"epochs": 2}, None, options) == 0
    whole = {line["step"]: line["index"] for line in runs.lines(one_process / "batches.jsonl")}
    parts = runs.lines(tmp_path / "batches.jsonl")
    for step in range(6):
        shards = {line["rank"]: line["index"] for line in parts if line["step"] == step}
        assert [len(shards[rank]) for rank in (0, 1)] == [4, 4]
        assert [i for pair in zip(shards[0], shards[1], strict=True) for i in pair] == whole[step]


def test_two_processes_stop_and_resume(one_process: Path, tmp_path: Path):
    options = {"strategy": "ddp_fork", "devices": 2, "accelerator": "cpu"}
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, ("step", 7, "error"), options) == 1
    assert [path.name for path in (tmp_path / "checkpoints").glob("*")] == ["step=6.ckpt"]
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, None, options) == 0
    one, two = (torch.load(out / "returned.pt", weights_only=True) for out in (one_process, tmp_path))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


@pytest.mark.parametrize("task", ["csp", "ab-initio"])
def test_checkpoints_hold_plain_values_only(tmp_path: Path, task: str):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {"epochs": 1, "val_every": 1, "task": task}) == 0
    found = runs.leaves(torch.load(runs.newest_of(tmp_path), weights_only=True))
    assert {type(value) for value in found.values()} <= {torch.Tensor, int, float, bool, str, type(None)}
    assert not any(isinstance(value, str) and str(tmp_path) in value for value in found.values())


def test_exported_weights_are_the_average(one_process: Path):
    average = torch.load(runs.newest_of(one_process), weights_only=True)["state_dict"]
    written = runs.lines(one_process / "written.jsonl")[-1]
    total = sum(float(w.double().sum()) for name, w in average.items() if name.startswith("denoiser."))
    assert written["step"] == 12 and written["sum"] == pytest.approx(total, rel=1e-12)
    best = [line["val/total"] for line in runs.lines(one_process / "written.jsonl")]
    assert best == sorted(best, reverse=True)


def test_a_full_disk_names_the_file_and_keeps_the_checkpoint_before(one_process: Path, tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, ("step", 7, "full")) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=6.ckpt"]
    message = (tmp_path / "error.txt").read_text()
    assert "\n" not in message and "step=8.ckpt could not be written: File too large" in message
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}) == 0
    assert runs.differences(one_process, tmp_path) == []


def test_killed_during_a_save(one_process: Path, tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, ("step", 7, "half")) == -9
    names = sorted(path.suffix for path in (tmp_path / "checkpoints").iterdir())
    assert names == [".ckpt", ".part"]
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step=6.ckpt"
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}) == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=12.ckpt"]
    assert runs.differences(one_process, tmp_path) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match=r"step=1\.ckpt could not be written: No space left on device; earlier") as caught:
        AtomicIO().save_checkpoint({"x": torch.zeros(3)}, tmp_path / "new" / "step=1.ckpt")
    assert caught.value.errno == 28 and list((tmp_path / "new").iterdir()) == []


def test_the_newest_checkpoint_is_the_one_of_the_largest_step(tmp_path: Path):
    assert newest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    for name in ("step=9.ckpt", "step=10.ckpt", "step=11.ckpt.77.part"):
        (tmp_path / "checkpoints" / name).touch()
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step=10.ckpt"


def test_a_loss_that_is_not_finite_names_the_structures(tmp_path: Path):
    data = {**runs.arrays()}
    data["lattice"] = data["lattice"].copy()
    data["lattice"][4] = math.nan
    names = [f"crystal-{i}" for i in range(runs.TRAIN)]
    assert runs.process(runs.run, data, tmp_path, {}, None, {"names": names}) == 1
    failed = runs.lines(tmp_path / "batches.jsonl")[-1]
    message = (tmp_path / "error.txt").read_text()
    expected = ", ".join(f"crystal-{i}" for i in failed["index"])
    assert 4 in failed["index"] and message == f"the loss of step {failed['step']} is nan; its structures: {expected}"


def test_the_average_warms_up():
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

    plain, ema = Plain(), Ema(0.5)
    ema.setup(Trainer.__new__(Trainer), plain, "fit")
    expected = 0.0
    for n in range(20):
        plain.w.data.fill_(float(n + 1))
        ema._average_model.update_parameters(plain)  # type: ignore[union-attr]
        # the first update is a copy
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * (n + 1)
        assert float(ema.averaged()["w"]) == pytest.approx(expected, rel=1e-6)


def test_nothing_is_averaged_where_nothing_ran():
    assert Ema(0.9).averaged() == {}


def test_the_plateau_schedule_counts_validations(tmp_path: Path):
    changes = {"schedule": "plateau", "epochs": 6, "val_every": 2}
    assert runs.process(runs.run, runs.arrays(), tmp_path, changes) == 0
    (state,) = torch.load(runs.newest_of(tmp_path), weights_only=True)["lr_schedulers"]
    totals = [line["val/total"] for line in runs.lines(tmp_path / "validations.jsonl")]
    assert len(totals) == state["last_epoch"] == 3 and state["best"] == pytest.approx(min(totals), rel=1e-3)


def test_the_last_epoch_is_validated(tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {"epochs": 3, "val_every": 2}) == 0
    assert [line["step"] for line in runs.lines(tmp_path / "validations.jsonl")] == [6, 9]


def test_without_tensorboard(tmp_path: Path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    assert [type(logger).__name__ for logger in loggers_for(tmp_path, {})] == ["CSVLogger"]


def test_quiet_is_undone():
    logger = logging.getLogger("lightning.pytorch")
    before, filters = logger.level, list(warnings.filters)
    with pytest.raises(KeyError), quiet():
        assert logger.getEffectiveLevel() == logging.WARNING
        raise KeyError
    assert logger.level == before and list(warnings.filters) == filters


def test_a_run_prints_its_validations_and_no_advertisement(tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, console=False) == 0
    printed = (tmp_path / "printed.txt").read_text()
    assert [line.split(":")[0] for line in printed.splitlines()] == ["epoch 1, step 6", "epoch 3, step 12"]
    assert (tmp_path / "bar.txt").read_text() == "NoneType"


def test_a_run_on_a_console_has_a_progress_bar(tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, console=True) == 0
    assert (tmp_path / "bar.txt").read_text() == "RichProgressBar"


def test_new_elements_are_named():
    batch = runs.crystals(runs.arrays())
    statistics = Statistics.compute(batch)
    assert new_elements(statistics, batch) == []
    numbers = batch["atomic_numbers"].clone()
    numbers[0], numbers[5], numbers[6] = 110, 2, 110
    assert new_elements(statistics, batch.replace(atomic_numbers=numbers)) == ["He", "Ds"]
