"""Write evaluation/data/oxidation_states.json from the tables of the SMACT package (MIT licence).

    python -m venv v && v/bin/pip install 'smact==4.*' && v/bin/python benchmarks/make_oxidation_states.py

SMACT is not a dependency of this package: the numbers are facts, they are pinned here with the version they come from,
so that a validity does not change when a table upstream does. `smact14` is the hand-made set of 2014 that all papers
from CDVAE on report; `icsd24` is the set counted in the ICSD (2024), states with more than five reports.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "evaluation" / "data" / "oxidation_states.json"
TABLES = ("smact14", "icsd24")


def main() -> None:
    """Write the file atomically, one element a line."""
    import smact

    elements = {symbol: smact.Element(symbol) for symbol in smact.element_dictionary()}
    parts = {
        "electronegativity": {s: e.pauling_eneg for s, e in elements.items()},
        **{name: {s: getattr(e, f"oxidation_states_{name}") or [] for s, e in elements.items()} for name in TABLES},
    }
    lines = [
        f'"source": "SMACT {version("smact")} (MIT licence): smact.Element, smact.metals"',
        f'"metals": {json.dumps(list(smact.metals))}',
    ]
    for name, values in parts.items():
        rows = ",\n".join(f"  {json.dumps(symbol)}: {json.dumps(value)}" for symbol, value in values.items())
        lines.append(f'"{name}": {{\n{rows}\n}}')
    temporary = OUT.with_suffix(".part")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(temporary, OUT)


if __name__ == "__main__":
    main()
