"""What an evaluation found: numbers that name their protocol, denominator and interval, and one row per structure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chem.output import write_together
from evaluation.intervals import bootstrap, wilson
from evaluation.protocols import Choices

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

REPORT_FILE, ROWS_FILE, PAGE_FILE = "report.json", "structures.csv", "report.html"


@dataclass(frozen=True)
class Number:
    """One measured number.

    n: how many things it is over, which `denominator` names. hits: of a rate, how many of them. low, high: interval,
    by the method `interval` names; NaN where there is none. error: bootstrap standard error. reference: what the
    reference set itself scores, NaN where that is not known.
    """

    name: str
    value: float
    n: int
    denominator: str
    hits: int | None = None
    low: float = math.nan
    high: float = math.nan
    interval: str = "none"
    error: float = math.nan
    note: str = ""
    reference: float = math.nan


def rate(name: str, hits: int, n: int, denominator: str, protocol: Choices, note: str = "") -> Number:
    """A proportion with its Wilson interval; NaN for n = 0."""
    low, high = wilson(hits, n, protocol.level)
    how = f"Wilson {protocol.level:.0%}"
    return Number(name, hits / n if n else math.nan, n, denominator, hits, low, high, how, note=note)


def mean(
    name: str, values: NDArray[np.float64], denominator: str, protocol: Choices, seed: int, note: str = ""
) -> Number:
    """A mean (n,) with its bootstrap interval; NaN for n = 0."""
    if not len(values):
        return Number(name, math.nan, 0, denominator, note=note)
    (low, high), error = bootstrap(values, resamples=protocol.resamples, level=protocol.level, seed=seed)
    how = f"bootstrap {protocol.level:.0%}, {protocol.resamples} resamples, seed {seed}"
    return Number(name, float(values.mean()), len(values), denominator, None, low, high, how, error, note)


def median(name: str, values: NDArray[np.float64], denominator: str, protocol: Choices, seed: int) -> Number:
    """A median (n,) with its bootstrap interval; NaN for n = 0."""
    import numpy as np

    def middle(drawn: NDArray[np.float64]) -> float:
        return float(np.median(drawn))

    if not len(values):
        return Number(name, math.nan, 0, denominator)
    (low, high), error = bootstrap(values, middle, protocol.resamples, protocol.level, seed)
    how = f"bootstrap {protocol.level:.0%}, {protocol.resamples} resamples, seed {seed}"
    return Number(name, middle(values), len(values), denominator, None, low, high, how, error)


@dataclass(frozen=True)
class Report:
    """Result of `evaluate`: `report["match_rate_all@1"]` is a Number; rows are one dict per structure.

    failures: reason -> how many structures could not be judged, all of which stay in the denominators. label: what the
    protocol is called where it is not quite what its name stands for.
    """

    protocol: Choices
    numbers: Sequence[Number]
    rows: Sequence[Mapping[str, Any]]
    reference: str
    seed: int
    versions: Mapping[str, str]
    failures: Mapping[str, int] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """The protocol as it is quoted: its label, else its name."""
        return self.label or self.protocol.name

    def __getitem__(self, name: str) -> Number:
        for number in self.numbers:
            if number.name == name:
                return number
        raise KeyError(f"no number '{name}'; there are: {', '.join(n.name for n in self.numbers)}")

    def as_dict(self) -> dict[str, Any]:
        """Everything but the rows as plain data, each number with its protocol and versions; NaN becomes None."""
        origin = {"protocol": self.name, "protocol_hash": self.protocol.hash, "versions": dict(self.versions)}
        numbers = {n.name: _plain({**asdict(n), **origin}) for n in self.numbers}
        protocol = {**self.protocol.as_dict(), "name": self.name}
        head = {"protocol": protocol, "reference": self.reference, "seed": self.seed}
        counted = {"versions": dict(self.versions), "structures": len(self.rows), "failures": dict(self.failures)}
        return {**head, **counted, "numbers": numbers}

    def table(self) -> Table:
        """The numbers as a rich table, titled by protocol and reference."""
        from rich.markup import escape
        from rich.table import Table

        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        title = f"{self.name} ({self.protocol.hash}), reference: {self.reference}"
        failed = "; ".join(f"{count} x {reason}" for reason, count in self.failures.items())
        caption = f"{versions}; seed {self.seed}; failures: {failed or 'none'}"
        table = Table(title=escape(title), caption=escape(caption))
        beside = any(not math.isnan(n.reference) for n in self.numbers)
        for column in ("number", "value", *(["reference"] if beside else []), "interval", "of"):
            table.add_column(column, justify="left" if column in ("number", "of") else "right", overflow="fold")
        for n in self.numbers:
            form = percent if n.hits is not None else decimal
            interval = "" if math.isnan(n.low) else f"{form(n.low)} .. {form(n.high)}"
            of = n.denominator if n.hits is None else f"{n.hits} of {n.denominator}"
            values = [form(n.value), form(n.reference)] if beside else [form(n.value)]
            table.add_row(n.name.replace("_", " "), *values, interval, escape(f"{of}; {n.note}" if n.note else of))
        return table

    def show(self) -> None:
        """Print the table."""
        from rich.console import Console

        Console().print(self.table())

    def write(self, out: str | Path) -> None:
        """report.json and structures.csv into the folder `out`, both whole or neither; replaces an older report."""
        folder = prepare_folder(out)
        buffer = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(buffer, names)
        writer.writeheader()
        writer.writerows(_plain(row) for row in self.rows)
        content = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        write_together({folder / ROWS_FILE: buffer.getvalue(), folder / REPORT_FILE: content})
        (folder / PAGE_FILE).unlink(missing_ok=True)  # it would show the older report


def prepare_folder(out: str | Path) -> Path:
    """The folder `out`, made if it is missing; raises ValueError where it cannot be."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out = '{out}' cannot be used ({error.strerror}); allowed: a folder or a new path") from error
    return folder


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def percent(value: float) -> str:
    """A share in per cent, "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def decimal(value: float) -> str:
    """A number to four decimals, "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.4f}"
