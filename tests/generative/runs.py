"""Tiny trainings in processes of their own, with a fault at a known place.

Processes come from a fork server that has imported everything once: a process of pytest that has run a backward pass
cannot be forked for another one, and a fresh one spends ten seconds on imports.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative import callbacks, training
from generative.backbone.gemm import forced
from generative.models.diffcsp import DiffCSPConfig, build
from generative.training import Training, TrainSettings, fit

TINY = DiffCSPConfig(hidden=16, layers=1, frequencies=4, time_dim=16)
TRAIN, VAL = 26, 9  # three batches of 8 an epoch, validation batches of 8 and 1
Arrays = dict[str, np.ndarray]


@cache
def arrays() -> Arrays:
    """A handful of the prototypes of different sizes, sheared to be triclinic."""
    from chem.datasets import load

    batch = load("prototypes", "train").batch
    batch = batch.select(torch.linspace(0, len(batch) - 1, TRAIN + VAL).long())
    shear = torch.tensor([[1.0, 0.1, 0.05], [0, 1, 0.2], [0, 0, 1]], dtype=torch.float64)
    return {
        "num_atoms": batch["num_atoms"].numpy(),
        "atomic_numbers": batch["atomic_numbers"].numpy(),
        "frac_coords": batch["frac_coords"].float().numpy(),
        "lattice": (batch["lattice"] @ shear).float().numpy(),
    }


def crystals(data: Arrays) -> CrystalBatch:
    """The arrays as a batch."""
    fields = {name: torch.from_numpy(value) for name, value in data.items()}
    return CrystalBatch(fields.pop("num_atoms"), None, **fields)


def settings(**changes: Any) -> TrainSettings:
    """Twelve steps in four epochs, validated every second epoch, saved every second step."""
    values: dict[str, Any] = dict(epochs=4, batch_size=8, warmup=2, ema=0.9, val_every=2, save_every=2)
    return TrainSettings(**{**values, **changes})


def run(
    data: Arrays,
    out: Path,
    changes: Mapping[str, Any],
    fault: tuple | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    onednn: bool = False,
    console: bool | None = None,
) -> None:
    """One training; what `write` got is appended to out/written.jsonl, validations to out/validations.jsonl.

    onednn: what the probe of the fast products is made to say, which else depends on the load of the machine. console:
    where given, the output goes to out/printed.txt, and this is whether it passes for a console. The message of an
    error goes to out/error.txt.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    if console is not None:
        capture(out / "printed.txt", console)
    batch = crystals(data)
    first, rest = batch[:TRAIN], batch[TRAIN:]
    torch.manual_seed(0)
    changes = dict(changes)
    denoiser = build(replace(TINY, task=changes.pop("task", "csp")), Statistics.compute(first))
    record(out)
    if fault:
        inject(*fault)
    before = torch.random.get_rng_state()

    def write(weights: Mapping[str, torch.Tensor], info: Mapping[str, Any]) -> None:
        total = sum(float(w.double().sum()) for w in weights.values())
        append(out / "written.jsonl", {**info, "sum": total})

    try:
        with forced(onednn):
            trainer = fit(denoiser, first, rest, out, settings(**changes), write, **options)
    except Exception as error:
        (out / "error.txt").write_text(str(error))
        sys.exit(1)
    finally:
        assert torch.equal(torch.random.get_rng_state(), before)
    (out / "bar.txt").write_text(type(trainer.progress_bar_callback).__name__)
    torch.save(denoiser.state_dict(), out / "returned.pt")


def capture(path: Path, console: bool) -> None:
    """Send what this process prints, and its log, to a file."""
    file = open(path, "w")  # noqa: SIM115
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout.isatty = lambda: console  # type: ignore[method-assign]
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)


def record(out: Path) -> None:
    """Write down the structures of every batch, and val/total after every validation."""
    step, ended = Training.training_step, Training.on_validation_end

    def training_step(self: Training, batch: Any, batch_idx: int) -> Any:
        line = {"step": self.global_step, "rank": self.global_rank, "index": batch["index"].tolist()}
        append(out / "batches.jsonl", line)
        return step(self, batch, batch_idx)

    def on_validation_end(self: Training) -> None:
        if self.global_rank == 0:
            metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("val/")}
            append(out / "validations.jsonl", {"step": self.global_step, **metrics})
        ended(self)

    Training.training_step, Training.on_validation_end = training_step, on_validation_end  # type: ignore


def inject(place: str, when: int, what: str) -> None:
    """Let `what` begin in training step, validation or at the epoch's end number `when`.

    what: a signal, "error", "interrupt", a "full" disk, or death in "half" a save. "val" counts in steps done
    and strikes in the first of the two batches, "late" in the second.
    """

    def strike() -> None:
        if what == "error":
            raise RuntimeError("planted")
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
            return
        if what == "half":
            callbacks.torch.save = half_a_save  # type: ignore
            return
        os.kill(os.getpid(), getattr(signal, what))

    def before(method: Callable, condition: Callable[[Training, tuple], bool]) -> Callable:
        def wrapped(self: Training, *args: Any) -> Any:
            if condition(self, args):
                strike()
            return method(self, *args)

        return wrapped

    hook, condition = {
        "step": ("training_step", lambda self, args: self.global_step == when),
        "val": ("validation_step", lambda self, args: self.global_step == when and args[1] == 0),
        "late": ("validation_step", lambda self, args: self.global_step == when and args[1] == 1),
        "epoch": ("on_train_epoch_end", lambda self, args: self.current_epoch == when),
    }[place]
    setattr(Training, hook, before(getattr(Training, hook), condition))


def half_a_save(checkpoint: Any, file: Any) -> None:
    """Write some of it and die."""
    file.write(b"PK" * 1000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """One JSON line."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """All JSON lines of a file; none where it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def process(function: Callable, *args: Any, limit: float = 60, **options: Any) -> int:
    """Exit code of function(*args) in a process of its own; its output goes to the test's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, training.__name__])
    child = context.Process(target=partial(function, *args, **options))
    child.start()
    child.join(limit)
    if child.is_alive():
        child.kill()
        raise TimeoutError(f"{function.__name__} took longer than {limit} s")
    assert child.exitcode is not None
    return child.exitcode


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts and lists by its path."""
    if isinstance(value, Mapping):
        return {k: v for key, part in value.items() for k, v in leaves(part, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in leaves(part, f"{path}/{i}").items()}
    return {path: value}


def differences(first: Path, second: Path) -> list[str]:
    """Paths of the leaves in which the newest checkpoints of two runs differ, bit for bit.

    Left out: Lightning's count of validation batches begun in this epoch, which includes interrupted ones.
    """
    a, b = (leaves(torch.load(newest_of(out), weights_only=True)) for out in (first, second))
    same = lambda x, y: torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y or (x != x and y != y)  # noqa: E731
    keys = [k for k in sorted(a.keys() | b.keys()) if "val_loop.batch_progress/total" not in k]
    return [k for k in keys if k not in a or k not in b or not same(a[k], b[k])]


def newest_of(out: Path) -> Path:
    """The newest checkpoint of a run."""
    path = callbacks.newest(out)
    assert path is not None
    return path
