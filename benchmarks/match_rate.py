"""Match rate k = 1 of a structure-prediction model on validation crystals, by pymatgen's matcher.

    python -m benchmarks.match_rate diffcsp-mp20-csp --n 300

The first n crystals of the validation split, one candidate each, every one counted in the denominator (no validity
filter). Tolerances stol 0.5, ltol 0.3, angle_tol 10 as in DiffCSP. RMSE is over the matched, in units of (V/N)^(1/3).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import atomsmith
from chem import datasets
from chem.convert import to_structures
from generative.noise import UNIT, UnitStreams


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    p, d = hits / n, 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / d, z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / d
    return centre - half, centre + half


def predict(model, batch, steps: int, seed: int, batch_size: int, correct: bool):
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


def main() -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=304)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-corrector", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="products of the network in bfloat16")
    parser.add_argument("--json", type=Path, default=None, help="append the result as one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = atomsmith.load(args.model)
    if args.bf16:
        loaded.model.network.products = torch.bfloat16
    batch = datasets.load(args.data, "val").batch[: args.n]
    started = time.perf_counter()
    steps = args.steps or loaded.model.steps
    made = predict(loaded.model, batch, steps, args.seed, args.batch_size, not args.no_corrector)
    seconds = time.perf_counter() - started
    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    truth = to_structures(batch)
    found = [matcher.get_rms_dist(a, b) for a, b in zip(made, truth, strict=True)]
    hits = [r[0] for r in found if r is not None]
    low, high = wilson(len(hits), len(truth))
    result = {
        "model": loaded.name,
        "weights_sha256": loaded.sha256,
        "data": f"{args.data} val, first {len(truth)}",
        "match_rate_all": len(hits) / len(truth),
        "matched": len(hits),
        "n": len(truth),
        "interval_95": [low, high],
        "rmse": sum(hits) / max(1, len(hits)),
        "steps": steps,
        "network_calls": loaded.model.network_calls(steps, not args.no_corrector),
        "corrector": not args.no_corrector,
        "products": "bf16" if args.bf16 else "fp32",
        "seed": args.seed,
        "seconds": round(seconds, 1),
        "threads": args.threads,
    }
    print(
        f"match rate k=1, no validity filter: {len(hits)}/{len(truth)} = {len(hits) / len(truth):.1%} "
        f"(95 % {low:.1%} .. {high:.1%}), RMSE {result['rmse']:.4f}, {result['network_calls']} network calls, "
        f"{seconds:.0f} s sampling"
    )
    if args.json is not None:
        with open(args.json, "a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
