"""Samples of a trained model by their numbers: what a worker of a campaign draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from checkpoints import store

if TYPE_CHECKING:
    from chem.crystals import CrystalBatch

CONTROLS = (
    "formula", "z", "num_atoms", "elements", "chemical_system", "forbid", "lattice", "volume", "fixed", "init", "noise",
)  # fmt: skip


@dataclass(frozen=True)
class Draws:
    """A picklable factory of draw(start, stop), a batch of the samples that `atomsmith.sample` gives these numbers.

    model: name or folder of a checkpoint. The others: as in `atomsmith.sample`, controls by their names.
    Raises ValueError, when called, for what the model cannot make.
    """

    model: str
    controls: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, float] = field(default_factory=dict)
    guidance: float = 0.0
    steps: int | None = None
    seed: int = 0
    device: str = "auto"

    def __call__(self) -> Callable[[int, int], CrystalBatch]:
        return self.prepare()[0]

    def prepare(self) -> tuple[Callable[[int, int], CrystalBatch], dict[str, Any]]:
        """The function, and what decides the samples, as plain data."""
        from generative import sampling
        from generative.controls import Controls
        from generative.guidance import under
        from generative.molecule_templates import makes_molecules, templates_for

        loaded = store.load(self.model, self.device)
        trained: Any = loaded.model
        denoiser = under(trained, dict(self.conditions), self.guidance, loaded.statistics)
        if makes_molecules(denoiser):
            raise ValueError(f"model = '{self.model}' makes molecules, allowed: a model of crystals")
        asked: dict[str, Any] = {name: None for name in CONTROLS} | {"z": 1, **self.controls}
        controls = Controls.read(**asked, molecules=False)
        templates = templates_for(controls, denoiser, loaded.statistics, self.seed)
        steps = denoiser.steps if self.steps is None else self.steps
        denoiser.times.grid(steps)
        size = sampling.batch_size_for(denoiser)

        def draw(start: int, stop: int) -> CrystalBatch:
            from chem.ragged import concatenate

            found = sampling.sample_batches(denoiser, templates, stop, start, size, steps, self.seed)
            return concatenate([batch[max(start - first, 0) :] for first, batch in found])

        origin = {"model": loaded.name, "weights_sha256": loaded.sha256, "seed": self.seed, "steps": steps}
        wishes = {"conditions": dict(self.conditions), "guidance": self.guidance} if self.conditions else {}
        return draw, {**origin, **wishes, **controls.plain()}
