"""Elemental reference energies: what turns the total energy of a crystal into its formation energy.

They belong to one energy scale, that of a potential or of a functional with its corrections. `fit_references` finds
those of a potential without asking it for the elements, whose molecules and magnets it may not know: the energies mu_e
that minimise sum_i (E_i - F_i - sum_e x_ie mu_e)^2 over crystals with total energies E_i and tabulated formation
energies F_i, both per atom, and shares x_ie of their atoms. The mean bias of the potential goes into mu; what is left,
the residual, is the error bar of every distance to the hull that is computed with them.

In oxides and fluorides of eight metals the Materials Project computes with a Hubbard U and corrects the total energy
by a fixed amount per metal atom (Wang et al. 2021, doi:10.1038/s41598-021-94550-5); a potential trained on uncorrected
energies is off by that. Each of these metals therefore has a second energy, fitted with the others: on MP-20 it lowers
the residual from 60 to 15 meV/atom and comes out within 0.2 eV of the published correction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.compositions.amounts import COLUMNS, Composition, amounts, parse, symbols

if TYPE_CHECKING:
    from chem.crystals import CrystalBatch

HUBBARD = ("V", "Cr", "Mn", "Fe", "Co", "Ni", "Mo", "W")
FILE = Path(__file__).parents[1] / "data" / "elemental_references.json"


@dataclass(frozen=True)
class ElementalReferences:
    """Energies in eV/atom by symbol, on the scale `name`.

    hubbard: what is added to that of a metal where there is oxygen or fluorine. crystals: how many the energies were
    fitted to, 0 where they are tabulated. residual: mean absolute difference in eV/atom between the formation energies
    that result and those of the fit, None where they are tabulated.
    """

    name: str
    energies: Mapping[str, float]
    hubbard: Mapping[str, float] = field(default_factory=dict)
    crystals: int = 0
    residual: float | None = None

    def formation_energies(
        self, compositions: CrystalBatch | Sequence[Composition], energies: ArrayLike
    ) -> NDArray[np.float64]:
        """Formation energies (B,) in eV/atom from total energies (B,) in eV of the atoms as they are counted.

        NaN for an element that has no reference and for no atoms.
        """
        table = amounts(compositions, "cpu").numpy()
        totals = _one_each(energies, table, "energies")
        mu = np.full(COLUMNS, np.nan)
        mu[_numbers(self.energies)] = list(self.energies.values())
        elements = np.where(table > 0, table * mu, 0.0).sum(1)
        elements += _with_anion(table, self.hubbard) @ np.array(list(self.hubbard.values()))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (totals - elements) / table.sum(1)


def fit_references(
    name: str,
    compositions: CrystalBatch | Sequence[Composition],
    energies: ArrayLike,
    formation_energies: ArrayLike,
) -> ElementalReferences:
    """Least-squares references from B crystals with total energies (B,) in eV and formation energies (B,) in eV/atom.

    Crystals with a missing value are left out; raises ValueError when none is left. A metal has a second energy where
    it occurs both with and without oxygen or fluorine.
    """
    table = amounts(compositions, "cpu").numpy()
    totals = _one_each(energies, table, "energies")
    targets = _one_each(formation_energies, table, "formation_energies")
    used = np.isfinite(totals) & np.isfinite(targets) & table.any(1)
    if not used.any():
        raise ValueError(f"none of {len(table)} crystals has both an energy and a formation energy; needed: one")
    table, count = table[used], table[used].sum(1)
    known = np.flatnonzero(table.any(0))
    oxidised = _with_anion(table, HUBBARD)
    both = (oxidised > 0).any(0) & (table[:, _numbers(HUBBARD)] > oxidised).any(0)
    shares = np.concatenate([table[:, known], oxidised[:, both]], axis=1) / count[:, None]
    wanted = totals[used] / count - targets[used]
    mu = np.linalg.lstsq(shares, wanted, rcond=None)[0]
    residual = float(np.abs(shares @ mu - wanted).mean())
    energies_of = dict(zip(symbols(known.tolist()), mu.tolist(), strict=False))
    hubbard = dict(zip(np.array(HUBBARD)[both].tolist(), mu[len(known) :].tolist(), strict=True))
    return ElementalReferences(name, energies_of, hubbard, len(wanted), residual)


def load_references(name: str) -> ElementalReferences:
    """Packaged references: "mp2020", those of the Materials Project with its 2020 corrections, or of a potential.

    The others were fitted to MP-20 energies of the potentials LeMat-GenBench used; evaluation/data names the source.
    """
    scales = json.loads(FILE.read_text(encoding="utf-8"))["scales"]
    if name not in scales:
        raise ValueError(f"references = '{name}', allowed: {', '.join(scales)}")
    return ElementalReferences(name, **scales[name])


def _numbers(names: Iterable[str]) -> list[int]:
    return [z for name in names for z in parse(name)]


def _with_anion(table: NDArray[np.float64], metals: Iterable[str]) -> NDArray[np.float64]:
    """Atoms (B, K) of each metal, zero where there is neither oxygen nor fluorine."""
    return table[:, _numbers(metals)] * (table[:, _numbers(("O", "F"))] > 0).any(1, keepdims=True)


def _one_each(values: ArrayLike, table: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (len(table),):
        raise ValueError(f"{name} of shape {found.shape}, allowed: one for each of {len(table)} compositions")
    return found
