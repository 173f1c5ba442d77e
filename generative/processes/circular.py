"""Bayesian flow of periodic data: von Mises beliefs with realised concentration (Wu et al., ICLR 2025, CrysBFN).

Fractional coordinates f are angles x = 2 pi f. A belief of mean m and concentration c is the vector c (cos m, sin m),
to which a message y ~ vM(x, alpha) adds alpha (cos y, sin y): Bayes' rule for a von Mises sender. Accuracies do not
add, so c is random given t, and a network must read it from the state (`read_belief`). The accuracies
alpha_1..alpha_T make the expected entropy of simulated beliefs fall linearly from ln 2 pi to that of vM(beta_1).

A step from time i / T to j / T adds messages i + 1..j, so that any sub-grid of T samples one model. The first 32
messages are drawn one by one, the sum of later ones as a normal vector of the same mean and covariance: the sum of all
T, which the published code draws in every training step, costs 1000 von Mises numbers a coordinate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from chem.periodic import torus_log, wrap
from chem.ragged import Rows
from generative.noise import Random, normal, uniform
from generative.processes.bayesian import BayesianFlow, refuse_subspace

EXACT = 32
UNSURE = 0.3  # added to a concentration by `deviation`, so that one of zero has that of a uniform angle
FAINTEST = 1e-7  # concentration at t = 0, in a random direction: a mean that is no mean must not be the same for all
NORMAL_RANGE, KNOTS = 6.0, 1025  # of the table of quantiles


def mean_cosine(concentration: Tensor) -> Tensor:
    """A(c) = I_1(c) / I_0(c), the mean of cos(y - m) under vM(m, c)."""
    return torch.special.i1e(concentration) / torch.special.i0e(concentration)


def entropy(concentration: Tensor) -> Tensor:
    """Entropy of a von Mises distribution, in nats: ln 2 pi at c = 0."""
    log_i0 = torch.special.i0e(concentration).log() + concentration
    return math.log(2 * math.pi) + log_i0 - concentration * mean_cosine(concentration)


def read_belief(state: Tensor) -> tuple[Tensor, Tensor]:
    """Mean in [0, 1) and concentration, each (R, D), of beliefs (R, D, 2): what a network reads."""
    return wrap(torch.atan2(state[..., 1], state[..., 0]) / (2 * math.pi)), torch.linalg.vector_norm(state, dim=-1)


def sureness(concentration: Tensor, beta: float) -> Tensor:
    """Concentrations on a logarithmic scale, 0 where nothing is known and about 1 at the last of mean beta."""
    faintest = math.log(FAINTEST)
    return ((concentration + FAINTEST).log() - faintest) / (math.log(beta) - faintest)


def deviation(concentration: Tensor) -> Tensor:
    """About the standard deviation of a coordinate in [0, 1) under a belief of this concentration."""
    return 1 / (2 * math.pi * (concentration + UNSURE).sqrt())


def von_mises_angles(concentration: float, z: np.ndarray, points: int = 4096) -> np.ndarray:
    """Angles distributed as vM(0, c) from standard normal numbers z, by equal quantiles; odd and increasing in z.

    The grid is twice 12 deviations of the angle, at most the circle, so that it resolves any concentration.
    """
    from scipy.special import ndtr

    reach = min(math.pi, 12 / math.sqrt(max(concentration, 1e-9)))
    angle = np.linspace(0, reach, points)
    density = np.exp(concentration * (np.cos(angle) - 1))
    upper = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    # half the mass lies on either side: P(|y| < angle) = P(|z| < |z|)
    return np.sign(z) * np.interp(2 * ndtr(np.abs(z)) - 1, upper / upper[-1], angle)


def message_moments(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean along x, variance along it and across it, of alpha (cos(y - x), sin(y - x)) for y ~ vM(x, alpha)."""
    a = mean_cosine(alpha)
    across = alpha * a
    return across, (alpha.square() * (1 - a.square()) - across).clamp(min=0), across


