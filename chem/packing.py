"""Tables of structures turned into packed arrays once, and kept in a content-addressed cache.

Every row is parsed by pymatgen, reduced to its Niggli cell, and its lattice rebuilt from the six cell parameters, so
that equal crystals have equal matrices (a in the xz plane, c along z; the convention of DiffCSP and pymatgen).

The cache holds one safetensors file per (bytes of the table, options, format version).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from chem.output import write_atomically
from chem.packed_molecules import PackedMolecules
from chem.row_parsing import Row, pack_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch
    from chem.ragged import Batch

FORMAT_VERSION = 1
RESERVED = ("num_nodes", "num_atoms", "ptr", "batch", "pos")
TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
TEXT_COLUMNS = ("cif", "poscar")
ID_COLUMNS = ("material_id", "id", "name", "jid")
Failure = tuple[str, str]


@dataclass(frozen=True)
class Packed:
    """B crystals with M atoms in flat arrays, and what could not be read.

    atomic_numbers (M,) uint8, num_atoms (B,) int32, frac_coords (M, 3) in [0, 1), lattice (B, 3, 3) ångström, rows;
    properties: name -> (B,) float64, NaN where missing; failures: (id, reason) of the other rows of the table.
    """

    KIND: ClassVar[str] = "crystals"
    ARRAYS: ClassVar[tuple[str, ...]] = ("atomic_numbers", "num_atoms", "frac_coords", "lattice")

    atomic_numbers: NDArray[np.uint8]
    num_atoms: NDArray[np.int32]
    frac_coords: NDArray[np.float64]
    lattice: NDArray[np.float64]
    ids: list[str]
    failures: list[Failure] = field(default_factory=list)
    properties: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def batch(self) -> CrystalBatch:
        """A float64 batch with the properties attached; a name the batch itself uses gets a trailing underscore."""
        import torch

        from chem.crystals import CrystalBatch

        batch = CrystalBatch(
            torch.from_numpy(self.num_atoms.astype(np.int64)),
            atomic_numbers=torch.from_numpy(self.atomic_numbers.astype(np.int64)),
            frac_coords=torch.from_numpy(self.frac_coords),
            lattice=torch.from_numpy(self.lattice),
        )
        return attach_properties(batch, self.properties)


AnyPacked = TypeVar("AnyPacked", Packed, PackedMolecules)


def attach_properties(batch: Batch, properties: Mapping[str, NDArray[np.float64]]) -> Batch:
    """The batch with columns (B,) per structure; a name the batch itself uses gets a trailing underscore."""
    import torch

    taken = (*RESERVED, *type(batch).LEVELS)
    extra = {f"{k}_" if k in taken else k: torch.from_numpy(v) for k, v in properties.items()}
    return batch.attach("structure", **extra)


def assemble(
    rows: Sequence[Row], ids: Sequence[str], properties: Mapping[str, NDArray], failures: Sequence[Failure] = ()
) -> Packed:
    """Rows of `pack_rows` with their ids and property columns; failed rows move to `failures`, after those given.

    Every lattice is rebuilt from its six parameters, which turns it into the fixed orientation.
    """
    import torch

    from chem.lattice import from_parameters, parameters

    good = [i for i, row in enumerate(rows) if not isinstance(row, str)]
    kept = [row for row in rows if not isinstance(row, str)]
    lattice = torch.from_numpy(np.array([r[2] for r in kept], dtype=np.float64).reshape(-1, 3, 3))
    return Packed(
        atomic_numbers=np.concatenate([np.zeros(0, np.uint8), *(r[0] for r in kept)]),
        num_atoms=np.array([len(r[0]) for r in kept], dtype=np.int32),
        frac_coords=np.concatenate([np.zeros((0, 3)), *(r[1] for r in kept)]),
        lattice=from_parameters(*parameters(lattice)).numpy(),
        ids=[ids[i] for i in good],
        failures=[*failures, *((ids[i], row) for i, row in enumerate(rows) if isinstance(row, str))],
        properties={name: np.asarray(values, dtype=np.float64)[good] for name, values in properties.items()},
    )


def save(packed: Packed | PackedMolecules, path: str | Path) -> None:
    """Write one safetensors file, atomically; property columns are stored as `property.NAME`."""
    from safetensors.numpy import save as to_safetensors

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(packed, name) for name in packed.ARRAYS if getattr(packed, name) is not None}
    arrays |= {f"property.{name}": values for name, values in packed.properties.items()}
    metadata = {"ids": json.dumps(packed.ids), "failures": json.dumps(packed.failures), "version": str(FORMAT_VERSION)}
    metadata["kind"] = packed.KIND
    # the library's own writer does not raise OSError where the disk is full
    write_atomically(path, to_safetensors({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata))


def load_packed(path: str | Path) -> Packed:
    """Crystals of a file of `save`; raises ValueError as `load_as` does."""
    return load_as(Packed, path)


def load_as(kind: type[AnyPacked], path: str | Path) -> AnyPacked:
    """Read a file of `save`; raises ValueError when it is not one, is damaged, or has another version or kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != str(FORMAT_VERSION):
                raise ValueError(f"{path}: packed format {metadata.get('version')}; {FORMAT_VERSION} is needed")
            if metadata.get("kind", Packed.KIND) != kind.KIND:
                raise ValueError(f"{path}: packed {metadata.get('kind', Packed.KIND)}; {kind.KIND} are needed")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a packed file, or damaged ({error})") from None
    failures = [(name, reason) for name, reason in json.loads(metadata["failures"])]
    properties = {name[9:]: values for name, values in arrays.items() if name.startswith("property.")}
    ids = json.loads(metadata["ids"])
    known = {k: arrays[k] for k in kind.ARRAYS if k in arrays}
    return kind(**known, ids=ids, failures=failures, properties=properties)


