"""Ship a training run: weights in bf16 under a name, and a card that says what they are.

    python -m checkpoints.cards runs/diffcsp-mp20-csp diffcsp-mp20-csp --command "atomsmith train ..." \\
        --hardware "2 cores of ..., CPU only" --measured measured.jsonl

`measured` holds lines of `python -m benchmarks.match_rate ... --json measured.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.manifest import SHIPPED, register


def ship(run: Path, name: str, command: str, hardware: str, hours: float, measured: Path | None, which: str) -> Path:
    """Write checkpoints/NAME from the weights `which` ("best" or "last") of a run, and renew the manifest."""
    source = store.load(run / which, "cpu")
    rows = [json.loads(line) for line in measured.read_text().splitlines()] if measured is not None else []
    card = _card(name, source, run, command, hardware, hours, rows)
    store.save(
        SHIPPED / name,
        source.kind,
        source.config,
        source.statistics.to_dict(),
        source.model.state_dict(),
        card,
        training=source.training,
    )
    register()
    return SHIPPED / name


def _card(
    name: str, model: Any, run: Path, command: str, hardware: str, hours: float, rows: list[dict[str, Any]]
) -> str:
    training, settings = model.training, model.training["settings"]
    parameters = sum(p.numel() for p in model.model.parameters())
    lines = [
        f"# {name}",
        "",
        f"{model.kind}, {parameters:,} parameters, stored in bfloat16.",
        "",
        "## How it was made",
        "",
        f"- data: `{training['data']['name']}` train, {training['data']['structures']:,} structures,"
        f" sha256 `{training['data']['sha256'][:16]}` of the file and the packing options",
        f"- command: `{command}`",
        f"- seed: {training['seed']}",
        f"- hardware and time: {hardware}, {hours:.1f} hours",
        f"- weights: exponential average at epoch {training.get('epoch')} of {settings['epochs']},"
        f" validation loss {training.get('val/total', float('nan')):.4f}",
        f"- settings: {', '.join(f'{k} {v}' for k, v in settings.items())}",
        f"- network: {', '.join(f'{k} {v}' for k, v in training['config'].items())}",
        "",
        "## Loss",
        "",
        *_curves(run),
        "",
        "## Measured",
        "",
        *_measured(rows),
        "",
        "## Licence",
        "",
        "MIT. Materials Project data: CC BY 4.0 (Jain et al., APL Mater. 1, 011002, 2013); splits: Xie et al.,"
        " arXiv:2110.06197. Method: Jiao et al., NeurIPS 2023.",
        "",
    ]
    return "\n".join(lines)


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


def _measured(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["Nothing yet."]
    out = [
        "Match rate k = 1 by pymatgen's StructureMatcher (stol 0.5, ltol 0.3, angle_tol 10), every crystal in the"
        " denominator, no validity filter, one candidate each; RMSE over the matched in units of (V/N)^(1/3). Command:"
        " `python -m benchmarks.match_rate NAME --n N --steps STEPS`.",
        "",
        "| crystals | steps | network calls | corrector | match rate | 95 % interval | RMSE | sampling |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["interval_95"]
        out.append(
            f"| {r['data']} | {r['steps']} | {r['network_calls']} | {'on' if r['corrector'] else 'off'} |"
            f" {r['matched']}/{r['n']} = {r['match_rate_all']:.1%} | {low:.1%} to {high:.1%} | {r['rmse']:.4f} |"
            f" {r['seconds']:.0f} s, {r['threads']} threads, {r['products']} products |"
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--command", required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--measured", type=Path, default=None)
    parser.add_argument("--which", choices=["best", "last"], default="best")
    args = parser.parse_args()
    print(ship(args.run, args.name, args.command, args.hardware, args.hours, args.measured, args.which))


if __name__ == "__main__":
    main()
