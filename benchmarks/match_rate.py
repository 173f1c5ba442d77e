"""Match rate of a structure-prediction model on validation crystals, with both baselines beside it.

    python -m benchmarks.match_rate diffcsp-mp20-csp --n 300 --json measured.jsonl

One candidate for each of the first n crystals of the validation split, scored by the protocol diffcsp-csp.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import atomsmith
from chem import datasets
from chem.convert import to_structures
from chem.crystals import CrystalBatch
from evaluation.evaluate import BASELINES, evaluate
from generative.generator import Denoiser
from generative.noise import UNIT, UnitStreams


def predict(model: Denoiser, batch: CrystalBatch, steps: int, seed: int, batch_size: int, correct: bool) -> list[Any]:
    """One structure for each crystal of the batch, from its composition alone."""
    made = []
    for first in range(0, len(batch), batch_size):
        part = batch[first : first + batch_size]
        counts = part["num_atoms"].tolist()
        padded = counts + [1] * (-len(counts) % UNIT)
        streams = UnitStreams(seed, first, len(counts), padded, model.device)
        template = part.without(*[f for f in part.fields if f != "atomic_numbers"]).to(model.device)
        made += to_structures(model.sample(template, steps, streams, correct).to("cpu"))
    return made


def judge(what: Any, reference: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of the protocol diffcsp-csp as plain data, printed as a table."""
    report = evaluate(what, reference, "diffcsp-csp", seed=seed, processes=2)
    report.show()
    numbers = {n.name: asdict(n) for n in report.numbers}
    return {**settings, "reference": reference, "protocol_hash": report.protocol.hash, "numbers": numbers}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=304)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-corrector", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="products of the network in bfloat16")
    parser.add_argument("--baselines", action="store_true", help="score both baselines too")
    parser.add_argument("--json", type=Path, default=None, help="append the results as lines of JSON")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    loaded = atomsmith.load(args.model)
    model: Any = loaded.model
    if args.bf16:
        model.network.products = torch.bfloat16
    batch = datasets.load(args.data, "val").batch[: args.n]
    reference, steps, correct = f"{args.data}:val:{args.n}", args.steps or model.steps, not args.no_corrector
    started = time.perf_counter()
    made = predict(model, batch, steps, args.seed, args.batch_size, correct)
    settings = {
        "what": loaded.name,
        "weights_sha256": loaded.sha256,
        "steps": steps,
        "network_calls": model.network_calls(steps, correct),
        "corrector": correct,
        "products": "bf16" if args.bf16 else "fp32",
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "threads": args.threads,
    }
    results = [judge(made, reference, args.seed, settings)]
    if args.baselines:
        results += [judge(name, reference, args.seed, {"what": name, "seed": args.seed}) for name in BASELINES]
    if args.json is not None:
        with open(args.json, "a") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()
