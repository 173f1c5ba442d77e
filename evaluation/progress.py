"""Bars on stderr that count what was done and what failed, where a verb asks for them and a terminal shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

One = TypeVar("One")
Tick = Callable[[int, int], None]  # how many more are done, and how many of them failed
_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)


@contextmanager
def showing(show: bool | None = None) -> Iterator[None]:
    """What is counted within has bars: on a terminal, or as `show` says. Elsewhere counting does nothing."""
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    failed = TextColumn("[red]{task.fields[failed]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), failed, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        token = _shown.set(bars)
        try:
            yield
        finally:
            _shown.reset(token)


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Tick]:
    """A bar for `total` things, of which `tick(done, failed)` tells; it moves only within `showing`."""
    bars = _shown.get()
    if bars is None:
        yield lambda done, failed: None
        return
    task, all_done, all_failed = bars.add_task(what, total=total, failed=""), 0, 0

    def tick(done: int, failed: int) -> None:
        nonlocal all_done, all_failed
        all_done, all_failed = all_done + done, all_failed + failed
        bars.update(task, completed=all_done, failed=f"{all_failed} failed" if all_failed else "")

    yield tick
    bars.update(task, total=all_done)  # which was not known of what streams


def watched(
    things: Iterable[One], what: str, total: int | None = None, failed: Callable[[One], bool] = lambda one: False
) -> Iterator[One]:
    """The things as they come, counted."""
    with counting(what, total) as tick:
        for thing in things:
            yield thing
            tick(1, failed(thing))
