"""Files inside a zip archive, read where they are: nothing is written to the disk.

An archive is refused as a whole where it is encrypted, names a path outside itself, or unpacks to far more than it
weighs. A single damaged file in it is an error of that file alone.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

from chem.file_formats import Raw, Reader, refuse

RATIO = 200  # most bytes unpacked per byte of the archive; text of structures has 3 to 30
FREE_BYTES = 1 << 26  # unpacked bytes that are allowed whatever the ratio
KindOf = Callable[[str], str | None]  # format of a file by its name, None to pass it over


class Member:
    """A file in an open archive, with what readers use of a path: `stem`, `suffix`, `open` and its text.

    stem: path in the archive without suffix, less the folder that all files share.
    """

    def __init__(self, archive: ZipFile, info: ZipInfo, path: Path, stem: str):
        self._archive, self._info, self._path, self.stem = archive, info, path, stem
        self.suffix = PurePosixPath(info.filename).suffix

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """The unpacked file; text is streamed, "rb" is held in memory, as its readers jump back and forth."""
        if mode == "rb":
            return io.BytesIO(self._archive.read(self._info))
        return io.TextIOWrapper(self._archive.open(self._info), **options)

    def __str__(self) -> str:
        return f"{self._path}/{self._info.filename}"


@contextmanager
def open_archive(path: Path, kind_of: KindOf) -> Iterator[list[tuple[Member, str]]]:
    """The files of an archive whose format `kind_of` knows, by name, and their formats.

    Hidden files and what macOS adds are passed over. Raises ValueError, in one line, for a damaged archive, a path that
    leads outside, an encrypted file, more than RATIO bytes per byte of the archive, and nothing of known format.
    """
    try:
        archive = ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"archive {path} is damaged, cut off or no zip archive: {error}") from None
    with archive:
        known = _check(archive, path, kind_of)
        stems = _stems([info.filename for info, _ in known])
        yield [(Member(archive, info, path, stem), kind) for (info, kind), stem in zip(known, stems, strict=True)]


def read_archive(path: Path, readers: Mapping[str, Reader], kind_of: KindOf) -> Iterator[Raw]:
    """The parts of every file in an archive; raises as `open_archive`."""
    with open_archive(path, kind_of) as members:
        for member, kind in members:
            problem: Exception | None = ValueError("no structure in the file")
            try:
                for raw in readers[kind](member):
                    problem = None
                    yield raw._replace(source=str(member))
            except Exception as error:  # this file broke off; the others are none the worse
                problem = error
            if problem is not None:
                yield Raw(None, {}, partial(refuse, problem), str(member))


def _check(archive: ZipFile, path: Path, kind_of: KindOf) -> list[tuple[ZipInfo, str]]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if outside := [info.filename for info in infos if _leads_outside(info.filename)]:
        raise ValueError(f"archive {path} names a path outside itself: {outside[0][:100]!r}; such archives are refused")
    kinds = [(info, kind_of(PurePosixPath(info.filename).name)) for info in infos if not _is_hidden(info.filename)]
    known = sorted(((info, kind) for info, kind in kinds if kind), key=lambda pair: pair[0].filename)
    if not known:
        raise ValueError(f"archive {path} has no file of known format among its {len(infos)}")
    if locked := [info.filename for info, _ in known if info.flag_bits & 0x1]:
        raise ValueError(f"archive {path} is encrypted (file {locked[0]!r}); allowed: archives without a password")
    size, weight = sum(info.file_size for info, _ in known), path.stat().st_size
    if size > max(RATIO * weight, FREE_BYTES):
        raise ValueError(f"archive {path} of {weight} bytes unpacks to {size}; allowed: up to {RATIO} times its size")
    return known


def _leads_outside(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or parts[0].endswith(":")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _stems(names: list[str]) -> list[str]:
    folders = [PurePosixPath(name).parent.parts for name in names]
    shared = 0
    while all(len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders):
        shared += 1
    cut = [PurePosixPath(*PurePosixPath(name).parts[shared:]) for name in names]
    return [str(path.with_suffix("")) for path in cut]
