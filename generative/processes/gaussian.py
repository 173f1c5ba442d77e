"""Variance-preserving Gaussian diffusion on a Euclidean field, discrete times: noise prediction, or classes.

    x_k = sqrt(abar_k) x + sqrt(1 - abar_k) eps,    k = T (1 - t) the step of the paper

The reverse step from k to any j < k is the exact posterior of that jump (Ho et al. 2020, eq. 6-7, with
alpha = abar_k / abar_j):

    x_j ~ N( (x_k - (1 - alpha) / sqrt(1 - abar_k) eps_hat) / sqrt(alpha),  (1 - alpha)(1 - abar_j) / (1 - abar_k) )

Schedule: cosine of Nichol and Dhariwal (2021), betas clipped to [1e-4, 0.9999] as DiffCSP has them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chem.ragged import Rows
from generative.noise import Random, normal
from generative.process import Process


def cosine_log_alpha_bar(steps: int, offset: float = 0.008) -> Tensor:
    """log abar_k for k = 0..steps, float64."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    ideal = torch.cos((u + offset) / (1 + offset) * math.pi / 2).square()
    beta = (1 - ideal[1:] / ideal[:-1]).clamp(1e-4, 0.9999)
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0)])


class GaussianDiffusion(Process):
    """What the two parameterisations share; abstract: the chain of a field of trailing shape `shape` over `steps` times."""

    log_alpha_bar: Tensor

    def __init__(self, shape: Sequence[int], steps: int = 1000):
        super().__init__(shape)
        self.steps = steps
        self.register_buffer("log_alpha_bar", cosine_log_alpha_bar(steps), persistent=False)

    @abstractmethod
    def clean(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """The expected data that a prediction implies."""

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        return self.log_alpha_bar[((1 - t) * self.steps).round().long()]

    def _levels(self, like: Tensor, t: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Factors of signal and noise at t, spread over the rows of `like`."""
        log_abar = self._log_alpha_bar(t)
        signal, noise = (0.5 * log_abar).exp(), (-torch.expm1(log_abar)).sqrt()
        return rows.spread(signal.to(like.dtype), like), rows.spread(noise.to(like.dtype), like)

    def _noised(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        """Noisy rows and the noise in them."""
        signal, noise = self._levels(x, t, rows)
        eps = normal(rows, self.shape, x.dtype, generator)
        return rows.move(x, signal * x + noise * eps), eps

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return rows.move(like, normal(rows, self.shape, like.dtype, generator))

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        log_t, log_s = self._log_alpha_bar(t), self._log_alpha_bar(s)
        noise_t, noise_s = -torch.expm1(log_t), -torch.expm1(log_s)
        jump = -torch.expm1(log_t - log_s)
        spread = lambda value: rows.spread(value.to(x_t.dtype), x_t)  # noqa: E731
        from_x = (0.5 * log_s).exp() * jump / noise_t
        from_x_t = (0.5 * (log_t - log_s)).exp() * noise_s / noise_t
        std = (jump * noise_s / noise_t).sqrt()
        x = self.clean(x_t, prediction, t, rows)
        z = normal(rows, self.shape, x_t.dtype, generator)
        return rows.move(x_t, spread(from_x) * x + spread(from_x_t) * x_t + spread(std) * z)


class VariancePreserving(GaussianDiffusion):
    """Noise prediction, as in the papers: the target is eps.

    bounds: clip the clean sample that a noise prediction implies to this range before stepping; it keeps coarse grids
    finite, where the first jump divides by sqrt(abar_T) = 1.6e-5. None (the paper's choice) clips nothing.
    """

    def __init__(self, shape: Sequence[int], steps: int = 1000, bounds: tuple[float, float] | None = None):
        super().__init__(shape, steps)
        self.bounds = bounds

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        x_t, eps = self._noised(x, t, rows, generator)
        return x_t, rows.project(eps)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        signal, noise = self._levels(x, t, rows)
        return (x_t - signal * x) / noise

    def clean(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        signal, noise = self._levels(x_t, t, rows)
        x = (x_t - noise * prediction) / signal
        if self.bounds is None:
            return x
        # outside the subspace x is noise over abar: clipped entry by entry it would leak into the free part
        return rows.move(x_t, x).clamp(*self.bounds)


class NoisyClasses(GaussianDiffusion):
    """One-hot vectors, the prediction being what the surroundings tell of the class, in logits.

    p(class | everything) = softmax(prediction + log frequencies + x_t signal / noise^2): the frequencies of the data and
    the likelihood of the noisy vector are added here, so that a network which predicts zero is already the best
    guess from one row alone, at every t; noise prediction has to learn that much first, and at high noise it divides
    what it missed by the signal. Loss: cross-entropy, in nats. After Dieleman et al. (2022, arXiv:2211.15089), section 3.

    frequencies: (K,) of the classes in the data, not negative; they are normalised, a zero counts as 1e-6 of the whole.
    """

    log_frequencies: Tensor

    def __init__(self, frequencies: Sequence[float], steps: int = 1000):
        super().__init__((len(frequencies),), steps)
        weights = torch.tensor(frequencies, dtype=torch.float64)
        if not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
            raise ValueError("frequencies: allowed: numbers from 0, not all of them 0")
        weights = (weights / weights.sum()).clamp(min=1e-6)
        self.register_buffer("log_frequencies", (weights / weights.sum()).log(), persistent=False)

    def _known(self, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """Logits of what the noisy rows and the frequencies tell."""
        signal, noise = self._levels(x_t, t, rows)
        return self.log_frequencies.to(x_t.dtype) + x_t * signal / noise.square()

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        x_t, _ = self._noised(x, t, rows, generator)
        return x_t, torch.cat([x, self._known(x_t, t, rows)], -1)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        x, known = target.chunk(2, -1)
        return F.cross_entropy(prediction + known, x, reduction="none")

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        known = self._known(x_t, t, rows)
        return torch.where(x > 0.5, 1e3, -1e3) - known  # finite, and far beyond what a softmax can tell apart

    def clean(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return torch.softmax(prediction + self._known(x_t, t, rows), -1)
