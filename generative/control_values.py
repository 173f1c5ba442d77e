"""Values of controls, as they come from Python or the command line, made plain.

What is not allowed raises ValueError in one line that names the argument, the value and what is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


def read_symbols(value: str | Sequence[str] | None, argument: str, separator: str = ",") -> tuple[str, ...] | None:
    """Symbols of elements, "Li,Fe,O" or a sequence, without repetitions."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(separator)] if isinstance(value, str) else list(value)
    parts = [part for part in parts if part != ""]
    if not parts:
        raise ValueError(f"{argument} = {value!r} names no element")
    for symbol in parts:
        element_number(symbol, argument)
    return tuple(dict.fromkeys(parts))


def read_sizes(value: Any) -> dict[int, float] | None:
    """Weights of numbers of atoms: 8, "4-8" or (4, 8) (each of them alike), {4: 0.5, 8: 0.5} or "4:0.5,8:0.5"."""
    if value is None:
        return None
    try:
        sizes = _sizes(value)
    except (ValueError, TypeError, AttributeError):
        sizes = {}
    weights = sizes.values()
    if min(sizes, default=0) < 1 or not all(0 <= w < math.inf for w in weights) or not sum(weights):
        allowed = "a number >= 1, a range such as 4-8, or weights such as 4:0.5,8:0.5"
        raise ValueError(f"num_atoms = {value}, allowed: {allowed}")
    return {n: w for n, w in sorted(sizes.items()) if w > 0}


def _sizes(value: Any) -> dict[int, float]:
    if isinstance(value, str):
        if ":" in value:
            return _sizes({n: float(w) for n, w in (part.split(":") for part in value.split(","))})
        if re.fullmatch(r"\s*\d+\s*-\s*\d+\s*", value):
            return _sizes(tuple(value.split("-")))
        return {int(value): 1.0}
    if isinstance(value, Mapping):
        return {whole(n): float(w) for n, w in value.items()}
    if isinstance(value, (tuple, list)):
        low, high = (whole(n) for n in value)
        return dict.fromkeys(range(low, high + 1), 1.0)
    return {whole(value): 1.0}


def whole(value: Any) -> int:
    """The value as an int; ValueError where it is not a whole number."""
    if isinstance(value, bool) or int(value) != (value if not isinstance(value, str) else int(value)):
        raise ValueError
    return int(value)


def read_number(value: Any, argument: str, largest: float = math.inf) -> float | None:
    """A number above 0 and at most `largest`."""
    if value is None:
        return None
    try:
        number = float(value)
    except (ValueError, TypeError):
        number = math.nan
    if not 0 < number <= largest or number == math.inf:
        allowed = "> 0" if largest == math.inf else f"> 0 and <= {largest:g}"
        raise ValueError(f"{argument} = {value}, allowed: {allowed}")
    return number


def element_number(symbol: str, argument: str) -> int:
    """Atomic number of a symbol; ValueError naming the argument."""
    from pymatgen.core import Element

    if not isinstance(symbol, str) or not Element.is_valid_symbol(symbol):
        raise ValueError(f"{argument} names '{symbol}', which is no element")
    return int(Element(symbol).Z)


def formula_numbers(formula: str, z: int = 1) -> list[int]:
    """Elements of z formula units, in the order of the formula; ValueError for what is not a formula of whole atoms."""
    from pymatgen.core import Composition

    if z < 1:
        raise ValueError(f"z = {z}, allowed: >= 1")
    try:
        amounts = Composition(formula).items()
    except (ValueError, KeyError) as error:
        raise ValueError(f"formula = '{formula}' is not a chemical formula: {error}") from None
    numbers: list[int] = []
    for element, amount in amounts:
        if abs(amount * z - round(amount * z)) > 1e-6:
            raise ValueError(f"formula = '{formula}', z = {z}: {amount * z:g} atoms of {element} is not a whole number")
        numbers += [element_number(element.symbol, "formula")] * round(amount * z)
    if not numbers:
        raise ValueError(f"formula = '{formula}' has no atoms")
    return numbers


def symbols_of(numbers: Any) -> str:
    """Symbols of atomic numbers for a message, "Fe, O"."""
    from pymatgen.core import Element

    return ", ".join(Element.from_Z(int(z)).symbol for z in sorted({int(z) for z in numbers}))
