"""Measure a model of molecules against its number of steps, and write what was measured into its card.

    python -m benchmarks.molecules geobfn-qm9 --bf16            # an hour and more; continues where it stopped
    python -m benchmarks.molecules runs/geobfn-qm9 --steps 20,50 --n 64 --n-other 64 --show

--n samples are drawn at the model's default number of steps, which --default changes, and --n-other at each of the
others, as `atomsmith.sample` draws them. They are judged by edm-qm9 and by edm-qm9-strict against the training set,
whose own score stands beside. The name may also be a folder of a checkpoint or a run. Samples (SDF, extxyz) and
finished rows are kept under --out by the hash of the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

import atomsmith
from benchmarks import molecule_section
from benchmarks.cards import folder_of
from benchmarks.commands import numbers, parser_of, run
from benchmarks.judging import Results, Row
from benchmarks.sections import RESULTS
from checkpoints.cards import MEASURED, rewrite
from chem import datasets
from chem.record_folder import MANIFEST
from evaluation.protocols import protocol
from generative.generator import Denoiser
from generative.molecule_templates import makes_molecules
from generative.noise import UNIT
from generative.processes.bayesian import BayesianFlow

STEPS = (20, 50, 100, 500, 1000)


@dataclass(frozen=True)
class Sampler:
    """What fixes the samples of a model: steps, dtype of the network's products, seed, sampler of Bayesian flows."""

    steps: int
    products: Literal["fp32", "bf16"]
    seed: int
    sampler: str | None

    @property
    def label(self) -> str:
        """For the name of a folder."""
        kind = "" if self.sampler is None else f"-{self.sampler}"
        return f"{self.steps}steps-{self.products}{kind}-seed{self.seed}"


class Molecules:
    """One run of the command: a model, the data it is measured against, and the results so far."""

    def __init__(self, options: argparse.Namespace):
        for name in ("n", "n_other"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name} = {getattr(options, name)}, allowed: at least 1")
        if options.batch_size < UNIT or options.batch_size % UNIT:
            raise ValueError(f"batch_size = {options.batch_size}, allowed: a multiple of {UNIT}")
        self.options, self.folder = options, folder_of(options.name)
        self.loaded = atomsmith.load(self.folder)
        self.model: Any = self.loaded.model
        if not isinstance(self.model, Denoiser) or not makes_molecules(self.model):
            raise ValueError(f"name = '{options.name}', allowed: a model that makes molecules")
        self.model.network.products = torch.bfloat16 if options.bf16 else None
        self.default = self.model.steps if options.default is None else options.default
        for steps in (self.default, *options.steps):
            self.model.times.grid(steps)  # refuses what is wrong before hours of work
        data = options.data or self.loaded.training.get("data", {}).get("name")
        if data is None:
            raise ValueError(f"model '{options.name}' does not say what it was trained on; --data names a data set")
        self.data = str(data).split(":")[0]
        self.train = datasets.load(self.data, "train")
        self.results = Results(options.out / RESULTS)

    def section(self) -> str:
        """The section "Measured" of the card."""
        o = self.options
        base = Sampler(self.default, "bf16" if o.bf16 else "fp32", o.seed, self._sampler())
        counts = {steps: o.n_other for steps in o.steps} | {self.default: o.n}
        rows = {steps: self._row(replace(base, steps=steps), counts[steps]) for steps in sorted(counts)}
        words = [f"--steps {','.join(map(str, o.steps))} --n {o.n} --n-other {o.n_other}"]
        asked = {key: getattr(o, key) for key in ("default", "sampler", "data")}
        words += [f"--{key} {value}" for key, value in asked.items() if value is not None]
        words += ["--bf16"] * o.bf16 + [f"--seed {o.seed}"] * bool(o.seed)
        command = " ".join(["python -m benchmarks.molecules", o.name, *words])
        return molecule_section.section(self.loaded.kind, self.train, command, rows, self.default)

    def _sampler(self) -> str | None:
        """The sampler of the model's Bayesian flows, after it was set as asked; None where it has none."""
        flows = [process for process in self.model.processes.values() if isinstance(process, BayesianFlow)]
        asked = self.options.sampler
        if asked is not None and not flows:
            raise ValueError(f"sampler = '{asked}', allowed: None for a model without Bayesian flows")
        for flow in flows:
            flow.sampler = asked or flow.sampler
        return flows[0].sampler if flows else None

    def _row(self, sampler: Sampler, n: int) -> Row:
        """Reports of n samples by protocol, and what drawing them took."""
        o, place = self.options, self.options.out / self.loaded.sha256[:12] / f"molecules-{sampler.label}"
        hashes = {name: protocol(name).hash for name in molecule_section.PROTOCOLS}

        def compute() -> Row:
            had = json.loads((place / MANIFEST).read_text()).get("n", 0) if (place / MANIFEST).is_file() else 0
            started = time.perf_counter()
            made = atomsmith.sample(
                self.loaded, n, steps=sampler.steps, seed=o.seed, batch_size=o.batch_size, out=place, progress=False
            )
            took = {"drawn": max(n - had, 0), "seconds": round(time.perf_counter() - started, 1)}
            calls = {"network_calls": self.model.network_calls(sampler.steps), "device": str(self.model.device)}
            options: dict[str, Any] = {"seed": o.seed, "processes": o.processes}
            reports = {p: atomsmith.evaluate(made, f"{self.data}:train", p, **options).as_dict() for p in hashes}
            return {"sampling": {**took, **calls, "threads": torch.get_num_threads()}, "reports": reports}

        key = {"what": self.loaded.sha256, **vars(sampler), "n": n, "data_sha256": self.train.sha256}
        row = self.results.part({**key, "protocols": hashes}, compute)
        found = row["reports"][molecule_section.PROTOCOLS[0]]["numbers"]
        shown = ", ".join(f"{name} {found[name]['value']:.3f}" for name in ("molecule_stability", "validity"))
        print(f"{self.loaded.name}, {sampler.label}, {n} samples: {shown}", file=sys.stderr, flush=True)
        return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the card (or print with --show); exit code 2 for the user's mistakes, 1 for faults and Ctrl-C."""
    parser = parser_of("molecules", __doc__, "runs/cards")
    add = parser.add_argument
    add("name", help="a shipped model of molecules, or the folder of a checkpoint or run")
    add("--steps", type=numbers(int, 1), default=STEPS, help=f"of the table (default {','.join(map(str, STEPS))})")
    add("--default", type=int, default=None, help="steps at which --n samples are drawn (default: the model's)")
    add("--n", type=int, default=10_000, help="samples at the default number of steps")
    add("--n-other", type=int, default=1000, help="samples at each other number of steps")
    add("--sampler", choices=["bayes", "flow"], default=None, help="of Bayesian flows (default: the model's)")
    add("--show", action="store_true", help="print the section and leave the card as it is")
    return run(parser, arguments, measure)


def measure(options: argparse.Namespace) -> None:
    """The work of the command."""
    measured = Molecules(options)
    text = measured.section()
    if options.show:
        print(text)
    else:
        rewrite(measured.folder, MEASURED, text)
        print(f"{options.name}: section {MEASURED} of {measured.folder / 'card.md'} written")


if __name__ == "__main__":
    sys.exit(main())
