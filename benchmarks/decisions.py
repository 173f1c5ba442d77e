"""Does the batched matcher decide as pymatgen does, most of all where a decision hangs by a thread?

Crystals of MP-20, Perov-5 and Carbon-24 are compared with copies whose sites, lengths or angles are moved about as far
as a tolerance allows, and crystals of Carbon-24 with each other. Every decision of get_rms_dist, under the loose and
the strict tolerances, and of fit is asked of pymatgen itself, its own reduction included. A decision counts as near
where it changes when one of the three tolerances is made 10 % larger or smaller. Needs ATOMSMITH_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from evaluation.matching.reduction import Arrays, arrays_of_batch, reduced, structure
from evaluation.protocols import DEFAULT, LOOSE, Tolerances

COUNT, CARBON = 400, 80
SETS = ("mp20", "perov5", "carbon24")
TESTS = {"rms, loose": (LOOSE, False), "rms, strict": (DEFAULT, False), "fit": (DEFAULT, True)}
Pair = tuple[Arrays, Arrays]


@dataclass
class Tally:
    """What was found: decisions, of these near a tolerance, positive, different from pymatgen's; largest rms gap."""

    decisions: int = 0
    near: int = 0
    positive: int = 0
    different: int = 0
    left: int = 0
    gap: float = 0.0

    def add(self, pairs: list[Pair], tolerances: Tolerances, fit: bool) -> None:
        """Ask both about every pair."""
        cells = [reduced(crystal) for pair in pairs for crystal in pair]
        ours, theirs = decide(cells, tolerances, fit), asked(pairs, tolerances, fit)
        sure = ~np.isnan(ours)
        self.left += int((~sure).sum())
        ours, theirs = ours[sure], theirs[sure]
        both = np.isfinite(ours) & np.isfinite(theirs)
        near = np.zeros(len(pairs), dtype=bool)
        for name in ("ltol", "stol", "angle_tol"):
            for factor in (0.9, 1.1):
                other = decide(cells, replace(tolerances, **{name: getattr(tolerances, name) * factor}), fit)
                near[sure] |= np.isfinite(other[sure]) != np.isfinite(ours)
        self.decisions += len(ours)
        self.near += int(near.sum())
        self.positive += int(np.isfinite(theirs).sum())
        self.different += int((np.isfinite(ours) != np.isfinite(theirs)).sum())
        if not fit and both.any():
            self.gap = max(self.gap, float(np.abs(ours[both] - theirs[both]).max()))


def run(count: int = COUNT, carbon: int = CARBON, seed: int = 0) -> list[tuple[str, str, str]]:
    """Disagreements for `count` copies from each data set and all pairs of the first `carbon` Carbon-24 crystals."""
    if not os.environ.get("ATOMSMITH_DATA"):
        return [("decisions", "skipped: ATOMSMITH_DATA is not set", "")]
    from chem.datasets import load

    rows, total = [], Tally()
    for name in SETS:
        tally = Tally()
        crystals = arrays_of_batch(load(name, "val").batch[:count])
        for tolerances, fit in TESTS.values():
            tally.add(list(moved(crystals, tolerances, seed)), tolerances, fit)
        if name == "carbon24":
            some = crystals[:carbon]
            tally.add([(a, b) for n, a in enumerate(some) for b in some[n + 1 :]], DEFAULT, True)
        rows.append((f"decisions on {name}", described(tally), "none different"))
        for key, value in vars(tally).items():
            setattr(total, key, max(total.gap, value) if key == "gap" else getattr(total, key) + value)
    return [*rows, ("decisions in all", described(total), ">= 5000, >= 1000 near")]


def described(tally: Tally) -> str:
    """One line."""
    line = f"{tally.decisions}, {tally.near} near, {tally.positive} match, {tally.different} different"
    return f"{line}, {tally.left} left to pymatgen, rms within {tally.gap:.0e}"


def moved(crystals: list[Arrays], tolerances: Tolerances, seed: int) -> Iterator[Pair]:
    """Each crystal with a copy whose sites, lengths or angles are moved about as far as the tolerances allow."""
    from pymatgen.core import Lattice

    for n, crystal in enumerate(crystals):
        rng = np.random.default_rng([seed, n])
        numbers, frac, lattice = reduced(crystal)
        cell = Lattice(lattice)
        lengths, angles = np.array(cell.lengths), np.array(cell.angles)
        axis, way, sites = rng.integers(3), rng.integers(3), 0.02
        if way == 0:
            sites = tolerances.stol * rng.uniform(0.4, 1.0)
        elif way == 1:  # both cells are scaled to one volume, which takes a third of the stretch away
            lengths[axis] *= (1 + tolerances.ltol) ** (1.5 * rng.choice([-1, 1])) * rng.uniform(0.96, 1.04)
        else:
            angles[axis] += tolerances.angle_tol * rng.choice([-1, 1]) * rng.uniform(0.9, 1.1)
        made = Lattice.from_parameters(*lengths, *angles)
        step = sites * (abs(made.volume) / len(frac)) ** (1 / 3) * rng.standard_normal(frac.shape)
        yield Arrays(numbers, frac + step @ np.linalg.inv(made.matrix), np.array(made.matrix)), crystal


def decide(cells: list[Arrays], tolerances: Tolerances, fit: bool) -> np.ndarray:
    """Values of consecutive pairs of reduced cells by the batched matcher."""
    from evaluation.matching.matcher import Cells, best_values

    return best_values(Cells(cells), np.arange(len(cells)).reshape(-1, 2), tolerances, fit)


def asked(pairs: list[Pair], tolerances: Tolerances, fit: bool) -> np.ndarray:
    """The same by pymatgen from the crystals themselves; 0 where they fit."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol)
    values = np.full(len(pairs), np.inf)
    for n, (made, true) in enumerate(pairs):
        if fit:
            values[n] = 0.0 if matcher.fit(structure(made), structure(true)) else np.inf
        elif (found := matcher.get_rms_dist(structure(made), structure(true))) is not None:
            values[n] = found[0]
    return values
