"""Does a predicted crystal match the true one: pymatgen's StructureMatcher, in processes that can be killed.

`rms` is StructureMatcher.get_rms_dist(prediction, truth)[0]: the root mean square displacement in units of
(V/N)^(1/3), minimised over lattice mappings and translations, after both have been reduced to primitive Niggli cells
and scaled to one volume. It depends slightly on the order of the sites, so the order of the input is kept.

Pairs of different reduced formula cannot match and are not tried. Nor can primitive cells with different numbers of
sites: the matcher drops those right after reducing them. The strict tolerances are tried only on what the loose ones
matched, where they are contained in them: the reduced cells are then still in pymatgen's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.protocols import Protocol, Tolerances
from evaluation.smact import batch_counts
from evaluation.validity import unusable
from evaluation.workers import Failed, limited_map

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from chem.crystals import CrystalBatch

OTHER_COMPOSITION = "another composition"
NO_MATCH = "no match within the tolerances"
Arrays = tuple["NDArray", "NDArray", "NDArray"]  # atomic numbers, fractional coordinates, lattice


@dataclass(frozen=True)
class Match:
    """One pair. rms, strict_rms: None where the tolerances do not match. reason: why rms is None, else empty."""

    rms: float | None = None
    strict_rms: float | None = None
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the pair could not be compared at all, as opposed to not matching."""
        return self.rms is None and self.reason not in (NO_MATCH, OTHER_COMPOSITION)


def match_pairs(
    predictions: CrystalBatch,
    targets: CrystalBatch,
    pairs: Sequence[tuple[int, int]],
    protocol: Protocol,
    processes: int | None = None,
) -> list[Match]:
    """Compare predictions[i] with targets[j] for each (i, j) of `pairs`, in that order.

    A pair that takes longer than the protocol's limit, or whose process dies, is a Match with a reason. processes:
    default all cores; 0 works in this process, without a time limit.
    """
    made, true = _reduced(predictions), _reduced(targets)
    formulas = [batch_counts(predictions), batch_counts(targets)]
    broken = unusable(predictions)
    if bad := [f"target {j}: {reason}" for j, reason in enumerate(unusable(targets)) if reason]:
        raise ValueError(f"targets cannot be matched against: {bad[0]} ({len(bad)} of {len(targets)})")
    found: dict[int, Match] = {}
    for n, (i, j) in enumerate(pairs):
        if broken[i]:
            found[n] = Match(reason=broken[i])
        elif formulas[0][i] != formulas[1][j]:
            found[n] = Match(reason=OTHER_COMPOSITION)
    tried = [n for n in range(len(pairs)) if n not in found]
    if len(tried) == 0:
        return [found[n] for n in range(len(pairs))]
    tasks = ((made[pairs[n][0]], true[pairs[n][1]], protocol.matcher, protocol.strict) for n in tried)
    for n, result in zip(tried, limited_map(_compare, tasks, protocol.pair_seconds, processes, _start), strict=True):
        found[n] = Match(reason=result.reason) if isinstance(result, Failed) else Match(*result)
    return [found[n] for n in range(len(pairs))]


def _reduced(batch: CrystalBatch) -> list[Arrays]:
    cuts = batch["ptr"][1:-1].tolist()
    if not len(batch):
        return []
    numbers = np.split(batch["atomic_numbers"].cpu().numpy(), cuts)
    frac = np.split(batch["frac_coords"].detach().cpu().double().numpy(), cuts)
    return list(zip(numbers, frac, batch["lattice"].detach().cpu().double().numpy(), strict=True))


def _start() -> None:
    """What a new process imports before its first pair, so that the import does not count against that pair."""
    import pymatgen.analysis.structure_matcher  # noqa: F401


@cache
def _matcher(tolerances: Tolerances) -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(
        ltol=tolerances.ltol,
        stol=tolerances.stol,
        angle_tol=tolerances.angle_tol,
        scale=tolerances.scale,
        primitive_cell=tolerances.primitive_cell,
        attempt_supercell=tolerances.attempt_supercell,
    )


def _structure(arrays: Arrays) -> Structure:
    from pymatgen.core import Lattice, Structure

    numbers, frac, lattice = arrays
    return Structure(Lattice(lattice), numbers.tolist(), frac)


def _compare(task: tuple[Arrays, Arrays, Tolerances, Tolerances]) -> tuple[float | None, float | None, str]:
    made, true, loose, strict = _structure(task[0]), _structure(task[1]), *task[2:]
    found = _matcher(loose).get_rms_dist(made, true)
    if found is None and loose.contains(strict):
        return None, None, NO_MATCH
    tight = _matcher(strict).get_rms_dist(made, true)
    rms, strict_rms = (None if value is None else float(value[0]) for value in (found, tight))
    return rms, strict_rms, NO_MATCH if rms is None else ""
