"""Voronoi cells of all atoms of a batch of crystals: which neighbours share a face with an atom, and how large it is.

The plane half-way to a neighbour p is x . q = 1 with q = 2 p / |p|^2. The corners of the cell around the origin are the
facets of the convex hull of the q (polar duality), and its faces are the hull's corners. A hull in three dimensions
takes a twentieth of the time of a tessellation, which also builds the cells of all other points. One neighbour search
serves all atoms, and angles and areas of all faces are sums over the edges of all hulls at once.

Neighbours are those within 7 Å, and a cell that they leave open is tried again with twice the radius, up to the longest
diagonal of the unit cell, as CrystalNN of pymatgen does: corners beyond 3.5 Å may differ from those of the true cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.crystals import CrystalBatch

REACH = 7.0  # ångström, of the first search
MARGIN = 0.01  # ångström, added to the longest diagonal
OPEN = 1e-9  # a hull that has the origin at most this far inside, in 1/ångström, leaves a cell open
COINCIDENT = 1e-6  # ångström; nearer atoms have no plane between them


class Faces(NamedTuple):
    """F faces of the Voronoi cells of the atoms of a batch, sorted by atom.

    site, neighbour: (F,) atoms. vector: (F, 3) from site to neighbour in ångström. angle: (F,) solid angle in
    steradian, area: (F,) in square ångström.
    """

    site: Tensor
    neighbour: Tensor
    vector: Tensor
    angle: Tensor
    area: Tensor


class _Hulls(NamedTuple):
    """Triangles of hulls: their points (T, 3), the triangles opposite to these (T, 3), and cell corners (T, 3)."""

    points: NDArray[np.int64]
    across: NDArray[np.int64]
    corners: NDArray[np.float64]


def voronoi_faces(batch: CrystalBatch, device: torch.device | str | None = None) -> tuple[Faces, dict[int, str]]:
    """The faces of every atom's cell, and why the crystals without faces have none, by their place in the batch.

    device: default that of the batch; the hulls are found on the CPU. Needs crystals that can be measured, see
    evaluation.validity.unusable.
    """
    import torch

    batch = batch.to(torch.float64).to(device if device is not None else batch["lattice"].device)
    index = batch["batch"].cpu().numpy()
    limits = _longest_diagonals(batch["lattice"]).cpu().numpy() + MARGIN
    reach = np.full(len(batch), REACH)
    failed: dict[int, str] = {}
    found: list[Faces] = []
    todo = np.arange(len(index))
    while len(todo):
        again = []
        for radius in np.unique(reach[index[todo]]):
            atoms = todo[reach[index[todo]] == radius]
            faces, bad = _cells(batch, atoms, float(radius))
            found.append(faces)
            for atom, reason in bad.items():
                if reason or radius >= limits[index[atom]]:
                    failed.setdefault(int(index[atom]), reason or "an atom without a closed Voronoi cell")
                else:
                    again.append(atom)
        todo = np.array(again, dtype=np.int64)
        wider = np.unique(index[todo])
        reach[wider] = np.minimum(2 * reach[wider], limits[wider] + MARGIN / 10)
    faces = Faces(*(torch.cat(parts) for parts in zip(*found, strict=True))) if found else _none(batch)
    lost = torch.zeros(len(batch), dtype=torch.bool, device=batch["batch"].device)
    lost[list(failed)] = True
    faces = Faces(*(column[~lost[batch["batch"][faces.site]]] for column in faces))
    order = torch.argsort(faces.site, stable=True)
    return Faces(*(column[order] for column in faces)), failed


def _longest_diagonals(lattice: Tensor) -> Tensor:
    """Longest of the four diagonals (B,) of cells (B, 3, 3)."""
    signs = lattice.new_tensor([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    return (signs @ lattice).norm(dim=-1).amax(-1)


def _cells(batch: CrystalBatch, atoms: NDArray[np.int64], radius: float) -> tuple[Faces, dict[int, str]]:
    """Faces of some atoms by their neighbours within a radius; atoms without a cell, with a reason unless open."""
    import torch

    from chem.images import rows_times
    from chem.periodic import neighbour_list

    index = batch["batch"].cpu().numpy()
    used = np.unique(index[atoms])
    part = batch[torch.from_numpy(used).to(batch["batch"].device)]
    number = np.flatnonzero(np.isin(index, used))  # of the atoms of the part, in the batch
    (i, j), shift = neighbour_list(part, radius)
    frac = part["frac_coords"]
    vectors = rows_times(frac[j] + shift - frac[i], part["lattice"][part["batch"][i]])
    first = np.searchsorted(i.cpu().numpy(), np.arange(len(number) + 1))
    wanted = np.flatnonzero(np.isin(number, atoms))
    hulls, bad = _all_hulls(vectors.cpu().numpy(), [(int(k), slice(first[k], first[k + 1])) for k in wanted])
    edge, angle, area = _measure(hulls, vectors)
    where = torch.from_numpy(number).to(i.device)
    faces = Faces(where[i[edge]], where[j[edge]], vectors[edge], angle, area)
    return faces, {int(number[k]): reason for k, reason in bad.items()}


def _all_hulls(vectors: NDArray[np.float64], sites: Sequence[tuple[int, slice]]) -> tuple[_Hulls, dict[int, str]]:
    """The hulls of the neighbours of each site, numbered through, and the sites without one."""
    from scipy.spatial import ConvexHull, QhullError

    square = (vectors**2).sum(1)
    dual = 2 * vectors / np.maximum(square, COINCIDENT**2)[:, None]
    points, across, planes, bad, count = [], [], [], {}, 0
    for site, rows in sites:
        if len(square[rows]) and square[rows].min() < COINCIDENT**2:
            bad[site] = "two atoms in one place"
            continue
        try:
            hull = ConvexHull(dual[rows])
        except (QhullError, ValueError):  # ValueError: no points at all
            bad[site] = ""
            continue
        if not hull.equations[:, 3].max() < -OPEN:
            bad[site] = ""
            continue
        points.append(hull.simplices + rows.start)
        across.append(hull.neighbors + count)
        planes.append(hull.equations)
        count += len(hull.simplices)
    if not points:
        return _Hulls(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64), np.zeros((0, 3))), bad
    plane = np.concatenate(planes)
    return _Hulls(np.concatenate(points), np.concatenate(across), plane[:, :3] / -plane[:, 3:]), bad


def _measure(hulls: _Hulls, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (F,) of the points that have a face, ascending, and solid angle and area of each face."""
    import torch

    points, across, corners = (torch.from_numpy(x).to(like.device) for x in hulls)
    points, across = points.long(), across.long()
    present, face = torch.unique(points, return_inverse=True)
    face = face.reshape(-1, 3)
    # the triangles around a face come in no order, so it is cut into triangles from its centre to its edges
    count = torch.bincount(face.flatten(), minlength=len(present)).clamp(min=1)
    centre = like.new_zeros(len(present), 3).index_add(0, face.flatten(), corners.repeat_interleave(3, 0))
    centre = centre / count.unsqueeze(-1)
    angle, area = like.new_zeros(len(present)), like.new_zeros(len(present))
    number = torch.arange(len(points), device=like.device)
    for k in range(3):
        once = number < across[:, k]  # each edge is seen from the triangles on both of its sides
        a, b = corners[once], corners[across[once, k]]
        for end in ((k + 1) % 3, (k + 2) % 3):
            f = face[once, end]
            c = centre[f]
            angle.index_add_(0, f, _solid_angle(a, b, c))
            area.index_add_(0, f, torch.linalg.cross(a - c, b - c).norm(dim=-1) / 2)
    return present, angle, area


def _solid_angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Solid angle (E,) of triangles seen from the origin (Van Oosterom, Strackee 1983); zero for a degenerate one."""
    import torch

    la, lb, lc = (x.norm(dim=-1) for x in (a, b, c))
    volume = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    rest = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (a * c).sum(-1) * lb
    return 2 * torch.atan2(volume, rest)


def _none(batch: CrystalBatch) -> Faces:
    frac, index = batch["frac_coords"], batch["batch"]
    return Faces(index[:0], index[:0], frac[:0], frac[:0, 0], frac[:0, 0])
