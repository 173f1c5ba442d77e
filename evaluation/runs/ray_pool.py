"""Workers on a Ray cluster, or on this machine by way of Ray, with the rules of evaluation.workers.

Ray's own retries, its ActorPool and its data sets lose work or repeat it for ever when a worker dies. Here an actor
that dies or is late is killed and replaced, its item counts as failed, and who asked decides what follows.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from evaluation.workers import Failed, reason_of

AHEAD = 256  # results that may wait for an earlier one
STARTS = 3  # actors in a row that may die before they are ready
POLL = 1.0  # seconds


def ray_map(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    seconds: float,
    processes: int | None = None,
    start: Callable[[], None] | None = None,
    gpus: float = 0.0,
) -> Iterator[Any]:
    """function(item) of each item, in order, or Failed, in actors; see evaluation.workers.limited_map.

    The cluster is that of `cluster`. processes: actors, default what it has room for. gpus: share of a GPU for each.
    Raises ImportError, naming the extra, where Ray is not installed, and RuntimeError when actors cannot start.
    """
    with cluster(processes) as ray:
        if processes is None:
            there = ray.cluster_resources()
            processes = int(there.get("GPU", 0) / gpus) if gpus else int(there.get("CPU", 1))
        yield from _Actors(ray, function, seconds, max(processes, 1), start, gpus).results(iter(items))


@contextmanager
def cluster(processes: int | None = None) -> Iterator[Any]:
    """The Ray that the program is connected to, else that of RAY_ADDRESS, else one of this machine, while it lasts.

    processes: cores of a Ray of this machine, default all. Starting one takes 5 to 10 s, so that several calls of
    `ray_map` in a row belong into one `with cluster()`.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"Ray needs the extra 'ray': pip install atomsmith[ray] ({error})") from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"address": "local", "num_cpus": processes}
    ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()


class _Worker:
    def begin(self, start: Callable[[], None] | None) -> None:
        """What comes before the first item, outside its time."""
        if start is not None:
            start()

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)


class _Actors:
    """Actors that start, that are idle, and that work on an item until a deadline."""

    def __init__(self, ray: Any, function: Callable, seconds: float, width: int, start: Any, gpus: float):
        self.ray, self.function, self.seconds, self.start = ray, function, seconds, start
        self.kind = ray.remote(_Worker).options(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self.width, self.failed_starts = width, 0
        self.starting: dict[Any, Any] = {}  # reference -> actor
        self.idle: list[Any] = []
        self.working: dict[Any, tuple[int, Any, float]] = {}  # reference -> number of the item, actor, deadline
        self.done: dict[int, Any] = {}

    def results(self, items: Iterator[Any]) -> Iterator[Any]:
        """What became of the items, in order."""
        taken = given = 0
        item, more = _next(items)
        try:
            while more or given < taken:
                while more and self.idle and taken - given < AHEAD:
                    self._give(taken, item)
                    taken += 1
                    item, more = _next(items)
                self._hire((taken - given - len(self.done)) + more)
                self._wait()
                while given in self.done:
                    yield self.done.pop(given)
                    given += 1
        finally:
            for actor in [*self.idle, *self.starting.values(), *(actor for _, actor, _ in self.working.values())]:
                self.ray.kill(actor)

    def _give(self, number: int, item: Any) -> None:
        actor = self.idle.pop()
        deadline = time.monotonic() + self.seconds
        self.working[actor.call.remote(self.function, item)] = number, actor, deadline

    def _hire(self, wanted: int) -> None:
        """As many actors as there is work for, and no more than the width."""
        there = len(self.starting) + len(self.idle) + len(self.working)
        goal = self.width if wanted > len(self.working) else there
        for _ in range(goal - there):
            actor = self.kind.remote()
            self.starting[actor.begin.remote(self.start)] = actor

    def _wait(self) -> None:
        """Wait for anything to happen, and book it."""
        flying = [*self.working, *self.starting]
        if not flying:
            return
        now = time.monotonic()
        nearest = min([deadline - now for _, _, deadline in self.working.values()], default=POLL)
        finished, _ = self.ray.wait(flying, num_returns=1, timeout=min(POLL, max(nearest, 0.0)))
        for reference in finished:
            if reference in self.starting:
                self._started(reference)
            else:
                self._finished(reference)
        now = time.monotonic()
        for reference in [r for r, (_, _, deadline) in self.working.items() if deadline < now]:
            number, actor, _ = self.working.pop(reference)
            self.ray.kill(actor)
            self.done[number] = Failed(f"not done within {self.seconds:g} s")

    def _started(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"workers cannot start ({reason_of(error.cause)})") from error
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= STARTS:
                raise RuntimeError(f"workers cannot start ({reason_of(error)})") from error
        else:
            self.failed_starts = 0
            self.idle.append(actor)

    def _finished(self, reference: Any) -> None:
        number, actor, _ = self.working.pop(reference)
        try:
            self.done[number] = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            self.done[number] = Failed(reason_of(error.cause))
        except self.ray.exceptions.RayError:
            self.done[number] = Failed("its process died")
            return
        self.idle.append(actor)


def _next(items: Iterator[Any]) -> tuple[Any, bool]:
    for item in items:
        return item, True
    return None, False
