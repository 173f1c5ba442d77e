"""How each file format is cut into structures: one reader a format, lazy, none of them parses a structure itself.

A reader yields `Raw` parts; building the structure of one may fail without harm to the next. A reader raises only
where the file breaks off in a way that hides what follows.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar

from chem.structure_text import (
    cif_meta,
    from_cell,
    structure_from_cif,
    structure_from_dict,
    structure_from_frame,
    structure_from_poscar,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.core import Structure

    from chem.archives import Member

TEXT_COLUMNS: dict[str, Callable[[str], Structure]] = {"cif": structure_from_cif, "poscar": structure_from_poscar}
ID_COLUMNS = ("id", "material_id")


Built = TypeVar("Built")


class Raw(NamedTuple, Generic[Built]):
    """What a file says before its structure is parsed; `build` may raise anything.

    source: where it was found, if that is not the file that was asked for.
    """

    id: str | None
    properties: dict[str, Any]
    build: Callable[[], Built]
    source: str = ""


Source: TypeAlias = "Path | Member"  # of what readers use, a file in an archive has the same
Reader = Callable[[Any], Iterator[Raw]]  # of a Source


def text_file(path: Source) -> IO[str]:
    """A text file whose bad bytes become replacement characters, which no parser takes for data."""
    return path.open(encoding="utf-8-sig", errors="replace")


def refuse(error: Exception) -> NoReturn:
    """Raise it: what a part that cannot be read has in place of `build`."""
    raise error


def _read_cif(path: Source) -> Iterator[Raw]:
    blocks = (text for text in _cif_blocks(path) if "_cell_length" in text or "_atom_site" in text)
    text, first = next(blocks, None), True
    while text is not None:
        following = next(blocks, None)
        meta = cif_meta(text)
        name = meta.get("id") or (path.stem if first and following is None else None)
        yield Raw(name, meta.get("properties", {}), partial(structure_from_cif, text))
        text, first = following, False


def _cif_blocks(path: Source) -> Iterator[str]:
    block: list[str] = []
    in_text = False  # inside a text field, which may quote anything
    with text_file(path) as file:
        for line in file:
            if line.startswith(";"):
                in_text = not in_text
            if not in_text and line.lstrip()[:5].lower() == "data_":
                yield "".join(block)
                block = []
            # pymatgen would take such a line of a text field for a new block
            block.append(re.sub(r"^(\s*)data_", r"\1data-", line, flags=re.IGNORECASE) if in_text else line)
    yield "".join(block)


def _read_poscar(path: Source) -> Iterator[Raw]:
    with text_file(path) as file:
        text = file.read()
    try:
        meta = json.loads(text.split("\n", 1)[0])
    except ValueError:
        meta = {}
    meta = meta if isinstance(meta, dict) else {}
    yield Raw(meta.get("id") or path.stem, dict(meta.get("properties") or {}), partial(structure_from_poscar, text))


def read_frames(path: Source, build: Callable[[str], Built]) -> Iterator[Raw[Built]]:
    """The frames of an xyz or extxyz file; `build` parses the text of one."""
    with text_file(path) as file:
        while head := file.readline():
            if not head.strip():
                continue
            if not head.strip().isdecimal():
                raise ValueError(f"expected a number of atoms, got {head.strip()[:60]!r}")
            body = list(islice(file, int(head) + 1))
            if len(body) < int(head) + 1:
                raise ValueError(f"the frame breaks off: {int(head)} atoms announced, {max(len(body) - 1, 0)} found")
            text = head + "".join(body)
            yield Raw(None, {}, partial(build, text))


def _read_jsonl(path: Source) -> Iterator[Raw]:
    with text_file(path) as file:
        for line in file:
            if line.strip():
                yield _raw_json(line)


def _raw_json(line: str) -> Raw:
    try:
        data = json.loads(line)
        if not isinstance(data, dict) or not ({"structure"} <= data.keys() or {"lattice", "sites"} <= data.keys()):
            raise ValueError("a line must be a pymatgen structure, or an object with the key structure")
    except (ValueError, RecursionError) as error:
        return Raw(None, {}, partial(refuse, error))
    if "structure" not in data:
        return Raw(None, {}, partial(structure_from_dict, data))
    properties = {**{k: v for k, v in data.items() if k not in ("id", "structure", "properties")}}
    properties.update(data.get("properties") or {})
    name = data.get("id")
    return Raw(None if name is None else str(name), properties, partial(structure_from_dict, data["structure"]))


def _read_csv(path: Source) -> Iterator[Raw]:
    as_text = (*TEXT_COLUMNS, *ID_COLUMNS)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file)
        header = _next_row(rows) or []
        while (row := _next_row(rows)) is not None:
            if len(row) == len(header):
                cells = zip(header, row, strict=True)
                yield _raw_row({k: v or None if k in as_text else from_cell(v) for k, v in cells})
            elif row:
                error = ValueError(f"the row has {len(row)} cells, the header {len(header)}")
                yield Raw(None, {}, partial(refuse, error))


def _next_row(rows: Any) -> list[str] | None:
    """The next row; the limit on the length of a cell is global to `csv`, so it is put back."""
    limit = csv.field_size_limit(2**30)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Source) -> Iterator[Raw]:
    import pyarrow.parquet

    with path.open("rb") as content, pyarrow.parquet.ParquetFile(content) as file:
        coded = {f.name for f in file.schema_arrow if (f.metadata or {}).get(b"atomsmith") == b"json"}
        for batch in file.iter_batches(batch_size=512):
            for row in batch.to_pylist():
                yield _raw_row({k: json.loads(v) if k in coded and v is not None else v for k, v in row.items()})


def _raw_row(row: dict[str, Any]) -> Raw:
    """A table's row: structure text, id, and every other non-empty cell a property."""
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    text = row.pop(column) if column else None
    names = [name for name in ID_COLUMNS if row.get(name) is not None]
    name = str(row.pop(names[0])) if names else None
    properties = {k: v for k, v in row.items() if v is not None and not re.fullmatch(r"(Unnamed: \d+)?", k)}
    if column is None or not text:
        error = ValueError(f"no text in column {' or '.join(TEXT_COLUMNS)}")
        return Raw(name, properties, partial(refuse, error))
    return Raw(name, properties, partial(TEXT_COLUMNS[column], text))


READERS: dict[str, Reader] = {
    "cif": _read_cif,
    "poscar": _read_poscar,
    "extxyz": partial(read_frames, build=structure_from_frame),
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
