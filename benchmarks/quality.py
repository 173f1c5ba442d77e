"""docs/quality.md and docs/quality.png, written from the series of `benchmarks.curves`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.curves import VARIANTS, Estimate, Point, Series, difference, enough, fewest, pairs
from chem.output import write_together
from evaluation.csp import LEGACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "quality.png"
TITLES = {LEGACY: "legacy", "all": "all", "strict": "strict"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")  # Okabe and Ito
HEAD = """\
# Quality, measured

What was measured to choose how models are sampled, written by `python -m benchmarks.calls` and `.slopes`. Nothing \
here was measured on a test split."""
LEGEND = """\
One candidate for each of the first validation crystals, the same for all. `legacy` counts valid pairs only, `all` \
every match, `strict` those within the strict tolerances; RMSE is over \
the matched of `all`, in units of (V/N)^(1/3). Intervals of 95 %: of rates Wilson's, of RMSE, and of models with \
several seeds, by bootstrap of the targets. Differences are paired: both models on the same targets, which are drawn \
anew."""
PARTS = ("calls", "slopes", "rank", "ab-initio")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def percent(found: Estimate, sign: str = "") -> str:
    """Value and interval in per cent."""
    value, (low, high) = found
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def rates(series: Sequence[Series]) -> str:
    """All points."""
    head = ["model, sampler", "network calls", "steps", "targets", *[f"{TITLES[v]} %" for v in VARIANTS], "RMSE"]
    rows = []
    for one in series:
        for p in one.points:
            rmse = p.rmse()
            error = "-" if rmse is None else f"{rmse[0]:.4f} ({rmse[1][0]:.4f} to {rmse[1][1]:.4f})"
            counts = [str(p.taken), str(p.steps), f"{p.targets:,}"]
            rows.append([one.title, *counts, *[percent(p.rate(v)) for v in VARIANTS], error])
    return table(head, rows)


def differences(series: Sequence[Series], variant: str, across: bool, of: str | None = None) -> str:
    """Paired differences of every two series at the calls both have; empty where there are no two.

    of: only those of this model and another.
    """
    calls = sorted({p.calls for one in series for p in one.points})
    rows = []
    for a, b in pairs(series, across):
        if of is not None and (a.model == b.model or of not in (a.model, b.model)):
            continue
        there = [(a.at(c), b.at(c)) for c in calls]
        cells = ["" if p is None or q is None else percent(difference(p, q, variant), "+") for p, q in there]
        if any(cells):
            rows.append([f"{a.title} - {b.title}", *cells])
    return table([f"`{TITLES[variant]}`, points of per cent", *[f"{c} calls" for c in calls]], rows) if rows else ""


def equals(series: Sequence[Series], variant: str) -> str:
    """Fewest calls with which each series equals the longest run of another model's; empty for one model."""
    rows = []
    for a in series:
        for b in series:
            if a.model == b.model or not a.points or not b.points:
                continue
            goal = b.points[-1]
            found = fewest(a, goal, variant)
            row = [a.title, f"{b.title}, {goal.taken} calls"]
            if found is None:
                rows.append([*row, "not reached", "", ""])
            else:
                share = f"1/{goal.taken / found[0].taken:.3g}"
                rows.append([*row, str(found[0].taken), share, percent(found[1], "+")])
    head = ["model, sampler", "equals", f"with network calls (`{TITLES[variant]}`)", "share", "difference"]
    return table(head, rows) if rows else ""


def sufficient(series: Sequence[Series]) -> str:
    """The fewest calls of each series that are not surely worse than its best."""
    rows = []
    for one in series:
        found: list[Point] = [enough(one, v) for v in VARIANTS]
        rows.append([one.title, *[f"{p.taken} ({p.steps} steps)" for p in found]])
    return table(["model, sampler", *[f"enough by `{TITLES[v]}`" for v in VARIANTS]], rows)


def calls_section(series: Sequence[Series], heading: str, head: str) -> str:
    """Rates against calls and everything that is read off them."""
    parts = [f"## {heading}", head, LEGEND, f"![{heading}]({PICTURE})", rates(series)]
    found = [text for v in ("all", LEGACY) if (text := differences(series, v, across=True))]
    parts += ["### Differences, paired", *found] if found else []
    found = [text for v in ("all", LEGACY) if (text := equals(series, v))]
    parts += ["### Network calls that equal another model's longest run", *found] if found else []
    parts += ["### Fewest calls that are not surely worse than the best of the row", sufficient(series)]
    return "\n\n".join(parts)


def card_section(series: Sequence[Series], model: str, head: str, page: str) -> str:
    """What the card of one model says of it; page: where all of them are."""
    own = [one for one in series if one.model == model]
    parts = [head, LEGEND, rates(own), f"All models beside each other, and the picture: [{page}]({page})."]
    found = [text for v in ("all", LEGACY) if (text := differences(series, v, across=True, of=model))]
    return "\n\n".join([*parts, *(["### Differences, paired", *found] if found else [])])


def slopes_section(series: Sequence[Series], heading: str, head: str) -> str:
    """Rates for each slope of the coordinates' velocity."""
    found = [text for v in ("all", LEGACY, "strict") if (text := differences(series, v, across=False))]
    return "\n\n".join([f"## {heading}", head, LEGEND, rates(series), *found])


def plot_calls(series: Sequence[Series], variant: str, ax: Axes) -> Axes:
    """Match rate against network calls, with intervals, on the given axes."""
    for i, one in enumerate(series):
        calls = [p.taken for p in one.points]
        found = [p.rate(variant) for p in one.points]
        middle = [100 * value for value, _ in found]
        low, high = ([100 * abs(value - ends[side]) for value, ends in found] for side in (0, 1))
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": "osv^Dx"[i % 6],
            "ms": 4,
            "lw": 1.3,
            "capsize": 2,
        }
        ax.errorbar(calls, middle, yerr=[low, high], label=one.title, **style)
    ax.set(xscale="log", xlabel="network calls", ylabel=f"match rate, k = 1, {TITLES[variant]} / %")
    asked = sorted({p.calls for one in series for p in one.points})
    ax.set_xticks(asked, [str(c) for c in asked], minor=False)
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
    return ax


def picture(series: Sequence[Series]) -> bytes:
    """The curves of `all` and `legacy` side by side, PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, variant in zip(axes, ("all", LEGACY), strict=True):
        plot_calls(series, variant, ax)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png", metadata={"Software": None})
    return data.getvalue()


def write(folder: Path, kept: Path, part: str, text: str, draw: Callable[[], bytes] | None = None) -> Path:
    """Keep the section of a part in `kept`, and write quality.md from all parts there, and the picture, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {p: (kept / f"{p}.md").read_text() for p in PARTS if (kept / f"{p}.md").is_file()} | {part: text}
    page = "\n\n".join([HEAD, *[texts[p].strip() for p in PARTS if p in texts]]) + "\n"
    files: dict[Path, bytes | str] = {kept / f"{part}.md": text + "\n", folder / "quality.md": page}
    write_together(files if draw is None else {**files, folder / PICTURE: draw()})
    return folder / "quality.md"
