"""Reading molecules: one stream of records over SDF, xyz, extxyz and JSON lines.

A record always comes, also for a molecule that cannot be read: then `molecule` is None and `error` says why in one
line. What a file holds is taken as it stands: nothing is sanitised, no bond is guessed, no hydrogen added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chem.archives import open_archive, read_archive
from chem.file_formats import Raw, Reader, Source, read_frames, text_file
from chem.finding import READABLE, ZIP, Formats, find_files, member_format, passing_format
from chem.molecule_text import get_properties, mol_from_dict, mol_from_frame, mol_from_sdf, set_properties
from chem.reading import records
from chem.structure_text import SDF_END, plain

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MOLECULE_FORMATS: Formats = {
    "sdf": (".sdf", ".sd", ".mol"),
    "xyz": (".xyz",),
    "extxyz": (".extxyz",),
    "jsonl": (".jsonl", ".ndjson"),
}
MOLECULE_READABLE: Formats = {**MOLECULE_FORMATS, **ZIP}
EITHER: Formats = {**MOLECULE_FORMATS, **READABLE}
Kind = Literal["crystal", "molecule"]


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

    In a folder or archive, files of unknown format are passed over. An xyz or extxyz frame has no bonds. Raises
    ValueError at once for a path that does not exist or cannot be opened, a format not known, a folder with nothing to
    read and an archive that is refused (chem.archives).
    """
    files = find_files(path, format, MOLECULE_READABLE)
    return (record for file, kind in files for record in records(file, READERS[kind](file), _finish, MoleculeRecord))


def kind_of(path: str | Path) -> Kind:
    """Whether a file holds crystals or molecules: by its suffix, an xyz by a lattice in its first frame, JSON lines by
    the keys of the first line. A folder or archive is known by its files; ValueError where they are of both kinds."""
    path = Path(path)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and passing_format(file, EITHER)]
        return _one_kind(path, [(file.name, kind_of(file)) for file in files])
    if path.suffix.lower() in ZIP["zip"]:
        with open_archive(path, partial(member_format, formats=EITHER)) as members:
            return _one_kind(path, [(member.stem, _kind_of_file(member)) for member, _ in members])
    return _kind_of_file(path)


def _one_kind(path: Path, found: Sequence[tuple[str, Kind]]) -> Kind:
    first = {kind: name for name, kind in reversed(found)}
    if len(first) > 1:
        raise ValueError(f"{path} has both crystals ({first['crystal']}) and molecules ({first['molecule']})")
    return next(iter(first), "crystal")


def _kind_of_file(path: Source) -> Kind:
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


def _read_sdf(path: Source) -> Iterator[Raw]:
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


def _read_jsonl(path: Source) -> Iterator[Raw]:
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


FILE_READERS: dict[str, Reader] = {
    "sdf": _read_sdf,
    "xyz": partial(read_frames, build=mol_from_frame),
    "extxyz": partial(read_frames, build=mol_from_frame),
    "jsonl": _read_jsonl,
}
READERS: dict[str, Reader] = {
    **FILE_READERS,
    "zip": partial(read_archive, readers=FILE_READERS, kind_of=partial(member_format, formats=MOLECULE_FORMATS)),
}
