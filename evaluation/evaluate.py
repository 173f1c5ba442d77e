"""The verb: structures in, a report out."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chem.output import noting
from evaluation.inputs import Items, from_batch, gather, load_reference, names_data_set, pair
from evaluation.protocols import Choices, MoleculeProtocol, Protocol
from evaluation.protocols import protocol as find_protocol
from evaluation.report import Report, prepare_folder
from evaluation.smact import table_source

BASELINES = ("baseline:random", "baseline:substitution")


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
) -> Report:
    """Judge structures by a protocol; with `out`, also write report.json and structures.csv into that folder.

    structures_or_files: files, folders, pymatgen structures, records of chem.io, a CrystalBatch, a data set as
    NAME:SPLIT:N (split val and all of it by default), or one of BASELINES in place of predictions; with a protocol for
    molecules files, RDKit molecules, ASE atoms, a MoleculeBatch or a data set (split train by default). reference: a
    data set, files or structures. Structure prediction pairs by the property `target`, an id of the reference, else by
    order with k (default 1) consecutive candidates per target; a missing candidate is a miss. seed: of random draws and
    bootstraps. processes: of the matcher and of bond perception, default all cores, 0 for none and no time limit.
    root: directory of the data sets, else ATOMSMITH_DATA.

    Raises ValueError, in one line, for what cannot be judged at all; single bad structures are counted with a reason.
    """
    chosen = find_protocol(protocol)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed = {seed!r}, allowed: a whole number from 0")
    if out is not None:
        prepare_folder(out)
    with noting("no report was written; the same call begins again"):
        report = _judge(structures_or_files, reference, chosen, seed, k, processes, root)
        if out is not None:
            report.write(out)
    return report


def _judge(
    source: Any, reference: Any, protocol: Choices, seed: int, k: int | None, processes: int | None, root: Any
) -> Report:
    if k is not None and protocol.task != "csp":
        raise ValueError(f"k = {k} is for structure prediction; allowed with the protocol {protocol.name}: None")
    if isinstance(protocol, MoleculeProtocol):
        return _molecules(source, reference, protocol, seed, processes, root)
    if not isinstance(protocol, Protocol):
        raise ValueError(f"protocol is a {type(protocol).__name__}; allowed: a Protocol or a MoleculeProtocol")
    if protocol.task == "csp":
        return _csp(source, reference, protocol, seed, k, processes, root)
    return _ab_initio(source, reference, protocol, seed, root)


def _molecules(
    source: Any, reference: Any, protocol: MoleculeProtocol, seed: int, processes: int | None, root: Any
) -> Report:
    from evaluation.molecules.inputs import gather_molecules, load_molecules
    from evaluation.molecules.score import score

    against = None if reference is None else load_molecules(reference, root)
    items = load_molecules(source, root) if names_data_set(source) else gather_molecules(source)
    numbers, rows, failures = score(items, against, protocol, processes, seed)
    name = "none" if against is None else against.name
    return Report(protocol, numbers, rows, name, seed, versions(protocol), failures)


def _csp(
    source: Any, reference: Any, protocol: Protocol, seed: int, k: int | None, processes: int | None, root: Any
) -> Report:
    from evaluation.csp import score

    if reference is None:
        allowed = "a data set (mp20, or mp20:val:1000), files or structures"
        raise ValueError(f"reference = None, needed by the protocol {protocol.name}; allowed: {allowed}")
    targets = load_reference(reference, root)
    if isinstance(source, str) and source.startswith("baseline:"):
        items, candidates = _baseline(source, targets, reference, k or 1, seed, root)
    else:
        items = _given(source, root)
        candidates = pair(items, targets.ids, k)
    numbers, rows, failures = score(items, targets, candidates, protocol, processes, seed)
    return Report(protocol, numbers, rows, targets.name, seed, versions(protocol), failures)


def _ab_initio(source: Any, reference: Any, protocol: Protocol, seed: int, root: Any) -> Report:
    from evaluation.distributions import score

    against = None if reference is None else load_reference(reference, root)
    items = _given(source, root)
    numbers, rows, failures = score(items, against, protocol, seed)
    name = "none" if against is None else against.name
    return Report(protocol, numbers, rows, name, seed, versions(protocol), failures)


def _given(source: Any, root: Any) -> Items:
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
    if isinstance(protocol, MoleculeProtocol):
        packages += [name for name, used in (("posebusters", protocol.posebusters), ("tblite", protocol.gfn2)) if used]
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if isinstance(protocol, Protocol):
        found["oxidation states"] = f"{protocol.composition.table} of {table_source().split(' (')[0]}"
    return found
