"""What a card says of a model, measured: samples drawn, judged and written, whatever of it is not there yet."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import measured
from benchmarks.drawing import Plan, Sampler, ab_initio, draw, predictions, slope_of
from benchmarks.judging import (
    RANDOM,
    SUBSTITUTION,
    Results,
    Row,
    ab_initio_key,
    csp_key,
    judge_ab_initio,
    judge_csp,
    split,
)
from checkpoints import LoadedModel
from generative.generator import Denoiser
from generative.noise import UNIT
from generative.process import Fixed

RESULTS = "results.jsonl"


def task_of(loaded: LoadedModel) -> str | None:
    """ "csp" for a model of structure prediction, "ab-initio" for one of whole crystals, None for anything else."""
    model = loaded.model
    if not isinstance(model, Denoiser) or {"lattice", "cell"}.isdisjoint(model.processes):
        return None
    fixed = "atomic_numbers" in model.processes and isinstance(model.processes["atomic_numbers"], Fixed)
    return "csp" if fixed else "ab-initio"


def sampler_of(loaded: LoadedModel, options: argparse.Namespace) -> Sampler:
    """How a model is sampled; raises ValueError for what its time grid or the unit of samples does not allow."""
    model: Any = loaded.model
    steps = model.steps if options.steps is None else options.steps
    model.times.grid(steps)
    if options.batch_size < UNIT or options.batch_size % UNIT:
        raise ValueError(f"batch_size = {options.batch_size}, allowed: a multiple of {UNIT}")
    products: Any = "bf16" if options.bf16 else "fp32"
    return Sampler(steps, not options.no_corrector, products, options.seed, gain=slope_of(model))


class Cards:
    """One run of the command: its options, and the results that it shares between models."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.results = Results(options.out / RESULTS)

    def section(self, name: str, loaded: LoadedModel) -> str | None:
        """The section "Measured" of a model; None where this command has no protocol for it."""
        task = task_of(loaded)
        if task is None:
            return None
        data = self.options.data or loaded.training.get("data", {}).get("name")
        if data is None:
            raise ValueError(f"model '{name}' does not say what it was trained on; --data names a data set")
        sampler_of(loaded, self.options)  # refuses what is wrong before hours of work
        return (self._csp if task == "csp" else self._ab_initio)(name, loaded, data)

    def _csp(self, name: str, loaded: LoadedModel, data: str) -> str:
        o, parts = self.options, {}
        for k, wanted in ((1, o.n), (20, o.n20)):
            if wanted < 1:
                continue
            n = min(wanted, len(split(data, "val")))
            key = csp_key(data, n, k, o.seed)
            known: str | None = None
            rows: dict[str, Row] = {}
            for baseline in (SUBSTITUTION, RANDOM):
                judge = partial(judge_csp, baseline, data, n, k, o.seed, o.processes, known)
                rows[baseline] = self.results.part({"what": baseline, **key}, judge)
                known = known or rows[baseline]["matched"]
            plan, what = predictions(split(data, "val"), k), f"{k} for each of {data}:val"
            judge_ours = partial(judge_csp, data=data, n=n, k=k, seed=o.seed, processes=o.processes, substitution=known)
            ours = self._ours(loaded, key, plan, n * k, f"csp-{data}-k{k}", what, judge_ours)
            parts[k] = {loaded.name: ours, **rows}
        if not parts:
            raise ValueError(f"n = {o.n}, n20 = {o.n20}, allowed: at least one of them 1 or more")
        return measured.csp(loaded.name, loaded.kind, data, self._command(name, n=o.n, n20=o.n20), parts)

    def _ab_initio(self, name: str, loaded: LoadedModel, data: str) -> str:
        o = self.options
        key, real = ab_initio_key(data, o.seed), f"{data}:val"
        judge = partial(judge_ab_initio, data=data, seed=o.seed)
        theirs = self.results.part({"what": real, **key}, partial(judge, real))
        plan = ab_initio(loaded, o.seed)
        ours = self._ours(loaded, {**key, "n": o.samples}, plan, o.samples, "ab-initio", "ab initio", judge)
        size = theirs["report"]["structures"]
        rows = {loaded.name: ours, f"all {size:,} crystals of `{real}` themselves": theirs}
        return measured.ab_initio(loaded.name, loaded.kind, data, self._command(name, samples=o.samples), rows)

    def _ours(
        self, loaded: LoadedModel, key: Row, plan: Plan, n: int, label: str, what: str, judge: Callable[[Any], Row]
    ) -> Row:
        """The row of a model: its samples drawn and judged, unless the results have it."""
        o, sampler = self.options, sampler_of(loaded, self.options)
        model: Any = loaded.model
        place = o.out / loaded.sha256[:12] / f"{label}-{sampler.label}"

        def compute() -> Row:
            drawn = draw(loaded, plan, n, sampler, place, what, o.batch_size)
            calls = {
                "network_calls": model.network_calls(sampler.steps, sampler.corrector),
                "device": str(model.device),
            }
            took = {"count": drawn.count, "seconds": round(drawn.seconds, 1), "threads": drawn.threads}
            return {**judge(drawn.structures), "sampling": {**vars(sampler), **calls, **took}}

        return self.results.part({"what": loaded.sha256, **key, **vars(sampler)}, compute)

    def _command(self, name: str, **sizes: int) -> str:
        """The command line that measures this model again."""
        o = self.options
        words = ["python -m benchmarks.cards", name, *[f"--{key} {value}" for key, value in sizes.items()]]
        words += [f"--{key} {value}" for key in ("steps", "data") if (value := getattr(o, key)) is not None]
        words += ["--bf16"] * o.bf16 + ["--no-corrector"] * o.no_corrector + [f"--seed {o.seed}"] * bool(o.seed)
        return " ".join(words)
