"""Validity of 10,000 crystals, structural by both rules and compositional, on one thread.

The crystals are those of MP-20 train where ATOMSMITH_DATA is set, with every second one's coordinates shuffled as a bad
generator would; else random ones of the same sizes. Predicted before measuring: a million pairs in a few image
searches each, 4 s; 10,000 compositions at 50 microseconds, 0.5 s. The wall time of one run is what a user waits for.
"""

from __future__ import annotations

import os
import time

import torch

from chem.crystals import CrystalBatch

COUNT = 10_000


def crystals(n: int = COUNT) -> CrystalBatch:
    """n crystals, half of them with random coordinates."""
    generator = torch.Generator().manual_seed(0)
    if os.environ.get("ATOMSMITH_DATA"):
        from chem.datasets import load

        batch = load("mp20", "train").batch[:n]
        noise = torch.rand(batch["frac_coords"].shape, generator=generator, dtype=torch.float64)
        odd = (batch["batch"] % 2 == 1).unsqueeze(-1)
        return batch.replace(frac_coords=torch.where(odd, noise, batch["frac_coords"]))
    counts = torch.randint(1, 21, (n,), generator=generator)
    atoms = int(counts.sum())
    strain = 0.2 * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    size = (12.0 * counts.double()) ** (1 / 3)
    return CrystalBatch(
        counts,
        atomic_numbers=torch.randint(1, 90, (atoms,), generator=generator),
        frac_coords=torch.rand(atoms, 3, generator=generator, dtype=torch.float64),
        lattice=(torch.eye(3) + strain) * size.reshape(-1, 1, 1),
    )


def run() -> list[tuple[str, str, str]]:
    """Wall seconds of each part, and of all."""
    from evaluation.compositions.smact import compositional_validity
    from evaluation.validity import structural_validity

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch, rows, total = crystals(), [], 0.0
    parts = {
        "structural, cdvae": lambda: structural_validity(batch, "cdvae").valid,
        "structural, strict": lambda: structural_validity(batch, "strict").valid,
        "compositional, smact14": lambda: compositional_validity(batch),
    }
    try:
        for name, part in parts.items():
            start = time.perf_counter()
            valid = part()
            seconds = time.perf_counter() - start
            total += seconds
            rows.append((f"validity, {name}", f"{seconds:.2f} s, {valid.mean():.2%} of {len(batch)} valid", ""))
    finally:
        torch.set_num_threads(threads)
    return [*rows, (f"validity of {len(batch)} crystals, one thread", f"{total:.2f} s", "< 20 s")]
