"""QM9 in the layouts that users have, and EDM's split of it.

QM9 (Ramakrishnan et al., Sci. Data 1, 140022, 2014; CC0): 133,885 molecules of H, C, N, O, F with up to 9 heavy atoms,
B3LYP/6-31G(2df,p) geometries and properties, numbered gdb_1, gdb_2, ... The layouts:

    qm9_train.parquet, qm9_valid.parquet   columns qm9_index, atomic_numbers, positions and properties
    train.npz, valid.npz, test.npz         as EDM (arXiv:2203.17003) and its successors write them
    gdb9.sdf with gdb9.sdf.csv             with bonds and formal charges, as they are in the file
    dsgdb9nsd.xyz.tar.bz2, or its folder   the original

The last two are split here, by EDM's rule, and need `uncharacterized.txt` (the list of 3,054 molecules that failed the
consistency check) beside them. A collection may lack molecules: the parquet files that most of this package was tested
with have 253 of about 2,080 molecules with fluorine, so statistics of fluorine from them are not those of QM9. Those of
the whole training set are here: TRAIN_SIZES counts molecules, TRAIN_ELEMENTS atoms.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from chem.download import file_sha256
from chem.packed_molecules import PackedMolecules, pack_batch
from chem.packing import FORMAT_VERSION, through_cache
from chem.qm9_files import PROPERTY_UNITS, from_archive, from_npz, from_parquet

__all__ = ["PROPERTY_UNITS", "TRAIN_ELEMENTS", "TRAIN_SIZES", "edm_split", "pack_qm9"]

LISTS = ("uncharacterized.txt", "3195404")  # names of the list of excluded molecules
CHARACTERISED, TRAIN = 130_831, 100_000
# of the 100,000, as EDM's code has them: atoms -> molecules, and atomic number -> atoms
TRAIN_SIZES = {
    3: 1, 4: 4, 5: 5, 6: 9, 7: 16, 8: 49, 9: 124, 10: 362, 11: 807, 12: 1689, 13: 3060, 14: 5136, 15: 7796, 16: 10644,
    17: 13025, 18: 13364, 19: 13832, 20: 9482, 21: 9970, 22: 3393, 23: 4848, 24: 539, 25: 1506, 26: 48, 27: 266, 29: 25,
}  # fmt: skip
TRAIN_ELEMENTS = {1: 923_537, 6: 635_559, 7: 101_476, 8: 140_202, 9: 2_323}


def pack_qm9(place: Path, split: str, cache: str | Path | None = None) -> tuple[PackedMolecules, str]:
    """One split of QM9 from one of its layouts, by way of the cache, and the sha256 that names the source.

    Raises ValueError for a source that is not what it seems, and for an archive without the list of exclusions.
    """
    whole = place.is_dir() or place.suffix not in (".parquet", ".npz")
    content = _folder_digest(place) if place.is_dir() else file_sha256(place)
    digest = hashlib.sha256(f"{content} qm9 {FORMAT_VERSION}".encode()).hexdigest()
    if not whole:
        read = from_parquet if place.suffix == ".parquet" else from_npz
        return through_cache(digest, cache, PackedMolecules, lambda: read(place)), digest
    excluded = _excluded(place)
    everything = through_cache(digest, cache, PackedMolecules, lambda: from_archive(place))
    return _select(everything, edm_split(_numbers(everything), excluded)[split]), digest


def edm_split(present: Iterable[int], excluded: Iterable[int]) -> dict[str, set[int]]:
    """Numbers (as in gdb_1) of EDM's train, val and test: a permutation of the sorted rest by numpy's seed 0.

    present: all numbers of the archive. Raises ValueError unless 130,831 remain when the excluded ones are left out.
    """
    rest = np.array(sorted(set(present) - set(excluded)))
    if len(rest) != CHARACTERISED:
        raise ValueError(f"EDM's split is of {CHARACTERISED} molecules, {len(rest)} are here; use prepare for a part")
    order = rest[np.random.RandomState(0).permutation(len(rest))]
    last = len(rest) - int(0.1 * len(rest))
    parts = (order[:TRAIN], order[TRAIN:last], order[last:])
    return {name: set(part.tolist()) for name, part in zip(("train", "val", "test"), parts, strict=True)}


def _numbers(packed: PackedMolecules) -> list[int]:
    return [int(name[4:]) for name in (*packed.ids, *(name for name, _ in packed.failures))]


def _select(packed: PackedMolecules, chosen: set[int]) -> PackedMolecules:
    import torch

    rows = [i for i, name in enumerate(packed.ids) if int(name[4:]) in chosen]
    batch = packed.batch().select(torch.tensor(rows, dtype=torch.long))
    failures = [(name, reason) for name, reason in packed.failures if int(name[4:]) in chosen]
    properties = {name: values[rows] for name, values in packed.properties.items()}
    return pack_batch(batch, [packed.ids[i] for i in rows], properties, failures)


def _excluded(place: Path) -> set[int]:
    looked = [folder / name for folder in dict.fromkeys((place.parent, place)) for name in LISTS]
    found = next((path for path in looked if path.is_file()), None)
    if found is None:
        raise ValueError(f"{place}: EDM's split needs the list {LISTS[0]} beside it")
    rows = (re.match(r"\s*(\d+)\s+\S", line) for line in found.read_text(errors="replace").splitlines()[9:])
    return {int(row[1]) for row in rows if row}


def _folder_digest(folder: Path) -> str:
    """Over names, sizes and times of the files: reading all of 133,885 would take as long as packing them."""
    files = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in sorted(folder.glob("*.xyz"))]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()
