"""CrystalNN fingerprints of MP-20 validation crystals, on one thread, against the route of matminer.

That route is written out here with pymatgen's classes, as matminer calls them: a Voronoi tessellation per site, then
one order parameter after the other in Python. Predicted before measuring: a tessellation of 100 points is 4 ms, the
convex hull that replaces it 0.2 ms; Python loops over triples of bonds become a few array operations. 10x or more.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

COUNT, ROUNDS = 20, 3


def plain_fingerprint(structure: Structure) -> NDArray[np.float64]:
    """The 61 columns, averaged over sites, by pymatgen's CrystalNN and LocalStructOrderParams."""
    from pymatgen.analysis.local_env import CrystalNN

    from evaluation.descriptors.motifs import MOTIFS

    finder, sites = CrystalNN(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no oxidation states are given, which pymatgen regrets for every site
        for i in range(len(structure)):
            found, row = finder.get_nn_data(structure, i), []
            for n in range(1, 25):
                weight = found.cn_weights.get(n, 0)
                row.append(weight)
                for name in MOTIFS.get(n, {}):
                    value = _parameter(n, name, structure[i], found.cn_nninfo[n]) if weight else 0.0
                    row.append(weight * value)
            sites.append(row)
    return np.mean(np.array(sites, dtype=np.float64), axis=0)


def _parameter(n: int, name: str, centre: Any, neighbours: list[dict[str, Any]]) -> float:
    sites = [centre, *(neighbour["site"] for neighbour in neighbours)]
    return _order(n, name).get_order_parameters(sites, 0, indices_neighs=list(range(1, n + 1)))[0] or 0.0


@cache
def _order(n: int, name: str) -> Any:
    from pymatgen.analysis.local_env import CN_OPT_PARAMS, LocalStructOrderParams

    tables: Any = CN_OPT_PARAMS
    kind, *parameters = tables.get(n, {}).get(name, [name])
    return LocalStructOrderParams([kind], parameters=parameters or None)


def run(count: int = COUNT) -> list[tuple[str, str, str]]:
    """Seconds per atom of both, interleaved, the share of the hulls, and whether the fingerprints are equal."""
    if not os.environ.get("ATOMSMITH_DATA"):
        return [("fingerprints", "skipped: ATOMSMITH_DATA is not set", "")]
    from chem.convert import to_structures
    from chem.datasets import load
    from evaluation.descriptors.fingerprints import structure_fingerprints

    batch = load("mp20", "val").batch[: count * ROUNDS]
    structure_fingerprints(batch[:5])
    ratios, ours, worst, atoms = [], 0.0, 0.0, 0
    for k in range(ROUNDS):
        part = batch[k * count : (k + 1) * count]
        start = time.process_time()
        found = structure_fingerprints(part).values
        middle = time.process_time()
        expected = np.array([plain_fingerprint(structure) for structure in to_structures(part)])
        ratios.append((time.process_time() - middle) / (middle - start))
        ours, atoms = ours + middle - start, atoms + len(part["atomic_numbers"])
        worst = max(worst, float(np.abs(found - expected).max()))
    name = f"fingerprints, {len(batch)} crystals, {atoms} atoms"
    return [
        (f"{name}, ours", f"{1000 * ours / atoms:.2f} ms per atom, {hull_share(batch):.0%} in scipy's hulls", ""),
        ("fingerprints, matminer's route / ours", f"{statistics.median(ratios):.0f}x", ">= 3x, aim 10x"),
        ("fingerprints, largest difference", f"{worst:.1e}", "< 1e-6"),
    ]


def hull_share(batch: Any) -> float:
    """Share of the time of fingerprints that the convex hulls take."""
    import cProfile
    import pstats

    from evaluation.descriptors.fingerprints import structure_fingerprints

    profile = cProfile.Profile()
    profile.runcall(structure_fingerprints, batch)
    table = pstats.Stats(profile)
    spent = sum(row[3] for key, row in table.stats.items() if key[2] == "_all_hulls")  # type: ignore[attr-defined]
    return spent / table.total_tt  # type: ignore[attr-defined]
