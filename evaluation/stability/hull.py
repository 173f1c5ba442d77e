"""Energy above the convex hull of a table of reference phases, with the phases that a composition decomposes into.

Energies are formation energies in eV/atom: the elements are at zero and always belong to the hull. A composition is
weighed against the phases made of its own elements alone, and the lowest energy of a mixture of them is a linear
program of one row per element (stability.simplex). The distance is signed: below the hull of the reference it is
negative.

A hull is as good as its table: `e_hull[mp20]` lacks the phases of the Materials Project with more than 20 atoms a cell
and those of the test split, so that distances are underestimated. A number is quoted with the hull's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.compositions.amounts import COLUMNS, Composition, amounts, symbols
from evaluation.stability.phases import Phases, composition_shares
from evaluation.stability.simplex import Optimum, minimise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from chem.crystals import CrystalBatch
    from evaluation.stability.references import ElementalReferences

AT_ONCE = 200_000  # numbers in the columns of the problems that are solved together
SYSTEMS = 4096  # whose phases are looked up together
NOBODY = -1  # in place of a phase
TRACE = 1e-8  # smaller shares of a mixture are rounding


@dataclass(frozen=True)
class HullDistances:
    """Of B compositions: e_above_hull (B,) and hull_energy (B,) in eV/atom, NaN where there is a reason.

    mixtures (B): the phases of lowest energy, formula to share of the atoms. reasons (B): why a composition has no
    number, in one line, else "". metric: the name to quote.
    """

    e_above_hull: NDArray[np.float64]
    hull_energy: NDArray[np.float64]
    mixtures: list[dict[str, float]]
    reasons: list[str]
    metric: str


class Hull:
    """The lower convex hull of reference phases.

    name: of the table. formulas (R), energies (R,): its phases and their formation energies in eV/atom; of each
    composition the lowest counts. elements: atomic numbers with a reference energy, by default all of the table.
    references: the energies of the elements where the table had total energies, which makes their scale its own.
    Raises ValueError for a bad formula or energies that are not R finite numbers.
    """

    def __init__(
        self,
        name: str,
        formulas: Sequence[str],
        energies: ArrayLike,
        elements: Sequence[int] | None = None,
        references: ElementalReferences | None = None,
    ):
        values = np.asarray(energies, dtype=np.float64)
        if values.shape != (len(formulas),) or not np.isfinite(values).all():
            raise ValueError(
                f"energies of shape {values.shape}, allowed: {len(formulas)} finite numbers, one a formula"
            )
        self.metric, self.references = f"e_hull[{name}]", references
        self.phases = Phases(formulas, values, elements)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the sha256 of compositions, energies and elements; names of phases are left out."""
        phases = self.phases
        order = np.lexsort(phases.shares.T)
        parts = (phases.shares[order], phases.energies[order], np.array(sorted(phases.elements), dtype=np.int64))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]

    def with_phases(self, name: str, formulas: Sequence[str], energies: ArrayLike) -> Hull:
        """The hull of further phases too: self-consistent when they are the samples, none of which is then below it."""
        both = np.concatenate([self.phases.energies, np.asarray(energies, dtype=np.float64)])
        return Hull(name, [*self.phases.formulas, *formulas], both, sorted(self.phases.elements), self.references)

    def distances(
        self,
        compositions: CrystalBatch | Sequence[Composition],
        energies: ArrayLike | None = None,
        exclude_self: bool = False,
        device: torch.device | str | None = None,
    ) -> HullDistances:
        """How far each composition lies above the hull, and what it decomposes into.

        energies (B,): formation energies in eV/atom; None asks for the hull alone. exclude_self: the reference phase of
        the same composition takes no part, so that a member of the reference is judged by the others; an element stays
        at its zero. device: of the linear programs. An element without reference is a reason and stops nothing.
        """
        table = amounts(compositions, "cpu").numpy()
        given = np.full(len(table), np.nan) if energies is None else np.asarray(energies, dtype=np.float64)
        if given.shape != (len(table),):
            raise ValueError(f"energies of shape {given.shape}, allowed: one for each of {len(table)} compositions")
        reasons = self._unknown(table)
        lowest, mixtures = np.full(len(table), np.nan), [dict[str, float]() for _ in reasons]
        shares = composition_shares(table)
        usable = np.array([not why for why in reasons], dtype=bool)
        for part in _problems(self.phases, shares, usable, exclude_self):
            found = minimise(*_columns(self.phases, part, device))
            lowest[part.rows] = found.value.cpu().numpy()
            for i, mixture in zip(part.rows, _mixtures(self.phases, part, found), strict=True):
                mixtures[i] = mixture
        if energies is not None:
            reasons = [why or ("" if np.isfinite(e) else "no energy") for why, e in zip(reasons, given, strict=True)]
        return HullDistances(given - lowest, lowest, mixtures, reasons, self.metric)

    def _unknown(self, table: NDArray[np.float64]) -> list[str]:
        """Why each composition has no place on the hull, "" where it has."""
        known = np.zeros(table.shape[1], dtype=bool)
        known[list(self.phases.elements)] = True
        reasons = ["" if some else "no atoms" for some in (table > 0).sum(1)]
        for i in np.flatnonzero(table[:, ~known].any(1)):
            missing = np.flatnonzero((table[i] > 0) & ~known).tolist()
            reasons[i] = f"no reference energy of {', '.join(symbols(missing))} in {self.metric}"
        return reasons


