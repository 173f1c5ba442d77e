"""Base distributions of flows: what is drawn at t = 0, and its density.

A base draws rows of the shape of `like`, without regard to subspaces: the flow puts a draw into the subspace. Densities
are natural logarithms, summed over the rows of each structure. Bases on Euclidean space also know their moments, so
that a network can scale its input and output without drawing anything (`path_moments`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chem.ragged import Rows
from generative.noise import Random, normal, uniform


class Base(nn.Module, ABC):
    """A distribution of rows at t = 0, abstract."""

    @abstractmethod
    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        """Rows with the shape and dtype of `like`."""

    @abstractmethod
    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        """log density (B,) of the rows x (R, ...) of each structure, in nats."""


class EuclideanBase(Base):
    """A base on Euclidean space, abstract."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a row; both broadcast to its shape. float64."""


class TorusBase(Base):
    """A base on the unit torus, abstract; draws need not be wrapped."""

    @abstractmethod
    def log_prob_of_shape(self, x: Tensor, rows: Rows) -> Tensor:
        """log density (B,) modulo a common translation of each structure: against the measure of volume 1."""


class NormalBase(EuclideanBase):
    """Independent normal entries; mean and std: numbers, or tensors of the shape of a row."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float = 0.0, std: Tensor | float = 1.0):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("std", _positive("std", std), persistent=False)

    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        z = normal(rows, like.shape[1:], like.dtype, generator)
        return self.mean.to(like.dtype) + self.std.to(like.dtype) * z

    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        std = self.std.to(x.dtype)
        z = (x - self.mean.to(x.dtype)) / std
        return per_structure(-z.square() / 2 - (std * math.sqrt(2 * math.pi)).log(), rows)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.std


class LogNormalBase(EuclideanBase):
    """Independent log-normal entries, ln x ~ N(mu, sigma^2): lengths in ångström. One mu and sigma an entry."""

    mu: Tensor
    sigma: Tensor

    def __init__(self, mu: Sequence[float], sigma: Sequence[float]):
        super().__init__()
        self.register_buffer("mu", torch.as_tensor(mu, dtype=torch.float64), persistent=False)
        self.register_buffer("sigma", _positive("sigma", sigma), persistent=False)

    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        z = normal(rows, like.shape[1:], like.dtype, generator)
        return (self.mu.to(like.dtype) + self.sigma.to(like.dtype) * z).exp()

    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        sigma, inside = self.sigma.to(x.dtype), x > 0
        log_x = torch.where(inside, x, 1.0).log()
        z = (log_x - self.mu.to(x.dtype)) / sigma
        density = -z.square() / 2 - (sigma * math.sqrt(2 * math.pi)).log() - log_x
        return per_structure(torch.where(inside, density, -torch.inf), rows)

    def moments(self) -> tuple[Tensor, Tensor]:
        variance = self.sigma.square()
        mean = (self.mu + variance / 2).exp()
        return mean, mean * torch.expm1(variance).sqrt()


class LogitUniformBase(EuclideanBase):
    """Angles uniform in the open interval of `chem.lattice.to_logit_angles`, as their logits: standard logistic."""

    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        u = uniform(rows, like.shape[1:], like.dtype, generator)
        return torch.logit(u, eps=torch.finfo(like.dtype).eps)

    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        return per_structure(nn.functional.logsigmoid(x) + nn.functional.logsigmoid(-x), rows)

    def moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, dtype=torch.float64), torch.full((1,), math.pi / math.sqrt(3), dtype=torch.float64)


class ProductBase(EuclideanBase):
    """Bases of consecutive entries of a row of one dimension: (base, number of entries), ..."""

    def __init__(self, *parts: tuple[EuclideanBase, int]):
        super().__init__()
        self.bases: Sequence[EuclideanBase] = nn.ModuleList(base for base, _ in parts)  # type: ignore[assignment]
        self.sizes = [size for _, size in parts]

    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        parts = zip(self.bases, like.split(self.sizes, 1), strict=True)
        return torch.cat([base.draw(part, rows, generator) for base, part in parts], 1)

    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        parts = zip(self.bases, x.split(self.sizes, 1), strict=True)
        return torch.stack([base.log_prob(part, rows) for base, part in parts]).sum(0)

    def moments(self) -> tuple[Tensor, Tensor]:
        pairs = [base.moments() for base in self.bases]
        mean, std = (
            torch.cat([pair[i].expand(size) for pair, size in zip(pairs, self.sizes, strict=True)]) for i in (0, 1)
        )
        return mean, std


class UniformBase(TorusBase):
    """Uniform on the torus."""

    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        u = uniform(rows, like.shape[1:], like.dtype, generator)
        return u if rows.subspace is None else 60 * u  # see torus_prior of wrapped.py

    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        return per_structure(torch.zeros_like(x), rows)

    def log_prob_of_shape(self, x: Tensor, rows: Rows) -> Tensor:
        return self.log_prob(x, rows)


class WrappedNormalBase(TorusBase):
    """A normal distribution around the origin, wrapped; FlowMM's alternative has sigma = 0.1. sigma at most 0.5."""

    def __init__(self, sigma: float = 0.1):
        super().__init__()
        if not 0 < sigma <= 0.5:
            raise ValueError(f"sigma = {sigma}, allowed: above 0, at most 0.5")
        self.sigma = sigma

    def draw(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return self.sigma * normal(rows, like.shape[1:], like.dtype, generator)

    def log_prob(self, x: Tensor, rows: Rows) -> Tensor:
        return per_structure(self._log_density(x), rows)

    def log_prob_of_shape(self, x: Tensor, rows: Rows) -> Tensor:
        # the trapezoid rule is exact to rounding once it resolves the narrowest product of densities, sigma / sqrt(R)
        points = max(64, math.ceil(40 / self.sigma))
        shift = torch.arange(points, dtype=x.dtype, device=x.device) / points
        density = self._log_density(x.flatten(1).unsqueeze(-1) + shift)
        total = density.new_zeros(rows.num_structures, *density.shape[1:]).index_add(0, rows.index, density)
        return (torch.logsumexp(total, -1) - math.log(points)).sum(1)

    def _log_density(self, x: Tensor) -> Tensor:
        images = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
        shifted = (x - x.round()).unsqueeze(-1) + images
        log_norm = math.log(self.sigma * math.sqrt(2 * math.pi))
        return torch.logsumexp(-shifted.square() / (2 * self.sigma**2), -1) - log_norm


@dataclass(frozen=True)
class PathMoments:
    """Entrywise moments, float64, of x_t with t uniform in [0, 1] and of the velocity x_1 - x_0."""

    mean: Tensor
    std: Tensor
    velocity_mean: Tensor
    velocity_std: Tensor


def path_moments(base: EuclideanBase, mean: Tensor | float, std: Tensor | float) -> PathMoments:
    """Moments along straight paths from `base` to data with entrywise mean and std, in closed form.

    Base and data are independent. std is that of the population; both broadcast to the shape of a row.
    """
    m0, s0 = base.moments()
    m1, s1 = (torch.as_tensor(v, dtype=torch.float64).to(m0.device) for v in (mean, std))
    spread = s0.square() + s1.square()
    return PathMoments((m0 + m1) / 2, (spread / 3 + (m1 - m0).square() / 12).sqrt(), m1 - m0, spread.sqrt())


def per_structure(values: Tensor, rows: Rows) -> Tensor:
    """Sums (B,) of all entries of the rows (R, ...) of each structure."""
    total = values.flatten(1).sum(1)
    return total.new_zeros(rows.num_structures).index_add(0, rows.index, total)


def _positive(name: str, value: Tensor | Sequence[float] | float) -> Tensor:
    out = torch.as_tensor(value, dtype=torch.float64)
    if not bool((out > 0).all()):
        raise ValueError(f"{name} = {out.tolist()}, allowed: > 0")
    return out
