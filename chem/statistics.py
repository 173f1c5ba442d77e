"""What a model must know of its training set: sizes, elements, cell shapes and the scale of every property.

They are computed once, from the training split, and travel inside a checkpoint; nothing of them is in the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from chem.crystals import CrystalBatch
from chem.lattice import parameters, volume

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PropertyStatistics:
    """Mean and standard deviation of the `count` values of one column that are not NaN; NaN when there are none."""

    count: int
    mean: float
    std: float


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of crystals; standard deviations are those of the population (divided by the count).

    num_atoms: atoms per cell -> crystals. elements: atomic number -> atoms. log_length_*: of ln a, ln b, ln c
    (ångström). angle_*: alpha, beta, gamma in degrees. volume_per_atom_*: of ln(V / N) (cubic ångström).
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

    @classmethod
    def compute(cls, batch: CrystalBatch) -> Statistics:
        """Statistics of a batch; raises ValueError when it is empty or lacks elements or lattices."""
        if len(batch) == 0:
            raise ValueError("statistics need at least one crystal, the batch has none")
        for name in ("atomic_numbers", "lattice"):
            if name not in batch.fields:
                raise ValueError(f"statistics need the field '{name}'; the batch has {', '.join(batch.fields)}")
        lattice, counts = batch["lattice"].double(), batch["num_atoms"]
        lengths, angles = parameters(lattice)
        log_volume = (volume(lattice) / counts).log()
        return cls(
            num_structures=len(batch),
            num_atoms=_histogram(counts),
            elements=_histogram(batch["atomic_numbers"]),
            log_length_mean=_triple(lengths.log().mean(0)),
            log_length_std=_triple(lengths.log().std(0, correction=0)),
            angle_mean=_triple(angles.mean(0)),
            angle_std=_triple(angles.std(0, correction=0)),
            volume_per_atom_mean=float(log_volume.mean()),
            volume_per_atom_std=float(log_volume.std(correction=0)),
            properties={name: _property(batch[name]) for name in _property_names(batch)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; the keys of the histograms become strings, NaN becomes None."""
        out = asdict(self)
        for name in ("num_atoms", "elements"):
            out[name] = {str(key): value for key, value in out[name].items()}
        for column in out["properties"].values():
            column.update({k: None if v != v else v for k, v in column.items()})
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_dict`; raises ValueError naming unknown or missing keys and the known ones."""
        known = [f.name for f in fields(cls)]
        wrong = sorted(set(values) - set(known))
        missing = [name for name in known if name not in values]
        if wrong or missing:
            what = f"unknown key '{wrong[0]}'" if wrong else f"missing key '{missing[0]}'"
            raise ValueError(f"statistics: {what}; known: {', '.join(known)}")
        out: dict[str, Any] = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()}
        for name in ("num_atoms", "elements"):
            out[name] = {int(key): int(value) for key, value in values[name].items()}
        out["properties"] = {name: _property_from(name, column) for name, column in values["properties"].items()}
        return cls(**out)


def _property_names(batch: CrystalBatch) -> list[str]:
    declared = type(batch).LEVELS
    return [k for k, v in batch.fields.items() if k not in declared and batch.levels[k] == "structure" and v.dim() == 1]


def _property(values: Tensor) -> PropertyStatistics:
    known = values.double()[~values.double().isnan()]
    if len(known) == 0:
        return PropertyStatistics(0, float("nan"), float("nan"))
    return PropertyStatistics(len(known), float(known.mean()), float(known.std(correction=0)))


def _property_from(name: str, values: Mapping[str, Any]) -> PropertyStatistics:
    known = {f.name for f in fields(PropertyStatistics)}
    if set(values) != known:
        raise ValueError(f"statistics: property '{name}' has keys {sorted(values)}; needed: {', '.join(sorted(known))}")
    mean, std = (float("nan") if values[k] is None else float(values[k]) for k in ("mean", "std"))
    return PropertyStatistics(int(values["count"]), mean, std)


def _histogram(values: Tensor) -> dict[int, int]:
    keys, counts = values.unique(return_counts=True)
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _triple(values: Tensor) -> Triple:
    a, b, c = values.tolist()
    return a, b, c


def new_elements(statistics: Statistics, batch: CrystalBatch) -> list[str]:
    """Symbols of the elements of a batch that the training set of `statistics` lacks, by atomic number."""
    from pymatgen.core import Element

    numbers = sorted(set(batch["atomic_numbers"].unique().tolist()) - set(statistics.elements))
    return [Element.from_Z(z).symbol for z in numbers]
