"""Ab initio samples: how many are valid, and how far their densities and element counts are from a reference.

The distances are 1-Wasserstein distances between a random draw of valid samples (1,000 in CDVAE's protocol) and the
whole reference. A draw of that size from the reference itself is not at distance zero: that floor stands beside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.compositions.smact import batch_counts, compositional_validity
from evaluation.csp import formulas
from evaluation.divergence import wasserstein
from evaluation.inputs import Items
from evaluation.protocols import Protocol, SunProtocol
from evaluation.report import Number, rate
from evaluation.validity import densities, joint_validity, structural_validity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch


def num_elements(batch: CrystalBatch) -> NDArray[np.float64]:
    """Number of distinct elements (B,) of each crystal."""
    return np.array([len(counts) for counts in batch_counts(batch)], dtype=np.float64)


PROPERTIES: dict[str, tuple[Callable[[CrystalBatch], NDArray[np.float64]], str]] = {
    "density": (densities, "g/cm^3"),
    "num_elements": (num_elements, "elements"),
}


def score(
    items: Items, reference: Items | None, protocol: Protocol | SunProtocol, seed: int
) -> tuple[list[Number], list[dict[str, Any]], Counter[str]]:
    """Numbers, one row per structure, and the reasons why structures could not be judged.

    Without a reference there are validities and no distances.
    """
    structural = structural_validity(items.batch, protocol.structure)
    strict = structural_validity(items.batch, "strict")
    composition = compositional_validity(items.batch, protocol.composition)
    valid = joint_validity(items.batch, structural.valid, composition, protocol.fingerprints)
    rule = f"both, {'and' if protocol.fingerprints else 'without'} fingerprint clause"
    n, everyone = len(items), f"all {len(items)} structures"
    found = {
        "structural_validity": (structural.valid, protocol.structure),
        "compositional_validity": (composition, protocol.composition.table),
        "validity": (valid, rule),
        "structural_validity_strict": (strict.valid, "strict"),
    }
    numbers = [rate(name, int(v.sum()), n, everyone, protocol, note) for name, (v, note) in found.items()]
    if reference is not None:
        numbers += _distances(items.batch, valid, reference.batch, protocol, seed)
    rows = []
    names, density = formulas(items.batch), densities(items.batch)
    for i, place in enumerate(items.place):
        row: dict[str, Any] = {"id": items.ids[i], "source": items.sources[i], "failure": items.errors[i]}
        if place is not None:
            row |= {
                "formula": names[place],
                "atoms": int(items.batch["num_atoms"][place]),
                "density": float(density[place]),
                "structure_valid": bool(structural.valid[place]),
                "structure_valid_strict": bool(strict.valid[place]),
                "composition_valid": bool(composition[place]),
                "valid": bool(valid[place]),
                "reason": structural.reasons[place] or strict.reasons[place],
            }
        rows.append(row)
    return numbers, rows, Counter(error for error in items.errors if error)


def _distances(
    batch: CrystalBatch, valid: NDArray[np.bool_], reference: CrystalBatch, protocol: Protocol | SunProtocol, seed: int
) -> list[Number]:
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(valid))[: protocol.samples]
    of = f"{len(rows)} random valid structures against all {len(reference)} of the reference"
    note = "reference: the floor"
    if len(rows) < protocol.samples:
        note += f", the protocol asks for {protocol.samples}"
    drawn = batch[np.sort(rows).tolist()]
    return [
        wasserstein(f"wasserstein_{name}", measure(drawn), measure(reference), of, protocol, seed, f"{unit}, {note}")
        for name, (measure, unit) in PROPERTIES.items()
    ]
