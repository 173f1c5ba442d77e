"""A training that is stopped anywhere and started again ends, bit for bit, where an undisturbed one ends.

Weights, their average, the optimizer's moments, the schedule, the loops' counters: every leaf of the final checkpoint
is compared, on the CPU at one thread. Three steps make an epoch, every second epoch is validated in two batches, every
second step is saved: steps 6 and 12 end an epoch with a validation.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from generative.backbone.gemm import available
from generative.callbacks import newest
from generative.loggers import read_curves
from tests.generative import runs

VARIANTS = {
    "cosine": {},
    "plateau": {"schedule": "plateau"},
    "bf16": {"precision": "bf16"},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Path]:
    """Finished runs by name of the variant."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, changes in VARIANTS.items():
        assert runs.process(runs.run, runs.arrays(), folder / name, changes) == 0
    return {name: folder / name for name in VARIANTS}


def stop_and_resume(out: Path, reference: Path, changes: dict, fault: tuple, code: int, saved: int) -> None:
    """Run with a fault, check its exit code and what it saved, resume, and compare with the reference."""
    assert runs.process(runs.run, runs.arrays(), out, changes, fault) == code
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step={saved}.ckpt"]
    assert runs.process(runs.run, runs.arrays(), out, changes) == 0
    assert runs.differences(reference, out) == []
    assert last_by_step(out, "validations") == last_by_step(reference, "validations")
    assert runs.lines(out / "written.jsonl")[-1:] == runs.lines(reference / "written.jsonl")[-1:]
    first, second = (torch.load(folder / "returned.pt", weights_only=True) for folder in (out, reference))
    assert all(torch.equal(first[name], second[name]) for name in second)


def last_by_step(out: Path, name: str) -> dict[int, dict]:
    return {line["step"]: line for line in runs.lines(out / f"{name}.jsonl")}


@pytest.mark.parametrize(
    ("variant", "fault", "saved"),
    [
        ("cosine", ("step", 5, "SIGKILL"), 4),  # in mid-epoch, a step after a save
        ("bf16", ("step", 5, "SIGKILL"), 4),
        ("cosine", ("step", 6, "SIGKILL"), 6),  # after the save at an epoch's end
        ("plateau", ("step", 6, "SIGKILL"), 6),
        ("plateau", ("epoch", 1, "SIGKILL"), 4),  # after an epoch's validation, before its save
        ("cosine", ("step", 3, "SIGKILL"), 2),  # at an epoch's end without validation
    ],
)
def test_killed(undisturbed: dict, tmp_path: Path, variant: str, fault: tuple, saved: int):
    stop_and_resume(tmp_path, undisturbed[variant], VARIANTS[variant], fault, -9, saved)


@pytest.mark.parametrize(
    ("variant", "fault", "saved"),
    [
        ("cosine", ("step", 7, "SIGTERM"), 8),
        ("plateau", ("step", 5, "SIGTERM"), 6),  # before the last batch of an epoch; its validation is interrupted
        ("plateau", ("val", 6, "SIGTERM"), 6),
        ("bf16", ("val", 6, "SIGTERM"), 6),
        ("cosine", ("late", 6, "SIGTERM"), 6),  # in the last batch of a validation
        ("plateau", ("step", 11, "SIGTERM"), 12),  # nothing is left but a validation
    ],
)
def test_terminated(undisturbed: dict, tmp_path: Path, variant: str, fault: tuple, saved: int):
    stop_and_resume(tmp_path, undisturbed[variant], VARIANTS[variant], fault, 75, saved)


@pytest.mark.parametrize(
    ("variant", "fault", "saved"),
    [
        ("cosine", ("step", 4, "error"), 4),
        ("cosine", ("step", 7, "interrupt"), 7),
        ("cosine", ("step", 7, "SIGINT"), 8),  # a real Ctrl-C waits for the end of the step
        ("plateau", ("val", 6, "SIGINT"), 6),
        ("plateau", ("val", 6, "error"), 6),
        ("plateau", ("late", 6, "interrupt"), 6),
    ],
)
def test_exception(undisturbed: dict, tmp_path: Path, variant: str, fault: tuple, saved: int):
    stop_and_resume(tmp_path, undisturbed[variant], VARIANTS[variant], fault, 1, saved)


