"""The community's own programs, run in an environment of their own, as oracles and opponents of our kernels.

matminer needs pandas < 3 and smact is no dependency either, so both live in `.venv-community`, which `environment`
builds when it is missing. This file is also the script that runs there: a name as argument, formulas as JSON on the
standard input, and {"seconds": CPU seconds of the loop, "answers": [...]} on the standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from math import gcd
from pathlib import Path
from typing import Any

PACKAGES = ("matminer==0.10.1", "pandas<3", "smact==4.0.2")
FOLDER = Path(__file__).resolve().parents[1] / ".venv-community"


def environment() -> Path:
    """The interpreter of the environment, built at need; ATOMSMITH_COMMUNITY names another one."""
    if given := os.environ.get("ATOMSMITH_COMMUNITY"):
        return Path(given)
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def ask(name: str, formulas: Sequence[str]) -> tuple[float, list[Any]]:
    """CPU seconds and answers of the program `name`, one of PROGRAMS, for some formulas."""
    command = [environment(), "-W", "ignore", __file__, name]
    done = subprocess.run(command, input=json.dumps(list(formulas)), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["seconds"], found["answers"]


def smact() -> Callable[[Any], bool]:
    """The composition rule choice by choice, as CDVAE asks the smact package, with the states of 2014."""
    from smact import element_dictionary, metals, neutral_ratios
    from smact.screening import pauling_test

    def valid(composition: Any) -> bool:
        amounts = composition.get_el_amt_dict()
        divisor = gcd(*map(int, amounts.values()))  # reduced_composition would leave Na2O2 as it is
        symbols, counts = list(amounts), [int(count) // divisor for count in amounts.values()]
        elements = element_dictionary(symbols)  # anew for each composition, as CDVAE does
        if len(symbols) == 1 or all(symbol in metals for symbol in symbols):
            return True
        negativity = [elements[symbol].pauling_eneg for symbol in symbols]
        found = []
        for states in product(*(elements[symbol].oxidation_states_smact14 or [] for symbol in symbols)):
            neutral = neutral_ratios(states, stoichs=[(count,) for count in counts], threshold=max(counts))
            if neutral and pauling_test(states, negativity):
                found.append(states)
        return bool(found)

    return valid


def magpie() -> Callable[[Any], list[float]]:
    """The 132 Magpie features of matminer."""
    from matminer.featurizers.composition import ElementProperty

    featurizer = ElementProperty.from_preset("magpie")
    return lambda composition: [float(value) for value in featurizer.featurize(composition)]


PROGRAMS = {"smact": smact, "magpie": magpie}


def main() -> None:
    """Answer one question."""
    from pymatgen.core import Composition

    compositions = [Composition(formula) for formula in json.load(sys.stdin)]
    program = PROGRAMS[sys.argv[1]]()
    program(compositions[0])
    start = time.process_time()
    answers = [program(composition) for composition in compositions]
    seconds = time.process_time() - start
    json.dump({"seconds": seconds, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
