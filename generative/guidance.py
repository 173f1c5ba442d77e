"""Conditions, and classifier-free guidance: wrappers around the network of any Denoiser (Ho and Salimans 2022).

A batch carries conditions as fields per structure in the unit of the data, NaN where a value is missing. `Conditional`
turns them into a shift of the initial state of every atom; a missing value shifts nothing, so that a structure without
conditions meets the bare network, and training hides conditions at random so that one network learns both. `Guided`
moves every prediction away from the one without conditions, with c and u the predictions with and without them:

    c + w (c - u) = (1 + w) c - w u

in the parameterisation of the process: noises, scores, velocities and clean samples as they are, coordinates of a torus
unwrapped (all predictions are counted from the same state), classes as logits, p_c^(1 + w) / p_u^w up to a factor, and
bins as mean and log deviation, which stays a deviation. w = 0 samples what the model thinks, given the conditions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from chem.ragged import RaggedBatch
from chem.statistics import PropertyStatistics, Statistics
from generative.generator import Denoiser, Network
from generative.noise import Random, uniform

DROPOUT = 0.1


@final
class Conditional(Network):
    """A network that also sees properties of the structure, z-scored by the statistics of their training set.

    hidden: width of the network's atoms, which read the field `condition` (layers.py). dropout: the share of structures
    whose conditions training hides all at once; where there are several, each alone, too, with the same probability.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network,
        hidden: int,
        properties: Mapping[str, PropertyStatistics],
        dropout: float = DROPOUT,
    ):
        super().__init__()
        self.network, self.names, self.dropout = network, tuple(properties), dropout
        self.embeddings = nn.ModuleList(_embedding(hidden) for _ in properties)
        for name in ("mean", "std"):
            values = torch.tensor([getattr(p, name) for p in properties.values()], dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    @property
    def products(self) -> torch.dtype | None:  # type: ignore[override]
        """That of the wrapped network."""
        return self.network.products

    @products.setter
    def products(self, dtype: torch.dtype | None) -> None:
        self.network.products = dtype

    def prepare(self, batch: Any) -> None:
        """Prepare the wrapped network."""
        self.network.prepare(batch)

    def hide(self, batch: Any, generator: Random) -> Any:
        """The batch with some conditions missing."""
        u = uniform(batch.structures, (1 + len(self.names),), self.mean.dtype, generator)
        all_of_them, alone = u[:, 0] < self.dropout, u[:, 1:] < self.dropout
        shown = {}
        for i, name in enumerate(self.names):
            if name in batch.fields:
                hidden = all_of_them | alone[:, i] if len(self.names) > 1 else all_of_them
                shown[name] = torch.where(hidden, math.nan, batch[name])
        return batch.replace(**shown)

    def forward(self, batch: Any, t: Tensor) -> dict[str, Tensor]:
        """Predictions by field name; those of the bare network, bit for bit, where no condition is there."""
        shift = self.condition(batch)
        return self.network(batch if shift is None else batch.attach("structure", condition=shift), t)

    def condition(self, batch: RaggedBatch) -> Tensor | None:
        """The shift (B, H) of the atoms of each structure: the sum over the conditions it has."""
        shift = None
        for i, (name, embedding) in enumerate(zip(self.names, self.embeddings, strict=True)):
            if name in batch.fields:
                z = ((batch[name] - self.mean[i]) / self.std[i]).unsqueeze(1)
                known = ~z.isnan()
                part = torch.where(known, embedding(torch.where(known, z, 0.0)), 0.0)
                shift = part if shift is None else shift + part
        return shift


def _embedding(hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, hidden)
    nn.init.zeros_(last.weight)  # a model that was trained without conditions starts as what it is
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(1, hidden), nn.SiLU(), last)


@final
class Guided(Network):
    """A conditional network whose predictions are moved away, by `weight`, from those without conditions."""

    passes = 2

    def __init__(self, network: Conditional, weight: float):
        super().__init__()
        self.network, self.weight = network, weight

    def prepare(self, batch: Any) -> None:
        """Prepare the wrapped network."""
        self.network.prepare(batch)

    def forward(self, batch: Any, t: Tensor) -> dict[str, Tensor]:
        """Predictions by field name."""
        without = self.network.network(batch, t)
        return {f: c + self.weight * (c - without[f]) for f, c in self.network(batch, t).items()}


def conditional(network: Network, hidden: int, names: Sequence[str], statistics: Statistics) -> Network:
    """The network with these properties as conditions, or itself for none; see `check_names` for what is refused."""
    if not names:
        return network
    check_names(names, statistics)
    return Conditional(network, hidden, {name: statistics.properties[name] for name in names})