def pack(
    table: str | Path,
    *,
    split: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    niggli: bool = True,
    cache: str | Path | None = None,
    processes: int | None = None,
) -> tuple[Packed, str]:
    """The structures of a parquet or csv table, from the cache if they are there, and the sha256 that names them.

    split keeps the rows whose column `split` has that value. column holds CIF or POSCAR text (default: the first of
    `cif`, `poscar`); id_column names the rows (default: the first of ID_COLUMNS, else the row number). Every numeric
    column becomes a property. cache is a directory (default `~/.cache/atomsmith`); processes defaults to all cores.
    """
    table = Path(table)
    options = dict(split=split, column=column, id_column=id_column, niggli=niggli, version=FORMAT_VERSION)
    digest = hashlib.sha256(table.read_bytes() + json.dumps(options, sort_keys=True).encode()).hexdigest()

    def build() -> Packed:
        texts, ids, properties, _ = read_table(table, split, column, id_column)
        return assemble(pack_rows(texts, niggli, processes), ids, properties)

    return through_cache(digest, cache, Packed, build), digest


def through_cache(
    digest: str, cache: str | Path | None, kind: type[AnyPacked], build: Callable[[], AnyPacked]
) -> AnyPacked:
    """What `build` returned when a source with this sha256 was packed first, from `cache` (default as for `pack`)."""
    path = Path(cache or default_cache()).expanduser() / "packed" / f"{digest}.safetensors"
    if path.exists():
        try:
            return load_as(kind, path)
        except ValueError as error:
            warnings.warn(f"packing again: {error}", stacklevel=3)
    packed = build()
    save(packed, path)
    return packed


def default_cache() -> Path:
    """~/.cache/atomsmith."""
    return Path("~/.cache/atomsmith").expanduser()


def read_table(
    table: Path, split: str | None = None, column: str | None = None, id_column: str | None = None
) -> tuple[list[str], list[str], dict[str, NDArray[np.float64]], list[str]]:
    """Structure texts, ids, numeric columns and names of the columns left out, of a parquet or csv table.

    The arguments are those of `pack`; a missing text is an empty one, a missing number NaN.

    Raises ValueError naming a column or split that is missing and those that are there.
    """
    import pandas as pd

    if table.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"table {table}: suffix '{table.suffix}'; allowed are {', '.join(TABLE_SUFFIXES)}")
    as_text = dict.fromkeys((*TEXT_COLUMNS, *ID_COLUMNS, *([id_column] if id_column else [])), str)
    try:
        frame = pd.read_csv(table, dtype=as_text) if table.suffix == ".csv" else pd.read_parquet(table)
    except ValueError as error:  # of an empty or broken file; neither library names it
        raise ValueError(f"table {table} cannot be read: {str(error).splitlines()[0]}") from error
    there = ", ".join(map(str, frame))
    for name in (column, id_column, "split" if split else None):
        if name and name not in frame:
            raise ValueError(f"table {table} has no column '{name}'; it has {there}")
    column = column or next((name for name in TEXT_COLUMNS if name in frame), None)
    if column is None:
        raise ValueError(f"table {table} has no column {' or '.join(TEXT_COLUMNS)}; it has {there}")
    if split:
        known = sorted(frame["split"].dropna().unique())
        frame = frame[frame["split"] == split]
        if frame.empty:
            raise ValueError(f"table {table} has no rows of split '{split}'; it has {', '.join(map(str, known))}")
    id_column = id_column or next((name for name in ID_COLUMNS if name in frame), None)
    ids = [str(i) for i in (frame[id_column] if id_column else frame.index)]
    named = [n for n in sorted(frame, key=str) if n not in (column, id_column) and not str(n).startswith("Unnamed")]
    numeric = [n for n in named if pd.api.types.is_numeric_dtype(frame[n])]  # bool is one
    properties = {str(n): frame[n].to_numpy(dtype=np.float64, na_value=np.nan) for n in numeric}
    texts = [text if isinstance(text, str) else "" for text in frame[column]]
    return texts, ids, properties, [str(n) for n in named if n not in numeric]
