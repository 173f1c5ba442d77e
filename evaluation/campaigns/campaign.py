"""A campaign: sample, filter, find duplicates, relax, weigh against a hull, rank, export a shortlist.

    OUT/samples/       chunks: structures, why they were refused, and keys          evaluation.runs.chunks
        candidates.parquet  what passed the filters, sorted by keys                 evaluation.campaigns.duplicates
        compared/      chunks of blocks of equal keys
        unique.parquet      the different crystals
        relaxed/       chunks: relaxed structures, energies, distances to the hull, keys
        relaxed-candidates.parquet, relaxed-compared/, relaxed-unique.parquet       the same once more
        ranking.parquet     everything that is left, best first
        shortlist/     the first of them: cif/, shortlist.extxyz, shortlist.db

Each file says that what it holds is finished, so the same call goes on wherever a campaign was stopped, and several
calls with `part` may work on one. This module knows neither models nor potentials: it is handed steps that do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chem.output import usable_folder
from evaluation.campaigns.duplicates import LARGEST, Compare, blocks, collect, keep, load_duckdb
from evaluation.campaigns.relaxing import Relaxing, RelaxStep
from evaluation.campaigns.screening import Draw, Filters, SampleStep
from evaluation.campaigns.shortlist import export, ranking
from evaluation.runs.chunks import ChunkFolder, open_chunks
from evaluation.runs.pipeline import Step, Unfinished, run


@dataclass(frozen=True)
class Sizes:
    """Rows of a chunk, each 1 to 10 minutes of one worker: samples, blocks of equal keys, crystals to relax."""

    samples: int = 256
    blocks: int = 256
    relaxed: int = 32

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} = {value} rows of a chunk, allowed: at least 1")


@dataclass(frozen=True)
class Outcome:
    """What a campaign came to.

    counts: how many crystals were left after each stage. refused: how many each filter and the relaxation refused. bad:
    rows that ended or stalled their worker, by stage, chunk and row. unfinished: the stage of which other parts have
    still to be computed, else None. largest_block: of those compared; duplicates.LARGEST says that some were cut.
    """

    counts: dict[str, int]
    refused: dict[str, int]
    bad: dict[str, dict[int, dict[str, str]]]
    largest_block: int = 0
    unfinished: str | None = None

    def lines(self) -> list[str]:
        """All of it for a person to read: one line each."""
        said = [f"{count} {name}" for name, count in [*self.counts.items(), *self.refused.items()]]
        for stage, chunks in self.bad.items():
            reasons = Counter(reason for rows in chunks.values() for reason in rows.values())
            said += [f"{count} rows of {stage} without result: {reason}" for reason, count in reasons.items()]
        if self.largest_block >= LARGEST:
            said.append(f"blocks of equal keys were cut at {LARGEST} crystals, so that some duplicates may be left")
        return said + ([str(Unfinished(self.unfinished))] if self.unfinished else [])


@contextmanager
def on_engine(engine: str, workers: int | None) -> Iterator[dict[str, Any]]:
    """The options `workers` and `mapper` of runs.pipeline.run for an engine by name, for as long as it runs."""
    if engine == "processes":
        yield {"workers": workers}
    elif engine == "ray":
        from evaluation.runs.ray_pool import cluster, ray_map

        with cluster(workers):
            yield {"workers": workers, "mapper": ray_map}
    else:
        raise ValueError(f"engine = '{engine}', allowed: processes, ray")


def campaign(
    out: str | Path,
    draw: Draw,
    n: int,
    filters: Filters | None = None,
    *,
    relax: Relaxing | None = None,
    top: int = 100,
    sizes: Sizes | None = None,
    request: Mapping[str, Any] | None = None,
    seconds: float = 600.0,
    part: str | None = None,
    **options: Any,
) -> Outcome:
    """Run a campaign in the folder `out`, or go on with it.

    draw: a picklable factory of draw(start, stop), the samples of these numbers as a CrystalBatch (for ours:
    checkpoints.drawing.Draws). n: how many samples. relax: what relaxes, and weighs against a hull where it has one.
    top: crystals of the shortlist. request: what decides the samples, kept beside them; another one is refused.
    seconds: limit of a chunk. part: "k/n", see runs.pipeline.run, which takes the `options` workers and mapper.

    Ranked by energy above the hull, where there is one, and then by the number of copies that were sampled. Raises
    ValueError naming the argument, and ImportError for the extra `campaign`.
    """
    if top < 1:
        raise ValueError(f"top = {top}, allowed: at least 1")
    load_duckdb()  # or its absence would show when hours of samples are drawn
    state = _State(usable_folder(out, "out"), sizes or Sizes(), {"seconds": seconds, "part": part, **options})
    state.path.mkdir(parents=True, exist_ok=True)
    filters = filters or Filters()
    asked = {"request": dict(request or {}), "filters": asdict(filters)}
    try:
        samples = state.chunks("samples", SampleStep(draw, filters), asked, n, state.sizes.samples)
        state.note(samples, "samples")
        last = state.different(samples, "")
        if relax is not None and state.counts["unique"]:
            rows, wanted = state.counts["unique"], {"relax": relax.label}
            relaxed = state.chunks("relaxed", RelaxStep(str(last), relax), wanted, rows, state.sizes.relaxed)
            state.note(relaxed, "relaxed")
            last = state.different(relaxed, "relaxed-")
    except Unfinished as stage:
        return state.outcome(stage.args[0])
    table = ranking(last, state.path / "ranking.parquet")
    state.counts["shortlist"] = export(table, state.path / "shortlist", top)
    return state.outcome(None)


class _State:
    """What has been found so far, and where it is kept."""

    def __init__(self, path: Path, sizes: Sizes, options: dict[str, Any]):
        self.path, self.sizes, self.options = path, sizes, options
        self.counts: dict[str, int] = {}
        self.refused: Counter[str] = Counter()
        self.bad: dict[str, dict[int, dict[str, str]]] = {}
        self.largest = 0

    def chunks(self, name: str, step: Step, request: Mapping[str, Any], rows: int, size: int) -> ChunkFolder:
        """A stage, computed as far as this part of the campaign goes; raises Unfinished for the others."""
        folder = open_chunks(self.path / name, request, rows, size)
        summary = run(folder, step, **self.options)
        if summary.bad:
            self.bad[name] = summary.bad
        if not summary.complete:
            raise Unfinished(name)
        return folder

    def note(self, folder: ChunkFolder, name: str) -> None:
        """Count the rows of a stage, and why some were refused."""
        self.counts[name] = folder.rows
        for table in folder.tables(["refused", "error"]):
            for column in table.column_names:
                found = table[column].drop_null().to_pylist()
                kinds = (reason.partition(":")[0] if column == "refused" else "no result" for reason in found)
                self.refused.update(f"{name}, {kind}" for kind in kinds)

    def different(self, folder: ChunkFolder, prefix: str) -> Path:
        """The file of the different crystals of a stage."""
        candidates, unique = self.path / f"{prefix}candidates.parquet", self.path / f"{prefix}unique.parquet"
        self.counts[f"{prefix}candidates"] = collect(folder, candidates)
        ends, compared = blocks(candidates), None
        self.largest = max(self.largest, int(np.diff(ends).max(initial=0)))
        if len(ends) > 1:
            request = {"candidates": self.counts[f"{prefix}candidates"]}
            step, rows = Compare(str(candidates)), len(ends) - 1
            compared = self.chunks(f"{prefix}compared", step, request, rows, self.sizes.blocks)
        self.counts[f"{prefix}unique"] = keep(candidates, compared, unique)
        return unique

    def outcome(self, unfinished: str | None) -> Outcome:
        """Everything found."""
        return Outcome(self.counts, dict(self.refused.most_common()), self.bad, int(self.largest), unfinished)