@dataclass(frozen=True)
class _Problems:
    """Compositions of m elements each: rows (G,), elements and shares (G, m), phases (G, N) with NOBODY in the gaps."""

    rows: NDArray[np.int64]
    elements: NDArray[np.int64]
    shares: NDArray[np.float64]
    phases: NDArray[np.int64]


def _problems(
    phases: Phases, shares: NDArray[np.float64], usable: NDArray[np.bool_], alone: bool
) -> Iterator[_Problems]:
    """The usable compositions by number of elements and then of phases, cut at AT_ONCE; alone: without themselves."""
    kinds = (shares > 0).sum(1)
    for m in np.unique(kinds[usable]).tolist():
        alike = np.flatnonzero(usable & (kinds == m))
        for rows in (alike[i : i + SYSTEMS] for i in range(0, len(alike), SYSTEMS)):
            which, members = phases.within(np.nonzero(shares[rows])[1].reshape(-1, m))
            if alone:
                own = [phases.find(shares[i]) for i in rows]
                other = members != np.array([NOBODY if j is None else j for j in own])[which]
                which, members = which[other], members[other]
            counts = np.bincount(which, minlength=len(rows))
            first, members = counts.cumsum() - counts, np.append(members, NOBODY)
            for part in _cut(counts, m):
                slots = np.arange(counts[part].max())
                at = np.where(slots < counts[part, None], first[part, None] + slots, -1)
                elements = np.nonzero(shares[rows[part]])[1].reshape(-1, m)
                own_shares = np.take_along_axis(shares[rows[part]], elements, 1)
                yield _Problems(rows[part], elements, own_shares, members[at])


def _cut(counts: NDArray[np.int64], m: int) -> Iterator[NDArray[np.int64]]:
    """Positions of the counts in ascending order, as many at a time as AT_ONCE allows when padded to the largest."""
    order = counts.argsort(kind="stable")
    sizes = m * (m + counts[order])
    while len(order):
        fit = int(np.searchsorted(sizes * np.arange(1, len(sizes) + 1), AT_ONCE, "right"))
        yield order[: max(fit, 1)]
        order, sizes = order[max(fit, 1) :], sizes[max(fit, 1) :]


def _columns(phases: Phases, part: _Problems, device: torch.device | str | None) -> tuple[Tensor, Tensor, Tensor]:
    """What evaluation.stability.simplex is given: the elements at zero, then the phases."""
    import torch

    arrays = (part.elements, part.phases, part.shares, phases.shares, phases.energies)
    elements, members, own, shares, energies = (torch.from_numpy(array).to(device) for array in arrays)
    count, m = elements.shape
    unit = torch.eye(m, dtype=own.dtype, device=own.device).unsqueeze(1).expand(-1, count, -1)
    columns = torch.cat((unit, shares[members, elements.T.unsqueeze(2)]), dim=2)
    costs = torch.cat((torch.zeros_like(own), energies[members].masked_fill(members == NOBODY, torch.inf)), dim=1)
    return columns, costs, own


def _mixtures(phases: Phases, part: _Problems, found: Optimum) -> Iterator[dict[str, float]]:
    both = np.concatenate((part.elements, COLUMNS + part.phases), axis=1)
    names = np.take_along_axis(both, found.basis.cpu().numpy(), axis=1)
    for used, weights in zip(names.tolist(), found.weights.tolist(), strict=True):
        yield {phases.names[j]: share for j, share in zip(used, weights, strict=True) if share > TRACE}
