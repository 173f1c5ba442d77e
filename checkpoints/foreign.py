"""Published weights of other codes, as models of ours.

A published DiffCSP network keeps its parameter names in our CSPNet, so that importing it means finding the network in
the file, reading its sizes off the shapes, and building a model with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import builders
from checkpoints.manifest import digest
from checkpoints.pickles import read_foreign
from checkpoints.store import LoadedModel, build_with

ANCHOR = "csp_layer_0.edge_mlp.0.weight"  # the entry that tells where the network sits among the keys
LAYER = re.compile(r"csp_layer_(\d+)\.")
OUTSIDE = ("node_embedding", "atom_latent_emb", "final_layer_norm", "coord_out", "lattice_out", "type_out")


@dataclass(frozen=True)
class ReferenceShape:
    """Sizes of a published CSPNet; task is "csp" (elements given) or "ab-initio" (elements generated)."""

    task: str
    hidden: int
    layers: int
    frequencies: int
    time_dim: int


def import_reference(path: str | Path, kind: str = "diffcsp", statistics: Any = None) -> LoadedModel:
    """A model of ours with the weights of a published DiffCSP file: .safetensors, .pt or .ckpt.

    Sizes and task are inferred from the shapes; floats keep their precision. `training` of the result names the
    entries that were ignored and the objects that were not understood. statistics: of the training set, which such a
    file does not hold; without them an ab initio model cannot choose numbers of atoms. Nothing in the file is
    executed. Raises ValueError naming the path and what is missing or of the wrong shape.
    """
    if kind != "diffcsp":
        raise ValueError(f"kind '{kind}' cannot be imported; known: diffcsp")
    content, placeholders = read_foreign(path)
    weights, ignored = find_network(content, f"'{path}'")
    shape = infer_shape(weights, f"'{path}'")
    made = builders.kind(kind)
    config = _config(made.config, shape)
    if statistics is None:
        config, statistics = replace(config, clip=False), no_statistics()  # clipping needs the range of the data
    dtype = weights["lattice_out.weight"].dtype
    own = _renamed(weights, made, config, statistics)
    model = build_with(made, config, statistics, own, dtype if dtype == torch.float64 else None, f"'{path}'")
    training = {"imported_from": Path(path).name, "ignored": ignored, "placeholders": placeholders}
    return LoadedModel(model, Path(path).stem, kind, config, statistics, digest(Path(path).read_bytes()), training)


def find_network(content: Any, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The parameters of the CSPNet in a state dict or Lightning checkpoint, by published name, and the keys left over.

    Raises ValueError when there is no such network, or more than one.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds a {type(content).__name__}, not a dict of tensors")
    outer = []
    if isinstance(content.get("state_dict"), Mapping):
        outer = [str(key) for key in content if key != "state_dict"]
        content = content["state_dict"]
    entries = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    prefixes = [key.removesuffix(ANCHOR) for key in entries if key.endswith(ANCHOR)]
    if len(prefixes) != 1:
        found = ", ".join(map(str, list(content)[:4])) or "nothing"
        raise ValueError(f"{where} holds {len(prefixes)} networks of DiffCSP (by '*{ANCHOR}'); it has {found}, ...")
    weights = {}
    for key, value in entries.items():
        name = key.removeprefix(prefixes[0])
        if key.startswith(prefixes[0]) and (LAYER.match(name) or name.partition(".")[0] in OUTSIDE):
            weights[name] = value
    used = {prefixes[0] + name for name in weights}
    return weights, sorted(outer + [str(key) for key in content if key not in used])


def infer_shape(weights: Mapping[str, Tensor], where: str) -> ReferenceShape:
    """Sizes and task from the shapes: the first edge layer takes 2 hidden + 9 + 6 frequencies, and so on.

    Raises ValueError naming the first entry that is missing or whose shape does not fit.
    """
    first = weights[ANCHOR]
    if first.dim() != 2:
        raise ValueError(f"{where}: {ANCHOR} has shape {tuple(first.shape)}; needed: a matrix")
    hidden, width = first.shape
    frequencies, rest = divmod(width - 2 * hidden - 9, 6)
    if rest or frequencies < 1:
        raise ValueError(f"{where}: {ANCHOR} takes {width} inputs; needed: 2 x {hidden} + 9 + 6 x frequencies")
    numbers = {int(match[1]) for match in map(LAYER.match, weights) if match}
    layers = len(numbers)  # a gap in the numbers shows as a missing entry
    latent = weights.get("atom_latent_emb.weight")
    time_dim = latent.shape[-1] - hidden if latent is not None and latent.dim() == 2 else 0
    task = "ab-initio" if "type_out.weight" in weights or "node_embedding.bias" in weights else "csp"
    shape = ReferenceShape(task, hidden, layers, frequencies, time_dim)
    needed = _needed(shape)
    for name, size in needed.items():
        if name not in weights:
            raise ValueError(f"{where} lacks {name}; needed for {shape}")
        if tuple(weights[name].shape) != size:
            raise ValueError(f"{where}: {name} has shape {tuple(weights[name].shape)}; needed: {size}")
    if unknown := sorted(set(weights) - set(needed)):
        raise ValueError(f"{where} has entries that this network lacks: {', '.join(unknown[:4])}")
    return shape


def no_statistics() -> Any:
    """Statistics of an unknown training set: 0 structures, all 100 elements, means 0, standard deviations 1."""
    zeros, ones, elements = [0.0] * 3, [1.0] * 3, {str(number): 0 for number in range(1, 101)}
    return builders.to_statistics(
        {
            **{"num_structures": 0, "num_atoms": {}, "elements": elements, "properties": {}},
            **{"log_length_mean": zeros, "log_length_std": ones, "angle_mean": zeros, "angle_std": ones},
            **{"volume_per_atom_mean": 0.0, "volume_per_atom_std": 1.0},
        }
    )


def _needed(shape: ReferenceShape) -> dict[str, tuple[int, ...]]:
    """Every parameter of a published CSPNet with its shape."""
    h, ab_initio = shape.hidden, shape.task == "ab-initio"
    needed: dict[str, tuple[int, ...]] = {"node_embedding.weight": (h, 100) if ab_initio else (100, h)}
    needed |= {"atom_latent_emb.weight": (h, h + max(shape.time_dim, 1)), "atom_latent_emb.bias": (h,)}
    for i in range(shape.layers):
        edge = 2 * h + 9 + 6 * shape.frequencies
        for name, width in {"edge_mlp.0": edge, "edge_mlp.2": h, "node_mlp.0": 2 * h, "node_mlp.2": h}.items():
            needed |= {f"csp_layer_{i}.{name}.weight": (h, width), f"csp_layer_{i}.{name}.bias": (h,)}
        needed |= {f"csp_layer_{i}.layer_norm.weight": (h,), f"csp_layer_{i}.layer_norm.bias": (h,)}
    needed |= {"final_layer_norm.weight": (h,), "final_layer_norm.bias": (h,)}
    needed |= {"coord_out.weight": (3, h), "lattice_out.weight": (9, h)}
    if ab_initio:
        needed |= {"node_embedding.bias": (h,), "type_out.weight": (100, h), "type_out.bias": (100,)}
    return needed


def _config(cls: type, shape: ReferenceShape) -> Any:
    """The config of our model with these sizes; the other settings are the paper's, the defaults of the class."""
    known = {field.name for field in fields(cls)}
    if missing := [field.name for field in fields(ReferenceShape) if field.name not in known]:
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}; it has {', '.join(sorted(known))}")
    return cls(**{field.name: getattr(shape, field.name) for field in fields(ReferenceShape)})


def _renamed(weights: Mapping[str, Tensor], made: builders.Kind, config: Any, statistics: Any) -> dict[str, Tensor]:
    """The weights under the names that they have in our model, with what that model stores beside its network."""
    with torch.random.fork_rng(devices=[]):
        own = made.build(config, statistics).state_dict()
    prefix = next(name.removesuffix(ANCHOR) for name in own if name.endswith(ANCHOR))
    beside = {name: value for name, value in own.items() if not name.startswith(prefix)}
    return beside | {prefix + name: value for name, value in weights.items()}
