"""When two crystals count as the same, and the search for equal ones among many.

Two crystals are the same where pymatgen's StructureMatcher.fit says so; `Sameness` names its tolerances. Only crystals
of one reduced composition are compared, and of those only reduced cells of equal content.

Disordered: elements that can take each other's place in an alloy count as one element. In one composition two elements
are interchangeable where their atomic radii differ by at most 30 % of the mean and their Pauling electronegativities by
at most 1 (a rule after Hume-Rothery, Zeni et al. 2025), and with them all elements that a chain of such pairs connects.
Crystals are then the same where they fit as they are or with interchangeable elements made equal. MatterGen makes only
the first crystal disordered and compares it with supercells of the second; here both are, and reduced again.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.compositions.smact import batch_counts
from evaluation.matching.pairs import fit
from evaluation.matching.reduction import Arrays, arrays_of_batch, reduced_cells, start
from evaluation.protocols import DEFAULT, Tolerances
from evaluation.validity import unusable
from evaluation.workers import Failed, limited_map

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

RADIUS_TOLERANCE, NEGATIVITY_TOLERANCE = 0.3, 1.0


@dataclass(frozen=True)
class Sameness:
    """When two crystals count as the same. seconds: limit of a crystal's reduction and of a pair left to pymatgen."""

    tolerances: Tolerances = DEFAULT
    disordered: bool = False
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.tolerances.attempt_supercell:
            raise ValueError("tolerances.attempt_supercell = True, allowed: False; compared are primitive cells")

    def as_dict(self) -> dict[str, Any]:
        """Every choice as plain data."""
        elements = {"radius_tolerance": RADIUS_TOLERANCE, "electronegativity_tolerance": NEGATIVITY_TOLERANCE}
        return asdict(self) | (elements if self.disordered else {})


ORDERED, DISORDERED = Sameness(), Sameness(disordered=True)


class Search:
    """The search for equal crystals: of a batch among themselves or, with `others`, of each with the others.

    reasons: why a crystal cannot be compared, empty where it can; what cannot be reduced is added. Crystals are
    numbered through, the others after the batch. unclear: pairs that could not be compared in time.
    """

    def __init__(
        self,
        crystals: CrystalBatch,
        others: CrystalBatch | None,
        sameness: Sameness,
        processes: int | None,
        device: str | torch.device,
    ):
        parts = [part for part in (crystals, others) if part is not None]
        self.crystals = [one for part in parts for one in arrays_of_batch(part)]
        self.labels = [one for part in parts for one in batch_counts(part)]
        self.reasons = [one for part in parts for one in unusable(part)]
        self.first = None if others is None else len(crystals)
        self.sameness, self.processes, self.device, self.unclear = sameness, processes, device, 0

    def matches(self, both_ways: bool = False) -> NDArray[np.int64]:
        """Pairs (Q, 2) of equal crystals i, j: fit(i, j), or with both_ways also fit(j, i) as the pair j, i.

        Among themselves j comes later in the batch than i; otherwise i is of the batch and j of the others.
        """
        wanted = self._wanted()
        found = self._matches({n: self.crystals[n] for n in wanted}, both_ways)
        if self.sameness.disordered:
            merged = {n: _merged(self.crystals[n]) for n in wanted if not self.reasons[n]}
            changed = {n: crystal for n, crystal in merged.items() if crystal is not self.crystals[n]}
            found = np.concatenate([found, self._matches(changed, both_ways)])
        return found

    def _wanted(self) -> list[int]:
        """The usable crystals that share their composition with one that they are to be compared with."""
        usable = [n for n, reason in enumerate(self.reasons) if not reason]
        if self.first is None:
            count = Counter(self.labels[n] for n in usable)
            return [n for n in usable if count[self.labels[n]] > 1]
        known = {self.labels[n] for n in usable if n < self.first} & {self.labels[n] for n in usable if n >= self.first}
        return [n for n in usable if self.labels[n] in known]

    def _matches(self, crystals: dict[int, Arrays], both_ways: bool) -> NDArray[np.int64]:
        from evaluation.matching.matcher import Cells, best_values

        tolerances, seconds = self.sameness.tolerances, self.sameness.seconds
        made = reduced_cells(list(crystals.values()), tolerances.primitive_cell, seconds, self.processes)
        cells = {n: cell for n, cell in zip(crystals, made, strict=True) if not isinstance(cell, Failed)}
        for n, cell in zip(crystals, made, strict=True):
            if isinstance(cell, Failed):
                self.reasons[n] = cell.reason
        index, ready = np.array(list(cells), dtype=np.int64), Cells(list(cells.values()), self.device)
        content = [(self.labels[n], c) for n, c in zip(cells, ready.composition.tolist(), strict=True)]
        pairs = _pairs(content, None if self.first is None else int((index < self.first).sum()))
        if both_ways:
            pairs = np.concatenate([pairs, pairs[:, ::-1]])
        values = best_values(ready, pairs, tolerances, largest=True)
        asked = np.flatnonzero(np.isnan(values)).tolist()
        if asked:
            tasks = ((*(crystals[n] for n in index[pairs[row]]), tolerances) for row in asked)
            for row, result in zip(asked, limited_map(fit, tasks, seconds, self.processes, start), strict=True):
                self.unclear += isinstance(result, Failed)
                values[row] = 0.0 if result is True else np.inf
        return index[pairs[np.isfinite(values)]]


def interchangeable(elements: Sequence[int]) -> dict[int, int]:
    """For each of these atomic numbers the smallest that it can be exchanged with, directly or through others."""
    leader = {z: z for z in elements}
    for a, b in combinations(sorted(leader), 2):
        if leader[a] != leader[b] and _substitute(a, b):
            low, high = sorted((leader[a], leader[b]))
            leader = {z: low if first == high else first for z, first in leader.items()}
    return leader


@cache
def _substitute(a: int, b: int) -> bool:
    from pymatgen.core import Element

    with warnings.catch_warnings():  # pymatgen announces on every look that an element has no electronegativity
        warnings.simplefilter("ignore")
        elements = [Element.from_Z(z) for z in (a, b)]
        (radius, x), (other_radius, other_x) = [(float(e.atomic_radius or "nan"), float(e.X)) for e in elements]
    near = abs(radius - other_radius) <= RADIUS_TOLERANCE * (radius + other_radius) / 2
    return near and abs(x - other_x) <= NEGATIVITY_TOLERANCE  # nothing is near to what is unknown, NaN


def _pairs(content: Sequence[Hashable], first: int | None) -> NDArray[np.int64]:
    """Every two positions (P, 2) of equal content: one with a later one, or one of the first with one of the others."""
    names: dict[Hashable, list[int]] = {}
    for n, one in enumerate(content):
        names.setdefault(one, []).append(n)
    found = [np.zeros((0, 2), np.int64)]
    for rows in map(np.array, names.values()):
        if first is None:
            found.append(rows[np.stack(np.triu_indices(len(rows), 1), 1)])
        else:
            grid = np.meshgrid(rows[rows < first], rows[rows >= first], indexing="ij")
            found.append(np.stack(grid, -1).reshape(-1, 2))
    return np.concatenate(found)


def _merged(crystal: Arrays) -> Arrays:
    """The crystal with interchangeable elements made equal; the crystal itself where there are none."""
    leader = interchangeable(np.unique(crystal.numbers).tolist())
    if all(z == first for z, first in leader.items()):
        return crystal
    return crystal._replace(numbers=np.array([leader[z] for z in crystal.numbers.tolist()]))
