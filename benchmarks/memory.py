"""Peak memory of a process with all its workers, sampled while something runs. Linux only."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

PAUSE = 0.2  # s


class Peak:
    """`with Peak() as peak:` and then `peak.bytes`: resident memory of this process and its descendants together.

    Pages that they share count once for each, so that it is an upper bound. NaN where there is no /proc.
    """

    def __init__(self) -> None:
        self.bytes = 0.0 if Path("/proc/self/statm").exists() else float("nan")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(PAUSE):
            if self.bytes == self.bytes:
                self.bytes = max(self.bytes, sum(_resident(process) for process in _family(os.getpid())))


def _family(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [root]
    for member in found:  # grows while it is read
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
