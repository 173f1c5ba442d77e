"""Hard controls: what a sample must hold, whatever model draws it.

`Controls` holds what was asked, made plain, and refuses what contradicts itself; `generative.templates` turns it into
the batches a model starts from and puts what was given back, digit by digit, into what the model returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generative.control_cells import FixedSites, Given, read_cell, read_fixed, read_lattice
from generative.control_molecules import read_molecule
from generative.control_values import element_number, formula_numbers, read_number, read_sizes, read_symbols, symbols_of

# Pairs of which one fixes what the other asks for. Pairs that contradict each other by their values are in `_overlaps`;
# every other pair goes together.
EXCLUSIVE = (
    ("formula", "num_atoms", "which fixes it"),
    ("formula", "elements", "which fixes them"),
    ("formula", "chemical_system", "which fixes the elements"),
    ("formula", "init", "both fix the composition or its size"),
    ("chemical_system", "elements", "which names all elements"),
    ("init", "num_atoms", "which fixes it"),
    ("lattice", "volume", "which fixes it"),
)


@dataclass(frozen=True, eq=False)
class Controls:
    """What a sample must hold; None where nothing is asked. `read` makes it of what a user writes.

    formula, z: the composition, z formula units. num_atoms: weights of the numbers of atoms. elements: only these
    occur. chemical_system: exactly these, each at least once. forbid: these do not occur. lattice: (3, 3) rows in
    ångström. volume: of the cell in cubic ångström. fixed: sites that come first, in their order, with their elements
    and coordinates; their lattice is not part of them. init, noise: start from this structure, noised to
    the level noise in (0, 1], instead of from noise alone.
    """

    formula: str | None = None
    z: int = 1
    num_atoms: dict[int, float] | None = None
    elements: tuple[str, ...] | None = None
    chemical_system: tuple[str, ...] | None = None
    forbid: tuple[str, ...] | None = None
    lattice: NDArray[np.float64] | None = None
    volume: float | None = None
    fixed: FixedSites | None = None
    init: Given | None = None
    noise: float | None = None

    @classmethod
    def read(
        cls,
        formula: str | None = None,
        z: int = 1,
        num_atoms: int | str | Sequence[int] | Mapping[int, float] | None = None,
        elements: str | Sequence[str] | None = None,
        chemical_system: str | Sequence[str] | None = None,
        forbid: str | Sequence[str] | None = None,
        lattice: Any = None,
        volume: float | None = None,
        fixed: Any = None,
        init: Any = None,
        noise: float | None = None,
        molecules: bool = False,
    ) -> Controls:
        """Controls of the arguments of `atomsmith.sample`; ValueError names argument, value and what is allowed.

        molecules: whether the structures of fixed and init are molecules.
        """
        reader = read_molecule if molecules else read_cell
        system = read_symbols(chemical_system, "chemical_system", "-")
        return cls(
            formula,
            z,
            read_sizes(num_atoms),
            read_symbols(elements, "elements"),
            system and tuple(sorted(system)),
            read_symbols(forbid, "forbid"),
            read_lattice(lattice),
            read_number(volume, "volume"),
            read_fixed(fixed, reader),
            reader(init, "init"),
            read_number(noise, "noise", 1),
        )

    def __post_init__(self) -> None:
        for keeps, other, why in EXCLUSIVE:
            if getattr(self, keeps) is not None and getattr(self, other) is not None:
                raise ValueError(f"{self.show(other)} conflicts with {self.show(keeps)}, {why}")
        if (self.init is None) != (self.noise is None):
            raise ValueError(f"{self.show('noise')}, {self.show('init')}: one needs the other, noise in (0, 1]")
        if self.formula is None and self.z != 1:
            raise ValueError(f"z = {self.z} needs a formula")
        self._overlaps()

    def _overlaps(self) -> None:
        """Refuse pairs whose values contradict each other."""
        held = {"formula": set(self.composition or ()), "fixed": set(self.fixed.numbers if self.fixed else ())}
        held |= {name: self.numbers(name) for name in ("elements", "chemical_system")}
        for name, numbers in held.items():
            if hit := numbers & self.numbers("forbid"):
                raise ValueError(f"{self.show('forbid')} conflicts with {self.show(name)}, which has {symbols_of(hit)}")
        for name in ("elements", "chemical_system"):
            if held[name] and (other := held["fixed"] - held[name]):
                has = f"which has {symbols_of(other)}"
                raise ValueError(f"{self.show(name)} conflicts with {self.show('fixed')}, {has}")
        if self.composition is not None and self.fixed is not None:
            self.remaining(self.composition, "formula")
        if self.init is not None and self.fixed is not None and self.init.sha256 != self.fixed.structure.sha256:
            raise ValueError("fixed conflicts with init: where both are given they must be of the same structure")
        for name in ("num_atoms", "init"):
            if (smallest := self._smallest(name)) is not None and smallest < self.least_atoms:
                names = " and ".join(self.show(f) for f in ("fixed", "chemical_system") if getattr(self, f) is not None)
                needed = f"at least {self.least_atoms} atoms are needed"
                raise ValueError(f"{self.show(name)} conflicts with {names}: {needed}")

    def _smallest(self, name: str) -> int | None:
        if name == "init":
            return None if self.init is None else len(self.init.numbers)
        return None if self.num_atoms is None else min(self.num_atoms)

    @property
    def composition(self) -> list[int] | None:
        """Atomic numbers of the formula, in its order."""
        return None if self.formula is None else formula_numbers(self.formula, self.z)

    @property
    def least_atoms(self) -> int:
        """Atoms that the fixed sites and the elements that must occur need."""
        fixed = [] if self.fixed is None else self.fixed.numbers.tolist()
        return max(1, len(fixed) + len(self.numbers("chemical_system") - set(fixed)))

    def numbers(self, name: str) -> set[int]:
        """Atomic numbers of the symbols under elements, chemical_system or forbid; none where it is not asked."""
        return {element_number(symbol, name) for symbol in getattr(self, name) or ()}

    def remaining(self, numbers: Sequence[int], name: str) -> list[int]:
        """`numbers` without those of the fixed sites, in order; ValueError where they do not hold them."""
        left = list(numbers)
        for number in [] if self.fixed is None else self.fixed.numbers.tolist():
            if number not in left:
                extra = symbols_of([number])
                raise ValueError(f"{self.show(name)} conflicts with {self.show('fixed')}, which has more {extra}")
            left.remove(number)
        return left

    def show(self, name: str) -> str:
        """The control and its value, for a message."""
        value = self.plain()[name]
        if name == "fixed" and value is not None:
            value = f"sites {value['sites']}"
        if name == "init" and self.init is not None:
            value = f"{len(self.init.numbers)} atoms"
        return f"{name} = '{value}'" if name in ("formula", "chemical_system") else f"{name} = {value}"

    def plain(self) -> dict[str, Any]:
        """Every control in values that JSON holds; structures by the hash of their content."""
        out = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.num_atoms is not None:
            only = len(self.num_atoms) == 1
            out["num_atoms"] = next(iter(self.num_atoms)) if only else {str(n): w for n, w in self.num_atoms.items()}
        for name in ("elements", "forbid"):
            out[name] = None if out[name] is None else list(out[name])
        if self.chemical_system is not None:
            out["chemical_system"] = "-".join(self.chemical_system)
        out["lattice"] = None if self.lattice is None else self.lattice.tolist()
        if self.fixed is not None:
            out["fixed"] = {"structure": self.fixed.structure.sha256[:16], "sites": list(self.fixed.sites)}
        out["init"] = None if self.init is None else self.init.sha256[:16]
        return out

    def asked(self) -> dict[str, Any]:
        """`plain` without what is not asked."""
        return {name: value for name, value in self.plain().items() if value is not None and (name, value) != ("z", 1)}