def test_the_end_is_validated_though_the_last_epoch_was_stopped(tmp_path: Path):
    changes = {"epochs": 3}  # of which every second is validated
    assert runs.process(runs.run, runs.arrays(), tmp_path, changes, ("step", 8, "SIGKILL")) == -9
    assert runs.process(runs.run, runs.arrays(), tmp_path, changes) == 0
    assert [line["step"] for line in runs.lines(tmp_path / "validations.jsonl")] == [6, 9]


def test_stopped_three_times(undisturbed: dict, tmp_path: Path):
    for fault in (("step", 2, "SIGKILL"), ("val", 6, "SIGTERM"), ("step", 9, "error")):
        assert runs.process(runs.run, runs.arrays(), tmp_path, {}, fault) != 0
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}) == 0
    assert runs.differences(undisturbed["cosine"], tmp_path) == []


def test_a_checkpoint_made_in_validation_holds_the_average_as_the_average(undisturbed: dict, tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, ("late", 6, "error")) == 1
    stopped = torch.load(runs.newest_of(tmp_path), weights_only=True)
    whole = tmp_path / "whole"
    assert runs.process(runs.run, runs.arrays(), whole, {}, ("step", 6, "SIGKILL")) == -9
    saved = torch.load(runs.newest_of(whole), weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(stopped[key][name], saved[key][name]) for name in saved[key])
    pairs = [(saved["state_dict"][name], saved["current_model_state"][name]) for name in saved["state_dict"]]
    assert any(not torch.equal(average, raw) for average, raw in pairs)


def test_a_finished_run_does_nothing_and_returns_the_average(undisturbed: dict, tmp_path: Path):
    out = tmp_path / "run"
    assert runs.process(runs.run, runs.arrays(), out, {}) == 0
    path = newest(out)
    assert path is not None and path.name == "step=12.ckpt"
    before, written = path.stat().st_mtime_ns, runs.lines(out / "written.jsonl")
    (out / "batches.jsonl").unlink()
    (out / "returned.pt").unlink()
    assert runs.process(runs.run, runs.arrays(), out, {}) == 0
    assert runs.lines(out / "batches.jsonl") == [] and runs.lines(out / "written.jsonl") == written
    assert path.stat().st_mtime_ns == before
    returned = torch.load(out / "returned.pt", weights_only=True)
    average = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, average[f"denoiser.{name}"]) for name, value in returned.items())


def test_the_batches_after_a_resume_are_those_of_the_undisturbed_run(undisturbed: dict, tmp_path: Path):
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}, ("step", 7, "interrupt")) == 1
    assert runs.process(runs.run, runs.arrays(), tmp_path, {}) == 0
    assert last_by_step(tmp_path, "batches") == last_by_step(undisturbed["cosine"], "batches")
    assert list(last_by_step(tmp_path, "batches")) == list(range(12))


def test_both_starts_keep_their_metrics(tmp_path: Path):
    out, whole, options = tmp_path / "stopped", tmp_path / "whole", {"log_every_n_steps": 1}
    assert runs.process(runs.run, runs.arrays(), out, {}, ("step", 8, "SIGKILL"), options) == -9
    assert runs.process(runs.run, runs.arrays(), out, {}, None, options) == 0
    assert runs.process(runs.run, runs.arrays(), whole, {}, None, options) == 0
    assert len(list((out / "logs" / "csv").glob("start_*/metrics.csv"))) == 2
    assert list((out / "logs" / "tensorboard").glob("events*")) != [] or not find_spec("tensorboard")
    for name in ("train/total", "val/total"):
        curves = [{row["step"]: row[name] for row in read_curves(folder) if name in row} for folder in (out, whole)]
        assert curves[0] == curves[1]
        assert list(curves[0]) == (list(range(12)) if name == "train/total" else [5, 11])


@pytest.mark.skipif(not available(), reason="this torch has no oneDNN product")
def test_the_library_of_the_products_is_kept(tmp_path: Path):
    """The probe may answer differently in the second start; the run goes on with the first answer."""
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    assert runs.process(runs.run, runs.arrays(), whole, {}, onednn=True) == 0
    assert runs.process(runs.run, runs.arrays(), out, {}, ("step", 7, "SIGKILL"), onednn=True) == -9
    assert runs.process(runs.run, runs.arrays(), out, {}, onednn=False) == 0
    assert runs.differences(whole, out) == []
