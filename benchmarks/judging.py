"""Parts of a card, each judged once: a line of JSON by the hash of the weights and everything else that fixes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from chem import datasets
from chem.output import write_atomically
from evaluation.csp import formulas
from evaluation.evaluate import evaluate
from evaluation.groups import matched, rates_by, size_label
from evaluation.protocols import protocol
from evaluation.report import Report

CSP, AB_INITIO = "diffcsp-csp", "cdvae-2022"
SUBSTITUTION, RANDOM = "baseline:substitution", "baseline:random"
Row = dict[str, Any]


class Results:
    """Lines of JSON in a file that grows; a line that an interruption left torn is dropped."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):
            write_atomically(path, "".join(lines[:-1]))
            lines.pop()
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def part(self, key: Row, compute: Callable[[], Row]) -> Row:
        """The row of this key, computed and added where it is not there."""
        key = json.loads(json.dumps(key))
        for row in self.rows:
            if row["key"] == key:
                return row
        row = {"key": key, **compute()}
        with open(self.path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self.rows.append(row)
        return row


@cache
def split(data: str, name: str) -> datasets.CrystalDataset:
    """A split of a data set, loaded once."""
    return datasets.load(data, name)


@cache
def labels(data: str, n: int) -> dict[str, list[str]]:
    """Size, and whether the formula occurs in train, of the first n validation crystals."""
    targets = split(data, "val").batch[:n]
    known = set(formulas(split(data, "train").batch))
    return {
        "size": [size_label(count) for count in targets["num_atoms"].tolist()],
        "formula": ["seen in train" if f in known else "unseen in train" for f in formulas(targets)],
    }


def csp_key(data: str, n: int, k: int, seed: int) -> Row:
    """What fixes a part of structure prediction but for what is judged."""
    source = {"reference": f"{data}:val:{n}", "data_sha256": split(data, "val").sha256}
    return {**source, "k": k, "seed": seed, "protocol_hash": protocol(CSP).hash}


def judge_csp(what: Any, data: str, n: int, k: int, seed: int, processes: int | None, substitution: str | None) -> Row:
    """Report of structures, or of a baseline, and match rates by group (`all`, best of k).

    substitution: for each target 1 where that baseline matched, else 0; None where it is itself judged.
    """
    report = evaluate(what, f"{data}:val:{n}", CSP, seed=seed, k=k, processes=processes)
    hits = matched(report.rows)
    marks = "".join(str(int(hit)) for hit in hits)
    names = ["substitution misses", "substitution hits"]
    groups = {**labels(data, n), "substitution": [names[int(mark)] for mark in substitution or marks]}
    return {
        "report": report.as_dict(),
        "groups": {by: _rates(hits, of, report) for by, of in groups.items()},
        "matched": marks,
    }


def ab_initio_key(data: str, seed: int) -> Row:
    """What fixes a part of ab initio generation but for what is judged."""
    source = {"reference": f"{data}:val", "data_sha256": split(data, "val").sha256}
    return {**source, "seed": seed, "protocol_hash": protocol(AB_INITIO).hash}


def judge_ab_initio(what: Any, data: str, seed: int) -> Row:
    """Report of structures, or of a data set by name, against the validation split."""
    return {"report": evaluate(what, f"{data}:val", AB_INITIO, seed=seed).as_dict()}


def _rates(hits: np.ndarray, of: Sequence[str], report: Report) -> dict[str, Row]:
    found = rates_by("match_rate_all", hits, of, report.protocol)
    return {label: {"hits": x.hits, "n": x.n, "low": x.low, "high": x.high} for label, x in found.items()}
