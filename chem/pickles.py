"""Reading files written by `torch.save` without running anything that is in them.

A pickle is a program: it names functions and calls them. This reader knows a fixed table of names (tensors, plain
containers, numpy arrays); every other name becomes an inert `Placeholder` type that records what it was given, so
that nothing is imported and nothing outside the table is called. Before a pickle runs, its opcodes are scanned, and
sizes are checked against the size of the file before memory is taken. What remains possible is a file that exhausts
the stack or the time (a key nested a million deep): it can stop the process, not direct it. Zip archives (torch 1.6
and later) and the older format of consecutive pickles are read.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, NoReturn

from torch import Tensor

from chem.rebuild import TABLE, Storage, StorageType, release

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
EXTENSIONS = ("EXT1", "EXT2", "EXT4")
OpenStorage = Callable[[str, int], bytearray]


class _Inert(type):
    """Type of the placeholder types; a pickle cannot change them."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise TypeError("a placeholder type cannot be changed")


class Placeholder(metaclass=_Inert):
    """Stands for an object of a class or function that was not imported.

    path: its dotted name. args, state and items: what the pickle passed to it, as far as this reader understands.
    """

    __slots__ = ("args", "state", "items")
    args: tuple[Any, ...]
    state: Any
    items: list[Any]
    path = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        """Keep the arguments; nothing is called."""
        self = object.__new__(cls)
        self.args, self.state, self.items = (*args, kwargs) if kwargs else args, None, []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The arguments were kept by `__new__`."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        """Record an item that the pickle adds to a list-like or set-like object."""
        self.items.append(item)

    add = append

    def __call__(self, *args: Any) -> Placeholder:
        """Calling a placeholder gives another one."""
        return type(self)(*args)

    def __repr__(self) -> str:
        return f"<placeholder of {self.path}>"


def read_pickled(file: IO[bytes]) -> tuple[Any, list[str]]:
    """The object in an open file of `torch.save`, and the names in it that became placeholders.

    Tensors are rebuilt on the CPU, without gradients. Raises ValueError in one line when the file is damaged, is in no
    known format, or asks for more memory than its size allows.
    """
    head = file.read(16)
    if head[:2] != b"PK" and head[:1] != b"\x80":
        raise ValueError(f"not a file of PyTorch: it starts with {head!r}")
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        return _read_zip(file, size) if head[:2] == b"PK" else _read_legacy(file.read())
    except Exception as error:  # a hostile or damaged file can fail in any way
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{type(error).__name__}: {reason}") from None


class _Reader(pickle.Unpickler):
    """Resolves names through the table, and storages through `open_storage(key, bytes)`."""

    def __init__(self, data: bytes, open_storage: OpenStorage, file_size: int):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._open, self._file_size = open_storage, file_size
        self._types: dict[str, type] = {}
        self._made: list[Tensor] = []

    def find_class(self, module: str, name: str) -> Any:
        known = TABLE.get((module, name))
        if known is not None:
            return known
        path = f"{module}.{name}"
        if path not in self._types:
            self._types[path] = _Inert("Placeholder", (Placeholder,), {"__slots__": (), "path": path})
        return self._types[path]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":  # the old format: a class and its source
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError(f"unknown persistent id of type {type(pid).__name__}")
        _, kind, key, _, numel = pid[:5]
        if not isinstance(kind, StorageType):
            raise ValueError(f"storages of type {getattr(kind, 'path', kind)!r} are not supported")
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise ValueError("a storage needs a name and a length >= 0")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("views of storages, written before torch 0.4, are not supported")
        return Storage(self._open(key, numel * kind.dtype.itemsize), kind.dtype, self._file_size, self._made)

    def run(self) -> tuple[Any, list[str]]:
        """The object, and the names that became placeholders."""
        content = self.load()
        release(self._made)
        return content, sorted(self._types)


def _read_zip(file: IO[bytes], size: int) -> tuple[Any, list[str]]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} entries are called data.pkl; a file of torch.save has one")
        root, left = roots[0], [size]

        def read(name: str, expected: int | None = None) -> bytearray:
            info = entries.get(f"{root}/{name}")
            if info is None:
                raise ValueError(f"entry '{root}/{name}' is missing")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > left[0]:
                raise ValueError(f"entry '{root}/{name}' is compressed or claims more bytes than the file has")
            if expected is not None and expected != info.file_size:
                raise ValueError(f"entry '{root}/{name}' has {info.file_size} bytes, its tensors need {expected}")
            left[0] -= info.file_size
            return bytearray(archive.read(info))

        if f"{root}/byteorder" in entries and bytes(read("byteorder")) != b"little":
            raise ValueError("big-endian files are not supported")
        buffers: dict[str, bytearray] = {}

        def open_storage(key: str, num_bytes: int) -> bytearray:
            if key not in buffers:
                buffers[key] = read(f"data/{key}", num_bytes)
            return buffers[key]

        program = bytes(read("data.pkl"))
        return _Reader(program[: scan(program)], open_storage, size).run()


def _read_legacy(data: bytes) -> tuple[Any, list[str]]:
    """Magic number, version and machine as pickles, then the object, the names of its storages, and their bytes."""
    at, buffers, left = 0, dict[str, bytearray](), [len(data)]

    def open_storage(key: str, num_bytes: int) -> bytearray:
        if key not in buffers:
            left[0] -= num_bytes
            if left[0] < 0:
                raise ValueError(f"storage '{key}' claims more bytes than the file has")
            buffers[key] = bytearray(num_bytes)
        return buffers[key]

    parts, placeholders = [], set[str]()
    for _ in range(5):
        end = at + scan(data[at:])
        part, names = _Reader(data[at:end], open_storage, len(data)).run()
        parts.append(part)
        placeholders.update(names)
        at = end
        if parts[0] != LEGACY_MAGIC:
            raise ValueError("a pickle, but not one of torch.save")
    if not isinstance(parts[2], dict) or not parts[2].get("little_endian", True):
        raise ValueError("big-endian files are not supported")
    if not isinstance(parts[4], list) or set(parts[4]) != set(buffers):
        raise ValueError("the list of storages does not match the tensors")
    for key in parts[4]:
        buffer = buffers[key]
        (numel,) = struct.unpack_from("<q", data, at)
        chunk = data[at + 8 : at + 8 + len(buffer)]
        if len(chunk) != len(buffer) or (numel and len(buffer) % numel) or bool(numel) != bool(buffer):
            raise ValueError(f"storage '{key}' is truncated")
        buffer[:] = chunk  # in place: the tensors look at this memory
        at += 8 + len(chunk)
    return parts[3], sorted(placeholders)


def scan(data: bytes) -> int:
    """Length of the first pickle; refuses what the C unpickler does without asking `find_class`, or without bounds."""
    stream = io.BytesIO(data)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in EXTENSIONS:
            raise ValueError("extension codes are not supported")
        if opcode.name.endswith("PUT") and int(argument or 0) > len(data):  # the memo is an array of this length
            raise ValueError("a memo index is larger than the pickle")
    return stream.tell()
