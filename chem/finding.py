"""Which files there are to read, and of which format each is."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from chem.archives import open_archive
from chem.file_formats import TEXT_COLUMNS

Formats = Mapping[str, tuple[str, ...]]
FORMATS: Formats = {
    "cif": (".cif",),
    "poscar": (".vasp", ".poscar"),
    "extxyz": (".extxyz", ".xyz"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "parquet": (".parquet", ".pq"),
}
ZIP: Formats = {"zip": (".zip",)}
READABLE: Formats = {**FORMATS, "torch": (".pt",), **ZIP}
OUTPUTS = "eval_"  # the outputs of CDVAE and its heirs begin so; their folders hold other .pt files


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


def passing_format(path: str | Path, formats: Formats) -> str | None:
    """Format of a file that was come across in a folder; None for one to pass over."""
    try:
        kind = format_of(path, formats=formats)
    except ValueError:
        return None
    return None if kind == "torch" and not Path(path).name.startswith(OUTPUTS) else kind


def member_format(name: str, formats: Formats) -> str | None:
    """Format of a file that was come across in an archive; None for one to pass over, as archives in archives are."""
    kind = passing_format(name, formats)
    return None if kind == "zip" else kind


def find_files(
    path: str | Path | Iterable[str | Path], format: str | None, formats: Formats = READABLE
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
    if format not in (None, "zip") and passing_format(path, formats) == "zip":
        raise ValueError(f"format '{format}' of {path}: in an archive the names of the files tell; leave format out")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; known formats: {known_formats(formats)}") from error
    if kind in ("csv", "parquet"):
        _check_columns(path, kind)
    if kind == "zip":
        with open_archive(path, partial(member_format, formats=formats)):
            pass
    return [(path, kind)]


def _in_folder(folder: Path, format: str | None, formats: Formats) -> list[tuple[Path, str]]:
    """Files of known format, by name; with `format` those of it, else those whose name tells nothing."""
    if format is not None:
        format_of(folder, format, formats)
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    known = [(file, kind) for file in files if (kind := passing_format(file, formats))]
    if format is None:
        return known
    named = {file for file, _ in known}
    return [(file, kind) for file, kind in known if kind == format] or [
        (file, format) for file in files if file not in named
    ]


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
