"""The batched matcher against pymatgen's, one thread each, and whether they agree.

Both start from the same reduced cells, which are made once: the cached path of pymatgen skips its own reduction. A
second row for each counts the making of the cells on both sides. All pairs of Carbon-24 are what uniqueness needs; the
pairs of MP-20 are those of a match rate, validation crystals and their element substitutions from train, loose
tolerances first and then the strict ones on what matched. Needs ATOMSMITH_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import interleave, ratio

CARBON, MP20, REPEATS = 120, 300, 3
Row = tuple[str, str, str]


def run(carbon: int = CARBON, mp20: int = MP20) -> list[Row]:
    """Ratios of CPU time, and the number of pairs on which both agree."""
    if not os.environ.get("ATOMSMITH_DATA"):
        return [("matcher", "skipped: ATOMSMITH_DATA is not set", "")]
    from chem.datasets import load
    from evaluation.baselines import substitution
    from evaluation.matching.reduction import arrays_of_batch

    crystals = arrays_of_batch(load("carbon24", "val").batch[:carbon])
    pairs = np.stack(np.triu_indices(len(crystals), 1), 1)
    rows = _rows(f"Carbon-24, {len(pairs)} pairs, fit", crystals, pairs, _fit, _their_fit, ">= 8x, aim 20x")
    targets = load("mp20", "val").batch[:mp20]
    made, candidates = substitution(load("mp20", "train").batch, targets)
    crystals = arrays_of_batch(made) + arrays_of_batch(targets)
    pairs = np.array([(found[0], len(made) + j) for j, found in enumerate(candidates) if found])
    return rows + _rows(f"MP-20, {len(pairs)} pairs, match rate", crystals, pairs, _csp, _their_csp, ">= 2x, aim 5x")


def _rows(name: str, crystals: list, pairs: np.ndarray, ours: Callable, theirs: Callable, bound: str) -> list[Row]:
    from evaluation.matching.reduction import reduced, structure

    cells = [reduced(one) for one in crystals]
    structures, reduced_structures = [structure(one) for one in crystals], [structure(one) for one in cells]
    calls = {
        "ours": lambda: ours(cells, pairs),
        "theirs": lambda: theirs(reduced_structures, pairs),
        "our cells": lambda: [reduced(one) for one in crystals],
        "their cells": lambda: [_their_cell(one) for one in structures],
    }
    times = interleave(calls, repeats=REPEATS)
    times["our sum"] = [a + b for a, b in zip(times["ours"], times["our cells"], strict=True)]
    times["their sum"] = [a + b for a, b in zip(times["theirs"], times["their cells"], strict=True)]
    a, b = ours(cells, pairs), theirs(reduced_structures, pairs)
    with np.errstate(invalid="ignore"):  # infinite less infinite
        same = int(((np.isinf(a) & np.isinf(b)) | (np.abs(a - b) < 1e-6)).sum())
    counts = f"{same} of {a.size} values equal, {int(np.isnan(a).sum())} left to pymatgen"
    per_pair = f"{min(times['ours']) / len(pairs) * 1e6:.0f} us a pair, {counts}"
    return [
        (f"{name}, pymatgen / ours", f"{ratio(times, 'theirs', 'ours'):.1f}x, ours {per_pair}", bound),
        (f"{name}, making of the cells counted", f"{ratio(times, 'their sum', 'our sum'):.1f}x", ""),
    ]


def _their_cell(structure: Any) -> Any:
    return structure.get_reduced_structure("niggli").get_primitive_structure()


def _fit(cells: list, pairs: np.ndarray) -> np.ndarray:
    from evaluation.matching.matcher import Cells, best_values
    from evaluation.protocols import DEFAULT

    return np.where(np.isfinite(best_values(Cells(cells), pairs, DEFAULT, largest=True)), 0.0, np.inf)


def _their_fit(structures: list, pairs: np.ndarray) -> np.ndarray:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher()
    found = [matcher.fit(structures[i], structures[j], skip_structure_reduction=True) for i, j in pairs]
    return np.where(found, 0.0, np.inf)


def _csp(cells: list, pairs: np.ndarray) -> np.ndarray:
    from evaluation.matching.matcher import Cells, best_values
    from evaluation.protocols import DEFAULT, LOOSE

    ready = Cells(cells)
    values = np.full((2, len(pairs)), np.inf)
    values[0] = best_values(ready, pairs, LOOSE)
    matched = np.isfinite(values[0])
    values[1, matched] = best_values(ready, pairs[matched], DEFAULT)
    return values


def _their_csp(structures: list, pairs: np.ndarray) -> np.ndarray:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matchers = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10), StructureMatcher()
    values = np.full((2, len(pairs)), np.inf)
    for n, (i, j) in enumerate(pairs):
        for row, matcher in enumerate(matchers):
            # get_rms_dist without its reduction, which its public form cannot leave out
            prepared = matcher._preprocess(structures[i], structures[j], skip_structure_reduction=True)
            found = matcher._match(*prepared, use_rms=True)
            if found is None:
                break
            values[row, n] = found[0]
    return values
