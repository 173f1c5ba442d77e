"""The section "Measured" of a card of molecules, written from the rows that `benchmarks.molecules` makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.judging import Row
from benchmarks.measured import interval, markdown
from chem.datasets import MoleculeDataset
from chem.qm9 import TRAIN, TRAIN_ELEMENTS

EDM, STRICT = PROTOCOLS = ("edm-qm9", "edm-qm9-strict")
COLUMNS = {  # of the table: the number of a protocol behind it
    "atoms stable %": (EDM, "atom_stability"),
    "molecules stable %": (EDM, "molecule_stability"),
    "valid %": (EDM, "validity"),
    "valid and unique %": (EDM, "valid_and_unique"),
    "and novel %": (EDM, "valid_unique_and_novel"),
    "connected %": (EDM, "connected"),
    "strict: molecules stable %": (STRICT, "molecule_stability"),
    "strict: valid %": (STRICT, "validity"),
}
DISTANCES = ("bond_length", "bond_angle", "torsion", "pair_distance", "element", "num_atoms")
MEASURES = ("wasserstein", "jsd", "mmd")
# what papers report of 10,000 samples: atoms stable, molecules stable, valid, valid and unique, in per cent
PAPERS: dict[str, Sequence[tuple[str, int, str]]] = {
    "qm9": (
        ("EDM, paper", 1000, "98.7 82.0 91.9 90.7"),
        ("GeoBFN, paper", 50, "98.28 85.11 92.27 90.72"),
        ("GeoBFN, paper", 100, "98.64 87.21 93.03 91.53"),
        ("GeoBFN, paper", 500, "98.78 88.42 93.35 91.78"),
        ("GeoBFN, paper", 1000, "99.08 90.87 95.31 92.96"),
    )
}
DATA_ROW = {"qm9": "99.0 95.2 97.7 97.7"}
TEXT = """\
Every rate is over all samples, as the model draws them, of sizes drawn from the training set's: what cannot be \
judged is unstable and invalid. First: EDM's bonds by distance, valences, and validity of the largest fragment. \
`strict`: perceived bonds, corrected valences, one fragment without radicals. Novel: SMILES not among those of the \
training molecules by the same rule. Beside: the training set's own score, uniqueness over a draw of as many as the \
default row has. Unique and novel fall with the number drawn; only rows of as many samples compare."""
LACKING = """\
The copy of {data} that this was trained and measured on has {here:,} of {whole:,} training molecules and {fluorine:,} \
of {all_fluorine:,} fluorine atoms: nearly all molecules with fluorine are absent, and samples have too little of it. \
Distances of elements and sizes are therefore those to the published histograms of the whole training set. If none of \
the absent molecules were stable, or all, the stable share of the whole would be {low:.1f} or {high:.1f} %."""


def section(kind: str, train: MoleculeDataset, command: str, rows: Mapping[int, Row], default: int) -> str:
    """Section of a model; rows: number of steps -> row."""
    head = ["", "steps", "network calls", "samples", *COLUMNS, "ms per sample"]
    ours = [_cells(kind, steps, row) for steps, row in rows.items()]
    beside = [["training set", "", "", f"{len(train):,}", *_reference(rows[default]), ""]]
    if train.name in PAPERS:
        blank = [""] * (len(COLUMNS) - 4 + 1)
        beside += [["training set, papers", "", "", "", *DATA_ROW[train.name].split(), *blank]]
        beside += [[who, f"{n:,}", "", "10,000", *found.split(), *blank] for who, n, found in PAPERS[train.name]]
    at_default = rows[default]["reports"][EDM]
    parts = [
        _head(command, rows[default], train),
        TEXT,
        *_missing(train, at_default),
        f"### Against the number of steps; {default} is the default",
        markdown(head, ours + beside),
        f"### Distances to the training set, {default} steps",
        f"{at_default['numbers']['wasserstein_bond_length']['denominator']}; in brackets the interval, then the floor:"
        " what as many molecules of the training set have.",
        markdown(["", *MEASURES], [[name, *(_distance(at_default, m, name) for m in MEASURES)] for name in DISTANCES]),
    ]
    return "\n\n".join(parts)


def _head(command: str, row: Row, train: MoleculeDataset) -> str:
    rules = ", ".join(f"{name} ({row['reports'][name]['protocol']['hash']})" for name in PROTOCOLS)
    versions = ", ".join(f"{name} {version}" for name, version in row["reports"][EDM]["versions"].items())
    sampling, failed = row["sampling"], row["reports"][STRICT]["failures"].items()
    failures = "; ".join(f"{count} x {reason}" for reason, count in failed) or "none"
    return (
        f"Command: `{command}`. Protocols {rules}; reference {row['reports'][EDM]['reference']} (sha256"
        f" `{train.sha256[:16]}`); {versions}; drawn on {sampling['device']}, {sampling['threads']}"
        f" thread{'s' * (sampling['threads'] != 1)}. Could not be judged at the default: {failures}."
    )


def _missing(train: MoleculeDataset, report: Row) -> list[str]:
    """What a copy of QM9 lacks, if it lacks anything."""
    lost = TRAIN - len(train)
    if train.name != "qm9" or not lost:
        return []
    stable = report["numbers"]["molecule_stability"]["reference"] * len(train)
    values: dict[str, Any] = {"data": train.name, "here": len(train), "whole": TRAIN, "all_fluorine": TRAIN_ELEMENTS[9]}
    fluorine = int((train.batch["atomic_numbers"] == 9).sum())
    shares = {"low": 100 * stable / TRAIN, "high": 100 * (stable + lost) / TRAIN}
    return [LACKING.format(**values, fluorine=fluorine, **shares)]


def _cells(kind: str, steps: int, row: Row) -> list[str]:
    sampling, n = row["sampling"], row["reports"][EDM]["structures"]
    pace = f"{1000 * sampling['seconds'] / sampling['drawn']:.0f}" if sampling["drawn"] else "-"
    rates = [_rate(row["reports"][p]["numbers"][name]) for p, name in COLUMNS.values()]
    return [kind, f"{steps:,}", f"{sampling['network_calls']:,}", f"{n:,}", *rates, pace]


def _rate(number: Mapping[str, Any]) -> str:
    return interval(number["value"], number["low"], number["high"], 100)


def _reference(row: Row) -> list[str]:
    values = [row["reports"][p]["numbers"][name]["reference"] for p, name in COLUMNS.values()]
    return ["" if value is None else f"{100 * value:.1f}" for value in values]


def _distance(report: Row, measure: str, name: str) -> str:
    number = report["numbers"].get(f"{measure}_{name}")
    if number is None or number["value"] is None:
        return "-"
    floor = number["reference"]
    return f"{interval(number['value'], number['low'], number['high'], 1)}, {math.nan if floor is None else floor:.4f}"
