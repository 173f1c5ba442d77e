"""Compositional validity by SMACT's rule, in the form CDVAE gave it and every crystal generator since has reported.

Counts are divided by their greatest common divisor. One element alone, and metals alone, are valid. Otherwise every
element takes one of its known oxidation states, and the composition is valid when some choice is neutral and puts each
positive element at a strictly smaller Pauling electronegativity than each negative one.

The choices are not enumerated. Sort the elements by electronegativity: a neutral choice exists exactly when a cut,
never between equal values, leaves sums of states >= 0 below it and sums of states <= 0 above it with a total in common.
The sums that a set of elements can reach are the bits of one integer, so a composition costs elements x states.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

TABLES = ("smact14", "icsd24")
MOST_ATOMS = 1_000_000  # the reachable sums are an integer of eight bits an atom
Composition = str | Mapping[Any, float]
Counts = tuple[tuple[int, int], ...]  # (atomic number, count), ascending, counts without a common divisor


@dataclass(frozen=True)
class CompositionRule:
    """The switches of the rule; the defaults are CDVAE's.

    table: oxidation states, one of TABLES. missing: what a neutral choice of states counts as when the
    electronegativity of an element is unknown (He, Ne, Ar, Pm, Rn, Lr): "valid" as in CDVAE, or "invalid" as SMACT does
    since version 3. metals, single: the two shortcuts. cap: compositions with more choices of states are invalid
    (DiffCSP: 10**7), None for no cap. An element without any known state is invalid beyond the shortcuts.
    """

    table: Literal["smact14", "icsd24"] = "smact14"
    missing: Literal["valid", "invalid"] = "valid"
    metals: bool = True
    single: bool = True
    cap: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (("table", self.table, TABLES), ("missing", self.missing, ("valid", "invalid"))):
            if value not in allowed:
                raise ValueError(f"{name} = '{value}', allowed: {', '.join(allowed)}")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"cap = {self.cap}, allowed: None or a number of at least 1")


CDVAE = CompositionRule()


def table_source() -> str:
    """The program and version the tables were taken from."""
    return _data()["source"]


def is_valid_composition(composition: Composition, rule: CompositionRule = CDVAE) -> bool:
    """Whether one composition, a formula or a mapping of elements to counts, passes the rule.

    Raises ValueError for what is not a composition with whole counts.
    """
    return _valid(_counts(composition), rule)


def compositional_validity(
    compositions: CrystalBatch | Sequence[Composition], rule: CompositionRule = CDVAE
) -> NDArray[np.bool_]:
    """Which compositions (B,) pass the rule: of a batch of crystals, or of formulas or mappings of element to count."""
    if hasattr(compositions, "num_structures"):
        found: Iterable[Counts] = batch_counts(cast("CrystalBatch", compositions))
    else:
        found = [_counts(composition) for composition in compositions]
    return np.array([_valid(counts, rule) for counts in found], dtype=bool)


def batch_counts(batch: CrystalBatch) -> list[Counts]:
    """The reduced composition of each crystal of a batch: ascending (atomic number, count) pairs."""
    numbers = np.split(batch["atomic_numbers"].cpu().numpy(), batch["ptr"][1:-1].tolist()) if len(batch) else []
    found = []
    for one in numbers:
        elements, counts = np.unique(one, return_counts=True)
        found.append(_reduce(zip(elements.tolist(), counts.tolist(), strict=True)))
    return found


def _reduce(pairs: Iterable[tuple[int, int]]) -> Counts:
    pairs = sorted(pairs)
    divisor = gcd(*(count for _, count in pairs))
    return tuple((z, count // divisor) for z, count in pairs)


def _counts(composition: Composition) -> Counts:
    from pymatgen.core import Composition as Parsed
    from pymatgen.core import DummySpecies

    try:
        parsed = Parsed(composition)
        if unknown := [str(element) for element in parsed if isinstance(element, DummySpecies)]:
            raise ValueError(f"{unknown[0]} is no element")
        amounts = [(element.Z, amount) for element, amount in parsed.element_composition.items()]
    except Exception as error:  # pymatgen raises several types on a bad formula
        reason = " ".join(str(error).split())
        raise ValueError(f"composition = {composition!r}, allowed: a formula or counts ({reason})") from error
    if not amounts or any(amount != round(amount) or amount < 1 for _, amount in amounts):
        raise ValueError(f"composition = {composition!r}, allowed: whole counts of at least one atom")
    if sum(amount for _, amount in amounts) > MOST_ATOMS:
        raise ValueError(f"composition = {composition!r}, allowed: up to {MOST_ATOMS:,} atoms")
    return _reduce((z, round(amount)) for z, amount in amounts)


@cache
def _data() -> dict[str, Any]:
    data = json.loads((Path(__file__).parent / "data" / "oxidation_states.json").read_text(encoding="utf-8"))
    from pymatgen.core import Element

    numbers = {symbol: Element(symbol).Z for symbol in data["electronegativity"]}
    tables = {name: {numbers[s]: value for s, value in data[name].items()} for name in ("electronegativity", *TABLES)}
    return {"source": data["source"], "metals": {numbers[s] for s in data["metals"]}, **tables}


@lru_cache(maxsize=200_000)
def _valid(counts: Counts, rule: CompositionRule) -> bool:
    data, elements = _data(), [z for z, _ in counts]
    if not counts:
        return False
    if rule.single and len(elements) == 1:
        return True
    if rule.metals and data["metals"].issuperset(elements):
        return True
    states = [data[rule.table].get(z, []) for z in elements]
    if not all(states) or (rule.cap is not None and prod(map(len, states)) > rule.cap):
        return False
    weighed = [[count * state for state in s] for (_, count), s in zip(counts, states, strict=True)]
    negativity = [data["electronegativity"].get(z) for z in elements]
    if any(value is None for value in negativity):
        return rule.missing == "valid" and _neutral(weighed)
    return _neutral_across_a_cut(weighed, negativity)


def _sums(choices: Iterable[Sequence[int]], start: int = 1) -> int:
    """Bits of the totals reachable with one of the charges >= 0 of each element; 0 when an element has none."""
    reached = start
    for charges in choices:
        following = 0
        for charge in charges:
            following |= reached << charge
        reached = following
    return reached


def _neutral(charges: Sequence[Sequence[int]]) -> bool:
    """Whether some choice adds up to zero; the charges of each element are shifted to start at zero."""
    zero = -sum(min(c) for c in charges)
    return zero >= 0 and bool(_sums([[q - min(c) for q in c] for c in charges]) >> zero & 1)


def _neutral_across_a_cut(charges: Sequence[Sequence[int]], negativity: Sequence[float]) -> bool:
    order = sorted(range(len(charges)), key=negativity.__getitem__)
    groups = [[charges[i] for i in group] for _, group in groupby(order, key=negativity.__getitem__)]
    below, above = [1], [1]
    for group in groups:
        below.append(_sums([[q for q in c if q >= 0] for c in group], below[-1]))
    for group in reversed(groups):
        above.append(_sums([[-q for q in c if q <= 0] for c in group], above[-1]))
    return any(cations & anions for cations, anions in zip(below, reversed(above), strict=True))
