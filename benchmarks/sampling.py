"""DiffCSP's sampling loop: how much of its time is not the network.

Predicted before measuring: a step draws and moves 256 x 9 + 2,600 x 3 x 2 numbers, about 2 ms against two network
calls of 1 s and more, so well under 1 %.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.sizes import describe, mp20_like
from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative.models.diffcsp import DiffCSPConfig, build


def run(crystals: int = 256, steps: int = 20, hidden: int = 512) -> list[tuple[str, str, str]]:
    """Sample `crystals` crystals in `steps` steps with the published network, its weights random, at one thread."""
    batch = mp20_like(crystals)
    model = build(DiffCSPConfig(hidden=hidden), Statistics.compute(batch))
    given = CrystalBatch(batch["num_atoms"], atomic_numbers=batch["atomic_numbers"])
    inside, forward = [], model.network.forward

    def timed(state: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        start = time.process_time()
        out = forward(state, t)
        inside.append(time.process_time() - start)
        return out

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.network.forward = timed  # type: ignore[method-assign,assignment]
    try:
        start = time.process_time()
        model.sample(given, steps, torch.Generator().manual_seed(0))
        total = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    return [
        ("sampling, batch", f"{describe(batch)}, {steps} steps, {len(inside)} network calls", ""),
        ("sampling, CPU s per network call", f"{sum(inside) / len(inside):.2f}", ""),
        ("sampling, outside the network", f"{100 * (1 - sum(inside) / total):.2f} %", "< 5 %"),
    ]
