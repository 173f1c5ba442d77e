"""Write evaluation/data/magpie.json from the tables of matminer, and what matminer computes from them for the tests.

    python -m venv v && v/bin/pip install 'matminer==0.10.1' 'pandas<3' && v/bin/python benchmarks/make_magpie.py

matminer needs pandas < 3 and is not a dependency of this package. Its tables are redistributed under its own licence,
evaluation/data/matminer-LICENSE.txt. Values that matminer fills in are left out here: the mean over the elements that
have a value is computed when the table is read.
"""

from __future__ import annotations

import json
import os
import random
from importlib.metadata import distribution, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE, LICENCE = ROOT / "evaluation" / "data" / "magpie.json", ROOT / "evaluation" / "data" / "matminer-LICENSE.txt"
FIXTURE = ROOT / "tests" / "data" / "magpie_matminer.json"
FORMULAS = ["SrTiO3", "BaTiO3", "NaCl", "C", "Fe3O4", "HeO", "PmCl3", "H2O", "Li0.5CoO2", "La2CuO4", "UPu", "Rn2Fr"]
RANDOM = 188


def formulas() -> list[str]:
    """FORMULAS and RANDOM others, of 1 to 8 of the elements up to Lr in any amounts up to 12."""
    from pymatgen.core import Element

    draw = random.Random(0)
    made = [
        "".join(f"{Element.from_Z(z).symbol}{draw.randint(1, 12)}" for z in draw.sample(range(1, 104), k % 8 + 1))
        for k in range(RANDOM)
    ]
    return FORMULAS + made


def main() -> None:
    """Write table, licence and fixture, each atomically."""
    from matminer.featurizers.composition import ElementProperty
    from matminer.utils.data import MagpieData
    from pymatgen.core import Composition, Element

    source = f"matminer {version('matminer')}"
    featurizer = ElementProperty.from_preset("magpie")
    data = MagpieData(impute_nan=False)
    elements = [Element.from_Z(z) for z in range(1, 119)]
    lines = [
        f'"source": "{source} (BSD licence, see matminer-LICENSE.txt): the element tables of Magpie '
        '(Ward et al. 2016, doi:10.1038/npjcompumats.2016.28)"',
        f'"properties": {json.dumps(featurizer.features)}',
        f'"statistics": {json.dumps(featurizer.stats)}',
    ]
    values = {e.symbol: [data.get_elemental_property(e, name) for name in featurizer.features] for e in elements}
    rows = [
        f"  {json.dumps(symbol)}: {json.dumps([None if v != v else v for v in row])}" for symbol, row in values.items()
    ]
    lines.append('"elements": {\n' + ",\n".join(rows) + "\n}")
    _write(TABLE, "{\n" + ",\n".join(lines) + "\n}\n")
    licence = next(f for f in distribution("matminer").files or [] if f.name.startswith("LICENSE"))
    _write(LICENCE, Path(str(distribution("matminer").locate_file(licence))).read_text(encoding="utf-8"))
    found = {f: [float(v) for v in featurizer.featurize(Composition(f))] for f in formulas()}
    rows = [f"  {json.dumps(formula)}: {json.dumps(row)}" for formula, row in found.items()]
    _write(FIXTURE, f'{{\n"source": "{source}",\n"features": {{\n' + ",\n".join(rows) + "\n}\n}\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
