"""Training batches whose order is a pure function of (seed, epoch).

No workers: slicing in-memory arrays is the whole job. The place in the epoch is saved and restored by Lightning
through `state_dict`, so that a resumed run sees exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from chem.ragged import RaggedBatch
from generative.noise import mix


class Batches:
    """Shuffled batches of `size` structures, sharded by rank; the incomplete tail of an epoch is dropped on all ranks.

    The batch carries `index` (B,), the place of each structure in `data`. Raises ValueError where the data do not
    fill one batch a rank.
    """

    def __init__(self, data: RaggedBatch, size: int, seed: int, rank: int = 0, world: int = 1):
        if size < world or size % world:
            raise ValueError(f"batch_size = {size} must be a multiple of the {world} processes")
        if len(data) < size:
            raise ValueError(f"batch_size = {size} is larger than the training set of {len(data)} structures")
        self.data, self.size, self.seed, self.rank, self.world = data, size, seed, rank, world
        self.epoch, self.next = 0, 0

    def __len__(self) -> int:
        return len(self.data) // self.size

    def order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, the same on every rank."""
        shuffle = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(len(self.data), generator=shuffle)

    def __iter__(self) -> Iterator[RaggedBatch]:
        order = self.order(self.epoch)
        for i in range(self.next, len(self)):
            # moved on before the yield: code after the last one never runs under Lightning
            self.next = i + 1
            if self.next == len(self):
                self.epoch, self.next = self.epoch + 1, 0
            yield take(self.data, order[i * self.size + self.rank : (i + 1) * self.size : self.world])

    def state_dict(self) -> dict[str, Any]:
        """Epoch and next batch; the same on every rank."""
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place."""
        self.epoch, self.next = state["epoch"], state["next"]


class InOrder:
    """Batches in the order of the data, for validation; the last one may be smaller."""

    def __init__(self, data: RaggedBatch, size: int, rank: int = 0, world: int = 1):
        self.data, self.size, self.rank, self.world = data, size, rank, world

    def __len__(self) -> int:
        return -(-len(self.data) // (self.size * self.world))

    def __iter__(self) -> Iterator[RaggedBatch]:
        # every rank yields equally many batches; with several ranks the data are cut to whole batches of all ranks
        mine = torch.arange(len(self.data))[self.rank :: self.world]
        for i in range(len(self)):
            index = mine[i * self.size : (i + 1) * self.size]
            if len(index):
                yield take(self.data, index)


def take(data: RaggedBatch, index: Tensor) -> RaggedBatch:
    """The structures at `index`, with their places attached as the field `index`."""
    return data.select(index).attach("structure", index=index)
