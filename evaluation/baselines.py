"""Baselines of structure prediction that learn nothing: what a model has to beat.

`random_coordinates` puts the right atoms at random into the true cell; on high symmetry that matches
surprisingly often.

`substitution` answers with a training crystal: among those with the same multiset of atom counts per cell, the one
whose elements are nearest in Mendeleev number (Pettifor), elements of equal count paired in that order, and the mean
of the differences over the elements as distance. On MP-20 it reaches 70 % k = 1 without a validity filter.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

Elements = tuple[tuple[int, ...], "NDArray[np.int64]"]  # sorted counts, and elements in the order of (count, Mendeleev)


def random_coordinates(targets: CrystalBatch, k: int = 1, seed: int = 0) -> CrystalBatch:
    """k crystals for each target, consecutive: its cell and atoms, fractional coordinates uniform in [0, 1).

    Those of target i depend on (seed, i) alone.
    """
    import torch

    if k < 1:
        raise ValueError(f"k = {k}, allowed: at least 1")
    made = targets[np.repeat(np.arange(len(targets)), k).tolist()].without(
        *(name for name in targets.fields if name not in ("atomic_numbers", "lattice"))
    )
    counts = targets["num_atoms"].tolist()
    frac = [np.random.default_rng([seed, i]).random((k * n, 3)) for i, n in enumerate(counts)]
    return made.replace(frac_coords=torch.from_numpy(np.concatenate([np.zeros((0, 3)), *frac])))


def substitution(train: CrystalBatch, targets: CrystalBatch, k: int = 1) -> tuple[CrystalBatch, list[list[int]]]:
    """The k nearest training crystals of each target with its elements in their places, by element substitution.

    Returns the crystals and, for each target, the indices of its candidates, nearest first; fewer than k, down to none,
    where too few training crystals have its counts. Ties keep the order of `train`. Cells keep the template's volume.
    """
    import torch

    if k < 1:
        raise ValueError(f"k = {k}, allowed: at least 1")
    library = _by_counts(train)
    number = _mendeleev()
    rows: list[int] = []
    ours, theirs, candidates = [], [], []
    for counts, elements in _all_elements(targets):
        index, templates = library.get(counts, (np.zeros(0, np.int64), np.zeros((0, len(counts)), np.int64)))
        distance = np.abs(number[templates] - number[elements]).mean(1)
        best = np.argsort(distance, kind="stable")[:k]
        candidates.append(list(range(len(rows), len(rows) + len(best))))
        rows += index[best].tolist()
        theirs += list(templates[best])
        ours += [elements] * len(best)
    made = train[rows].without(*(n for n in train.fields if n not in ("atomic_numbers", "frac_coords", "lattice")))
    numbers = made["atomic_numbers"].clone()
    cuts = made["ptr"].tolist()
    for i, (new, old) in enumerate(zip(ours, theirs, strict=True)):
        table = np.zeros(119, np.int64)
        table[old] = new
        span = slice(cuts[i], cuts[i + 1])
        numbers[span] = torch.from_numpy(table)[numbers[span]]
    return made.replace(atomic_numbers=numbers), candidates


def _all_elements(batch: CrystalBatch) -> list[Elements]:
    number = _mendeleev()
    found = []
    parts = np.split(batch["atomic_numbers"].cpu().numpy(), batch["ptr"][1:-1].tolist()) if len(batch) else []
    for numbers in parts:
        elements, counts = np.unique(numbers, return_counts=True)
        order = np.lexsort((elements, number[elements], counts))
        found.append((tuple(counts[order].tolist()), elements[order].astype(np.int64)))
    return found


def _by_counts(batch: CrystalBatch) -> dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sorted counts -> indices (T,) of the crystals with these and their elements (T, number of elements)."""
    groups = defaultdict(list)
    for i, (counts, elements) in enumerate(_all_elements(batch)):
        groups[counts].append((i, elements))
    return {c: (np.array([i for i, _ in g]), np.stack([e for _, e in g])) for c, g in groups.items()}


@cache
def _mendeleev() -> NDArray[np.float64]:
    """Mendeleev number (119,) by atomic number; beyond lawrencium, which has none, counted on in the order of Z."""
    from pymatgen.core import Element

    known = [float(Element.from_Z(z).mendeleev_no) for z in range(1, 104)]
    return np.array([0.0, *known, *(max(known) + i for i in range(1, 16))])
