"""Training batches whose order is a pure function of (seed, epoch), and validation batches in the order of the data.

No workers: slicing in-memory arrays is the whole job. Batches are cut for all processes together and then shared out,
so that what happens in a step does not depend on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from chem.ragged import RaggedBatch
from generative.noise import mix


class Batches:
    """Shuffled batches of `size` structures, sharded by rank; the incomplete tail of an epoch is dropped on all ranks.

    The batch carries `index` (B,), the place of each structure in `data`. Raises ValueError where `size` is not a
    positive multiple of the number of processes or the data do not fill one batch.
    """

    def __init__(self, data: RaggedBatch, size: int, seed: int, rank: int = 0, world: int = 1):
        _check(size, rank, world)
        if len(data) < size:
            raise ValueError(f"batch_size = {size} is larger than the training set of {len(data)} structures")
        self.data, self.size, self.seed, self.rank, self.world = data, size, seed, rank, world
        self.epoch, self.next = 0, 0
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.data) // self.size

    def order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, the same on every rank."""
        if self._last is None or self._last[0] != epoch:
            shuffle = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._last = epoch, torch.randperm(len(self.data), generator=shuffle)
        return self._last[1]

    def everyone(self, step: int) -> Tensor:
        """The structures of batch `step` of the run on all ranks, (size,); rank r takes every world-th from r on."""
        epoch, i = divmod(step, len(self))
        return self.order(epoch)[i * self.size : (i + 1) * self.size]

    def __iter__(self) -> Iterator[RaggedBatch]:
        epoch = self.epoch
        for i in range(self.next, len(self)):
            # moved on before the yield: code after the last one never runs under Lightning
            self.goto(epoch * len(self) + i + 1)
            yield take(self.data, self.everyone(epoch * len(self) + i)[self.rank :: self.world])

    def goto(self, step: int) -> None:
        """Make batch `step` of the run the next one of the next iteration."""
        self.epoch, self.next = divmod(step, len(self))

    def state_dict(self) -> dict[str, Any]:
        """Epoch and next batch; the same on every rank."""
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place."""
        self.epoch, self.next = state["epoch"], state["next"]


class InOrder:
    """Batches of `size` structures over all ranks in the order of the data, for validation; the last may be smaller.

    Every rank yields equally many batches; where the last has fewer structures than there are ranks, some get an empty
    one. Raises ValueError where `size` is not a positive multiple of the number of processes or there are no data.
    """

    def __init__(self, data: RaggedBatch, size: int, rank: int = 0, world: int = 1):
        _check(size, rank, world)
        if len(data) == 0:
            raise ValueError("the validation set has 0 structures, at least 1 is needed")
        self.data, self.size, self.rank, self.world = data, size, rank, world

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def everyone(self, i: int) -> Tensor:
        """The structures of batch i on all ranks."""
        return torch.arange(i * self.size, min((i + 1) * self.size, len(self.data)))

    def __iter__(self) -> Iterator[RaggedBatch]:
        for i in range(len(self)):
            yield take(self.data, self.everyone(i)[self.rank :: self.world])


class Loaders(LightningDataModule):
    """Both loaders, made when the processes are up: before, every process would take itself for rank 0."""

    def __init__(self, train: RaggedBatch, val: RaggedBatch, size: int, seed: int):
        super().__init__()
        self.data, self.size, self.seed = (train, val), size, seed

    def train_dataloader(self) -> Batches:
        """Shuffled batches of this rank."""
        assert self.trainer is not None
        self.training = Batches(self.data[0], self.size, self.seed, self.trainer.global_rank, self.trainer.world_size)
        return self.training

    def val_dataloader(self) -> InOrder:
        """Validation batches of this rank."""
        assert self.trainer is not None
        self.validation = InOrder(self.data[1], self.size, self.trainer.global_rank, self.trainer.world_size)
        return self.validation


def take(data: RaggedBatch, index: Tensor) -> RaggedBatch:
    """The structures at `index`, with their places attached as the field `index`."""
    return data.select(index).attach("structure", index=index)


def _check(size: int, rank: int, world: int) -> None:
    if size < world or size % world:
        raise ValueError(f"batch_size = {size} must be a positive multiple of the {world} processes")
    if not 0 <= rank < world:
        raise ValueError(f"rank = {rank}, allowed: 0..{world - 1}")
