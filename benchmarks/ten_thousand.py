"""10,000 crystals through everything that needs no potential, on two processes: seconds and memory, and their growth.

The crystals are the validation set of MP-20 (needs ATOMSMITH_DATA) and disturbed copies of some, 0.05 Å and 1 %, seed
0, in an extxyz file of a temporary folder; 1,000 and 3,000 are drawn from them. A stage is run as
`runs.stages.describe_files` runs it; the time of reading alone, workers' start included, is subtracted. CrystalNN
fingerprints are no part of the total. Every size has a process of its own, so that memory is its own. Predicted before
measuring: reading 20 s, symmetry 40 s, uniqueness and novelty 100 s, all others under 10 s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.memory import Peak
from benchmarks.relaxation import disturbed

if TYPE_CHECKING:
    from chem.crystals import CrystalBatch
    from evaluation.descriptors.described import Described

Row = tuple[str, str, str]
SIZES, PROCESSES = (1000, 3000, 10_000), 2
APART = "crystalnn"  # in its own row
MINUTES, GIGABYTES = 15, 8
SIGMA, STRAIN = 0.05, 0.01  # Å, 1


def crystals(count: int) -> CrystalBatch:
    """So many of the 10,000, drawn at random; float64."""
    from chem.datasets import load
    from chem.ragged import concatenate

    known = load("mp20", "val").batch.to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    copied = torch.randperm(len(known), generator=generator)[: SIZES[-1] - len(known)]
    every = concatenate([known, disturbed(known.select(copied), SIGMA, STRAIN, generator)])
    return every.select(torch.randperm(len(every), generator=generator)[:count])


def measure(count: int) -> dict[str, Any]:
    """Wall seconds of each stage of one size, what was found, and the peak of memory in bytes."""
    from chem.convert import to_structures
    from chem.datasets import load
    from chem.writing import write
    from evaluation.descriptors.described import Described
    from evaluation.matching.uniqueness import novelty, uniqueness
    from evaluation.runs.stages import STAGES, Describe, describe_files, described, read_items

    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    train = load("mp20", "train").batch
    with TemporaryDirectory() as folder, Peak() as peak:
        file = Path(folder) / "crystals.extxyz"
        write(to_structures(crystals(count)), file)
        for name in ("reading", *STAGES):
            stages = () if name == "reading" else (name,)
            with timed(name):
                chunks = describe_files(file, Path(folder) / name, stages, workers=PROCESSES)
        step = Describe(((str(file), "extxyz", count),), (APART,))
        with timed("reading the rows"):
            ours = described(chunks, read_items(chunks, step), folder)
        with timed("density and elements against train"):
            _compare(ours, Described(train, cache=folder))
        with timed("uniqueness"):
            unique = uniqueness(ours.batch, processes=PROCESSES)
        with timed("novelty against train"):
            novel = novelty(ours.batch, train, "mp20 train", processes=PROCESSES)
    for name in STAGES:
        seconds[name] = max(seconds[name] - seconds["reading"], 0.0)
    found = f"{len(ours.batch)} read, {unique.unique.sum()} unique, {novel.novel.sum()} novel"
    return {"seconds": seconds, "bytes": peak.bytes, "found": found, "load": os.getloadavg()[0]}


def _compare(ours: Described, reference: Described) -> None:
    """Distances of density, number of elements and shares of elements, with their intervals."""
    from evaluation.distributions import PROPERTIES
    from evaluation.divergence import element_shares, jensen_shannon, wasserstein
    from evaluation.protocols import PROTOCOLS

    protocol = PROTOCOLS["cdvae-2022"]
    for name, (quantity, unit) in PROPERTIES.items():
        a, b = quantity(ours.measurable), quantity(reference.measurable)
        wasserstein(name, a, b, f"{len(a)} structures", protocol, 0, unit)
    shares = element_shares(ours.amounts), element_shares(reference.amounts)
    jensen_shannon("elements", *shares, f"{len(ours)} structures", protocol, 0)


def run() -> list[Row]:
    """A row for every stage with its seconds at all sizes, the totals, and the peaks of memory."""
    if not os.environ.get("ATOMSMITH_DATA"):
        return [("ten_thousand", "skipped: ATOMSMITH_DATA is not set", "")]
    found = {}
    for count in SIZES:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ten_thousand", str(count)]
        found[count] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    by_stage = {name: [found[n]["seconds"][name] for n in SIZES] for name in found[SIZES[0]]["seconds"]}
    apart = by_stage.pop(APART)
    total = [sum(taken) for taken in zip(*by_stage.values(), strict=True)]
    peaks = ", ".join(f"{found[n]['bytes'] / 1e9:.2f}" for n in SIZES)
    return [
        ("crystals", ", ".join(f"{n:,}" for n in SIZES), ""),
        *((f"{n:,} crystals", f"{found[n]['found']}; load of the machine {found[n]['load']:.1f}", "") for n in SIZES),
        *((f"seconds, {name}", _listed(taken), "") for name, taken in by_stage.items()),
        ("seconds, all of these", _listed(total), f"< {60 * MINUTES} at {SIZES[-1]:,}"),
        (f"seconds, {APART}", _listed(apart), ""),
        ("memory with workers, GB", peaks, f"< {GIGABYTES}"),
    ]


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{one:.1f}" for one in seconds)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
