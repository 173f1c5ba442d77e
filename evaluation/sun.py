"""S.U.N.: crystals that are stable, unique and novel, over all that were given.

Stable: relaxed under a potential, at most a threshold above a hull, whose name belongs to the number. Unique: the first
of its group of the same crystals (matching.uniqueness). Novel: not the same as any of the reference. The protocol says
which crystals are relaxed, and whether those that were made or the relaxed ones are compared.

Whatever is wrong with a crystal, it stays in the denominators: unreadable, without a relaxed self, or with an element
of which potential or hull know nothing, it is not stable; what cannot be compared is neither unique nor novel.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation import distributions
from evaluation.inputs import Items
from evaluation.protocols import SunProtocol
from evaluation.report import Number, mean, rate
from evaluation.stability.scale import Scale
from evaluation.sun_findings import Findings, judge
from evaluation.sun_rows import RELAXED_FILE, export, with_findings

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAILED = "the relaxation failed"
FINE = 0.01  # Å, for symmetry: one tolerance alone says little of crystals that are not quite symmetric
DOUBTFUL = 0.1  # eV/atom below the hull: new crystals are hardly ever this far below a hull that knows their system


def score(
    items: Items,
    reference: Items,
    protocol: SunProtocol,
    scale: Scale,
    processes: int | None,
    seed: int,
    out: str | Path | None = None,
    **shared: Any,
) -> tuple[list[Number], list[dict[str, Any]], Counter[str]]:
    """Numbers, one row per structure, and the reasons why structures could not be judged.

    out: folder for the chunks of the relaxation, and for relaxed.extxyz. shared: mapper and part of runs.pipeline.run.
    """
    found = judge(items, reference, protocol, scale, processes, out, **shared)
    told, rows, failures = distributions.score(items, reference if protocol.distributions else None, protocol, seed)
    rows = with_findings(rows, found, protocol, items, reference)
    numbers = [*_new_and_stable(found, protocol, scale), *_relaxation(found, protocol, scale, seed), *told]
    numbers += _beside(items, reference, protocol, seed)
    failures.update(reason for reason in found.unknown if reason)
    failures[FAILED] = int((found.relaxed.tried & ~found.relaxed.sound).sum())
    if out is not None:
        export(rows, found, items, Path(out) / RELAXED_FILE)
    return numbers, rows, +failures


def _new_and_stable(found: Findings, protocol: SunProtocol, scale: Scale) -> list[Number]:
    """Rates over all structures: S.U.N., then what it is made of."""
    n, compared, metric = found.n, found.compared, scale.hull.metric
    everyone, new = f"all {n} structures", compared.new

    def add(name: str, hits: NDArray[np.bool_], note: str = "") -> Number:
        return rate(name, int(hits.sum()), n, everyone, protocol, note)

    numbers = [add("sun", found.stable(protocol) & new, f"at most {protocol.stable:g} eV/atom; {scale.error_bar}")]
    levels = {t: found.stable(protocol, t) for t in protocol.thresholds}
    for t, hits in levels.items():
        numbers.append(add(f"{'m' if t else ''}sun@{t:g}", hits & new, f"{metric} <= {t:g} eV/atom"))
    symmetric = found.stable(protocol) & new & (found.space_groups > 1)
    numbers.append(add("symmetric_sun", symmetric, f"sun and not P1, symprec {protocol.symprec:g} Å"))
    if protocol.self_consistent:
        own = found.stable(protocol, above=found.own)
        numbers.append(add("sun_self_consistent", own & new, f"as sun, {metric} with the samples in it"))
    if found.ordered is not None:
        hits = found.stable(protocol) & found.ordered.new
        numbers.append(add("sun_ordered", hits, "as sun, all elements told apart"))
    if protocol.relaxed != "unique-novel":
        few = f", crystals of at least {protocol.least_elements} elements" if protocol.least_elements > 1 else ""
        only = f", of those valid by {protocol.structure}" if protocol.relaxed == "valid" else ""
        numbers += [add(f"stable@{t:g}", hits, f"{metric} <= {t:g} eV/atom{few}{only}") for t, hits in levels.items()]
        start = found.stable(protocol, above=found.initial)
        numbers.append(add("stable_unrelaxed", start, f"{metric} <= {protocol.stable:g} eV/atom as made{few}{only}"))
    kind = "disordered-aware" if protocol.disordered else "ordered"
    how = f"as {protocol.compared}, {kind}" + (f", {compared.unclear} pairs unclear" if compared.unclear else "")
    numbers.append(add("unique", compared.unique, f"{how}, {protocol.grouping}"))
    numbers.append(add("novel", compared.novel, how))
    numbers.append(add("unique_and_novel", new, how))
    if found.ordered is not None:
        told = "as above, all elements told apart"
        numbers.append(add("unique_ordered", found.ordered.unique, told))
        numbers.append(add("novel_ordered", found.ordered.novel, told))
    return numbers


def _relaxation(found: Findings, protocol: SunProtocol, scale: Scale, seed: int) -> list[Number]:
    """How the relaxation went, how high above the hull it ended, and how far it led."""
    relaxed, n = found.relaxed, found.n
    tried, sound = int(relaxed.tried.sum()), int(relaxed.sound.sum())
    reasons = Counter(reason for reason in found.unknown if reason)
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    of = f"{tried} structures that were relaxed"
    known = found.above[np.isfinite(found.above)]
    own = f"{len(known)} of {n} structures, which have one"
    numbers = [
        rate("not_evaluable", reasons.total(), n, f"all {n} structures", protocol, told),
        rate("relaxation_converged", int((relaxed.converged & relaxed.sound).sum()), tried, of, protocol),
        rate("relaxation_failed", tried - sound, tried, of, protocol),
        mean("e_above_hull", known, own, protocol, seed, f"eV/atom; {scale.error_bar}"),
    ]
    doubt = f"more than {DOUBTFUL:g} eV/atom: the table lacks phases, or the potential errs"
    numbers.append(rate("far_below_hull", int((known < -DOUBTFUL).sum()), n, f"all {n} structures", protocol, doubt))
    if protocol.rmsd:
        note = "Å; 0.5 (V/N)^(1/3) where it cannot be aligned"
        values, of = found.rmsd[relaxed.sound], f"{sound} structures with a relaxed self"
        numbers.append(mean("rmsd_to_relaxed", values, of, protocol, seed, note))
        aligned = int(found.aligned.sum())
        numbers.append(rate("match_to_relaxed", aligned, n, f"all {n} structures", protocol, "could be aligned"))
    return numbers


def _beside(items: Items, reference: Items, protocol: SunProtocol, seed: int) -> list[Number]:
    """What the protocol asks for of the crystals as they were made."""
    from evaluation.comparison import compare, variety
    from evaluation.coverage import CUTOFFS, coverage
    from evaluation.descriptors.described import Described
    from evaluation.descriptors.symmetry import symmetry_health

    ours, theirs, numbers = Described(items.batch, len(items)), Described(reference.batch), []
    if protocol.coverage:
        cutoffs = CUTOFFS.get(reference.name.split(" ")[0], CUTOFFS["mp20"])
        numbers += coverage(ours, theirs, protocol, seed, cutoffs)
    if protocol.distributions:
        numbers += compare(ours, theirs, protocol, seed, protocol.symprec)
    if protocol.diversity:
        numbers += variety(ours, protocol, seed, protocol.symprec)
    if protocol.symmetry:
        for symprec in (protocol.symprec, FINE):
            groups = [side.symmetry(symprec) for side in (ours, theirs)]
            numbers += symmetry_health(groups[0], protocol, groups[1], len(items))
    if protocol.supply_risk:
        from evaluation.compositions.supply_risk import supply_risk

        values = supply_risk(ours.measurable)
        known, note = values[np.isfinite(values)], "0 to 10; 1/4 production, 3/4 reserves"
        of = f"{len(known)} of {len(items)} structures, of elements with an index"
        numbers.append(mean("supply_risk", known, of, protocol, seed, note))
    return numbers
