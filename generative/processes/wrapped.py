"""Wrapped-normal diffusion on the flat torus [0, 1)^D, score prediction, discrete times.

    f_k = wrap(f + sigma_k eps),  sigma_k = sigma_1 (sigma_T / sigma_1)^((k - 1) / (T - 1)),  sigma_0 = 0,  k = T(1 - t)

The target is minus the score of the wrapped normal over its root mean square, -s / sqrt(lambda_k), so that it points
along the noise with unit variance at every k (DiffCSP, Jiao et al. 2023, appendix). Scores are sums over 21 images in
float64; lambda_k is a quadrature over one period, nothing is drawn at construction. The predictor is the
variance-exploding ancestral step (exact only for small steps), the corrector a Langevin step at fixed k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chem.periodic import torus_log, wrap
from chem.ragged import Rows
from generative.noise import Random, normal, uniform
from generative.process import Process

IMAGES = 10


def wrapped_normal_score(x: Tensor, sigma: Tensor) -> Tensor:
    """d/dx log sum_n exp(-(x + n)^2 / 2 sigma^2), n = -10..10, by softmax over the images in float64.

    x: any shape, any real number. sigma: broadcastable to it, positive. Returns the dtype of x.
    """
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    images = torch.arange(-IMAGES, IMAGES + 1, dtype=exact, device=x.device)
    variance = sigma.to(exact).square().unsqueeze(-1)
    shifted = (x - x.round()).to(exact).unsqueeze(-1) + images
    weights = torch.softmax(-shifted.square() / (2 * variance), -1)
    return (-(weights * shifted).sum(-1) / variance.squeeze(-1)).to(x.dtype)


def mean_squared_score(sigma: Tensor, points: int = 2000) -> Tensor:
    """lambda = E[s(x; sigma)^2] under the wrapped normal, for each sigma (K,), float64, by the trapezoid rule.

    Below sigma = 0.05 the images do not overlap and lambda = 1 / sigma^2.
    """
    sigma = sigma.to(torch.float64)
    out = sigma.square().reciprocal()
    wide = sigma > 0.05
    x = torch.arange(points, dtype=torch.float64) / points - 0.5
    images = torch.arange(-5, 6, dtype=torch.float64)  # beyond 5.5 periods the density is below 1e-26 at sigma 0.5
    for i in torch.nonzero(wide).flatten().tolist():
        shifted = x.unsqueeze(1) + images
        density = torch.exp(-shifted.square() / (2 * sigma[i].square()))
        score = (density * shifted).sum(1) / density.sum(1) / sigma[i].square()
        out[i] = (density.sum(1) * score.square()).sum() / density.sum()
    return out


def torus_prior(like: Tensor, rows: Rows, shape: Sequence[int], generator: Random) -> Tensor:
    """Uniform on the torus (R, *shape); a restricted row, uniform on the line or plane through `like` it may visit.

    P u is not uniform on a slanted line, but P (60 u) is, wrapped, wherever 60 P is whole: all crystallographic cases.
    """
    u = uniform(rows, shape, like.dtype, generator)
    return wrap(rows.move(like, u if rows.subspace is None else 60 * u))


class WrappedNormal(Process):
    """Noise on fractional coordinates. step_size: gamma of the Langevin steps, d_k = gamma (sigma_k / sigma_1)^2."""

    corrects = True
    sigma: Tensor
    norm: Tensor

    def __init__(
        self,
        shape: Sequence[int] = (3,),
        steps: int = 1000,
        sigma_min: float = 0.005,
        sigma_max: float = 0.5,
        step_size: float = 1e-5,
    ):
        super().__init__(shape)
        self.steps, self.sigma_min, self.step_size = steps, sigma_min, step_size
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        sigma = sigma_min * (sigma_max / sigma_min) ** ramp
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        self.register_buffer("sigma", torch.cat([zero, sigma]), persistent=False)
        self.register_buffer("norm", torch.cat([one, mean_squared_score(sigma).sqrt()]), persistent=False)

    def _index(self, t: Tensor) -> Tensor:
        return ((1 - t) * self.steps).round().long()

    def _at(self, table: Tensor, t: Tensor, rows: Rows, x: Tensor) -> Tensor:
        return rows.spread(table[self._index(t)].to(x.dtype), x)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return torus_prior(like, rows, self.shape, generator)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        eps = rows.project(normal(rows, self.shape, x.dtype, generator))
        shift = self._at(self.sigma, t, rows, x) * eps
        return wrap(x + shift), rows.project(self._target(shift, t, rows))

    def _target(self, shift: Tensor, t: Tensor, rows: Rows) -> Tensor:
        score = wrapped_normal_score(shift, self._at(self.sigma, t, rows, shift))
        return -score / self._at(self.norm, t, rows, shift)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return self._target(torus_log(x, x_t), t, rows)

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        sigma_t, sigma_s = self._at(self.sigma, t, rows, x_t), self._at(self.sigma, s, rows, x_t)
        variance = sigma_t.square() - sigma_s.square()
        z = normal(rows, self.shape, x_t.dtype, generator)
        drift = -variance * self._at(self.norm, t, rows, x_t) * prediction
        return wrap(x_t + rows.project(drift + sigma_s / sigma_t * variance.sqrt() * z))

    def correct(self, x_t: Tensor, prediction: Tensor, t: Tensor, rows: Rows, generator: Random) -> Tensor:
        index = self._index(t)
        size = self.step_size * (self.sigma[index] / self.sigma_min).square()
        noise = torch.where(index > 1, (2 * size).sqrt(), 0.0)
        z = normal(rows, self.shape, x_t.dtype, generator)
        drift = -rows.spread((size * self.norm[index]).to(x_t.dtype), x_t) * prediction
        return wrap(x_t + rows.project(drift + rows.spread(noise.to(x_t.dtype), x_t) * z))
