"""Loading and saving checkpoint folders: JSON and safetensors only, hashed, written atomically, no pickles."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from checkpoints import builders
from checkpoints.manifest import (
    CARD,
    CONFIG,
    FORMAT,
    HASHES,
    MANIFEST,
    SHIPPED,
    WEIGHTS,
    available,
    digest,
    read_config,
    read_hashes,
    read_verified,
    to_json,
)
from chem.output import write_together

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to sample, and where it comes from.

    model: in evaluation mode. sha256: hash of the file of weights. statistics: of its training set. training: how it
    was trained, or, for an imported file, what was ignored in it.
    """

    model: nn.Module
    name: str
    kind: str
    config: Any
    statistics: Any
    sha256: str
    training: dict[str, Any]

    def log_prob(self, structures: Sequence[Structure], **options: Any) -> Tensor:
        """log density (B,) in nats of pymatgen structures, given their composition where the model wants one.

        In their Niggli cells, as the model was trained. The measure, the options and what they raise are those of
        `generative.likelihood.log_prob`: only models all of whose noise is a flow have a density. Raises ValueError
        that names the first structure, by its property `id` where it has one, that cannot be reduced to a cell the
        model can hold.
        """
        from chem.convert import batch_from_arrays
        from chem.ragged import concatenate
        from chem.row_parsing import reduced_arrays
        from generative.likelihood import log_prob

        model: Any = self.model
        batches = []
        for i, structure in enumerate(structures):
            try:
                batches.append(batch_from_arrays(*([array] for array in reduced_arrays(structure))))
                model.encode(batches[-1])
            except ValueError as error:
                name = (structure.properties or {}).get("id", i)
                raise ValueError(f"structures: {name}: {error}") from None
        if not batches:
            raise ValueError("structures is empty, allowed: at least one")
        return log_prob(model, concatenate(batches).to(model.device), **options).cpu()


def load(
    name_or_path: str | Path, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """A model by the name of a shipped checkpoint or from a folder, verified against its hashes.

    device "auto" is CUDA, else MPS, else the CPU. dtype None is float32, whatever the precision on disk. Raises
    ValueError naming the file, the key or the known names; the global random state is left as it was.
    """
    place, name, hashes = _find(name_or_path)
    content = read_config(place, hashes.get(CONFIG))
    data = read_verified(place / WEIGHTS, hashes.get(WEIGHTS))
    if CARD in hashes:
        read_verified(place / CARD, hashes[CARD])
    kind = builders.kind(content["kind"])
    config = builders.to_config(kind.config, content["config"], f"'{place / CONFIG}'")
    statistics = builders.to_statistics(content["statistics"])
    model = build_with(kind, config, statistics, read_tensors(data, place / WEIGHTS), dtype, f"'{place / WEIGHTS}'")
    model = model.to(pick_device(device))
    return LoadedModel(model, name, content["kind"], config, statistics, digest(data), content["training"])


def save(
    folder: str | Path,
    kind: str,
    config: Any,
    statistics: Any,
    state_dict: Mapping[str, Tensor],
    card: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    training: Mapping[str, Any] | None = None,
    exact: Collection[str] = (),
) -> str:
    """Write a checkpoint folder and return the SHA-256 of its weights.

    config and statistics: dicts or dataclasses. dtype: of the floating-point tensors on disk; those named in `exact`
    (buffers such as noise schedules) keep theirs. A checkpoint in place is replaced once all of the new one is on the
    disk, the hashes last, so that a full disk spares it. Raises ValueError for a tensor that is not finite.
    """
    from safetensors.torch import save as to_safetensors

    builders.to_config(builders.kind(kind).config, _plain(config), f"kind '{kind}'")
    builders.to_statistics(_plain(statistics))
    tensors = {}
    for name, value in state_dict.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"state_dict entry '{name}' holds values that are not finite")
        stored = value.dtype if name in exact or not value.is_floating_point() else dtype
        tensors[name] = value.detach().to("cpu", stored, copy=True).contiguous()
    content = {"format": FORMAT, "kind": kind, "config": _plain(config), "statistics": _plain(statistics)}
    files = {
        CONFIG: to_json({**content, "training": dict(training or {})}),
        WEIGHTS: to_safetensors(tensors, metadata={"format": "pt"}),
        CARD: (card or f"# {Path(folder).name}\n").encode(),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    hashes = {HASHES: to_json({file: digest(data) for file, data in files.items()})}
    write_together({Path(folder) / file: data for file, data in {**files, **hashes}.items()})
    return digest(files[WEIGHTS])


def build_with(
    kind: builders.Kind,
    config: Any,
    statistics: Any,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    where: str,
) -> nn.Module:
    """A model of this kind holding these tensors, in evaluation mode; raises ValueError naming tensors that do not fit.

    The builder's random initialisation does not touch the global random state.
    """
    with torch.random.fork_rng(devices=[]):
        model = kind.build(config, statistics)
    if dtype is not None:
        model = model.to(dtype)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    for problem, names in (
        ("lacks", [n for n in own if n not in given]),
        ("has unknown", [n for n in given if n not in own]),
        ("has other shapes for", [f"{n} {given[n]} (needs {own[n]})" for n in own if given.get(n, own[n]) != own[n]]),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(f"weights in {where} do not fit the config: file {problem} {', '.join(names[:4])}{more}")
    model.load_state_dict(dict(tensors))
    return model.eval()


def read_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; raises ValueError naming the file when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_safetensors

    try:
        return from_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"'{path}' is not a complete safetensors file: {str(error).splitlines()[0]}") from None


def pick_device(device: str | torch.device) -> torch.device:
    """The device named, or the best one for "auto"; raises ValueError for one that torch does not know or have."""
    if device != "auto":
        try:
            if torch.empty(1, device=device).is_meta:
                raise RuntimeError("it holds no numbers")
            return torch.device(device)
        except (RuntimeError, AssertionError) as error:  # the second where torch was built without that device
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device must be 'auto' or a device of this machine such as 'cpu', got '{device}' ({reason})"
            ) from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _find(name_or_path: str | Path) -> tuple[Path, str, dict[str, str]]:
    """Folder, name and expected hashes."""
    manifest = read_hashes(SHIPPED / MANIFEST)
    if isinstance(name_or_path, str) and name_or_path in manifest:
        return SHIPPED / name_or_path, name_or_path, manifest[name_or_path]
    place = Path(name_or_path)
    if not place.is_dir():
        known = ", ".join(available(SHIPPED)) or "none"
        raise ValueError(f"checkpoint '{name_or_path}' is neither a shipped name (known: {known}) nor a folder")
    if not (hashes := read_hashes(place / HASHES)):
        warnings.warn(f"checkpoint '{place}' has no {HASHES}: nothing tells whether its files are sound", stacklevel=3)
    return place, place.resolve().name, hashes


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise ValueError(f"config and statistics must be dicts or dataclasses, got {type(value).__name__}")
