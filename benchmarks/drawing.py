"""Samples for a card, drawn into a folder that an interrupted run continues.

Samples are numbered, and sample i is fixed by the weights, the plan, the sampler and i: a run that asks for more
extends the folder of one that asked for fewer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoints import LoadedModel
from chem.convert import to_structures
from chem.crystals import CrystalBatch
from chem.datasets import CrystalDataset
from chem.sample_folder import SampleFolder
from generative.controls import Controls
from generative.noise import UNIT, UnitStreams
from generative.processes.flow import Flow
from generative.templates import CrystalTemplates

# (first, size) -> template of these samples, atom counts padded to whole units, targets (None: there are none)
Plan = Callable[[int, int], tuple[CrystalBatch, Sequence[int], Sequence[str | None]]]


@dataclass(frozen=True)
class Sampler:
    """What fixes the samples of a model: predictor steps, correctors, dtype of the network's products, seed.

    order: 2 is Heun's method for flows. gain: slope of the coordinates' velocity of a flow; None is the model's, which
    results that are kept should name by its number (`slope_of`), since a default may change.
    """

    steps: int
    corrector: bool = True
    products: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    order: int = 1
    gain: float | None = None

    @property
    def label(self) -> str:
        """For the name of a folder."""
        switches = "-no-corrector" * (not self.corrector) + f"-order{self.order}" * (self.order != 1)
        switches += "" if self.gain is None else f"-gain{self.gain:g}"
        return f"{self.steps}steps-{self.products}{switches}-seed{self.seed}"


@dataclass(frozen=True)
class Drawn:
    """The samples asked for, and what drawing all `count` of the folder took: wall seconds on that many threads."""

    structures: list[Any]
    count: int
    seconds: float
    threads: int


def predictions(data: CrystalDataset, k: int) -> Plan:
    """k consecutive candidates for each crystal of a data set, from its composition alone."""
    sizes = data.batch["num_atoms"].tolist()
    bare = data.batch.without(*[f for f in data.batch.fields if f != "atomic_numbers"])

    def plan(first: int, size: int) -> tuple[CrystalBatch, Sequence[int], Sequence[str | None]]:
        rows = [i // k for i in range(first, first + size + -size % UNIT)]
        counts = [sizes[row] if row < len(sizes) else 1 for row in rows]  # whole units, so that n changes no sample
        return bare[rows[:size]], counts, [data.ids[row] for row in rows[:size]]

    return plan


def ab_initio(loaded: LoadedModel, seed: int) -> Plan:
    """Samples of a model that chooses the composition, with the cell sizes of its training set."""
    model: Any = loaded.model
    templates = CrystalTemplates(Controls(), model, loaded.statistics, seed)

    def plan(first: int, size: int) -> tuple[CrystalBatch, Sequence[int], Sequence[str | None]]:
        counts = templates.counts(first, size)
        return templates.template(counts[:size]), counts, [None] * size

    return plan


def slope_of(model: Any) -> float | None:
    """Slope of the gain of the coordinates' velocity; None for a model whose coordinates are no flow."""
    process = model.processes["frac_coords"]
    return process.gain.slope if isinstance(process, Flow) else None


@contextmanager
def sped_up(model: Any, slopes: Mapping[str, float]) -> Iterator[None]:
    """The model with other slopes of the velocities of these fields.

    Raises ValueError for a field whose process is no flow.
    """
    for field, slope in slopes.items():
        if not isinstance(process := model.processes[field], Flow):
            raise ValueError(f"gain = {slope:g}, allowed for {field} with a {type(process).__name__}: None")
    before = {field: model.processes[field].gain for field in slopes}
    for field, slope in slopes.items():
        model.processes[field].gain = replace(before[field], slope=slope)
    try:
        yield
    finally:
        for field, gain in before.items():
            model.processes[field].gain = gain


def draw(
    loaded: LoadedModel, plan: Plan, n: int, sampler: Sampler, out: Path, what: str, batch_size: int = 256
) -> Drawn:
    """The first n samples of a plan, those already in the folder `out` read back and the others drawn into it.

    what: names the plan; a folder of another plan, sampler or weights is refused. batch_size: a multiple of 16; what an
    interruption can lose. A line on stderr tells of each batch.
    """
    model: Any = loaded.model
    model.network.products = torch.bfloat16 if sampler.products == "bf16" else None
    folder = SampleFolder(out, {"weights_sha256": loaded.sha256, "what": what, **asdict(sampler)})
    with folder.kept(n), sped_up(model, {} if sampler.gain is None else {"frac_coords": sampler.gain}):
        while folder.count < n:
            done = folder.count
            first = done - done % UNIT
            size = min(batch_size, n - first)
            started = time.perf_counter()
            template, counts, targets = plan(first, size)
            streams = UnitStreams(sampler.seed, first, size, counts, model.device)
            template = template.to(model.device)
            state = model.sample(template, sampler.steps, streams, correct=sampler.corrector, order=sampler.order)
            made = to_structures(state.to("cpu"))
            seconds = time.perf_counter() - started
            for i, (structure, target) in enumerate(zip(made, targets, strict=True)):
                structure.properties = {"index": first + i} | ({} if target is None else {"target": target})
            folder.append(made[done - first :])
            spent = folder.manifest.get("seconds", 0.0) + seconds
            folder.note(n=folder.count, seconds=spent, threads=torch.get_num_threads())
            print(f"{out.name}: {folder.count} of {n} samples, {spent:.0f} s", file=sys.stderr, flush=True)
    took = folder.manifest
    return Drawn(folder.samples(n), folder.count, took.get("seconds", 0.0), took.get("threads", 0))
