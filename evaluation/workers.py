"""Worker processes whose items can be killed one by one.

A matcher can hang or die in compiled code, where neither a signal nor a thread reaches it. Each item therefore has a
time limit, after which its process is killed and replaced; the item counts as failed, with the reason, and the others
go on. The standard library's pools lose all other tasks when a worker dies; pebble's does not.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

AHEAD = 256  # items handed to the pool before the first is awaited
MIN_SECONDS = 0.01


@dataclass(frozen=True)
class Failed:
    """An item without a result, and why, in one line."""

    reason: str


def is_failed(result: Any) -> bool:
    """Whether a result of `limited_map` is none."""
    return isinstance(result, Failed)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limited_map(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    seconds: float,
    processes: int | None = None,
    start: Callable[[], None] | None = None,
) -> Iterator[Any]:
    """function(item) of each item, in order, or Failed: it took more than `seconds`, its process died, or it raised.

    processes: default all cores this process may use; 0 calls the function here, where nothing limits the time.
    function and start, which runs once in each new process outside the limit, must be importable.
    """
    if processes is None:
        processes = cores()
    if processes < 0 or not seconds >= MIN_SECONDS:
        raise ValueError(f"processes = {processes}, seconds = {seconds}; allowed: at least 0 and {MIN_SECONDS}")
    if processes and "__main__" in (function.__module__, getattr(start, "__module__", None)):
        raise ValueError(
            f"function = {function.__qualname__} of the running script, allowed: one of an imported module"
        )
    if processes == 0:
        return (_here(function, item) for item in items)
    return _in_processes(function, items, seconds, processes, start)


def _here(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        return Failed(reason_of(error))


def _in_processes(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    seconds: float,
    processes: int,
    start: Callable[[], None] | None,
) -> Iterator[Any]:
    from pebble import ProcessPool

    pool = ProcessPool(max_workers=processes, initializer=_ready, initargs=(start,), context=_Context())
    waiting: deque = deque()
    done = False
    try:
        for item in items:
            waiting.append(pool.schedule(function, args=(item,), timeout=seconds))
            if len(waiting) > AHEAD:
                yield _result(waiting.popleft(), seconds)
        while waiting:
            yield _result(waiting.popleft(), seconds)
        done = True
    finally:
        # an interrupt or an abandoned iterator must not wait for what is queued
        pool.close() if done else pool.stop()
        pool.join()


def _result(future: Any, seconds: float) -> Any:
    from concurrent.futures import TimeoutError as Late
    from concurrent.futures.process import BrokenProcessPool

    from pebble import ProcessExpired

    try:
        return future.result()
    except Late:
        return Failed(f"not done within {seconds:g} s")
    except ProcessExpired as error:
        return Failed(f"its process died with exit code {error.exitcode}")
    except BrokenProcessPool as error:
        raise RuntimeError(f"worker processes cannot start ({error}); processes=0 works without them") from error
    except Exception as error:
        return Failed(reason_of(error))


def reason_of(error: BaseException) -> str:
    """Type and message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _ready(start: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if start is not None:
        start()


class _Process(SpawnProcess):
    """A spawned process that does not import the user's script again, which need not guard its main part.

    It is born with SIGINT blocked, as its parent's at the moment: Ctrl-C before `_ready` would print a traceback.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
        started = None
        try:
            started = SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
        finally:
            sys.modules["__main__"] = main
            try:
                if mask is not None:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            except KeyboardInterrupt:  # it waited until here; nobody else knows the process
                if started is not None:
                    started.kill()
                raise
        return started


class _Context(SpawnContext):
    Process = _Process  # type: ignore[assignment]

    def get_context(self, method: str | None = None) -> Any:
        return self if method in (None, "spawn") else multiprocessing.get_context(method)
