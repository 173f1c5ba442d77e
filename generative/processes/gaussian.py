"""Variance-preserving Gaussian diffusion on a Euclidean field, noise prediction, discrete times.

    x_k = sqrt(abar_k) x + sqrt(1 - abar_k) eps,    k = T (1 - t) the step of the paper, target eps

The reverse step from k to any j < k is the exact posterior of that jump (Ho et al. 2020, eq. 6-7, with
alpha = abar_k / abar_j):

    x_j ~ N( (x_k - (1 - alpha) / sqrt(1 - abar_k) eps_hat) / sqrt(alpha),  (1 - alpha)(1 - abar_j) / (1 - abar_k) )

Schedule: cosine of Nichol and Dhariwal (2021), betas clipped to [1e-4, 0.9999] as DiffCSP has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
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


class VariancePreserving(Process):
    """Gaussian diffusion of a field with trailing shape `shape` over `steps` discrete times.

    bounds: clip the clean sample that a noise prediction implies to this range before stepping; it keeps coarse grids
    finite, where the first jump divides by sqrt(abar_T) = 1.6e-5. None (the paper's choice) clips nothing.
    """

    log_alpha_bar: Tensor

    def __init__(self, shape: Sequence[int], steps: int = 1000, bounds: tuple[float, float] | None = None):
        super().__init__(shape)
        self.steps, self.bounds = steps, bounds
        self.register_buffer("log_alpha_bar", cosine_log_alpha_bar(steps), persistent=False)

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        return self.log_alpha_bar[((1 - t) * self.steps).round().long()]

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return rows.move(like, normal(rows, self.shape, like.dtype, generator))

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        log_abar = self._log_alpha_bar(t)
        signal, noise = (0.5 * log_abar).exp(), (-torch.expm1(log_abar)).sqrt()
        eps = normal(rows, self.shape, x.dtype, generator)
        x_t = rows.spread(signal.to(x.dtype), x) * x + rows.spread(noise.to(x.dtype), x) * eps
        return rows.move(x, x_t), rows.project(eps)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        log_abar = self._log_alpha_bar(t)
        signal, noise = (0.5 * log_abar).exp(), (-torch.expm1(log_abar)).sqrt()
        return (x_t - rows.spread(signal.to(x.dtype), x) * x) / rows.spread(noise.to(x.dtype), x)

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        log_t, log_s = self._log_alpha_bar(t), self._log_alpha_bar(s)
        noise_t, noise_s = -torch.expm1(log_t), -torch.expm1(log_s)
        jump = -torch.expm1(log_t - log_s)
        spread = lambda value: rows.spread(value.to(x_t.dtype), x_t)  # noqa: E731
        x = (x_t - spread(noise_t.sqrt()) * prediction) * spread((-0.5 * log_t).exp())
        if self.bounds is not None:
            # outside the subspace x is noise over abar: clipped entry by entry it would leak into the free part
            x = rows.move(x_t, x).clamp(*self.bounds)
        from_x = (0.5 * log_s).exp() * jump / noise_t
        from_x_t = (0.5 * (log_t - log_s)).exp() * noise_s / noise_t
        std = (jump * noise_s / noise_t).sqrt()
        z = normal(rows, self.shape, x_t.dtype, generator)
        return rows.move(x_t, spread(from_x) * x + spread(from_x_t) * x_t + spread(std) * z)
