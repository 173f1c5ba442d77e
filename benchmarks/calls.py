"""Measure the quality of structure-prediction models against the number of network calls; writes docs/quality.*.

    python -m benchmarks.calls diffcsp-mp20-csp flowmm-mp20-csp --bf16          # hours; continues where it stopped
    python -m benchmarks.calls flowmm-mp20-csp --slopes 0,2,5,10 --calls 25,100 --n 200
    python -m benchmarks.calls flowmm-mp20-csp --rank --n 100

Without a switch: match rate of one candidate for each of the first validation crystals, with each sampler a model has
(corrector on and off, Euler and Heun's method), at each number of network calls. --slopes: the same for slopes of the
gain of a flow's coordinates. --rank: one answer chosen of --k candidates by cluster, likelihood and chance. Without a
switch the cards of shipped models get their points, too.

Names may be folders of checkpoints or runs; A+B are models alike but for their seed, whose hits are averaged. Samples
and finished points are kept under --out; what is finished is not done again. --finished writes what is there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import atomsmith
from benchmarks import quality
from benchmarks.cards import folder_of
from benchmarks.choosing import Choosing
from benchmarks.commands import numbers, parser_of, run
from benchmarks.curves import Point, Series
from benchmarks.drawing import Sampler, draw, predictions, slope_of
from benchmarks.judging import CSP, Results, Row, csp_key, split
from benchmarks.sections import RESULTS, task_of
from checkpoints import LoadedModel
from checkpoints.cards import BY_CALLS, rewrite
from evaluation.csp import LEGACY
from evaluation.evaluate import evaluate
from evaluation.groups import matched
from evaluation.protocols import protocol
from generative.noise import UNIT

CALLS = (5, 10, 25, 50, 100, 250, 1000)
SLOPE_CALLS = (25, 100)
LONG = 1000  # network calls from which on --n-long targets are enough


class Unfinished(Exception):
    """A point that is not there yet, where only finished ones were asked for."""


@dataclass(frozen=True)
class Model:
    """A name of the command line and the models behind it, which differ in their seed."""

    name: str
    seeds: Sequence[LoadedModel]

    @property
    def denoiser(self) -> Any:
        """The first of them."""
        return self.seeds[0].model


def samplers(model: Any, base: Sampler) -> dict[str, Sampler]:
    """The samplers that a denoiser has, by name."""
    processes = model.noisy.values()
    correctors = {"corrector": True, "no corrector": False} if any(p.corrects for p in processes) else {"": True}
    orders = {"Euler": 1, "Heun": 2} if any(p.deterministic for p in processes) else {"": 1}
    slope = slope_of(model)
    return {
        ", ".join(filter(None, (how, method))) or "its sampler": replace(base, corrector=on, order=order, gain=slope)
        for how, on in correctors.items()
        for method, order in orders.items()
    }


def steps_for(model: Any, calls: int, sampler: Sampler) -> int:
    """The most steps that take no more than so many network calls; raises ValueError where one step takes more."""
    one, two = (model.network_calls(n, sampler.corrector, sampler.order) for n in (1, 2))
    if calls < one:
        raise ValueError(f"calls = {calls}, allowed with this sampler: at least {one}")
    steps = 1 + (calls - one) // (two - one)
    return steps if model.times.resolution is None else min(steps, model.times.resolution)


def judge(what: Any, data: str, n: int, seed: int, processes: int | None) -> Row:
    """Report of one candidate for each target, hits by variant as a string of 0 and 1, and rms (None: no match)."""
    report = evaluate(what, f"{data}:val:{n}", CSP, seed=seed, k=1, processes=processes)
    valid = [row["target_valid"] and row["valid"] for row in report.rows]
    found = {"all": matched(report.rows), "strict": matched(report.rows, "strict_rms")}
    found[LEGACY] = found["all"] & [bool(v) for v in valid]
    hits = {variant: "".join(str(int(hit)) for hit in marks) for variant, marks in found.items()}
    return {"report": report.as_dict(), "hits": hits, "rms": [row["rms"] for row in report.rows]}


class Calls:
    """One run of the command: its models, all of structure prediction and measured on one data set."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        for name, least in (("n", 1), ("n_long", 1), ("k", 2), ("probes", 1)):
            if getattr(options, name) < least:
                raise ValueError(f"{name} = {getattr(options, name)}, allowed: at least {least}")
        if options.batch_size < UNIT or options.batch_size % UNIT:
            raise ValueError(f"batch_size = {options.batch_size}, allowed: a multiple of {UNIT}")
        self.models = [Model(name, [self._load(one) for one in name.split("+")]) for name in options.names]
        self.data = self._data()
        self.base = Sampler(1, products="bf16" if options.bf16 else "fp32", seed=options.seed)
        self.results = Results(options.out / RESULTS)

    def _load(self, name: str) -> LoadedModel:
        loaded = atomsmith.load(folder_of(name))
        if task_of(loaded) != "csp":
            raise ValueError(f"names: '{name}' does not predict structures of given compositions, as is needed here")
        return loaded

    def _data(self) -> str:
        named = {loaded.training.get("data", {}).get("name") for model in self.models for loaded in model.seeds}
        if self.options.data is None and (len(named) > 1 or None in named):
            known = ", ".join(sorted(str(name) for name in named))
            raise ValueError(f"models were trained on {known}; --data names the one data set to measure on")
        return self.options.data or named.pop()

    def write(self) -> Path:
        """Measure the part that was asked for and write it."""
        o = self.options
        words = [f"--{name.replace('_', '-')} {value}".strip() for name, value in self._asked()]
        command = " ".join(["python -m benchmarks.calls", *o.names, *words, *["--bf16"] * o.bf16])
        rules = protocol(CSP)
        head = (
            f"Command: `{command}`. Protocol {rules.name} ({rules.hash}) on `{self.data}` val (sha256"
            f" `{split(self.data, 'val').sha256[:16]}`), {self.base.products} products, seed {o.seed}. Weights: "
        )
        weights = [f"{m.name} `{'`, `'.join(loaded.sha256[:12] for loaded in m.seeds)}`" for m in self.models]
        head += "; ".join(weights) + "."
        if o.rank:
            single = [one for m in self.models for one in zip(m.name.split("+"), m.seeds, strict=True)]
            text = Choosing(o, self.data, self.base, self.results).section(single, head)
            return quality.write(o.docs, o.out, "rank", text)
        series = [one for model in self.models for one in self._series(model) if one.points]
        if not series:
            raise ValueError("finished: no point is there yet; leave the switch out to measure")
        if o.slopes:
            heading = "Slope of the gain of the coordinates' velocity"
            return quality.write(o.docs, o.out, "slopes", quality.slopes_section(series, heading, head))
        page = quality.write(
            o.docs, o.out, "calls", quality.calls_section(series, BY_CALLS, head), lambda: quality.picture(series)
        )
        self._into_cards(series, head, page)
        return page

    def _into_cards(self, series: Sequence[Series], head: str, page: Path) -> None:
        """Put the points of each shipped model into its card."""
        shipped = atomsmith.models()
        for model in sorted({one.model for one in series}):
            for name in set(model.split("+")) & shipped.keys():
                folder = shipped[name].folder
                link = Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
                rewrite(folder, BY_CALLS, quality.card_section(series, model, head, link))

    def _asked(self) -> Iterator[tuple[str, Any]]:
        o = self.options
        lists = {name: ",".join(f"{x:g}" for x in getattr(o, name) or ()) for name in ("calls", "slopes")}
        sizes = {"n": o.n, **({"k": o.k} if o.rank else {"n_long": o.n_long})}
        for name, value in {**lists, **sizes, "data": o.data, "seed": o.seed or None}.items():
            if value:
                yield name, value
        if o.rank:
            yield "rank", ""

    def _series(self, model: Model) -> Iterator[Series]:
        """The series of a model, each finished one printed."""
        if self.options.slopes:
            if slope_of(model.denoiser) is None:
                raise ValueError(f"slopes: the coordinates of '{model.name}' are no flow and have no gain")
            wanted = {f"slope {slope:g}": replace(self.base, gain=slope) for slope in self.options.slopes}
        else:
            wanted = samplers(model.denoiser, self.base)
        calls = sorted(set(self.options.calls or (SLOPE_CALLS if self.options.slopes else CALLS)))
        steps = {(name, c): steps_for(model.denoiser, c, s) for name, s in wanted.items() for c in calls}
        for name, sampler in wanted.items():
            points = []
            for c in calls:
                try:
                    points.append(self._point(model, c, replace(sampler, steps=steps[name, c])))
                except Unfinished:
                    continue
            yield Series(model.name, name, points)

    def _point(self, model: Model, calls: int, sampler: Sampler) -> Point:
        o = self.options
        n = min(o.n_long if calls >= LONG else o.n, len(split(self.data, "val")))
        taken = model.denoiser.network_calls(sampler.steps, sampler.corrector, sampler.order)
        rows = [self._measured(loaded, n, sampler) for loaded in model.seeds]
        point = Point.of(calls, sampler.steps, taken, rows)
        found = ", ".join(f"{quality.TITLES[v]} {quality.percent(point.rate(v))}" for v in (LEGACY, "all"))
        print(f"{model.name}, {sampler.label}, {taken} network calls, {n} targets: {found}", flush=True)
        return point

    def _measured(self, loaded: LoadedModel, n: int, sampler: Sampler) -> Row:
        """The row of one model with one sampler, drawn and judged unless it is there."""
        o = self.options
        model: Any = loaded.model
        place = o.out / loaded.sha256[:12] / f"csp-{self.data}-k1-{sampler.label}"

        def compute() -> Row:
            if o.finished:
                raise Unfinished
            plan, what = predictions(split(self.data, "val"), 1), f"1 for each of {self.data}:val"
            drawn = draw(loaded, plan, n, sampler, place, what, o.batch_size)
            took = {"count": drawn.count, "seconds": round(drawn.seconds, 1), "threads": drawn.threads}
            found = judge(drawn.structures, self.data, n, o.seed, o.processes)
            return {**found, "sampling": {**took, "device": str(model.device)}}

        key = {"what": loaded.sha256, "part": "calls", **csp_key(self.data, n, 1, o.seed), **asdict(sampler)}
        return self.results.part(key, compute)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 2 for the user's mistakes, 1 for faults and Ctrl-C."""
    parser = parser_of("calls", __doc__, "runs/calls")
    add = parser.add_argument
    add("names", nargs="+", help="shipped models, or folders of checkpoints or runs; A+B for two seeds of one model")
    add("--calls", type=numbers(int, 1), default=None, help=f"network calls (default {','.join(map(str, CALLS))})")
    add("--n", type=int, default=1000, help="targets")
    add("--n-long", type=int, default=500, help=f"targets from {LONG} calls on")
    add("--slopes", type=numbers(float, 0), default=None, help="of the gain of a flow's coordinates, instead")
    add("--rank", action="store_true", help="choose one of --k candidates, instead")
    add("--k", type=int, default=20, help="candidates to choose from")
    add("--probes", type=int, default=4, help="random vectors of an estimated likelihood")
    add("--docs", type=Path, default=Path("docs"), help="folder of quality.md and quality.png")
    add("--finished", action="store_true", help="write the points that are there, measure none")
    return run(parser, arguments, write)


def write(options: argparse.Namespace) -> None:
    """The work of the command."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the picture needs matplotlib: pip install 'atomsmith[plot]'")
    print(f"written: {Calls(options).write()}")


if __name__ == "__main__":
    sys.exit(main())
