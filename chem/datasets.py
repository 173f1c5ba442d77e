"""Data sets by name: crystals (mp20, perov5, carbon24, mpts52, prototypes), molecules (qm9), and any folder made by
`prepare`.

Files are looked for in the directory `root`, else in the environment variable ATOMSMITH_DATA, else in
~/.cache/atomsmith. Two layouts of crystals are known: one parquet file per set or per split, and the folders of csv
files that CDVAE and its successors distribute (mp_20/train.csv, ...); those of QM9 are listed in `chem.qm9`. Nothing is
downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

from chem.crystals import CrystalBatch
from chem.molecules import MoleculeBatch
from chem.packed_molecules import PackedMolecules
from chem.packing import Failure, Packed, default_cache, load_as, pack
from chem.ragged import Batch

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "test")
PACKED_FILE, SPLITS_FILE = "packed.safetensors", "splits.json"  # of a folder made by prepare
STATISTICS_FILE, FAILURES_FILE = "statistics.json", "failures.json"
# name -> places under root, in the order in which they are tried; a place without {split} has a column `split`, or is
# an archive of QM9 that is split here; {part} is the split with `val` spelled `valid`
LAYOUTS: dict[str, tuple[str, ...]] = {
    "mp20": ("mp20_{split}.parquet", "mp_20/{split}.csv"),
    "perov5": ("perov_5.parquet", "perov_5/{split}.csv"),
    "carbon24": ("carbon_24.parquet", "carbon_24/{split}.csv"),
    "mpts52": ("mpts52_{split}.parquet", "mpts_52/{split}.csv", "mpts52_val_test_without_mp20_test.parquet"),
    "qm9": (
        "qm9_{part}.parquet",
        "qm9/{part}.npz",
        *(
            folder + archive
            for folder in ("", "qm9/", "qm9/raw/")
            for archive in ("gdb9.sdf", "dsgdb9nsd.xyz.tar.bz2", "dsgdb9nsd")
        ),
    ),
}


class DataNotFoundError(FileNotFoundError, ValueError):
    """A data set that is not on disk; the message names every place that was looked at."""


@dataclass(frozen=True)
class Dataset(Generic[Batch]):
    """One split of a data set, in memory: B structures in the order of the file, float64; crystals as Niggli cells.

    batch carries every numeric column as a field per structure, NaN where missing. failures names the rows that could
    not be read, (id, reason); in a prepared folder or a made set they are those of all splits together. sha256 is over
    the bytes of the source and the options of packing (of the packed file, for a prepared folder).
    """

    name: str
    split: str
    batch: Batch
    ids: list[str]
    failures: list[Failure]
    sha256: str

    def __len__(self) -> int:
        return self.batch.num_structures

    def select(self, index: Tensor) -> Batch:
        """The structures at `index` (K,) as one batch."""
        return self.batch.select(index)


CrystalDataset = Dataset[CrystalBatch]
MoleculeDataset = Dataset[MoleculeBatch]


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
) -> Dataset[Any]:
    """One split (train, val, test) of a data set by name, or of a folder made by `prepare` (its path, or in `root`).

    The first call packs the file with `processes` processes (default: all cores) into `cache` (default
    ~/.cache/atomsmith), later calls read that. Raises ValueError for an unknown name, split or purpose, for the split
    test unless purpose="report", and DataNotFoundError naming every place that was looked at.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    if purpose not in ("tuning", "report"):
        raise ValueError(f"purpose must be 'tuning' or 'report', got '{purpose}'")
    if split == "test" and purpose != "report":
        raise ValueError("the split 'test' is for final numbers only: pass purpose='report', or tune on 'val'")
    if name in LAYOUTS:
        return _load_file(str(name), split, data_root(root), cache, processes)
    if name == "prototypes":
        from chem.prototypes import build

        packed = build()
        return _part("prototypes", split, packed, split_rows(packed.ids)[split], _digest(packed))
    for folder in (Path(name).expanduser(), data_root(root) / name):
        if (folder / SPLITS_FILE).is_file():
            return _load_prepared(folder, split)
    known = ", ".join((*LAYOUTS, "prototypes"))
    raise ValueError(f"unknown data set '{name}'; known: {known}, and folders made by prepare (with {SPLITS_FILE})")


def split_rows(
    ids: Sequence[str], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, list[int]]:
    """Row numbers of train, val and test, by the order of a hash of (seed, id): the order of the rows is irrelevant.

    Raises ValueError when the fractions are not three, negative, or do not add up to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"split must be three fractions >= 0 that add up to 1, got {tuple(fractions)}")
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}/{ids[i]}".encode()).digest())
    first, second = round(fractions[0] * len(ids)), round((fractions[0] + fractions[1]) * len(ids))
    parts = (order[:first], order[first:second], order[second:])
    return {name: sorted(rows) for name, rows in zip(SPLITS, parts, strict=True)}


def _part(name: str, split: str, packed: Packed | PackedMolecules, rows: Sequence[int], digest: str) -> Dataset[Any]:
    import torch

    batch = packed.batch().select(torch.tensor(rows, dtype=torch.long))
    return Dataset(name, split, batch, [packed.ids[i] for i in rows], packed.failures, digest)


def _digest(packed: Packed) -> str:
    """sha256 of elements, sizes and ids; geometry is left out, because its last digit may depend on the machine."""
    content = packed.atomic_numbers.tobytes() + packed.num_atoms.tobytes() + json.dumps(packed.ids).encode()
    return hashlib.sha256(content).hexdigest()


def _load_prepared(folder: Path, split: str) -> Dataset[Any]:
    description = json.loads((folder / SPLITS_FILE).read_text())
    content = folder / PACKED_FILE
    if not content.is_file():
        raise DataNotFoundError(f"data set '{folder}', split '{split}': looked for {content}; run prepare again")
    digest = hashlib.sha256(content.read_bytes()).hexdigest()
    if digest != description["sha256"]:
        raise ValueError(f"{content}: not the file that {SPLITS_FILE} belongs to (sha256 {digest}); run prepare again")
    molecules = description.get("kind") == PackedMolecules.KIND
    packed = load_as(PackedMolecules, content) if molecules else load_as(Packed, content)
    return _part(description["name"], split, packed, description[split], digest)


def _load_file(name: str, split: str, root: Path, cache: str | Path | None, processes: int | None) -> Dataset[Any]:
    part = {"val": "valid"}.get(split, split)
    places = [root / place.format(split=split, part=part) for place in LAYOUTS[name]]
    reasons = []
    for place, pattern in zip(places, LAYOUTS[name], strict=True):
        if not place.exists() or (place.is_dir() and name != "qm9"):
            continue
        column = None if "{split}" in pattern else split
        try:
            packed, digest = _pack(name, place, split, column, cache, processes)
        except ValueError as error:
            reasons.append(str(error))
            continue
        return Dataset(name, split, packed.batch(), packed.ids, packed.failures, digest)
    looked = ", ".join(str(place) for place in places)
    because = f" ({'; '.join(reasons)})" if reasons else ""
    raise DataNotFoundError(
        f"data set '{name}', split '{split}': looked for {looked}{because}; set root= or ATOMSMITH_DATA"
    )


def _pack(
    name: str, place: Path, split: str, column: str | None, cache: str | Path | None, processes: int | None
) -> tuple[Packed | PackedMolecules, str]:
    if name != "qm9":
        return pack(place, split=column, cache=cache, processes=processes)
    from chem.qm9 import pack_qm9

    return pack_qm9(place, split, cache)
