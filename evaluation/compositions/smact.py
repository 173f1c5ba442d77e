"""Compositional validity by SMACT's rule, in the form CDVAE gave it and every crystal generator since has reported.

Counts are divided by their greatest common divisor. One element alone, and metals alone, are valid. Otherwise every
element takes one of its known oxidation states, and the composition is valid when some choice is neutral and puts each
positive element at a strictly smaller Pauling electronegativity than each negative one.

The choices are not enumerated. Sort the elements by electronegativity: a neutral choice exists exactly when a cut,
never between equal values, leaves sums of states >= 0 below it and sums of states <= 0 above it with a total in common.
The sums that a set of elements can reach are the bits of one integer, so a composition costs elements x states. Batches
keep them in a machine word (compositions.bitsets); the few that need more, up to MOST_ATOMS, take Python's integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from itertools import groupby
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from evaluation.compositions.amounts import COLUMNS, Composition, by_elements, parse
from evaluation.compositions.bitsets import neutral_across_a_cut

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.crystals import CrystalBatch

TABLES = ("smact14", "icsd24")
MOST_STATES = 8  # of one sign, of an element
NONE = -1  # in place of a state
MOST_ATOMS = 1_000_000  # the reachable sums are an integer of eight bits an atom
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
    compositions: CrystalBatch | Sequence[Composition],
    rule: CompositionRule = CDVAE,
    device: torch.device | str | None = None,
) -> NDArray[np.bool_]:
    """Which compositions (B,) pass the rule: of a batch of crystals, or of formulas or mappings of element to count.

    device: default that of the batch, or the CPU. Raises ValueError for formulas as `is_valid_composition` does; an
    atomic number outside 1..118 in a batch is an element without states.
    """
    if hasattr(compositions, "num_structures"):
        batch = cast("CrystalBatch", compositions)
        z = batch["atomic_numbers"]
        compositions = batch.replace(atomic_numbers=z.where((z >= 1) & (z < COLUMNS), 0))
    else:
        for composition in compositions:
            _counts(composition)  # raises for fractions
    valid = np.zeros(len(compositions), dtype=bool)
    for rows, elements, counts in by_elements(compositions, device):
        answers, odd = _judge(elements, counts.long(), rule)
        valid[rows.cpu().numpy()] = answers.cpu().numpy()
        for i in odd.nonzero()[:, 0].tolist():
            pairs = zip(elements[i].tolist(), counts[i].long().tolist(), strict=True)
            valid[int(rows[i])] = _valid(_reduce(pairs), rule)
    return valid


def batch_counts(batch: CrystalBatch) -> list[Counts]:
    """The reduced composition of each crystal of a batch: ascending (atomic number, count) pairs."""
    z, index = batch["atomic_numbers"].cpu().numpy(), batch["batch"].cpu().numpy()
    if not len(z):
        return [()] * len(batch)
    low = z.min()
    span = z.max() - low + 1
    keys, counts = np.unique(index * span + (z - low), return_counts=True)
    owner, elements = keys // span, keys % span + low
    ends = np.searchsorted(owner, np.arange(len(batch) + 1))
    pairs, cuts = list(zip(elements.tolist(), counts.tolist(), strict=True)), ends.tolist()
    return [_reduce(pairs[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


def _reduce(pairs: Iterable[tuple[int, int]]) -> Counts:
    pairs = sorted(pairs)
    divisor = gcd(*(count for _, count in pairs))
    return tuple((z, count // divisor) for z, count in pairs)


def _counts(composition: Composition) -> Counts:
    amounts = parse(composition)
    if any(amount != round(amount) for amount in amounts.values()):
        raise ValueError(f"composition = {composition!r}, allowed: whole counts of at least one atom")
    if sum(amounts.values()) > MOST_ATOMS:
        raise ValueError(f"composition = {composition!r}, allowed: up to {MOST_ATOMS:,} atoms")
    return _reduce((z, round(amount)) for z, amount in amounts.items())


@cache
def _data() -> dict[str, Any]:
    data = json.loads((Path(__file__).parents[1] / "data" / "oxidation_states.json").read_text(encoding="utf-8"))
    from pymatgen.core import Element

    numbers = {symbol: Element(symbol).Z for symbol in data["electronegativity"]}
    tables = {name: {numbers[s]: value for s, value in data[name].items()} for name in ("electronegativity", *TABLES)}
    return {"source": data["source"], "metals": {numbers[s] for s in data["metals"]}, **tables}


def _judge(z: Tensor, counts: Tensor, rule: CompositionRule) -> tuple[Tensor, Tensor]:
    """Answers (G,) for elements and counts (G, K), and which of them (G,) are to be redone one by one.

    Those are totals that a word cannot hold, and elements without electronegativity where the rule accepts them.
    """
    import torch

    up, down, number, negativity, metal = (one.to(z.device) for one in _tables(rule.table))
    valid = metal[z].all(1) if rule.metals else torch.zeros_like(z[:, 0], dtype=torch.bool)
    if rule.single and z.shape[1] == 1:
        valid = torch.ones_like(valid)
    states = number[z]
    weighed = ~valid & (states > 0).all(1)
    if rule.cap is not None:
        weighed &= states.double().prod(1) <= rule.cap
    unknown = negativity[z].isnan().any(1)
    odd = weighed & unknown if rule.missing == "valid" else torch.zeros_like(weighed)
    rows = (weighed & ~unknown).nonzero()[:, 0]
    order = negativity[z[rows]].argsort(dim=1, stable=True)
    z, counts = z[rows].gather(1, order), counts[rows].gather(1, order)
    counts = (counts // reduce(torch.gcd, counts.unbind(1)).unsqueeze(1)).unsqueeze(2)
    value = negativity[z]
    balanced, fits = neutral_across_a_cut(up[z] * counts, down[z] * counts, value[:, :-1] < value[:, 1:])
    valid[rows], odd[rows] = balanced, ~fits
    return valid, odd


@cache
def _tables(name: str) -> tuple[Tensor, ...]:
    """Of the elements by atomic number: states >= 0 and minus those <= 0 (119, 8), number of states, electronegativity
    (NaN where unknown), and whether a metal (119,)."""
    import torch

    data = _data()
    up, down = (torch.full((COLUMNS, MOST_STATES), NONE, dtype=torch.int64) for _ in range(2))
    number = torch.zeros(COLUMNS, dtype=torch.int64)
    for z, states in data[name].items():
        number[z] = len(states)
        for side, some in ((up, [q for q in states if q >= 0]), (down, [-q for q in states if q <= 0])):
            side[z, : len(some)] = torch.tensor(some, dtype=torch.int64)
    negativity = torch.tensor([data["electronegativity"].get(z) or np.nan for z in range(COLUMNS)])
    metal = torch.tensor([z in data["metals"] for z in range(COLUMNS)])
    return up, down, number, negativity.double(), metal


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
