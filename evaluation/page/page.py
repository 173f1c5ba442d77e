"""report.html: a report and its structures as one page that works without a network.

The page holds its own style, scripts and data, and its security policy forbids the browser to load anything else.
Structures are drawn by 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322, 2015), which the package ships with its
licence; one viewer makes the pictures of the cards that are in sight, another is moved to the one under the mouse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chem.convert import from_structures
from chem.convert_molecules import from_rdkit
from chem.output import write_together
from evaluation.inputs import Items, gather, load_reference
from evaluation.page import charts, page_data
from evaluation.protocols import ConditionalProtocol, MoleculeProtocol
from evaluation.report import PAGE_FILE, Number, Report, decimal, percent, prepare_folder

if TYPE_CHECKING:
    from chem.ragged import RaggedBatch

MOST = 2000  # structures in the gallery; the charts are of all
EXTRA = "pages need jinja2: pip install 'atomsmith[report]'"


def write_page(report: Report, structures: Any, path: str | Path, reference: Any = None) -> Path:
    """Write the page of a report to a file, or as report.html into a folder; returns the file.

    structures: one for each row of the report, None where there was none, in any form that `evaluate` takes. reference:
    what the distributions stand beside, likewise. Raises ValueError where the number of structures is not that of the
    rows, and ImportError, naming the extra, without jinja2.
    """
    items, against = _items(structures, report), None if reference is None else _reference(reference, report)
    if len(items) != len(report.rows):
        raise ValueError(f"structures has {len(items)} entries, allowed: one for each of {len(report.rows)} rows")
    text = _render(report, items, None if against is None else against.batch)
    place = Path(path).expanduser()
    place = place if place.suffix == ".html" else prepare_folder(place) / PAGE_FILE
    write_together({place: text.encode(errors="replace")})  # a name may hold what is no text
    return place


def _items(structures: Any, report: Report) -> Items:
    if isinstance(structures, Items):
        return structures
    crystals = _of_crystals(report)
    if isinstance(structures, Sequence) and all(one is None for one in structures):
        n = len(structures)
        none = from_structures([]) if crystals else from_rdkit([])
        return Items(none, [None] * n, [""] * n, [None] * n, [""] * n, [""] * n)
    if crystals:
        return gather(structures, "structures")
    from evaluation.molecules.inputs import gather_molecules

    return gather_molecules(structures, "structures")


def _of_crystals(report: Report) -> bool:
    return not isinstance(report.protocol, (MoleculeProtocol, ConditionalProtocol))


def _reference(reference: Any, report: Report) -> Items:
    if isinstance(reference, Items):
        return reference
    if _of_crystals(report):
        return load_reference(reference)
    from evaluation.molecules.inputs import load_molecules

    return load_molecules(reference)


def _render(report: Report, items: Items, against: RaggedBatch | None) -> str:
    template = _environment().get_template("report.html")
    about = page_data.described(items.batch)
    rows = page_data.merged(report.rows, items.place, about)
    theirs = None if against is None else page_data.described(against)
    noun = "structures" if "lattice" in items.batch.fields else "molecules"
    shares = {noun: page_data.element_shares(about[at] for at in items.place if at is not None)}
    if theirs is not None:
        shares["reference"] = page_data.element_shares(theirs)
    top = max((share for one in shares.values() for share in one.values()), default=0.0)
    return template.render(
        report=report,
        numbers=[_number(number) for number in report.numbers],
        beside=any(not math.isnan(number.reference) for number in report.numbers),
        noun=noun,
        charts=page_data.histograms(rows, theirs),
        maps=[(title, charts.periodic_table(one, top)) for title, one in shares.items()],
        top=top,
        most=MOST,
        data=_embedded(page_data.gallery(rows, items.place, items.batch, MOST)),
        asset=_asset,
    )


def _number(number: Number) -> dict[str, Any]:
    """The cells of one row of the summary."""
    form = percent if number.hits is not None else decimal
    bar = charts.interval_bar(number.value, number.low, number.high, number.reference)
    return {
        "name": page_data.words(number.name),
        "value": form(number.value),
        "bar": bar if number.hits is not None else "",
        "interval": f"{form(number.low)} – {form(number.high)}" if not math.isnan(number.low) else "",
        "how": number.interval,
        "reference": form(number.reference),
        "of": number.denominator if number.hits is None else f"{number.hits:,} of {number.denominator}",
        "note": number.note,
    }


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the element of the page that it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (files("evaluation.page") / "web" / name).read_text(encoding="utf-8")


def _environment() -> Any:
    try:
        import jinja2
    except ImportError:
        raise ImportError(EXTRA) from None
    loader = jinja2.FunctionLoader(_asset)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
