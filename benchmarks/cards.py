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

import torch

import atomsmith
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cards", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", help="shipped models (default: all), or folders of checkpoints or runs")
    add("--n", type=int, default=1000, help="targets with one candidate; 0 leaves this part out")
    add("--n20", type=int, default=100, help="targets with 20 candidates; 0 leaves this part out")
    add("--samples", type=int, default=1000, help="of ab initio models")
    add("--out", type=Path, default=Path("runs/cards"), help="folder of samples and results")
    add("--data", default=None, help="data set (default: the one a model was trained on)")
    add("--steps", type=int, default=None, help="predictor steps (default: the model's)")
    add("--seed", type=int, default=0)
    add("--no-corrector", action="store_true")
    add("--bf16", action="store_true", help="products of the network in bfloat16")
    add("--batch-size", type=int, default=256)
    add("--threads", type=int, default=None, help="CPU threads of the network (default: torch's)")
    add("--processes", type=int, default=None, help="of the matcher (default: all cores)")
    add("--show", action="store_true", help="print the sections and leave the cards as they are")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the cards (or print with --show); exit code 2 for the user's mistakes, 1 for faults and Ctrl-C."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
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
    except (ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
        text = "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
        print(f"benchmarks.cards: {text}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
