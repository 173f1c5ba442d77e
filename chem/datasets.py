"""Data sets of crystals by name: mp20, perov5, carbon24, mpts52, prototypes, and any folder made by `prepare`.

Files are looked for in the directory `root`, else in the environment variable ATOMSMITH_DATA, else in
~/.cache/atomsmith. Two layouts are known: one parquet file per set or per split, and the folders of csv files that
CDVAE and its successors distribute (mp_20/train.csv, ...). Nothing is downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chem.crystals import CrystalBatch
from chem.packing import Failure, default_cache, pack

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "test")
# name -> places under root, in the order in which they are tried; a place without {split} has a column `split`
LAYOUTS: dict[str, tuple[str, ...]] = {
    "mp20": ("mp20_{split}.parquet", "mp_20/{split}.csv"),
    "perov5": ("perov_5.parquet", "perov_5/{split}.csv"),
    "carbon24": ("carbon_24.parquet", "carbon_24/{split}.csv"),
    "mpts52": ("mpts52_{split}.parquet", "mpts_52/{split}.csv", "mpts52_val_test_without_mp20_test.parquet"),
}


@dataclass(frozen=True)
class CrystalDataset:
    """One split of a data set, in memory: B crystals in the order of the file, Niggli cells, float64.

    batch carries every numeric column as a field per structure, NaN where missing. failures names the rows that could
    not be read, (id, reason). sha256 is over the bytes of the source and the options of packing.
    """

    name: str
    split: str
    batch: CrystalBatch
    ids: list[str]
    failures: list[Failure]
    sha256: str

    def __len__(self) -> int:
        return self.batch.num_structures

    def select(self, index: Tensor) -> CrystalBatch:
        """The crystals at `index` (K,) as one batch."""
        return self.batch.select(index)


def data_root(root: str | Path | None = None) -> Path:
    """The directory of data: `root`, else ATOMSMITH_DATA, else ~/.cache/atomsmith."""
    return Path(root or os.environ.get("ATOMSMITH_DATA") or default_cache()).expanduser()


def load(
    name: str | Path,
    split: str,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    processes: int | None = None,
    purpose: Literal["tuning", "report"] = "tuning",
) -> CrystalDataset:
    """One split (train, val, test) of a data set by name, or of a folder made by `prepare`.

    The first call packs the file with `processes` processes (default: all cores) into `cache` (default
    ~/.cache/atomsmith), later calls read that. Raises ValueError for an unknown name, split or purpose, for the split
    test unless purpose="report", and FileNotFoundError naming every place that was looked at.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    if purpose not in ("tuning", "report"):
        raise ValueError(f"purpose must be 'tuning' or 'report', got '{purpose}'")
    if split == "test" and purpose != "report":
        raise ValueError("the split 'test' is for final numbers only: pass purpose='report', or tune on 'val'")
    if name in LAYOUTS:
        return _load_table(str(name), split, data_root(root), cache, processes)
    raise ValueError(f"unknown data set '{name}'; known: {', '.join(LAYOUTS)}")


def _load_table(
    name: str, split: str, root: Path, cache: str | Path | None, processes: int | None
) -> CrystalDataset:
    places = [root / place.format(split=split) for place in LAYOUTS[name]]
    reasons = []
    for place, pattern in zip(places, LAYOUTS[name], strict=True):
        if not place.is_file():
            continue
        try:
            column = None if "{split}" in pattern else split
            packed, digest = pack(place, split=column, cache=cache, processes=processes)
        except ValueError as error:
            reasons.append(str(error))
            continue
        return CrystalDataset(name, split, packed.batch(), packed.ids, packed.failures, digest)
    looked = ", ".join(str(place) for place in places)
    because = f" ({'; '.join(reasons)})" if reasons else ""
    raise FileNotFoundError(
        f"data set '{name}', split '{split}': looked for {looked}{because}; set root= or ATOMSMITH_DATA"
    )
