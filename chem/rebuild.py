"""The table of names that the pickle reader understands, and the functions behind them.

What a pickle can reach are instances of `Function` and `StorageType`, which it cannot change, and the plain objects
these return. Sizes, strides and offsets are checked before a tensor is made.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

# A tensor may repeat its storage (stride 0); this much is allowed whatever the size of the file.
FREE_BYTES = 1 << 26

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.bool, torch.complex64, torch.complex128),
    )
}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class _Frozen:
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise TypeError("an entry of the table cannot be changed")


class Function(_Frozen):
    """A callable that a pickle may name."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return self._call(*args)


class StorageType(_Frozen):
    """The type of a storage, as a pickle names it."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class Storage(_Frozen):
    """Memory that tensors share.

    file_size: bytes of the whole file, a measure of what its tensors may ask for. made: every tensor made so far.
    """

    __slots__ = ("buffer", "dtype", "file_size", "made")

    def __init__(self, buffer: bytearray, dtype: torch.dtype, file_size: int, made: list[Tensor]):
        self.buffer, self.dtype, self.file_size, self.made = buffer, dtype, file_size, made


class _Ordered(OrderedDict):
    """An OrderedDict whose attributes a pickle cannot set (`nn.Module.state_dict` pickles `_metadata` that way)."""

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor needs a storage, got {type(storage).__name__}")
    dtype = dtype or storage.dtype
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor needs an offset, sizes and strides that are integers >= 0")
    numel, count = len(storage.buffer) // dtype.itemsize, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset - 1
    if last >= numel:
        raise ValueError(f"a tensor of size {size} reaches beyond its storage of {numel} elements")
    if count * dtype.itemsize > max(storage.file_size, FREE_BYTES):
        raise ValueError(f"a tensor of size {size} is larger than its file")
    flat = torch.frombuffer(storage.buffer, dtype=dtype) if count else torch.empty(0, dtype=dtype)
    out = flat.as_strided(size, stride, offset if count else 0)
    # A pickle may set the state of any object; `Tensor.__setstate__` would let it. Removed when the pickle has run.
    out.__setstate__ = _refuse_state  # type: ignore[method-assign]
    storage.made.append(out)
    return out


def _refuse_state(state: Any) -> NoReturn:
    raise TypeError("the state of a tensor cannot be set")


def release(made: list[Tensor]) -> None:
    """Make ordinary tensors of those that the pickle made."""
    for tensor in made:
        tensor.__dict__.pop("__setstate__", None)


def _tensor_v3(*args: Any) -> Tensor:
    storage, offset, size, stride, _grad, _hooks, dtype, *_ = args
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor needs a dtype")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    if not isinstance(function, Function):
        raise ValueError("a tensor subclass is rebuilt by an unknown function")
    return function(*args)


def _first(value: Any, *_: Any) -> Any:
    return value


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """Protocol 2 writes bytes as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("bytes are written in latin1 or utf-8")
    return text.encode(encoding)


def _bytes(value: Any = b"", *encoding: Any) -> bytes:
    if isinstance(value, str):
        return _encode(value, *encoding)
    if not isinstance(value, (bytes, bytearray, list, tuple)):  # bytes(n) would take n bytes
        raise ValueError(f"bytes cannot be made of {type(value).__name__}")
    return bytes(value)


class _DType(_Frozen):
    """A numpy dtype while the pickle runs: numpy's own `__setstate__` trusts its input."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or code[:1] not in tuple("biufcSU") or not code[1:].isdigit():
            raise ValueError(f"numpy dtype {code!r} is not supported")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] == ">":
            raise ValueError("big-endian numpy arrays are not supported")


class _Array(np.ndarray):
    """An array whose contents are checked; `_reconstruct` makes an empty one and the pickle then sets its state."""

    def __setstate__(self, state: Any) -> None:
        _, shape, holder, fortran, data = state
        if not isinstance(holder, _DType) or not isinstance(data, (bytes, bytearray)):
            raise ValueError("a numpy array needs a dtype and its bytes")
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * holder.dtype.itemsize != len(data):
            raise ValueError(f"a numpy array of shape {shape} does not match its {len(data)} bytes")
        super().__setstate__((1, tuple(shape), holder.dtype, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _array(*_: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _scalar(holder: Any, data: Any) -> Any:
    if not isinstance(holder, _DType) or not isinstance(data, bytes) or len(data) != holder.dtype.itemsize:
        raise ValueError("a numpy scalar needs a dtype and as many bytes as that takes")
    return np.frombuffer(data, holder.dtype)[0]


def _table() -> dict[tuple[str, str], Any]:
    functions: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._tensor._rebuild_from_type_v2": _from_type,
        "torch.Size": tuple,
        "torch.device": lambda kind, index=None: str(kind) if index is None else f"{kind}:{index}",
        "collections.OrderedDict": _Ordered,
        "collections.defaultdict": lambda _factory=None, *items: dict(*items),
        "_codecs.encode": _encode,
        "numpy.dtype": _DType,
        "numpy.ndarray": _array,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        functions |= {f"{module}._reconstruct": _array, f"{module}.scalar": _scalar}
    table: dict[tuple[str, str], Any] = {}
    for path, call in functions.items():
        module, name = path.rsplit(".", 1)
        table[module, name] = Function(call)
    plain = (set, frozenset, list, tuple, dict, complex)
    for module in ("builtins", "__builtin__"):
        table |= {(module, kind.__name__): Function(kind) for kind in plain}
        table[module, "bytes"] = Function(_bytes)
        table[module, "bytearray"] = Function(lambda *args: bytearray(_bytes(*args)))
    for module in ("torch", "torch.storage", "torch.cuda"):
        table |= {(module, name): StorageType(dtype) for name, dtype in STORAGES.items()}
    return table | {("torch", name): dtype for name, dtype in DTYPES.items()}


TABLE: dict[tuple[str, str], Any] = _table()
