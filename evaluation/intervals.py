"""Intervals of what is measured on finitely many structures."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interval = tuple[float, float]


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """Interval of a proportion hits / n (Wilson 1927); (0, 1) for n = 0.

    Raises ValueError for hits outside 0..n and a level outside (0, 1).
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits = {hits}, allowed: 0 to n = {n}")
    z = _quantile(level)
    if n == 0:
        return 0.0, 1.0
    p, d = hits / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / d
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / d
    # exact ends, which rounding would miss by 1e-17
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def bootstrap(
    values: NDArray[Any],
    statistic: Callable[[NDArray[Any]], float] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Percentile interval of a statistic of the rows of `values` (n, ...) and its standard error, by resampling.

    statistic: of an array like `values`; the mean of the first dimension by default. Needs n >= 1.
    """
    _quantile(level)
    values = np.asarray(values)
    if not len(values) or resamples < 2:
        raise ValueError(f"values has {len(values)} rows, resamples = {resamples}; allowed: at least 1 and 2")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(values), size=len(values)) for _ in range(resamples))
    found = np.array([np.mean(values[i]) if statistic is None else statistic(values[i]) for i in draws])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high)), float(found.std(ddof=1))


def centred(value: float, interval: Interval) -> Interval:
    """An interval as wide as that of resamples, around the value, cut at zero.

    For entropies and distances, which are at least zero: resamples repeat structures, which lowers the first and raises
    the second, so that their own quantiles can miss the value.
    """
    half = (interval[1] - interval[0]) / 2
    return max(value - half, 0.0), value + half


def paired_difference(
    a: NDArray[Any], b: NDArray[Any], resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of a - b over the same targets (T,), and its percentile interval when the targets are drawn anew in pairs.

    a, b: hits, or shares of hits of models that differ in their seed alone. Raises ValueError for another number of
    targets in a than in b, and for none.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}; allowed: one entry for each of the same targets")
    if not len(a) or resamples < 2:
        raise ValueError(f"a has {len(a)} entries, resamples = {resamples}; allowed: at least 1 and 2")
    _quantile(level)
    # a mean of draws with replacement depends only on how often each value is drawn, and hits have few values
    values, counts = np.unique(a - b, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(a), counts / len(a), size=resamples) @ values / len(a)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float((a - b).mean()), (float(low), float(high))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}, allowed: between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)
