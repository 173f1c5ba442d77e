"""The restricted reader of PyTorch files: it rebuilds what torch.save writes, and hostile files run nothing."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import Placeholder, read_foreign
from chem.rebuild import TABLE


class Custom:
    """A class that a checkpoint may hold and that must not be imported."""

    def __init__(self) -> None:
        self.rate = 0.5


class CustomDict(dict):
    """A dict of a class that must not be imported."""


def contents() -> dict[str, Any]:
    base = torch.arange(12.0)
    return {
        "base": base,
        "transposed": base.view(3, 4).t(),
        "offset": base[5:7],
        "bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "int8": torch.tensor([1, -2], dtype=torch.int8),
        "bool": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "repeated": torch.ones(1).expand(4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "state": torch.nn.Linear(2, 2).state_dict(),
        "nested": [(1, 2.5, None, True), {"text": "ü", b"bytes": b"\xff\x00"}],
        "sets": ({1, 2}, frozenset([3])),
        "bytearray": bytearray(b"x"),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "default": collections.defaultdict(list, {1: [2]}),
        "array": np.arange(6.0).reshape(2, 3),
        "words": np.array(["ab", "c"]),
        "number": np.float64(2.5),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "imaginary": 1j,
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return type(b) is torch.Tensor and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves_is_rebuilt(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path, wanted = tmp_path / "a.pt", contents()
    torch.save(wanted, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found, placeholders = read_foreign(path)
    for key in wanted:
        assert same(wanted[key], found[key]), key
    assert placeholders == []
    assert found["transposed"].stride() == (1, 4)
    assert found["base"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()
    assert isinstance(found["ordered"], collections.OrderedDict)
    assert not found["parameter"].requires_grad
    assert all(not tensor.__dict__ for tensor in found.values() if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_other_classes_become_placeholders(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.ckpt"
    content = {"x": torch.ones(2), "c": Custom(), "d": CustomDict(k=torch.zeros(1)), "f": os.path.join, "t": Custom}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found, placeholders = read_foreign(path)
    here = Custom.__module__
    assert set(placeholders) == {f"{here}.Custom", f"{here}.CustomDict", f"{os.path.__name__}.join"}
    assert isinstance(found["c"], Placeholder) and found["c"].path == f"{here}.Custom"
    assert found["c"].state == {"rate": 0.5}
    assert found["d"].items[0][0] == "k" and torch.equal(found["d"].items[0][1], torch.zeros(1))
    assert issubclass(found["t"], Placeholder) and repr(found["c"]) == f"<placeholder of {here}.Custom>"
    assert torch.equal(found["x"], torch.ones(2))


def archive(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> Path:
    """A file like those of torch.save around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, argument: bytes) -> bytes:
    """Opcodes that call a global with one argument."""
    return b"c" + f"{module}\n{name}\n".encode() + argument + b"\x85R"


def stack_call(module: str, name: str, argument: bytes) -> bytes:
    return text(module) + text(name) + b"\x93" + argument + b"\x85R"


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    """Opcodes that push a storage by its persistent id."""
    pid = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + b"\x8a\x08"
    return pid + struct.pack("<q", numel) + b"tQ"


def tensor(size: int, stride: int = 1, offset: int = 0, source: bytes | None = None) -> bytes:
    """Opcodes that push a tensor of one dimension."""
    numbers = [b"\x8a\x08" + struct.pack("<q", n) for n in (offset, size, stride)]
    arguments = (source or storage()) + numbers[0] + numbers[1] + b"\x85" + numbers[2] + b"\x85\x89N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


class Reduce:
    """Pickles as a call of any function."""

    def __init__(self, *value: Any):
        self.value = value

    def __reduce__(self) -> Any:
        return self.value


