"""Trained weights by name: a folder of `config.json`, `model.safetensors` and `card.md`, verified by hashes.

`available()` lists what ships with the package and needs neither torch nor the network; `load`, `save` and
`register` read and write such folders; `import_reference` and `read_foreign` take files that others published.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from checkpoints.manifest import CheckpointInfo, available, register

if TYPE_CHECKING:
    from checkpoints.foreign import import_reference
    from checkpoints.pickles import Placeholder, read_foreign
    from checkpoints.store import LoadedModel, load, save

__all__ = [
    "CheckpointInfo",
    "LoadedModel",
    "Placeholder",
    "available",
    "import_reference",
    "load",
    "read_foreign",
    "register",
    "save",
]

# Modules that need torch are imported at first use, so that listing names stays instant.
_LAZY = {
    "LoadedModel": "store",
    "load": "store",
    "save": "store",
    "Placeholder": "pickles",
    "read_foreign": "pickles",
    "import_reference": "foreign",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'checkpoints' has no attribute '{name}'")
    return getattr(import_module(f"checkpoints.{_LAZY[name]}"), name)
