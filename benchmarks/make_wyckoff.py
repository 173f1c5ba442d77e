"""Write evaluation/data/wyckoff_relabelings.json from pymatgen's table, whose import takes seconds.

    python benchmarks/make_wyckoff.py

Per space group the ways in which another choice of the origin, or of the axes, renames the Wyckoff letters: the first
string of each list names all letters of the group, and each string what they become. Facts of the International Tables.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "evaluation" / "data" / "wyckoff_relabelings.json"


def main() -> None:
    """Write the table atomically."""
    from pymatgen.analysis.prototypes import WYCKOFF_POSITION_RELAB_DICT

    rows = {}
    for number in range(1, 231):
        tables = WYCKOFF_POSITION_RELAB_DICT[str(number)]
        letters = [chr(code) for code in tables[0]]
        renamed = {"".join(table[ord(letter)] for letter in letters) for table in tables}
        rows[number] = ["".join(letters), *sorted(renamed - {"".join(letters)})]
    lines = ",\n".join(f'  "{number}": {json.dumps(strings)}' for number, strings in rows.items())
    source = f"pymatgen-core {version('pymatgen-core')}, analysis.prototypes"
    temporary = TABLE.with_suffix(".part")
    temporary.write_text(f'{{"source": "{source}",\n"relabelings": {{\n{lines}\n}}}}\n', encoding="utf-8")
    os.replace(temporary, TABLE)


if __name__ == "__main__":
    main()
