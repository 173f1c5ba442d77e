"""Write evaluation/data/mp20_hull.parquet and elemental_references.json, and print how good they are.

    ATOMSMITH_DATA=... python -m benchmarks.make_hull_reference

The phases are the crystals near the hull of the train and val splits of MP-20 (Materials Project, CC BY 4.0) that
LeMat-GenBench (Apache-2.0) selected, with DFT formation energies, the lowest of each composition, and 89 elements at
zero. The references of each potential are fitted to the same crystals, those of the Materials Project are the elemental
entries of 2023-02-07 with corrections, as matbench-discovery (MIT) ships them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chem.output import write_atomically
from evaluation.stability.hull import Hull
from evaluation.stability.phase_tables import PACKAGED
from evaluation.stability.references import FILE, ElementalReferences, fit_references

CRYSTALS = "mp20_hull_reference_train_val.parquet"
ELEMENTS = "mp_elemental_reference_entries_2023-02-07.json.gz"
POTENTIALS = ("mace", "orb", "uma", "ensemble")
SOURCE = "Materials Project (CC BY 4.0), by way of LeMat-GenBench (Apache-2.0) and matbench-discovery (MIT)"


def main() -> None:
    """Build both files from the directory ATOMSMITH_DATA names."""
    import pandas as pd

    root = Path(os.environ["ATOMSMITH_DATA"])
    table = pd.read_parquet(root / CRYSTALS)
    with gzip.open(root / ELEMENTS, "rt", encoding="utf-8") as file:
        entries = json.load(file)
    tabulated = {s: (e["energy"] + e["correction"]) / sum(e["composition"].values()) for s, e in entries.items()}
    formation = table["formation_energy_per_atom"].to_numpy()
    formulas = [*sorted(tabulated), *table["pretty_formula"]]
    hull = Hull("mp20", formulas, np.concatenate([np.zeros(len(tabulated)), formation]))
    write_atomically(PACKAGED["mp20"], _parquet(hull))
    print(
        f"{PACKAGED['mp20']}: {len(hull.phases)} phases of {len(table)} crystals, {len(hull.phases.elements)} elements"
    )

    compositions = table["species_at_sites"].str.replace(" ", "").tolist()
    scales = [ElementalReferences("mp2020", dict(sorted(tabulated.items())))]
    scales += [fit_references(name, compositions, table[f"{name}_energy"], formation) for name in POTENTIALS]
    write_atomically(FILE, _json(scales))
    for scale in scales[1:]:
        print(
            f"{scale.name}: {len(scale.energies)} elements from {scale.crystals} crystals, "
            f"mean absolute residual {1000 * (scale.residual or 0):.1f} meV/atom"
        )
    _compare(hull, table["pretty_formula"].tolist(), formation, table["e_above_hull_lemat"].to_numpy())


def _compare(hull: Hull, formulas: Sequence[str], energies: np.ndarray, published: np.ndarray) -> None:
    """Print how the distances of the crystals themselves compare with those to a larger hull."""
    found = hull.distances(formulas, energies).e_above_hull
    difference = found - published
    print(
        f"{hull.metric} of its own crystals against the hull of LeMat-GenBench: mean absolute difference "
        f"{1000 * np.abs(difference).mean():.1f} meV/atom, {np.mean(np.abs(difference) < 1e-3):.1%} within 1 meV/atom, "
        f"lower by more than that {np.mean(difference < -1e-3):.1%}"
    )


def _parquet(hull: Hull) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(hull.phases.formulas)
    columns = {
        "formula": [hull.phases.formulas[i] for i in order],
        "formation_energy_per_atom": np.round(hull.phases.energies[order], 6),
    }
    table = pa.table(columns).replace_schema_metadata({"source": SOURCE})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=19, use_dictionary=False)
    return buffer.getvalue()


def _json(scales: Sequence[ElementalReferences]) -> str:
    lines = []
    for scale in scales:
        content = {
            "energies": {symbol: round(energy, 6) for symbol, energy in scale.energies.items()},
            "hubbard": {symbol: round(energy, 6) for symbol, energy in scale.hubbard.items()},
            "crystals": scale.crystals,
            "residual": None if scale.residual is None else round(scale.residual, 6),
        }
        lines.append(f"  {json.dumps(scale.name)}: {json.dumps(content)}")
    return f'{{\n"source": {json.dumps(SOURCE)},\n"scales": {{\n' + ",\n".join(lines) + "\n}\n}\n"


if __name__ == "__main__":
    main()
