"""What is measured of every crystal on its own, cheapest first, over chunks of files: restartable, on all cores.

A stage takes a batch of B crystals, among them such as cannot be measured, and returns columns of B values each. A new
one is a function and a line in STAGES. What takes parsing and stages long is done once: the folder of chunks stays
beside the report, one row a structure, and `described` hands its fingerprints on to the metrics.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.campaigns.structure_tables import STRUCTURE, to_batch, to_table
from evaluation.inputs import Items, check_readable, collected, names_data_set, parts
from evaluation.progress import counting
from evaluation.runs.chunks import ChunkFolder, open_chunks
from evaluation.runs.pipeline import Rows, run

if TYPE_CHECKING:
    import pyarrow as pa

    from chem.crystals import CrystalBatch
    from chem.io import Record
    from evaluation.descriptors.described import Described
    from evaluation.descriptors.fingerprints import Fingerprints

Stage = Callable[["CrystalBatch"], Mapping[str, Any]]
MANY = 3000  # structures; fewer are read at once
SIZE = 512  # of a chunk
INDEX = ("id", "target", "source", "failure")


def _validity(batch: CrystalBatch) -> Mapping[str, Any]:
    from evaluation.validity import RULES, structural_validity

    return {f"invalid_{rule}": structural_validity(batch, rule).reasons for rule in RULES}


def _composition(batch: CrystalBatch) -> Mapping[str, Any]:
    from evaluation.compositions.smact import compositional_validity
    from evaluation.csp import formulas

    return {"formula": formulas(batch), "composition_valid": compositional_validity(batch)}


def _density(batch: CrystalBatch) -> Mapping[str, Any]:
    from evaluation.validity import densities

    return {"density": densities(batch)}


def _magpie(batch: CrystalBatch) -> Mapping[str, Any]:
    from evaluation.descriptors.described import composition_fingerprints

    return _both("magpie", composition_fingerprints(batch))


def _symmetry(batch: CrystalBatch) -> Mapping[str, Any]:
    from evaluation.descriptors.symmetry import symmetry

    found = symmetry(batch)
    return {"space_group": found.space_groups, "template": found.templates, "no_symmetry": found.reasons}


def _crystalnn(batch: CrystalBatch) -> Mapping[str, Any]:
    from evaluation.descriptors.fingerprints import structure_fingerprints

    return _both("crystalnn", structure_fingerprints(batch))


def _both(name: str, found: Fingerprints) -> Mapping[str, Any]:
    return {name: list(found.values), f"no_{name}": found.reasons}


STAGES: dict[str, Stage] = {
    "validity": _validity,
    "composition": _composition,
    "density": _density,
    "magpie": _magpie,
    "symmetry": _symmetry,
    "crystalnn": _crystalnn,
}
CHEAP = ("validity", "composition", "density")


@dataclass(frozen=True)
class Describe:
    """The step that reads structures from files and measures them.

    files: paths, formats and numbers of records. stages: names of STAGES. Columns: INDEX, STRUCTURE (null for what
    cannot be read, and `failure` says why), then those of the stages.
    """

    files: tuple[tuple[str, str, int], ...]
    stages: tuple[str, ...]

    def __call__(self) -> Rows:
        return self.rows

    def rows(self, start: int, stop: int) -> pa.Table:
        """Records start .. stop - 1, counted over all files."""
        import pyarrow as pa

        items = collected(parts(record) for record in self._records(start, stop))
        table = to_table(items.batch)
        for name in self.stages:
            for column, values in STAGES[name](items.batch).items():
                table = table.append_column(column, pa.array(values))
        table = table.take(pa.array(items.place, pa.int64()))  # a null row for what has no place
        index = dict(zip(INDEX, (items.ids, items.targets, items.sources, items.errors), strict=True))
        for at, (name, values) in enumerate(index.items()):
            table = table.add_column(at, name, pa.array(values, pa.string()))
        return table

    def place(self, row: int) -> tuple[str, int]:
        """File of a record and its number there."""
        ends = list(accumulate(count for _, _, count in self.files))
        which = bisect_right(ends, row)
        return self.files[which][0], row - (ends[which - 1] if which else 0)

    def _records(self, start: int, stop: int) -> Iterator[Record]:
        from chem.reading import read_slice

        first = 0
        for path, kind, count in self.files:
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                yield from read_slice(Path(path), kind, low, high)
            first += count


def describe_files(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    stages: Sequence[str] = CHEAP,
    *,
    size: int = SIZE,
    **options: Any,
) -> ChunkFolder:
    """Read files and folders and measure every structure, in a new folder of chunks or one that was begun.

    stages: names of STAGES, done in that table's order. options: of runs.pipeline.run; with `part` the folder
    may not be complete. Raises ValueError for an unknown stage, for paths that cannot be read, and for a folder made of
    other files or by other versions.
    """
    if unknown := [name for name in stages if name not in STAGES]:
        raise ValueError(f"stages = '{unknown[0]}', allowed: {', '.join(STAGES)}")
    step = Describe(_counted(source), tuple(name for name in STAGES if name in stages))
    folder = open_chunks(out, _request(step), sum(count for _, _, count in step.files), size)
    run(folder, step, **options)
    return folder


def read_items(folder: ChunkFolder, step: Describe) -> Items[CrystalBatch]:
    """The structures of a folder made by `describe_files`, as evaluation.inputs.gather returns them."""
    table = folder.read([*INDEX, *STRUCTURE, "row", "error"])
    columns = {name: table[name].to_pylist() for name in (*INDEX, "error")}
    for row, error in enumerate(columns["error"]):
        if error is not None:  # its worker died or was late, so that nothing else is known of it
            path, number = step.place(row)
            columns["id"][row], columns["source"][row] = f"{Path(path).stem}_{number}", path
            columns["failure"][row] = f"cannot be read: {error}"
    known = np.flatnonzero(table["nsites"].is_valid().to_numpy())
    place: list[int | None] = [None] * table.num_rows
    for position, row in enumerate(known.tolist()):
        place[row] = position
    batch, name = to_batch(table.take(known)), f"{table.num_rows} structures given"
    return Items(batch, place, columns["id"], columns["target"], columns["failure"], columns["source"], name)


def described(folder: ChunkFolder, items: Items[CrystalBatch], cache: str | Path | None = None) -> Described:
    """The crystals of a folder for the metrics, with the fingerprints that are there, which are not computed again."""
    from evaluation.descriptors.described import Described
    from evaluation.descriptors.fingerprints import Fingerprints

    found = Described(items.batch, len(items), cache)
    known = [row for row, place in enumerate(items.place) if place is not None]
    for name, attribute in (("magpie", "composition"), ("crystalnn", "structure")):
        table = folder.read([name, f"no_{name}"])
        if name in table.column_names:
            table = table.take(known)
            values = np.array(table[name].to_pylist(), dtype=np.float64).reshape(len(known), -1)
            setattr(found, attribute, Fingerprints(values, table[f"no_{name}"].to_pylist()))
    return found


def in_chunks(source: Any, out: str | Path, processes: int | None) -> Any:
    """More than MANY structures of files, read through chunks in `out`, as Items; any other source as it is."""
    given = [source] if isinstance(source, (str, Path)) else source
    if not (isinstance(given, (list, tuple)) and given and all(isinstance(one, (str, Path)) for one in given)):
        return source
    if names_data_set(source) or str(given[0]).startswith("baseline:"):
        return source
    step = Describe(_counted(given), CHEAP)
    if sum(count for _, _, count in step.files) <= MANY:
        return source
    name = hashlib.sha256(json.dumps(_request(step)).encode()).hexdigest()[:12]
    with counting("reading", sum(count for _, _, count in step.files)) as tick:
        where = Path(out) / f"structures-{name}"
        folder = describe_files(given, where, workers=processes, on_rows=lambda rows: tick(rows, 0))
    items = read_items(folder, step)
    check_readable(items)
    return items


def _counted(source: str | Path | Sequence[str | Path]) -> tuple[tuple[str, str, int], ...]:
    from chem.reading import count, find_files

    return tuple((str(file), kind, count(file, kind)) for file, kind in find_files(source, None))


def _request(step: Describe) -> dict[str, Any]:
    """What decides the rows: the files, as they are now, the stages, and the programs."""
    files = hashlib.sha256()
    for path, kind, count in step.files:
        state = Path(path).stat()
        files.update(f"{path}\0{kind}\0{count}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    versions = {name: version(name) for name in ("atomsmith", "pymatgen")}
    return {"files": files.hexdigest()[:24], "stages": list(step.stages), "versions": versions}
