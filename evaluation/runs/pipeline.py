"""A computation over many rows that survives crashes, hangs and its own death: chunks, workers, and one policy.

A step is a small picklable object. Called once in each worker it loads what it needs and returns a function
(start, stop) -> table, with one row of the table for each of the rows start .. stop - 1. Only numbers travel to the
workers, tables go to the folder (evaluation.runs.chunks), and the same step runs in this process, in processes of this
machine (evaluation.workers) or on a Ray cluster (evaluation.runs.ray_pool).

A chunk whose worker dies, takes too long or raises is tried again, for the fault may be the machine's. If it fails
again it is cut in halves, and these in halves, until the guilty rows stand alone: they are booked with their reason,
and all others have their results. Results must depend on nothing but the number of the row.
"""

from __future__ import annotations

import errno
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from chem.output import noting
from evaluation.runs.chunks import ChunkFolder, Piece
from evaluation.workers import Failed, cores, limited_map, reason_of

if TYPE_CHECKING:
    import pyarrow as pa

ATTEMPTS = 2
SHORTEST = 8  # a piece has its share of the time of a chunk, and at least this part of it
HOPELESS = 16  # rows that fail alone before any has a result: then it is the step that is broken, not the rows

Rows = Callable[[int, int], "pa.Table"]
Step = Callable[[], Rows]


class Mapper(Protocol):
    """What calls a function on items in workers: evaluation.workers.limited_map, evaluation.runs.ray_pool.ray_map."""

    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        seconds: float,
        processes: int | None = None,
        start: Callable[[], None] | None = None,
    ) -> Iterator[Any]:
        """function(item) of each item, in order, or Failed."""
        ...


class Unfinished(Exception):
    """A stage, which the text names, of which other parts of a job array are still to be computed."""

    def __str__(self) -> str:
        return f"{self.args[0]}: other parts are still to be computed"


@dataclass(frozen=True)
class Summary:
    """What a folder holds after a run: chunks that are done of all, and the rows of each that have no result."""

    done: int
    chunks: int
    bad: dict[int, dict[str, str]]

    @property
    def complete(self) -> bool:
        """Whether all chunks are done."""
        return self.done == self.chunks


@dataclass(frozen=True)
class _Stop:
    """What ends a run: the step could not be loaded, or the disk is full."""

    reason: str
    code: int | None = None
    path: str = ""


