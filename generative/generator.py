"""Generators, and the one loop that denoises.

A `Denoiser` is a network, a process for each noisy field, and the grid of times. What is given to it comes in the
template: fields with a `Fixed` process, and rows of any other field marked by a companion `<field>_given`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from chem.ragged import RaggedBatch
from generative.noise import Random, uniform
from generative.process import Fixed, Process
from generative.times import Times


class Network(nn.Module, ABC):
    """One call maps a noisy batch and times t (B,) to a prediction for each noisy field; knows no schedule.

    products: dtype of the large matrix products where the network offers a choice; None is that of its weights.
    passes: how many times one call runs through the layers.
    """

    products: torch.dtype | None = None
    passes: int = 1

    @abstractmethod
    def forward(self, batch: Any, t: Tensor) -> dict[str, Tensor]:
        """Predictions by field name."""

    def prepare(self, batch: Any) -> None:  # noqa: B027
        """Build what depends on the atom counts alone; called once before a sampling loop, where it may sync."""

    def hide(self, batch: Any, generator: Random) -> Any:
        """What of a clean batch a training step may see: all of it, but where conditions are hidden at random."""
        return batch


class Generator(nn.Module, ABC):
    """Anything that can be trained on batches and sampled from."""

    @abstractmethod
    def loss(self, batch: Any, generator: Random = None) -> dict[str, Tensor]:
        """Mean loss of each part and their weighted sum under "total"."""

    @abstractmethod
    def sample(self, template: Any, steps: int | None = None, generator: Random = None) -> Any:
        """A batch of samples for a template that carries what is given."""


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

    def network_calls(self, steps: int | None = None, correct: bool = True, order: int = 1) -> int:
        """Network calls of one sampling run of `trajectory`: one a step, one more a step where a corrector runs, one
        more for each step but the last where a second-order method has something to do, one more for a readout."""
        processes = self.noisy.values()
        second = order == 2 and any(p.deterministic for p in processes)
        per_step = 1 + (correct and any(p.corrects for p in processes)) + second
        readout = any(p.reads_prediction for p in processes)
        calls = per_step * (self.steps if steps is None else steps) - second + readout
        return calls * self.network.passes

    def around(
        self,
        network: Network,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> Denoiser:
        """A denoiser of the same processes around another network; other encode and decode where they are given."""
        parts = (self.processes, self.times, self.steps, self.weights)
        made = Denoiser(network, *parts, encode or self.encode, decode or self.decode)
        made._like = self._like  # not .to(): processes keep what they hold in float64
        return made.train(self.training)

    def losses(self, batch: RaggedBatch, t: Tensor, generator: Random = None) -> dict[str, Tensor]:
        """Loss of each row of each noisy field, (R,), at times t (B,); unweighted."""
        clean = self.encode(batch.to(self.dtype))
        if self.training:
            clean = self.network.hide(clean, generator)
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

    def _start(
        self, template: RaggedBatch, generator: Random, t: Tensor | None
    ) -> tuple[RaggedBatch, dict[str, Tensor]]:
        """State at t = 0, or the template noised to t (B,), and the clean values of the fields that have given rows."""
        template = self.encode(template.to(self.dtype))
        start, clean = {}, {}
        for field, process in self.processes.items():
            given, value = template.fields.get(f"{field}_given"), template.fields.get(field)
            if value is None and (given is not None or t is not None or isinstance(process, Fixed)):
                raise ValueError(f"the template must carry field '{field}', which this model does not generate")
            rows = template.rows(field)
            if value is None:
                value = self._like.new_zeros(len(rows.index), *process.shape)
            elif isinstance(process, Fixed):
                continue
            if given is not None:
                clean[field] = value
            if t is None:
                start[field] = process.prior(value, rows, generator)
            else:
                start[field] = process.corrupt(value, t, rows, generator)[0]
        state = template.replace(**start)
        return state.replace(**{f: self._clamp(f, x, state, clean) for f, x in start.items()}), clean

    def _clamp(self, field: str, x: Tensor, state: RaggedBatch, clean: Mapping[str, Tensor]) -> Tensor:
        """Put the known values back into the given rows of a state that is a noisy datum."""
        return self._restore(field, x, state, clean) if self.processes[field].clamps else x

    def _restore(self, field: str, x: Tensor, state: RaggedBatch, clean: Mapping[str, Tensor]) -> Tensor:
        """Put the known values into the given rows."""
        if field not in clean:
            return x
        given = state[f"{field}_given"].reshape(-1, *[1] * (x.dim() - 1))
        return torch.where(given, clean[field].to(x.dtype), x)

    def _predict(self, state: RaggedBatch, t: Tensor, clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's predictions, told of the given rows where the state is not the datum itself."""
        prediction = dict(self.network(state, t))
        for field, known in clean.items():
            process = self.processes[field]
            if not process.clamps:  # else its rows will be put back, and a flow reads its frame off them
                prediction[field] = process.inform(prediction[field], known, state[field], t, state.rows(field))
        return prediction

    def _moved(
        self,
        stage: Mapping[str, Process],
        state: RaggedBatch,
        prediction: Mapping[str, Tensor],
        t: Tensor,
        s: Tensor | None,
        clean: Mapping[str, Tensor],
        generator: Random,
    ) -> dict[str, Tensor]:
        """The fields of `stage` after a step from t to s, or, without s, after a corrector at t."""
        moved = {}
        for f, p in stage.items():
            args, rows = (state[f], prediction[f], t), state.rows(f)
            x = p.correct(*args, rows, generator) if s is None else p.step(*args, s, rows, generator)
            moved[f] = self._clamp(f, x, state, clean)
        return moved

    @torch.no_grad()
    def trajectory(
        self,
        template: RaggedBatch,
        steps: int | None = None,
        generator: Random = None,
        correct: bool = True,
        start: float | None = None,
        order: int = 1,
    ) -> Iterator[RaggedBatch]:
        """The steps + 1 states from t = 0 to the readout at t = 1; the caller keeps what it wants.

        template: num_atoms and the given fields. correct: run the correctors of the processes that have one. start:
        a time; then the template carries every field, is noised to that time, and takes the steps that are left.
        order: 2 is Heun's method for deterministic processes: the step is made with the mean of the predictions at
        both of its ends. The last step has one, since no network is trained at t = 1. Others take first-order steps.
        """
        if order not in (1, 2):
            raise ValueError(f"order = {order}, allowed: 1, 2")
        grid = self.times.grid(self.steps if steps is None else steps, start or 0.0).to(self.device, self.dtype)
        grid = grid.unsqueeze(1).expand(-1, template.num_structures)
        state, clean = self._start(template, generator, None if start is None else grid[0])
        noisy = self.noisy
        correctors = {f: p for f, p in noisy.items() if correct and p.corrects}
        self.network.prepare(state)
        averaged = {f: p for f, p in noisy.items() if order == 2 and p.deterministic}
        for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True), 1):
            yield state
            if correctors:
                prediction = self._predict(state, t, clean)
                state = state.replace(**self._moved(correctors, state, prediction, t, None, clean, generator))
            prediction = self._predict(state, t, clean)
            ahead = state.replace(**self._moved(noisy, state, prediction, t, s, clean, generator))
            if averaged and i < len(grid) - 1:
                later = self._predict(ahead, s, clean)
                pairs = {f: (prediction[f], later[f]) for f in averaged}
                mean = {f: p.average(*pairs[f], t, s, state.rows(f)) for f, p in averaged.items()}
                ahead = ahead.replace(**self._moved(averaged, state, mean, t, s, clean, generator))
            state = ahead
        last = self._predict(state, grid[-1], clean) if any(p.reads_prediction for p in noisy.values()) else {}
        final = {f: p.readout(state[f], last.get(f), state.rows(f)) for f, p in noisy.items()}
        yield state.replace(**{f: self._restore(f, x, state, clean) for f, x in final.items()})

    @torch.no_grad()
    def sample(
        self,
        template: RaggedBatch,
        steps: int | None = None,
        generator: Random = None,
        correct: bool = True,
        order: int = 1,
    ) -> RaggedBatch:
        """The last state of `trajectory`, decoded."""
        for state in self.trajectory(template, steps, generator, correct, order=order):  # noqa: B007
            pass
        return self.decode(state)
