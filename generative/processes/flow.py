"""Conditional flow matching, velocity prediction, continuous time, on Euclidean space and on the flat torus.

    x_t = exp_{x_0}(t log_{x_0}(x_1)),   u_t = log_{x_0}(x_1),   x_0 from the base, x_1 data

(Lipman et al. 2023; Chen and Lipman 2024; on crystals FlowMM, Miller et al. 2024.) The step follows the predicted
velocity v, sped up by the gain of the field (anti-annealing), but never past the data the prediction implies:

    x_s = exp_{x_t}(min(g(t) (s - t) / (1 - t), 1) (1 - t) v),   g(t) = 1 + slope max(t - offset, 0)

A common translation of the atoms of a crystal is a symmetry, so velocities on the torus lose their mean over each
structure, predicted ones too; points do not, and the path is the shortest one of every row (`TorusFlow`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chem.periodic import torus_log, wrap
from chem.ragged import Rows
from generative.noise import Random
from generative.process import Process
from generative.processes.assignment import assign_to
from generative.processes.bases import EuclideanBase, NormalBase, TorusBase, UniformBase

COORDS_SCALE = math.sqrt(1 / 12)  # of the shortest way between two uniform points of the torus, per coordinate


@dataclass(frozen=True)
class Gain:
    """Anti-annealing g(t) = 1 + slope max(t - offset, 0) of a velocity when sampling; slope 0 is the flow itself."""

    slope: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.slope < math.inf and 0 <= self.offset <= 1):
            raise ValueError(f"{self}, allowed: slope >= 0, offset in [0, 1]")

    def __call__(self, t: Tensor) -> Tensor:
        """g at the times t."""
        return 1 + self.slope * (t - self.offset).clamp(min=0)


class Flow(Process):
    """Flow matching on a flat space; abstract, the space is that of its two final classes.

    scale: number or tensor (broadcastable to a row) in whose units the squared error of the velocity is measured: the
    standard deviation of the target. gain: may be set anew before sampling.
    """

    deterministic = True
    scale: Tensor

    def __init__(self, shape: Sequence[int], scale: Tensor | float, gain: Gain):
        super().__init__(shape)
        self.gain = gain
        scale = torch.as_tensor(scale, dtype=torch.float64)
        if not bool((scale > 0).all()):
            raise ValueError(f"scale = {scale.tolist()}, allowed: > 0")
        self.register_buffer("scale", scale, persistent=False)

    @abstractmethod
    def velocity(self, prediction: Tensor, rows: Rows) -> Tensor:
        """The part of a velocity (R, *shape) that moves rows."""

    @abstractmethod
    def log_base(self, x: Tensor, rows: Rows) -> Tensor:
        """log density (B,) of the base at x, in nats."""

    @abstractmethod
    def draw_for(self, x: Tensor, rows: Rows, generator: Random) -> Tensor:
        """The start x_0 of the path to the data x."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The way from x to y."""

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the way v from x ends."""

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        path = rows.project(self.log(self.draw_for(x, rows, generator), x))
        return self.exp(x, -rows.spread(1 - t, x) * path), self.velocity(path, rows)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return self.velocity(self.log(x_t, x) / rows.spread(1 - t, x), rows)

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return self.exp(x_t, rows.spread(self._reach(t, s - t), x_t) * self.velocity(prediction, rows))

    def average(self, first: Tensor, second: Tensor, t: Tensor, s: Tensor, rows: Rows) -> Tensor:
        # each velocity counts with the gain of its own time, and `step` multiplies both by that of t
        share = self._reach(s, s - t) / self._reach(t, s - t)
        return (first + rows.spread(share, first) * second) / 2

    def _reach(self, t: Tensor, duration: Tensor) -> Tensor:
        """How far a velocity at t carries in a step of this duration; not beyond the data."""
        return (self.gain(t) * duration / (1 - t)).clamp(max=1) * (1 - t)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        error = (self.velocity(prediction, rows) - target) / self.scale.to(prediction.dtype)
        return error.square().flatten(1).mean(1)


class EuclideanFlow(Flow):
    """Straight paths from `base`: lattice parameters, log-strain vectors, matrices, analog bits (bits.py)."""

    def __init__(
        self,
        shape: Sequence[int],
        base: EuclideanBase | None = None,
        scale: Tensor | float = 1.0,
        gain: Gain = Gain(),
    ):
        super().__init__(shape, scale, gain)
        self.base = base or NormalBase()

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return rows.move(like, self.base.draw(like, rows, generator))

    def draw_for(self, x: Tensor, rows: Rows, generator: Random) -> Tensor:
        return self.prior(x, rows, generator)

    def velocity(self, prediction: Tensor, rows: Rows) -> Tensor:
        return rows.project(prediction)

    def log_base(self, x: Tensor, rows: Rows) -> Tensor:
        return self.base.log_prob(x, rows)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v


class TorusFlow(Flow):
    """Geodesics on [0, 1)^D from `base`: fractional coordinates.

    mean_free: velocities lose their mean over each structure. Where rows of it are given, they lose the mean of these
    instead (`Rows.anchor`): the network knows no origin, so its velocities count from the atoms that stay. Rows with a
    subspace, whose origin is the site symmetry's, keep theirs. assign: base draws are exchanged among rows with equal
    labels (and, with mean_free, shifted together) so that paths become short; on the CPU, structure by structure.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3,),
        base: TorusBase | None = None,
        scale: Tensor | float = COORDS_SCALE,
        gain: Gain = Gain(),
        mean_free: bool = True,
        assign: bool = False,
    ):
        super().__init__(shape, scale, gain)
        self.base = base or UniformBase()
        self.mean_free, self.assign = mean_free, assign

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return wrap(rows.move(like, self.base.draw(like, rows, generator)))

    def draw_for(self, x: Tensor, rows: Rows, generator: Random) -> Tensor:
        start = self.prior(x, rows, generator)
        return assign_to(x, start, rows, shift=self.mean_free) if self.assign else start

    def velocity(self, prediction: Tensor, rows: Rows) -> Tensor:
        if rows.subspace is not None:
            return rows.project(prediction)
        return rows.anchor(prediction) if self.mean_free else prediction

    def log_base(self, x: Tensor, rows: Rows) -> Tensor:
        return self.base.log_prob_of_shape(x, rows) if self.mean_free else self.base.log_prob(x, rows)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return torus_log(x, y)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return wrap(x + v)


def slopes_of(processes: Mapping[str, Process]) -> dict[str, float]:
    """Slope of the gain of every flow among processes, by field: what is sampled depends on it."""
    return {field: process.gain.slope for field, process in processes.items() if isinstance(process, Flow)}
