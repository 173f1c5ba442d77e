"""Write tests/data/crystalnn_matminer.json: crystals and the site fingerprints that matminer computes of them.

    python -m venv v && v/bin/pip install 'matminer==0.10.1' 'pandas<3' && v/bin/python benchmarks/make_crystalnn.py

matminer needs pandas < 3 and is not a dependency of this package, of which nothing is imported here. The crystals are
prototypes, copies of them with displaced atoms and sheared cells, and atoms at random in triclinic cells.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "data" / "crystalnn_matminer.json"
RANDOM, DIGITS = 40, 10


def prototypes() -> list[Any]:
    """Crystals in which each motif is met, in cells that are not all orthogonal."""
    from pymatgen.core import Lattice, Structure

    cubic, hexagonal, make = Lattice.cubic, Lattice.hexagonal, Structure.from_spacegroup
    return [
        make("Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]),
        make("Fm-3m", cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]).get_primitive_structure(),
        make("Fd-3m", cubic(3.567), ["C"], [[0, 0, 0]]).get_primitive_structure(),
        make("Fm-3m", cubic(3.615), ["Cu"], [[0, 0, 0]]).get_primitive_structure(),
        make("Im-3m", cubic(2.87), ["Fe"], [[0, 0, 0]]).get_primitive_structure(),
        make("P6_3/mmc", hexagonal(2.464, 6.711), ["C", "C"], [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25]]),
        make("P6_3/mmc", hexagonal(3.209, 5.211), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
        make("P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
        make("R-3m", hexagonal(2.816, 14.05), ["Li", "Co", "O"], [[0, 0, 0.5], [0, 0, 0], [0, 0, 0.26]]),
        make("P6_3/mmc", hexagonal(3.19, 14.88), ["Mo", "S"], [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.621]]),
        make("Pm-3m", cubic(3.35), ["Po"], [[0, 0, 0]]),
        make("P1", Lattice.from_parameters(4.1, 7.3, 15.2, 78, 96, 111), ["Xe"], [[0.1, 0.2, 0.3]]),
    ]


def crystals() -> list[dict[str, Any]]:
    """Lattice rows, atomic numbers and fractional coordinates of each, from a fixed seed."""
    draw, found = random.Random(0), []
    for structure in prototypes():
        lattice, frac = structure.lattice.matrix.tolist(), structure.frac_coords.tolist()
        found.append((lattice, frac, [int(site.specie.Z) for site in structure]))
        lattice = [[x + draw.gauss(0, 0.15) for x in row] for row in lattice]
        found.append((lattice, [[x + draw.gauss(0, 0.02) for x in row] for row in frac], found[-1][2]))
    for _ in range(RANDOM):
        n = draw.randint(1, 7)
        size = (14.0 * n) ** (1 / 3)
        lattice = [[size * ((i == j) + draw.uniform(-0.4, 0.4)) for j in range(3)] for i in range(3)]
        frac = [[draw.random() for _ in range(3)] for _ in range(n)]
        found.append((lattice, frac, [draw.randint(1, 94) for _ in range(n)]))
    return [{"lattice": a, "frac_coords": f, "atomic_numbers": z} for a, f, z in found]


def main() -> None:
    """Write the fixture atomically: columns, crystals, and per crystal the non-zero columns of its mean."""
    from matminer.featurizers.site import CrystalNNFingerprint
    from pymatgen.core import Structure

    warnings.simplefilter("ignore")
    featurizer = CrystalNNFingerprint.from_preset("ops")
    names, rows = featurizer.feature_labels(), crystals()
    for row in rows:
        structure = Structure(row["lattice"], row["atomic_numbers"], row["frac_coords"])
        sites = [featurizer.featurize(structure, i) for i in range(len(structure))]
        means = [float(sum(column)) / len(sites) for column in zip(*sites, strict=True)]
        row["mean"] = {name: round(value, DIGITS) for name, value in zip(names, means, strict=True) if value}
    lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
    source = f"matminer {version('matminer')}, pymatgen {version('pymatgen')}"
    content = f'{{"source": "{source}",\n"columns": {json.dumps(names)},\n"crystals": [\n{lines}\n]}}\n'
    FIXTURE.parent.mkdir(exist_ok=True)
    temporary = FIXTURE.with_suffix(".part")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, FIXTURE)


if __name__ == "__main__":
    main()
