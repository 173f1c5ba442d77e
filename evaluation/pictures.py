"""Pictures of crystals, drawn with matplotlib: a cell, its atoms, and the images on its faces.

`plot_structure(structure, ax)` draws on given axes and returns them; nothing is shown or saved here.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pymatgen.core import Structure

VIEW = (12.0, 62.0)  # degrees: elevation and azimuth of the eye


def plot_structure(structure: Structure, ax: Axes | None = None, title: str | None = None, scale: float = 0.45) -> Axes:
    """Draw one crystal in parallel projection; needs the extra `plot`.

    Atoms have Jmol's colours and `scale` times their covalent radius in ångström; those on a face, edge or corner are
    repeated on the opposite ones. ax: matplotlib axes, new ones by default.
    """
    plt = _pyplot()
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    ax = ax if ax is not None else plt.subplots(figsize=(3, 3))[1]
    numbers, frac = _with_images(structure)
    eye = _view()
    atoms = frac @ structure.lattice.matrix @ eye
    for start, end in _edges() @ structure.lattice.matrix @ eye:
        depth = min(start[2], end[2])
        ax.plot(*np.stack([start, end])[:, :2].T, color="0.45", lw=0.9, zorder=depth - 1e-3)
    for z, (x, y, depth) in zip(numbers, atoms, strict=True):
        circle = plt.Circle((x, y), scale * covalent_radii[z], fc=jmol_colors[z], ec="0.2", lw=0.6, zorder=depth)
        ax.add_patch(circle)
    margin = scale * max(covalent_radii[z] for z in numbers)
    shown = np.concatenate([atoms, (_edges() @ structure.lattice.matrix @ eye).reshape(-1, 3)])
    low, high = shown.min(0) - margin, shown.max(0) + margin
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    ax.axis("off")
    if title is not None:
        ax.set_title(title, fontsize=9)
    return ax


def _pyplot():
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'atomsmith[plot]'") from None
    return plt


def _view() -> np.ndarray:
    """Orthogonal matrix (3, 3) from Cartesian rows to (right, up, towards the eye)."""
    elevation, azimuth = np.deg2rad(VIEW)
    towards = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return np.stack([right, np.cross(towards, right), towards], axis=1)


def _edges() -> np.ndarray:
    """Start and end (12, 2, 3) of the edges of a cell, fractional."""
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    return np.array([(a, b) for a, b in itertools.combinations(corners, 2) if np.abs(a - b).sum() == 1])


def _with_images(structure: Structure, near: float = 0.04) -> tuple[list[int], np.ndarray]:
    """Atomic numbers and fractional coordinates of the atoms and of their images on the faces of the cell."""
    numbers, frac = [], []
    for site in structure:
        inside = np.mod(site.frac_coords, 1.0)
        inside[inside > 1 - near] -= 1.0
        choices = [(x, x + 1) if abs(x) < near else (x,) for x in inside]
        for image in itertools.product(*choices):
            numbers.append(int(site.specie.Z))
            frac.append(image)
    return numbers, np.array(frac)
