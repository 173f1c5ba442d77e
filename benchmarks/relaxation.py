"""Relaxation of 32 perturbed MP-20 crystals under CHGNet: ours in one batch against chgnet's StructOptimizer.

The crystals are of the validation set (needs ATOMSMITH_DATA), spread over 1 to 20 atoms; atoms are displaced by 0.1 Å
and cells strained by 3 %, seed 0. Both relax atoms and cell until forces and virial per atom are below 0.1 eV/Å. Ours
is timed before and after theirs. Predicted before measuring: split first layers and one gradient call 3x a step, bolder
FIRE 2x fewer steps; found: 4x and 2.6x. On a GPU, crystals per second at several batch sizes follow.
"""

from __future__ import annotations

import os
import time
import warnings
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.timing import interleave
from chem.crystals import CrystalBatch
from chem.images import rows_times

COUNT, FMAX, NEAR = 32, 0.1, 0.01  # crystals, eV/Å, eV/atom
BATCHES = (1, 64, 1024)
Row = tuple[str, str, str]


def crystals(count: int = COUNT, sigma: float = 0.1, strain: float = 0.03) -> CrystalBatch:
    """Validation crystals with sizes spread evenly over 1 to 20 atoms, disturbed; float64."""
    from chem.datasets import load

    known = load("mp20", "val").batch
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for i in range(count):
        (rows,) = (known["num_atoms"] == round(1 + 19 * i / max(count - 1, 1))).nonzero(as_tuple=True)
        chosen.append(rows[torch.randint(len(rows), (1,), generator=generator)])
    return disturbed(known.select(torch.cat(chosen)).to(torch.float64), sigma, strain, generator)


def disturbed(batch: CrystalBatch, sigma: float, strain: float, generator: torch.Generator) -> CrystalBatch:
    """Atoms displaced by sigma Å and cells strained, in every direction; float64."""
    frac, lattice = batch["frac_coords"], batch["lattice"]
    kick = sigma * torch.randn(frac.shape, generator=generator, dtype=torch.float64)
    e = strain * torch.randn(lattice.shape, generator=generator, dtype=torch.float64)
    moved = frac + rows_times(kick, torch.linalg.inv(lattice)[batch["batch"]])
    deformed = lattice @ (torch.eye(3, dtype=torch.float64) + (e + e.mT) / 2)
    return batch.replace(frac_coords=moved % 1, lattice=deformed)


def run(count: int = COUNT) -> list[Row]:
    """CPU seconds of both, their ratio, the steps they took, and how their energies agree."""
    if not os.environ.get("ATOMSMITH_DATA"):
        return [("relaxation", "skipped: ATOMSMITH_DATA is not set", "")]
    if find_spec("chgnet") is None:
        return [("relaxation", "skipped: chgnet is not installed (extra 'stability')", "")]
    from chgnet.model import StructOptimizer

    from chem.convert import to_structures
    from evaluation.relaxation.chgnet_potential import CHGNetPotential
    from evaluation.relaxation.relax import Relaxation, RelaxationSettings, relax

    batch, potential, settings = crystals(count), CHGNetPotential(), RelaxationSettings(fmax=FMAX)
    structures, optimizer = to_structures(batch), StructOptimizer(use_device="cpu")
    paths: dict[int, tuple[float, int]] = {}
    relaxed: list[Relaxation] = []

    def theirs() -> None:
        for i, structure in enumerate(structures):
            done: dict[str, Any] = optimizer.relax(structure, fmax=FMAX, verbose=False, assign_magmoms=False)
            path = done["trajectory"]
            paths[i] = float(path.energies[-1]), len(path) - 2  # the start is no step, the end is logged twice

    def ours() -> None:
        relaxed.append(relax(batch, potential, settings))

    warnings.filterwarnings("ignore", category=UserWarning, module="chgnet")
    relax(batch[:2], potential, settings)
    times = interleave({"before": ours, "theirs": theirs, "after": ours}, repeats=1, warmups=0)
    seconds = (times["before"][0] + times["after"][0]) / 2
    energies = torch.tensor([paths[i][0] for i in range(count)], dtype=torch.float64)
    gap = (relaxed[0].energies - energies) / batch["num_atoms"]
    near = gap.abs() <= NEAR
    name = f"relaxation of {count} crystals to {FMAX} eV/Å"
    taken = relaxed[0].steps.double().mean()
    median, lower = float(gap[near].abs().median()) * 1e3, int((gap < -NEAR).sum())
    agreement = f"{int(near.sum())} of {count} (median {median:.1f} meV/atom), {lower} others lower"
    return [
        (f"{name}, StructOptimizer", f"{times['theirs'][0]:.1f} s, {_mean(paths):.1f} steps each", ""),
        (f"{name}, ours", f"{seconds:.1f} s, {taken:.1f} steps each", ""),
        ("relaxation, StructOptimizer / ours", f"{times['theirs'][0] / seconds:.1f}x", ">= 3x, aim 6x"),
        ("relaxation, converged", f"{int(relaxed[0].converged.sum())} of {count}", "all"),
        (f"relaxation, energies within {1e3 * NEAR:.0f} meV/atom", agreement, "all near or lower"),
        *(_on_gpu() if torch.cuda.is_available() else []),
    ]


def _mean(paths: dict[int, tuple[float, int]]) -> float:
    return sum(steps for _, steps in paths.values()) / len(paths)


def _on_gpu() -> list[Row]:
    """Crystals relaxed per second of wall time with 1, 64 and 1,024 of them on the way together."""
    from evaluation.relaxation.chgnet_potential import CHGNetPotential
    from evaluation.relaxation.relax import RelaxationSettings, relax

    potential, rows = CHGNetPotential(device="cuda"), []
    for together in BATCHES:
        batch = crystals(max(together, 16)).to("cuda")
        settings = RelaxationSettings(fmax=FMAX, max_edges=1 if together == 1 else 10**9)
        relax(batch[:together], potential, settings)
        start = time.perf_counter()
        relax(batch, potential, settings)
        seconds = time.perf_counter() - start
        rows.append((f"relaxation on a GPU, batch {together}", f"{len(batch) / seconds:.1f} crystals per second", ""))
    return rows
