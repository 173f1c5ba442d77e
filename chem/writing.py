"""Writing crystal structures, one at a time, in any of the formats of `chem.finding.FORMATS`.

A text file grows by one whole record at a time and is flushed after each, so an interrupted run keeps what it wrote;
one file a structure (CIF or POSCAR in a folder) and parquet appear under their name only when complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chem.finding import format_of
from chem.reading import Record
from chem.sinks import Mode, Sink, make_sink
from chem.structure_text import (
    one_line,
    plain,
    structure_to_cif,
    structure_to_dict,
    structure_to_frame,
    structure_to_poscar,
)

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Writer:
    """Context manager that writes structures to `path` as they come.

    `format` defaults to the one of the suffix; a path without suffix and format "cif" or "poscar" is a folder with one
    file a structure. symprec (ångström) writes CIF text with its symmetry. mode "x" refuses a path that holds data
    already, "a" appends to it (a torn last record is cut off first; not for parquet), "w" replaces a file.
    `count` is the number of records at `path`, those found there included.
    """

    def __init__(self, path: str | Path, format: str | None = None, symprec: float | None = None, mode: Mode = "x"):
        self.path = Path(path)
        self.format = format_of(self.path, format)
        if mode not in ("x", "a", "w"):
            raise ValueError(f"mode must be 'x', 'a' or 'w', got {mode!r}")
        if symprec is not None and self.format not in ("cif", "csv", "parquet"):
            raise ValueError(f"symprec is for CIF text (cif, csv, parquet), not for {self.format}")
        if symprec is not None and not symprec > 0:
            raise ValueError(f"symprec must be a positive length in ångström, got {symprec}")
        self._symprec = symprec
        folder = self.format in ("cif", "poscar") and (self.path.is_dir() or not self.path.suffix)
        # a file that is itself called POSCAR has no suffix either
        folder = folder and not self.path.name.upper().startswith(("POSCAR", "CONTCAR"))
        self._sink: Sink = make_sink(self.path, self.format, mode, folder)

    @property
    def count(self) -> int:
        """Number of records at the path."""
        return self._sink.count

    def write(self, structure: Structure, id: str | None = None, properties: dict[str, Any] | None = None) -> None:
        """Write one structure; `properties` are added to those the structure carries, `id` names it.

        Raises ValueError for partial occupancy, for what the format cannot hold and after `close`.
        """
        if not structure.is_ordered:
            raise ValueError(f"structure {self.count} has partial occupancy: {structure.formula}")
        data = plain({**(structure.properties or {}), **(properties or {})})
        inner = data.pop("id", None)
        if id is not None and inner is not None and str(inner) != str(id):
            raise ValueError(f"structure {self.count} has id '{id}' and a property id '{inner}'; give one")
        name = id if id is not None else inner
        try:
            json.dumps(data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"properties of structure {self.count} are not plain data: {one_line(error)}") from error
        self._sink.add(self._encode(structure, None if name is None else str(name), data), name)

    def _encode(self, structure: Structure, name: str | None, properties: dict[str, Any]) -> Any:
        meta = {**({} if name is None else {"id": name}), **({"properties": properties} if properties else {})}
        if self.format == "cif":
            return structure_to_cif(structure, self._symprec, meta)
        if self.format == "poscar":
            return structure_to_poscar(structure, meta)
        if self.format == "extxyz":
            return structure_to_frame(structure, {**({} if name is None else {"id": name}), **properties})
        if self.format == "jsonl":
            return json.dumps({**meta, "structure": structure_to_dict(structure)}) + "\n"
        taken = sorted({"cif", "poscar", "material_id"} & properties.keys() - ({"material_id"} if name else set()))
        if taken:
            raise ValueError(f"property '{taken[0]}' of structure {self.count} is the name of a {self.format} column")
        return {"id": name, "cif": structure_to_cif(structure, self._symprec), **properties}

    def close(self) -> None:
        """End the output; parquet appears now. A second call does nothing."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def write(
    items: Iterable[Record | Structure],
    path: str | Path,
    format: str | None = None,
    symprec: float | None = None,
    mode: Mode = "x",
) -> int:
    """Write records or structures to `path` and return how many; see Writer.

    Raises ValueError for a record without a structure, naming its source and error.
    """
    with Writer(path, format, symprec, mode) as writer:
        for n, item in enumerate(items):
            if not isinstance(item, Record):
                writer.write(item)
            elif item.structure is None:
                raise ValueError(f"record {n} ({item.source}, {item.index}) has no structure: {item.error}")
            else:
                writer.write(item.structure, item.id, item.properties)
        return writer.count
