"""Reading molecules: one stream of records over SDF, xyz, extxyz and JSON lines.

A record always comes, also for a molecule that cannot be read: then `molecule` is None and `error` says why in one
line. What a file holds is taken as it stands: nothing is sanitised, no bond is guessed, no hydrogen added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chem.file_formats import Raw, read_frames, text_file
from chem.molecule_text import get_properties, mol_from_dict, mol_from_frame, mol_from_sdf, set_properties
from chem.reading import FORMATS, Formats, find_files, records
from chem.structure_text import SDF_END, plain

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MOLECULE_FORMATS: Formats = {
    "sdf": (".sdf", ".sd", ".mol"),
    "xyz": (".xyz",),
    "extxyz": (".extxyz",),
    "jsonl": (".jsonl", ".ndjson"),
}


@dataclass(frozen=True)
class MoleculeRecord:
    """One molecule of a file, or why it could not be read.

    molecule: RDKit molecule with one conformer, not sanitised, `properties` set as text; or None. id: from the file,
    else made from the file's name. source: path of the file. index: place in that file, from 0. error: None, or one
    line.
    """

    molecule: Mol | None
    id: str | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    index: int = 0
    error: str | None = None


def read_molecules(path: str | Path | Iterable[str | Path], format: str | None = None) -> Iterator[MoleculeRecord]:
    """Stream the molecules of a file, of a folder (its files sorted by name) or of several of them, in order.

    In a folder, files of unknown format are passed over. An xyz or extxyz frame has no bonds. Raises ValueError at
    once for a path that does not exist or cannot be opened, a format not known and a folder with nothing to read.
    """
    files = find_files(path, format, MOLECULE_FORMATS)
    return (record for file, kind in files for record in records(file, READERS[kind](file), _finish, MoleculeRecord))


def kind_of(path: str | Path) -> Literal["crystal", "molecule"]:
    """Whether a file holds crystals or molecules: by its suffix, an xyz by a lattice in its first frame, JSON lines by
    the keys of the first line. A folder is known by its files; ValueError where they are of both kinds."""
    path = Path(path)
    if path.is_dir():
        known = [suffix for suffixes in (*FORMATS.values(), *MOLECULE_FORMATS.values()) for suffix in suffixes]
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix.lower() in known]
        first = {kind_of(file): file.name for file in reversed(files)}
        if len(first) > 1:
            raise ValueError(f"{path} has both crystals ({first['crystal']}) and molecules ({first['molecule']})")
        return next(iter(first), "crystal")
    suffix = path.suffix.lower()
    if suffix in MOLECULE_FORMATS["sdf"]:
        return "molecule"
    if suffix in (".xyz", ".extxyz"):
        with text_file(path) as file:
            return "crystal" if "lattice=" in (file.readline() and file.readline().lower()) else "molecule"
    if suffix in MOLECULE_FORMATS["jsonl"]:
        with text_file(path) as file:
            return "molecule" if '"molecule"' in file.readline() else "crystal"
    return "crystal"


def _finish(raw: Raw[tuple[Mol, dict[str, Any]]]) -> tuple[Mol, dict[str, Any]]:
    from chem.convert_molecules import mol_arrays

    mol, inner = raw.build()
    mol_arrays(mol)
    properties = {**raw.properties, **plain(inner)}
    set_properties(mol, {k: v for k, v in properties.items() if raw.id is not None or k != "id"})
    return mol, properties


def _read_sdf(path: Path) -> Iterator[Raw]:
    with text_file(path) as file:
        lines: list[str] = []
        for line in file:
            lines.append(line)
            if line.rstrip() == SDF_END.rstrip():
                yield _raw_entry("".join(lines))
                lines = []
        if any(line.strip() for line in lines):
            yield _raw_entry("".join(lines))


def _raw_entry(text: str) -> Raw:
    def build() -> tuple[Mol, dict[str, Any]]:
        mol = mol_from_sdf(text)
        return mol, get_properties(mol)

    return Raw(text.split("\n", 1)[0].strip() or None, {}, build)


def _read_jsonl(path: Path) -> Iterator[Raw]:
    with text_file(path) as file:
        for line in file:
            if line.strip():
                yield _raw_line(line)


def _raw_line(line: str) -> Raw:
    def refuse(reason: str) -> Any:
        raise ValueError(reason)

    try:
        data = json.loads(line)
        content = data["molecule"]
        properties, name = dict(data.get("properties") or {}), data.get("id")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Raw(None, {}, partial(refuse, "a line must be an object with the key molecule"))
    return Raw(None if name is None else str(name), properties, lambda: (mol_from_dict(content), {}))


READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    "sdf": _read_sdf,
    "xyz": partial(read_frames, build=mol_from_frame),
    "extxyz": partial(read_frames, build=mol_from_frame),
    "jsonl": _read_jsonl,
}
