"""Measure ab initio flows with several slopes of the gain of their velocities; writes a section of docs/quality.md.

    python -m benchmarks.slopes flowmm-mp20 --coords 0,5,10 --types 0,2 --samples 300 --bf16

Every combination of the slopes given is sampled, from the same noise, and judged by cdvae-2022 against the validation
split. A field without a list keeps the slope of the model. Samples and judged combinations are kept under --out; what
is finished is not done again. The name may be a folder of a checkpoint or run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import atomsmith
from benchmarks import quality
from benchmarks.cards import folder_of
from benchmarks.commands import numbers, parser_of, run
from benchmarks.drawing import Sampler, ab_initio, draw, slope_of, sped_up
from benchmarks.judging import AB_INITIO, Results, Row, ab_initio_key, judge_ab_initio, split
from benchmarks.measured import interval
from benchmarks.sections import RESULTS, sampler_of, task_of
from evaluation.protocols import protocol
from generative.processes.flow import slopes_of

COLUMNS = {
    "structural %": ("structural_validity", 100),
    "compositional %": ("compositional_validity", 100),
    "structural, strict %": ("structural_validity_strict", 100),
    "distance, density": ("wasserstein_density", 1),
    "distance, elements": ("wasserstein_num_elements", 1),
}
TEXT = """\
{n:,} ab initio samples for each combination of slopes of the gain g(t) = 1 + slope t of the velocities, {steps} \
steps, all from the same noise. Intervals of 95 %. Distances are 1-Wasserstein, of density in g/cm^3 and of the number \
of elements, between the valid samples and the whole reference. The model's own slopes: {own}."""
FIELDS = {"coords": "frac_coords", "cell": "cell", "types": "types"}


class Slopes:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.loaded = options, atomsmith.load(folder_of(options.name))
        if task_of(self.loaded) != "ab-initio" or slope_of(self.loaded.model) is None:
            raise ValueError(f"name = '{options.name}', allowed: a flow that makes whole crystals, as flowmm-mp20")
        if options.samples < 1:
            raise ValueError(f"samples = {options.samples}, allowed: at least 1")
        model: Any = self.loaded.model
        self.own = slopes_of(model.processes)
        self.sampler: Sampler = replace(sampler_of(self.loaded, options), gain=None)
        self.data = options.data or self.loaded.training.get("data", {}).get("name")
        if self.data is None:
            raise ValueError(f"name = '{options.name}' does not say what it was trained on; --data names a data set")
        self.results = Results(options.out / RESULTS)

    def write(self) -> Path:
        """Measure every combination that is not there yet, and write the section."""
        o = self.options
        lists = [getattr(o, name) or (self.own[field],) for name, field in FIELDS.items()]
        rows = []
        for values in product(*lists):
            found = self._measured(dict(zip(FIELDS.values(), values, strict=True)))["report"]["numbers"]
            cells = [interval(*(found[n][part] for part in ("value", "low", "high")), s) for n, s in COLUMNS.values()]
            rows.append([*[f"{value:g}" for value in values], *cells])
            named = zip([*FIELDS, *COLUMNS], rows[-1], strict=True)
            print(", ".join(f"{what} {cell}" for what, cell in named), flush=True)
        words = [f"--{name} {','.join(f'{x:g}' for x in given)}" for name in FIELDS if (given := getattr(o, name))]
        words += [f"--samples {o.samples}", *[f"--steps {o.steps}"] * (o.steps is not None), *["--bf16"] * o.bf16]
        words += [f"--{name} {given}" for name in ("data", "seed") if (given := getattr(o, name))]
        command = " ".join(["python -m benchmarks.slopes", o.name, *words])
        rules = protocol(AB_INITIO)
        head = (
            f"Command: `{command}`. Protocol {rules.name} ({rules.hash}) against `{self.data}` val (sha256"
            f" `{split(self.data, 'val').sha256[:16]}`), {self.sampler.products} products, seed {o.seed}. Weights:"
            f" `{self.loaded.sha256[:12]}`."
        )
        own = ", ".join(f"{name} {self.own[field]:g}" for name, field in FIELDS.items())
        text = TEXT.format(n=o.samples, steps=self.sampler.steps, own=own)
        table = quality.table([*[f"slope of {name}" for name in FIELDS], *COLUMNS], rows)
        heading = "## Slopes of the gain when crystals are sampled whole"
        return quality.write(o.docs, o.out, "ab-initio", "\n\n".join([heading, head, text, table]))

    def _measured(self, slopes: dict[str, float]) -> Row:
        """The report of the samples drawn with these slopes, drawn and judged unless it is there."""
        o, loaded = self.options, self.loaded
        label = "-".join(f"{name}{slopes[field]:g}" for name, field in FIELDS.items())

        def compute() -> Row:
            place = o.out / loaded.sha256[:12] / f"ab-initio-{label}-{self.sampler.label}"
            with sped_up(loaded.model, slopes):
                made = draw(loaded, ab_initio(loaded, o.seed), o.samples, self.sampler, place, label, o.batch_size)
            return judge_ab_initio(made.structures, self.data, o.seed)

        key = {"what": loaded.sha256, "n": o.samples, "slopes": slopes, **ab_initio_key(self.data, o.seed)}
        return self.results.part({**key, **asdict(self.sampler)}, compute)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 2 for the user's mistakes, 1 for faults and Ctrl-C."""
    parser = parser_of("slopes", __doc__, "runs/calls")
    add = parser.add_argument
    add("name", help="a shipped model, or the folder of a checkpoint or run")
    for name in FIELDS:
        add(f"--{name}", type=numbers(float, 0), default=None, help="slopes, with commas between them")
    add("--samples", type=int, default=300, help="for each combination")
    add("--steps", type=int, default=None, help="(default: the model's)")
    add("--docs", type=Path, default=Path("docs"), help="folder of quality.md")
    parser.set_defaults(no_corrector=False)
    return run(parser, arguments, lambda options: print(f"written: {Slopes(options).write()}"))


if __name__ == "__main__":
    sys.exit(main())
