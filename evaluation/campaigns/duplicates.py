"""Duplicates among the rows of a folder of chunks: keys in duckdb, and the structure matcher where keys agree.

Crystals are compared within blocks: equal reduced formula, equal space group, and volumes per atom that no gap of more
than VOLUME_GAP separates (sorted, so that no value escapes at the edge of a bin). Crystals of different blocks count as
different, although the matcher, which scales volumes, might think otherwise; so do samples of one crystal of which one
is distorted by about SYMPREC, until both are relaxed. The blocks themselves are the rows of a
second folder of chunks: the matcher runs in all workers, and a pair that hangs it costs its block and nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.campaigns.structure_tables import ROWS_AT_ONCE, read_rows, to_batch
from evaluation.runs.chunks import ChunkFolder
from evaluation.runs.pipeline import Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

SYMPREC = 0.1  # ångström
VOLUME_GAP = 0.05  # relative; samples of one crystal differ by less than that from their nearest
LARGEST = 500  # crystals of a block; pairs grow with its square, so that larger ones are cut by volume
KEYS = ("formula", "space_group", "volume")


def keys(batch: CrystalBatch) -> dict[str, Any]:
    """Columns KEYS of B crystals that have a volume: reduced formula, space group or 0, cubic ångström an atom."""
    from chem.lattice import volume
    from evaluation.csp import formulas
    from evaluation.descriptors.symmetry import symmetry

    space = volume(batch["lattice"].double()) / batch["num_atoms"]
    return {
        "formula": formulas(batch),
        "space_group": symmetry(batch, SYMPREC).space_groups.tolist(),
        "volume": space.tolist(),
    }


def collect(folder: ChunkFolder, target: Path) -> int:
    """All rows with keys and without `refused` or `error`, sorted by keys, in one file by duckdb; how many.

    It reads chunks one after the other and spills to the disk what does not fit the memory. A file that is there stays.
    """
    import pyarrow.parquet as pq

    duckdb = load_duckdb()
    if not target.exists():
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        with duckdb.connect(config={"temp_directory": str(target.parent)}) as database:
            database.execute(
                f"copy (select * exclude (refused, error)"
                f" from read_parquet({_text(folder.pattern)}, union_by_name=true)"
                f" where refused is null and error is null order by {', '.join(KEYS)}, row)"
                f" to {_text(part)} (format parquet, compression zstd, row_group_size {ROWS_AT_ONCE})"
            )
        os.replace(part, target)
    return int(pq.read_metadata(target).num_rows)


def blocks(candidates: Path) -> NDArray[np.int64]:
    """Ends (K + 1,) of the K blocks among the sorted rows of a file made by `collect`."""
    import pyarrow.parquet as pq

    table = pq.read_table(candidates, columns=list(KEYS))
    if not table.num_rows:
        return np.zeros(1, dtype=np.int64)
    formula = table["formula"].combine_chunks().dictionary_encode().indices.to_numpy()
    group, space = table["space_group"].to_numpy(), table["volume"].to_numpy()
    new = (formula[1:] != formula[:-1]) | (group[1:] != group[:-1]) | (space[1:] > (1 + VOLUME_GAP) * space[:-1])
    cuts = [0, *(np.flatnonzero(new) + 1).tolist(), table.num_rows]
    ends = [0]
    for end in cuts[1:]:
        ends += [*range(ends[-1] + LARGEST, end, LARGEST), end]
    return np.array(ends, dtype=np.int64)


@dataclass(frozen=True)
class Compare:
    """The step that compares the crystals of each block; a row of its table is a block.

    group: for each crystal of the block the number of its group of equal ones, -1 where it cannot be compared.
    """

    candidates: str

    def __call__(self) -> Rows:
        ends = blocks(Path(self.candidates))

        def rows(start: int, stop: int) -> pa.Table:
            import pyarrow as pa

            from evaluation.matching.uniqueness import uniqueness

            table = read_rows(self.candidates, int(ends[start]), int(ends[stop]))
            groups, first = [], ends[start]
            for a, b in zip(ends[start:stop], ends[start + 1 : stop + 1], strict=True):
                group = [0]
                if b - a > 1:
                    group = uniqueness(to_batch(table.slice(a - first, b - a)), processes=0).group.tolist()
                groups.append(group)
            return pa.table({"group": pa.array(groups, pa.list_(pa.int64()))})

        return rows


def keep(candidates: Path, compared: ChunkFolder | None, target: Path) -> int:
    """Write one crystal of each group of equal ones, with the number of `copies`, in order of `row`; how many.

    Of equal ones the one of lowest `energy` an atom stays, where there are energies, else the first; `copies` that the
    rows have already add up. A crystal that could not be compared is a group of its own.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(candidates)
    rows = table["row"].to_numpy()
    group = _groups(compared, blocks(candidates)) if compared is not None else np.arange(len(rows))
    energy = table["energy"].to_numpy() / table["nsites"].to_numpy() if "energy" in table.column_names else 0 * rows
    order = np.lexsort((rows, energy, group))
    first = order[np.unique(group[order], return_index=True)[1]]
    weight = table["copies"].to_numpy() if "copies" in table.column_names else np.ones_like(rows)
    copies = np.bincount(group, weight, minlength=1)[group[first]].astype(np.int64)
    table = table.take(pa.array(first))
    if "copies" in table.column_names:
        table = table.drop_columns("copies")
    table = table.append_column("copies", pa.array(copies)).sort_by("row")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    pq.write_table(table, part, compression="zstd", row_group_size=ROWS_AT_ONCE)
    os.replace(part, target)
    return table.num_rows


def _groups(compared: ChunkFolder, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group (N,) of each candidate, numbered over all blocks."""
    said = compared.read(["group"])
    found = said["group"].to_pylist() if "group" in said.column_names else [None] * said.num_rows
    out, taken = np.empty(ends[-1], dtype=np.int64), 0
    for block, a, b in zip(found, ends, ends[1:], strict=False):
        group = np.array([-1] * (b - a) if block is None else block)
        group = np.where(group < 0, (b - a) + np.arange(b - a), group)
        out[a:b] = taken + np.unique(group, return_inverse=True)[1]
        taken = int(out[a:b].max()) + 1
    return out


def load_duckdb() -> Any:
    """The module duckdb; raises ImportError, naming the extra, without it."""
    try:
        import duckdb
    except ImportError as error:
        raise ImportError(
            f"a campaign needs the extra 'campaign': pip install atomsmith[campaign] ({error})"
        ) from error
    return duckdb


def _text(path: Path | str) -> str:
    """A path as a text of SQL."""
    quoted = str(path).replace("'", "''")
    return f"'{quoted}'"
