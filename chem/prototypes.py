"""A small data set of real chemistry made from nothing: simple ionic prototypes filled by ionic radii.

A prototype fixes the arrangement and the coordination of each site; every charge-balanced choice of elements whose
radius ratios suit it is built with touching ions, so that the bond length is the sum of the two radii. Radii are those
of Shannon, Acta Cryst. A32, 751 (1976), as tabulated in pymatgen, at the coordination nearest to the wanted one.
Everything is deterministic; the crystals are models for tests and tutorials, not measured structures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from chem.packing import Packed

Cell = tuple[list, list]  # lattice rows in ångström; fractional coordinates of all atoms, role by role
LIMIT = 60  # crystals kept of one prototype, evenly spaced in its list

IONS: dict[int, str] = {
    1: "Li Na K Rb Cs Ag Tl",
    2: "Be Mg Ca Sr Ba Zn Cd Hg Mn Fe Co Ni Pb Eu",
    3: "Al Sc Y La Nd Gd Lu Ga In Tl Cr Fe V Ti Bi",
    4: "Ti Zr Hf Ge Sn Pb Ce Th U V Mn",
    5: "Nb Ta",
    6: "W Re",
    -1: "F Cl Br I",
    -2: "O S Se Te",
    -3: "N",
}
COORDINATION = {"II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10, "XI": 11, "XII": 12}


@dataclass(frozen=True)
class Prototype:
    """One arrangement: per role (an element) its multiplicity and coordination, and the allowed sets of charges.

    cell takes the radii of the roles in ångström; suits says whether radii are within the range of the structure.
    """

    name: str
    multiplicity: tuple[int, ...]
    coordination: tuple[int, ...]
    charges: tuple[tuple[int, ...], ...]
    cell: Callable[..., Cell]
    suits: Callable[..., bool]


def ionic_radius(symbol: str, charge: int, coordination: int) -> float:
    """Shannon ionic radius in ångström at the nearest tabulated coordination, high spin where there is a choice.

    Raises ValueError when the ion is not in the table.
    """
    from pymatgen.core import Element

    table = (Element(symbol).data.get("Shannon radii") or {}).get(str(charge), {})
    known = {COORDINATION[key]: radii for key, radii in table.items() if key in COORDINATION}
    if not known:
        raise ValueError(f"no Shannon radius of {symbol} with charge {charge:+d}")
    radii = known[min(known, key=lambda n: (abs(n - coordination), n))]
    return float((radii.get("High Spin") or next(iter(radii.values())))["ionic_radius"])


def _cubic(a: float) -> list:
    return [[a, 0, 0], [0, a, 0], [0, 0, a]]


def _face_centred(a: float) -> list:
    return [[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]


def _rutile(m: float, x: float) -> Cell:
    u, d = 0.305, m + x  # both metal-anion distances equal d
    a, c = d / (math.sqrt(2) * u), 2 * d * math.sqrt(1 - ((0.5 - u) / u) ** 2)
    v = 0.5 - u
    anions = [[u, u, 0], [1 - u, 1 - u, 0], [0.5 + u, v, 0.5], [v, 0.5 + u, 0.5]]
    return [[a, 0, 0], [0, a, 0], [0, 0, c]], [[0, 0, 0], [0.5, 0.5, 0.5], *anions]


def _wurtzite(m: float, x: float) -> Cell:
    a, u = (m + x) * math.sqrt(8 / 3), 3 / 8
    c = a * math.sqrt(8 / 3)
    frac = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, u], [2 / 3, 1 / 3, 0.5 + u]]
    return [[a, 0, 0], [-a / 2, a * math.sqrt(3) / 2, 0], [0, 0, c]], frac


def _elpasolite(a_site: float, b: float, c: float, x: float) -> Cell:
    a = 2 * (b + c + 2 * x)
    u = (b + x) / a
    anions = [[s * (-u if i == k else u) for i in range(3)] for k in range(3) for s in (1, -1)]
    return _face_centred(a), [[0.25] * 3, [0.75] * 3, [0, 0, 0], [0.5] * 3, *anions]


def _layered(a_site: float, b: float, x: float) -> Cell:
    a = (a_site + b + 2 * x) / math.sqrt(2)  # between the edges of the two regular octahedra
    height_a, height_b = (2 * math.sqrt((r + x) ** 2 - a**2 / 3) for r in (a_site, b))
    c = 3 * (height_a + height_b)
    z = 1 / 3 - height_b / (2 * c)
    h = a / math.sqrt(3)  # rows of the rhombohedral cell; (t, t, t) lies at height t c
    lattice = [[h * math.cos(t), h * math.sin(t), c / 3] for t in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return lattice, [[0.5] * 3, [0, 0, 0], [z] * 3, [1 - z] * 3]


def _tolerance(a: float, b: float, x: float) -> float:
    return (a + x) / (math.sqrt(2) * (b + x))


SIMPLE = ((1, -1), (2, -2), (3, -3))
PEROVSKITE_CHARGES = ((1, 2, -1), (2, 4, -2), (3, 3, -2), (1, 5, -2))
HALF, QUARTER = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
FACES = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
EDGES = [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]

PROTOTYPES: tuple[Prototype, ...] = (
    Prototype("rock-salt", (1, 1), (6, 6), SIMPLE,
              lambda m, x: (_face_centred(2 * (m + x)), [[0, 0, 0], HALF]), lambda m, x: 0.40 < m / x < 1.05),
    Prototype("caesium-chloride", (1, 1), (8, 8), ((1, -1),),
              lambda m, x: (_cubic(2 * (m + x) / math.sqrt(3)), [[0, 0, 0], HALF]), lambda m, x: 0.73 < m / x < 1.05),
    Prototype("zinc-blende", (1, 1), (4, 4), SIMPLE,
              lambda m, x: (_face_centred(4 * (m + x) / math.sqrt(3)), [[0, 0, 0], QUARTER]),
              lambda m, x: 0.20 < m / x < 0.55),
    Prototype("wurtzite", (2, 2), (4, 4), SIMPLE, _wurtzite, lambda m, x: 0.20 < m / x < 0.55),
    Prototype("fluorite", (1, 2), (8, 4), ((2, -1), (4, -2)),
              lambda m, x: (_face_centred(4 * (m + x) / math.sqrt(3)), [[0, 0, 0], QUARTER, [0.75] * 3]),
              lambda m, x: 0.60 < m / x < 1.1),
    Prototype("antifluorite", (2, 1), (4, 8), ((1, -2),),
              lambda m, x: (_face_centred(4 * (m + x) / math.sqrt(3)), [QUARTER, [0.75] * 3, [0, 0, 0]]),
              lambda m, x: 0.20 < m / x < 1.1),
    Prototype("rutile", (2, 4), (6, 3), ((2, -1), (4, -2)), _rutile, lambda m, x: 0.40 < m / x < 0.73),
    Prototype("rhenium-trioxide", (1, 3), (6, 2), ((3, -1), (6, -2)),
              lambda m, x: (_cubic(2 * (m + x)), [[0, 0, 0], *EDGES]), lambda m, x: 0.40 < m / x < 0.73),
    Prototype("perovskite", (1, 1, 3), (12, 6, 2), PEROVSKITE_CHARGES,
              lambda a, b, x: (_cubic(2 * (b + x)), [[0, 0, 0], HALF, *FACES]),
              lambda a, b, x: 0.88 < _tolerance(a, b, x) < 1.04 and 0.41 < b / x < 0.75),
    Prototype("elpasolite", (2, 1, 1, 6), (12, 6, 6, 2), ((1, 1, 3, -1),), _elpasolite,
              lambda a, b, c, x: a > b and 0.88 < _tolerance(a, (b + c) / 2, x) < 1.04 and 0.35 < c / x < 0.75),
    Prototype("layered-oxide", (1, 1, 2), (6, 6, 6), ((1, 3, -2),), _layered,
              lambda a, b, x: a > 1.1 * b and b / x > 0.35 and a / x < 0.85),
)  # fmt: skip


def _compounds(prototype: Prototype) -> Iterator[tuple[str, tuple[str, ...], Cell]]:
    """Name, elements per role and cell of every compound that suits a prototype, in the order of IONS."""
    for charges in prototype.charges:
        if sum(q * n for q, n in zip(charges, prototype.multiplicity, strict=True)) != 0:
            raise ValueError(f"prototype {prototype.name}: charges {charges} do not balance")
        choices = [_radii(q, n) for q, n in zip(charges, prototype.coordination, strict=True)]
        for combination in product(*choices):
            symbols, radii = zip(*combination, strict=True)
            if len(set(symbols)) == len(symbols) and prototype.suits(*radii):
                yield f"{prototype.name}-{'-'.join(symbols)}", symbols, prototype.cell(*radii)


@cache
def _radii(charge: int, coordination: int) -> tuple[tuple[str, float], ...]:
    return tuple((symbol, ionic_radius(symbol, charge, coordination)) for symbol in IONS[charge].split())


def build() -> Packed:
    """All crystals (a few hundred), Niggli cells in the order of PROTOTYPES, packed.

    Properties: volume_per_atom in cubic ångström and density in g/cm3. ids are PROTOTYPE-ELEMENT-ELEMENT...
    """
    from pymatgen.core import Structure

    from chem.packing import assemble
    from chem.row_parsing import reduced_arrays

    rows, ids, properties = [], [], []
    for prototype in PROTOTYPES:
        compounds = list(_compounds(prototype))
        step = max(1.0, len(compounds) / LIMIT)
        for k in range(min(LIMIT, len(compounds))):
            name, symbols, (lattice, frac) = compounds[int(k * step)]
            species = [s for s, n in zip(symbols, prototype.multiplicity, strict=True) for _ in range(n)]
            structure = Structure(lattice, species, frac)
            rows.append(reduced_arrays(structure))
            ids.append(name)
            properties.append((structure.volume / len(structure), float(structure.density)))
    columns = np.array(properties).T
    return assemble(rows, ids, {"volume_per_atom": columns[0], "density": columns[1]})
