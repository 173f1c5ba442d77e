"""Supply risk of compositions: how few countries mine their elements, or hold the reserves of them.

The Herfindahl-Hirschman index of each element, from 0 to 10,000 (Gaultois et al. 2013, doi:10.1021/cm400893e, in
pymatgen's table), averaged by mass. LeMat-GenBench weighs production with 1/4 and reserves with 3/4, and divides by
1,000. The table lacks hydrogen, most noble gases and most actinides: a composition with one of these has no index.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from evaluation.compositions.amounts import COLUMNS, Composition, amounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

PRODUCTION, RESERVES, UNIT = 0.25, 0.75, 1000.0


def supply_risk(compositions: CrystalBatch | Sequence[Composition]) -> NDArray[np.float64]:
    """Index (B,) from 0 to 10 of each composition, NaN where an element has none and for no atoms."""
    from ase.data import atomic_masses

    table = amounts(compositions, "cpu").numpy()
    mass = table * np.nan_to_num(atomic_masses[:COLUMNS])
    total = np.where(mass > 0, mass * _indices(), 0.0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / mass.sum(1)


@cache
def _indices() -> NDArray[np.float64]:
    """Index (119,) of each element by atomic number, NaN where it is not known."""
    from pymatgen.analysis.hhi import HHIModel
    from pymatgen.core import Element

    found = np.full(COLUMNS, np.nan)
    for symbol, (production, reserves) in HHIModel().symbol_hhip_hhir.items():
        found[Element(symbol).Z] = (PRODUCTION * production + RESERVES * reserves) / UNIT
    return found
