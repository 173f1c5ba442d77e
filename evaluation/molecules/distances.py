"""How far a distribution of molecules is from a reference: Wasserstein distance, Jensen-Shannon divergence and MMD.

All come from histograms of fixed bins, per kind (elements and order of a bond, for instance), so that a resample of
molecules is another weighting of the same bins. Errors and intervals are bootstraps over the *molecules*: the bonds of
one molecule are not independent. With p, q over (kind, bin):

    wasserstein   per kind, in units of the property, weighted by the kind's share of the reference; kinds that one of
                  both lacks are left out, and the note says how much of the reference that is
    jsd           bits, 0 to 1, over kinds and bins together: a kind that is never made counts
    mmd           sqrt((p - q)^T K (p - q)), K Gaussian in the property and zero between kinds

No distance of finitely many molecules is zero. The floor is the mean distance of two resamples of the reference, one of
as many molecules as are judged, one of as many as the reference has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.intervals import centred
from evaluation.molecules.geometry import Values
from evaluation.protocols import MoleculeProtocol
from evaluation.report import Number

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOOR_DRAWS = 30
MEASURES = ("wasserstein", "jsd", "mmd")


@dataclass(frozen=True)
class Bins:
    """Bins of a property: from low to high, values beyond in the outermost ones. scale: of the kernel of MMD."""

    low: float
    high: float
    width: float
    scale: float
    unit: str

    @property
    def count(self) -> int:
        """How many bins."""
        return round((self.high - self.low) / self.width)

    def of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which bin each value is in."""
        return np.clip((values - self.low) / self.width, 0, self.count - 1).astype(np.int64)

    def kernel(self) -> NDArray[np.float64]:
        """Gaussian kernel between the centres of the bins."""
        centres = np.arange(self.count) * self.width
        return np.exp(-((centres[:, None] - centres) ** 2) / (2 * self.scale**2))


BINS: Mapping[str, Bins] = {
    "bond_length": Bins(0.5, 3.0, 0.01, 0.05, "Å"),
    "bond_angle": Bins(0.0, 180.0, 1.0, 5.0, "degrees"),
    "torsion": Bins(0.0, 180.0, 5.0, 20.0, "degrees of |phi|"),
    "pair_distance": Bins(0.0, 13.0, 0.13, 0.5, "Å"),
    "element": Bins(0.5, 118.5, 1.0, 0.1, "atomic number"),
    "num_atoms": Bins(0.5, 300.5, 1.0, 2.0, "atoms"),
}
LEFT_OUT = (("element", "wasserstein"),)  # the difference of two atomic numbers is no distance


def distances(
    name: str,
    ours: Values,
    theirs: Values,
    counts: tuple[int, int],
    of: str,
    protocol: MoleculeProtocol,
    seed: int,
    known: Mapping[int, int] | None = None,
) -> list[Number]:
    """The distances of one property of BINS; counts: molecules of ours and of the reference.

    known: value -> count of a property without kinds, which then is the reference; `theirs` gives the floor.
    """
    bins, n = BINS[name], counts[0]
    measures = [m for m in MEASURES if (name, m) not in LEFT_OUT]
    if not n or not len(ours.values):
        return [Number(f"{m}_{name}", math.nan, n, of, note="nothing to measure") for m in measures]
    kinds = np.unique(np.concatenate((ours.kinds, theirs.kinds)))
    mine, other = (_Binned.make(values, kinds, bins) for values in (ours, theirs))
    reference = other.histogram(np.ones(counts[1])) if known is None else _known(known, bins)
    kernel = bins.kernel()

    def found(hists: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.array([_measure(hist, reference, bins.width, kernel) for hist in hists])

    draw = np.random.default_rng(seed)
    value = found([mine.histogram(np.ones(n))])[0]
    again = found(mine.histogram(_weights(draw, n, n)) for _ in range(protocol.resamples))
    floor = np.mean([_measure(*other.two(draw, counts[1], n), bins.width, kernel) for _ in range(FLOOR_DRAWS)], axis=0)
    low, high = np.quantile(again, [(1 - protocol.level) / 2, (1 + protocol.level) / 2], axis=0)
    how = f"bootstrap {protocol.level:.0%} of the molecules, centred, {protocol.resamples} resamples, seed {seed}"
    lost = 1 - reference[mine.histogram(np.ones(n)).sum(1) > 0].sum()
    numbers = []
    for m in measures:
        i = MEASURES.index(m)
        unit = {"wasserstein": bins.unit, "jsd": "bits"}.get(m, f"kernel {bins.scale:g} {bins.unit}")
        missing = f"kinds that are {lost:.2%} of the reference do not occur" if m == "wasserstein" and lost > 0 else ""
        whole = "" if known is None else "against the histogram of the whole set"
        note = ", ".join(filter(None, [unit, whole, missing]))
        error = float(again[:, i].std(ddof=1))
        ends = centred(float(value[i]), (float(low[i]), float(high[i])))
        numbers.append(
            Number(f"{m}_{name}", float(value[i]), n, of, None, *ends, how, error, note, reference=float(floor[i]))
        )
    return numbers


@dataclass(frozen=True)
class _Binned:
    """Values as cells of a (kinds, bins) histogram, each in its molecule."""

    cells: NDArray[np.int64]
    molecules: NDArray[np.int64]
    shape: tuple[int, int]

    @classmethod
    def make(cls, values: Values, kinds: NDArray[np.int64], bins: Bins) -> _Binned:
        cells = np.searchsorted(kinds, values.kinds) * bins.count + bins.of(values.values)
        return cls(cells, values.molecules, (len(kinds), bins.count))

    def histogram(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares of the cells, molecules counted by their weights."""
        size = self.shape[0] * self.shape[1]
        found = np.bincount(self.cells, weights[self.molecules], minlength=size).reshape(self.shape)
        return found / max(found.sum(), 1e-300)

    def two(self, draw: np.random.Generator, molecules: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Histograms of n molecules and of as many as there are, drawn with replacement."""
        ours, theirs = _weights(draw, molecules, n), _weights(draw, molecules, molecules)
        return self.histogram(ours), self.histogram(theirs)


def _known(counts: Mapping[int, int], bins: Bins) -> NDArray[np.float64]:
    """Shares (1, bins) of a histogram, value -> count."""
    found = np.zeros((1, bins.count))
    found[0, bins.of(np.array(list(counts), dtype=np.float64))] = list(counts.values())
    return found / found.sum()


def _weights(draw: np.random.Generator, molecules: int, n: int) -> NDArray[np.float64]:
    return np.bincount(draw.integers(molecules, size=n), minlength=molecules).astype(np.float64)


def _measure(
    p: NDArray[np.float64], q: NDArray[np.float64], width: float, kernel: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Wasserstein distance, divergence and MMD of two histograms (kinds, bins), each with sum 1."""
    mine, theirs = p.sum(1), q.sum(1)
    both = (mine > 0) & (theirs > 0)
    steps = np.cumsum(p[both] / mine[both, None] - q[both] / theirs[both, None], axis=1)
    share = theirs[both] / max(theirs[both].sum(), 1e-300)
    wasserstein = float(share @ np.abs(steps).sum(1) * width) if both.any() else math.nan
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * np.log2(x / m), 0.0).sum() / 2 for x in (p, q)]
    d = p - q
    return wasserstein, float(sum(terms)), math.sqrt(max(float(np.sum((d @ kernel) * d)), 0.0))
