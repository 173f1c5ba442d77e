"""Which checkpoints ship with the package, the hashes of their files, and the layout of `config.json`.

`manifest.json` maps name -> {file: sha256}. A folder that is not shipped carries the same table for itself in
`sha256.json`, written by `save`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chem.output import write_atomically

SHIPPED = Path(__file__).resolve().parent
MANIFEST, HASHES = "manifest.json", "sha256.json"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "card.md"
FILES = (CONFIG, WEIGHTS, CARD)
FORMAT = 1
CONFIG_KEYS = ("format", "kind", "config", "statistics", "training")


@dataclass(frozen=True)
class CheckpointInfo:
    """A shipped checkpoint: its kind, its folder, its size in bytes, the hash of its weights and how it was trained."""

    kind: str
    folder: Path
    num_bytes: int
    sha256: str
    training: dict[str, Any]


def available(folder: Path | str = SHIPPED) -> dict[str, CheckpointInfo]:
    """The checkpoints that ship with the package, by name; those of another folder with a manifest if one is given."""
    found = {}
    for name, hashes in sorted(read_hashes(Path(folder) / MANIFEST).items()):
        place = Path(folder) / name
        if all((place / file).is_file() for file in hashes):
            config = read_config(place)
            size = sum((place / file).stat().st_size for file in hashes)
            found[name] = CheckpointInfo(config["kind"], place, size, hashes[WEIGHTS], config["training"])
    return found


def register(folder: Path | str = SHIPPED) -> dict[str, dict[str, str]]:
    """Rewrite `manifest.json` from the checkpoints found in `folder`, and return it.

    Raises ValueError where a checkpoint lacks a file or differs from the hashes saved with it.
    """
    manifest: dict[str, dict[str, str]] = {}
    for place in sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG}")):
        read_config(place)
        saved = read_hashes(place / HASHES)
        manifest[place.name] = {file: digest(read_verified(place / file, saved.get(file))) for file in FILES}
    write_atomically(Path(folder) / MANIFEST, to_json(manifest))
    return manifest


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_verified(path: Path, expected: str | None) -> bytes:
    """The bytes of a file, checked against a hash unless that is None.

    Raises ValueError naming the file when it is missing, or with both hashes when it differs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"checkpoint file '{path}' cannot be read: {error.strerror}") from None
    if expected is not None and digest(data) != expected:
        raise ValueError(
            f"checkpoint file '{path}' is damaged or was changed: expected sha256 {expected}, "
            f"found {digest(data)} ({len(data)} bytes)"
        )
    return data


def read_hashes(path: Path) -> dict[str, Any]:
    """A table of hashes, empty where there is no such file; raises ValueError when it is not JSON."""
    return _json_object(path, read_verified(path, None)) if path.is_file() else {}


def read_config(folder: Path, expected: str | None = None) -> dict[str, Any]:
    """`config.json` of a checkpoint folder, with every key of `CONFIG_KEYS`.

    Raises ValueError for unknown keys, missing keys, a newer format, or a hash that differs from `expected`.
    """
    path = folder / CONFIG
    content = _json_object(path, read_verified(path, expected))
    refuse_unknown(content, CONFIG_KEYS, f"'{path}'")
    content.setdefault("training", {})
    if missing := [key for key in CONFIG_KEYS if key not in content]:
        raise ValueError(f"'{path}' lacks {', '.join(missing)}; needed: {', '.join(CONFIG_KEYS)}")
    if content["format"] != FORMAT:
        raise ValueError(f"'{path}' has format {content['format']!r}; this version reads format {FORMAT}")
    return content


def refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise ValueError naming the keys of `values` that are not known, and the known ones."""
    if unknown := sorted(str(key) for key in values if key not in known):
        raise ValueError(f"{where} has unknown keys {', '.join(unknown)}; known: {', '.join(known)}")


def to_json(content: Any) -> bytes:
    """Readable JSON with a final newline; raises ValueError for what JSON cannot hold, NaN included."""
    try:
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint metadata must be plain JSON: {error}") from None


def _json_object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a JSON object, got {type(content).__name__}")
    return content
