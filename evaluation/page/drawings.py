"""Structures as the small plain data from which a page draws them: elements, coordinates, cell, bonds and a view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.ragged import RaggedBatch

MOST_ATOMS = 500  # of a structure that is drawn
# elements with directed bonds: what is not among them is drawn without bonds to its like
NONMETALS = frozenset((1, 2, *range(5, 11), *range(14, 19), *range(32, 37), *range(51, 55), 85, 86))
VIEW = (-28.0, -80.0)  # degrees: a crystal with c up is turned about c, then tilted towards the eye


def drawings(batch: RaggedBatch, rows: list[int]) -> list[dict[str, Any] | str]:
    """Each of these rows of a batch of crystals or molecules to draw, or in words why it cannot be.

    z: atomic numbers. x: fractional coordinates of a crystal, right-handed, and cell: its nine numbers; Cartesian ones
    of a molecule, in ångström. bonds: atom, atom, order of each; charges: where the batch has them. view: unit
    quaternion (x, y, z, w) that turns the structure for the eye, with z towards it.
    """
    crystal = "lattice" in batch.fields
    names = ("frac_coords", "lattice") if crystal else ("pos", "bond_atoms", "bond_order", "charges")
    known = ["ptr", "atomic_numbers", *(name for name in names if name in batch.fields)]
    known += ["bond_ptr"] if "bond_atoms" in known else []
    arrays = {name: batch[name].detach().cpu().numpy() for name in known}
    return [_drawing(arrays, row, crystal) for row in rows]


def _drawing(arrays: Mapping[str, NDArray], row: int, crystal: bool) -> dict[str, Any] | str:
    start, end = arrays["ptr"][row : row + 2].tolist()
    if end - start > MOST_ATOMS:
        return f"{end - start:,} atoms: not drawn here"
    z = arrays["atomic_numbers"][start:end]
    x = arrays["frac_coords" if crystal else "pos"][start:end].astype(np.float64)
    cell = arrays["lattice"][row].astype(np.float64) if crystal else np.eye(3)
    if not len(z) or not (np.isfinite(x).all() and np.isfinite(cell).all()) or z.min() < 1 or z.max() > 118:
        return "cannot be drawn"
    if not crystal:
        data = {"z": z.tolist(), "x": _round(x, 4), "view": _round(_principal_view(x), 3)}
        return data | _bonds(arrays, row, start, end)
    if abs(np.linalg.det(cell)) < 1e-6:
        return "the cell has no volume"
    if np.linalg.det(cell) < 0:
        cell, x = -cell, -x
    x = np.round(x - np.floor(x), 5) % 1.0
    return {"z": z.tolist(), "x": _round(x, 5), "cell": _round(cell, 5), "view": _round(_cell_view(cell), 3)}


def _round(values: NDArray[np.float64], digits: int) -> list[float]:
    return [int(v) if v == int(v) else v for v in np.round(values.ravel(), digits).tolist()]


def _bonds(arrays: Mapping[str, NDArray], row: int, start: int, end: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "bond_atoms" in arrays and "bond_order" in arrays:
        cut = slice(*arrays["bond_ptr"][row : row + 2].tolist())
        bonds = np.concatenate((arrays["bond_atoms"][cut], arrays["bond_order"][cut, None].astype(np.float64)), 1)
        found["bonds"] = _round(bonds, 1)
    if "charges" in arrays:
        found["charges"] = arrays["charges"][start:end].tolist()
    return found


def _cell_view(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """c upwards and a to the front, then VIEW."""
    from scipy.spatial.transform import Rotation

    up = cell[2] / np.linalg.norm(cell[2])
    front = cell[0] - (cell[0] @ up) * up
    front /= np.linalg.norm(front)
    frame = Rotation.from_matrix(np.stack((front, np.cross(up, front), up)))
    return (Rotation.from_euler("zx", (VIEW[0] - 90, VIEW[1]), degrees=True) * frame).as_quat()


def _principal_view(pos: NDArray[np.float64]) -> NDArray[np.float64]:
    """The longest axis to the right and the shortest towards the eye."""
    from scipy.spatial.transform import Rotation

    _, axes = np.linalg.eigh(np.cov((pos - pos.mean(0)).T, bias=True))
    axes = axes[:, ::-1]
    return Rotation.from_matrix((axes * [1, 1, np.linalg.det(axes)]).T).as_quat()


def element_table(batch: RaggedBatch) -> dict[int, tuple[str, float, str, bool]]:
    """Symbol, covalent radius in ångström, Jmol's colour and whether it is a metal, of each element of a batch."""
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    there = [z for z in np.unique(batch["atomic_numbers"].cpu().numpy()).tolist() if 1 <= z <= 118]
    colours = {z: "#" + "".join(f"{round(255 * part):02x}" for part in _colour(jmol_colors, z)) for z in there}
    radii = {z: round(float(covalent_radii[z]), 2) for z in there}
    return {z: (chemical_symbols[z], radii[z], colours[z], z not in NONMETALS) for z in there}


def _colour(table: NDArray[np.float64], z: int) -> NDArray[np.float64]:
    return table[z] if z < len(table) else np.full(3, 0.6)
