"""Steps of a pipeline that crash, hang, raise or cannot be loaded, and keep a log of what they computed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True)
class Squares:
    """square = row^2; rows that always or, by marks in the folder `log`, once end or stop their worker."""

    log: str
    crash: frozenset[int] = frozenset()
    crash_once: frozenset[int] = frozenset()
    hang: frozenset[int] = frozenset()
    fail: frozenset[int] = frozenset()
    nap: float = 0.0
    broken: bool = False

    def __call__(self):
        if self.broken:
            raise ImportError("the weights are missing")
        return self.rows

    def rows(self, start: int, stop: int) -> pa.Table:
        for row in range(start, stop):
            if row in self.crash or (row in self.crash_once and self._first(row)):
                os.kill(os.getpid(), signal.SIGKILL)
            if row in self.hang:
                time.sleep(3600)
            if row in self.fail:
                raise ZeroDivisionError("two\nlines")
            time.sleep(self.nap)
        with open(Path(self.log) / f"{start}-{stop}", "a") as file:
            file.write("computed\n")
        return pa.table({"square": [float(row**2) for row in range(start, stop)]})

    def _first(self, row: int) -> bool:
        try:
            (Path(self.log) / f"crashed-{row}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def computed(log: Path) -> Counter[int]:
    """How often each row was computed in a call that returned."""
    found: Counter[int] = Counter()
    for file in log.glob("*-*"):
        if not file.name.startswith("crashed"):
            start, stop = map(int, file.name.split("-"))
            for _ in file.read_text().splitlines():
                found.update(range(start, stop))
    return found
