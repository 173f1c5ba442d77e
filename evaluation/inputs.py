"""What `evaluate` is given, as one batch: files, folders, structures, records, batches, data sets by name.

A structure that cannot be read or used keeps its place, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from evaluation.progress import watched

if TYPE_CHECKING:
    from chem.crystals import CrystalBatch
    from chem.ragged import RaggedBatch
    from chem.reading import Record

ALLOWED = "files, folders, zip archives, pymatgen structures, records of chem.io, or a CrystalBatch"
NEEDED = ("atomic_numbers", "frac_coords", "lattice")
Batch = TypeVar("Batch", bound="RaggedBatch")


@dataclass(frozen=True)
class Items(Generic[Batch]):
    """N structures in order.

    batch: those that could be read; place: index (N,) in the batch, None for the others; errors (N,): why not, else "".
    ids, sources (N,). targets (N,): what the property `target` says, None where it is missing. name: for reports.
    conditions (N,): of molecules, what their property `conditions` says they were asked for; empty of other things.
    histograms: value -> count of properties whose distribution in the whole of a data set is known where this is but a
    part of it.
    """

    batch: Batch
    place: list[int | None]
    ids: list[str]
    targets: list[str | None]
    errors: list[str]
    sources: list[str]
    name: str = ""
    conditions: list[dict[str, float]] = field(default_factory=list)
    histograms: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.place)


def gather(source: Any, argument: str = "structures_or_files") -> Items[CrystalBatch]:
    """Everything in `source`; raises ValueError when there is nothing, nothing readable, or something else."""
    if hasattr(source, "num_structures"):
        return from_batch(source, [str(i) for i in range(len(source))], argument)
    found = watched(_records(source, argument), "reading", failed=lambda one: bool(one[4]))
    items = collected(found)
    if not len(items):
        raise ValueError(f"{argument} holds no structures; allowed: {ALLOWED}")
    check_readable(items, argument)
    return items


def check_readable(items: Items[Any], argument: str = "structures_or_files") -> None:
    """Raises ValueError, with the first reason, when not one structure could be read."""
    if not len(items.batch):
        where = f"{items.sources[0]}: " if items.sources[0] else ""
        first = f"{where}{items.errors[0]}"
        raise ValueError(f"{argument}: none of {len(items)} structures could be read; the first: {first}")


def collected(found: Iterable[tuple[Any, str | None, dict, str, str]]) -> Items[CrystalBatch]:
    """Structures with their ids, properties, sources and errors as one batch; it may be empty."""
    from chem.convert import batch_from_arrays, site_arrays

    ids: list[str] = []
    targets, errors, sources, arrays, place = [], [], [], [], []
    for structure, name, properties, origin, error in found:
        if structure is not None and not error:
            try:
                if not len(structure):
                    raise ValueError("no atoms")
                arrays.append((*site_arrays(structure), structure.lattice.matrix))
            except ValueError as reason:
                structure, error = None, f"cannot be used: {reason}"
        place.append(None if structure is None else len(arrays) - 1)
        ids.append(name if name is not None else str(len(ids)))
        targets.append(None if properties.get("target") is None else str(properties["target"]))
        errors.append(error or "")
        sources.append(origin)
    batch = batch_from_arrays(*([a[i] for a in arrays] for i in range(3)))
    return Items(batch, place, ids, targets, errors, sources, f"{len(ids)} structures given")


def from_batch(
    batch: Batch, ids: Sequence[str], argument: str, name: str = "", needed: Sequence[str] = NEEDED
) -> Items[Batch]:
    """The structures of a batch, which must have the fields `needed`."""
    n = len(batch)
    if not n:
        raise ValueError(f"{argument} holds no structures; allowed: {ALLOWED}")
    if missing := [f for f in needed if f not in batch.fields]:
        raise ValueError(f"{argument} is a batch without the field '{missing[0]}'; it is needed")
    return Items(batch, list(range(n)), list(ids), [None] * n, [""] * n, [""] * n, name or f"{n} structures given")


def load_reference(
    reference: Any,
    root: str | Path | None = None,
    *,
    gatherer: Callable[[Any, str], Items] = gather,
    needed: Sequence[str] = NEEDED,
    split: str = "val",
) -> Items:
    """A data set as NAME, NAME:SPLIT or NAME:SPLIT:N (its first N; `split` by default), or what `gatherer` takes.

    needed: fields that its batch must have. Raises ValueError for an unknown split, too large an N, and a reference of
    which a structure cannot be read.
    """
    from chem import datasets

    if hasattr(reference, "batch") and hasattr(reference, "ids"):
        name = f"{reference.name} {reference.split}"
        return from_batch(reference.batch, reference.ids, "reference", name, needed)
    if isinstance(reference, (str, Path)):
        if names_data_set(reference):
            name, *rest = str(reference).split(":")
            return _data_set(name, rest or [split], str(reference), root, needed)
        if not Path(reference).expanduser().exists():
            known = ", ".join((*datasets.LAYOUTS, "prototypes"))
            raise ValueError(f"reference = '{reference}', allowed: a file or folder, or {known} as NAME:SPLIT:N")
    items = gatherer(reference, "reference")
    if bad := [i for i, error in enumerate(items.errors) if error]:
        first = f"{items.ids[bad[0]]}: {items.errors[bad[0]]}"
        raise ValueError(f"reference: {len(bad)} of {len(items)} structures could not be read; the first: {first}")
    return items


def names_data_set(source: Any) -> bool:
    """Whether this is NAME, NAME:SPLIT or NAME:SPLIT:N of a known data set or of a folder made by `prepare`."""
    from chem import datasets

    if not isinstance(source, (str, Path)):
        return False
    name = str(source).split(":")[0]
    return name in (*datasets.LAYOUTS, "prototypes") or (Path(name).expanduser() / datasets.SPLITS_FILE).is_file()


def _data_set(name: str, rest: list[str], given: str, root: str | Path | None, needed: Sequence[str]) -> Items:
    from chem import datasets

    split, count = rest[0], ":".join(rest[1:])
    if split not in datasets.SPLITS or (count and not (count.isascii() and count.isdigit() and int(count))):
        raise ValueError(f"reference = '{given}', allowed: NAME:SPLIT:N with SPLIT {', '.join(datasets.SPLITS)}")
    # numbers that are reported are what evaluation is for; tuning code asks for `val`
    data = datasets.load(name, split, root=root, purpose="report" if split == "test" else "tuning")
    n = int(count) if count else len(data)
    if n > len(data):
        raise ValueError(f"reference = '{given}', allowed: up to {len(data)} structures of {name} {split}")
    first = f"first {n} of {len(data)}" if n < len(data) else f"all {n}"
    return from_batch(data.batch[:n], data.ids[:n], "reference", f"{data.name} {split}, {first}", needed)


def parts(record: Record) -> tuple[Any, str | None, dict, str, str]:
    """What `collected` takes of a record of chem.io."""
    return record.structure, record.id, record.properties, record.source, record.error or ""


def _records(source: Any, argument: str) -> Iterator[tuple[Any, str | None, dict, str, str]]:
    """structure, id, properties, source and error of each thing in `source`."""
    from chem.io import Record, read

    if isinstance(source, (str, Path, Record)) or hasattr(source, "frac_coords"):
        source = [source]
    if not isinstance(source, Iterable):
        raise ValueError(f"{argument} is a {type(source).__name__}; allowed: {ALLOWED}")
    for i, one in enumerate(source):
        if isinstance(one, (str, Path)):
            yield from map(parts, read(one))
        elif isinstance(one, Record):
            yield parts(one)
        elif hasattr(one, "frac_coords") and hasattr(one, "lattice"):
            properties = dict(one.properties or {})
            name = properties.get("id")
            yield one, None if name is None else str(name), properties, "", ""
        elif one is None:
            yield None, None, {}, "", "no structure was given"
        else:
            raise ValueError(f"{argument}[{i}] is a {type(one).__name__}; allowed: {ALLOWED}")


def pair(items: Items, ids: Sequence[str], k: int | None = None) -> list[list[int | None]]:
    """The candidates of each target, k indices into `items` each, None for a missing one.

    By the property `target` where the items have it, else in order, k (default 1) consecutive ones per target. Raises
    ValueError for counts that do not fit, unknown targets and more candidates than k.
    """
    if k is not None and k < 1:
        raise ValueError(f"k = {k}, allowed: at least 1")
    if not any(target is not None for target in items.targets):
        k = k or 1
        if len(items) != k * len(ids):
            need = f"{len(items)} structures for {len(ids)} targets and k = {k}, which needs {k * len(ids)}"
            raise ValueError(f"{need}; allowed: that number, or a property `target` on each structure")
        return [[*range(i * k, (i + 1) * k)] for i in range(len(ids))]
    return _pair_by_target(items, ids, k)


def _pair_by_target(items: Items, ids: Sequence[str], k: int | None) -> list[list[int | None]]:
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise ValueError(f"reference has the id '{twice}' twice, so that `target` is ambiguous; ids must differ")
    found: dict[str, list[int | None]] = {name: [] for name in ids}
    for i, target in enumerate(items.targets):
        if target is None and items.place[i] is None:
            continue  # an unreadable structure of unknown target: its target has one candidate fewer
        if target not in found:
            which = f"structure {i} ({items.ids[i]}) has target = {target!r}"
            raise ValueError(f"{which}, allowed: the ids of the reference, such as '{ids[0]}'")
        found[target].append(i)
    most = max(len(rows) for rows in found.values())
    if k is not None and most > k:
        name = next(name for name, rows in found.items() if len(rows) == most)
        raise ValueError(f"target '{name}' has {most} candidates and k = {k}; allowed: up to k for each")
    k = k or max(most, 1)
    return [[*rows, *[None] * (k - len(rows))] for rows in found.values()]
