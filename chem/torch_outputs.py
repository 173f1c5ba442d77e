"""Structures that CDVAE, DiffCSP and their heirs leave in .pt files (`eval_gen.pt`, `eval_diff.pt`, ...).

Such a file holds flat tensors over B crystals of M atoms in all: `frac_coords` (M, 3), `atom_types` (M,) atomic numbers
or (M, K) scores of the elements 1 to K, `num_atoms` (B,), `lengths` (B, 3) in ångström and `angles` (B, 3) in degrees;
all of them with a leading axis of E where every crystal was made E times. The cell is the one of lengths and angles, as
in the metrics of these codes, so a left-handed cell comes as its mirror image. Anything else in the file, such as the
data set's own batch, is neither needed nor rebuilt, and nothing in it is executed (chem.pickles).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.file_formats import Raw, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

FIELDS = ("frac_coords", "atom_types", "num_atoms", "lengths", "angles")


def read_outputs(path: Source) -> Iterator[Raw[Structure]]:
    """The crystals of a file, all E candidates of one after each other; raises ValueError for any other file."""
    from chem.pickles import read_pickled

    with path.open("rb") as file:
        content, _ = read_pickled(file)
    fields = _fields(content)
    ends = np.cumsum(fields["num_atoms"], axis=1)
    evaluations, crystals = ends.shape
    for crystal in range(crystals):
        for e in range(evaluations):
            atoms = slice(ends[e, crystal] - fields["num_atoms"][e, crystal], ends[e, crystal])
            cell = fields["lengths"][e, crystal], fields["angles"][e, crystal]
            build = partial(_structure, fields["atom_types"][e, atoms], fields["frac_coords"][e, atoms], *cell)
            name = f"{path.stem}_{crystal}" if evaluations == 1 else f"{path.stem}_{crystal}_{e}"
            yield Raw(name, {}, build)


def _fields(content: Any) -> dict[str, NDArray[Any]]:
    """The five arrays, with the leading axis; raises ValueError where they are missing or do not belong together."""
    if not isinstance(content, dict) or not all(name in content for name in FIELDS):
        keys = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"no structures of CDVAE or DiffCSP: needed are {', '.join(FIELDS)}; the file has {keys}")
    fields = {name: _array(name, content[name]) for name in FIELDS}
    if fields["frac_coords"].ndim == 2:
        fields = {name: array[None] for name, array in fields.items()}
    if fields["atom_types"].ndim == 3 and fields["atom_types"].shape[-1]:
        fields["atom_types"] = fields["atom_types"].argmax(-1) + 1
    evaluations, atoms = (*fields["frac_coords"].shape, 0)[:2]
    crystals = fields["num_atoms"].size // max(evaluations, 1)
    shapes = {
        "frac_coords": (evaluations, atoms, 3),
        "atom_types": (evaluations, atoms),
        "num_atoms": (evaluations, crystals),
        "lengths": (evaluations, crystals, 3),
        "angles": (evaluations, crystals, 3),
    }
    for name, shape in shapes.items():
        if fields[name].shape != shape:
            raise ValueError(f"{name} has the shape {fields[name].shape}, allowed beside the other fields: {shape}")
    counts = fields["num_atoms"]
    whole = counts.dtype.kind == "i" and bool(((counts >= 0) & (counts <= atoms)).all())
    if not whole or (counts.sum(1) != atoms).any():
        raise ValueError(f"num_atoms must be counts that add up to the {atoms} atoms of frac_coords")
    return fields


def _array(name: str, value: Any) -> NDArray[Any]:
    import torch

    if isinstance(value, torch.Tensor) and not value.is_complex():
        return value.detach().to(torch.float64 if value.is_floating_point() else torch.int64).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return np.asarray(value).astype(np.float64 if value.dtype.kind == "f" else np.int64)
    raise ValueError(f"{name} is a {type(value).__name__}, needed: a tensor of numbers")


def _structure(
    numbers: NDArray[Any], frac_coords: NDArray[Any], lengths: NDArray[Any], angles: NDArray[Any]
) -> Structure:
    from pymatgen.core import Element, Lattice, Structure

    if not (np.isfinite(lengths).all() and np.isfinite(angles).all()):
        raise ValueError("a cell length or angle is not a finite number")
    if not (lengths > 0).all():
        raise ValueError(f"cell lengths {lengths.round(3).tolist()} are not all positive")
    half = angles.sum() / 2
    if not ((angles > 0) & (angles < 180) & (angles < half)).all() or half >= 180:
        raise ValueError(f"cell angles {angles.round(3).tolist()} belong to no cell")
    lattice = Lattice.from_parameters(*lengths, *angles)
    return Structure(lattice, [Element.from_Z(int(z)) for z in numbers], frac_coords)
