"""Weights that others published: files of `torch.save`, without running anything in them, and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints.store import read_tensors
from chem.pickles import Placeholder, read_pickled

__all__ = ["Placeholder", "read_foreign"]


def read_foreign(path: str | Path) -> tuple[Any, list[str]]:
    """The object in a .pt, .ckpt or .safetensors file, and the names in it that became placeholders.

    Tensors are rebuilt on the CPU, without gradients. Raises ValueError in one line when the file is damaged, is in no
    known format, or asks for more memory than its size allows.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            file.seek(0)
            if head[8:9] != b"{" or head[:2] == b"PK":
                return read_pickled(file)
            data = file.read()
    except OSError as error:
        raise ValueError(f"path '{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"path '{path}' cannot be read: {error}") from None
    return read_tensors(data, path), []
