"""Every crystal checkpoint through every metric, beside real crystals: docs/metrics.md and a table of the README.

    python -m benchmarks.rows --n 1000 --samples 500 --steps 100 --bf16        # hours: thousands of relaxations

Protocol `strict`, against the train split. One row judges --n real validation crystals as if they were samples,
the others --samples samples. Models of structure prediction answer for the compositions of the same crystals, so that
their novelty means little.
Samples are those of `benchmarks.cards`, where these are beside --out; samples, relaxations and finished rows are kept,
and what is there is not done again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import atomsmith
from benchmarks.cards import parser
from benchmarks.commands import run
from benchmarks.drawing import ab_initio, draw, predictions
from benchmarks.judging import Results, Row, split
from benchmarks.measured import interval, markdown
from benchmarks.sections import RESULTS, sampler_of, task_of
from checkpoints import LoadedModel
from chem.output import write_atomically
from evaluation.evaluate import evaluate
from evaluation.protocols import protocol
from evaluation.stability.scale import find_scale

PROTOCOL = "strict"
DOCS, README = Path("docs/metrics.md"), Path("README.md")
BEGIN, END = "<!-- benchmarks.rows -->", "<!-- end of benchmarks.rows -->"
SHORT = {
    "structural_validity": "valid structure",
    "compositional_validity": "valid composition",
    "unique": "unique",
    "novel": "novel",
    "stable@0.1": "stable, 0.1 eV/atom",
    "sun@0": "S.U.N.",
    "msun@0.1": "M.S.U.N., 0.1 eV/atom",
    "e_above_hull": "mean eV/atom above the hull",
    "rmsd_to_relaxed": "RMSD to relaxed, Å",
    "p1@0.1": "P1",
    "coverage_recall": "coverage, recall",
    "coverage_precision": "coverage, precision",
}


class Rows:
    """One run of the command: its options, and the rows that are there already."""

    def __init__(self, options: argparse.Namespace, data: str = "mp20"):
        self.options, self.data = options, data
        self.results = Results(options.out / RESULTS)
        rules, scale = find_scale(protocol(PROTOCOL))  # type: ignore[arg-type]
        self.key = {
            "reference": f"{data}:train",
            "data_sha256": split(data, "train").sha256,
            "seed": options.seed,
            "protocol_hash": rules.hash,
            "scale": dict(scale.versions),
        }

    def real(self) -> Row:
        """The row of validation crystals."""
        name = f"{self.data}:val:{self.options.n}"
        return self.results.part({"what": name, **self.key}, partial(self._judge, name, "real", self.options.n))

    def of(self, loaded: LoadedModel) -> Row | None:
        """The row of a model; None where it makes no crystals."""
        o, task = self.options, task_of(loaded)
        if task is None:
            return None
        sampler = sampler_of(loaded, o)
        if task == "csp":
            plan, label = predictions(split(self.data, "val"), 1), f"csp-{self.data}-k1"
            what = f"1 for each of {self.data}:val"
        else:
            plan, label, what = ab_initio(loaded, o.seed), "ab-initio", "ab initio"
        place = o.out.parent / "cards" / loaded.sha256[:12] / f"{label}-{sampler.label}"

        def compute() -> Row:
            made = draw(loaded, plan, o.samples, sampler, place, what, o.batch_size).structures
            return self._judge(made, loaded.sha256[:12], o.samples)

        return self.results.part({"what": loaded.sha256, **self.key, "n": o.samples, **vars(sampler)}, compute)

    def _judge(self, what: Any, name: str, n: int) -> Row:
        out = self.options.out / f"{name}-{n}"
        report = evaluate(
            what, f"{self.data}:train", PROTOCOL, out, self.options.seed, processes=self.options.processes
        )
        return {"report": report.as_dict()}


def page(rows: Mapping[str, Row], command: str) -> str:
    """All numbers, a row each."""
    first = next(iter(rows.values()))["report"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    names = list(dict.fromkeys(name for row in rows.values() for name in row["report"]["numbers"]))
    table = [
        [name.replace("_", " "), *[_cell(row, name) for row in rows.values()], _notes(rows, name)] for name in names
    ]
    failures = [
        f"- {what}: " + ("; ".join(f"{n} x {why}" for why, n in row["report"]["failures"].items()) or "none")
        for what, row in rows.items()
    ]
    told = f"Command: `{command}`. Protocol {first['protocol']['name']} ({first['protocol']['hash']}), reference"
    parts = [
        "# Every metric",
        f"{told} {first['reference']}; {versions}. Rates are per cent, with their intervals.",
        markdown(["", *rows, "of"], table),
        "What could not be judged, and stays in the denominators:",
        "\n".join(failures),
    ]
    return "\n\n".join(parts) + "\n"


def short(rows: Mapping[str, Row]) -> str:
    """The table of the README."""
    return markdown(
        ["", *rows], [[title, *[_cell(row, name) for row in rows.values()]] for name, title in SHORT.items()]
    )


def _cell(row: Row, name: str) -> str:
    n = row["report"]["numbers"].get(name)
    if n is None:
        return ""
    return interval(n["value"], n["low"], n["high"], 1 if n["hits"] is None else 100)


def _notes(rows: Mapping[str, Row], name: str) -> str:
    found = next(row["report"]["numbers"][name] for row in rows.values() if name in row["report"]["numbers"])
    # the counts are of the first column alone
    denominator = re.sub(r"all \d+ structures|\d+ of \d+ structures|\d+ structures", "structures", found["denominator"])
    return "; ".join(filter(None, (denominator, found["note"])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, and write the page and the README's table (or print them with --show)."""
    return run(parser("rows", __doc__, "runs/rows"), arguments, write)


def write(options: argparse.Namespace) -> None:
    """The work of the command."""
    judge = Rows(options)
    rows = {f"{options.n:,} of {judge.data} val": judge.real()}
    for name in options.names or atomsmith.models():
        row = judge.of(atomsmith.load(name))
        if row is not None:
            rows[f"{name}, {options.samples:,}"] = row
    sizes = f"--n {options.n} --samples {options.samples}" + f" --steps {options.steps}" * (options.steps is not None)
    text, table = page(rows, f"python -m benchmarks.rows {sizes}" + " --bf16" * options.bf16), short(rows)
    if options.show:
        print(text, table, sep="\n")
        return
    write_atomically(DOCS, text)
    before, _, rest = README.read_text().partition(BEGIN)
    write_atomically(README, f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
