"""Where a model of structure prediction falls short: losses by time on train and validation, and match rates where part
of the answer is given.

    python -m benchmarks.diagnosis diffcsp-mp20-csp --n 192 --steps 100 --bf16

Equal losses on both splits mean that a model has not used up its data; a match rate that jumps when the coordinates are
given, and not when the lattice is, means that coordinates are what it lacks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import atomsmith
from benchmarks.drawing import predictions
from chem import datasets
from chem.convert import to_structures
from chem.crystals import CrystalBatch
from evaluation.evaluate import evaluate
from generative.noise import UnitStreams

BINS = 10


def losses_by_time(model: Any, batch: CrystalBatch, seed: int = 0) -> dict[str, list[float]]:
    """Mean loss of each field in ten equal parts of time; every crystal is noised once in each."""
    out: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(seed)
    for k in range(BINS):
        t = model.times.draw((torch.rand(len(batch), generator=generator) + k) / BINS)
        rows: dict[str, list[Tensor]] = {}
        for first in range(0, len(batch), 256):
            part = slice(first, first + 256)
            with torch.no_grad():
                found = model.losses(batch[part], t[part], generator)
            for field, values in found.items():
                rows.setdefault(field, []).append(values)
        for field, parts in rows.items():
            out.setdefault(field, []).append(float(torch.cat(parts).mean()))
    return out


def given(model: Any, data: datasets.CrystalDataset, n: int, steps: int, field: str | None) -> dict[str, float]:
    """First match rates on the first n crystals, the true values of a field being given."""
    template, counts, _ = predictions(data, 1)(0, n)
    if field is not None:
        truth = data.batch[:n][field]
        mark = torch.ones(len(truth), dtype=torch.bool)
        template = template.replace(**{field: truth, f"{field}_given": mark})
    made = to_structures(model.sample(template, steps, UnitStreams(0, 0, n, counts)))
    report = evaluate(made, to_structures(data.batch[:n]), "diffcsp-csp", processes=1)
    return {kind: report[f"match_rate_{kind}@1"].value for kind in ("all", "strict")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description="Where a model falls short.")
    parser.add_argument("model")
    parser.add_argument("--losses", type=int, default=1500, help="crystals of each split")
    parser.add_argument("--n", type=int, default=192, help="validation crystals to predict")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bf16", action="store_true", help="products of the network in bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    loaded = atomsmith.load(args.model, "cpu")
    model: Any = loaded.model
    model.network.products = torch.bfloat16 if args.bf16 else None
    name = loaded.training["data"]["name"]
    for split in ("train", "val"):
        batch = datasets.load(name, split).batch[: args.losses]
        bare = batch.without(*(batch.fields.keys() - {"atomic_numbers", "frac_coords", "lattice"})).to(torch.float32)
        for field, values in losses_by_time(model, bare).items():
            print(f"{split:<6}{field:<12}" + " ".join(f"{value:.3f}" for value in values), flush=True)
    for known in (None, "lattice", "frac_coords"):
        rates = given(model, datasets.load(name, "val"), args.n, args.steps, known)
        shown = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in rates.items())
        print(f"{known or 'nothing'} given: {shown}", flush=True)


if __name__ == "__main__":
    main()
