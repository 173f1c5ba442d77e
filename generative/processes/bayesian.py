"""Bayesian flows of continuous, discretised and categorical data (Graves et al. 2023, Song et al., ICLR 2024).

The state is a belief about the data. A network predicts the data from it, a noisy message y about the prediction is
drawn, and Bayes' rule updates the belief; composed over any grid with true data, messages give the flow distribution
that `corrupt` draws from. Given rows hear messages about the data they hold. Continuous and discretised data:

    y ~ N(x, 1 / alpha),   mu_s = (rho_t mu_t + alpha y) / rho_s,   rho_t = sigma_1^(-2 t),   alpha = rho_s - rho_t
    mu_t ~ N(gamma x, gamma (1 - gamma)),   gamma = 1 - 1 / rho_t

and categorical data of K classes, theta being probabilities:

    y ~ N(alpha (K e_x - 1), alpha K),   theta_s ~ theta_t exp(y),   alpha = beta_s - beta_t,   beta_t = beta_1 t^2

Deviations from GeoBFN's code: messages are not clipped (the early ones have a deviation of 8, so that clipping changes
the flow distribution), estimates may be (`bounds`); noise is projected to zero mean before it is added, not after.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from chem.ragged import Rows
from generative.noise import Random, normal, uniform
from generative.process import Process

T_MIN = 1e-4
# What a prediction counts before T_MIN, where the belief is empty and noise cannot be turned into data: a network's is
# zero beside the data, and the oracle, whose messages must be exact from the first, speaks 2^24 times louder.
FAINT = 2.0**-24


class BayesianFlow(Process):
    """A belief about one field: abstract.

    steps: None for the loss in continuous time, or n for that of n messages, at times 0, 1/n, ... (`Times(n)`).
    sampler: "bayes" adds a message to the belief; "flow" draws it anew from the flow distribution of the estimate,
    which forgets earlier errors and suits few steps, but favours what is likely. It may be set anew before sampling.
    """

    clamps = False
    reads_prediction = True

    def __init__(
        self, shape: Sequence[int], steps: int | None = None, sampler: Literal["bayes", "flow"] = "bayes"
    ) -> None:
        super().__init__(shape)
        if steps is not None and steps < 1:
            raise ValueError(f"steps = {steps}, allowed: >= 1, or None for continuous time")
        if sampler not in ("bayes", "flow"):
            raise ValueError(f"sampler = '{sampler}', allowed: bayes, flow")
        self.steps, self.sampler = steps, sampler

    @abstractmethod
    def belief(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> Tensor:
        """A draw of the belief at t from the flow distribution of data x."""

    @abstractmethod
    def estimate(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """The data that a prediction stands for."""

    @abstractmethod
    def update(self, x_t: Tensor, x: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        """The belief at s, after messages about x."""

    @final
    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        x = self.estimate(x_t, prediction, t, rows)
        if self.sampler == "flow":
            return self.belief(x, s, rows, generator)
        return self.update(x_t, x, t, s, rows, generator)

    def readout(self, x: Tensor, prediction: Tensor | None, rows: Rows) -> Tensor:
        assert prediction is not None
        return self.estimate(x, prediction, x.new_ones(rows.num_structures), rows)


class GaussianBelief(BayesianFlow):
    """A Gaussian belief of mean mu and precision rho_t, which is known from t: abstract.

    centered: beliefs, data, predictions and noise have zero mean over a structure. Where rows of it are given, only the
    noise has: centering would move them off their data, which set the origin.
    """

    def __init__(self, shape: Sequence[int], sigma_1: float, centered: bool, steps: int | None, sampler) -> None:
        super().__init__(shape, steps, sampler)
        if not 0 < sigma_1 < 1:
            raise ValueError(f"sigma_1 = {sigma_1}, allowed: above 0 and below 1")
        self.sigma_1, self.centered = sigma_1, centered

    def _precision(self, t: Tensor) -> Tensor:
        return self.sigma_1 ** (-2 * t)

    def _gamma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * math.log(self.sigma_1) * t)

    def _weight(self, t: Tensor) -> Tensor:
        """Half the accuracy of the messages per unit of time."""
        if self.steps is None:
            return -math.log(self.sigma_1) * self._precision(t)
        return self.steps * (self._precision(t + 1 / self.steps) - self._precision(t)) / 2

    def _noise(self, dtype: torch.dtype, rows: Rows, generator: Random) -> Tensor:
        z = normal(rows, self.shape, dtype, generator)
        return rows.center(z) if self.centered else z

    def _free(self, v: Tensor, rows: Rows) -> Tensor:
        """The part of data or of a prediction that is neither a common translation nor outside the subspace."""
        if self.centered:
            mean = rows.mean(v)
            if rows.given is not None:
                known = rows.mean(rows.given.to(v.dtype)) > 0
                mean = torch.where(known.reshape(-1, *[1] * (v.dim() - 1)), 0.0, mean)
            v = v - mean[rows.index]
        return rows.project(v)

    def _noise_to_data(self, t: Tensor, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of x = a mu + b eps, (R, 1, ..., 1)."""
        gamma, early = self._gamma(t.clamp(min=T_MIN)), t < T_MIN
        a, b = torch.where(early, 0.0, 1 / gamma), torch.where(early, FAINT, -((1 - gamma) / gamma).sqrt())
        return rows.spread(a, x), rows.spread(b, x)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return rows.move(like, torch.zeros_like(like))

    def belief(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> Tensor:
        gamma = rows.spread(self._gamma(t), x)
        return rows.move(x, gamma * x + (gamma * (1 - gamma)).sqrt() * self._noise(x.dtype, rows, generator))

    def update(self, x_t: Tensor, x: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        rho_t, rho_s = rows.spread(self._precision(t), x_t), rows.spread(self._precision(s), x_t)
        alpha = rho_s - rho_t
        noise = self._noise(x_t.dtype, rows, generator)
        return rows.move(x_t, (rho_t * x_t + alpha * x + alpha.sqrt() * noise) / rho_s)


@final
class ContinuousFlow(GaussianBelief):
    """Real numbers of unit scale. The loss, of each row, is summed over its entries.

    predicts: "noise" eps, with x = mu / gamma - sqrt((1 - gamma) / gamma) eps and eps clipped to +-limit, or "data".
    bounds: clip estimates of the data to this range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        sigma_1: float = 0.001,
        predicts: Literal["noise", "data"] = "noise",
        centered: bool = False,
        limit: float = 10.0,
        bounds: tuple[float, float] | None = None,
        steps: int | None = None,
        sampler: Literal["bayes", "flow"] = "bayes",
    ) -> None:
        super().__init__(shape, sigma_1, centered, steps, sampler)
        if predicts not in ("noise", "data"):
            raise ValueError(f"predicts = '{predicts}', allowed: noise, data")
        self.predicts, self.limit, self.bounds = predicts, limit, bounds

    def _linear(self, t: Tensor, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.predicts == "noise":
            return self._noise_to_data(t, rows, x)
        zero = rows.spread(torch.zeros_like(t), x)
        return zero, zero + 1

    def _clip(self, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        free = self._free(prediction, rows)
        if self.predicts == "data":
            return free
        limit = rows.spread(torch.where(t < T_MIN, math.inf, self.limit), free)
        return self._free(torch.minimum(torch.maximum(free, -limit), limit), rows)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        x = rows.move(x, self._free(x, rows)) if self.centered else x
        mu = self.belief(x, t, rows, generator)
        return mu, rows.project(self.oracle(x, mu, t, rows))

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        a, b = self._linear(t, rows, x)
        return (x - a * x_t) / b

    def inform(self, prediction: Tensor, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        if self.centered:  # the network knows no origin: its molecule is moved to where the given rows are
            error = self.oracle(x, x_t, t, rows) - prediction
            prediction = prediction + error - rows.anchor(error)
        return super().inform(prediction, x, x_t, t, rows)

    def estimate(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        a, b = self._linear(t, rows, x_t)
        x = rows.move(x_t, a * x_t + b * self._clip(prediction, t, rows))
        return x if self.bounds is None else rows.move(x_t, x.clamp(*self.bounds))

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        _, b = self._linear(t, rows, target)
        squares = (b * (self._clip(prediction, t, rows) - target)).square()
        return (rows.spread(self._weight(t), target) * squares).flatten(1).sum(1)


def bin_centers(bins: int) -> Tensor:
    """Centres (K,) of K equal bins of [-1, 1], float64."""
    return (2 * torch.arange(1, bins + 1, dtype=torch.float64) - 1) / bins - 1


def bin_probabilities(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Probabilities (..., K) of the bins of [-1, 1] under N(mean, std^2) (...); the outer two hold the tails."""
    inner = torch.arange(1, bins, dtype=mean.dtype, device=mean.device) * (2 / bins) - 1
    below = torch.special.ndtr((inner - mean.unsqueeze(-1)) / std.unsqueeze(-1))
    below = torch.cat([torch.zeros_like(below[..., :1]), below, torch.ones_like(below[..., :1])], -1)
    return below.diff(dim=-1)


@final
class DiscretisedFlow(GaussianBelief):
    """Integers as the centres of K bins of [-1, 1] (`bin_centers`).

    Predictions (R, *shape, 2) are mean and log deviation of the noise; they stand for probabilities of the bins,
    and the message is about the centre nearest to their mean: bins drawn at random favour the outer two early on.
    The sample is their mean, of which a decoder takes the nearest centre that is allowed. Subspaces are refused.
    """

    centers: Tensor
    LOG_STD = (math.log(1e-6), math.log(4.0))

    def __init__(
        self,
        bins: int,
        shape: Sequence[int] = (),
        sigma_1: float = 0.15,
        steps: int | None = None,
        sampler: Literal["bayes", "flow"] = "bayes",
    ) -> None:
        super().__init__(shape, sigma_1, False, steps, sampler)
        if bins < 1:
            raise ValueError(f"bins = {bins}, allowed: >= 1")
        self.bins = bins
        self.register_buffer("centers", bin_centers(bins), persistent=False)

    def probabilities(self, mu: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """Probabilities of the bins, (R, *shape, K)."""
        a, b = self._noise_to_data(t, rows, mu)
        scale, gain = self._log_scale(t, rows, mu)
        mean = (a * mu + b * prediction[..., 0]).clamp(-2, 2)
        log_std = (scale + gain * prediction[..., 1]).clamp(*self.LOG_STD)
        return bin_probabilities(mean, log_std.exp(), self.bins)

    def _log_scale(self, t: Tensor, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
        """c and d of log std = c + d log std_eps."""
        gamma, early = self._gamma(t.clamp(min=T_MIN)), t < T_MIN
        c, d = torch.where(early, 0.0, ((1 - gamma) / gamma).log() / 2), torch.where(early, FAINT, 1.0)
        return rows.spread(c, x), rows.spread(d, x)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        refuse_subspace(rows, self)
        return torch.zeros_like(like)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        """The belief, and data, belief and message stacked, (R, *shape, 3): the loss needs them all."""
        refuse_subspace(rows, self)
        mu = self.belief(x, t, rows, generator)
        if self.steps is None:
            return mu, torch.stack([x, mu, x], -1)
        alpha = rows.spread(2 * self._weight(t) / self.steps, x)
        return mu, torch.stack([x, mu, x + self._noise(x.dtype, rows, generator) / alpha.sqrt()], -1)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        a, b = self._noise_to_data(t, rows, x)
        c, d = self._log_scale(t, rows, x)
        return torch.stack([(x - a * x_t) / b, ((self.LOG_STD[0] - c) / d).expand_as(x)], -1)

    def expected(self, mu: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """Mean of the centres under the predicted probabilities, (R, *shape)."""
        return self.probabilities(mu, prediction, t, rows) @ self.centers.to(mu.dtype)

    def estimate(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        x, centers = self.expected(x_t, prediction, t, rows), self.centers.to(x_t.dtype)
        return centers[(x.unsqueeze(-1) - centers).abs().argmin(-1)]

    def readout(self, x: Tensor, prediction: Tensor | None, rows: Rows) -> Tensor:
        assert prediction is not None
        return self.expected(x, prediction, x.new_ones(rows.num_structures), rows)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        x, mu, y = target.unbind(-1)
        weight, p = rows.spread(self._weight(t), x), self.probabilities(mu, prediction, t, rows)
        centers = self.centers.to(x.dtype)
        if self.steps is None:
            return (weight * (x - p @ centers).square()).reshape(len(x), -1).sum(1)
        half = weight / self.steps
        log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        received = (log_p - half.unsqueeze(-1) * (y.unsqueeze(-1) - centers).square()).logsumexp(-1)
        return (self.steps * (-half * (y - x).square() - received)).reshape(len(x), -1).sum(1)


@final
class CategoricalFlow(BayesianFlow):
    """K classes as one-hot vectors (R, K). The state is the logarithm of the belief's probabilities.

    Predictions are logits; the sample is their probabilities, of which a decoder takes the largest that is allowed.
    Subspaces are refused.
    """

    def __init__(
        self,
        classes: int,
        beta_1: float = 2.0,
        steps: int | None = None,
        sampler: Literal["bayes", "flow"] = "bayes",
    ) -> None:
        super().__init__((classes,), steps, sampler)
        if classes < 2 or beta_1 <= 0:
            raise ValueError(f"classes = {classes}, beta_1 = {beta_1}, allowed: at least 2 classes and beta_1 > 0")
        self.classes, self.beta_1 = classes, beta_1

    def _message(self, x: Tensor, accuracy: Tensor, rows: Rows, generator: Random) -> Tensor:
        accuracy, z = rows.spread(accuracy, x), normal(rows, self.shape, x.dtype, generator)
        return accuracy * (self.classes * x - 1) + (accuracy * self.classes).sqrt() * z

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        refuse_subspace(rows, self)
        return torch.full_like(like, -math.log(self.classes))

    def belief(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> Tensor:
        return self._message(x, self.beta_1 * t.square(), rows, generator).log_softmax(1)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        """The belief, and the data and a message about them, (R, 2 K): the loss of n steps needs both."""
        refuse_subspace(rows, self)
        z = self.belief(x, t, rows, generator)
        if self.steps is None:
            return z, torch.cat([x, x], 1)
        alpha = self.beta_1 * (2 * t + 1 / self.steps) / self.steps
        return z, torch.cat([x, self._message(x, alpha, rows, generator)], 1)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return 1000 * x

    def estimate(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return prediction.softmax(1)

    def update(self, x_t: Tensor, x: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        cumulative = x.cumsum(1)
        height = uniform(rows, (1,), x.dtype, generator) * cumulative[:, -1:]
        drawn = (height >= cumulative[:, :-1]).sum(1, keepdim=True)
        drawn = (drawn == torch.arange(self.classes, device=x.device)).to(x.dtype)
        accuracy = self.beta_1 * (s.square() - t.square())
        return (x_t + self._message(drawn, accuracy, rows, generator)).log_softmax(1)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        x, y = target.split(self.classes, 1)
        if self.steps is None:
            weight = rows.spread(self.classes * self.beta_1 * t.clamp(min=T_MIN), x)
            return (weight * (x - prediction.softmax(1)).square()).sum(1)
        # densities of y for two classes differ by the factor exp(y_k - y_l) alone
        return self.steps * ((x * y).sum(1) - (prediction.log_softmax(1) + y).logsumexp(1))


def refuse_subspace(rows: Rows, process: Process) -> None:
    """Raise ValueError where rows are restricted to subspaces, which a belief of this kind cannot hold."""
    if rows.subspace is not None:
        raise ValueError(f"rows are restricted to a subspace, allowed for {type(process).__name__}: free rows")
