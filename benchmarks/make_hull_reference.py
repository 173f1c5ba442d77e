"""Write evaluation/data/mp20_hull.parquet and elemental_references.json, and print how good they are.

    ATOMSMITH_DATA=... python -m benchmarks.make_hull_reference

The phases are the crystals of the train and val splits of MP-20 (Materials Project, CC BY 4.0), the lowest of each
composition, and 89 elements at zero. Formation energies are those of DFT, partly by way of LeMat-GenBench (Apache-2.0),
where they are known. Those of the other 4,634 crystals, whole systems of oxides among them, are CHGNet's, so that no
sample lies below a hull that lacks them. References of potentials are fitted to crystals with DFT energies; those of
the Materials Project are the elemental entries of 2023-02-07 with corrections, as matbench-discovery (MIT) ships them.

CHGNet's energies take about 40 minutes of one core; they are kept in ~/.cache/atomsmith in parts, so that a run that
was stopped goes on.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chem import datasets
from chem.crystals import CrystalBatch
from chem.output import write_atomically
from chem.ragged import concatenate
from evaluation.csp import formulas
from evaluation.descriptors.cache import remembered
from evaluation.relaxation.chgnet_potential import CHGNetPotential
from evaluation.relaxation.relax import RelaxationSettings, relax
from evaluation.stability.hull import Hull
from evaluation.stability.phase_tables import PACKAGED
from evaluation.stability.references import FILE, ElementalReferences, fit_references

CRYSTALS = "mp20_hull_reference_train_val.parquet"
ELEMENTS = "mp_elemental_reference_entries_2023-02-07.json.gz"
PART = 500  # crystals whose energies are kept together
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
    batch = concatenate([datasets.load("mp20", split).batch for split in ("train", "val")])
    energies, known = chgnet_energies(batch), batch["formation_energy_per_atom"].double().numpy()
    chgnet = fit_references("chgnet", batch, energies, known)
    dft = np.isfinite(known)
    values = np.where(dft, known, chgnet.formation_energies(batch, energies))
    usable = np.flatnonzero(np.isfinite(values))
    elements = sorted(tabulated)
    names = [*elements, *table["pretty_formula"], *np.array(formulas(batch))[usable]]
    hull = Hull("mp20", names, np.concatenate([np.zeros(len(elements)), formation, values[usable]]))
    write_atomically(PACKAGED["mp20"], _parquet(hull))
    print(
        f"{PACKAGED['mp20']}: {len(hull.phases)} phases, {len(hull.phases.elements)} elements; {len(usable)} crystals"
        f" of MP-20, {(~dft).sum()} of them with energies of CHGNet, {len(batch) - len(usable)} without energy"
    )

    compositions = table["species_at_sites"].str.replace(" ", "").tolist()
    scales = [ElementalReferences("mp2020", dict(sorted(tabulated.items()))), chgnet]
    scales += [fit_references(name, compositions, table[f"{name}_energy"], formation) for name in POTENTIALS]
    write_atomically(FILE, _json(scales))
    for scale in scales[1:]:
        print(
            f"{scale.name}: {len(scale.energies)} elements from {scale.crystals} crystals, "
            f"mean absolute residual {1000 * (scale.residual or 0):.1f} meV/atom"
        )
    _compare(hull, table["pretty_formula"].tolist(), formation, table["e_above_hull_lemat"].to_numpy())


def chgnet_energies(batch: CrystalBatch) -> np.ndarray:
    """Total energies (B,) in eV of crystals as they are; NaN where CHGNet has none."""
    potential, still = CHGNetPotential(), RelaxationSettings(steps=0)
    settings = {"potential": "chgnet 0.3.0"}
    parts = []
    for start in range(0, len(batch), PART):
        part = batch[start : start + PART]

        def measure(part: CrystalBatch = part) -> dict[str, np.ndarray]:
            return {"energies": relax(part, potential, still).initial_energies.numpy()}

        parts.append(remembered("chgnet-energies", part, settings, measure)["energies"])
        print(f"\rCHGNet: {start + len(part)} of {len(batch)} crystals", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return np.concatenate(parts)


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