def hostile_programs(canary: Path) -> dict[str, tuple[bytes, str | None]]:
    """Pickle programs, and the placeholder each must leave (None: the file is refused)."""
    command = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w')"
    stop, start = b".", b"\x80\x02"
    return {
        "reduce": (pickle.dumps({"a": Reduce(os.system, (command,))}), f"{os.system.__module__}.system"),
        "eval": (start + call("builtins", "eval", text(python)) + stop, "builtins.eval"),
        "exec of python 2": (start + call("__builtin__", "exec", text(python)) + stop, "__builtin__.exec"),
        "dotted name": (b"\x80\x04" + stack_call("torch", "hub.load", text("x")) + stop, "torch.hub.load"),
        "dotted module": (start + call("torch.hub", "load", text("x")) + stop, "torch.hub.load"),
        "import": (start + call("hostile_module_of_a_test", "go", text("x")) + stop, "hostile_module_of_a_test.go"),
        "stack global": (b"\x80\x04" + stack_call("os", "system", text(command)) + stop, "os.system"),
        "inst": (b"(" + text(command) + b"ios\nsystem\n" + stop, "os.system"),
        "obj": (start + b"(cos\nsystem\n" + text(command) + b"o" + stop, "os.system"),
        "getattr chain": (
            start + b"cbuiltins\ngetattr\n" + call("builtins", "__import__", text("os")) + text("system") + b"\x86R"
            + text(command) + b"\x85R" + stop,
            "builtins.getattr",
        ),
        "newobj": (start + b"csubprocess\nPopen\n" + text(command) + b"\x85\x81" + stop, "subprocess.Popen"),
        "build": (start + b"cos\nenviron\n)\x81}" + text("x") + text("y") + b"sb" + stop, "os.environ"),
        "attribute of the table": (start + b"cbuiltins\ndict.__class__\n)R" + stop, "builtins.dict.__class__"),
        "change a table entry": (start + b"cbuiltins\nset\nN}" + text("_call") + b"cos\nsystem\ns\x86b" + stop, None),
        "change a placeholder type": (start + b"cos\nsystem\nN}" + text("path") + text("x") + b"s\x86b" + stop, None),
        "tensor of a placeholder": (
            start + b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN" + text(command) + b"\x85NtR" + stop, None,
        ),
        "state of a tensor": (start + tensor(4) + b"N}" + text("__class__") + b"cos\nsystem\ns\x86b" + stop, None),
        "extension code": (start + b"\x82\x01" + stop, None),
        "memo of four billion": (start + b"Nr\xff\xff\xff\xff" + stop, None),
        "text persistent id": (b"Pstorage\n" + stop, None),
        "bytes by length": (start + call("builtins", "bytes", b"\x8a\x05\x00\x00\x00\x00\x10") + stop, None),
        "storage larger than its entry": (start + tensor(1 << 40, source=storage(numel=1 << 40)) + stop, None),
        "tensor beyond its storage": (start + tensor(5) + stop, None),
        "offset beyond": (start + tensor(1, offset=4) + stop, None),
        "negative stride": (start + tensor(4, stride=-1) + stop, None),
        "negative size": (start + tensor(-4) + stop, None),
        "repeated for ever": (start + tensor(1 << 50, stride=0) + stop, None),
        "missing storage": (start + tensor(4, source=storage("../../etc/passwd")) + stop, None),
        "storage of another type": (start + tensor(4, source=storage(kind="QUInt8Storage")) + stop, None),
        "stack underflow": (start + b"R" + stop, None),
        "no stop": (start + b"N", None),
        "array of objects": (
            start + b"cnumpy\ndtype\n" + text("O8") + b"\x85R" + stop, None,
        ),
    }


@pytest.fixture
def hostile_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path that leaves a file behind when imported."""
    source = f"open({str(tmp_path / 'canary')!r}, 'w').close()\ndef go(x): pass\n"
    (tmp_path / "hostile_module_of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "canary"


@pytest.mark.parametrize("name", list(hostile_programs(Path("x"))))
def test_hostile_files_execute_nothing(tmp_path: Path, hostile_module: Path, name: str) -> None:
    program, expected = hostile_programs(hostile_module)[name]
    path = archive(tmp_path / "a.pt", program, **{"0": bytes(16)})
    modules, table = set(sys.modules), dict(TABLE)
    if expected is None:
        with pytest.raises(ValueError, match="a.pt") as caught:
            read_foreign(path)
        assert "\n" not in str(caught.value)
    else:
        assert any(found.startswith(expected) for found in read_foreign(path)[1])
    assert not hostile_module.exists()
    assert not {"hostile_module_of_a_test", "torch.hub"} & (set(sys.modules) - modules)
    assert table == TABLE


def test_the_table_of_hostile_files_can_bite(tmp_path: Path) -> None:
    """The same program does harm when the ordinary unpickler runs it, so the test above is worth something."""
    canary = tmp_path / "canary"
    pickle.loads(hostile_programs(canary)["stack global"][0])
    assert canary.exists()


def test_a_well_formed_program_of_this_kind_is_read(tmp_path: Path) -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    path = archive(tmp_path / "a.pt", b"\x80\x02" + tensor(2, stride=2, offset=1) + b".", **{"0": data})
    assert read_foreign(path)[0].tolist() == [1.0, 3.0]


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", b"\x80\x02N.", zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_foreign(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, zipped: bool, part: float) -> None:
    path = tmp_path / "a.pt"
    torch.save({"x": torch.randn(100), "y": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match="a.pt"):
        read_foreign(path)


@pytest.mark.parametrize(
    "data", [b"", b"hello, world, this is text", b"PK\x03\x04 not a zip", pickle.dumps({"a": 1}), b"\x80", bytes(100)]
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.pt"):
        read_foreign(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_foreign(path)


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Bytes changed at random: the file is read or refused with ValueError, nothing else."""
    path = tmp_path / "a.pt"
    random = np.random.default_rng(0)
    for zipped in (True, False):
        torch.save({"x": torch.ones(3), "c": Custom()}, path, _use_new_zipfile_serialization=zipped)
        original, refused = path.read_bytes(), 0
        for _ in range(150):
            data = bytearray(original)
            for at in random.integers(0, len(data), 3):
                data[at] = random.integers(256)
            path.write_bytes(data)
            try:
                read_foreign(path)
            except ValueError:
                refused += 1
        assert refused > 20
