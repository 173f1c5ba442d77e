"""Lattices: matrix, parameters, logit angles, log-strain vector, volume, reduced cells.

A lattice is (..., 3, 3) in ångström; its *rows* a, b, c are the lattice vectors, so Cartesian = fractional @ lattice.
Lengths are in ångström, angles (alpha between b and c, beta between a and c, gamma between a and b) in degrees.
The log-strain vector k holds the coefficients of S = log(L L^T) / 2 in an orthonormal basis of symmetric matrices;
it forgets rotation and handedness, exp(S) is the lattice in the symmetric gauge and the volume is exp(sqrt(3) k6).
The angles of a Niggli-reduced cell lie between 60 and 120 degrees; their logits in the open interval (59.9, 120.1)
are any real numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from pymatgen.core import Structure

LOWEST_ANGLE, HIGHEST_ANGLE = 59.9, 120.1  # degrees; the margin keeps 60 and 120 finite (FlowMM)


def from_parameters(lengths: Tensor, angles: Tensor) -> Tensor:
    """Lattice (..., 3, 3) of lengths (..., 3) in ångström and angles (..., 3) in degrees, right-handed.

    pymatgen's orientation: c along z, a in the xz plane. Angles that close no cell are clamped to a flat one, whose
    volume is zero. Raises ValueError for other shapes.
    """
    for name, value in (("lengths", lengths), ("angles", angles)):
        if value.dim() == 0 or value.shape[-1] != 3:
            raise ValueError(f"{name} must have shape (..., 3), got {tuple(value.shape)}")
    cos, sin = torch.cos(torch.deg2rad(angles)), torch.sin(torch.deg2rad(angles))
    cos_star = ((cos[..., 0] * cos[..., 1] - cos[..., 2]) / (sin[..., 0] * sin[..., 1])).clamp(-1.0, 1.0)
    sin_star = torch.sqrt((1 - cos_star**2).clamp(min=0.0))
    zero, one = torch.zeros_like(cos_star), torch.ones_like(cos_star)
    a = torch.stack([sin[..., 1], zero, cos[..., 1]], -1)
    b = torch.stack([-sin[..., 0] * cos_star, sin[..., 0] * sin_star, cos[..., 0]], -1)
    c = torch.stack([zero, zero, one], -1)
    return torch.stack([a, b, c], -2) * lengths.unsqueeze(-1)


def parameters(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (..., 3) in ångström and angles (..., 3) in degrees of a lattice (..., 3, 3)."""
    _check(lattice)
    lengths = torch.linalg.vector_norm(lattice, dim=-1)
    first, second = lattice[..., [1, 2, 0], :], lattice[..., [2, 0, 1], :]
    # atan2 keeps full precision where arccos of a cosine near 1 loses half the digits
    sine = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=-1)
    return lengths, torch.rad2deg(torch.atan2(sine, (first * second).sum(-1)))


def volume(lattice: Tensor) -> Tensor:
    """Volume (...) in cubic ångström of a lattice (..., 3, 3), never negative."""
    _check(lattice)
    a, b, c = lattice.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


def to_logit_angles(angles: Tensor) -> Tensor:
    """Logits ln((angle - 59.9) / (120.1 - angle)) of angles (..., 3) in degrees.

    Raises ValueError that names the first cell and angle outside the open interval.
    """
    if angles.dim() == 0 or angles.shape[-1] != 3:
        raise ValueError(f"angles must have shape (..., 3), got {tuple(angles.shape)}")
    inside = (angles > LOWEST_ANGLE) & (angles < HIGHEST_ANGLE)
    if not bool(inside.all()):
        cell, which = divmod(int((~inside).flatten().nonzero()[0]), 3)
        name, value = ("alpha", "beta", "gamma")[which], float(angles.flatten()[3 * cell + which])
        allowed = f"above {LOWEST_ANGLE} and below {HIGHEST_ANGLE}; reduce the cell first (chem.lattice.niggli)"
        raise ValueError(f"lattice {cell} has {name} = {value:.6g} degrees, allowed: {allowed}")
    return ((angles - LOWEST_ANGLE) / (HIGHEST_ANGLE - angles)).log()


def from_logit_angles(y: Tensor) -> Tensor:
    """Angles (..., 3) in degrees, between 59.9 and 120.1, of their logits."""
    return LOWEST_ANGLE + (HIGHEST_ANGLE - LOWEST_ANGLE) * torch.sigmoid(y)


def to_bounded(lattice: Tensor) -> Tensor:
    """Three lengths in ångström and three logit angles (..., 6) of a lattice (..., 3, 3); see `to_logit_angles`."""
    lengths, angles = parameters(lattice)
    return torch.cat([lengths, to_logit_angles(angles)], -1)


def from_bounded(vector: Tensor, shortest: float = 0.1) -> Tensor:
    """Lattice (..., 3, 3) of lengths and logit angles (..., 6); lengths below `shortest` ångström are raised to it."""
    if vector.dim() == 0 or vector.shape[-1] != 6:
        raise ValueError(f"vector must have shape (..., 6), got {tuple(vector.shape)}")
    return from_parameters(vector[..., :3].clamp(min=shortest), from_logit_angles(vector[..., 3:]))


