"""The two splits that a training reads, and halves of the first: for a judge that must not have seen its examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chem import datasets
from chem.datasets import Dataset

HALVES = ("first-half", "second-half")


def training_splits(data: str | Path, root: str | Path | None = None) -> tuple[Dataset[Any], Dataset[Any]]:
    """train and val of a data set; of "NAME:first-half" and "NAME:second-half" that half of train, and val.

    Halves go by a hash of the ids, as `chem.datasets.split_rows` orders them: the order of the rows is irrelevant.
    """
    name, colon, half = str(data).rpartition(":")
    chosen = bool(colon) and half in HALVES
    train, val = (datasets.load(name if chosen else data, split, root) for split in ("train", "val"))
    if not chosen:
        return train, val
    rows = datasets.split_rows(train.ids, (0.5, 0.5, 0.0))[("train", "val")[HALVES.index(half)]]
    return part_of(train, torch.tensor(rows, dtype=torch.long), half), val


def part_of(data: Dataset[Any], rows: torch.Tensor, what: str) -> Dataset[Any]:
    """The structures in these rows (K,) as a data set named "NAME:what"."""
    ids = [data.ids[i] for i in rows.tolist()]
    return replace(data, name=f"{data.name}:{what}", batch=data.batch.select(rows), ids=ids)
