"""A folder of samples that grows: a record, an extxyz file, one CIF a sample, one manifest.

The record (JSON lines, every digit) decides: a sample exists when its line is whole, and what a crash left out of the
other files is written again from it. CIF files carry the symmetry found at `CIF_SYMPREC`, for looking at; record and
frames carry the sample as it was drawn. A sample that a format cannot hold, such as a cell without volume, stays in
the record, and the manifest names it with the reason.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.io import Writer
from chem.structure_text import one_line, structure_from_dict

if TYPE_CHECKING:
    from pymatgen.core import Structure

CIF_SYMPREC = 0.1
RECORD, FRAMES, CIFS, MANIFEST = "samples.jsonl", "samples.extxyz", "cif", "manifest.json"


class SampleFolder:
    """Samples made by one request, in order.

    request: what fixes the samples. A folder that holds samples of another request is refused, naming the arguments
    that differ; one of the same request is continued.
    """

    def __init__(self, path: str | Path, request: dict[str, Any]):
        self.path, self.request = Path(path), request
        manifest = self.path / MANIFEST
        if manifest.exists():
            self.manifest = _read_manifest(manifest)
            _refuse_other(self.path, self.manifest["request"], request)
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"out = '{self.path}' is not empty and holds no {MANIFEST}; choose another folder")
        else:
            self.manifest = {"request": request, "started": _now(), "cif_symprec": CIF_SYMPREC}
            self.path.mkdir(parents=True, exist_ok=True)
            self.note()
        self._record = Writer(self.path / RECORD, mode="a")
        self._frames = Writer(self.path / FRAMES, mode="a")
        self._complete()

    @property
    def count(self) -> int:
        """Samples in the folder."""
        return self._record.count

    def append(self, structures: Sequence[Structure]) -> None:
        """Add the next samples; each is whole or absent."""
        for structure in structures:
            self._record.write(structure)
            self._frames.write(structure)
            self._write_cif(self.count - 1, structure)

    def note(self, **entries: Any) -> None:
        """Put entries into the manifest, atomically."""
        self.manifest = {**self.manifest, **entries, "updated": _now()}
        part = self.path / f".{MANIFEST}.{os.getpid()}.part"
        part.write_text(json.dumps(self.manifest, indent=2) + "\n")
        os.replace(part, self.path / MANIFEST)

    def structures(self, n: int) -> list[Structure]:
        """The first n samples, read back from the record."""
        out: list[Structure] = []
        with open(self.path / RECORD) as file:
            for line in itertools.islice(file, n):
                row = json.loads(line)
                structure = structure_from_dict(row["structure"])
                structure.properties = dict(row["properties"])
                out.append(structure)
        return out

    def close(self) -> None:
        """End the output."""
        self._record.close()
        self._frames.close()

    def _write_cif(self, index: int, structure: Structure) -> None:
        name = f"{index:06d}_{structure.composition.reduced_formula}.cif"
        try:
            with Writer(self.path / CIFS / name, "cif", symprec=CIF_SYMPREC, mode="w") as writer:
                writer.write(structure)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            self.note(without_cif={**self.manifest.get("without_cif", {}), str(index): one_line(error)})

    def _complete(self) -> None:
        """Write frames and CIFs that a crash kept from following the record."""
        folder = self.path / CIFS
        folder.mkdir(exist_ok=True)
        have = {p.name[:6] for p in folder.glob("[0-9]*.cif")} | {
            f"{int(i):06d}" for i in self.manifest.get("without_cif", {})
        }
        missing = [i for i in range(self.count) if f"{i:06d}" not in have]
        if missing or self._frames.count < self.count:
            structures = self.structures(self.count)
            for structure in structures[self._frames.count :]:
                self._frames.write(structure)
            for i in missing:
                self._write_cif(i, structures[i])


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
