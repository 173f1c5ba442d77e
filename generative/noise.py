"""Random numbers that do not depend on how samples are batched.

Every function that draws takes `generator`: None (torch's global state), a `torch.Generator`, `UnitStreams` or `Share`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chem.ragged import Rows
from chem.seeds import UNIT, mix


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


class Share:
    """One rank's part of the draws for a batch that `world` ranks share: rank r holds every world-th structure.

    Every rank draws for all structures and keeps its own, so that a structure's numbers do not depend on the number of
    ranks; one rank alone draws what the generator by itself would. num_atoms: (B,) of the batch of all ranks.
    """

    def __init__(self, generator: torch.Generator, num_atoms: Tensor, rank: int, world: int):
        counts = num_atoms.to(generator.device)
        mine = torch.arange(len(counts), device=counts.device) % world == rank
        self.generator = generator
        self._kept = {"structure": mine, "atom": mine.repeat_interleave(counts)}

    def draw(self, sampler: Callable[..., Tensor], rows: Rows, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """`sampler` (torch.randn or torch.rand) for all structures, cut to this rank's rows, (R, *shape)."""
        kept = self._kept[rows.level]
        device = self.generator.device
        return sampler(len(kept), *shape, generator=self.generator, dtype=dtype, device=device)[kept]


Random = torch.Generator | UnitStreams | Share | None


def _draw(sampler: Callable, rows: Rows, shape: Sequence[int], dtype: torch.dtype, generator: Random) -> Tensor:
    if isinstance(generator, UnitStreams | Share):
        return generator.draw(sampler, rows, shape, dtype)
    device = rows.index.device
    return sampler(len(rows.index), *shape, generator=generator, dtype=dtype, device=device)


def normal(rows: Rows, shape: Sequence[int], dtype: torch.dtype, generator: Random) -> Tensor:
    """Standard normal numbers, (R, *shape)."""
    return _draw(torch.randn, rows, shape, dtype, generator)


def uniform(rows: Rows, shape: Sequence[int], dtype: torch.dtype, generator: Random) -> Tensor:
    """Uniform numbers in [0, 1), (R, *shape)."""
    return _draw(torch.rand, rows, shape, dtype, generator)
