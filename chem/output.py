"""Where results go: a folder that can hold them, and files that are either whole or as they were before."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # suffix of what is not yet whole


def usable_folder(path: str | Path, argument: str) -> Path:
    """The path of a folder that is there or can be made; raises ValueError naming the file that is in its way."""
    folder = Path(path).expanduser()
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ValueError(f"{argument} = '{path}' cannot be used: {there} is a file; allowed: a folder or a new path")
    return folder


@contextmanager
def noting(text: str) -> Iterator[None]:
    """Adds a note to an interruption or a fault within: what was kept, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, OSError, MemoryError) as error:
        if not isinstance(error, ValueError):  # data that are not found are no fault
            error.add_note(text)
        raise


def write_atomically(path: Path, data: bytes | str, sync: bool = True) -> None:
    """Write one file so that it is either absent, as before, or complete; see `write_together`."""
    write_together({path: data}, sync)


def write_together(files: Mapping[Path, bytes | str], sync: bool = True) -> None:
    """Write files that belong together: none is touched before all of them are on the disk under temporary names.

    sync: wait for the disk, so that a loss of power cannot leave an empty file. Raises OSError naming the file; then
    nothing has changed and nothing is left behind.
    """
    parts = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}") for path in files}
    try:
        for path, part in parts.items():
            _write(path, part, files[path], sync)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write(path: Path, part: Path, data: bytes | str, sync: bool) -> None:
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:  # the system does not say which file it was that found no room
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
