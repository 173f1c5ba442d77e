"""Match rate of 1,000 pairs on 2 processes: ours against pymatgen's own matcher in a plain pool of 2 processes.

Ours does more: it can kill each pair, it also tries the strict tolerances, and it filters by formula. Predicted before
measuring: 20 ms a pair for both, the second tolerances add 10 %, and the start of two processes 2 s. The pairs are
MP-20 validation crystals and their element substitutions from train (needs ATOMSMITH_DATA). Both are timed in
turn, start of the processes included, on the same cores.
"""

from __future__ import annotations

import multiprocessing
import os
import time

COUNT, PROCESSES = 1000, 2


def _pymatgen(pair: tuple) -> float | None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    found = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist(*pair)
    return None if found is None else float(found[0])


def _equal(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) < 1e-9


def run(count: int = COUNT) -> list[tuple[str, str, str]]:
    """Wall seconds of both, their ratio, and whether every pair got the same answer."""
    if not os.environ.get("ATOMSMITH_DATA"):
        return [("matching", "skipped: ATOMSMITH_DATA is not set", "")]
    from chem.convert import to_structures
    from chem.datasets import load
    from evaluation.baselines import substitution
    from evaluation.matching.pairs import match_pairs
    from evaluation.protocols import DIFFCSP

    targets = load("mp20", "val").batch[:count]
    made, candidates = substitution(load("mp20", "train").batch, targets)
    pairs = [(rows[0], j) for j, rows in enumerate(candidates) if rows]
    start = time.perf_counter()
    ours = match_pairs(made, targets, pairs, DIFFCSP, PROCESSES)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    made_s, targets_s = to_structures(made), to_structures(targets)
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        theirs = pool.map(_pymatgen, [(made_s[i], targets_s[j]) for i, j in pairs], chunksize=8)
    plain = time.perf_counter() - start
    same = sum(_equal(a.rms, b) for a, b in zip(ours, theirs, strict=True))
    hits = sum(match.rms is not None for match in ours)
    name = f"matching {len(pairs)} pairs, {PROCESSES} processes"
    return [
        (f"{name}, killable, two tolerances", f"{seconds:.1f} s, {hits} matched", ""),
        (f"{name}, pymatgen in a pool", f"{plain:.1f} s, {same} of {len(pairs)} answers equal", "all"),
        ("matching, ours / pymatgen", f"{seconds / plain:.2f}x", "<= 1x"),
    ]
