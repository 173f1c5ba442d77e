"""Lattices and structures that are given as controls, read from Python objects, text or files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chem.lattice import from_parameters, volume
from generative.control_values import whole

FLAT = 1e-6  # volume over the product of the lengths below which a lattice that is given counts as degenerate
THIN = 1e-3  # ratio of singular values below which a lattice that a model made is too flat to scale


@dataclass(frozen=True, eq=False)
class Given:
    """A structure as it was given: numbers (N,) int64, coords (N, 3) and lattice (3, 3) rows in ångström, float64.

    Coordinates are fractional; those of a molecule, whose lattice has no rows, are Cartesian in ångström.
    """

    numbers: NDArray[np.int64]
    coords: NDArray[np.float64]
    lattice: NDArray[np.float64]

    @property
    def sha256(self) -> str:
        """Hash of the content, the same for a file and for the structure read from it."""
        parts = (self.numbers.astype("<i8"), self.coords.astype("<f8"), self.lattice.astype("<f8"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True, eq=False)
class FixedSites:
    """Sites of a structure whose elements and coordinates are kept, in the order given."""

    structure: Given
    sites: tuple[int, ...]

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(F,) elements of the sites."""
        return self.structure.numbers[list(self.sites)]

    @property
    def coords(self) -> NDArray[np.float64]:
        """(F, 3), as they were given."""
        return self.structure.coords[list(self.sites)]


def read_lattice(value: Any, argument: str = "lattice") -> NDArray[np.float64] | None:
    """Lattice (3, 3) of rows in ångström, of a matrix, a pymatgen Lattice or text.

    Text, or six numbers, are lengths and angles in degrees: "a,b,c,alpha,beta,gamma", in pymatgen's orientation.
    """
    if value is None:
        return None
    given = value.split(",") if isinstance(value, str) else getattr(value, "matrix", value)
    try:
        array = np.array(given, dtype=np.float64)
    except (ValueError, TypeError):
        array = np.zeros(0)
    if array.shape == (6,):
        array = _from_parameters(array)
    if array.shape != (3, 3):
        shown = " ".join(str(value).split())[:80]
        raise ValueError(f"{argument} = {shown}, allowed: 3 x 3 numbers, a Lattice, or a,b,c,alpha,beta,gamma")
    finite = bool(np.isfinite(array).all())
    if not finite or not abs(np.linalg.det(array)) > FLAT * np.linalg.norm(array, axis=1).prod():
        shown = value if isinstance(value, str) else np.array(given).tolist()
        raise ValueError(f"{argument} = {shown} is degenerate, allowed: three independent vectors in ångström")
    return array


def _from_parameters(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not (values > 0).all() or not (values[3:] < 180).all():
        return np.zeros((3, 3))
    return from_parameters(torch.from_numpy(values[:3]), torch.from_numpy(values[3:])).numpy()


def read_cell(value: Any, argument: str) -> Given | None:
    """The structure of a pymatgen Structure or of a file that holds one."""
    if value is None or isinstance(value, Given):
        return value
    from pymatgen.core import Structure

    from chem.convert import site_arrays

    structure = _from_file(value, argument) if isinstance(value, (str, Path)) else value
    if not isinstance(structure, Structure):
        raise ValueError(f"{argument} = {str(value)[:80]!r}, allowed: a pymatgen Structure or a file that holds one")
    numbers, _ = site_arrays(structure, argument)
    lattice = read_lattice(structure.lattice.matrix, f"{argument}: lattice")
    assert lattice is not None
    return Given(numbers, np.array(structure.frac_coords, dtype=np.float64).reshape(-1, 3), lattice)


def _from_file(path: str | Path, argument: str) -> Any:
    from chem.io import read

    record = only(read(path), path, argument)
    return record.structure


def only(records: Iterable[Any], path: str | Path, argument: str) -> Any:
    """The one record of a file; ValueError where there are none or several, or where it could not be read."""
    first = list(islice(records, 2))
    if len(first) != 1:
        raise ValueError(f"{argument} = '{path}' holds {'no' if not first else 'several'} structures, allowed: one")
    if first[0].error is not None:
        raise ValueError(f"{argument} = '{path}' cannot be read: {first[0].error}")
    return first[0]


def read_fixed(value: Any, reader: Callable[[Any, str], Given | None] = read_cell) -> FixedSites | None:
    """(structure, site indices), or "file.cif:0,1,2"; `reader` reads the structure."""
    if value is None:
        return None
    allowed = "(structure, site indices), or FILE:0,1,2"
    try:
        source, sites = value.rsplit(":", 1) if isinstance(value, str) else value
        given = [int(part) for part in sites.split(",")] if isinstance(sites, str) else [whole(i) for i in sites]
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"fixed = {str(value)[:80]!r}, allowed: {allowed}".replace("\n", " ")) from None
    if not given:
        raise ValueError(f"fixed names no site, allowed: {allowed}")
    structure = reader(source, "fixed")
    assert structure is not None
    for i in given:
        if not 0 <= i < len(structure.numbers):
            raise ValueError(f"fixed: site {i}, allowed: 0..{len(structure.numbers) - 1} in this structure")
        if given.count(i) > 1:
            raise ValueError(f"fixed: site {i} is named twice")
    return FixedSites(structure, tuple(given))


def scale_to_volume(lattice: Tensor, target: float) -> Tensor:
    """Lattices (B, 3, 3), float64, of one volume in cubic ångström, each of its own shape.

    Only what is too flat to scale changes shape: singular values are at least THIN of the largest. A cell that holds
    numbers which are not finite stays as it is.
    """
    finite = torch.isfinite(lattice).flatten(1).all(1).reshape(-1, 1, 1)
    safe = torch.where(finite, lattice, torch.eye(3, dtype=lattice.dtype))
    u, s, vh = torch.linalg.svd(safe)
    floor = THIN * s[:, :1].clamp(min=torch.finfo(s.dtype).tiny ** 0.25)
    thick = (u * torch.maximum(s, floor).unsqueeze(1)) @ vh
    safe = torch.where((s[:, 2:] < floor).unsqueeze(2), thick, safe)
    safe = safe / torch.linalg.vector_norm(safe, dim=(1, 2), keepdim=True)
    scaled = safe * (target / volume(safe)).pow(1 / 3).reshape(-1, 1, 1)
    return torch.where(finite, scaled, lattice)
