"""Batches of crystals as columns of a table, and rows of large parquet files.

Columns: nsites, lattice (9 numbers, rows of the matrix after each other, ångström), atomic_numbers and frac_coords
(lists). No structure object is built on the way: that takes longer than to write the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from chem.crystals import CrystalBatch

STRUCTURE = ("nsites", "lattice", "atomic_numbers", "frac_coords")
ROWS_AT_ONCE = 4096  # of a row group


def to_table(batch: CrystalBatch) -> pa.Table:
    """The columns STRUCTURE of B crystals, every digit kept."""
    import pyarrow as pa

    ptr = pa.array(batch["ptr"].cpu().numpy().astype(np.int32))
    numbers = pa.array(batch["atomic_numbers"].cpu().numpy().astype(np.uint8))
    frac = pa.array(batch["frac_coords"].detach().cpu().double().numpy().reshape(-1))
    lattice = pa.array(batch["lattice"].detach().cpu().double().numpy().reshape(-1))
    columns = [
        pa.array(batch["num_atoms"].cpu().numpy().astype(np.int32)),
        pa.FixedSizeListArray.from_arrays(lattice, 9),
        pa.ListArray.from_arrays(ptr, numbers),
        pa.ListArray.from_arrays(ptr, pa.FixedSizeListArray.from_arrays(frac, 3)),
    ]
    return pa.table(columns, names=list(STRUCTURE))


def to_batch(table: pa.Table) -> CrystalBatch:
    """The crystals of a table with the columns STRUCTURE, none of them null, as a float64 batch."""
    import torch

    from chem.crystals import CrystalBatch

    def flat(name: str, dtype: type) -> np.ndarray:
        values = table[name].combine_chunks()
        while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
            values = values.flatten()
        return np.array(values.to_numpy(zero_copy_only=False), dtype=dtype)

    return CrystalBatch(
        torch.from_numpy(table["nsites"].to_numpy().astype(np.int64)),
        atomic_numbers=torch.from_numpy(flat("atomic_numbers", np.int64)),
        frac_coords=torch.from_numpy(flat("frac_coords", np.float64).reshape(-1, 3)),
        lattice=torch.from_numpy(flat("lattice", np.float64).reshape(-1, 3, 3)),
    )


def read_rows(path: str | Path, start: int, stop: int) -> pa.Table:
    """Rows start .. stop - 1 of a parquet file; reads the row groups that hold them."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
    groups = range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left")) + 1)
    first = int(ends[groups.start - 1]) if groups.start else 0
    return file.read_row_groups(list(groups)).slice(start - first, stop - start)
