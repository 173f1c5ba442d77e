"""What a model must know of its training set: sizes, elements, cell shapes and the scale of every property.

They are computed once, from the training split, and travel inside a checkpoint; nothing of them is in the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from chem.cell_vectors import VECTORS
from chem.lattice import parameters, volume
from chem.molecules import MoleculeBatch
from chem.ragged import RaggedBatch
from chem.sizes import SizePrior

Triple = tuple[float, float, float]
NAN = float("nan")  # one object, so that statistics with NaN compare as equal


@dataclass(frozen=True)
class PropertyStatistics:
    """Mean, standard deviation and range of the `count` values of one column that are not NaN; NaN when there are none.

    low and high are NaN, too, in statistics that were written before they were kept.
    """

    count: int
    mean: float
    std: float
    low: float = NAN
    high: float = NAN


@dataclass(frozen=True)
class CellMoments:
    """Entrywise mean and standard deviation of cells as vectors of six numbers."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of crystals or molecules; standard deviations are those of the population.

    num_atoms: atoms per structure -> structures. elements: atomic number -> atoms. log_length_*: of ln a, ln b, ln c
    (ångström). angle_*: alpha, beta, gamma in degrees. volume_per_atom_*: of ln(V / N) (cubic ångström). Molecules
    have no cell: there every number of a cell is NaN. cells: moments of each of `chem.cell_vectors.VECTORS` that
    all cells have; empty in statistics that were written before they were kept.
    """

    num_structures: int
    num_atoms: dict[int, int]
    elements: dict[int, int]
    log_length_mean: Triple
    log_length_std: Triple
    angle_mean: Triple
    angle_std: Triple
    volume_per_atom_mean: float
    volume_per_atom_std: float
    properties: dict[str, PropertyStatistics] = field(default_factory=dict)
    cells: dict[str, CellMoments] = field(default_factory=dict)

    @classmethod
    def compute(cls, batch: RaggedBatch) -> Statistics:
        """Statistics of a batch; raises ValueError when it is empty or lacks elements or, of crystals, lattices."""
        if len(batch) == 0:
            raise ValueError("statistics need at least one structure, the batch has none")
        molecules = isinstance(batch, MoleculeBatch)
        for name in ("atomic_numbers", *(() if molecules else ("lattice",))):
            if name not in batch.fields:
                raise ValueError(f"statistics need the field '{name}'; the batch has {', '.join(batch.fields)}")
        return cls(
            num_structures=len(batch),
            num_atoms=_histogram(batch["num_atoms"]),
            elements=_histogram(batch["atomic_numbers"]),
            **(_no_cells() if molecules else _cells(batch["lattice"].double(), batch["num_atoms"])),
            properties={name: _property(batch[name]) for name in _property_names(batch)},
        )

    @property
    def sizes(self) -> SizePrior:
        """The numbers of atoms of the training set, to draw from."""
        return SizePrior(self.num_atoms)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; the keys of the histograms become strings, NaN becomes None."""
        out = asdict(self)
        for name in ("num_atoms", "elements"):
            out[name] = {str(key): value for key, value in out[name].items()}
        for column in out["properties"].values():
            column.update({k: None if v != v else v for k, v in column.items()})
        return {k: _without_nan(v) for k, v in out.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_dict`; raises ValueError naming unknown or missing keys and the known ones."""
        known = [f.name for f in fields(cls)]
        wrong = sorted(set(values) - set(known))
        missing = [name for name in known if name not in values and name != "cells"]
        if wrong or missing:
            what = f"unknown key '{wrong[0]}'" if wrong else f"missing key '{missing[0]}'"
            raise ValueError(f"statistics: {what}; known: {', '.join(known)}")
        out: dict[str, Any] = {k: _with_nan(v) for k, v in values.items()}
        for name in ("num_atoms", "elements"):
            out[name] = {int(key): int(value) for key, value in values[name].items()}
        out["properties"] = {name: _property_from(name, column) for name, column in values["properties"].items()}
        cells = values.get("cells", {}).items()
        out["cells"] = {name: CellMoments(tuple(cell["mean"]), tuple(cell["std"])) for name, cell in cells}
        return cls(**out)


def _cells(lattice: Tensor, counts: Tensor) -> dict[str, Any]:
    lengths, angles = parameters(lattice)
    log_volume = (volume(lattice) / counts).log()
    return dict(
        log_length_mean=_triple(lengths.log().mean(0)),
        log_length_std=_triple(lengths.log().std(0, correction=0)),
        angle_mean=_triple(angles.mean(0)),
        angle_std=_triple(angles.std(0, correction=0)),
        volume_per_atom_mean=float(log_volume.mean()),
        volume_per_atom_std=float(log_volume.std(correction=0)),
        cells=_moments(lattice),
    )


def _moments(lattice: Tensor) -> dict[str, CellMoments]:
    out = {}
    for name, (to_vector, _) in VECTORS.items():
        try:
            vectors = to_vector(lattice)
        except ValueError:  # angles that only reduced cells avoid
            continue
        out[name] = CellMoments(tuple(vectors.mean(0).tolist()), tuple(vectors.std(0, correction=0).tolist()))
    return out


def _no_cells() -> dict[str, Any]:
    triples = ("log_length_mean", "log_length_std", "angle_mean", "angle_std")
    return dict.fromkeys(triples, (NAN, NAN, NAN)) | {"volume_per_atom_mean": NAN, "volume_per_atom_std": NAN}


def _without_nan(value: Any) -> Any:
    """Tuples as lists, NaN as None."""
    if isinstance(value, tuple):
        return [_without_nan(v) for v in value]
    return None if value != value else value


def _with_nan(value: Any) -> Any:
    """The inverse of `_without_nan`."""
    if isinstance(value, (list, tuple)):
        return tuple(_with_nan(v) for v in value)
    return NAN if value is None else value


def _property_names(batch: RaggedBatch) -> list[str]:
    declared = type(batch).LEVELS
    return [k for k, v in batch.fields.items() if k not in declared and batch.levels[k] == "structure" and v.dim() == 1]


def _property(values: Tensor) -> PropertyStatistics:
    known = values.double()[~values.double().isnan()]
    if len(known) == 0:
        return PropertyStatistics(0, NAN, NAN)
    spread = float(known.std(correction=0))
    return PropertyStatistics(len(known), float(known.mean()), spread, float(known.min()), float(known.max()))


def _property_from(name: str, values: Mapping[str, Any]) -> PropertyStatistics:
    known = {f.name for f in fields(PropertyStatistics)}
    if not {"count", "mean", "std"} <= set(values) <= known:
        raise ValueError(f"statistics: property '{name}' has keys {sorted(values)}; needed: {', '.join(sorted(known))}")
    numbers = {k: NAN if v is None else float(v) for k, v in values.items() if k != "count"}
    return PropertyStatistics(int(values["count"]), **numbers)


def _histogram(values: Tensor) -> dict[int, int]:
    keys, counts = values.unique(return_counts=True)
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _triple(values: Tensor) -> Triple:
    a, b, c = values.tolist()
    return a, b, c


def new_elements(statistics: Statistics, batch: RaggedBatch) -> list[str]:
    """Symbols of the elements of a batch that the training set of `statistics` lacks, by atomic number."""
    from pymatgen.core import Element

    numbers = sorted(set(batch["atomic_numbers"].unique().tolist()) - set(statistics.elements))
    return [Element.from_Z(z).symbol for z in numbers]
