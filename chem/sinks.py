"""Where encoded records go: a growing text file, a folder of small files, or a parquet table."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from chem.finding import FORMATS
from chem.output import write_atomically
from chem.structure_text import CIF_END, CIF_HEAD, SDF_END, to_cell

Mode = Literal["x", "a", "w"]
CHUNK = 2000  # rows of a parquet row group


class Sink(ABC):
    """Where encoded records go; `count` is the number of records there."""

    count: int = 0

    @abstractmethod
    def add(self, record: Any, name: str | None) -> None:
        """Append one encoded record; `name` is its id."""

    @abstractmethod
    def close(self) -> None:
        """End the output; a second call does nothing."""


def make_sink(path: Path, format: str, mode: Mode, folder: bool) -> Sink:
    """The sink for a path; raises ValueError if it holds data that `mode` does not allow to change."""
    if folder:
        return _Folder(path, FORMATS[format][0], mode)
    if path.exists() and mode == "x":
        raise ValueError(f"{path} exists; mode='a' appends to it, mode='w' replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "parquet":
        if mode == "a" and path.exists():
            raise ValueError(f"{path} exists, and a parquet file cannot be appended to; mode='w' replaces it")
        return _Parquet(path)
    return _Text(path, format, mode)


class _Text(Sink):
    """A file that grows by whole records."""

    def __init__(self, path: Path, format: str, mode: Mode):
        self._path, self._format = path, format
        self._columns: list[str] | None = None
        if mode == "a" and path.exists():
            with open(path, "rb") as there:
                end, self.count = _whole_records(there, format)
            with open(path, "r+b") as there:
                there.truncate(end)
            if format == "csv" and end:
                with open(path, newline="", encoding="utf-8") as table:
                    self._columns = next(csv.reader(table))
        # the handle lives as long as the writer; without a buffer, nothing of a failed record can follow later
        self._file = open(path, "ab" if mode == "a" else "wb", buffering=0)  # noqa: SIM115

    def add(self, record: Any, name: str | None) -> None:
        if self._file.closed:
            raise ValueError(f"the writer of {self._path} is closed")
        if self._format == "poscar" and self.count:
            raise ValueError(f"{self._path} holds one structure already, as POSCAR does; name a folder for several")
        self._append((self._table_row(record) if self._format == "csv" else record).encode())
        self.count += 1

    def _append(self, data: bytes) -> None:
        """All of the bytes or, after an error or an interruption, none of them."""
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:
            self._file.truncate(end)
            self._file.seek(end)
            if isinstance(error, OSError):  # the system does not say which file it was
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            raise

    def _table_row(self, record: dict[str, Any]) -> str:
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        if self._columns is None:
            self._columns = list(record)
        if not self._file.tell():
            rows.writerow(self._columns)
        unknown = [key for key in record if key not in self._columns]
        if unknown:
            known = ", ".join(self._columns)
            raise ValueError(f"a csv keeps the columns of its first row ({known}); got '{unknown[0]}'")
        rows.writerow([v if k in ("id", "cif") else to_cell(v) for k in self._columns for v in [record.get(k)]])
        return out.getvalue()

    def close(self) -> None:
        self._file.close()


def _whole_records(file: IO[bytes], format: str) -> tuple[int, int]:
    """End, in bytes, of the last whole record of a text file, and the number of records before it."""
    if format in ("extxyz", "xyz"):
        return _whole_frames(file)
    end = count = at = 0
    quotes, tail = 0, b""
    for line in file:
        at += len(line)
        tail += line if format == "cif" else b""
        quotes += line.count(b'"')
        ended = line.endswith(b"\n") and (format != "csv" or quotes % 2 == 0)
        if format == "cif":
            count += line.lower().startswith(b"data_")
            ended = line == CIF_END.encode()
        if format == "sdf":
            ended = ended and line.rstrip() == SDF_END.rstrip().encode()
        if ended:
            end, tail = at, b""
            count += format != "cif" and bool(line.strip())
    if format == "cif" and tail and not (CIF_HEAD.encode().startswith(tail) or tail.startswith(CIF_HEAD.encode())):
        return at, count  # written by another program, without our marks: nothing to cut
    if format == "cif":
        return end, count - tail.lower().count(b"\ndata_")
    return end, max(count - 1, 0) if format == "csv" else count


def _whole_frames(file: IO[bytes]) -> tuple[int, int]:
    end = count = at = 0
    while (head := file.readline()).strip().isdigit():
        body = list(islice(file, int(head) + 1))
        if len(body) < int(head) + 1 or not body[-1].endswith(b"\n"):
            break
        at += len(head) + sum(map(len, body))
        end, count = at, count + 1
    return end, count


class _Folder(Sink):
    """One file a structure, numbered so that their names sort in the order of writing."""

    def __init__(self, path: Path, suffix: str, mode: Mode):
        self._path, self._suffix, self._closed = path, suffix, False
        there = [int(m[1]) for p in _listing(path) if (m := re.match(r"(\d{6,})", p.name)) and p.suffix == suffix]
        if there and mode != "a":
            raise ValueError(f"folder {path} holds {len(there)} {suffix} files already; mode='a' adds to them")
        path.mkdir(parents=True, exist_ok=True)
        self.count = max(there, default=-1) + 1

    def add(self, record: str, name: str | None) -> None:
        if self._closed:
            raise ValueError(f"the writer of {self._path} is closed")
        label = "" if name is None else "_" + re.sub(r"[^\w.+-]", "_", str(name), flags=re.ASCII)[:100]
        target = self._path / f"{self.count:06d}{label}{self._suffix}"
        write_atomically(target, record, sync=False)
        self.count += 1

    def close(self) -> None:
        self._closed = True


def _listing(path: Path) -> Iterator[Path]:
    return path.iterdir() if path.is_dir() else iter(())


class _Parquet(Sink):
    """Rows wait in a hidden file of JSON lines; `close` finds a type for every column and writes the table."""

    def __init__(self, path: Path):
        self._path = path
        self._waiting = path.with_name(f".{path.name}.rows.tmp")
        self._file: IO[str] = open(self._waiting, "w+", encoding="utf-8")  # noqa: SIM115

    def add(self, record: dict[str, Any], name: str | None) -> None:
        if self._file.closed:
            raise ValueError(f"the writer of {self._path} is closed")
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.count += 1

    def _chunks(self) -> Iterator[list[dict[str, Any]]]:
        self._file.seek(0)
        rows: list[dict[str, Any]] = []
        for line in self._file:
            rows.append(json.loads(line))
            if len(rows) == CHUNK:
                yield rows
                rows = []
        if rows:
            yield rows

    def close(self) -> None:
        if self._file.closed:
            return
        import pyarrow.parquet as pq

        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            schema = _schema(self._chunks())
            with pq.ParquetWriter(temporary, schema, compression="zstd") as out:
                for rows in self._chunks():
                    out.write_table(_table(rows, schema))
            os.replace(temporary, self._path)
        finally:
            self._file.close()
            temporary.unlink(missing_ok=True)
        self._waiting.unlink()


def _schema(chunks: Iterable[list[dict[str, Any]]]) -> Any:
    """A column type that holds all values; objects and mixed columns become JSON text and are marked so."""
    import pyarrow as pa

    types: dict[str, Any] = {"id": pa.string(), "cif": pa.string()}
    for rows in chunks:
        for name in dict.fromkeys(key for row in rows for key in row):
            types[name] = _common_type(types.get(name, pa.null()), [row.get(name) for row in rows])
    marked = {"atomsmith": "json"}
    fields = [pa.field(n, t or pa.string(), metadata=None if t else marked) for n, t in types.items()]
    return pa.schema(fields)


def _common_type(known: Any, values: list[Any]) -> Any:
    """The type of a column of type `known` with `values` added; None stands for JSON text."""
    import pyarrow as pa

    if known is None or any(isinstance(value, dict) for value in values):
        return None
    try:
        new = pa.array(values).type
        if pa.types.is_nested(new) and not pa.types.is_floating(new.value_type):
            return None
        merged = pa.unify_schemas([pa.schema([("x", known)]), pa.schema([("x", new)])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
    return merged.field("x").type


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for column in schema:
        values = [row.get(column.name) for row in rows]
        if column.metadata:
            values = [None if value is None else json.dumps(value) for value in values]
        columns.append(pa.array(values, column.type))
    return pa.Table.from_arrays(columns, schema=schema)
