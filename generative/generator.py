"""Generators, and the one loop that denoises.

A `Denoiser` is a network, a process for each noisy field, and the grid of times. What is given to it comes in the
template: fields with a `Fixed` process, and rows of any other field marked by a companion `<field>_given`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from chem.ragged import RaggedBatch
from generative.noise import Random, uniform
from generative.process import Fixed, Process


class Network(nn.Module, ABC):
    """One call maps a noisy batch and times t (B,) to a prediction for each noisy field; knows no schedule.

    products: dtype of the large matrix products where the network offers a choice; None is that of its weights.
    """

    products: torch.dtype | None = None

    @abstractmethod
    def forward(self, batch: Any, t: Tensor) -> dict[str, Tensor]:
        """Predictions by field name."""

    def prepare(self, batch: Any) -> None:  # noqa: B027
        """Build what depends on the atom counts alone; called once before a sampling loop, where it may sync."""


class Generator(nn.Module, ABC):
    """Anything that can be trained on batches and sampled from."""

    @abstractmethod
    def loss(self, batch: Any, generator: Random = None) -> dict[str, Tensor]:
        """Mean loss of each part and their weighted sum under "total"."""

    @abstractmethod
    def sample(self, template: Any, steps: int | None = None, generator: Random = None) -> Any:
        """A batch of samples for a template that carries what is given."""


@dataclass(frozen=True)
class Times:
    """The times a process is trained at: all of [0, 1), or 0, 1/T, ..., 1 - 1/T where resolution = T."""

    resolution: int | None = None

    def draw(self, u: Tensor) -> Tensor:
        """Times from numbers u (B,) uniform in [0, 1)."""
        return u if self.resolution is None else (u * self.resolution).floor() / self.resolution

    def grid(self, steps: int) -> Tensor:
        """steps + 1 increasing times from 0 to 1, float64 on the CPU; a sub-grid where the resolution is finite.

        Raises ValueError for fewer than one step or more steps than the resolution.
        """
        if steps < 1 or (self.resolution is not None and steps > self.resolution):
            allowed = f"1..{self.resolution}" if self.resolution else ">= 1"
            raise ValueError(f"steps = {steps}, allowed: {allowed}")
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return grid if self.resolution is None else (grid * self.resolution).round() / self.resolution


def identity(batch: Any) -> Any:
    """The batch itself."""
    return batch


@final
class Denoiser(Generator):
    """Network + processes + the only time loop of the package.

    processes: field name -> Process; fields without one are carried along unseen. weights: loss weight by field
    (default 1). steps: default number of predictor steps. encode, decode: between data batches and the fields the
    processes see (elements as noisy vectors, lattices as parameters).
    """

    network: Network
    processes: Mapping[str, Process]
    _like: Tensor

    def __init__(
        self,
        network: Network,
        processes: Mapping[str, Process],
        times: Times,
        steps: int,
        weights: Mapping[str, float] | None = None,
        encode: Callable[[Any], Any] = identity,
        decode: Callable[[Any], Any] = identity,
    ):
        super().__init__()
        self.network = network
        self.processes = nn.ModuleDict(processes)  # type: ignore[assignment]
        self.times, self.steps = times, steps
        self.weights = {name: (weights or {}).get(name, 1.0) for name in self.noisy}
        self.encode, self.decode = encode, decode
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    @property
    def noisy(self) -> dict[str, Process]:
        """The processes that are not `Fixed`."""
        return {name: p for name, p in self.processes.items() if not isinstance(p, Fixed)}

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the state; follows `.to()`."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives; follows `.to()`."""
        return self._like.device

    def network_calls(self, steps: int | None = None, correct: bool = True) -> int:
        """Network calls of one sampling run: one a step, two where a corrector runs, one more for a readout."""
        processes = self.noisy.values()
        per_step = 1 + (correct and any(p.corrects for p in processes))
        return per_step * (self.steps if steps is None else steps) + any(p.reads_prediction for p in processes)

    def losses(self, batch: RaggedBatch, t: Tensor, generator: Random = None) -> dict[str, Tensor]:
        """Loss of each row of each noisy field, (R,), at times t (B,); unweighted."""
        clean = self.encode(batch.to(self.dtype))
        pairs = {f: p.corrupt(clean[f], t, clean.rows(f), generator) for f, p in self.noisy.items()}
        prediction = self.network(clean.replace(**{f: x_t for f, (x_t, _) in pairs.items()}), t)
        return {f: p.loss(prediction[f], pairs[f][1], t, clean.rows(f)) for f, p in self.noisy.items()}

    def loss(self, batch: RaggedBatch, generator: Random = None, t: Tensor | None = None) -> dict[str, Tensor]:
        """Mean over rows of each field's loss, and their weighted sum "total"; t is drawn where it is not given."""
        if t is None:
            t = self.times.draw(uniform(batch.structures, (), self.dtype, generator))
        parts = {f: rows.mean() for f, rows in self.losses(batch, t, generator).items()}
        parts["total"] = torch.stack([self.weights[f] * value for f, value in parts.items()]).sum()
        return parts

    def _start(self, template: RaggedBatch, generator: Random) -> tuple[RaggedBatch, dict[str, Tensor]]:
        """State at t = 0, and the clean values of the fields that have given rows."""
        template = self.encode(template.to(self.dtype))
        start, clean = {}, {}
        for field, process in self.processes.items():
            given, value = template.fields.get(f"{field}_given"), template.fields.get(field)
            if value is None and (given is not None or isinstance(process, Fixed)):
                raise ValueError(f"the template must carry field '{field}', which this model does not generate")
            rows = template.rows(field)
            if value is None:
                value = self._like.new_zeros(len(rows.index), *process.shape)
            elif isinstance(process, Fixed):
                continue
            if given is not None:
                clean[field] = value
            start[field] = process.prior(value, rows, generator)
        state = template.replace(**start)
        return state.replace(**{f: self._clamp(f, x, state, clean) for f, x in start.items()}), clean

    def _clamp(self, field: str, x: Tensor, state: RaggedBatch, clean: Mapping[str, Tensor]) -> Tensor:
        """Put the known values back into the given rows."""
        if field not in clean or not self.processes[field].clamps:
            return x
        given = state[f"{field}_given"].reshape(-1, *[1] * (x.dim() - 1))
        return torch.where(given, clean[field].to(x.dtype), x)

    def _predict(self, state: RaggedBatch, t: Tensor, clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's predictions, replaced by the oracle's in given rows."""
        prediction = dict(self.network(state, t))
        for field, known in clean.items():
            truth = self.processes[field].oracle(known, state[field], t, state.rows(field))
            given = state[f"{field}_given"].reshape(-1, *[1] * (truth.dim() - 1))
            prediction[field] = torch.where(given, truth, prediction[field])
        return prediction

    @torch.no_grad()
    def trajectory(
        self, template: RaggedBatch, steps: int | None = None, generator: Random = None, correct: bool = True
    ) -> Iterator[RaggedBatch]:
        """The steps + 1 states from t = 0 to the readout at t = 1; the caller keeps what it wants.

        template: num_atoms and the given fields. correct: run the correctors of the processes that have one.
        """
        grid = self.times.grid(self.steps if steps is None else steps).to(self.device, self.dtype)
        grid = grid.unsqueeze(1).expand(-1, template.num_structures)
        state, clean = self._start(template, generator)
        noisy = self.noisy
        correctors = {f: p for f, p in noisy.items() if correct and p.corrects}
        self.network.prepare(state)
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            yield state
            for stage in (correctors, noisy) if correctors else (noisy,):
                prediction = self._predict(state, t, clean)
                moved = {}
                for f, p in stage.items():
                    args = (state[f], prediction[f], t)
                    rows = state.rows(f)
                    x = p.correct(*args, rows, generator) if stage is correctors else p.step(*args, s, rows, generator)
                    moved[f] = self._clamp(f, x, state, clean)
                state = state.replace(**moved)
        last = self._predict(state, grid[-1], clean) if any(p.reads_prediction for p in noisy.values()) else {}
        yield state.replace(**{f: p.readout(state[f], last.get(f), state.rows(f)) for f, p in noisy.items()})

    @torch.no_grad()
    def sample(
        self, template: RaggedBatch, steps: int | None = None, generator: Random = None, correct: bool = True
    ) -> RaggedBatch:
        """The last state of `trajectory`, decoded."""
        for state in self.trajectory(template, steps, generator, correct):  # noqa: B007
            pass
        return self.decode(state)
