"""How far a set of crystals is from a reference in one property, and how varied it is by itself.

A property is a number per crystal, or a row of shares over categories: one for its space group, several for its
elements. Every distance has an interval from drawing the crystals anew. What a draw of as many crystals from the
reference itself scores, the floor that no model can be asked to undercut, stands beside it as `reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.intervals import bootstrap, centred
from evaluation.protocols import Choices
from evaluation.report import Number

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOOR_DRAWS = 30
MOST_OURS, MOST_THEIRS = 2000, 15_000  # crystals whose every pair is compared by mmd
Statistic = Callable[["NDArray[np.int64]"], float]  # of the places of crystals, with repetitions


def shares(labels: Sequence[object], categories: Sequence[object]) -> NDArray[np.float64]:
    """Rows (B, C) with a one at the category of each label; a row of zeros for a label that is none of them."""
    place = {category: i for i, category in enumerate(categories)}
    table = np.zeros((len(labels), len(categories)))
    for row, label in zip(table, labels, strict=True):
        if label in place:
            row[place[label]] = 1
    return table


def element_shares(amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Atomic fractions (B, 119) of amounts (B, 119): every crystal weighs the same."""
    return amounts / np.maximum(amounts.sum(1, keepdims=True), 1)


def wasserstein(
    name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], of: str, protocol: Choices, seed: int, note: str
) -> Number:
    """1-Wasserstein distance between values (n,) and (m,), in their unit, which `note` names."""
    from scipy.stats import wasserstein_distance

    def distance(drawn: NDArray[np.float64]) -> float:
        return float(wasserstein_distance(drawn, theirs))

    if not len(ours) or not len(theirs):
        return Number(name, np.nan, len(ours), of, note=f"{note}, nothing to compare")
    sides = [lambda rows, values=values: distance(values[rows]) for values in (ours, theirs)]
    return _compared(name, sides, (len(ours), len(theirs)), of, protocol, seed, note)


def jensen_shannon(
    name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], of: str, protocol: Choices, seed: int
) -> Number:
    """Jensen-Shannon divergence in bits, 0 to 1, between the mean shares of rows (n, C) and (m, C)."""
    note = "bits; the square of scipy's jensenshannon with base 2"
    if not ours.sum() > 0 or not theirs.sum() > 0:
        return Number(name, np.nan, len(ours), of, note=note)
    q = theirs.sum(0) / theirs.sum()

    def divergence(p: NDArray[np.float64]) -> float:
        return (_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2) / np.log(2)

    sides = [lambda rows, table=table: divergence(_drawn(table, rows)) for table in (ours, theirs)]
    return _compared(name, sides, (len(ours), len(theirs)), of, protocol, seed, note)


def mmd(
    name: str,
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    of: str,
    protocol: Choices,
    seed: int,
    note: str,
    sigma: float = 1.0,
) -> Number:
    """Maximum mean discrepancy between values (n,) and (m,), kernel exp(-(x - y)^2 / (2 sigma^2)).

    All pairs, an element with itself included; of at most MOST_OURS of ours and MOST_THEIRS, drawn at random.
    """
    draw = np.random.default_rng(seed)
    ours = draw.permutation(ours)[:MOST_OURS]
    theirs = draw.permutation(theirs)[:MOST_THEIRS]
    if not len(ours) or not len(theirs):
        return Number(name, np.nan, len(ours), of, note=note)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(-((a[:, None] - b) ** 2) / (2 * sigma**2))

    within, across = kernel(ours, ours), np.concatenate([kernel(part, theirs).mean(1) for part in _parts(ours)])
    beyond = np.concatenate([kernel(part, theirs).mean(1) for part in _parts(theirs)]).mean()

    def discrepancy(rows: NDArray[np.int64]) -> float:
        weight = np.bincount(rows, minlength=len(ours)) / len(rows)
        return float(max(weight @ within @ weight - 2 * weight @ across + beyond, 0.0)) ** 0.5

    pairs = f"{len(ours)} of ours and {len(theirs)} of the reference"
    return _measured(name, discrepancy, len(ours), of, protocol, seed, f"{note}, sigma {sigma:g}, {pairs}")


def diversity(name: str, rows: NDArray[np.float64], of: str, protocol: Choices, seed: int, note: str = "") -> Number:
    """exp of the Shannon entropy of the mean shares of rows (n, C): how many categories there are, in effect."""
    if not rows.sum() > 0:
        return Number(name, np.nan, len(rows), of, note=note)

    def effective(drawn: NDArray[np.int64]) -> float:
        return float(np.exp(_entropy(_drawn(rows, drawn))))

    return _measured(name, effective, len(rows), of, protocol, seed, note)


def _compared(
    name: str, sides: Sequence[Statistic], sizes: tuple[int, int], of: str, protocol: Choices, seed: int, note: str
) -> Number:
    """A distance of ours, with interval, and of draws of the same size from the reference."""
    draw = np.random.default_rng(seed)
    floor = np.mean([sides[1](draw.integers(sizes[1], size=sizes[0])) for _ in range(FLOOR_DRAWS)])
    return _measured(name, sides[0], sizes[0], of, protocol, seed, note, float(floor))


def _measured(
    name: str,
    statistic: Statistic,
    n: int,
    of: str,
    protocol: Choices,
    seed: int,
    note: str,
    reference: float = np.nan,
) -> Number:
    """A statistic of n crystals with its centred interval."""
    every = np.arange(n)
    value = statistic(every)
    found, error = bootstrap(every, statistic, protocol.resamples, protocol.level, seed)
    how = f"bootstrap {protocol.level:.0%} of the samples, centred, {protocol.resamples} resamples, seed {seed}"
    return Number(name, value, n, of, None, *centred(value, found), how, error, note, reference)


def _parts(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return np.array_split(values, 1 + len(values) // 500)


def _drawn(rows: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares (C,) of the crystals `drawn`, with repetitions, of rows (n, C)."""
    total = np.bincount(drawn, minlength=len(rows)) @ rows
    return total / max(total.sum(), 1e-300)


def _entropy(p: NDArray[np.float64]) -> float:
    """In nats."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
