"""Charts of a report as inline SVG: histograms beside a reference, and the periodic table as a heat map.

Every function returns text that needs no script and no file beside it; colours come from the classes of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 190, 40, 10, 12, 38  # pixels of a histogram and of its margins
FEWEST, BINS, MOST_WHOLE = 8, 30, 40  # bins of values that are not whole, and of whole ones
TAIL = 0.005  # of the values at either end are left out, and counted
PERIODIC_TABLE = """
H  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  He
Li Be .  .  .  .  .  .  .  .  .  .  B  C  N  O  F  Ne
Na Mg .  .  .  .  .  .  .  .  .  .  Al Si P  S  Cl Ar
K  Ca Sc Ti V  Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y  Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I  Xe
Cs Ba .  Hf Ta W  Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
Fr Ra .  Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
.  .  .  La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
.  .  .  Ac Th Pa U  Np Pu Am Cm Bk Cf Es Fm Md No Lr
"""
CELL, GAP = 30, 8  # pixels of one element, and of the space above the lanthanides


@dataclass(frozen=True)
class Histogram:
    """What a histogram shows: ours (n,) and, where known, theirs (m,) of the reference, in `unit`; NaN is left out.

    marks: values to which a line is drawn.
    """

    title: str
    unit: str
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64] | None = None
    marks: Sequence[float] = ()

    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins: one bin a whole number where there are few, else up to BINS of equal width."""
        parts = [_finite(one) for one in (self.ours, self.theirs) if one is not None]
        values = np.concatenate([*parts, np.asarray(self.marks, dtype=np.float64)])
        if (values == np.round(values)).all() and not self.marks and np.ptp(values) < MOST_WHOLE:
            return np.arange(values.min() - 0.5, values.max() + 1)
        low = min([np.quantile(part, TAIL, method="lower") for part in parts if len(part)] + [*self.marks])
        high = max([np.quantile(part, 1 - TAIL, method="higher") for part in parts if len(part)] + [*self.marks])
        if high <= low:
            low, high = low - 0.5, high + 0.5
        return np.linspace(low, high, int(np.clip(2 * math.sqrt(len(parts[0])), FEWEST, BINS)) + 1)

    def svg(self) -> str:
        """The chart, shares in per cent of all finite values; one line of text where there is no value."""
        ours = _finite(self.ours)
        if not len(ours):
            return f'<p class="quiet">{escape(self.title)}: no value</p>'
        edges = self.edges()
        shares = [_shares(one, edges) for one in (self.ours, self.theirs) if one is not None and len(_finite(one))]
        top = max(float(share.max()) for share in shares) or 1.0
        x = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
        y = _scale(0, top * 1.05, HEIGHT - BOTTOM, TOP)
        parts = [*_axes(edges, top, x, y, self.unit), *_bars(edges, shares, x, y)]
        parts += [f'<path class="mark" d="M{x(m):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for m in self.marks]
        name = escape(self.title)
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'

    def caption(self) -> str:
        """How many values there are, and how many are beyond the ends of the axis."""
        ours = _finite(self.ours)
        if not len(ours):
            return ""
        edges = self.edges()
        beyond = int(((ours < edges[0]) | (ours > edges[-1])).sum())
        missing = len(self.ours) - len(ours)
        notes = [f"median {np.median(ours):.3g}", f"n = {len(ours):,}"]
        notes += [f"{beyond:,} beyond the axis"] * bool(beyond) + [f"{missing:,} without a value"] * bool(missing)
        return ", ".join(notes)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = _finite(values)
    return 100 * np.histogram(finite, edges)[0] / len(finite)


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _bars(edges, shares, x, y) -> list[str]:
    """Filled bars of ours, and a line of steps around the reference."""
    parts, floor = [], y(0)
    for i, share in enumerate(shares[0]):
        start, end = x(edges[i]), x(edges[i + 1])
        words = [f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {share:.1f} %"]
        words += [f"reference {theirs[i]:.1f} %" for theirs in shares[1:]]
        size = f'x="{start + 0.5:.1f}" y="{y(share):.1f}" width="{max(end - start - 1, 1):.1f}"'
        height = f'height="{floor - y(share):.1f}"'
        parts.append(f'<rect class="ours" {size} {height}><title>{", ".join(words)}</title></rect>')
    for theirs in shares[1:]:
        steps = "".join(f"V{y(share):.1f}H{x(edges[i + 1]):.1f}" for i, share in enumerate(theirs))
        parts.append(f'<path class="theirs" d="M{x(edges[0]):.1f} {floor:.1f}{steps}V{floor:.1f}"/>')
    return parts


def _axes(edges, top: float, x, y, unit: str) -> list[str]:
    floor, parts = y(0), []
    for tick in ticks(0, top * 1.05, 4):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g} %</text>')
    whole = edges[1] - edges[0] == 1 and edges[0] % 1 == 0.5
    for tick in (one for one in ticks(float(edges[0]), float(edges[-1]), 6) if not whole or one == round(one)):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{floor + 14:.1f}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor:.1f}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="unit" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(unit)}</text>')
    return parts


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers in [low, high], steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def periodic_table(shares: Mapping[str, float], top: float) -> str:
    """The periodic table, each element as dark as its share (0 to 1) of `top`, by the square root."""
    lines = PERIODIC_TABLE.strip().splitlines()
    parts = []
    for row, line in enumerate(lines):
        for column, symbol in enumerate(line.split()):
            if symbol != ".":
                x, y = column * CELL, row * CELL + (GAP if row > 6 else 0)
                parts.append(_element(symbol, x, y, shares.get(symbol, 0.0), top))
    size = f"0 0 {18 * CELL} {len(lines) * CELL + GAP}"
    return f'<svg class="periodic" viewBox="{size}" role="img" aria-label="periodic table">{"".join(parts)}</svg>'


def _element(symbol: str, x: int, y: int, share: float, top: float) -> str:
    depth = math.sqrt(min(share / top, 1.0)) if top > 0 else 0.0
    kind = "element" + (" dark" if depth > 0.8 else "") + ("" if share else " none")
    box = f'<rect width="{CELL - 2}" height="{CELL - 2}" rx="3" style="fill-opacity:{depth:.3f}"/>'
    text = f'<text x="{(CELL - 2) / 2}" y="{CELL / 2 + 3}" text-anchor="middle">{symbol}</text>'
    head = f'<g class="{kind}" data-element="{symbol}" transform="translate({x} {y})">'
    return f"{head}<title>{symbol}: {100 * share:.2f} %</title>{box}{text}</g>"


def interval_bar(value: float, low: float, high: float, reference: float) -> str:
    """A share on the line from 0 to 1 with its interval, and a tick at the reference's where that is known."""

    def x(share: float) -> float:
        return 4 + 112 * min(max(share, 0.0), 1.0)

    parts = ['<path class="grid" d="M4 8H116"/>']
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f'<path class="span" d="M{x(low):.1f} 8H{x(high):.1f}"/>')
    if math.isfinite(reference):
        parts.append(f'<path class="theirs" d="M{x(reference):.1f} 2V14"/>')
    if math.isfinite(value):
        parts.append(f'<circle class="ours" cx="{x(value):.1f}" cy="8" r="3.5"/>')
    return f'<svg class="interval" viewBox="0 0 120 16" aria-hidden="true">{"".join(parts)}</svg>'
