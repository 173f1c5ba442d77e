"""Measure the models that come with the package, and write what was measured into their cards.

    python -m benchmarks.cards                    # all of them; hours
    python -m benchmarks.cards diffcsp-mp20-csp --n 96 --n20 0 --steps 100 --bf16 --show

Structure prediction: match rate with one candidate for each of the first validation crystals (--n) and with 20 for
fewer of them (--n20), both baselines beside. Ab initio: --samples samples against the validation split, whose own
score stands beside. Samples and finished parts are kept under --out by the hash of the weights: what was interrupted is
continued, what is finished is not done again. Names may also be folders of checkpoints or runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import atomsmith
from benchmarks.commands import parser_of, run
from benchmarks.sections import Cards
from checkpoints.cards import MEASURED, rewrite
from checkpoints.manifest import CONFIG


def folder_of(name: str) -> Path:
    """The checkpoint folder of a shipped model, of a run (its best), or the folder itself."""
    shipped = atomsmith.models()
    if name in shipped:
        return shipped[name].folder
    place = Path(name)
    found = next((p for p in (place / "best", place) if (p / CONFIG).is_file()), None)
    if found is None:
        raise ValueError(f"names: '{name}', allowed: {', '.join(shipped)}, or folders of checkpoints or runs")
    return found


def parser(name: str, doc: str | None, out: str) -> argparse.ArgumentParser:
    """The options of a command that measures crystal models."""
    found = parser_of(name, doc, out)
    add = found.add_argument
    add("names", nargs="*", help="shipped models (default: all), or folders of checkpoints or runs")
    add("--n", type=int, default=1000, help="targets with one candidate; 0 leaves this part out")
    add("--samples", type=int, default=1000, help="of ab initio models")
    add("--steps", type=int, default=None, help="predictor steps (default: the model's)")
    add("--no-corrector", action="store_true")
    add("--show", action="store_true", help="print what is measured and write nothing")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the cards (or print with --show); exit code 2 for the user's mistakes, 1 for faults and Ctrl-C."""
    command = parser("cards", __doc__, "runs/cards")
    command.add_argument("--n20", type=int, default=100, help="targets with 20 candidates; 0 leaves this part out")
    return run(command, arguments, measure)


def measure(options: argparse.Namespace) -> None:
    """The work of the command."""
    if options.samples < 1:
        raise ValueError(f"samples = {options.samples}, allowed: at least 1")
    cards = Cards(options)
    for name in options.names or atomsmith.models():
        folder = folder_of(name)
        text = cards.section(name, atomsmith.load(name))
        if text is None:
            print(f"{name}: left out, makes no crystals; see benchmarks.molecules and .conditional")
        elif options.show:
            print(f"# {name}\n\n{text}\n")
        else:
            rewrite(folder, MEASURED, text)
            print(f"{name}: section {MEASURED} of {folder / 'card.md'} written")


if __name__ == "__main__":
    sys.exit(main())
