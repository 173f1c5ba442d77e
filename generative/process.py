"""The noise of one field.

Time runs from t = 0 (noise) to t = 1 (data). A process knows the noise on one field of a batch and nothing about
networks; the training target and the reverse step live in one class because they must agree. In every signature
R is the number of rows of the field, t and s are (B,) with t < s, and `rows` (chem.ragged.Rows) maps rows to
structures. Displacements go through `rows.move`, so that a row confined to a subspace stays in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chem.ragged import Rows
from generative.noise import Random


class Process(nn.Module, ABC):
    """Noise on one field: abstract, with hooks that have a default (`loss`, `readout`, `correct`, `inform`, `average`).

    shape: trailing shape of a row. clamps: rows given when sampling hold the data in the state itself; False where
    the state is not a noisy datum (the beliefs of a Bayesian flow), then only predictions are told of them (`inform`).
    reads_prediction: `readout` wants one more network call at t = 1. deterministic: `step` draws nothing and moves
    along the prediction, so that a second-order method may average predictions.
    """

    clamps: bool = True
    corrects: bool = False
    reads_prediction: bool = False
    deterministic: bool = False

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    @abstractmethod
    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        """A draw at t = 0 with the shape (R, *shape) of `like`, which also anchors restricted rows, and its dtype.

        Classes are int64 whatever `like` is: where nothing is known of the field it holds floating zeros.
        """

    @abstractmethod
    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        """Noisy rows x_t and the target a network is trained to predict from them."""

    @abstractmethod
    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        """A draw of x_s given x_t and a prediction made at t."""

    @abstractmethod
    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """The prediction of a network that knew the data x: the conformance suite and given rows use it."""

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """Loss of each row, (R,); by default the mean squared error over its entries."""
        return (rows.project(prediction) - target).square().flatten(1).mean(1)

    def correct(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows, generator: Random) -> Tensor:
        """A corrector at fixed t; called where `corrects` is True, with a prediction of its own."""
        return x_t

    def inform(self, prediction: Tensor, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """A prediction made at t, told what is given: in these rows of the data x it is the oracle's."""
        assert rows.given is not None
        given = rows.given.reshape(-1, *[1] * (prediction.dim() - 1))
        return torch.where(given, self.oracle(x, x_t, t, rows), prediction)

    def average(self, first: Tensor, second: Tensor, t: Tensor, s: Tensor, rows: Rows) -> Tensor:
        """What a second-order step from t to s takes for its prediction, of those made at t and, ahead, at s."""
        return (first + second) / 2

    def readout(self, x: Tensor, prediction: Tensor | None, rows: Rows) -> Tensor:
        """The sample, from the state at t = 1 and, where `reads_prediction` is True, a prediction made there."""
        return x


class Fixed(Process):
    """No noise: the field is given and stays as it is (composition in structure prediction, a frozen lattice)."""

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return like

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        return x, x

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return x_t

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return x
