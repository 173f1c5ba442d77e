"""Space groups and Wyckoff templates of crystals: most real crystals are symmetric, and many generated ones are not.

A template is the space group and, element by element, the Wyckoff letters of the orbits that it occupies, without
naming the elements: "221 a b c" for perovskites. Letters depend on the choice of the origin; of all choices that the
normaliser of the group allows, the first in the alphabet is taken. Number and multiplicity of the orbits determine the
anonymous formula. Everything depends on the tolerance, which belongs to the name of each number.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from evaluation.protocols import Choices
from evaluation.report import Number, rate
from evaluation.validity import unusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

Backend = Literal["spglib", "moyopy"]
SYSTEMS = {"triclinic": 2, "monoclinic": 15, "orthorhombic": 74, "tetragonal": 142, "trigonal": 167, "hexagonal": 194}
NOT_FOUND = "no symmetry found"


@dataclass(frozen=True)
class Symmetry:
    """Of B crystals at one tolerance in ångström: space_groups (B,) 1..230, 0 where unknown.

    templates (B): empty where unknown. reasons (B): why nothing is known, else empty.
    """

    space_groups: NDArray[np.int64]
    templates: list[str]
    reasons: list[str]
    symprec: float
    backend: str


def symmetry(batch: CrystalBatch, symprec: float = 0.1, backend: Backend = "spglib") -> Symmetry:
    """Space group and template of every crystal at a tolerance in ångström.

    backend: "moyopy", where it is installed, takes an eighth of the time and differs for a few crystals in a hundred.
    Raises ValueError for a tolerance that is not positive and another backend.
    """
    if not symprec > 0:
        raise ValueError(f"symprec = {symprec}, allowed: a positive number of ångström")
    if backend not in get_args(Backend):
        raise ValueError(f"backend = '{backend}', allowed: {', '.join(get_args(Backend))}")
    find = _spglib if backend == "spglib" else _moyopy
    groups, templates, reasons = np.zeros(len(batch), dtype=np.int64), [""] * len(batch), unusable(batch)
    numbers, frac, lattice = (batch[f].cpu().numpy() for f in ("atomic_numbers", "frac_coords", "lattice"))
    ptr = batch["ptr"].tolist()
    for i in range(len(batch)):
        if reasons[i]:
            continue
        atoms = slice(ptr[i], ptr[i + 1])
        found = find(numbers[atoms], frac[atoms], lattice[i], symprec)
        if found is None:
            reasons[i] = NOT_FOUND
        else:
            groups[i], letters, orbits = found
            templates[i] = template(int(groups[i]), numbers[atoms], letters, orbits)
    return Symmetry(groups, templates, reasons, symprec, backend)


def template(space_group: int, numbers: NDArray[np.int64], letters: list[str], orbits: NDArray[Any]) -> str:
    """The template of atoms (N,) with their Wyckoff letters and the number of their orbits."""
    of: dict[int, list[str]] = defaultdict(list)
    for first in np.unique(orbits, return_index=True)[1]:
        of[int(numbers[first])].append(letters[first])
    elements = ["".join(letters) for letters in of.values()]
    renamed = (["".join(sorted(e.translate(table))) for e in elements] for table in _renamings()[space_group])
    return f"{space_group} " + " ".join(min(sorted(names) for names in renamed))


def crystal_systems(space_groups: NDArray[np.int64]) -> NDArray[np.str_]:
    """Crystal system of each space group; "cubic" ends the table, "unknown" stands for 0."""
    names = np.array(["unknown", *SYSTEMS, "cubic"])
    place = 1 + np.searchsorted(list(SYSTEMS.values()), space_groups)
    return names[np.where(space_groups > 0, place, 0)]


def symmetry_health(
    ours: Symmetry, protocol: Choices, reference: Symmetry | None = None, n: int | None = None
) -> list[Number]:
    """Shares of crystals without symmetry beyond translations and of known symmetry, and how many templates there are.

    With a reference, measured at the same tolerance, also how many of the crystals have a template that occurs in it,
    and how many templates do not. Every share is over all n crystals, default those of `ours`.
    """
    if reference is not None and (reference.symprec, reference.backend) != (ours.symprec, ours.backend):
        got, need = (f"{s.symprec} with {s.backend}" for s in (reference, ours))
        raise ValueError(f"reference has symprec {got}, allowed: as the crystals, {need}")
    n, groups = len(ours.templates) if n is None else n, ours.space_groups
    every, note, at = f"all {n} structures", f"{ours.backend}, symprec {ours.symprec:g} Å", f"@{ours.symprec:g}"
    known = {template for template in ours.templates if template}
    numbers = [
        rate(f"p1{at}", int((groups == 1).sum()), n, every, protocol, note),
        rate(f"symmetric{at}", int((groups > 1).sum()), n, every, protocol, note),
        Number(f"templates{at}", float(len(known)), n, every, note=f"distinct templates, {note}"),
    ]
    seen = set() if reference is None else set(reference.templates) - {""}
    if reference is not None:
        note, hits = f"{note}, {len(seen)} templates in the reference", sum(t in seen for t in ours.templates)
        numbers.append(rate(f"known_template{at}", hits, n, every, protocol, note))
        numbers.append(Number(f"new_templates{at}", float(len(known - seen)), n, every, note=note))
    return numbers


Found = tuple[int, list[str], "NDArray[Any]"]  # space group, letter and orbit of every atom


def _spglib(numbers: NDArray, frac: NDArray, lattice: NDArray, symprec: float) -> Found | None:
    import spglib

    try:
        with warnings.catch_warnings(), _without_messages():
            # spglib announces a change of its error handling, on every call
            warnings.simplefilter("ignore", DeprecationWarning)
            found = spglib.get_symmetry_dataset((lattice.tolist(), frac.tolist(), numbers.tolist()), symprec=symprec)
    except spglib.SpglibError:
        return None
    return None if found is None else (found.number, found.wyckoffs, found.crystallographic_orbits)


@contextmanager
def _without_messages() -> Iterator[None]:
    """spglib writes about each tolerance it retreats from; this variable is its own switch."""
    before = os.environ.get("SPGLIB_WARNING")
    os.environ["SPGLIB_WARNING"] = "OFF"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPGLIB_WARNING"]
        else:
            os.environ["SPGLIB_WARNING"] = before


def _moyopy(numbers: NDArray, frac: NDArray, lattice: NDArray, symprec: float) -> Found | None:
    try:
        import moyopy
    except ImportError as error:
        raise ValueError("backend = 'moyopy' is not installed; allowed: spglib, or `pip install moyopy`") from error
    cell = moyopy.Cell(basis=lattice.tolist(), positions=frac.tolist(), numbers=numbers.tolist())
    try:
        found = moyopy.MoyoDataset(cell, symprec=symprec)
    except ValueError:
        return None
    return found.number, found.wyckoffs, np.array(found.orbits)


@cache
def _renamings() -> dict[int, list[dict[int, int]]]:
    """Per space group the ways to rename its Wyckoff letters by another choice of origin, for str.translate."""
    data = json.loads((Path(__file__).parents[1] / "data" / "wyckoff_relabelings.json").read_text(encoding="utf-8"))
    named = data["relabelings"].items()
    return {int(number): [str.maketrans(names[0], name) for name in names] for number, names in named}
