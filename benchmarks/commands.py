"""What the commands that measure models share: their options, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from chem.output import noting

KEPT = "what is finished is kept; the same command continues"


def parser_of(name: str, doc: str | None, out: str) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME` with the options of every such command; out: where results are kept."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path(out), help="folder of samples and results")
    add("--data", default=None, help="data set (default: the one a model was trained on)")
    add("--seed", type=int, default=0)
    add("--bf16", action="store_true", help="products of the network in bfloat16")
    add("--batch-size", type=int, default=256)
    add("--threads", type=int, default=None, help="CPU threads of the network (default: torch's)")
    add("--processes", type=int, default=None, help="that judge (default: all cores), 0 for none and no time limit")
    return parser


def numbers(kind: Callable[[str], Any], least: float) -> Callable[[str], tuple[Any, ...]]:
    """A reader of numbers with commas between them, each at least `least`."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            found = tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}', allowed: numbers with commas between them") from None
        if not all(least <= x < float("inf") for x in found):
            raise argparse.ArgumentTypeError(f"'{text}', allowed: numbers from {least:g}")
        return found

    return read


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, work: Callable[[Any], None]) -> int:
    """Do the work of a command; exit code 2 for the user's mistakes, 1 for faults and Ctrl-C, each with one line."""
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        with noting(KEPT):
            work(options)
    except (ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
        text = "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
        print(f"{parser.prog.removeprefix('python -m ')}: {text}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0
