"""What a page shows of a report: its rows as columns that can be sorted and filtered, and its distributions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evaluation.compositions.smact import batch_counts
from evaluation.page.charts import Histogram
from evaluation.page.drawings import drawings, element_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.ragged import RaggedBatch

Row = Mapping[str, Any]
MOST_CHOICES = 12  # different texts of a column that are chosen from a list; of more, one types a part
HULL, HULL_MARKS = "above_hull", (0.0, 0.05, 0.1)
UNITS = {"density": "g/cm³", "volume_error": "|ΔV| / V", "num_elements": "elements", "atoms": "atoms", HULL: "eV/atom"}
UNITS |= {"e_hull_as_made": "eV/atom", "rmsd": "Å", "relaxation_steps": "steps"}
WORDS = {HULL: "energy above hull", "num_elements": "number of elements", "atoms": "number of atoms"}
ON_CARDS = (HULL, "rms", "error", "strain", "density", "atoms")  # the first three of these that there are
COUNTERS = ("candidate", "target_atoms", "space_group")  # numbers that are no quantity of the structure: no charts


class Column(NamedTuple):
    """A column of the rows; kind: number, flag (true or false), choice (one of `choices`) or text."""

    name: str
    kind: str
    choices: list[str]
    card: bool


def described(batch: RaggedBatch) -> list[dict[str, Any]]:
    """Formula, elements, their number, number of atoms and, of crystals, density in g/cm^3 of each of a batch."""
    from evaluation.csp import formulas
    from evaluation.validity import densities

    crystal = "lattice" in batch.fields
    names = formulas(batch) if crystal else _hill(batch)
    rows: list[dict[str, Any]] = []
    for name, counts, atoms in zip(names, batch_counts(batch), batch["num_atoms"].tolist(), strict=True):
        system = sorted(_symbol(z) for z, _ in counts)
        rows.append({"formula": name, "elements": "-".join(system), "num_elements": len(system), "atoms": atoms})
    if crystal:
        for row, density in zip(rows, densities(batch).tolist(), strict=True):
            row["density"] = density
    return rows


def _symbol(z: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"?{z}"


def _hill(batch: RaggedBatch) -> list[str]:
    """The formula of each molecule: C, H, then the alphabet."""
    from ase.formula import Formula

    cuts = batch["ptr"][1:-1].tolist()
    atoms = np.split(batch["atomic_numbers"].cpu().numpy(), cuts) if len(batch) else []
    return [Formula.from_list([_symbol(z) for z in one.tolist()]).format("hill") for one in atoms]


def merged(rows: Sequence[Row], place: Sequence[int | None], about: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with what `about` says of their structures where they do not say it themselves."""
    told: list[Row] = [{} if at is None else about[at] for at in place]
    return [{**row, **{k: v for k, v in extra.items() if k not in row}} for row, extra in zip(rows, told, strict=True)]


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns in which any row has a value, in the order of the rows' own."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    values = {name: [v for v in map(plain, column) if v is not None] for name, column in found.items()}
    known = [name for name in values if values[name]]
    shown = [name for wanted in ON_CARDS for name in known if name == wanted or (wanted == HULL and HULL in name)]
    return [_column(name, values[name], name in shown[:3]) for name in known]


def _column(name: str, values: list[Any], card: bool) -> Column:
    if all(isinstance(v, bool) for v in values):
        return Column(name, "flag", [], card)
    if all(isinstance(v, (int, float)) for v in values):
        return Column(name, "number", [], card)
    texts = sorted({str(v) for v in values})
    few = len(texts) <= MOST_CHOICES and len(texts) < len(values)
    return Column(name, "choice" if few else "text", texts if few else [], card)


def plain(value: Any) -> Any:
    """A value of a row as JSON has it, numbers to six digits; None for "" and what is not finite."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value) or None


def gallery(rows: Sequence[Row], place: Sequence[int | None], batch: RaggedBatch, most: int) -> dict[str, Any]:
    """Columns, rows, structures and elements of the first `most` rows, as plain data."""
    there, drawn = columns(rows), [at for at in place[:most] if at is not None]
    pictures = dict(zip(drawn, drawings(batch, drawn), strict=True))
    kinds = {column.name: column.kind for column in there}
    return {
        "columns": [column._asdict() for column in there],
        "rows": [[_cell(row.get(name), kind) for name, kind in kinds.items()] for row in rows[:most]],
        "structures": ["not readable" if at is None else pictures[at] for at in place[:most]],
        "elements": element_table(batch),
    }


def _cell(value: Any, kind: str) -> Any:
    value = plain(value)
    return value if value is None or kind in ("flag", "number") else str(value)


def histograms(rows: Sequence[Row], reference: Sequence[Row] | None) -> list[Histogram]:
    """One for each column of numbers that differ, beside the reference where that has the column too."""
    charts = []
    for name in (column.name for column in columns(rows) if column.kind == "number"):
        ours, theirs = _numbers(rows, name), None if reference is None else _numbers(reference, name)
        if name in COUNTERS or len(np.unique(ours[np.isfinite(ours)])) < 2:
            continue
        hull = HULL in name
        known = theirs is not None and bool(np.isfinite(theirs).any())
        unit = UNITS.get(HULL if hull else name, "")
        charts.append(Histogram(words(name), unit, ours, theirs if known else None, HULL_MARKS if hull else ()))
    first = [words(name) for name in (HULL, "density", "num_elements", "atoms")]
    return sorted(charts, key=lambda chart: first.index(chart.title) if chart.title in first else len(first))


def words(name: str) -> str:
    """The name of a column or number in words."""
    return WORDS.get(HULL if HULL in name else name, name.replace("_", " "))


def _numbers(rows: Iterable[Row], name: str) -> NDArray[np.float64]:
    values = (plain(row.get(name)) for row in rows)
    return np.array([np.nan if v is None else float(v) for v in values])


def element_shares(rows: Iterable[Row]) -> dict[str, float]:
    """Share of the structures (as `described`) that hold each element."""
    systems = [row["elements"].split("-") for row in rows]
    counts = Counter(symbol for system in systems for symbol in system)
    return {symbol: count / len(systems) for symbol, count in counts.items()}
