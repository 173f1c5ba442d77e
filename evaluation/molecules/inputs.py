"""Molecules that `evaluate` is given, as one batch: files, RDKit molecules, ASE atoms, batches, data sets by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.qm9 import TRAIN_ELEMENTS, TRAIN_SIZES
from evaluation.inputs import Items, from_batch, load_reference
from evaluation.progress import watched

if TYPE_CHECKING:
    from chem.molecules import MoleculeBatch

ALLOWED = "files, folders, RDKit molecules, ASE atoms, records of chem.molecule_files, or a MoleculeBatch"
NEEDED = ("atomic_numbers", "pos")


def gather_molecules(source: Any, argument: str = "structures_or_files") -> Items[MoleculeBatch]:
    """Everything in `source`; raises ValueError when there is nothing, nothing readable, or something else."""
    from chem.convert_molecules import batch_from_arrays

    if hasattr(source, "num_structures"):
        return from_batch(source, [str(i) for i in range(len(source))], argument, needed=NEEDED)
    ids: list[str] = []
    errors, sources, parts = [], [], []
    place: list[int | None] = []
    conditions: list[dict[str, float]] = []
    for one, name, origin, error in watched(_records(source, argument), "reading", failed=lambda one: bool(one[3])):
        if one is not None and not error:
            try:
                parts.append(_arrays(one))
            except ValueError as reason:
                one, error = None, f"cannot be used: {reason}"
        place.append(None if one is None or error else len(parts) - 1)
        ids.append(name if name is not None else str(len(ids)))
        conditions.append({} if one is None else _conditions(one))
        errors.append(error)
        sources.append(origin)
    if not ids:
        raise ValueError(f"{argument} holds no molecules; allowed: {ALLOWED}")
    if not parts:
        where = f"{sources[0]}: " if sources[0] else ""
        raise ValueError(f"{argument}: none of {len(ids)} molecules could be read; the first: {where}{errors[0]}")
    numbers, positions, charges, bonds = zip(*parts, strict=True)
    given = bonds if any(len(order) for _, order in bonds) else None
    batch = batch_from_arrays(numbers, positions, charges if any(q.any() for q in charges) else None, given)
    name = f"{len(ids)} molecules given"
    return Items(batch, place, ids, [None] * len(ids), errors, sources, name, conditions)


def load_molecules(reference: Any, root: str | Path | None = None) -> Items[MoleculeBatch]:
    """What `evaluation.inputs.load_reference` takes, and molecules; of a data set the split train, if it names none.

    That is what novelty is measured against. QM9, of which collections lack molecules, comes with the histograms of
    its whole training set.
    """
    items = load_reference(reference, root, gatherer=gather_molecules, needed=NEEDED, split="train")
    known = {"element": TRAIN_ELEMENTS, "num_atoms": TRAIN_SIZES} if items.name.startswith("qm9 ") else {}
    return replace(items, histograms=known)


def _arrays(one: Any) -> tuple[Any, ...]:
    """atomic_numbers, pos, charges and bonds of an RDKit molecule or ASE atoms."""
    from chem.convert_molecules import from_ase, mol_arrays, mol_bonds

    if hasattr(one, "GetAtoms"):
        charges = np.array([atom.GetFormalCharge() for atom in one.GetAtoms()], dtype=np.int64)
        return (*mol_arrays(one), charges, mol_bonds(one))
    if not len(one):
        raise ValueError("no atoms")
    batch = from_ase([one])
    if not bool(batch["pos"].isfinite().all()):
        raise ValueError("a coordinate is not a finite number")
    numbers, none = batch["atomic_numbers"].numpy(), (np.zeros((0, 2), np.int64), np.zeros(0))
    charges = batch["charges"].numpy() if "charges" in batch.fields else np.zeros_like(numbers)
    return numbers, batch["pos"].numpy(), charges, none


def _conditions(one: Any) -> dict[str, float]:
    """What a molecule says that it was asked for."""
    from chem.molecule_text import get_properties

    said = (get_properties(one) if hasattr(one, "GetAtoms") else one.info).get("conditions")
    return said if isinstance(said, dict) else {}


def _records(source: Any, argument: str) -> Iterator[tuple[Any, str | None, str, str]]:
    """molecule, id, source and error of each thing in `source`."""
    from chem.molecule_files import MoleculeRecord, read_molecules

    if isinstance(source, (str, Path, MoleculeRecord)) or _is_molecule(source):
        source = [source]
    if not isinstance(source, Iterable):
        raise ValueError(f"{argument} is a {type(source).__name__}; allowed: {ALLOWED}")
    for i, one in enumerate(source):
        if isinstance(one, (str, Path)):
            for record in read_molecules(one):
                yield record.molecule, record.id, record.source, record.error or ""
        elif isinstance(one, MoleculeRecord):
            yield one.molecule, one.id, one.source, one.error or ""
        elif _is_molecule(one):
            yield one, None, "", ""
        elif one is None:
            yield None, None, "", "no molecule was given"
        else:
            raise ValueError(f"{argument}[{i}] is a {type(one).__name__}; allowed: {ALLOWED}")


def _is_molecule(one: Any) -> bool:
    return hasattr(one, "GetConformers") or hasattr(one, "get_atomic_numbers")