def check_names(names: Sequence[str], statistics: Statistics, argument: str = "conditions") -> None:
    """ValueError naming the first that is no property of the training set, or has but one value there."""
    usable = [name for name, column in statistics.properties.items() if column.std > 0]
    for name in names:
        if name not in usable:
            allowed = ", ".join(usable) or "none; the training set has no numeric property with two values"
            raise ValueError(f"{argument} = '{name}', allowed: {allowed}")
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{argument} has '{repeated[0]}' twice, allowed: each property once")


def read_names(conditions: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of properties from "gap,mu" or a sequence."""
    if conditions is None:
        return None
    return tuple(name.strip() for name in conditions.split(",")) if isinstance(conditions, str) else tuple(conditions)


def read_values(
    conditions: Mapping[str, float] | Sequence[str] | None, guidance: float | None
) -> tuple[dict[str, float], float]:
    """What is asked for, from a mapping or ["gap=0.2", ...], and the weight w, 0 by default.

    Raises ValueError for text that is no NAME=NUMBER, for a value that is not finite and for a weight below 0 or alone.
    """
    values: dict[str, float] = {}
    texts = conditions.split(",") if isinstance(conditions, str) else conditions or ()
    given = conditions.items() if isinstance(conditions, Mapping) else [_pair(text) for text in texts]
    for name, value in given:
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"condition {name} = {value!r}, allowed: a number") from None
        if not math.isfinite(values[name]):
            raise ValueError(f"condition {name} = {value}, allowed: a finite number")
    if guidance is not None and not values:
        raise ValueError(f"guidance = {guidance}, allowed: with conditions")
    if guidance is not None and not (guidance >= 0 and math.isfinite(guidance)):
        raise ValueError(f"guidance = {guidance}, allowed: >= 0")
    return values, guidance or 0.0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise ValueError(f"condition = '{text}', allowed: NAME=NUMBER")
    return name.strip(), value


def conditions_of(denoiser: Denoiser) -> tuple[str, ...]:
    """Names of the properties a model can be asked for."""
    return denoiser.network.names if isinstance(denoiser.network, Conditional) else ()


def bare(denoiser: Denoiser) -> Denoiser:
    """The model without its conditions; shares parameters with it."""
    network = denoiser.network
    return denoiser.around(network.network) if isinstance(network, Conditional) else denoiser


def guided(denoiser: Denoiser, weight: float) -> Denoiser:
    """The model with guidance of this weight by the conditions that its templates carry; shares its parameters."""
    network = denoiser.network
    return denoiser.around(Guided(network, weight)) if weight and isinstance(network, Conditional) else denoiser


def under(denoiser: Denoiser, values: Mapping[str, float], weight: float, statistics: Statistics) -> Denoiser:
    """The model whose samples are asked for these values, with guidance of this weight; shares its parameters.

    Raises ValueError for a property it does not know. Warns, with the range, of a value that its training set lacks.
    """
    if not values:
        return bare(denoiser)
    if not (names := conditions_of(denoiser)):
        raise ValueError(f"conditions = {', '.join(values)}, allowed: none, the model was trained without conditions")
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"condition {name} = {value:g}, allowed: {', '.join(names)}")
        column = statistics.properties[name]
        if value < column.low or value > column.high:
            span = f"{column.low:.6g} to {column.high:.6g}"
            warnings.warn(f"condition {name} = {value:g}: the model was trained on {span}", stacklevel=3)

    def encode(batch: Any) -> Any:
        batch = denoiser.encode(batch)
        one = torch.ones(len(batch), dtype=denoiser.dtype, device=batch["num_atoms"].device)
        return batch.attach("structure", **{name: value * one for name, value in values.items()})

    def decode(batch: Any) -> Any:
        return denoiser.decode(batch.without(*values))

    made = guided(denoiser, weight)
    return made.around(made.network, encode, decode)


def adopt(
    model: Denoiser, start: Denoiser, transfer: Callable[[dict[str, Tensor], Denoiser], dict[str, Tensor]]
) -> None:
    """Load the weights of a trained model, fitted by `transfer`, and those of its conditions where both have some."""
    network = bare(model)
    network.load_state_dict(transfer(bare(start).state_dict(), network))
    if isinstance(model.network, Conditional) and isinstance(start.network, Conditional):
        model.network.embeddings.load_state_dict(start.network.embeddings.state_dict())
