"""Ship a training run: weights in bf16 under a name, and a card that says what they are.

    python -m checkpoints.cards runs/diffcsp-mp20-csp diffcsp-mp20-csp --command "atomsmith train ..." \\
        --hardware "2 cores of ..., CPU only" --hours 1.8

`python -m benchmarks.cards NAME`, of a model of molecules `python -m benchmarks.molecules NAME`, measures what is
shipped and fills the section "Measured" of its card.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.manifest import (
    CARD,
    HASHES,
    MANIFEST,
    SHIPPED,
    WEIGHTS,
    digest,
    read_hashes,
    register,
    to_json,
)
from chem.output import write_together
from chem.qm9 import TRAIN_ELEMENTS
from chem.statistics import Statistics

MEASURED, BY_CALLS, ASKED = "Measured", "Match rate against network calls", "Asked for a property"
TASKS = {  # by the task in the config, else by the kind
    "csp": "Predicts crystal structures of a given composition.",
    "ab-initio": "Samples crystals whole: cells of sizes as in training, composition and structure.",
    "geobfn": "Samples molecules, elements and positions, of sizes as in training; their bonds are perceived.",
    "regressor": "Predicts a property of a molecule from its elements and positions.",
}
METHODS = {
    "diffcsp": "Jiao et al., NeurIPS 2023",
    "flowmm": "Miller et al., ICML 2024",
    "crysbfn": "Wu et al., ICLR 2025",
    "geobfn": "Song et al., ICLR 2024",
    "regressor": "after the classifier of Hoogeboom et al., ICML 2022",
}
MEASURES = {"geobfn": "molecules", "regressor": "conditional MODEL"}  # benchmarks, by kind; else cards
PROJECT = "Materials Project data: CC BY 4.0 (Jain et al., APL Mater. 1, 011002, 2013)"
SOURCES = {
    "mp20": f"{PROJECT}; splits: Xie et al., arXiv:2110.06197",
    "mpts52": f"{PROJECT}; splits: Jiao et al., NeurIPS 2023",
    "perov5": "Data: Castelli et al., Energy Environ. Sci. 5, 5814 and 9034 (2012)",
    "carbon24": "Data: Pickard, doi:10.24435/materialscloud:2020.0026/v1, CC BY 4.0",
    "prototypes": "Data: made by the package from ionic radii",
    "qm9": "QM9: CC0 (Ramakrishnan et al., Sci. Data 1, 140022, 2014); split: Hoogeboom et al., ICML 2022",
}


def ship(run: Path, name: str, command: str, hardware: str, hours: float, which: str, folder: Path = SHIPPED) -> Path:
    """Write checkpoints/NAME from the weights `which` ("best" or "last") of a run, and renew the manifest.

    What was measured of the same weights before stays in the card. folder: where shipped checkpoints are.
    """
    source, place = store.load(run / which, "cpu"), folder / name
    before = read_hashes(place / HASHES).get(WEIGHTS)
    card = (place / CARD).read_text() if before else ""
    kept = {title: text for title in (MEASURED, BY_CALLS, ASKED) if (text := section(card, title)) is not None}
    sha256 = store.save(
        place,
        source.kind,
        source.config,
        source.statistics.to_dict(),
        source.model.state_dict(),
        _card(name, source, run, command, hardware, hours),
        training=source.training,
    )
    if sha256 == before:
        for title, text in kept.items():
            rewrite(place, title, text)
    register(folder)
    return place


def section(card: str, title: str) -> str | None:
    """The text under the heading "## title" of a card, up to the next of its level; None where there is none."""
    found = _find(card, title)
    return card[found.start("body") : found.end("body")].strip("\n") if found else None


def rewrite(folder: Path, title: str, text: str) -> None:
    """Put `text` under the heading "## title" of a checkpoint's card and leave the other sections as they are.

    The hashes saved with the checkpoint follow, and the manifest where its folder has one. A card that lacks the
    section gets it at its end. Raises ValueError for a text with a heading of that level, which would end the section.
    """
    if re.search(r"^##? ", text, re.MULTILINE):
        raise ValueError(f"text of the section '{title}' has a heading of level 1 or 2; allowed: ### and below")
    place = folder / CARD
    card = place.read_text() if place.is_file() else f"# {folder.name}\n"
    found = _find(card, title)
    head, tail = (card[: found.start("body")], card[found.end("body") :]) if found else (f"{card.rstrip()}\n\n", "")
    heading = "" if found else f"## {title}\n"
    end = f"\n{tail}" if tail else ""
    data = f"{head}{heading}\n{text.strip()}\n{end}".encode()
    files = {place: data}
    if hashes := read_hashes(folder / HASHES):
        files[folder / HASHES] = to_json({**hashes, CARD: digest(data)})
    write_together(files)
    if (folder.parent / MANIFEST).is_file():
        register(folder.parent)


def _find(card: str, title: str) -> re.Match[str] | None:
    return re.search(rf"^## {re.escape(title)}\n(?P<body>.*?)(?=^##? |\Z)", card, re.MULTILINE | re.DOTALL)


def _card(name: str, model: Any, run: Path, command: str, hardware: str, hours: float) -> str:
    training, settings = model.training, model.training["settings"]
    parameters = sum(p.numel() for p in model.model.parameters())
    data = training["data"]
    task = TASKS.get(training["config"].get("task", model.kind), "")
    method = f" Method: {METHODS[model.kind]}." if model.kind in METHODS else ""
    named, measures = data["name"].split(":")[0], MEASURES.get(model.kind, "cards")
    source = SOURCES.get(named, f"Data: `{data['name']}`, on the terms of its owner")
    lines = [
        f"# {name}",
        "",
        f"{task} {model.kind}, {parameters:,} parameters, stored in bfloat16.".lstrip(),
        "",
        "## How it was made",
        "",
        f"- data: `{data['name']}` train, {data['structures']:,} structures,"
        f" sha256 `{data['sha256'][:16]}` of the file and the packing options",
        *(_lacking(model.statistics) if named == "qm9" else ()),
        f"- command: `{command}`",
        f"- seed: {training['seed']}",
        f"- hardware and time: {hardware}, {hours:.1f} hours",
        f"- weights: exponential average {_when(training)}",
        f"- settings: {', '.join(f'{k} {v}' for k, v in settings.items())}",
        f"- network: {', '.join(f'{k} {v}' for k, v in training['config'].items())}",
        "",
        "## Loss",
        "",
        *_curves(run),
        "",
        f"## {MEASURED}",
        "",
        f"Nothing yet; `python -m benchmarks.{measures} {name}` fills this section.",
        "",
        "## Licence",
        "",
        f"MIT. {source}.{method}",
        "",
    ]
    return "\n".join(lines)


def _when(training: Mapping[str, Any]) -> str:
    if "val/total" not in training:
        return "at the end of training, not validated there"
    return f"after step {training['step']}, validation loss {training['val/total']:.4f}"


def _lacking(statistics: Statistics) -> list[str]:
    """A line on the fluorine that a copy of QM9 lacks."""
    ours, whole = (counts.get(9, 0) / sum(counts.values()) for counts in (statistics.elements, TRAIN_ELEMENTS))
    if ours > whole / 2:
        return []
    lost = "the copy lacks nearly all molecules with fluorine, and so will samples"
    return [f"- fluorine: {ours:.3%} of the atoms, {whole:.3%} in the whole training set; {lost}"]


def _curves(run: Path) -> list[str]:
    """A table of the loss at every validation, training values being those of the last logged step before it."""
    from generative.loggers import read_curves

    table, last = [], {}
    for row in read_curves(run):
        last.update({k: v for k, v in row.items() if k.startswith("train/")})
        if "val/total" in row:
            table.append((int(row["epoch"]) + 1, dict(last), row))
    fields = sorted(k.removeprefix("val/") for k in table[-1][2] if k.startswith("val/")) if table else []
    head = ["epoch", *[f"val {f}" for f in fields], "train total (one batch)"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for epoch, train, row in table:
        values = [f"{row[f'val/{f}']:.4f}" for f in fields] + [f"{train.get('train/total', float('nan')):.4f}"]
        out.append(f"| {epoch} | " + " | ".join(values) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--command", required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--which", choices=["best", "last"], default="best")
    args = parser.parse_args()
    print(ship(args.run, args.name, args.command, args.hardware, args.hours, args.which))


if __name__ == "__main__":
    main()
