"""One answer of k candidates: what ranking by cluster or by likelihood gains over taking any of them, measured.

Of every target's candidates the usable ones are ranked, and the first of the ranking is the answer. `any of them` is
the expected match rate of a random choice, `best of k` that of an oracle which knows the truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.curves import Estimate
from benchmarks.drawing import Sampler, draw, predictions, slope_of
from benchmarks.judging import CSP, Results, Row, csp_key, split
from benchmarks.quality import percent, table
from checkpoints import LoadedModel
from chem.convert import from_structures
from evaluation.evaluate import evaluate
from evaluation.intervals import bootstrap, paired_difference, wilson
from evaluation.protocols import Protocol, protocol
from evaluation.ranking import Ranking, centrality
from generative.generator import Denoiser
from generative.process import Fixed
from generative.processes.flow import Flow
from generative.scoring import STEPS, log_likelihoods

TEXT = """\
k = {k} candidates for each of the first {n:,} crystals of `{data}` val; match rate and RMSE by `all`, with intervals \
of 95 % (of chosen answers and of the best Wilson's, else by bootstrap of the targets). Differences are paired, over \
taking any of the candidates. Likelihoods: {likelihood}. The paper of DiffCSP reports, for its own model on the test \
split, 51.49 for one candidate, 60.30 for the choice by clusters and 77.93 for the best of 20 (by `legacy`)."""
WAYS = {"any": "any of them", "cluster": "first by cluster", "likelihood": "first by likelihood", "best": "best of k"}


class Choosing:
    """The part --rank of `benchmarks.calls`."""

    def __init__(self, options: argparse.Namespace, data: str, base: Sampler, results: Results):
        self.options, self.data, self.base, self.results = options, data, base, results

    def section(self, models: Sequence[tuple[str, LoadedModel]], head: str) -> str:
        """Draw, rank and judge the candidates of each model, whatever of it is not there yet."""
        o = self.options
        n = min(o.n, len(split(self.data, "val")))
        rows = []
        for name, loaded in models:
            for sampler in self._samplers(loaded):
                rows += _rows(name, loaded, sampler, self._measured(loaded, n, sampler))
        how = f"Heun's method, {STEPS} steps, divergence estimated with {o.probes} random vectors"
        text = TEXT.format(k=o.k, n=n, data=self.data, likelihood=how)
        columns = ["model", "network calls of a candidate", "answer", "match %", "difference", "RMSE"]
        return "\n\n".join(["## One answer of several candidates", head, text, table(columns, rows)])

    def _samplers(self, loaded: LoadedModel) -> list[Sampler]:
        """The model's own sampler, at its own number of steps or at those of --calls."""
        model: Any = loaded.model
        own = replace(self.base, steps=model.steps, gain=slope_of(model))
        if not self.options.calls:
            return [own]
        one, two = (model.network_calls(steps) for steps in (1, 2))
        least = max(one, min(self.options.calls))
        if least > min(self.options.calls):
            raise ValueError(f"calls = {min(self.options.calls)}, allowed with this sampler: at least {one}")
        return [replace(own, steps=1 + (calls - one) // (two - one)) for calls in self.options.calls]

    def _measured(self, loaded: LoadedModel, n: int, sampler: Sampler) -> Row:
        """rms (T, k) of the candidates, and their scores (T, k) by each way of ranking; None where there is none."""
        o, model = self.options, cast(Denoiser, loaded.model)
        place = o.out / loaded.sha256[:12] / f"csp-{self.data}-k{o.k}-{sampler.label}"
        key = {"what": loaded.sha256, **csp_key(self.data, n, o.k, o.seed), **asdict(sampler)}

        def drawn() -> list[Any]:
            plan, what = predictions(split(self.data, "val"), o.k), f"{o.k} for each of {self.data}:val"
            return draw(loaded, plan, n * o.k, sampler, place, what, o.batch_size).structures

        def judged() -> Row:
            report = evaluate(drawn(), f"{self.data}:val:{n}", CSP, seed=o.seed, k=o.k, processes=o.processes)
            return {"values": _plain([row["rms"] for row in report.rows], o.k)}

        def clustered() -> Row:
            made, groups = drawn(), np.arange(n * o.k).reshape(n, o.k).tolist()
            print(f"{place.name}: {n * o.k * (o.k - 1) // 2:,} pairs to match", file=sys.stderr, flush=True)
            scores = centrality(from_structures(made), groups, cast(Protocol, protocol(CSP)), o.processes)
            return {"values": _plain(np.concatenate(scores).tolist(), o.k)}

        def likely() -> Row:
            made, generator = drawn(), torch.Generator().manual_seed(o.seed)
            print(f"{place.name}: {len(made):,} likelihoods to integrate", file=sys.stderr, flush=True)
            model.network.products = None  # densities in full precision, however samples were drawn
            scores = log_likelihoods(model, made, exact=False, probes=o.probes, generator=generator)
            return {"values": _plain(scores, o.k)}

        parts = {"rms": judged, "cluster": clustered}
        if all(isinstance(process, (Flow, Fixed)) for process in model.processes.values()):
            parts["likelihood"] = likely
        settings = {"likelihood": {"integration_steps": STEPS, "probes": o.probes}}
        return {
            name: self.results.part({**key, "part": name, **settings.get(name, {})}, compute)["values"]
            for name, compute in parts.items()
        }


def _plain(values: Sequence[float | None], k: int) -> list[list[float | None]]:
    """Rows of k, None for what is no number."""
    known = [None if x is None or not np.isfinite(x) else float(x) for x in values]
    return [known[start : start + k] for start in range(0, len(known), k)]


def _rows(name: str, loaded: LoadedModel, sampler: Sampler, measured: Row) -> list[list[str]]:
    """Lines of the table."""
    model: Any = loaded.model
    rms = np.array([[np.nan if x is None else x for x in row] for row in measured["rms"]], dtype=np.float64)
    matched = ~np.isnan(rms)
    by_chance = matched.mean(1)
    found: dict[str, NDArray[np.float64]] = {}  # rms (T,) of the answer, NaN where it does not match
    for way in ("cluster", "likelihood"):
        if way in measured:
            scores = [[np.nan if x is None else x for x in row] for row in measured[way]]
            first = [Ranking.of(row, [""] * len(row)).order[0] for row in scores]
            found[way] = rms[np.arange(len(rms)), first]
    best = np.where(matched, rms, np.inf).min(1)
    found["best"] = np.where(np.isfinite(best), best, np.nan)
    calls = str(model.network_calls(sampler.steps))
    lines = [[name, calls, WAYS["any"], percent((float(by_chance.mean()), bootstrap(by_chance)[0])), "", _rmse(rms)]]
    for way, answer in found.items():
        hits = ~np.isnan(answer)
        rate: Estimate = (float(hits.mean()), wilson(int(hits.sum()), len(hits)))
        gain = percent(paired_difference(hits, by_chance), "+")
        lines.append([name, calls, WAYS[way], percent(rate), gain, _rmse(answer)])
    return lines


def _rmse(rms: NDArray[np.float64]) -> str:
    known = rms[~np.isnan(rms)]
    return f"{known.mean():.4f}" if len(known) else "-"
