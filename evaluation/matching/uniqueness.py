"""Uniqueness and novelty: which samples are the same crystal (matching.sameness), and which are already known.

Being the same depends on the order of the two crystals and is not transitive, so the number of different crystals
depends on how they are grouped:

"first-come": a crystal joins the first group whose first member fits it, fit(first member, crystal), as in pymatgen's
group_structures; the number depends on the order of the samples.
"components": connected components of the relation "fit in either direction"; the number does not depend on the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from evaluation.matching.sameness import ORDERED, Sameness, Search
from evaluation.validity import unusable

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

Grouping = Literal["first-come", "components"]


@dataclass(frozen=True)
class Uniqueness:
    """N crystals in groups of the same crystal.

    group (N,): number of the group, counted from 0 in the order of the first members; -1 for a crystal that cannot be
    compared, and reasons (N,) says why. unclear: pairs that could not be compared in time; they count as different.
    """

    group: NDArray[np.int64]
    reasons: list[str]
    unclear: int
    grouping: Grouping
    sameness: Sameness

    @property
    def unique(self) -> NDArray[np.bool_]:
        """Whether each crystal (N,) is the first of its group."""
        first = np.zeros(len(self.group), dtype=bool)
        first[np.unique(self.group, return_index=True)[1]] = True
        return first & (self.group >= 0)


@dataclass(frozen=True)
class Novelty:
    """N crystals against a reference.

    known (N,): index of the first crystal of the reference that is the same, -1 where there is none. reasons (N,): why
    a crystal cannot be compared; it is not novel. unclear: as in `Uniqueness`. reference: its name.
    """

    known: NDArray[np.int64]
    reasons: list[str]
    unclear: int
    reference: str
    sameness: Sameness

    @property
    def novel(self) -> NDArray[np.bool_]:
        """Whether each crystal (N,) is comparable and not in the reference."""
        return (self.known < 0) & ~np.array([bool(reason) for reason in self.reasons], dtype=bool)


def uniqueness(
    crystals: CrystalBatch,
    sameness: Sameness = ORDERED,
    grouping: Grouping = "first-come",
    processes: int | None = None,
    device: str | torch.device = "cpu",
) -> Uniqueness:
    """Group the crystals of a batch. processes: of the reduction, default all cores; device: of the alignment."""
    if grouping not in ("first-come", "components"):
        raise ValueError(f"grouping = '{grouping}', allowed: first-come, components")
    search = Search(crystals, None, sameness, processes, device)
    if grouping == "components":
        group = _components(search.matches(both_ways=True), len(crystals))
    else:
        group = _first_come(search.matches(), len(crystals))
    comparable = np.array([not reason for reason in search.reasons], dtype=bool)
    numbered = np.full(len(group), -1)
    numbered[comparable] = _counted(group[comparable])
    return Uniqueness(numbered, search.reasons, search.unclear, grouping, sameness)


def novelty(
    crystals: CrystalBatch,
    reference: CrystalBatch,
    name: str,
    sameness: Sameness = ORDERED,
    processes: int | None = None,
    device: str | torch.device = "cpu",
) -> Novelty:
    """Compare every crystal with those of the reference, called `name`, that have its reduced composition.

    A crystal is known where fit(crystal, one of the reference). Raises ValueError for a reference that holds crystals
    which cannot be compared.
    """
    if bad := [f"crystal {j}: {reason}" for j, reason in enumerate(unusable(reference)) if reason]:
        raise ValueError(f"reference '{name}' cannot be compared with: {bad[0]} ({len(bad)} of {len(reference)})")
    search = Search(crystals, reference, sameness, processes, device)
    matched = search.matches()
    every = len(crystals) + len(reference)
    known = np.full(len(crystals), every)
    np.minimum.at(known, matched[:, 0], matched[:, 1])
    known = np.where(known < every, known - len(crystals), -1)
    return Novelty(known, search.reasons[: len(crystals)], search.unclear, name, sameness)


def _first_come(matched: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """First member (N,) of the group of each: the first of the earlier first members that it equals, else itself."""
    group = np.arange(count)
    for i, j in matched[np.lexsort((matched[:, 0], matched[:, 1]))].tolist():
        if group[i] == i and group[j] == j:
            group[j] = i
    return group


def _counted(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups numbered from 0 in the order in which they appear."""
    _, first, which = np.unique(group, return_index=True, return_inverse=True)
    return first.argsort().argsort()[which]


def _components(matched: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Component (N,) of each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(matched)), (matched[:, 0], matched[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
