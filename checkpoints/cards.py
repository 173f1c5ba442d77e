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

LEVELS = ("legacy_without_fingerprint_clause", "all", "strict")


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
        f"- weights: exponential average after step {training.get('step')},"
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
    first = next(iter(rows[0]["numbers"].values()))
    out = [
        f"Structure prediction, one candidate for each of `{rows[0]['reference']}`, protocol diffcsp-csp"
        f" ({rows[0]['protocol_hash'][:12]}), 95 % intervals (denominators: {first['denominator']}). `legacy` counts"
        " valid pairs only, as DiffCSP's code does, here without its fingerprint clause; `all` counts every crystal;"
        " `strict` has tolerances 0.2 / 0.3 / 5. RMSE over the matched, in units of (V/N)^(1/3). Command:"
        " `python -m benchmarks.match_rate NAME --n N --baselines`, with `--bf16` for bf16 products.",
        "",
        "| what | legacy % | all % | strict % | RMSE all | sampling |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        rates = [_number(r, f"match_rate_{kind}@1", 100) for kind in LEVELS]
        out.append(f"| {r['what']} | " + " | ".join([*rates, _number(r, "rmse_all@1", 1), _how(r)]) + " |")
    return out


def _number(row: dict[str, Any], name: str, scale: float) -> str:
    n = row["numbers"][name]
    digits = 1 if scale == 100 else 4
    return f"{n['value'] * scale:.{digits}f} ({n['low'] * scale:.{digits}f} to {n['high'] * scale:.{digits}f})"


def _how(row: dict[str, Any]) -> str:
    if "steps" not in row:
        return f"seed {row['seed']}"
    corrector = "" if row["corrector"] else ", no corrector"
    return (
        f"{row['steps']} steps, {row['network_calls']} network calls{corrector}, seed {row['seed']},"
        f" {row['products']} products, {row['seconds']:.0f} s on {row['threads']} threads"
    )


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
