"""Making a training batch against the training step that consumes it.

Predicted before measuring: gathering 64 crystals out of 27,000 is six index operations, 0.3 ms, against a step of
1 s at the published size: 0.1 %.
"""

from __future__ import annotations

import itertools
import time

import torch

from benchmarks.sizes import mp20_like
from chem.statistics import Statistics
from generative.batches import Batches
from generative.models.diffcsp import DiffCSPConfig, build


def run(crystals: int = 27_000, size: int = 64, hidden: int = 512, steps: int = 4) -> list[tuple[str, str, str]]:
    """Batches of 64 out of a set of the size of MP-20, and a step of the published network, at one thread."""
    data = mp20_like(crystals)
    model = build(DiffCSPConfig(hidden=hidden), Statistics.compute(data))
    optimizer = torch.optim.AdamW(model.parameters())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        batches = list(itertools.islice(Batches(data, size, seed=0), 50))
        loading = (time.process_time() - start) / len(batches)
        start = time.process_time()
        for batch in batches[:steps]:
            optimizer.zero_grad()
            model.loss(batch)["total"].backward()
            optimizer.step()
        step = (time.process_time() - start) / steps
    finally:
        torch.set_num_threads(threads)
    return [
        ("loader, ms per batch", f"{1e3 * loading:.2f}", ""),
        ("loader, training step, s", f"{step:.2f}", ""),
        ("loader / training step", f"{100 * loading / step:.2f} %", "< 3 %"),
    ]
