"""The section "Measured" of a card, written from the rows that `benchmarks.judging` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.judging import RANDOM, SUBSTITUTION, Row
from evaluation.csp import LEGACY

TITLES = {SUBSTITUTION: "element substitution from train", RANDOM: "random coordinates in the true cell"}
# what a method's own paper reports, on the test split of the data set: by kind and data set
PAPER_CSP = {("diffcsp", "mp20"): {1: ("51.49", "0.0631"), 20: ("77.93", "0.0492")}}
PAPER_AB_INITIO = {("diffcsp", "mp20"): ("100", "83.25", "0.3502", "0.3398")}
GROUPS = {
    "size": ("By cell size", "atoms in the cell"),
    "substitution": ("By whether element substitution finds the crystal", "which"),
    "formula": ("By whether the formula occurs in train", "formula"),
}
CSP_TEXT = """\
Cells give how many matched, per cent and interval. Every rate is over all targets: a missing, unreadable or too slow \
candidate is a miss. `legacy` counts valid pairs only (for k > 1 valid candidates), as DiffCSP's code does; \
`all` counts every match; `strict` has the tolerances {strict} in place of {loose} \
(ltol, stol, angle). RMSE is over the matched of `all`, in units of (V/N)^(1/3); volume error is |dV|/V before the \
matcher rescales."""
AB_INITIO_TEXT = """\
Cells give how many are valid, per cent and interval. Validities are over all samples asked for; `strict` is the \
structural rule that also refuses what CDVAE's rule overlooks. The distances are 1-Wasserstein distances of density \
(g/cm^3) and number of elements between {samples:,} random valid samples and the whole reference; a draw of that size \
from the reference itself is at the floor."""


def csp(name: str, kind: str, data: str, command: str, parts: Mapping[int, Mapping[str, Row]]) -> str:
    """Section of a model of structure prediction.

    parts: k -> {name: row of the model, SUBSTITUTION: row, RANDOM: row}.
    """
    first = next(iter(parts.values()))
    rules = first[name]["report"]["protocol"]
    loose, strict = (
        " / ".join(f"{rules[matcher][part]:g}" for part in ("ltol", "stol", "angle_tol"))
        for matcher in ("matcher", "strict")
    )
    out = [_head(command, first[name]), CSP_TEXT.format(loose=loose, strict=strict)]
    for k, rows in parts.items():
        targets = rows[name]["report"]["structures"] // k
        paper = PAPER_CSP.get((kind, data), {}).get(k)
        asked = f"{k} candidates for each of" if k > 1 else "one candidate for each of"
        out += [f"### k = {k}: {asked} the first {targets:,} crystals of `{data}` val", _sampling(rows[name])]
        head = ["", "legacy %", "all %", "strict %", "RMSE mean", "RMSE median", "volume error %"]
        table = [[TITLES.get(what, what), *_csp_cells(row, k)] for what, row in rows.items()]
        if paper is not None:
            table.append(["paper, on the test split", paper[0], "", "", paper[1], "", ""])
        out.append(markdown(head, table))
    for by, (title, what) in GROUPS.items():
        out += [f"### {title}, k = {next(iter(parts))}, `all` %", _groups(by, what, first)]
    return "\n\n".join(out)


def ab_initio(name: str, kind: str, data: str, command: str, parts: Mapping[str, Row]) -> str:
    """Section of an ab initio model; parts: {name: row of the model, title: row of the real data set}."""
    row = parts[name]
    numbers = row["report"]["numbers"]
    head = [
        "",
        "structural %",
        "compositional %",
        "both %",
        "structural, strict %",
        "distance, density",
        "distance, elements",
    ]
    names = ("structural_validity", "compositional_validity", "validity", "structural_validity_strict")
    distances = ("wasserstein_density", "wasserstein_num_elements")
    table = [
        [what, *[_percent(r, n) for n in names], *[_decimal(r, n) for n in distances]] for what, r in parts.items()
    ]
    if paper := PAPER_AB_INITIO.get((kind, data)):
        structural, compositional, density, elements = paper
        table.append(["paper, on the test split", structural, compositional, "", "", density, elements])
    asked = row["report"]["structures"]
    text = AB_INITIO_TEXT.format(samples=numbers[distances[0]]["n"])
    floors = "; ".join(f"{n}: {numbers[n]['note']}{_floor(numbers[n])}" for n in distances)
    return "\n\n".join(
        [
            _head(command, row),
            text,
            f"### {asked:,} samples against `{data}` val",
            f"{_sampling(row)} {floors}.",
            markdown(head, table),
        ]
    )


def _head(command: str, row: Row) -> str:
    report = row["report"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    kinds = sorted({n["interval"].split(" of ")[0] for n in report["numbers"].values() if n["interval"] != "none"})
    return (
        f"Command: `{command}`. Protocol {report['protocol']['name']} ({report['protocol']['hash']}), reference"
        f" {report['reference']} (sha256 `{row['key']['data_sha256'][:16]}`), intervals:"
        f" {'; '.join(kinds)}; {versions}."
    )


def _floor(number: Mapping[str, Any]) -> str:
    return "" if number["reference"] is None else f", floor {number['reference']:.3f}"


def _sampling(row: Row) -> str:
    s = row["sampling"]
    corrector = "" if s["corrector"] else ", no corrector"
    failures = "; ".join(f"{count} x {reason}" for reason, count in row["report"]["failures"].items()) or "none"
    return (
        f"Sampler: {s['steps']} steps, {s['network_calls']} network calls{corrector}, {s['products']} products, seed"
        f" {s['seed']}; {s['count']:,} samples took {s['seconds']:.0f} s on {s['device']}, {s['threads']}"
        f" thread{'s' * (s['threads'] != 1)}. Could not be judged: {failures}."
    )


def _csp_cells(row: Row, k: int) -> list[str]:
    rates = [_percent(row, f"match_rate_{variant}@{k}") for variant in (LEGACY, "all", "strict")]
    errors = [_decimal(row, f"{name}_all@{k}") for name in ("rmse", "rmse_median")]
    return [*rates, *errors, _percent(row, f"volume_error@{k}")]


def _groups(by: str, what: str, rows: Mapping[str, Row]) -> str:
    table = []
    for label, first in next(iter(rows.values()))["groups"][by].items():
        table.append([label, str(first["n"]), *[_rate(row["groups"][by][label]) for row in rows.values()]])
    return markdown([what, "targets", *[f"{TITLES.get(name, name)} %" for name in rows]], table)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _percent(row: Row, name: str) -> str:
    n = row["report"]["numbers"][name]
    return interval(n["value"], n["low"], n["high"], 100) if n["hits"] is None else _rate(n)


def _rate(part: Mapping[str, Any]) -> str:
    return f"{part['hits']}: {interval(part['hits'] / part['n'], part['low'], part['high'], 100)}"


def _decimal(row: Row, name: str) -> str:
    n = row["report"]["numbers"][name]
    return interval(n["value"], n["low"], n["high"], 1)


def interval(value: Any, low: Any, high: Any, scale: float) -> str:
    """A value and its interval, None where there is none; scale 100 makes per cent."""
    digits = 1 if scale == 100 else 4
    if value is None:
        return "-"
    if low is None:
        return f"{value * scale:.{digits}f}"
    return f"{value * scale:.{digits}f} ({low * scale:.{digits}f} to {high * scale:.{digits}f})"
