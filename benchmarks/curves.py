"""Quality against the number of network calls: points and series of points, and what can be read off them.

Every point keeps the hits of each target, so that two points are compared on the targets they share. A model may be
several, alike but for their seed: their hits are averaged target by target, and targets are what is drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from benchmarks.judging import Row
from evaluation.csp import LEGACY
from evaluation.intervals import Interval, bootstrap, paired_difference, wilson

VARIANTS = (LEGACY, "all", "strict")
Estimate = tuple[float, Interval]


@dataclass(frozen=True)
class Point:
    """Match of T targets by S models that differ in their seed, k = 1.

    calls: network calls asked for, steps and taken: those made. hits: (T, S) by variant. rms (T, S): NaN where
    unmatched.
    """

    calls: int
    steps: int
    taken: int
    hits: dict[str, NDArray[np.bool_]]
    rms: NDArray[np.float64]

    @classmethod
    def of(cls, calls: int, steps: int, taken: int, rows: Sequence[Row]) -> Point:
        """From the rows of results of its models."""
        hits = {v: np.array([[mark == "1" for mark in row["hits"][v]] for row in rows]).T for v in VARIANTS}
        rms = np.array([[np.nan if x is None else x for x in row["rms"]] for row in rows], dtype=np.float64).T
        return cls(calls, steps, taken, hits, rms)

    @property
    def targets(self) -> int:
        """T."""
        return len(self.rms)

    def rate(self, variant: str) -> Estimate:
        """Match rate and its interval: Wilson's for one model, by bootstrap of the targets for several."""
        hits = self.hits[variant]
        if hits.shape[1] == 1:
            return float(hits.mean()), wilson(int(hits.sum()), len(hits))
        return float(hits.mean()), bootstrap(hits.mean(1))[0]

    def rmse(self) -> Estimate | None:
        """Mean rms of what matched, with its interval by bootstrap of the targets with a match; None without any."""
        found = self.rms[~np.isnan(self.rms).all(1)]
        if not len(found):
            return None
        return float(np.nanmean(found)), bootstrap(found, lambda drawn: float(np.nanmean(drawn)))[0]


@dataclass(frozen=True)
class Series:
    """The points of a model with one sampler, by increasing calls."""

    model: str
    sampler: str
    points: Sequence[Point]

    @property
    def title(self) -> str:
        """Model and sampler; of several models the first, and how many seeds."""
        first, *others = self.model.split("+")
        return f"{first} ({1 + len(others)} seeds), {self.sampler}" if others else f"{first}, {self.sampler}"

    def at(self, calls: int) -> Point | None:
        """The point at that many calls asked for."""
        return next((p for p in self.points if p.calls == calls), None)


def difference(a: Point, b: Point, variant: str) -> Estimate:
    """Match rate of a less that of b on the targets they share (the first of each), with its paired interval."""
    shared = min(a.targets, b.targets)
    return paired_difference(*(p.hits[variant][:shared].mean(1) for p in (a, b)))


def fewest(series: Series, goal: Point, variant: str) -> tuple[Point, Estimate] | None:
    """The point of fewest calls whose match rate is not below that of `goal`, and the difference; None without one."""
    for point in series.points:
        found = difference(point, goal, variant)
        if found[0] >= 0:
            return point, found
    return None


def enough(series: Series, variant: str) -> Point:
    """The point of fewest calls that is not surely worse than the best: the paired interval reaches zero."""
    best = max(series.points, key=lambda p: p.rate(variant)[0])
    return next(p for p in series.points if p is best or difference(p, best, variant)[1][1] >= 0)


def pairs(series: Sequence[Series], across: bool) -> Iterator[tuple[Series, Series]]:
    """Every two series, the later one first; across: those of different models too."""
    for earlier, later in combinations(series, 2):
        if across or earlier.model == later.model:
            yield later, earlier
