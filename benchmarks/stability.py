"""EDM's bond orders and stability of 10,000 molecules: whole batches against the double loop over the atoms.

The double loop is written as the code of the literature is: rows of arrays, element symbols, a nested dictionary for
each order. Predicted before measuring: 1.5 million pairs at 4 microseconds against 0.05, so 50 to 100 times. A loop
over plain floats with the thresholds in one dictionary is several times faster than that and stands beside without a
bound. The orders of all pairs must be identical. QM9 molecules where ATOMSMITH_DATA is set, else random ones of such
sizes.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import interleave, ratio
from chem.molecules import MoleculeBatch
from evaluation.molecules.stability import MARGINS, edm_stability, lookup
from evaluation.molecules.tables import edm_valences, thresholds

COUNT, REPEATS = 10_000, 3
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
Found = tuple[dict[tuple[int, int], int], bool]  # order of every bonded pair, and whether the molecule is stable
Table = dict[str, dict[str, float]]


def molecules(n: int = COUNT) -> MoleculeBatch:
    """n molecules, drawn from the training set of QM9 where it is there."""
    generator = torch.Generator().manual_seed(0)
    if os.environ.get("ATOMSMITH_DATA"):
        from chem.datasets import load

        batch = load("qm9", "train").batch
        return batch.select(torch.randperm(len(batch), generator=generator)[:n])
    counts = torch.randint(9, 28, (n,), generator=generator)
    atoms = int(counts.sum())
    z = torch.tensor(list(SYMBOLS))[torch.randint(0, 5, (atoms,), generator=generator)]
    pos = 2 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    return MoleculeBatch(counts, atomic_numbers=z, pos=pos)


def over_arrays(molecules: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> list[Found]:
    """The double loop over arrays (N,) and (N, 3)."""
    tables, found = _tables(), []
    for numbers, pos in molecules:
        orders = {}
        for i in range(len(numbers)):
            for j in range(i + 1, len(numbers)):
                distance = np.sqrt(np.sum((pos[i] - pos[j]) ** 2))
                if order := _order(tables, SYMBOLS[int(numbers[i])], SYMBOLS[int(numbers[j])], 100 * distance):
                    orders[i, j] = order
        found.append((orders, _stable(numbers.tolist(), orders)))
    return found


def over_floats(molecules: list[tuple[list[int], list[list[float]]]]) -> list[Found]:
    """The double loop over lists, as fast as plain Python does it."""
    table, found = thresholds(MARGINS), []
    limits = {(a, b): tuple(table[:, a, b].tolist()) for a in SYMBOLS for b in SYMBOLS}
    for numbers, pos in molecules:
        orders = {}
        for i in range(len(numbers)):
            for j in range(i + 1, len(numbers)):
                (x, y, z), (u, v, w) = pos[i], pos[j]
                dx, dy, dz = x - u, y - v, z - w
                distance = 100 * math.sqrt(dx * dx + dy * dy + dz * dz)
                single, double, triple = limits[numbers[i], numbers[j]]
                if distance < single:
                    orders[i, j] = 1 if not distance < double else 2 if not distance < triple else 3
        found.append((orders, _stable(numbers, orders)))
    return found


def run(count: int = COUNT) -> list[tuple[str, str, str]]:
    """CPU seconds of the three, the ratios, and how many orders and verdicts differ."""
    batch = molecules(count)
    cuts = batch["ptr"].tolist()
    spans = list(zip(cuts, cuts[1:], strict=False))
    z, pos = batch["atomic_numbers"], batch["pos"]
    arrays = [(z[a:b].numpy(), pos[a:b].numpy()) for a, b in spans]
    lists = [(numbers.tolist(), points.tolist()) for numbers, points in arrays]

    def whole() -> list[bool]:
        return edm_stability(batch, *lookup(batch)).stable.tolist()

    pairs, orders = lookup(batch)
    ours = {(i, j): order for (i, j), order in zip(pairs.T.tolist(), orders.tolist(), strict=True)}
    differ = 0
    for found in (over_arrays(arrays), over_floats(lists)):
        theirs = {
            (a + i, a + j): o for (a, _), (bonds, _) in zip(spans, found, strict=True) for (i, j), o in bonds.items()
        }
        differ += len(ours.items() ^ theirs.items())
        differ += sum(a != b for a, (_, b) in zip(whole(), found, strict=True))
    calls = {"arrays": lambda: over_arrays(arrays), "floats": lambda: over_floats(lists), "batch": whole}
    times = interleave(calls, repeats=REPEATS, warmups=0)
    seconds = {name: sorted(taken)[len(taken) // 2] for name, taken in times.items()}
    name = f"stability of {count} molecules"
    return [
        (f"{name}, double loop over arrays", f"{seconds['arrays']:.2f} s", ""),
        (f"{name}, double loop over floats", f"{seconds['floats']:.2f} s", ""),
        (f"{name}, batch", f"{seconds['batch']:.3f} s, {differ} differences in {len(ours)} orders", "0 differences"),
        ("stability, loop over arrays / batch", f"{ratio(times, 'arrays', 'batch'):.0f}x", ">= 15x"),
        ("stability, loop over floats / batch", f"{ratio(times, 'floats', 'batch'):.1f}x", ""),
    ]


def _tables() -> tuple[Table, Table, Table]:
    all_of_it = thresholds(MARGINS)
    single, double, triple = (
        {s: {t: float(part[a, b]) for b, t in SYMBOLS.items() if part[a, b] > 0} for a, s in SYMBOLS.items()}
        for part in all_of_it
    )
    return single, double, triple


def _order(tables: tuple[Table, Table, Table], a: str, b: str, distance: float) -> int:
    order = 0
    for table in tables:
        if b not in table[a] or not distance < table[a][b]:
            break
        order += 1
    return order


def _stable(numbers: list[int], orders: dict[tuple[int, int], int]) -> bool:
    valence, allowed = [0] * len(numbers), edm_valences()
    for (i, j), order in orders.items():
        valence[i] += order
        valence[j] += order
    return all(v < allowed.shape[1] and allowed[z, v] for z, v in zip(numbers, valence, strict=True))