def to_log_strain(lattice: Tensor) -> Tensor:
    """Log-strain vector (..., 6) of a lattice (..., 3, 3); not finite for a flat cell (methods: DiffCSP++)."""
    _check(lattice)
    stretch = 0.5 * _Spectral.apply(lattice @ lattice.mT, torch.log, _log_difference)
    return torch.einsum("...ij,mij->...m", stretch, _basis(lattice))


def from_log_strain(k: Tensor) -> Tensor:
    """Symmetric lattice (..., 3, 3) in ångström of a log-strain vector (..., 6)."""
    if k.dim() == 0 or k.shape[-1] != 6:
        raise ValueError(f"k must have shape (..., 6), got {tuple(k.shape)}")
    return _Spectral.apply(torch.einsum("...m,mij->...ij", k, _basis(k)), torch.exp, _exp_difference)


def niggli(lattice: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Niggli-reduced lattice (..., 3, 3) and the integer T (..., 3, 3) with reduced = T @ lattice, det T = +1.

    Fractional coordinates in the new cell are f @ inverse(T). Nothing is rotated. Raises ValueError that names the
    first cell that cannot be reduced.
    """
    import spglib

    _check(lattice)
    cells = lattice.detach().reshape(-1, 3, 3).to("cpu", torch.float64)
    steps = torch.empty(cells.shape, dtype=torch.float64)
    for i, cell in enumerate(cells):
        if not bool(torch.isfinite(cell).all()) or float(volume(cell)) < 1e-9:
            raise ValueError(f"lattice {i} cannot be reduced: its volume must be positive and finite")
        try:
            with warnings.catch_warnings():  # spglib announces a change of its error handling, on every call
                warnings.simplefilter("ignore", DeprecationWarning)
                reduced = spglib.niggli_reduce(cell.numpy(), eps=tolerance)
        except Exception as error:
            raise ValueError(f"lattice {i} cannot be reduced: {error}") from error
        if reduced is None:
            raise ValueError(f"lattice {i} cannot be reduced: the Niggli search did not end")
        steps[i] = torch.linalg.solve(cell, torch.from_numpy(reduced.copy()), left=False).round()
    # all three vectors may change sign together without leaving the reduced form
    steps = steps * torch.linalg.det(steps).round().reshape(-1, 1, 1)
    transformation = steps.to(lattice.device, torch.long).reshape(lattice.shape)
    return transformation.to(lattice.dtype) @ lattice, transformation


def primitive(structure: Structure, tolerance: float = 0.25) -> Structure:
    """Primitive cell of a pymatgen Structure, with its `properties`; tolerance in ångström (pymatgen's search)."""
    reduced = structure.get_primitive_structure(tolerance=tolerance)
    reduced.properties = dict(structure.properties)
    return reduced


def _check(lattice: Tensor) -> None:
    if lattice.dim() < 2 or tuple(lattice.shape[-2:]) != (3, 3):
        raise ValueError(f"lattice must have shape (..., 3, 3), got {tuple(lattice.shape)}")


def _basis(like: Tensor) -> Tensor:
    """Orthonormal basis (6, 3, 3) of the symmetric matrices: three shears, two deviatoric strains, the volume."""
    h, s, u = 1 / math.sqrt(2), 1 / math.sqrt(6), 1 / math.sqrt(3)
    rows = [
        [[0, h, 0], [h, 0, 0], [0, 0, 0]],
        [[0, 0, h], [0, 0, 0], [h, 0, 0]],
        [[0, 0, 0], [0, 0, h], [0, h, 0]],
        [[h, 0, 0], [0, -h, 0], [0, 0, 0]],
        [[s, 0, 0], [0, s, 0], [0, 0, -2 * s]],
        [[u, 0, 0], [0, u, 0], [0, 0, u]],
    ]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _log_difference(x: Tensor, y: Tensor) -> Tensor:
    """(log x - log y) / (x - y), 1 / x where they are equal."""
    ratio = (x - y) / (x + y)
    safe = torch.where(ratio == 0, torch.ones_like(ratio) / 2, ratio)
    return torch.where(ratio == 0, torch.ones_like(ratio), torch.atanh(safe) / safe) * 2 / (x + y)


def _exp_difference(x: Tensor, y: Tensor) -> Tensor:
    """(exp x - exp y) / (x - y), exp x where they are equal."""
    half = (x - y) / 2
    safe = torch.where(half == 0, torch.ones_like(half), half)
    return torch.exp((x + y) / 2) * torch.where(half == 0, torch.ones_like(half), torch.sinh(safe) / safe)


class _Spectral(torch.autograd.Function):
    """f of a symmetric matrix. autograd's own eigh has infinite gradients for equal eigenvalues (a cubic cell);
    the divided differences of f (Daleckii-Krein) have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], difference: Callable) -> Tensor:
        bad = ~torch.isfinite(x).all(-1).all(-1)  # eigh refuses them on some machines
        values, vectors = torch.linalg.eigh(torch.where(bad[..., None, None], torch.eye(3).to(x), x))
        values = torch.where(bad[..., None], torch.nan, values)
        ctx.save_for_backward(values, vectors)
        ctx.difference = difference
        return (vectors * f(values).unsqueeze(-2)) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        values, vectors = ctx.saved_tensors
        weight = ctx.difference(values.unsqueeze(-1), values.unsqueeze(-2))
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        return vectors @ (inner * weight) @ vectors.mT, None, None
