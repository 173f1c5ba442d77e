"""Random numbers that do not depend on how samples are batched.

Every function that draws takes `generator`: None (torch's global state), a `torch.Generator`, or `UnitStreams`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chem.ragged import Rows

UNIT = 16


class UnitStreams:
    """One generator per unit of 16 consecutive samples, seeded by (seed, unit).

    A batch holds samples first, ..., first + n - 1, where `first` is a multiple of 16. Each draw is made for whole
    units and cut to the samples present, so a sample's numbers are the same whatever else is in its batch.
    num_atoms: atom counts of all samples of the units touched, at least n of them, padded to whole units.
    """

    def __init__(self, seed: int, first: int, n: int, num_atoms: Sequence[int], device: torch.device | str = "cpu"):
        if first % UNIT or len(num_atoms) % UNIT or not 0 < n <= len(num_atoms):
            raise ValueError(f"samples {first}..{first + n} with {len(num_atoms)} counts are not units of {UNIT}")
        self._parts: list[tuple[torch.Generator, int, int, int, int]] = []
        for start in range(0, n, UNIT):
            counts, present = num_atoms[start : start + UNIT], min(UNIT, n - start)
            stream = torch.Generator(device).manual_seed(mix(seed, (first + start) // UNIT))
            self._parts.append((stream, UNIT, present, sum(counts), sum(counts[:present])))

    def draw(self, sampler: Callable[..., Tensor], rows: Rows, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """`sampler` (torch.randn or torch.rand) for each unit, stacked to (R, *shape)."""
        out = []
        for stream, units, present, atoms, atoms_present in self._parts:
            drawn, kept = (units, present) if rows.level == "structure" else (atoms, atoms_present)
            out.append(sampler(drawn, *shape, generator=stream, dtype=dtype, device=stream.device)[:kept])
        return torch.cat(out)


Random = torch.Generator | UnitStreams | None


def mix(*numbers: int) -> int:
    """A 63-bit seed from several integers, by splitmix64; (a, b) and (b, a) differ."""
    state = 0
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _draw(sampler: Callable, rows: Rows, shape: Sequence[int], dtype: torch.dtype, generator: Random) -> Tensor:
    if isinstance(generator, UnitStreams):
        return generator.draw(sampler, rows, shape, dtype)
    device = rows.index.device
    return sampler(len(rows.index), *shape, generator=generator, dtype=dtype, device=device)


def normal(rows: Rows, shape: Sequence[int], dtype: torch.dtype, generator: Random) -> Tensor:
    """Standard normal numbers, (R, *shape)."""
    return _draw(torch.randn, rows, shape, dtype, generator)


def uniform(rows: Rows, shape: Sequence[int], dtype: torch.dtype, generator: Random) -> Tensor:
    """Uniform numbers in [0, 1), (R, *shape)."""
    return _draw(torch.rand, rows, shape, dtype, generator)
