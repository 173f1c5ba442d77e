"""Sampling in batches: random streams per unit of 16, memory errors, whole batches out.

Samples are numbered. What sample i looks like depends on the model, the controls, the seed and i, not on how many
others are drawn beside it (up to rounding: another batch size sums in another order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from chem.ragged import Batch
from generative.generator import Denoiser
from generative.noise import UNIT, UnitStreams
from generative.template_base import Templates


def sample_batches(
    denoiser: Denoiser,
    templates: Templates[Batch],
    n: int,
    start: int = 0,
    batch_size: int = 64,
    steps: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Batch]]:
    """(index of the first sample, batch) until samples `start` .. n - 1 are all there.

    Batches begin at multiples of `batch_size`, so the first one may begin before `start`. On a memory error the batch
    is halved and drawn again; MemoryError names the size where one unit of 16 does not fit. `on_step` is told the
    number of samples that moved one step. Batches come on the CPU in float64, as `Templates.restore` makes them.
    """
    if batch_size < UNIT or batch_size % UNIT:
        raise ValueError(f"batch_size = {batch_size} must be a multiple of {UNIT}")
    first = start - start % batch_size if start < n else n
    while first < n:
        size = min(batch_size, n - first)
        counts = templates.counts(first, size)
        template = templates.template(counts[:size]).to(denoiser.dtype).to(denoiser.device)
        streams = UnitStreams(seed, first, size, counts, denoiser.device)
        try:
            for state in denoiser.trajectory(template, steps, streams, start=templates.start):  # noqa: B007
                if on_step is not None:
                    on_step(size)
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            if batch_size == UNIT:
                what = f"{size} {templates.noun}s of up to {max(counts)} atoms"
                raise MemoryError(f"{what} do not fit the memory") from error
            batch_size = batch_size // 2 // UNIT * UNIT or UNIT
            torch.cuda.empty_cache()
            continue
        yield first, templates.restore(denoiser.decode(state))
        first += size


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; on the CPU torch raises a plain RuntimeError for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def batch_size_for(denoiser: Denoiser) -> int:
    """Samples at a time: enough to fill the device; a memory error halves it."""
    return 64 if denoiser.device.type == "cpu" else 512
