"""What every folder of samples has: a manifest that says what was asked for, a record that says what is there."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chem.output import PART, usable_folder, write_atomically

RECORD, FRAMES, MANIFEST = "samples.jsonl", "samples.extxyz", "manifest.json"


class RecordFolder(ABC):
    """Samples made by one request, in order; abstract.

    request: what fixes the samples. A folder that holds samples of another request is refused, naming the arguments
    that differ; one of the same request is continued. `first` goes into the manifest of a new folder.
    """

    def __init__(self, path: str | Path, request: dict[str, Any], **first: Any):
        self.path, self.request = usable_folder(path, "out"), request
        manifest = self.path / MANIFEST
        if manifest.exists():
            self.manifest = _read_manifest(manifest)
            _refuse_other(self.path, self.manifest["request"], request)
        elif self.path.exists() and any(file.suffix != PART for file in self.path.iterdir()):
            raise ValueError(f"out = '{self.path}' is not empty and holds no {MANIFEST}; choose another folder")
        else:
            self.manifest = {"request": request, "started": _now(), **first}
            self.path.mkdir(parents=True, exist_ok=True)
            self.note()

    @property
    @abstractmethod
    def count(self) -> int:
        """Samples in the folder."""

    @abstractmethod
    def append(self, samples: Sequence[Any]) -> None:
        """Add the next samples; each is whole or absent."""

    @abstractmethod
    def samples(self, n: int) -> list[Any]:
        """The first n samples, read back from the record."""

    @abstractmethod
    def close(self) -> None:
        """End the output."""

    def note(self, **entries: Any) -> None:
        """Put entries into the manifest, atomically."""
        self.manifest = {**self.manifest, **entries, "updated": _now()}
        write_atomically(self.path / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    @contextmanager
    def kept(self, n: int) -> Iterator[None]:
        """Ends the output at the end; an error or an interruption says in a note how many of n samples are there."""
        try:
            yield
        except (KeyboardInterrupt, OSError, RuntimeError, MemoryError) as error:
            with suppress(OSError):  # a full disk; the record decides anyway
                self.note(n=self.count)
            error.add_note(f"{self.count} of {n} samples are in '{self.path}'; the same call continues")
            raise
        finally:
            self.close()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        manifest["request"].items()
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} is not a manifest of samples; choose another folder") from None
    return manifest


def _refuse_other(path: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(asked))
    differ = [k for k in sorted(made.keys() | plain.keys()) if made.get(k) != plain.get(k)]
    if differ:
        what = "; ".join(f"{k} = {made.get(k)!r}, asked {plain.get(k)!r}" for k in differ)
        raise ValueError(f"out = '{path}' holds samples made with {what}; choose another folder")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
