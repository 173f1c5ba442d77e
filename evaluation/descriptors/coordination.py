"""How many neighbours an atom has, as weights of all answers: CrystalNN (Pan et al., Inorg. Chem. 2021).

A face of the Voronoi cell weighs its solid angle squared over its area, times 1 + 3 sqrt(|difference of Pauling
electronegativities| / 3.3), over the largest of the atom; a bond longer than the sum of the covalent radii loses
weight from 0.5 Å beyond it and all from 1 Å. Weights are rounded to three decimals. Every distinct weight w is a
threshold; the number of faces at or above it is an answer, with the share of the quarter circle between w and the next
lower weight.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from chem.crystals import CrystalBatch
    from evaluation.descriptors.voronoi import Faces

POLARITY, LARGEST_DIFFERENCE = 3.0, 3.3
FULL, NONE = 0.5, 1.0  # ångström beyond the sum of the radii
DECIMALS = 3


class Coordination(NamedTuple):
    """Of the atoms (M,) of a batch: vectors (M, K, 3) to their neighbours in ångström, strongest first.

    shares (M, K): at k the weight of the answer that there are k + 1 neighbours, the first k + 1.
    """

    vectors: Tensor
    shares: Tensor


def coordination(batch: CrystalBatch, faces: Faces) -> Coordination:
    """Neighbours and weights of all atoms; zeros for an atom without faces."""
    import torch

    weight = _face_weights(batch["atomic_numbers"], faces)
    # atoms in order, and the weights of each from large to small; faces are sorted by atom already
    order = torch.argsort(weight, descending=True, stable=True)
    order = order[torch.argsort(faces.site[order], stable=True)]
    site, atoms = faces.site[order], len(batch["atomic_numbers"])
    counts = torch.bincount(site, minlength=atoms)
    place = torch.arange(len(site), device=site.device) - (torch.cumsum(counts, 0) - counts)[site]
    width = int(counts.max()) + 1 if len(site) else 1
    vectors = faces.vector.new_zeros(atoms, width, 3)
    weights = faces.vector.new_zeros(atoms, width)
    vectors[site, place] = faces.vector[order]
    weights[site, place] = torch.round(weight[order], decimals=DECIMALS)
    filled = _quarter_circle(weights)
    return Coordination(vectors[:, :-1], filled[:, :-1] - filled[:, 1:])


def elements_without_radius() -> set[int]:
    """Atomic numbers of the elements that no bond length is known for."""
    return {z for z in range(1, 119) if math.isnan(_table()[1][z])}


def _face_weights(numbers: Tensor, faces: Faces) -> Tensor:
    import torch

    negativity, radius = (torch.tensor(column).to(faces.vector)[numbers] for column in _table())
    i, j = faces.site, faces.neighbour
    polarity = 1 + POLARITY * ((negativity[i] - negativity[j]).abs() / LARGEST_DIFFERENCE).sqrt()
    polarity = torch.where(polarity.isnan(), 1.0, polarity)
    # a face that only touches has neither angle nor area
    weight = faces.angle**2 / faces.area.clamp(min=torch.finfo(faces.area.dtype).tiny) * polarity
    largest = weight.new_zeros(len(numbers)).scatter_reduce(0, i, weight, "amax")
    beyond = faces.vector.norm(dim=-1) - radius[i] - radius[j]
    falling = (torch.cos((beyond - FULL) / (NONE - FULL) * math.pi) + 1) / 2
    reach = torch.where(beyond <= FULL, 1.0, torch.where(beyond < NONE, falling, 0.0))
    return weight / largest[i] * reach


def _quarter_circle(x: Tensor) -> Tensor:
    """Share of the area of a quarter of the unit circle that lies below abscissa x in [0, 1]."""
    return (x * (1 - x * x).clamp(min=0).sqrt() + x.asin()) * (2 / math.pi)


@cache
def _table() -> tuple[list[float], list[float]]:
    """Pauling electronegativity and covalent radius in ångström (else atomic) by atomic number; NaN for none."""
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core import Element

    negativity, radii = [math.nan], [math.nan]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen says that noble gases have no electronegativity
        for z in range(1, 119):
            element = Element.from_Z(z)
            radius = CovalentRadius.radius.get(element.symbol, element.atomic_radius)
            negativity.append(float(element.X))
            radii.append(math.nan if radius is None else float(radius))
    return negativity, radii
