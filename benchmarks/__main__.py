"""`python -m benchmarks [name ...] [--json FILE]`: run the named benchmarks, or all, and print what they measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module

# speeds are those of one thread, and the libraries read this when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

NAMES = {"forward": "cspnet", "training": "cspnet", "sampling": "sampling", "loader": "loader", "packing": "packing"}
NAMES |= {"flowmm": "flowmm", "egnn": "egnn", "validity": "validity", "matching": "matching"}
NAMES |= {"stability": "stability", "matcher": "matcher", "decisions": "decisions"}
NAMES |= {"smact": "compositions", "magpie": "compositions", "hull": "compositions"}
NAMES |= {"relaxation": "relaxation", "fingerprints": "fingerprints", "ten_thousand": "ten_thousand"}
Row = tuple[str, str, str]


def machine() -> list[Row]:
    """What the numbers were measured on."""
    import torch

    from benchmarks.timing import cpu_model
    from generative.backbone.gemm import probe

    torch.set_num_threads(1)
    rates = probe()
    return [
        ("CPU", cpu_model(), ""),
        ("torch", torch.__version__, ""),
        ("float32 product, default", f"{rates.default_rate:.0f} GFLOP/s, error {rates.default_error:.0e}", ""),
        ("float32 product, oneDNN", f"{rates.onednn_rate:.0f} GFLOP/s, error {rates.onednn_error:.0e}", ""),
        ("library used", "oneDNN" if rates.onednn_pays else "default", ""),
    ]


def benchmark(name: str) -> Callable[[], list[Row]]:
    """The function behind a name."""
    module = import_module(f"benchmarks.{NAMES[name]}")
    return getattr(module, name) if NAMES[name] != name else module.run


def main(arguments: list[str] | None = None) -> int:
    """Run, print line by line, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"name = '{unknown[0]}', allowed: {', '.join(NAMES)}")
    rows: list[Row] = []
    for part in [machine, *(benchmark(name) for name in given.names or NAMES)]:
        found = part()
        for what, value, bound in found:
            print(f"{what:<44} {value:<60} {bound}".rstrip(), flush=True)
        rows += found
    if given.json:
        temporary = f"{given.json}.part"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump([dict(zip(("what", "value", "bound"), row, strict=True)) for row in rows], file, indent=1)
        os.replace(temporary, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
