"""The relaxation of samples as a run over numbered chunks (evaluation.runs): killed at any point, it goes on there.

    OUT/relaxed-HASH/made.parquet            the crystals as they were made
                     chunk-00000017.parquet  what became of them: columns of `relaxed_table`

HASH is that of the crystals, the potential and its settings, so that another question finds another folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chem.crystals import CrystalBatch
from chem.output import write_atomically
from chem.ragged import concatenate
from evaluation.campaigns.structure_tables import read_rows, to_batch, to_table
from evaluation.descriptors.cache import FIELDS, content_hash
from evaluation.progress import counting
from evaluation.relaxation.relax import Relaxation
from evaluation.runs.chunks import ChunkFolder, open_chunks, to_parquet
from evaluation.runs.pipeline import Rows, Unfinished, run

if TYPE_CHECKING:
    import pyarrow as pa

    from evaluation.campaigns.relaxing import Relax

SIZE, SECONDS = 32, 3600.0  # crystals of a chunk, and its limit: most take a minute, large ones far from rest many
MADE = "made.parquet"
NO_RESULT = "no result"


@dataclass(frozen=True)
class RelaxMade:
    """The step that relaxes the crystals of a file made of evaluation.campaigns.structure_tables."""

    source: str
    relax: Relax

    def __call__(self) -> Rows:
        relax = self.relax()

        def rows(start: int, stop: int) -> pa.Table:
            return relaxed_table(relax(to_batch(read_rows(self.source, start, stop))))

        return rows


def relaxed_table(done: Relaxation) -> pa.Table:
    """The relaxed crystals with their total energies in eV before and after (NaN for none), and how it went."""
    import pyarrow as pa

    table = to_table(done.batch)
    columns: dict[str, Any] = {
        "energy": done.energies.cpu().numpy(),
        "initial_energy": done.initial_energies.cpu().numpy(),
        "steps": done.steps.cpu().numpy(),
        "converged": done.converged.cpu().numpy(),
        "failed": done.failed.cpu().numpy(),
        "reason": pa.array(done.reasons, pa.string()),
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def relax_samples(
    batch: CrystalBatch,
    relax: Relax,
    request: Mapping[str, Any],
    out: str | Path | None = None,
    **options: Any,
) -> Relaxation:
    """Relax every crystal of a batch through chunks, in the folder `out`, or in one that is gone afterwards.

    relax: a picklable factory, see campaigns.relaxing. request: plain data, all that decides the results but the
    crystals; `label` is what the potential is called. options: workers, mapper and part of runs.pipeline.run. A crystal
    that ends its process or takes too long has failed. Raises Unfinished where other parts have still to be computed.
    """
    plain = CrystalBatch(batch["num_atoms"], **{name: batch[name] for name in FIELDS if name != "num_atoms"})
    if not len(plain):
        return _nothing(plain, str(request["label"]))
    if out is None:
        with tempfile.TemporaryDirectory() as passing:
            return relax_samples(batch, relax, request, passing, **options)
    made = content_hash(plain, request)
    folder = open_chunks(Path(out) / f"relaxed-{made[:12]}", {**request, "crystals": made}, len(plain), SIZE)
    if not (folder.path / MADE).exists():
        write_atomically(folder.path / MADE, to_parquet(to_table(plain)))
    step = RelaxMade(str(folder.path / MADE), relax)
    with counting("relaxing", len(plain)) as tick:
        waiting = sum(len(piece) for chunk in folder.chunks for piece in folder.missing(chunk))
        tick(len(plain) - waiting, 0)
        if not run(folder, step, seconds=SECONDS, on_rows=lambda rows: tick(rows, 0), **options).complete:
            raise Unfinished("relaxing")
        done = _relaxation(folder, plain, str(request["label"]))
        tick(0, int(done.failed.sum()))
    return done


def _relaxation(folder: ChunkFolder, made: CrystalBatch, potential: str) -> Relaxation:
    """The tables of a folder as one relaxation; crystals without a row in them have failed as they were made."""
    import pyarrow as pa

    nothing = relaxed_table(_nothing(made, potential))  # for the columns, should no crystal have a result
    table = pa.concat_tables([folder.read(), nothing], promote_options="default")
    known = table["nsites"].is_valid().to_numpy()
    made = made.to(torch.float64)
    rows = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
    both = concatenate([to_batch(table.filter(pa.array(known))), made[np.flatnonzero(~known).tolist()]])

    def column(name: str, missing: Any) -> torch.Tensor:
        return torch.tensor([missing if value is None else value for value in table[name].to_pylist()])

    told = zip(table["reason"].to_pylist(), table["error"].to_pylist(), strict=True)
    return Relaxation(
        batch=both[rows.argsort().tolist()],
        energies=column("energy", np.nan).double(),
        initial_energies=column("initial_energy", np.nan).double(),
        steps=column("steps", 0),
        converged=column("converged", False),
        failed=column("failed", True),
        reasons=[f"{NO_RESULT}: {error}" if error else reason or "" for reason, error in told],
        potential=potential,
    )


def _nothing(batch: CrystalBatch, potential: str) -> Relaxation:
    """What becomes of no crystal."""
    none, empty = torch.zeros(0, dtype=torch.float64), batch[[]].to(torch.float64)
    return Relaxation(empty, none, none, none.long(), none.bool(), none.bool(), [], potential)
