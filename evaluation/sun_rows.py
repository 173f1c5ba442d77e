"""One row of structures.csv for each structure that S.U.N. was asked of, and the relaxed crystals as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chem.output import PART
from evaluation.inputs import Items
from evaluation.protocols import SunProtocol
from evaluation.sun_findings import Findings

RELAXED_FILE = "relaxed.extxyz"
TOLD = ("e_above_hull", "sun", "unique", "novel", "decomposition")  # of a row, in the file of relaxed crystals
Row = dict[str, Any]


def with_findings(
    rows: Sequence[Mapping[str, Any]], found: Findings, protocol: SunProtocol, items: Items, reference: Items
) -> list[Row]:
    """The rows of evaluation.distributions with what was found of those structures that could be read."""
    stable, names = found.stable(protocol), dict(zip(items.place, items.ids, strict=True))
    told = []
    for row, place in zip(rows, items.place, strict=True):
        told.append(dict(row))
        if place is None:
            continue
        first, known = int(found.compared.first[place]), int(found.compared.known[place])
        told[-1] |= {
            "e_above_hull": float(found.above[place]),
            "sun": bool(stable[place] and found.compared.new[place]),
            "stable": bool(stable[place]),
            "unique": bool(found.compared.unique[place]),
            "novel": bool(found.compared.novel[place]),
            "copy_of": "" if first in (-1, place) else names[first],
            "known_as": "" if known < 0 else reference.ids[known],
            **_relaxed(found, place, protocol),
        }
    return told


def _relaxed(found: Findings, i: int, protocol: SunProtocol) -> Row:
    """How crystal i of the batch relaxed."""
    relaxed, mixture = found.relaxed, sorted(found.mixtures[i].items(), key=lambda phase: -phase[1])
    return {
        "decomposition": " + ".join(f"{share:.3g} {formula}" for formula, share in mixture),
        "space_group": int(found.space_groups[i]) or None,
        **({"rmsd": float(found.rmsd[i])} if protocol.rmsd else {}),
        "e_hull_as_made": float(found.initial[i]),
        "relaxation_steps": int(relaxed.steps[i]) if relaxed.tried[i] else None,
        "relaxation": relaxed.reasons[i],
        "not_evaluable": found.unknown[i],
    }


def export(rows: Sequence[Row], found: Findings, items: Items, path: Path) -> None:
    """The relaxed crystals with their total energies in eV, as extxyz: whole, in place of an older file."""
    from chem.convert import to_structures
    from chem.io import Record, write

    of = {place: row for row, place in zip(rows, items.place, strict=True) if place is not None}
    kept = found.relaxed.sound.nonzero()[0].tolist()
    records = []
    for i, structure in zip(kept, to_structures(found.relaxed.batch[kept]), strict=True):
        told = {name: of[i][name] for name in TOLD} | {"energy": float(found.relaxed.energies[i])}
        records.append(Record(structure, of[i]["id"], told))
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        write(records, part, "extxyz", mode="w")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
