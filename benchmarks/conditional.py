"""`python -m benchmarks.conditional MODEL REGRESSOR`: EDM's conditional protocol for a model and one property.

Numbers of atoms and values are drawn jointly, as rows of the train split; samples are asked for the value of their row,
once for each weight of guidance, and judged by a regressor that was trained on the other half of that split. What
papers report for that property of QM9 stands beside, in the unit of the data:

    atomsmith train regressor qm9:first-half --property gap --out runs/regressor-gap
    atomsmith train geobfn qm9:second-half --conditions gap --out runs/geobfn-gap
    python -m benchmarks.conditional runs/geobfn-gap runs/regressor-gap
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import atomsmith
from benchmarks.cards import folder_of
from checkpoints import LoadedModel
from checkpoints.cards import ASKED, MEASURED, rewrite
from chem import datasets
from chem.molecules import MoleculeBatch
from chem.ragged import RaggedBatch, concatenate
from chem.seeds import UNIT
from generative.generator import Denoiser
from generative.guidance import guided
from generative.noise import UnitStreams

MEV = 1 / 27_211.386  # hartree
# mean absolute errors in papers, in units of the factor: of real molecules, of shuffled values, of guesses from the
# number of atoms, and of samples
NAMES = ("real", "shuffled", "num_atoms", "EDM", "GeoLDM", "GeoBFN")
PAPERS = {
    "alpha": (1.0, (0.10, 9.01, 3.86, 2.76, 2.37, 2.34)),
    "gap": (MEV, (64, 1470, 866, 655, 587, 577)),
    "homo": (MEV, (39, 645, 426, 356, 340, 328)),
    "lumo": (MEV, (36, 1457, 813, 584, 522, 516)),
    "mu": (1.0, (0.043, 1.616, 1.053, 1.111, 1.108, 0.998)),
    "cv": (1.0, (0.040, 6.857, 1.971, 1.101, 1.025, 0.949)),
}

TEXT = """\
Command: `{command}`. Numbers of atoms and values are drawn jointly, as rows of `{data}` train; each sample is asked \
for the value of its row and judged by `{judge}`, in the unit of the data. w: weight of guidance. Bounds: mae_real of \
real molecules of `{data}` val, which is what the judge itself errs; mae_shuffled of values dealt out at random; \
mae_num_atoms of the best guess from the number of atoms."""


def published(name: str, data: str) -> list[str]:
    """The line of papers' errors for a property of QM9; none for another."""
    if data.split(":")[0] != "qm9" or name not in PAPERS:
        return []
    factor, errors = PAPERS[name]
    return [f"{name} papers: " + ", ".join(f"{who} {factor * e:.4f}" for who, e in zip(NAMES, errors, strict=True))]


def rows_of(data: str, name: str, n: int, seed: int) -> RaggedBatch:
    """n structures of the train split that have a value, drawn without replacement."""
    batch = datasets.load(data, "train").batch
    known = (~batch[name].isnan()).nonzero().squeeze(1)
    drawn = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    return batch.select(drawn[:n])


def draw(
    model: Denoiser, rows: RaggedBatch, name: str, weight: float, steps: int | None, seed: int, size: int = 64
) -> MoleculeBatch:
    """A sample (CPU, float64) for each row, of its number of atoms, asked for its value; the value stays with it."""

    def parts() -> Iterator[MoleculeBatch]:
        chosen = guided(model, weight)
        for first in range(0, len(rows), size):
            some = rows.select(torch.arange(first, min(first + size, len(rows))))
            counts = some["num_atoms"].tolist()
            template = MoleculeBatch(counts).attach("structure", **{name: some[name]}).to(model.dtype)
            streams = UnitStreams(seed, first, len(counts), counts + [1] * (-len(counts) % UNIT), model.device)
            made = chosen.sample(template.to(model.device), steps, streams).to("cpu").to(torch.float64)
            kept = MoleculeBatch(counts, pos=made["pos"], atomic_numbers=made["atomic_numbers"])
            yield kept.attach("structure", **{name: some[name].double()})

    return concatenate(list(parts()))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over the rows where both are finite."""
    good = a.isfinite() & b.isfinite()
    return float(torch.corrcoef(torch.stack([a[good], b[good]]))[0, 1])


def measured(model: Denoiser, judge: LoadedModel, name: str, given: argparse.Namespace) -> Iterator[str]:
    """A line for each bound and for each weight, as soon as it is known."""
    rows = rows_of(given.data, name, given.n, given.seed)
    for i, weight in enumerate(given.weights):
        made = draw(model, rows, name, weight, given.steps, given.seed)
        reference = None if i else f"{given.data}:val"
        report = atomsmith.evaluate(made, reference, "edm-conditional", seed=given.seed, regressor=judge)
        found = torch.tensor([row["predicted"] for row in report.rows])
        if i == 0:
            for bound in ("mae_real", "mae_shuffled", "mae_num_atoms"):
                yield f"{name} {bound} {report[bound].value:.4f}"
        mae, judged = report["mae"], report["judged"]
        error = f"{mae.value:.4f} ({mae.low:.4f} to {mae.high:.4f}) of {judged.hits} of {judged.n}"
        yield f"{name} w = {weight:g}: mae {error}, correlation {correlation(made[name], found):.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Draw, judge, print one line for each weight and the bounds once, and put both into the cards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conditional", description=__doc__)
    parser.add_argument("model", help="name or folder of a model with the regressor's property among its conditions")
    parser.add_argument("regressor", help="name or folder of a regressor")
    parser.add_argument("--data", default="qm9", help="data set of the rows (train) and of the reference (val)")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="leave the cards as they are")
    given = parser.parse_args(arguments)
    loaded, judge = atomsmith.load(given.model), atomsmith.load(given.regressor)
    model: Any = loaded.model
    if judge.kind != "regressor":
        parser.error(f"regressor = '{given.regressor}' is a {judge.kind}, allowed: a regressor")
    name = judge.config.property
    if name not in getattr(loaded.config, "conditions", ()):
        parser.error(f"model = '{given.model}', allowed: a model with the condition {name}")
    lines = published(name, given.data)
    for line in lines:
        print(line, flush=True)
    for line in measured(model, judge, name, given):
        print(line, flush=True)
        lines.append(line)
    if not given.show:
        steps = model.steps if given.steps is None else given.steps
        words = f"{given.model} {given.regressor} --n {given.n} --steps {steps} --seed {given.seed}"
        words += f" --weights {' '.join(f'{weight:g}' for weight in given.weights)}"
        head = TEXT.format(command=f"python -m benchmarks.conditional {words}", data=given.data, judge=judge.name)
        text = "\n".join([head, "", *(f"- {line}" for line in lines)])
        rewrite(folder_of(given.model), ASKED, text)
        rewrite(folder_of(given.regressor), MEASURED, text)


if __name__ == "__main__":
    main()
