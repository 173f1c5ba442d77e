"""The verb: structures in, a report out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from chem.output import noting
from evaluation.campaigns.campaign import on_engine
from evaluation.compositions.smact import table_source
from evaluation.inputs import Items, from_batch, gather, load_reference, names_data_set, pair
from evaluation.molecules.asked import Judge
from evaluation.progress import showing
from evaluation.protocols import Choices, ConditionalProtocol, MoleculeProtocol, Protocol, SunProtocol
from evaluation.protocols import protocol as find_protocol
from evaluation.report import Report, prepare_folder
from evaluation.runs.pipeline import mine
from evaluation.runs.stages import in_chunks

if TYPE_CHECKING:
    from evaluation.relaxation.potentials import Potential

BASELINES = ("baseline:random", "baseline:substitution")


class Judged(NamedTuple):
    """A report and what its page draws: a structure for each of its rows, and the reference."""

    report: Report
    structures: Items
    reference: Items | None


def evaluate(
    structures_or_files: Any,
    reference: Any = None,
    protocol: str | Choices = "diffcsp-csp",
    out: str | Path | None = None,
    seed: int = 0,
    *,
    k: int | None = None,
    processes: int | None = None,
    root: str | Path | None = None,
    judge: Judge | None = None,
    potential: str | Potential | None = None,
    hull: str | Path | None = None,
    engine: Literal["processes", "ray"] = "processes",
    part: str | None = None,
    device: str | None = None,
) -> Report:
    """Judge structures by a protocol; with `out`, also write report.json, structures.csv and report.html into a folder.

    structures_or_files: files, folders, pymatgen structures, records of chem.io, a CrystalBatch, a data set as
    NAME:SPLIT:N (split val and all of it by default), or one of BASELINES in place of predictions; with a protocol for
    molecules files, RDKit molecules, ASE atoms, a MoleculeBatch or a data set (split train by default). reference: a
    data set, files or structures. Structure prediction pairs by the property `target`, an id of the reference, else by
    order with k (default 1) consecutive candidates per target; a missing candidate is a miss. seed: of random draws and
    bootstraps. processes: of the matcher and of bond perception, default all cores, 0 for none and no time limit.
    root: directory of the data sets, else ATOMSMITH_DATA. judge: what predicts the property that molecules were asked
    for, with the protocol edm-conditional. potential, hull, device: in place of those of a protocol for stability, see
    evaluation.stability.scale; there the split of a reference is train by default, and with `out` a relaxation that was
    stopped goes on, and relaxed.extxyz holds what came of it. engine: "ray" relaxes on a Ray cluster. part:
    "k/n" relaxes the share of one of n jobs, all of which have the folder `out`; the last to end writes the report.

    Raises ValueError, in one line, for what cannot be judged at all, and Unfinished where other parts have still to be
    computed; single bad structures are counted with a reason.
    """
    chosen = find_protocol(protocol)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed = {seed!r}, allowed: a whole number from 0")
    _check_shared(chosen, engine, part, out)
    if out is not None:
        prepare_folder(out)
    stability = {"potential": potential, "hull": hull, "device": device}
    goes_on = isinstance(chosen, SunProtocol) and out is not None
    note = f"no report was written; the same call {'goes on' if goes_on else 'begins again'}"
    with showing(), noting(note), on_engine(engine, processes) as options:
        shared = {name: value for name, value in {**options, "part": part}.items() if name != "workers"}
        if isinstance(chosen, ConditionalProtocol) or judge is not None:
            judged = _conditional(structures_or_files, reference, chosen, seed, root, judge)
        else:
            if out is not None and isinstance(chosen, (Protocol, SunProtocol)):
                structures_or_files = in_chunks(structures_or_files, out, processes)
            judged = _judge(structures_or_files, reference, chosen, seed, k, processes, root, out, shared, **stability)
        if out is not None:
            judged.report.write(out)
            _write_page(judged, out)
    return judged.report


def _check_shared(protocol: Choices, engine: str, part: str | None, out: str | Path | None) -> None:
    """Raises ValueError where there is nothing that a cluster or the parts of a job array could share."""
    mine(range(1), part)
    for name, value, default in (("engine", engine, "processes"), ("part", part, None)):
        asked = f"{name} = '{value}'"
        if value != default and not isinstance(protocol, SunProtocol):
            raise ValueError(f"{asked} is for stability; allowed with the protocol {protocol.name}: {default}")
        if value != default and out is None:
            raise ValueError(f"{asked} with out = None, allowed: with a folder that all workers share")


def _write_page(judged: Judged, out: str | Path) -> None:
    """report.html beside the report; without its extra one warning says that there is none."""
    from evaluation.page.page import write_page

    try:
        write_page(judged.report, judged.structures, out, judged.reference)
    except ImportError as error:
        warnings.warn(f"no report.html was written: {error}", stacklevel=3)


def _judge(
    source: Any,
    reference: Any,
    protocol: Choices,
    seed: int,
    k: int | None,
    processes: int | None,
    root: Any,
    out: str | Path | None,
    shared: Mapping[str, Any],
    **stability: Any,
) -> Judged:
    for name, value in stability.items():
        if value is not None and not isinstance(protocol, SunProtocol):
            given = f"'{value}'" if isinstance(value, (str, Path)) else f"a {type(value).__name__}"
            raise ValueError(f"{name} = {given} is for stability; allowed with the protocol {protocol.name}: None")
    if k is not None and protocol.task != "csp":
        raise ValueError(f"k = {k} is for structure prediction; allowed with the protocol {protocol.name}: None")
    if isinstance(protocol, SunProtocol):
        return _sun(source, reference, protocol, seed, processes, root, out, shared, **stability)
    if isinstance(protocol, MoleculeProtocol):
        return _molecules(source, reference, protocol, seed, processes, root)
    if not isinstance(protocol, Protocol):
        raise ValueError(f"protocol is a {type(protocol).__name__}; allowed: a Protocol or a MoleculeProtocol")
    if protocol.task == "csp":
        return _csp(source, reference, protocol, seed, k, processes, root)
    return _ab_initio(source, reference, protocol, seed, root)


def _molecules(
    source: Any, reference: Any, protocol: MoleculeProtocol, seed: int, processes: int | None, root: Any
) -> Judged:
    from evaluation.molecules.inputs import gather_molecules, load_molecules
    from evaluation.molecules.score import score

    against = None if reference is None else load_molecules(reference, root)
    items = load_molecules(source, root) if names_data_set(source) else gather_molecules(source)
    numbers, rows, failures = score(items, against, protocol, processes, seed)
    name = "none" if against is None else against.name
    return Judged(Report(protocol, numbers, rows, name, seed, versions(protocol), failures), items, against)


def _conditional(source: Any, reference: Any, protocol: Choices, seed: int, root: Any, judge: Judge | None) -> Judged:
    from evaluation.molecules.asked import score
    from evaluation.molecules.inputs import gather_molecules, load_molecules

    if judge is None or not isinstance(protocol, ConditionalProtocol):
        raise ValueError(f"protocol = '{protocol.name}': edm-conditional and a regressor are for each other alone")
    against = None if reference is None else load_molecules(reference, root)
    items = load_molecules(source, root) if names_data_set(source) else gather_molecules(source)
    numbers, rows, failures = score(items, against, judge, protocol, seed)
    name = "none" if against is None else against.name
    return Judged(Report(protocol, numbers, rows, name, seed, versions(protocol), failures), items, against)


def _csp(
    source: Any, reference: Any, protocol: Protocol, seed: int, k: int | None, processes: int | None, root: Any
) -> Judged:
    from evaluation.csp import score

    _require(reference, protocol)
    targets = load_reference(reference, root)
    if isinstance(source, str) and source.startswith("baseline:"):
        items, candidates = _baseline(source, targets, reference, k or 1, seed, root)
    else:
        items = _given(source, root)
        candidates = pair(items, targets.ids, k)
    numbers, rows, failures = score(items, targets, candidates, protocol, processes, seed)
    report = Report(protocol, numbers, rows, targets.name, seed, versions(protocol), failures)
    return Judged(report, _in_slots(items, candidates), targets)


def _require(reference: Any, protocol: Choices) -> None:
    if reference is None:
        allowed = "a data set (mp20, or mp20:val:1000), files or structures"
        raise ValueError(f"reference = None, needed by the protocol {protocol.name}; allowed: {allowed}")


def _sun(
    source: Any,
    reference: Any,
    protocol: SunProtocol,
    seed: int,
    processes: int | None,
    root: Any,
    out: str | Path | None,
    shared: Mapping[str, Any],
    potential: str | Potential | None,
    hull: str | Path | None,
    device: str | None,
) -> Judged:
    from evaluation.stability.scale import find_scale
    from evaluation.sun import score

    _require(reference, protocol)
    protocol, scale = find_scale(protocol, potential, hull, device)
    against = load_reference(reference, root, split="train")
    items = _given(source, root)
    numbers, rows, failures = score(items, against, protocol, scale, processes, seed, out, **shared)
    told, label = {**versions(protocol), **scale.versions}, protocol.label(scale.hull.metric, against.name)
    return Judged(Report(protocol, numbers, rows, against.name, seed, told, failures, label), items, against)


def _in_slots(items: Items, candidates: Sequence[Sequence[int | None]]) -> Items:
    """One item for each candidate that was asked for, as the rows of a report are."""
    order = [i for row in candidates for i in row]

    def pick(values: list, missing: Any) -> list:
        return [missing if i is None else values[i] for i in order]

    missing: dict[str, Any] = {"place": None, "ids": "", "targets": None, "errors": "no candidate", "sources": ""}
    picked: dict[str, Any] = {name: pick(getattr(items, name), value) for name, value in missing.items()}
    return replace(items, **picked)


def _ab_initio(source: Any, reference: Any, protocol: Protocol, seed: int, root: Any) -> Judged:
    from evaluation.distributions import score

    against = None if reference is None else load_reference(reference, root)
    items = _given(source, root)
    numbers, rows, failures = score(items, against, protocol, seed)
    name = "none" if against is None else against.name
    return Judged(Report(protocol, numbers, rows, name, seed, versions(protocol), failures), items, against)


def _given(source: Any, root: Any) -> Items:
    if isinstance(source, Items):
        return source
    return load_reference(source, root) if names_data_set(source) else gather(source)


def _baseline(
    name: str, targets: Items, reference: Any, k: int, seed: int, root: Any
) -> tuple[Items, list[list[int | None]]]:
    """The candidates of a baseline; substitution takes its templates from the train split of the reference."""
    from chem import datasets
    from evaluation.baselines import random_coordinates, substitution

    if name not in BASELINES:
        raise ValueError(f"structures_or_files = '{name}', allowed: {', '.join(BASELINES)}, or files")
    if name == "baseline:random":
        batch = random_coordinates(targets.batch, k, seed)
        found = [list(range(i * k, (i + 1) * k)) for i in range(len(targets))]
    else:
        data = str(reference).split(":")[0]
        if not isinstance(reference, (str, Path)):
            raise ValueError(f"structures_or_files = '{name}' needs a reference by name; allowed: a data set, as mp20")
        batch, found = substitution(datasets.load(data, "train", root=root).batch, targets.batch, k)
    items = from_batch(batch, [f"{name}-{i}" for i in range(len(batch))], "structures_or_files")
    return items, [[*rows, *[None] * (k - len(rows))] for rows in found]


def versions(protocol: Choices) -> dict[str, str]:
    """Versions of everything a number depends on."""
    packages = ["atomsmith", "numpy", "rdkit" if protocol.task == "molecules" else "pymatgen"]
    packages += ["spglib"] * isinstance(protocol, SunProtocol)
    if isinstance(protocol, MoleculeProtocol):
        packages += [name for name, used in (("posebusters", protocol.posebusters), ("tblite", protocol.gfn2)) if used]
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if isinstance(protocol, (Protocol, SunProtocol)):
        found["oxidation states"] = f"{protocol.composition.table} of {table_source().split(' (')[0]}"
    return found
