"""Match rates of parts of the targets, such as small and large cells: a whole hides which crystals are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.protocols import Choices
from evaluation.report import Number, rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = ((1, 4), (5, 8), (9, 14), (15, 20))
LARGER = f"over {SIZES[-1][1]}"


def matched(rows: Sequence[Mapping[str, Any]], column: str = "rms") -> NDArray[np.bool_]:
    """Whether any candidate of each target (T,) matched, from the rows of a report of structure prediction.

    column: "rms", or "strict_rms" for the strict tolerances.
    """
    hits: list[bool] = []
    for row in rows:  # candidates follow their target, the first of them numbered 0
        if row["candidate"] == 0:
            hits.append(False)
        hits[-1] |= row[column] is not None
    return np.array(hits, dtype=bool)


def size_label(num_atoms: int) -> str:
    """Which of SIZES a cell of that many atoms belongs to, as "5-8"; LARGER beyond the last."""
    return next((f"{low}-{high}" for low, high in SIZES if low <= num_atoms <= high), LARGER)


def rates_by(name: str, hits: NDArray[np.bool_], labels: Sequence[str], protocol: Choices) -> dict[str, Number]:
    """The match rate of the targets (T,) of each label, by label; sizes in their order, other labels sorted.

    Their n add up to T. Raises ValueError where hits and labels differ in number.
    """
    if len(hits) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries, allowed: one for each of {len(hits)} targets")
    sizes = [f"{low}-{high}" for low, high in SIZES] + [LARGER]
    order = sorted(set(labels), key=lambda label: (sizes.index(label) if label in sizes else -1, label))
    found = {}
    for label in order:
        mine = hits[[other == label for other in labels]]
        of = f"{len(mine)} targets of the group '{label}'"
        found[label] = rate(f"{name}, {label}", int(mine.sum()), len(mine), of, protocol)
    return found
