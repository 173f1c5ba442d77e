"""Kernels that look at compositions alone against the programs that papers used, on one thread.

`smact` and `magpie` are timed in turn with the community's packages in their own environment (benchmarks.community),
`hull` with pymatgen's phase diagrams, one of the phases of the system for each candidate. The compositions are those of
the packaged reference, so no data set is needed; they are read before the clock starts, on both sides. Predicted before
measuring, from prototypes: 136x to 600x, 230x and 74x.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.timing import interleave, ratio
from chem.crystals import CrystalBatch
from evaluation.compositions.amounts import parse, symbols

SMACT, MAGPIE, NARROW, WIDE, ROUNDS = 10_000, 2000, 1000, 200, 3
Row = tuple[str, str, str]


def compositions(count: int, seed: int = 0) -> list[dict[int, int]]:
    """Numbers of atoms by atomic number of phases of the packaged reference, at random."""
    from evaluation.stability.phase_tables import load_hull

    chosen = random.Random(seed).sample(load_hull("mp20").phases.formulas, count)
    return [{z: int(n) for z, n in parse(formula).items()} for formula in chosen]


def crystals(given: Sequence[Mapping[int, int]]) -> CrystalBatch:
    """A batch with these atoms and nothing else."""
    numbers = [z for one in given for z, n in one.items() for _ in range(n)]
    return CrystalBatch([sum(one.values()) for one in given], atomic_numbers=torch.tensor(numbers))


def formula(composition: Mapping[int, int]) -> str:
    """Without brackets."""
    return "".join(f"{symbol}{n}" for symbol, n in zip(symbols(list(composition)), composition.values(), strict=True))


def smact() -> list[Row]:
    """The composition rule, by bitsets and choice by choice."""
    from evaluation.compositions.smact import CompositionRule, _valid, compositional_validity

    rule = CompositionRule(missing="invalid")  # what the loop gives with smact 4, where CDVAE's gave "valid"

    def ours(batch: CrystalBatch) -> np.ndarray:
        _valid.cache_clear()
        return compositional_validity(batch, rule)

    return _against("smact", SMACT, ours, lambda a, b: bool(a == b))


def magpie() -> list[Row]:
    """The fingerprints, batched and one by one."""
    from evaluation.compositions.magpie import magpie as fingerprints

    return _against(
        "magpie",
        MAGPIE,
        lambda batch: fingerprints(batch).numpy(),
        lambda a, b: bool(np.allclose(a, b, rtol=1e-12, atol=1e-11)),
    )


def _against(
    name: str, count: int, ours: Callable[[CrystalBatch], np.ndarray], equal: Callable[[Any, Any], bool]
) -> list[Row]:
    from benchmarks.community import ask

    given = compositions(count)
    batch, asked = crystals(given), [formula(one) for one in given]
    torch.set_num_threads(1)
    ours(batch)
    times, ratios, same = [], [], 0
    for _ in range(ROUNDS):
        theirs, answers = ask(name, asked)
        start = time.process_time()
        found = ours(batch)
        times.append(time.process_time() - start)
        ratios.append(theirs / times[-1])
        same = sum(equal(a, b) for a, b in zip(found, answers, strict=True))
    each = 1e6 * statistics.median(times) / count
    return [
        (f"{name}, answers equal to the community's", f"{same} of {count}", "all"),
        (f"{name}, community / ours", f"{statistics.median(ratios):.0f}x ({each:.1f} us each)", ">= 100x"),
    ]


def candidates(count: int, mixed: bool) -> list[str]:
    """Compositions between the phases of the reference: one with an atom more, or the sum of two, of more elements."""
    draw = random.Random(1)
    made, others = compositions(count, 2), compositions(count, 3)
    for one, other in zip(made, others, strict=True):
        for z, n in other.items() if mixed else [(draw.choice(list(one)), 1)]:
            one[z] = one.get(z, 0) + n
    return [formula(one) for one in made]


def hull() -> list[Row]:
    """Distance and mixture of candidates, all at once and by a phase diagram each, in narrow and in wide systems."""
    return _diagrams(candidates(NARROW, False), "narrow") + _diagrams(candidates(WIDE, True), "wide")


def _diagrams(given: Sequence[str], kind: str) -> list[Row]:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    from evaluation.compositions.amounts import amounts
    from evaluation.stability.phase_tables import load_hull

    reference = load_hull("mp20")
    phases = reference.phases
    within = [phases.within(np.flatnonzero(row)[None])[1] for row in amounts(given).numpy()]
    entries = {
        int(i): PDEntry(c := Composition(phases.formulas[i]), phases.energies[i] * c.num_atoms)
        for i in np.unique(np.concatenate(within))
    }
    asked = [PDEntry(Composition(one), 0.0) for one in given]

    def diagrams() -> np.ndarray:
        found = [
            PhaseDiagram([entries[int(i)] for i in rows]).get_e_above_hull(entry, allow_negative=True)
            for rows, entry in zip(within, asked, strict=True)
        ]
        return np.array(found)

    def ours() -> np.ndarray:
        return reference.distances(given, np.zeros(len(given))).e_above_hull

    off = float(np.abs(diagrams() - ours()).max())
    times = interleave({"theirs": diagrams, "ours": ours}, ROUNDS, warmups=0)
    each = 1e6 * statistics.median(times["ours"]) / len(given)
    name = f"hull, {kind} systems of {statistics.mean(map(len, within)):.0f} phases"
    return [
        (f"{name}, largest difference", f"{off:.0e} eV/atom in {len(given)}", "< 1e-9"),
        (f"{name}, diagrams / ours", f"{ratio(times, 'theirs', 'ours'):.0f}x ({each:.0f} us each)", ">= 50x"),
    ]
