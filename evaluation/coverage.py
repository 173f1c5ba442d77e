"""Coverage: how many reference crystals have a generated one nearby, and the reverse (Xie et al. 2022, after CDVAE).

Nearby means within two cut-offs: of structure fingerprints (descriptors.fingerprints) and of standardised Magpie
fingerprints (compositions.magpie). The nearest of both kinds are sought independently and need not be the same.
Precision is over all generated crystals, those without fingerprints included; recall over the reference crystals that
have both. The field draws 10,000 samples, valid or not; all recent models are beyond 99 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.descriptors.described import Described
from evaluation.protocols import Choices
from evaluation.report import Number, mean, rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Cutoffs:
    """Largest distance of structure and of composition fingerprints."""

    structure: float
    composition: float

    def __post_init__(self) -> None:
        for name in ("structure", "composition"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: a positive number")


CUTOFFS = {
    "mp20": Cutoffs(0.4, 10.0),
    "mpts52": Cutoffs(0.4, 10.0),
    "carbon24": Cutoffs(0.2, 4.0),
    "perov5": Cutoffs(0.2, 4.0),
}


def coverage(
    ours: Described, reference: Described, protocol: Choices, seed: int, cutoffs: Cutoffs = CUTOFFS["mp20"]
) -> list[Number]:
    """COV-R and COV-P, and the mean nearest distances of structure (amsd) and composition (amcd) both ways."""
    a, b = ours.fingerprinted, reference.fingerprinted
    distances = [
        nearest(found.values[a], known.values[b])
        for found, known in ((ours.structure, reference.structure), (ours.composition, reference.composition))
    ]
    limits = (cutoffs.structure, cutoffs.composition)
    precise, recalled = (
        np.logical_and(*(pair[side] <= limit for pair, limit in zip(distances, limits, strict=True))) for side in (0, 1)
    )
    note = f"cut-offs {cutoffs.structure:g} and {cutoffs.composition:g}"
    missing = f"{len(b) - int(b.sum())} others without fingerprints"
    everyone, known_ones = f"all {len(ours)} structures", f"{int(b.sum())} of the reference; {missing}"
    numbers = [
        rate("coverage_recall", int(recalled.sum()), int(b.sum()), known_ones, protocol, note),
        rate("coverage_precision", int(precise.sum()), len(ours), everyone, protocol, note),
    ]
    judged = f"{int(a.sum())} structures with fingerprints"
    for name, pair in zip(("amsd", "amcd"), distances, strict=True):
        for side, values, of in (("recall", pair[1], known_ones), ("precision", pair[0], judged)):
            finite = values[np.isfinite(values)]
            numbers.append(mean(f"{name}_{side}", finite, of, protocol, seed, "mean distance to the nearest"))
    return numbers


def nearest(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Euclidean distance from each row of a (A, D) to the nearest of b (B, D), and the reverse; infinite to no row."""
    import torch

    ours, theirs = torch.from_numpy(a), torch.from_numpy(b)
    to_b, to_a = torch.full((len(a),), torch.inf).double(), torch.full((len(b),), torch.inf).double()
    if len(a) and len(b):
        closest, which = torch.empty(len(a), dtype=torch.long), torch.zeros(len(b), dtype=torch.long)
        for start in range(0, len(a), ROWS_AT_ONCE):
            # the quick product rounds, by far less than neighbours differ: it finds them, and their distance is exact
            table = torch.cdist(ours[start : start + ROWS_AT_ONCE], theirs, compute_mode="use_mm_for_euclid_dist")
            closest[start : start + ROWS_AT_ONCE] = table.argmin(1)
            low, row = table.min(0)
            which, to_a = torch.where(low < to_a, row + start, which), torch.minimum(low, to_a)
        to_b, to_a = (ours - theirs[closest]).norm(dim=1), (theirs - ours[which]).norm(dim=1)
    return to_b.numpy(), to_a.numpy()
