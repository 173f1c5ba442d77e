"""Results that are kept on disk under the hash of what they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

Arrays = dict[str, "NDArray[Any]"]
FIELDS = ("num_atoms", "atomic_numbers", "frac_coords", "lattice")


def remembered(
    name: str,
    batch: CrystalBatch,
    settings: Mapping[str, Any],
    compute: Callable[[], Arrays],
    cache: str | Path | None = None,
) -> Arrays:
    """What `compute` returns for these crystals and settings, read from disk where it was computed before.

    settings: everything besides the crystals that the result depends on, versions included; plain data. cache: folder,
    default ~/.cache/atomsmith. What cannot be read is computed again; a folder that cannot be written is not used.
    """
    from chem.packing import default_cache

    folder = Path(cache).expanduser() if cache is not None else default_cache()
    file = folder / "evaluation" / f"{name}-{content_hash(batch, settings)}.npz"
    with suppress(OSError, ValueError, zipfile.BadZipFile), np.load(file, allow_pickle=False) as found:
        return {key: found[key] for key in found.files}
    arrays = compute()
    with suppress(OSError):  # read-only or full: the result is still good
        _write(file, arrays)
    return arrays


def content_hash(batch: CrystalBatch, settings: Mapping[str, Any]) -> str:
    """First 24 hex digits of the sha256 of cells, atoms and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in FIELDS:
        values = batch[name].detach().cpu().numpy()
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:24]


def _write(file: Path, arrays: Arrays) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