def run(
    folder: ChunkFolder,
    step: Step,
    *,
    workers: int | None = None,
    mapper: Mapper = limited_map,
    seconds: float = 600.0,
    part: str | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Summary:
    """Compute the chunks of a folder that are not done.

    workers: default all cores, 0 for this process, where nothing limits the time and a crash ends the run. seconds:
    limit of a chunk, 1 to 10 minutes of work being a good size. part: "k/n" takes every n-th chunk from the k-th, which
    counts from 0, so that n jobs share the work. on_rows is told how many rows were finished.

    Raises ValueError for a part that cannot be, RuntimeError where the step itself is broken, and OSError for a full
    disk; what is done stays.
    """
    chosen = mine(folder.chunks, part)
    for chunk in chosen:
        folder.join(chunk)  # a run that died after its last piece
    waiting = [(piece, 1) for chunk in chosen for piece in folder.missing(chunk)]
    if waiting:
        with noting(f"what is done stays in '{folder.path}'; the same call goes on"):
            computed = _caller(step, mapper, workers)
            _Run(folder, computed, seconds, on_rows or (lambda rows: None)).through(waiting)
    done = sum(folder.done(n) for n in folder.chunks)
    return Summary(done, len(folder.chunks), folder.all_bad())


def mine(chunks: range, part: str | None) -> range:
    """The chunks of one part "k/n" of a job array, k from 0 to n - 1; all of them for None."""
    if part is None:
        return chunks
    k, slash, n = part.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise ValueError(f"part = '{part}', allowed: k/n with k from 0 to n - 1, such as 0/4")
    return chunks[int(k) :: int(n)]


Caller = Callable[[ChunkFolder, list[Piece], float], Iterator[Any]]


def _caller(step: Step, mapper: Mapper, workers: int | None) -> Caller:
    """What computes pieces within a time limit, here or in workers, and says of each None, Failed or _Stop."""
    if workers == 0:
        return partial(_map_here, step())
    try:
        foreign = b"__main__" in pickle.dumps(step)
    except Exception as error:  # pickle raises several types
        raise ValueError(f"step cannot be sent to workers ({reason_of(error)}); workers=0 works without") from error
    if foreign:
        raise ValueError(
            "step holds something of the running script, allowed: what is of imported modules, or workers=0"
        )
    threads = max(1, cores() // (workers or cores())) if mapper is limited_map else None
    return partial(_map_away, mapper, partial(_load, step, threads), workers)


class _Run:
    """Pieces that wait, each with the number of its attempt."""

    def __init__(self, folder: ChunkFolder, computed: Caller, seconds: float, on_rows: Callable[[int], None]):
        self.folder, self.computed, self.seconds, self.on_rows = folder, computed, seconds, on_rows
        self.solved, self.lost = 0, 0

    def through(self, waiting: list[tuple[Piece, int]]) -> None:
        """All of them, those with the longest limit first."""
        while waiting:
            longest = max(map(self._limit, waiting))
            now = [one for one in waiting if self._limit(one) == longest]
            waiting = [one for one in waiting if self._limit(one) != longest]
            pieces = [piece for piece, _ in now]
            for (piece, attempt), said in zip(now, self.computed(self.folder, pieces, longest), strict=True):
                waiting += self._judge(piece, attempt, said)

    def _limit(self, waiting: tuple[Piece, int]) -> float:
        share = 1
        while share < SHORTEST and len(waiting[0]) * share * 2 <= self.folder.size:
            share *= 2
        return self.seconds / share

    def _judge(self, piece: Piece, attempt: int, said: Any) -> list[tuple[Piece, int]]:
        """The pieces that follow from what was said of a piece."""
        if isinstance(said, _Stop):
            raise OSError(said.code, said.reason, said.path) if said.code is not None else RuntimeError(said.reason)
        if isinstance(said, Failed) and not self.folder.computed(piece):
            entire = piece == self.folder.whole(piece.chunk)
            if attempt < ATTEMPTS and (entire or len(piece) == 1):
                return [(piece, attempt + 1)]
            if len(piece) > 1:
                return [(half, 1) for half in piece.halves()]
            self.lost += 1
            if self.lost >= HOPELESS and not self.solved:
                raise RuntimeError(f"none of {self.lost} rows tried alone has a result; the last: {said.reason}")
            self.folder.give_up(piece, said.reason)
        else:
            self.solved += 1
        self.folder.join(piece.chunk)
        self.on_rows(len(piece))
        return []


_function: Rows | _Stop | None = None  # of a worker, loaded once


def _load(step: Step, threads: int | None) -> None:
    global _function
    import pyarrow.parquet  # noqa: F401 (its import belongs to no chunk's time)

    try:
        _function = step()
    except Exception as error:
        _function = _Stop(f"the work cannot begin: {reason_of(error)}")
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _map_away(
    mapper: Mapper,
    start: Callable[[], None],
    workers: int | None,
    folder: ChunkFolder,
    pieces: list[Piece],
    limit: float,
) -> Iterator[Any]:
    return mapper(_compute_loaded, [(folder, piece) for piece in pieces], limit, workers, start)


def _map_here(function: Rows, folder: ChunkFolder, pieces: list[Piece], limit: float) -> Iterator[Any]:
    for piece in pieces:
        try:
            yield _compute(function, folder, piece)
        except Exception as error:
            yield Failed(reason_of(error))


def _compute_loaded(task: tuple[ChunkFolder, Piece]) -> _Stop | None:
    if isinstance(_function, _Stop):
        return _function
    assert _function is not None
    return _compute(_function, *task)


def _compute(function: Rows, folder: ChunkFolder, piece: Piece) -> _Stop | None:
    """Compute a piece and write it, unless another run has."""
    if folder.computed(piece):
        return None
    table = function(piece.start, piece.stop)
    try:
        folder.write(piece, table)
    except OSError as error:
        return _Stop(error.strerror or str(error), error.errno or errno.EIO, str(error.filename or folder.path))
    return None
