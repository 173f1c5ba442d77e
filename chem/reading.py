"""Reading crystal structures: one stream of records over files of any known format.

A record always comes, also for a structure that cannot be read: then `structure` is None and `error` says why in
one line, so that a bad file is counted and named and never ends the stream.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chem.archives import read_archive
from chem.file_formats import READERS as TEXT_READERS
from chem.file_formats import Raw, Reader
from chem.finding import READABLE, find_files, member_format
from chem.structure_text import one_line, plain
from chem.torch_outputs import read_outputs

if TYPE_CHECKING:
    from pymatgen.core import Structure

AnyRecord = TypeVar("AnyRecord")
FILE_READERS: dict[str, Reader] = {**TEXT_READERS, "torch": read_outputs}
READERS: dict[str, Reader] = {
    **FILE_READERS,
    "zip": partial(read_archive, readers=FILE_READERS, kind_of=partial(member_format, formats=READABLE)),
}


@dataclass(frozen=True)
class Record:
    """One structure of a file, or why it could not be read.

    structure: pymatgen Structure with `properties` set, or None. id: from the file, else made from the file's name.
    source: path of the file, which goes on within an archive. index: place in the file, or in the whole archive, from
    0. error: None, or one line.
    """

    structure: Structure | None
    id: str | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    index: int = 0
    error: str | None = None


def read(path: str | Path | Iterable[str | Path], format: str | None = None) -> Iterator[Record]:
    """Stream the structures of a file, of a folder (its files sorted by name) or of several of them, in order.

    In a folder or archive, files of unknown format are passed over, and .pt files that are not called eval_*. Raises
    ValueError at once for a path that does not exist or cannot be opened, a format not known, a table without a
    structure column, a folder with nothing to read, and an archive that is refused (chem.archives).
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
        name, source = f"{path.stem}_{index}" if raw.id is None else raw.id, raw.source or str(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content, properties = finish(raw)
        except Exception as error:  # pymatgen, ASE and RDKit raise nearly every type on bad text
            yield record(None, name, raw.properties, source, index, one_line(error))
        else:
            inner = properties.pop("id", None) if raw.id is None else None
            yield record(content, name if inner is None else str(inner), properties, source, index)
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
