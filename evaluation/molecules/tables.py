"""Bond lengths and valences that stability is judged by, as facts in arrays.

EDM's tables (arXiv:2203.17003; MIT licence): typical lengths in pm of single, double and triple bonds, and the sums of
bond orders that an element may have. They were tuned to QM9, and sulfur has 4 only, so that every sulfide is unstable.

The corrected table (Nikitin et al., arXiv:2505.00169; MIT licence) counts aromatic bonds apart from the others and
depends on the formal charge: (aromatic bonds, sum of the other orders). It replaces tables that had been widened to
make up for aromatic bonds counted as single ones.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SINGLE = {  # each element with itself and those that follow; every length is for both orders of the pair
    "H": "H74 C109 N101 O96 F92 B119 Si148 P144 As152 S134 Cl127 Br141 I161",
    "C": "C154 N147 O143 F135 Si185 P184 S182 Cl177 Br194 I214",
    "N": "N145 O140 F136 Cl175 Br214 S168 I222 P177",
    "O": "O148 F142 Br172 S151 P163 Si163 Cl164 I194",
    "F": "F142 S158 Si160 Cl166 Br178 P156 I187",
    "B": "Cl175",
    "Si": "Si233 S200 Cl202 Br215 I243",
    "Cl": "Cl199 P203 S207 Br214",
    "S": "S204 Br225 P210 I234",
    "Br": "Br228 P222",
    "P": "P221",
    "I": "I266",
}
DOUBLE = {"C": "C134 N129 O120 S160", "N": "N125 O121", "O": "O121 P150", "P": "S186"}
TRIPLE = {"C": "C120 N116 O113", "N": "N110"}
VALENCES = "H1 C4 N3 O2 F1 B3 Al3 Si4 P3,5 S4 Cl1 As3 Br1 I1 Hg1,2 Bi3,5"
HIGHEST = 15  # valence from which on all are alike: none is allowed

# element and formal charge: (aromatic bonds, sum of the other orders), ...
CORRECTED = """
H 0: 0,1
B 0: 0,3; -1: 0,4
C 0: 0,4 2,1 2,2 3,0; -1: 0,3 2,1 3,0; 1: 0,3 2,1 3,0
N 0: 0,3 2,0 2,1 3,0; 1: 0,4 2,0 2,1 2,2 3,0; -1: 0,2 2,0; -2: 0,1
O 0: 0,2 2,0; -1: 0,1; 1: 0,3
F 0: 0,1
Si 0: 0,4; 1: 0,5
P 0: 0,3 0,5; 1: 0,4
S 0: 0,2 0,3 0,6 2,0; 1: 0,3 2,0 2,1 3,0; 2: 0,4 2,1 2,2; 3: 0,2 0,5; -1: 0,1
Cl 0: 0,1; 1: 0,2
Br 0: 0,1; 1: 0,2
I 0: 0,1; 1: 0,2; 2: 0,3
Bi 0: 0,3; 2: 0,5
"""
CHARGES, AROMATIC = 4, 5  # the corrected table knows charges from -3 to 3 and up to 4 aromatic bonds


@cache
def thresholds(margins: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance in pm (3, 119, 119) below which two elements have a bond of order at least 1, 2, 3; else -inf.

    margins: pm added to the lengths of single, double and triple bonds.
    """
    out = np.full((3, 119, 119), -np.inf)
    for level, (table, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), margins, strict=True)):
        for first, others in table.items():
            for entry in others.split():
                second, length = entry.rstrip("0123456789"), entry.lstrip(_LETTERS)
                a, b = _number(first), _number(second)
                out[level, a, b] = out[level, b, a] = float(length) + margin
    return out


@cache
def edm_valences() -> NDArray[np.bool_]:
    """Whether an element may have a valence, (119, HIGHEST + 1)."""
    out = np.zeros((119, HIGHEST + 1), dtype=bool)
    for entry in VALENCES.split():
        symbol, allowed = entry.rstrip("0123456789,"), entry.lstrip(_LETTERS)
        out[_number(symbol), [int(v) for v in allowed.split(",")]] = True
    return out


@cache
def corrected_valences() -> NDArray[np.bool_]:
    """Whether an element of some formal charge may have so many aromatic bonds and others of that sum.

    (119, 2 CHARGES - 1, AROMATIC, HIGHEST + 1); charge q is at q + CHARGES - 1.
    """
    out = np.zeros((119, 2 * CHARGES - 1, AROMATIC, HIGHEST + 1), dtype=bool)
    for line in CORRECTED.strip().splitlines():
        symbol, states = line.split(" ", 1)
        for state in states.split(";"):
            charge, pairs = state.split(":")
            for pair in pairs.split():
                aromatic, others = pair.split(",")
                out[_number(symbol), int(charge) + CHARGES - 1, int(aromatic), int(others)] = True
    return out


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _number(symbol: str) -> int:
    from ase.data import atomic_numbers

    return int(atomic_numbers[symbol])
