"""Compositions as rows of numbers: read from formulas and batches, for every metric that looks at elements alone.

Column z of an amount table (B, 119) holds the number of atoms of element z; column 0 is always empty. Deuterium and
tritium are hydrogen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from chem.crystals import CrystalBatch

COLUMNS = 119
AT_ONCE = 4096  # structures; their amounts stay in the cache
Composition = str | Mapping[Any, float]
_TERM = re.compile(r"([A-Z][a-z]?)(\d+(?:\.\d+)?)?")
_PLAIN = re.compile(rf"(?:{_TERM.pattern})+")


def parse(composition: Composition) -> dict[int, float]:
    """Amounts by atomic number, ascending, of a formula or a mapping of elements to amounts.

    Raises ValueError for what is no composition, an unknown element, or an amount that is not positive and finite.
    """
    return dict(_parse_formula(composition) if isinstance(composition, str) else _parse_any(composition))


def amounts(compositions: CrystalBatch | Sequence[Composition], device: torch.device | str | None = None) -> Tensor:
    """Numbers of atoms (B, 119) float64 by structure and element, of a batch of crystals or of formulas or mappings.

    device: default that of the batch, or the CPU. Raises ValueError for an atomic number outside 1..118.
    """
    import torch

    if hasattr(compositions, "num_structures"):
        batch = cast("CrystalBatch", compositions)
        require_elements(batch)
        return torch.cat([torch.zeros(0, COLUMNS, dtype=torch.float64, device=device), *_tables(batch, device)])
    found = [_parse_formula(one) if isinstance(one, str) else _parse_any(one) for one in compositions]
    terms = np.array([term for one in found for term in one]).reshape(-1, 2)
    table = np.zeros((len(found), COLUMNS))
    table[np.arange(len(found)).repeat([len(one) for one in found]), terms[:, 0].astype(np.int64)] = terms[:, 1]
    return torch.from_numpy(table).to(device)


def by_elements(
    compositions: CrystalBatch | Sequence[Composition], device: torch.device | str | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Structures with as many elements together, so that nothing is padded: rows (G,), elements and amounts (G, K).

    Elements ascend. Structures without atoms are left out; elements of a batch are not checked but for 0..118.
    """
    whole = hasattr(compositions, "num_structures")
    tables = (
        _tables(cast("CrystalBatch", compositions), device) if whole else amounts(compositions, device).split(AT_ONCE)
    )
    start = 0
    for table in tables:
        kinds = (table > 0).sum(1)
        for k in kinds.unique().tolist():
            if k:
                rows = (kinds == k).nonzero()[:, 0]
                part = table[rows]
                z = part.nonzero()[:, 1].reshape(-1, k)
                yield rows + start, z, part.gather(1, z)
        start += len(table)


def require_elements(batch: CrystalBatch) -> None:
    """Raises ValueError for an atomic number outside 1..118."""
    z = batch["atomic_numbers"]
    if bool(((z < 1) | (z >= COLUMNS)).any()):
        raise ValueError(f"atomic_numbers range from {int(z.min())} to {int(z.max())}, allowed: 1 to {COLUMNS - 1}")


def _tables(batch: CrystalBatch, device: torch.device | str | None) -> Iterator[Tensor]:
    """Amounts (b, 119) float64 of AT_ONCE structures after the other."""
    import torch

    cuts = batch["ptr"][::AT_ONCE].tolist()
    cuts += [len(batch["batch"])] if len(batch) % AT_ONCE else []
    for first, (a, b) in zip(range(0, len(batch), AT_ONCE), zip(cuts, cuts[1:], strict=False), strict=True):
        z, index = batch["atomic_numbers"][a:b].to(device), batch["batch"][a:b].to(device) - first
        structures = min(AT_ONCE, len(batch) - first)
        yield torch.bincount(index * COLUMNS + z, minlength=structures * COLUMNS).reshape(structures, COLUMNS).double()


def symbols(numbers: Sequence[int]) -> list[str]:
    """Symbols of elements by atomic number."""
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in numbers]


@lru_cache(maxsize=200_000)
def _parse_formula(formula: str) -> tuple[tuple[int, float], ...]:
    """A formula without brackets by its terms; pymatgen reads all others, and says what is wrong."""
    known = _numbers()
    terms = _TERM.findall(formula) if _PLAIN.fullmatch(formula) else []
    if not terms or any(symbol not in known for symbol, _ in terms):
        return _parse_any(formula)
    found: dict[int, float] = {}
    for symbol, amount in terms:
        found[known[symbol]] = found.get(known[symbol], 0.0) + float(amount or 1)
    return _checked(formula, found)


def _parse_any(composition: Composition) -> tuple[tuple[int, float], ...]:
    from pymatgen.core import Composition as Parsed
    from pymatgen.core import DummySpecies

    found: dict[int, float] = {}
    try:
        parsed = Parsed(composition)
        if unknown := [str(element) for element in parsed if isinstance(element, DummySpecies)]:
            raise ValueError(f"{unknown[0]} is no element")
        for element, amount in parsed.items():
            found[element.Z] = found.get(element.Z, 0.0) + float(amount)
    except Exception as error:  # pymatgen raises several types on a bad formula
        reason = " ".join(str(error).split())
        raise ValueError(f"composition = {composition!r}, allowed: a formula or counts ({reason})") from error
    return _checked(composition, found)


def _checked(composition: Composition, found: dict[int, float]) -> tuple[tuple[int, float], ...]:
    if not found or not all(0 < amount < np.inf for amount in found.values()):
        raise ValueError(f"composition = {composition!r}, allowed: positive amounts of at least one element")
    return tuple(sorted(found.items()))


@cache
def _numbers() -> dict[str, int]:
    from ase.data import chemical_symbols

    return {symbol: z for z, symbol in enumerate(chemical_symbols) if z} | {"D": 1, "T": 1}
