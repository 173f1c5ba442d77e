"""Cells as vectors of six numbers, for models that treat them as points of a Euclidean space.

None of them knows how a cell is rotated in space; the lattices they give back are in a fixed orientation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from chem.lattice import from_bounded, from_log_strain, from_parameters, parameters, to_bounded, to_log_strain

ROWS, COLUMNS = (0, 0, 1, 1, 1, 2), (0, 2, 0, 1, 2, 2)  # what is not zero in pymatgen's orientation


def to_entries(lattice: Tensor) -> Tensor:
    """The six entries (..., 6), in ångström, of a lattice (..., 3, 3) turned into pymatgen's orientation."""
    return from_parameters(*parameters(lattice))[..., ROWS, COLUMNS]


def from_entries(vector: Tensor) -> Tensor:
    """Lattice (..., 3, 3) of its six entries (..., 6)."""
    if vector.dim() == 0 or vector.shape[-1] != 6:
        raise ValueError(f"vector must have shape (..., 6), got {tuple(vector.shape)}")
    places = torch.tensor([3 * r + c for r, c in zip(ROWS, COLUMNS, strict=True)], device=vector.device)
    empty = vector.new_zeros(*vector.shape[:-1], 9)
    return empty.index_copy(-1, places, vector).unflatten(-1, (3, 3))


VECTORS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "parameters": (to_bounded, from_bounded),
    "log-strain": (to_log_strain, from_log_strain),
    "matrix": (to_entries, from_entries),
}
"""Name -> (to the vector, back). "parameters": lengths and logit angles; "log-strain"; "matrix": its entries."""
