"""Does a predicted crystal match the true one, as pymatgen's StructureMatcher decides.

`rms` is StructureMatcher.get_rms_dist(prediction, truth)[0]: the root mean square displacement in units of
(V/N)^(1/3), minimised over lattice mappings and translations, after both have been reduced to primitive Niggli cells
and scaled to one volume. It depends slightly on the order of the sites, so the order of the input is kept.

Every crystal is reduced once, in processes that can be killed, and all pairs are compared at once (matching.matcher).
What that leaves open, such as cells of many sites, pymatgen compares, pair by pair, in processes that can be killed.
Pairs of different reduced formula cannot match and are not tried. The strict tolerances are tried only on what the
loose ones matched, where they are contained in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.compositions.smact import batch_counts
from evaluation.matching.reduction import Arrays, arrays_of_batch, reduced_cells, start, structure
from evaluation.progress import watched
from evaluation.protocols import Protocol, Tolerances
from evaluation.validity import unusable
from evaluation.workers import Failed, is_failed, limited_map

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

OTHER_COMPOSITION = "another composition"
NO_MATCH = "no match within the tolerances"


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
    device: str | torch.device = "cpu",
) -> list[Match]:
    """Compare predictions[i] with targets[j] for each (i, j) of `pairs`, in that order.

    A crystal or a pair that takes longer than the protocol's limit, or whose process dies, makes a Match with a reason.
    processes: default all cores; 0 works in this process, without a time limit. device: of the alignment.
    """
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
    if tried:
        shift = 0 if predictions is targets else len(predictions)
        crystals = arrays_of_batch(predictions) + (arrays_of_batch(targets) if shift else [])
        needed, place = np.unique([(pairs[n][0], pairs[n][1] + shift) for n in tried], return_inverse=True)
        matches = _compared([crystals[n] for n in needed], place.reshape(-1, 2), protocol, processes, device)
        found |= zip(tried, matches, strict=True)
    return [found[n] for n in range(len(pairs))]


def _compared(
    crystals: Sequence[Arrays],
    pairs: NDArray[np.int64],
    protocol: Protocol,
    processes: int | None,
    device: str | torch.device,
) -> list[Match]:
    """Matches of pairs (P, 2) of usable crystals, which have one reduced formula."""
    loose, strict, seconds = protocol.matcher, protocol.strict, protocol.pair_seconds
    cells = {
        primitive: reduced_cells(crystals, primitive, seconds, processes)
        for primitive in (loose.primitive_cell, strict.primitive_cell)
    }
    why = [next((c.reason for c in found if isinstance(c, Failed)), "") for found in zip(*cells.values(), strict=True)]
    reasons = [why[i] or why[j] for i, j in pairs]
    sound = np.array([not reason for reason in reasons])
    values = np.full((2, len(pairs)), np.inf)
    values[0, sound] = _values(cells[loose.primitive_cell], pairs[sound], loose, device)
    tight = sound & ~np.isinf(values[0]) if loose.contains(strict) else sound
    values[1, tight] = _values(cells[strict.primitive_cell], pairs[tight], strict, device)
    matches = [Match(reason=r) if r else _match(*both) for r, both in zip(reasons, values.T, strict=True)]
    asked = np.flatnonzero(np.isnan(values).any(0)).tolist()
    if asked:
        tasks = ((crystals[pairs[n, 0]], crystals[pairs[n, 1]], loose, strict) for n in asked)
        results = limited_map(_compare, tasks, seconds, processes, start)
        for n, result in zip(asked, watched(results, "comparing", len(asked), is_failed), strict=True):
            matches[n] = Match(reason=result.reason) if isinstance(result, Failed) else _match(*result)
    return matches


def _values(
    cells: Sequence[Arrays | Failed], pairs: NDArray[np.int64], tolerances: Tolerances, device: str | torch.device
) -> NDArray[np.float64]:
    from evaluation.matching.matcher import Cells, best_values

    place = np.cumsum([not isinstance(cell, Failed) for cell in cells]) - 1
    sound = Cells([cell for cell in cells if not isinstance(cell, Failed)], device)
    return best_values(sound, place[pairs], tolerances)


def _match(rms: float, strict_rms: float) -> Match:
    """The Match of two values, infinite where there is none."""
    loose, strict = (float(value) if np.isfinite(value) else None for value in (rms, strict_rms))
    return Match(loose, strict, NO_MATCH if loose is None else "")


@cache
def matcher(tolerances: Tolerances) -> Any:
    """pymatgen's StructureMatcher of these tolerances."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(
        ltol=tolerances.ltol,
        stol=tolerances.stol,
        angle_tol=tolerances.angle_tol,
        scale=tolerances.scale,
        primitive_cell=tolerances.primitive_cell,
        attempt_supercell=tolerances.attempt_supercell,
    )


def _compare(task: tuple[Arrays, Arrays, Tolerances, Tolerances]) -> tuple[float, float]:
    made, true, loose, strict = structure(task[0]), structure(task[1]), *task[2:]
    found = matcher(loose).get_rms_dist(made, true)
    if found is None and loose.contains(strict):
        return np.inf, np.inf
    tight = matcher(strict).get_rms_dist(made, true)
    rms, strict_rms = (np.inf if value is None else float(value[0]) for value in (found, tight))
    return rms, strict_rms


def fit(task: tuple[Arrays, Arrays, Tolerances]) -> bool:
    """pymatgen's StructureMatcher.fit of two crystals, for `limited_map`."""
    return bool(matcher(task[2]).fit(structure(task[0]), structure(task[1])))
