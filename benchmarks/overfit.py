"""Can a model learn a few crystals by heart? If loss and match rate on them do not move, something is wrong with more
than the length of the training.

    python -m benchmarks.overfit diffcsp-mp20-csp --crystals 512 --epochs 300 --out runs/overfit

Fine-tunes a checkpoint of structure prediction on the first crystals of its training set alone and judges it on those
same crystals, before and after. The rates say nothing about new crystals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import atomsmith
from benchmarks.drawing import predictions
from chem import datasets
from chem.convert import to_structures
from chem.crystals import CrystalBatch
from evaluation.evaluate import evaluate
from generative.noise import UnitStreams
from generative.settings import TrainSettings
from generative.training import fit


def match_rates(model: Any, data: datasets.CrystalDataset, n: int, steps: int) -> dict[str, float]:
    """First match rates, `all` and `strict`, on the first n crystals of a data set."""
    template, counts, _ = predictions(data, 1)(0, n)
    made = to_structures(model.sample(template, steps, UnitStreams(0, 0, n, counts), correct=True))
    report = evaluate(made, to_structures(data.batch[:n]), "diffcsp-csp")
    return {kind: report[f"match_rate_{kind}@1"].value for kind in ("all", "strict")}


def losses(model: Any, batch: CrystalBatch) -> dict[str, float]:
    """Losses with fixed noise and evenly spread times."""
    with torch.no_grad():
        t = model.times.draw((torch.arange(len(batch)) + 0.5) / len(batch))
        return {k: float(v) for k, v in model.loss(batch, torch.Generator().manual_seed(0), t).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print losses and match rates before and after."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overfit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--crystals", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--judged", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    loaded = atomsmith.load(args.model, "cpu")
    model: Any = loaded.model
    data = datasets.load(loaded.training["data"]["name"], "train")
    fields = {"atomic_numbers", "frac_coords", "lattice"}
    few = data.batch[: args.crystals].without(*(data.batch.fields.keys() - fields)).to(torch.float32)
    settings = TrainSettings(
        epochs=args.epochs, batch_size=args.batch_size, precision="bf16", val_every=max(1, args.epochs // 10)
    )
    model.network.products = torch.bfloat16
    print("before", losses(model, few), match_rates(model, data, args.judged, args.steps), flush=True)
    fit(model, few, few, args.out, settings, lambda weights, info: print(info, flush=True))
    print("after", losses(model, few), match_rates(model, data, args.judged, args.steps), flush=True)


if __name__ == "__main__":
    main()
