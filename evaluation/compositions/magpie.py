"""Magpie fingerprints of compositions: 22 properties of the elements, 6 statistics of each over the atoms.

The statistics are minimum, maximum, range, mean, mean absolute deviation and mode (of the most abundant elements, the
smallest value), property by property, as matminer's ElementProperty "magpie" orders them. Its tables are used, and like
its versions since 0.9 a property that an element lacks (those of noble gases, and of all elements beyond Lr) is the
mean over the elements that have it. `standardise` divides by the constants that CDVAE published (MIT licence) and every
coverage since has used, so that Euclidean distances compare with cut-offs of the field.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evaluation.compositions.amounts import COLUMNS, Composition, by_elements, require_elements

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from chem.crystals import CrystalBatch

DATA = Path(__file__).parents[1] / "data"
RELATIVE, ABSOLUTE = 1e-5, 1e-8  # amounts this close to the largest share the mode, as numpy.isclose has it


def table_source() -> str:
    """The program and version the tables of the elements were taken from."""
    return _data()["source"]


def feature_names() -> list[str]:
    """The 132 features in order, such as "minimum Number"."""
    data = _data()
    return [f"{statistic} {name}" for name in data["properties"] for statistic in data["statistics"]]


def magpie(compositions: CrystalBatch | Sequence[Composition], device: torch.device | str | None = None) -> Tensor:
    """Fingerprints (B, 132) float64 of a batch of crystals, or of formulas or mappings; NaN for one without atoms.

    device: default that of the batch, or the CPU. Raises ValueError for an atomic number outside 1..118.
    """
    import torch

    if hasattr(compositions, "num_structures"):
        batch = cast("CrystalBatch", compositions)
        require_elements(batch)
        device = batch["atomic_numbers"].device if device is None else device
    properties = _properties().to(device)
    found = properties.new_full((len(compositions), len(feature_names())), torch.nan)
    for rows, z, weight in by_elements(compositions, device):
        found[rows] = _statistics(weight.unsqueeze(-1), properties[z])
    return found


def standardise(features: Tensor) -> Tensor:
    """Fingerprints (B, 132) less the means, over the standard deviations, of the published scaler."""
    mean, deviation = _scaler().to(features)
    return (features - mean) / deviation


def _statistics(weight: Tensor, values: Tensor) -> Tensor:
    """Fingerprints (B, 6 P) of K elements with amounts (B, K, 1) and properties (B, K, P)."""
    import torch

    total, low, high = weight.sum(1), values.amin(1), values.amax(1)
    mean = (weight * values).sum(1) / total
    spread = (weight * (values - mean.unsqueeze(1)).abs()).sum(1) / total
    abundant = weight >= weight.amax(1, keepdim=True) * (1 - RELATIVE) - ABSOLUTE
    mode = values.masked_fill(~abundant, torch.inf).amin(1)
    return torch.stack((low, high, high - low, mean, spread, mode), dim=-1).flatten(1)


@cache
def _data() -> dict[str, Any]:
    return json.loads((DATA / "magpie.json").read_text(encoding="utf-8"))


@cache
def _properties() -> Tensor:
    """Properties of the elements (119, 22) by atomic number, means in the gaps; row 0 is zero."""
    import torch

    rows = list(_data()["elements"].values())
    table = torch.tensor([[float("nan") if v is None else v for v in row] for row in rows], dtype=torch.float64)
    filled = torch.zeros(COLUMNS, table.shape[1], dtype=torch.float64)
    filled[1:] = torch.where(table.isnan(), table.nanmean(0), table)
    return filled


@cache
def _scaler() -> Tensor:
    """Means and standard deviations (2, 132)."""
    import torch

    with (DATA / "magpie_scaler.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([[float(row[name]) for row in rows] for name in ("mean", "std")], dtype=torch.float64)
