"""Reading crystal structures: one stream of records over files of any known format.

A record always comes, also for a structure that cannot be read: then `structure` is None and `error` says why in
one line, so that a bad file is counted and named and never ends the stream.
"""

from __future__ import annotations

import csv
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chem.file_formats import READERS, TEXT_COLUMNS, Raw
from chem.structure_text import one_line, plain

if TYPE_CHECKING:
    from pymatgen.core import Structure

AnyRecord = TypeVar("AnyRecord")
Formats = Mapping[str, tuple[str, ...]]
FORMATS: Formats = {
    "cif": (".cif",),
    "poscar": (".vasp", ".poscar"),
    "extxyz": (".extxyz", ".xyz"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "parquet": (".parquet", ".pq"),
}


@dataclass(frozen=True)
class Record:
    """One structure of a file, or why it could not be read.

    structure: pymatgen Structure with `properties` set, or None. id: from the file, else made from the file's name.
    source: path of the file. index: place in that file, from 0. error: None, or one line.
    """

    structure: Structure | None
    id: str | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    index: int = 0
    error: str | None = None


def known_formats(formats: Formats = FORMATS) -> str:
    """The known formats and their suffixes, for messages."""
    return ", ".join(f"{name} ({', '.join(suffixes)})" for name, suffixes in formats.items())


def format_of(path: str | Path, format: str | None = None, formats: Formats = FORMATS) -> str:
    """Name of the format of a path: `format` if given, else by suffix; POSCAR and CONTCAR by name.

    Raises ValueError naming the file and the formats known.
    """
    if format is not None:
        if format not in formats:
            raise ValueError(f"format '{format}' of {path} is unknown; known: {known_formats(formats)}")
        return format
    path = Path(path)
    for name, suffixes in formats.items():
        if path.suffix.lower() in suffixes:
            return name
    if "poscar" in formats and path.name.upper().startswith(("POSCAR", "CONTCAR")):
        return "poscar"
    raise ValueError(f"cannot tell the format of {path}; give format=, or a known suffix: {known_formats(formats)}")


def read(path: str | Path | Iterable[str | Path], format: str | None = None) -> Iterator[Record]:
    """Stream the structures of a file, of a folder (its files sorted by name) or of several of them, in order.

    In a folder, files of unknown format are passed over. Raises ValueError at once for a path that does not exist or
    cannot be opened, a format not known, a table without a structure column and a folder with nothing to read.
    """
    files = find_files(path, format)
    return (record for file, kind in files for record in records(file, READERS[kind](file), _structure, Record))


def count(file: Path, kind: str) -> int:
    """How many records `read` makes of a file, found without parsing a structure."""

    def unread(raw: Raw[Structure]) -> tuple[None, dict[str, Any]]:
        return None, {}

    return sum(1 for _ in records(file, READERS[kind](file), unread, Record))


def read_slice(file: Path, kind: str, start: int, stop: int) -> Iterator[Record]:
    """Records start .. stop - 1 of a file, as `read` makes them; those before are passed over without parsing."""
    numbers = itertools.count()

    def finish(raw: Raw[Structure]) -> tuple[Structure | None, dict[str, Any]]:
        return (None, {}) if next(numbers) < start else _structure(raw)

    return itertools.islice(records(file, READERS[kind](file), finish, Record), start, stop)


def find_files(
    path: str | Path | Iterable[str | Path], format: str | None, formats: Formats = FORMATS
) -> list[tuple[Path, str]]:
    """Every file to read and its format, as `read` finds them among `formats`."""
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    return [found for one in paths for found in _files(Path(one), format, formats)]


def _files(path: Path, format: str | None, formats: Formats) -> list[tuple[Path, str]]:
    if path.is_dir():
        found = _in_folder(path, format, formats)
        if not found:
            raise ValueError(f"folder {path} has no file to read; known: {known_formats(formats)}")
        return found
    kind = format_of(path, format, formats)
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; known formats: {known_formats(formats)}") from error
    if kind in ("csv", "parquet"):
        _check_columns(path, kind)
    return [(path, kind)]


def _in_folder(folder: Path, format: str | None, formats: Formats) -> list[tuple[Path, str]]:
    """Files of known format, by name; with `format` those of it, else those whose name tells nothing."""
    if format is not None:
        format_of(folder, format, formats)
    known, unknown = [], []
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            try:
                known.append((file, format_of(file, formats=formats)))
            except ValueError:
                unknown.append((file, format or ""))
    if format is None:
        return known
    return [(file, kind) for file, kind in known if kind == format] or unknown


def _check_columns(path: Path, kind: str) -> None:
    """Refuse a table that was named by the user and has no structures; a broken one becomes an error record later."""
    try:
        columns = _columns(path, kind)
    except Exception:
        return
    if columns and not set(columns) & set(TEXT_COLUMNS):
        raise ValueError(f"{path} has no column {' or '.join(TEXT_COLUMNS)}; it has: {', '.join(columns[:30])}")


def _columns(path: Path, kind: str) -> list[str]:
    if kind == "csv":
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            return next(csv.reader(file), [])
    import pyarrow.parquet

    return list(pyarrow.parquet.read_schema(path).names)


def records(
    path: Path,
    rows: Iterator[Raw[Any]],
    finish: Callable[[Raw[Any]], tuple[Any, dict[str, Any]]],
    record: Callable[..., AnyRecord],
) -> Iterator[AnyRecord]:
    """Records of one file; whatever goes wrong is a record.

    finish turns a raw part into what it holds and its properties, among them `id` unless the part has one.
    """
    index = 0
    while True:
        try:
            raw = next(rows, None)
        except Exception as error:  # the file itself broke off: nothing behind this point can be found
            yield record(None, f"{path.stem}_{index}", {}, str(path), index, one_line(error))
            return
        if raw is None:
            break
        name = f"{path.stem}_{index}" if raw.id is None else raw.id
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content, properties = finish(raw)
        except Exception as error:  # pymatgen, ASE and RDKit raise nearly every type on bad text
            yield record(None, name, raw.properties, str(path), index, one_line(error))
        else:
            inner = properties.pop("id", None) if raw.id is None else None
            yield record(content, name if inner is None else str(inner), properties, str(path), index)
        index += 1
    if index == 0:
        yield record(None, path.stem, {}, str(path), 0, "no structure in the file")


def _structure(raw: Raw[Structure]) -> tuple[Structure, dict[str, Any]]:
    structure = raw.build()
    _check_structure(structure)
    properties = {**raw.properties, **plain(structure.properties or {})}
    structure.properties = {k: v for k, v in properties.items() if raw.id is not None or k != "id"}
    return structure, properties


def _check_structure(structure: Structure) -> None:
    import numpy as np

    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise ValueError(f"partial occupancy: site {site.label} holds {site.species_string}; one whole atom is allowed")
    if not len(structure):
        raise ValueError("the structure has no atoms")
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        raise ValueError("a lattice vector or coordinate is not a finite number")
    if structure.volume < 1e-6:
        raise ValueError(f"the cell has volume {structure.volume:.3g}")
