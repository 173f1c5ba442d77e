"""The pair layout of fully connected graphs: equal sizes together, chunks that fit the cache.

A plan depends on the atom counts alone. It is built once per batch and reused by every call on a copy of that batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chem.ragged import RaggedBatch


@dataclass(frozen=True)
class Chunk:
    """Some structures of one size n: rows `atoms` of the size-sorted order, `count` structures of n atoms each."""

    n: int
    count: int
    atoms: slice
    structures: slice


@dataclass(frozen=True)
class Plan:
    """Structures sorted by size and cut into chunks of at most `rows` ordered pairs, at least one structure each.

    atom_order (M,), structure_order (B,): position in the batch of each sorted row; *_place are the inverses.
    owner (M,): sorted structure of each sorted atom. sizes (B,): atom counts, sorted.
    """

    chunks: tuple[Chunk, ...]
    atom_order: Tensor
    atom_place: Tensor
    structure_order: Tensor
    structure_place: Tensor
    owner: Tensor
    sizes: Tensor

    @property
    def edges(self) -> Iterator[tuple[Chunk, slice]]:
        """Every chunk with the rows of its ordered pairs among those of all chunks."""
        first = 0
        for c in self.chunks:
            last = first + c.count * c.n * c.n
            yield c, slice(first, last)
            first = last

    @property
    def num_edges(self) -> int:
        """Ordered pairs, an atom with itself included: the sum of n squared."""
        return sum(c.count * c.n * c.n for c in self.chunks)


def make_plan(batch: RaggedBatch, rows: int) -> Plan:
    """The plan of a batch, remembered by it; copies the counts to the host once."""
    return batch.memo(("plan", rows), lambda: _make_plan(batch["num_atoms"], batch["ptr"], rows))


def _make_plan(num_atoms: Tensor, ptr: Tensor, rows: int) -> Plan:
    structure_order = torch.argsort(num_atoms, stable=True)
    sizes = num_atoms[structure_order]
    ends = torch.cumsum(sizes, 0)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    atom_order = torch.arange(len(owner), device=sizes.device) + (ptr[structure_order] - (ends - sizes))[owner]
    chunks, atom, first = [], 0, 0
    distinct, counts = torch.unique_consecutive(sizes, return_counts=True)
    for n, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        width = max(1, rows // max(1, n * n))
        for start in range(0, count, width):
            c = min(width, count - start)
            if n:
                chunks.append(Chunk(n, c, slice(atom, atom + c * n), slice(first + start, first + start + c)))
            atom += c * n
        first += count
    return Plan(
        chunks=tuple(chunks),
        atom_order=atom_order,
        atom_place=torch.argsort(atom_order),
        structure_order=structure_order,
        structure_place=torch.argsort(structure_order),
        owner=owner,
        sizes=sizes,
    )
