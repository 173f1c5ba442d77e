"""A data set of one's own: any folder or table of structures, packed, split and described in one folder.

    OUT/NAME/packed.safetensors   Niggli cells, or molecules with their bonds, and every numeric property column
    OUT/NAME/splits.json          row numbers of train, val and test, the seed, and the hash of the packed file
    OUT/NAME/statistics.json      `chem.statistics` of the training split
    OUT/NAME/failures.json        id and reason of every structure that could not be used

`chem.datasets.load(folder, split)` reads it. splits.json is written last: a folder without it is not a data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from chem.datasets import FAILURES_FILE, PACKED_FILE, SPLITS_FILE, STATISTICS_FILE, split_rows
from chem.download import fetch, file_sha256
from chem.output import noting, usable_folder, write_atomically
from chem.packed_molecules import PackedMolecules
from chem.packing import TABLE_SUFFIXES, Failure, Packed, assemble, read_table, save
from chem.row_parsing import pack_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` made: sizes of the splits, property columns kept and columns left out, and every failure."""

    folder: Path
    name: str
    num_structures: int
    splits: dict[str, int]
    properties: list[str]
    ignored_columns: list[str]
    failures: list[Failure]


def prepare(
    source: Source,
    out: str | Path,
    name: str,
    seed: int = 0,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    id_column: str | None = None,
    processes: int | None = None,
    sha256: str | None = None,
) -> PrepareReport:
    """Make the data set folder `out/name` from crystals or from molecules, and return what was made.

    source: a file, a folder or a list of them in any format of `chem.io` (molecules: SDF, or xyz and extxyz without a
    lattice), or the address (http, https) of one table, checked against sha256 if given. split: fractions of train,
    val and test, drawn by a hash of (seed, id). id_column names the column or property that identifies a structure.
    Raises ValueError for a folder that is a data set already, a source that does not exist, crystals and molecules
    together, and when nothing could be read or the training split is empty.
    """
    folder = Path(out).expanduser() / name
    if not name or PurePosixPath(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain folder name, got '{name}'")
    usable_folder(folder, "out")
    if (folder / SPLITS_FILE).exists():
        raise ValueError(f"{folder} is a data set already; remove it or choose another name")
    split_rows([], split, seed)  # refuses bad fractions before the work
    with noting(f"the data set '{folder}' was not made; the same call begins again"):
        packed, ignored = _gather(_paths(source, folder, sha256), id_column, processes)
        if not packed.ids:
            first = f"; the first of {len(packed.failures)} failures: {packed.failures[0]}" if packed.failures else ""
            raise ValueError(f"no structure of {source} could be used{first}")
        parts = split_rows(packed.ids, split, seed)
        if not parts["train"]:
            raise ValueError(f"split {tuple(split)} of {len(packed.ids)} structures leaves none to train on")
        _write(folder, name, packed, parts, {"seed": seed, "fractions": list(split)})
    sizes = {part: len(rows) for part, rows in parts.items()}
    return PrepareReport(folder, name, len(packed.ids), sizes, list(packed.properties), ignored, packed.failures)


def _paths(source: Source, folder: Path, sha256: str | None) -> list[Path]:
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    paths = []
    for one in sources:
        if urlsplit(str(one)).scheme in ("http", "https"):
            filename = PurePosixPath(urlsplit(str(one)).path).name
            if Path(filename).suffix not in TABLE_SUFFIXES:
                raise ValueError(f"address {one} must end in {' or '.join(TABLE_SUFFIXES)}")
            paths.append(fetch(str(one), folder / "download" / filename, sha256))
            continue
        path = Path(one).expanduser()
        if not path.exists():
            raise ValueError(f"source {path} does not exist")
        paths.append(path)
    return paths


def _gather(
    paths: Sequence[Path], id_column: str | None, processes: int | None
) -> tuple[Packed | PackedMolecules, list[str]]:
    """Everything in `paths` packed, and the names of the columns that hold no numbers."""
    molecules = _molecules(paths)
    content: list[Any] = []
    ids: list[str] = []
    records: list[Mapping[str, Any]] = []
    failures: list[Failure] = []
    for path in paths:
        if path.suffix in TABLE_SUFFIXES:
            texts, names, columns, left_out = read_table(path, id_column=id_column)
            content += texts
            ids += names
            records += [{k: v[i] for k, v in columns.items()} | dict.fromkeys(left_out, "") for i in range(len(texts))]
            continue
        for record, structure in _read(path, molecules):
            properties = dict(record.properties)
            if record.error is None and id_column is not None and id_column not in properties:
                raise ValueError(f"{record.source}: structure '{record.id}' has no property '{id_column}'")
            name = str(properties.pop(id_column) if id_column in properties else record.id)
            if record.error is not None:
                failures.append((name, record.error))
                continue
            content.append(structure)
            ids.append(name)
            records.append(properties)
    properties, ignored = _columns(records)
    if molecules:
        from chem.prepare_molecules import assemble_molecules

        return assemble_molecules(content, ids, properties, failures), ignored
    return assemble(pack_rows(content, processes=processes), ids, properties, failures), ignored


def _molecules(paths: Sequence[Path]) -> bool:
    from chem.molecule_files import kind_of

    first = {kind_of(path): path for path in reversed(paths)}
    if len(first) > 1:
        raise ValueError(f"source has crystals ({first['crystal']}) and molecules ({first['molecule']}); give one kind")
    return "molecule" in first


def _read(path: Path, molecules: bool) -> Iterable[tuple[Any, Any]]:
    """Records, and what is packed of each."""
    if molecules:
        from chem.prepare_molecules import molecule_rows

        return molecule_rows(path)
    from chem.io import read

    return ((record, record.structure) for record in read(path))


def _columns(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Columns of numbers, NaN where a record lacks one, and the names of those that hold anything else."""
    names = sorted({name for record in records for name in record})
    columns, ignored = {}, []
    for name in names:
        values = [record.get(name) for record in records]
        if all(value is None or isinstance(value, (bool, int, float, np.number)) for value in values):
            columns[name] = np.array([np.nan if value is None else float(value) for value in values])
        else:
            ignored.append(name)
    return columns, ignored


def _write(
    folder: Path, name: str, packed: Packed | PackedMolecules, parts: dict[str, list[int]], how: dict[str, Any]
) -> None:
    import torch

    from chem.statistics import Statistics

    save(packed, folder / PACKED_FILE)
    train = packed.batch().select(torch.tensor(parts["train"]))
    _write_json(folder / STATISTICS_FILE, Statistics.compute(train).to_dict())
    _write_json(folder / FAILURES_FILE, [{"id": i, "reason": reason} for i, reason in packed.failures])
    description = {"name": name, "kind": packed.KIND, "sha256": file_sha256(folder / PACKED_FILE)}
    _write_json(folder / SPLITS_FILE, {**description, **how, **parts})


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, allow_nan=False) + "\n")
