"""Tables of reference phases: the packaged one by name, a user's own as json, csv or parquet.

A table has a column `formula` and one of `formation_energy_per_atom` and `energy_per_atom` (eV/atom) and `energy` (eV
of the formula as it is written). With total energies the lowest entry of each element in the table is its
reference; an element without one cannot be judged, which is a reason in the result and no error.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.compositions.amounts import amounts, symbols
from evaluation.stability.hull import Hull
from evaluation.stability.phases import composition_shares
from evaluation.stability.references import ElementalReferences

PACKAGED = {"mp20": Path(__file__).parents[1] / "data" / "mp20_hull.parquet"}
ENERGIES = ("formation_energy_per_atom", "energy_per_atom", "energy")
SUFFIXES = (".json", ".csv", ".parquet")


def load_hull(source: str | Path = "mp20") -> Hull:
    """The hull of a packaged table by name, or of a file, whose stem is its name.

    Raises ValueError for an unknown name, a table without the columns, and a row that is no phase: a hull without the
    phases that could not be read would be too high in silence.
    """
    path = PACKAGED.get(str(source), Path(source))
    if path.suffix not in SUFFIXES or not path.is_file():
        raise ValueError(
            f"hull = '{source}', allowed: {', '.join(PACKAGED)}, or an existing {', '.join(SUFFIXES)} file"
        )
    rows = _read(path)
    kind = _energy_column(path, rows)
    formulas, energies = [], np.zeros(len(rows))
    for i, row in enumerate(rows):
        try:
            formulas.append(str(row["formula"]))
            energies[i] = float(row[kind])
            if not math.isfinite(energies[i]):
                raise ValueError("it is not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, row {i + 1}: no formula or {kind} ({error}); every row needs both") from error
    try:
        table = amounts(formulas).numpy()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    name = str(source) if str(source) in PACKAGED else path.stem
    if kind == "formation_energy_per_atom":
        return Hull(name, formulas, energies)
    return _from_total_energies(name, formulas, table, energies / (table.sum(1) if kind == "energy" else 1))


def _from_total_energies(
    name: str, formulas: Sequence[str], table: NDArray[np.float64], energies: NDArray[np.float64]
) -> Hull:
    """The hull of phases with amounts (R, 119) and total energies (R,) in eV/atom."""
    shares = composition_shares(table)
    references: dict[int, float] = {}
    for i in np.flatnonzero((table > 0).sum(1) == 1):
        z = int(table[i].argmax())
        references[z] = min(energies[i], references.get(z, np.inf))
    known = sorted(references)
    usable = np.isclose(shares[:, known].sum(1), 1, rtol=0, atol=1e-9)
    formation = energies[usable] - shares[usable][:, known] @ np.array([references[z] for z in known])
    own = ElementalReferences(name, dict(zip(symbols(known), (references[z] for z in known), strict=True)))
    return Hull(name, [f for f, use in zip(formulas, usable, strict=True) if use], formation, known, own)


def _energy_column(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = sorted({name for row in rows for name in row})
    found = [name for name in ENERGIES if name in columns]
    if not rows or "formula" not in columns or len(found) != 1:
        needed = f"formula and one of {', '.join(ENERGIES)}"
        raise ValueError(f"{path}: {len(rows)} rows with columns {', '.join(columns) or '(none)'}; needed: {needed}")
    return found[0]


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a parquet file ({' '.join(str(error).split())})") from error
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines()))
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not a {path.suffix[1:]} file ({' '.join(str(error).split())})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: a {type(rows).__name__}; needed: a list of objects with formula and an energy")
    return rows
