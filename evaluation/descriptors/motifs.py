"""How much the bonds of an atom look like a motif: the order parameters of Zimmermann and Jain, for many atoms at once.

Every motif has a number of bonds and is judged from n unit vectors alone. Most follow Peters (J. Chem. Phys. 131,
244103, 2009): bond j is the pole, bond k fixes the meridian, and every other bond m adds, at its polar angle theta and
its azimuth phi, exp(-(width (theta / pi - target))^2 / 2) cos^2(fold phi / 2), over the number of bonds that add; the
parameter is the largest value over all j and k. A motif with a south pole counts bonds near theta = pi apart. q2, q4
and q6 are Steinhardt's. Constants and names are those of pymatgen's LocalStructOrderParams with its optimised
parameters (RSC Adv. 10, 6063, 2020), whose values these functions return, for the same order of bonds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 1e-12  # sine of the angle between two bonds below which they define no plane
SOUTH = 2.356194490192345  # radians
TETRAHEDRAL, THIRD = 0.6081734479693927, 0.66666666667  # fractions of 180 degrees
MOST_TERMS = 4_000_000  # entries of one array, which bounds the memory


@dataclass(frozen=True)
class Bonds:
    """E atoms with n bonds each: polar angles theta (E, n, n) of k about j, and cosines (E, n, n, n) of azimuths.

    azimuth[e, j, k, m]: of the angle between the planes of (j, k) and (j, m). plane: (E, n, n) whether j and k define a
    plane. third: (E, n, n, n) whether j, k and m are different and both planes are defined.
    """

    theta: Tensor
    azimuth: Tensor
    plane: Tensor
    third: Tensor

    @classmethod
    def of(cls, unit: Tensor) -> Bonds:
        """From unit vectors (E, n, 3)."""
        cosine = (unit @ unit.mT).clamp(-1, 1)
        across = unit.unsqueeze(1) - cosine.unsqueeze(-1) * unit.unsqueeze(2)  # (E, j, k, 3): k orthogonal to j
        length = across.norm(dim=-1)
        other = ~torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
        plane = (length >= ALIGNED) & other
        across = across / torch.where(plane, length, 1.0).unsqueeze(-1)
        azimuth = torch.einsum("ejkd,ejmd->ejkm", across, across).clamp(-1, 1)
        return cls(cosine.acos(), azimuth, plane, plane.unsqueeze(3) & plane.unsqueeze(2) & other)


@dataclass(frozen=True)
class Around:
    """A motif around a pole. targets: polar angles over pi, the nearest counts. width: over pi. fold: of the azimuth.

    south: None, or polar angle in radians from which a bond is at the south pole, and the width there. corner: leaves
    out bonds at azimuths beyond 135 degrees.
    """

    targets: tuple[float, ...]
    width: float
    fold: int
    south: tuple[float, float] | None = None
    corner: bool = False

    def __call__(self, bonds: Bonds) -> Tensor:
        """The order parameter (E,)."""
        theta = bonds.theta / math.pi
        distance = torch.stack([(theta - target).abs() for target in self.targets]).amin(0)
        polar = torch.exp(-0.5 * (self.width * distance) ** 2)
        counted = bonds.third
        start, south = ~torch.eye(theta.shape[1], dtype=torch.bool, device=theta.device).expand_as(theta), None
        if self.south is not None:
            south = bonds.theta >= self.south[0]
            start = start & ~south
            counted = counted & ~south.unsqueeze(3) & ~south.unsqueeze(2)
        if self.corner:
            counted = counted & (bonds.azimuth > -math.sqrt(0.5))
        weight = (1 + _cosine(self.fold, bonds.azimuth)) / 2 * counted
        total = polar * start + (weight @ polar.unsqueeze(-1)).squeeze(-1)
        number = start + counted.sum(-1).to(theta)
        if south is not None and self.south is not None:
            added, more = _southern(bonds, south, torch.exp(-0.5 * (self.south[1] * (theta - 1)) ** 2))
            total, number = total + added, number + more
        return _largest(total, number)


def _southern(bonds: Bonds, south: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of value_jm, and number, over the bonds m at the south pole of j other than k, (E, n, n)."""
    here = south & ~torch.eye(south.shape[1], dtype=torch.bool, device=south.device)
    value = value * here
    sums = [x.sum(-1, keepdim=True) - x for x in (value, here.to(value))]
    return sums[0] * bonds.plane, sums[1] * bonds.plane


def _cosine(fold: int, c: Tensor) -> Tensor:
    """cos(fold phi) of c = cos phi (Chebyshev)."""
    before, now = torch.ones_like(c), c
    for _ in range(fold - 1):
        before, now = now, 2 * c * now - before
    return now


def _largest(total: Tensor, number: Tensor) -> Tensor:
    """Largest total / number over pairs (E, n, n) with different bonds; 0 where nothing is counted."""
    other = ~torch.eye(total.shape[1], dtype=torch.bool, device=total.device)
    value = torch.where(number > 1e-12, total / number.clamp(min=1e-12), 0.0)
    return value.masked_fill(~other, -torch.inf).flatten(1).amax(1)


def _single(bonds: Bonds) -> Tensor:
    return bonds.theta.new_ones(len(bonds.theta))


def _bent(target: float, width: float) -> Callable[[Bonds], Tensor]:
    return lambda bonds: torch.exp(-0.5 * (width * (bonds.theta[:, 0, 1] / math.pi - target)) ** 2)


