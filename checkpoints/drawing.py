"""Samples of a trained model by their numbers: what `atomsmith.sample` and the workers of a campaign draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from checkpoints import store

if TYPE_CHECKING:
    from chem.crystals import CrystalBatch
    from generative.controls import Controls
    from generative.generator import Denoiser
    from generative.template_base import Templates

CONTROLS = (
    "formula", "z", "num_atoms", "elements", "chemical_system", "forbid", "lattice", "volume", "fixed", "init", "noise",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A model and what it is asked for, read and checked; `origin` and the controls decide what sample i is."""

    denoiser: Denoiser
    templates: Templates
    controls: Controls
    molecules: bool
    steps: int
    seed: int
    batch_size: int
    origin: dict[str, Any]

    @classmethod
    def of(
        cls,
        loaded: store.LoadedModel,
        controls: Mapping[str, Any],
        conditions: Mapping[str, float],
        guidance: float = 0.0,
        steps: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Drawing:
        """Arguments as those of `atomsmith.sample`; ValueError for what the model cannot make."""
        from generative import sampling
        from generative.controls import Controls
        from generative.guidance import under
        from generative.molecule_templates import makes_molecules, templates_for

        if loaded.kind == "regressor":
            raise ValueError(f"model = '{loaded.name}' is a regressor, allowed: a generator")
        trained: Any = loaded.model
        denoiser = under(trained, dict(conditions), guidance, loaded.statistics)
        steps = denoiser.steps if steps is None else steps
        denoiser.times.grid(steps)
        molecules = makes_molecules(denoiser)
        read = Controls.read(**controls, molecules=molecules)
        templates = templates_for(read, denoiser, loaded.statistics, seed)
        origin = {"model": loaded.name, "weights_sha256": loaded.sha256, "seed": seed, "steps": steps}
        if conditions:
            origin |= {"conditions": dict(conditions), "guidance": guidance}
        size = sampling.batch_size_for(denoiser) if batch_size is None else batch_size
        return cls(denoiser, templates, read, molecules, steps, seed, size, origin)

    @property
    def request(self) -> dict[str, Any]:
        """What decides the samples, as plain data."""
        return {**self.origin, **self.controls.plain()}

    @property
    def taken(self) -> int:
        """Steps that a sample takes; fewer than `steps` where it starts from a structure."""
        return len(self.denoiser.times.grid(self.steps, self.templates.start or 0.0)) - 1

    def batches(
        self, n: int, start: int = 0, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(number of the first of them, samples) until samples `start` .. n - 1 are there; the first may be earlier."""
        from generative.sampling import sample_batches

        rest = (self.batch_size, self.steps, self.seed, on_step)
        return sample_batches(self.denoiser, self.templates, n, start, *rest)


@dataclass(frozen=True)
class Draws:
    """A picklable factory of draw(start, stop), a batch of the crystals that `atomsmith.sample` gives these numbers.

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

    def prepare(self) -> Drawing:
        loaded = store.load(self.model, self.device)
        drawing = Drawing.of(loaded, self.controls, self.conditions, self.guidance, self.steps, self.seed)
        if drawing.molecules:
            raise ValueError(f"model = '{self.model}' makes molecules, allowed: a model of crystals")
        return drawing

    def __call__(self) -> Callable[[int, int], CrystalBatch]:
        drawing = self.prepare()

        def draw(start: int, stop: int) -> Any:
            from chem.ragged import concatenate

            return concatenate([batch[max(start - first, 0) :] for first, batch in drawing.batches(stop, start)])

        return draw