class _Beliefs:
    """Simulated beliefs about x = 0, and what another message of accuracy alpha makes of them.

    The chains are Sobol points: a dimension for each message drawn by itself, and two for the sum of the others.
    """

    def __init__(self, steps: int, chains: int) -> None:
        from scipy.special import ndtri

        self.exact = min(steps, EXACT)
        points = torch.quasirandom.SobolEngine(self.exact + 2).fast_forward(1).draw(chains - 1, dtype=torch.float64)
        self.z = ndtri(points.T.numpy())
        self.drawn = np.zeros((2, chains - 1))
        self.moments = np.zeros(3)
        self.messages = 0

    def _message(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Vectors drawn, and moments of the sum of the messages that are not."""
        if self.messages < self.exact:
            y = von_mises_angles(alpha, self.z[self.messages])
            return self.drawn + alpha * np.stack([np.cos(y), np.sin(y)]), self.moments
        more = torch.stack(message_moments(torch.tensor(alpha, dtype=torch.float64))).numpy()
        return self.drawn, self.moments + more

    def concentrations(self, alpha: float) -> np.ndarray:
        """Concentrations (N,) after one more message."""
        (along, across), (mean, wide, deep) = self._message(alpha)
        return np.hypot(along + mean + math.sqrt(wide) * self.z[-2], across + math.sqrt(deep) * self.z[-1])

    def accept(self, alpha: float) -> None:
        """Add that message."""
        self.drawn, self.moments = self._message(alpha)
        self.messages += 1


@functools.cache
def linear_entropy_accuracies(steps: int, beta_1: float, chains: int = 2048) -> tuple[float, ...]:
    """alpha_1..alpha_T that make the mean entropy of simulated beliefs fall linearly; deterministic, under a second.

    Raises ValueError for fewer than one step or a beta_1 that is not positive.
    """
    from scipy.optimize import brentq

    if steps < 1 or not beta_1 > 0:
        raise ValueError(f"steps = {steps}, beta_1 = {beta_1}, allowed: steps >= 1 and beta_1 > 0")
    start, end = entropy(torch.tensor([0.0, beta_1], dtype=torch.float64)).tolist()
    grid = np.concatenate([[0.0], np.geomspace(1e-6, 100 * (1 + beta_1), 8000)])
    entropies = entropy(torch.from_numpy(grid)).numpy()
    beliefs, accuracies, guess = _Beliefs(steps, chains), [], 1.0

    def excess(alpha: float, target: float) -> float:
        return float(np.interp(beliefs.concentrations(alpha), grid, entropies).mean()) - target

    for i in range(1, steps + 1):
        target, low, high = start + (end - start) * i / steps, guess / 1.2, guess * 1.2
        while excess(low, target) < 0:
            low /= 2
        while excess(high, target) > 0:
            high *= 2
        guess = float(brentq(excess, low, high, args=(target,), rtol=1e-6))
        beliefs.accept(guess)
        accuracies.append(guess)
    return tuple(accuracies)


@final
class CircularFlow(BayesianFlow):
    """Fractional coordinates (R, D); the state is the belief (R, D, 2) and predictions are clean coordinates.

    steps: T, of `Times(T)`. beta_1: concentration whose entropy the belief ends with. distance: of the loss, "cosine"
    for 1 - cos, which makes it the divergence of the messages, or "squared" for half the squared shortest angle, which
    still has a slope at the far side of the circle. Subspaces are refused.
    """

    accuracy: Tensor
    moments: Tensor
    quantiles: Tensor

    def __init__(
        self,
        shape: Sequence[int] = (3,),
        steps: int = 1000,
        beta_1: float = 1000.0,
        distance: Literal["cosine", "squared"] = "cosine",
        sampler: Literal["bayes", "flow"] = "bayes",
    ) -> None:
        super().__init__(shape, steps, sampler)
        if distance not in ("cosine", "squared"):
            raise ValueError(f"distance = '{distance}', allowed: cosine, squared")
        self.resolution, self.beta_1, self.distance = steps, beta_1, distance
        accuracy = torch.tensor(linear_entropy_accuracies(steps, beta_1), dtype=torch.float64)
        exact = accuracy[:EXACT]
        moments = torch.stack(message_moments(accuracy), 1)
        moments[: len(exact)] = 0
        knots = np.linspace(-NORMAL_RANGE, NORMAL_RANGE, KNOTS)
        quantiles = np.stack([von_mises_angles(alpha, knots) for alpha in exact.tolist()])
        self.register_buffer("accuracy", accuracy, persistent=False)
        self.register_buffer("moments", torch.cat([moments[:1] * 0, moments.cumsum(0)]), persistent=False)
        self.register_buffer("quantiles", torch.from_numpy(quantiles), persistent=False)

    def _index(self, t: Tensor) -> Tensor:
        return (t * self.resolution).round().long()

    def _angles(self, z: Tensor) -> Tensor:
        """Angles from x of the messages drawn by themselves, from standard normal numbers z (R, E, *shape)."""
        place = (z.clamp(-NORMAL_RANGE, NORMAL_RANGE) + NORMAL_RANGE) * ((KNOTS - 1) / (2 * NORMAL_RANGE))
        left = place.long().clamp(max=KNOTS - 2)
        offset = KNOTS * torch.arange(z.shape[1], device=z.device).reshape(-1, *[1] * len(self.shape))
        table = self.quantiles.to(z.dtype).flatten()
        return torch.lerp(table[left + offset], table[left + offset + 1], place - left)

    def _messages(self, x: Tensor, i: Tensor, j: Tensor, rows: Rows, generator: Random) -> Tensor:
        """Sum of the message vectors i + 1..j about x, (R, *shape, 2); i and j are (B,)."""
        exact = len(self.quantiles)
        y = self._angles(normal(rows, (exact, *self.shape), x.dtype, generator))
        number = torch.arange(1, exact + 1, device=x.device)
        sent = (number > i.unsqueeze(1)) & (number <= j.unsqueeze(1))
        alpha = self.accuracy[:exact].to(x.dtype) * (sent if rows.level == "structure" else sent[rows.index])
        alpha = alpha.reshape(*alpha.shape, *[1] * len(self.shape))
        mean, wide, deep = (rows.spread(m.to(x.dtype), x) for m in (self.moments[j] - self.moments[i]).unbind(1))
        z = normal(rows, (2, *self.shape), x.dtype, generator)
        along = (alpha * y.cos()).sum(1) + mean + wide.clamp(min=0).sqrt() * z[:, 0]
        across = (alpha * y.sin()).sum(1) + deep.clamp(min=0).sqrt() * z[:, 1]
        cos, sin = (2 * math.pi * x).cos(), (2 * math.pi * x).sin()
        return torch.stack([along * cos - across * sin, along * sin + across * cos], -1)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        """Beliefs (R, *shape, 2) that know nothing: random means, of concentration 1e-7."""
        refuse_subspace(rows, self)
        angle = 2 * math.pi * uniform(rows, self.shape, like.dtype, generator)
        return FAINTEST * torch.stack([angle.cos(), angle.sin()], -1)

    def belief(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> Tensor:
        j = self._index(t)
        return self.prior(x, rows, generator) + self._messages(x, torch.zeros_like(j), j, rows, generator)

    def update(self, x_t: Tensor, x: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return x_t + self._messages(x, self._index(t), self._index(s), rows, generator)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        return self.belief(x, t, rows, generator), x

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return x

    def estimate(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return wrap(prediction)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        alpha = self.accuracy[self._index(t).clamp(max=self.resolution - 1)]
        weight = rows.spread((self.resolution * alpha * mean_cosine(alpha)).to(target.dtype), target)
        angle = 2 * math.pi * torus_log(target, prediction)
        distance = 1 - angle.cos() if self.distance == "cosine" else angle.square() / 2
        return (weight * distance).flatten(1).sum(1)
