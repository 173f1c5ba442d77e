"""The first step of a campaign: samples drawn, filtered, and given the keys by which duplicates are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evaluation.campaigns.duplicates import KEYS, keys
from evaluation.campaigns.structure_tables import to_table
from evaluation.runs.pipeline import Rows
from evaluation.validity import RULES, structural_validity

if TYPE_CHECKING:
    import pyarrow as pa

    from chem.crystals import CrystalBatch

# A picklable factory, called once in each worker, of draw(start, stop).
Draw = Callable[[], Callable[[int, int], "CrystalBatch"]]


@dataclass(frozen=True)
class Filters:
    """What a sample must pass, cheapest first.

    elements: symbols that may occur, None for all. validity: rule of evaluation.validity. min_distance: ångström
    between any two atoms, images included, None for no more than the rule asks. composition: whether SMACT must find
    the composition valid.
    """

    elements: tuple[str, ...] | None = None
    validity: Literal["cdvae", "strict"] = "strict"
    min_distance: float | None = None
    composition: bool = False

    def __post_init__(self) -> None:
        from ase.data import atomic_numbers

        if self.validity not in RULES:
            raise ValueError(f"validity = '{self.validity}', allowed: {', '.join(RULES)}")
        if self.min_distance is not None and not self.min_distance > 0:
            raise ValueError(f"min_distance = {self.min_distance}, allowed: a positive number of ångström")
        if unknown := [symbol for symbol in self.elements or () if atomic_numbers.get(symbol, 0) < 1]:
            raise ValueError(f"elements: '{unknown[0]}' is no element, allowed: symbols, such as Li,Fe,O")

    def refuse(self, batch: CrystalBatch) -> list[str | None]:
        """Why each crystal is refused, "FILTER: reason", None where it passes."""
        refused: list[str | None] = [None] * len(batch)
        for name, judge in (
            ("elements", self._foreign),
            ("validity", lambda part: structural_validity(part, self.validity).reasons),
            ("min_distance", self._cramped),
            ("composition", self._unlikely),
        ):
            rows = [i for i, reason in enumerate(refused) if reason is None]
            for i, reason in zip(rows, judge(batch[rows]) if rows else [], strict=True):
                refused[i] = f"{name}: {reason}" if reason else None
        return refused

    def _foreign(self, batch: CrystalBatch) -> list[str]:
        from ase.data import atomic_numbers, chemical_symbols

        reasons = [""] * len(batch)
        if self.elements is not None:
            allowed = np.isin(batch["atomic_numbers"].numpy(), [atomic_numbers[symbol] for symbol in self.elements])
            for i, z in zip(*(batch[f].numpy()[~allowed].tolist() for f in ("batch", "atomic_numbers")), strict=True):
                reasons[i] = f"{chemical_symbols[z] if 0 < z < len(chemical_symbols) else z} is not allowed"
        return reasons

    def _cramped(self, batch: CrystalBatch) -> list[str]:
        from evaluation.relaxation.guards import Guards, cramped

        return [""] * len(batch) if self.min_distance is None else cramped(batch, Guards(self.min_distance))

    def _unlikely(self, batch: CrystalBatch) -> list[str]:
        from evaluation.compositions.smact import compositional_validity

        if not self.composition:
            return [""] * len(batch)
        return ["" if valid else "no neutral choice of oxidation states" for valid in compositional_validity(batch)]


@dataclass(frozen=True)
class SampleStep:
    """Draws samples: their structures, `refused`, and the keys of those that pass."""

    draw: Draw
    filters: Filters

    def __call__(self) -> Rows:
        draw = self.draw()

        def rows(start: int, stop: int) -> pa.Table:
            batch = draw(start, stop)
            return with_keys(to_table(batch), batch, self.filters.refuse(batch))

        return rows


def with_keys(table: pa.Table, batch: CrystalBatch, refused: list[str | None]) -> pa.Table:
    """The table with a column `refused` and, where that is null, the keys of evaluation.campaigns.duplicates."""
    import pyarrow as pa

    good = [i for i, reason in enumerate(refused) if reason is None]
    found = keys(batch[good]) if good else dict.fromkeys(KEYS, [])
    types = dict(zip(KEYS, (pa.string(), pa.int16(), pa.float64()), strict=True))
    table = table.append_column("refused", pa.array(refused, pa.string()))
    for name, type_ in types.items():
        column: list[Any] = [None] * len(refused)
        for i, value in zip(good, found[name], strict=True):
            column[i] = value
        table = table.append_column(name, pa.array(column, type_))
    return table