def _body_centred(bonds: Bonds) -> Tensor:
    """Eight corners; sums over j < k, so that it depends on the order of the bonds."""
    n = bonds.theta.shape[1]
    south = bonds.theta >= 2.5261129449194057
    pole = 6 * torch.exp(-0.5 * (15 * (bonds.theta / math.pi - 1)) ** 2) * south
    x = (bonds.theta - math.pi / 2) / math.asin(1 / 3)
    height = x * torch.exp(0.5 - 0.5 * x * x)  # at most 1, at the corners of a cube
    side = torch.where(bonds.theta > math.pi / 2, 1.0, -1.0) * ~south
    rest = ((_cosine(3, bonds.azimuth) * bonds.third) @ height.unsqueeze(-1)).squeeze(-1)
    return torch.triu(pole + side * rest, 1).sum((1, 2)) / (0.5 * n * (6 + (n - 2) * (n - 3)))


def _cuboctahedron(bonds: Bonds) -> Tensor:
    """Twelve bonds: rings of six at 90 degrees and of three at 60 and 120, and a south pole."""
    low, high, end = 1.3089969389957472, 1.8325957145940461, 2.792526803190927
    theta, share = bonds.theta, bonds.theta / math.pi
    south = theta >= end
    pole = torch.exp(-0.5 * (28.75 * (share - 1)) ** 2) * 1.8 * south
    middle = (theta > low) & (theta < high)
    above, below = theta < low, (theta > high) & ~south
    ring = torch.exp(-0.5 * (25.5 * (share - 0.5)) ** 2) * middle
    cap = sum(torch.exp(-0.5 * (31.25 * (share - at)) ** 2) * here for at, here in ((1 / 3, above), (2 / 3, below)))
    c = bonds.azimuth
    tilt = torch.exp(-0.5 * (0.0556 * ((1 - c * c).clamp(min=0).sqrt() - 0.81649658)) ** 2)
    third = bonds.third & middle.unsqueeze(3)  # the meridian goes through the ring
    rings = ((c * c * third) @ ring.unsqueeze(-1) + (tilt * third) @ torch.as_tensor(cap).unsqueeze(-1)).squeeze(-1)
    number = (third & (middle | above | below).unsqueeze(2)).sum(-1)
    return _largest(pole + rings, 1.8 * south + number)


def _steinhardt(degree: int) -> Callable[[Bonds], Tensor]:
    def parameter(bonds: Bonds) -> Tensor:
        c = bonds.theta.cos()
        before, now = torch.ones_like(c), c
        for k in range(1, degree):
            before, now = now, ((2 * k + 1) * c * now - k * before) / (k + 1)
        return now.mean((1, 2)).clamp(min=0).sqrt()

    return parameter


Motifs = dict[str, Callable[[Bonds], Tensor]]
_Q: Motifs = {f"q{degree}": _steinhardt(degree) for degree in (2, 4, 6)}

MOTIFS: dict[int, Motifs] = {
    1: {"sgl_bd": _single},
    2: {
        "L-shaped": _bent(0.5, 15.15),
        "water-like": _bent(0.5802777777777778, 13.95),
        "bent 120 degrees": _bent(0.666666666667, 13.25),
        "bent 150 degrees": _bent(0.833333333333333, 12.45),
        "linear": _bent(1.0, 8.667),
    },
    3: {
        "trigonal planar": Around((THIRD,), 17.5, 2),
        "trigonal non-coplanar": Around((TETRAHEDRAL,), 18.33, 3),
        "T-shaped": Around((0.5,), 15.5, 2),
    },
    4: {
        "square co-planar": Around((0.5,), 17.7, 2, (SOUTH, 13.5)),
        "tetrahedral": Around((TETRAHEDRAL,), 18.5, 3),
        "rectangular see-saw-like": Around((0.5,), 27.0, 4, (SOUTH, 11.5), corner=True),
        "see-saw-like": Around((0.5,), 15.75, 3, (SOUTH, 12.75)),
        "trigonal pyramidal": Around((0.5,), 15.5, 3),
    },
    5: {
        "pentagonal planar": Around((0.4, 0.8), 19.333, 2),
        "square pyramidal": Around((0.5,), 14.9, 4),
        "trigonal bipyramidal": Around((0.5,), 16.6, 3, (SOUTH, 12.0)),
    },
    6: {
        "hexagonal planar": Around((0.33333333, 0.66666667), 25.0, 2, (2.6179938779914944, 7.5)),
        "octahedral": Around((0.5,), 18.0, 4, (SOUTH, 15.0)),
        "pentagonal pyramidal": Around((0.5,), 13.8, 5),
    },
    7: {
        "hexagonal pyramidal": Around((0.5,), 12.5, 6),
        "pentagonal bipyramidal": Around((0.5,), 14.75, 5, (SOUTH, 12.5)),
    },
    8: {"body-centered cubic": _body_centred, "hexagonal bipyramidal": Around((0.5,), 13.6, 6, (SOUTH, 14.1))},
    9: _Q,
    10: _Q,
    11: _Q,
    12: {"cuboctahedral": _cuboctahedron, **_Q},
}


def order_parameters(unit: Tensor) -> Tensor:
    """The parameters (E, P) of MOTIFS[n] of atoms with n bonds along unit vectors (E, n, 3), strongest bond first."""
    n = unit.shape[1]
    motifs = MOTIFS[n].values()
    parts = []
    for part in unit.split(max(1, MOST_TERMS // n**3)):
        bonds = Bonds.of(part)
        parts.append(torch.stack([motif(bonds) for motif in motifs], -1))
    return torch.cat(parts)
