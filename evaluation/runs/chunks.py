"""Rows of a long computation in numbered chunks: a chunk is done when its parquet file exists.

    FOLDER/chunks.json              what the rows are, how many, and how many a chunk; another request is refused
           chunk-00000017.parquet   columns `row`, those of the computation, and `error`, null where all is well
           pieces/                  parts of a chunk whose rows are tried apart, until they can be joined
           bad/00000017.json        the rows of that chunk which could not be computed, and why

Files appear under their names when they are whole, so that a run may be killed at any point, and several runs may share
a folder: what two of them compute twice is written twice and exists once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chem.output import PART, usable_folder, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST, PIECES, BAD = "chunks.json", "pieces", "bad"
MAGIC = b"PAR1"  # the last bytes of a whole parquet file


@dataclass(frozen=True, order=True)
class Piece:
    """Rows start .. stop - 1, all of one chunk."""

    chunk: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def halves(self) -> tuple[Piece, Piece]:
        """The same rows in two pieces."""
        middle = (self.start + self.stop) // 2
        return Piece(self.chunk, self.start, middle), Piece(self.chunk, middle, self.stop)


@dataclass(frozen=True)
class ChunkFolder:
    """Rows 0 .. rows - 1 in chunks of `size` (the last may be smaller), in the folder `path`; see `open_chunks`."""

    path: Path
    rows: int
    size: int

    @property
    def chunks(self) -> range:
        """The numbers of all chunks."""
        return range(-(-self.rows // self.size))

    @property
    def pattern(self) -> str:
        """What matches the files of all chunks, for a query."""
        return str(self.path / "chunk-*.parquet")

    def whole(self, chunk: int) -> Piece:
        """All rows of a chunk."""
        return Piece(chunk, chunk * self.size, min((chunk + 1) * self.size, self.rows))

    def file(self, chunk: int) -> Path:
        """Where the table of a chunk is, once it is done."""
        return self.path / f"chunk-{chunk:08d}.parquet"

    def done(self, chunk: int) -> bool:
        """Whether a chunk is there; raises ValueError naming a file of that name which is no whole parquet file."""
        try:
            with open(self.file(chunk), "rb") as file:
                file.seek(max(file.seek(0, 2) - len(MAGIC), 0))
                whole = file.read() == MAGIC
        except FileNotFoundError:
            return False
        if not whole:
            raise ValueError(f"{self.file(chunk)} is no whole parquet file; remove it to have it made again")
        return True

    def missing(self, chunk: int) -> list[Piece]:
        """What is still to be computed of a chunk: all of it, or what its pieces leave open."""
        at = self.whole(chunk).start
        gaps: list[Piece] = []
        if self.done(chunk):
            return gaps
        for piece in [*self._pieces(chunk), Piece(chunk, self.whole(chunk).stop, self.whole(chunk).stop)]:
            if piece.start > at:
                gaps.append(Piece(chunk, at, piece.start))
            at = max(at, piece.stop)
        return gaps

    def computed(self, piece: Piece) -> bool:
        """Whether the rows of a piece are there, alone or in their chunk."""
        return self.done(piece.chunk) or self._piece_file(piece).exists()

    def write(self, piece: Piece, table: pa.Table) -> None:
        """Keep what was computed: one row of the table for each row of the piece, in order.

        Raises ValueError for another number of rows, and OSError, naming the file, where the disk is full.
        """
        import pyarrow as pa

        if table.num_rows != len(piece):
            raise ValueError(f"rows {piece.start} to {piece.stop - 1} gave a table of {table.num_rows} rows")
        table = table.add_column(0, "row", pa.array(range(piece.start, piece.stop), pa.int64()))
        if "error" not in table.column_names:
            table = table.append_column("error", pa.nulls(table.num_rows, pa.string()))
        target = self.file(piece.chunk) if piece == self.whole(piece.chunk) else self._piece_file(piece)
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, to_parquet(table))

    def give_up(self, piece: Piece, reason: str) -> None:
        """Book a piece whose rows cannot be computed: they have this error and nothing else."""
        import pyarrow as pa

        bad = self.bad(piece.chunk) | {str(row): reason for row in range(piece.start, piece.stop)}
        (self.path / BAD).mkdir(exist_ok=True)
        write_atomically(self.path / BAD / f"{piece.chunk:08d}.json", json.dumps(bad, indent=1) + "\n")
        self.write(piece, pa.table({"error": pa.array([reason] * len(piece), pa.string())}))

    def join(self, chunk: int) -> bool:
        """Make the table of a chunk from its pieces when all of them are there; whether it is done now."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.missing(chunk):
            return False
        pieces = self._pieces(chunk)
        if not self.done(chunk):
            table = pa.concat_tables([pq.read_table(self._piece_file(p)) for p in pieces], promote_options="default")
            self.write(self.whole(chunk), table.drop_columns("row"))
        for piece in pieces:
            self._piece_file(piece).unlink(missing_ok=True)
        return True

    def bad(self, chunk: int) -> dict[str, str]:
        """The rows of a chunk that could not be computed, with the reason."""
        file = self.path / BAD / f"{chunk:08d}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def all_bad(self) -> dict[int, dict[str, str]]:
        """`bad` of every chunk that has such rows."""
        return {n: self.bad(n) for n in sorted(int(file.stem) for file in (self.path / BAD).glob("[0-9]*.json"))}

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The tables of all chunks, in order; a column that a chunk lacks is left out of its table.

        Raises ValueError for a chunk that is not done, and naming the file for one that does not hold its rows.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for chunk in self.chunks:
            if not self.done(chunk):
                raise ValueError(f"chunk {chunk} of '{self.path}' is not done; finish the run first")
            try:
                file = pq.ParquetFile(self.file(chunk))
                there = file.schema_arrow.names
                table = file.read(None if columns is None else [name for name in columns if name in there])
                rows = file.read(["row"])["row"].to_pylist() if "row" in there else []
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{self.file(chunk)} cannot be read: {str(error).splitlines()[0]}") from error
            piece = self.whole(chunk)
            if rows != list(range(piece.start, piece.stop)):
                raise ValueError(f"{self.file(chunk)} does not hold rows {piece.start} to {piece.stop - 1}")
            yield table

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in one table; a column that some chunks lack is null there. Raises ValueError as `tables` does."""
        import pyarrow as pa

        return pa.concat_tables(self.tables(columns), promote_options="default")

    def _piece_file(self, piece: Piece) -> Path:
        return self.path / PIECES / f"{piece.chunk:08d}.{piece.start}-{piece.stop}.parquet"

    def _pieces(self, chunk: int) -> list[Piece]:
        """The pieces of a chunk that are there, by their first row."""
        found = []
        for file in (self.path / PIECES).glob(f"{chunk:08d}.*.parquet"):
            start, stop = file.name.split(".")[1].split("-")
            found.append(Piece(chunk, int(start), int(stop)))
        return sorted(found)


def open_chunks(path: str | Path, request: Mapping[str, Any], rows: int, size: int) -> ChunkFolder:
    """The folder of a computation, made if it is new. request: whatever else than the counts decides its results.

    Raises ValueError for counts below 1, and for a folder that holds something else, naming what differs.
    """
    for name, value in (("rows", rows), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} = {value}, allowed: at least 1")
    folder, asked = usable_folder(path, "out"), json.loads(json.dumps({**request, "rows": rows, "size": size}))
    if (folder / MANIFEST).exists():
        made = json.loads((folder / MANIFEST).read_text())
        if differ := [k for k in sorted(made.keys() | asked.keys()) if made.get(k) != asked.get(k)]:
            what = "; ".join(f"{k} = {made.get(k)!r}, asked {asked.get(k)!r}" for k in differ)
            raise ValueError(f"out = '{path}' holds results made with {what}; choose another folder")
    elif folder.exists() and any(file.suffix != PART for file in folder.iterdir()):
        raise ValueError(f"out = '{path}' is not empty and holds no {MANIFEST}; choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MANIFEST, json.dumps(asked, indent=2) + "\n")
    return ChunkFolder(folder.absolute(), rows, size)


def to_parquet(table: pa.Table) -> bytes:
    """A parquet file: numbers with a fraction by byte-stream split, which halves a table of coordinates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def fractions(name: str, type_: pa.DataType) -> list[str]:
        if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
            return fractions(f"{name}.list.element", type_.value_type)
        return [name] if pa.types.is_floating(type_) else []

    split = [leaf for field in table.schema for leaf in fractions(field.name, field.type)]
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_byte_stream_split=split or False, use_dictionary=text)
    return sink.getvalue().to_pybytes()
