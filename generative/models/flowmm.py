"""FlowMM: Riemannian flow matching of cell, fractional coordinates and, de novo, elements (Miller et al., ICML 2024).

Representation: the cell as six numbers (`lattice` chooses which; the paper's are lengths in ångström and logit angles),
coordinates on the flat torus modulo a common translation, elements as seven analog bits. All paths are straight.

The network is CSPNet without self-pairs, with the directions of the edges, the number of atoms and the cell's numbers,
scaled by their moments along the path, as features of a structure. Exchanging lattice vectors is no symmetry of it, so
cells come Niggli-reduced. Deviations from the paper: those moments, and those
that scale the predicted velocities, come in closed form from the statistics of the training set; losses are in units
of the target's variance, with the weights that the paper's amount to there; the gain of the coordinates' velocity is
clipped (processes/flow.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from chem.cell_vectors import VECTORS
from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS
from generative.backbone.flownet import FlowMMNet
from generative.decoding import carry_given, choose_elements, element_mask
from generative.generator import Denoiser, Times
from generative.guidance import conditional
from generative.process import Fixed, Process
from generative.processes.bases import (
    EuclideanBase,
    LogitUniformBase,
    LogNormalBase,
    NormalBase,
    ProductBase,
    path_moments,
)
from generative.processes.bits import BITS, to_bits
from generative.processes.flow import COORDS_SCALE, EuclideanFlow, Gain, TorusFlow
from generative.settings import check_choices, check_counts


@dataclass(frozen=True)
class FlowMMConfig:
    """Settings of FlowMM; the defaults are the paper's for MP-20 but for `steps`, `lattice` and the slopes.

    task: "csp" (composition given) or "ab-initio". lattice: "parameters" (the paper's), "log-strain" (CrystalFlow) or
    "matrix". steps: default number of steps. coords_slope, cell_slope, types_slope: of the gain when sampling; that of
    coordinates is by default 10 for csp and 5 ab initio. assign: exchange base coordinates among atoms of one element
    for short paths. conditions: properties it can be asked for (guidance.py).
    """

    task: Literal["csp", "ab-initio"] = "csp"
    hidden: int = 512
    layers: int = 6
    frequencies: int = 128
    time_dim: int = 256
    steps: int = 50
    lattice: Literal["parameters", "log-strain", "matrix"] = "parameters"
    coords_slope: float | None = None
    cell_slope: float = 0.0
    types_slope: float = 0.0
    assign: bool = False
    lattice_weight: float = 1.0
    coords_weight: float = 2.5
    types_weight: float = 7.0
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self, task=("csp", "ab-initio"), lattice=tuple(VECTORS))
        check_counts(self, "hidden", "layers", "frequencies", "time_dim", "steps")
        for name in ("coords_slope", "cell_slope", "types_slope", "lattice_weight", "coords_weight", "types_weight"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: >= 0")


def cell_base(config: FlowMMConfig, statistics: Statistics) -> EuclideanBase:
    """What cells start from: the paper's for lengths and angles, else a normal distribution fitted to the data."""
    if config.lattice == "parameters":
        lengths = LogNormalBase(statistics.log_length_mean, statistics.log_length_std)
        return ProductBase((lengths, 3), (LogitUniformBase(), 3))
    cells = statistics.cells[config.lattice]
    return NormalBase(torch.tensor(cells.mean), torch.tensor(cells.std).clamp(min=1e-3))


def encoder(config: FlowMMConfig) -> Callable[[CrystalBatch], CrystalBatch]:
    """A function that puts the cell of a lattice under `cell` and, de novo, the bits of elements under `types`.

    It raises ValueError for a lattice with an angle outside (59.9, 120.1) degrees where the cell is "parameters".
    """
    to_vector = VECTORS[config.lattice][0]

    def encode(batch: CrystalBatch) -> CrystalBatch:
        if "lattice" in batch.fields:
            batch = carry_given(batch.replace(cell=to_vector(batch["lattice"])), "lattice", "cell")
        if config.assign and "atomic_numbers" in batch.fields:
            batch = batch.replace(frac_coords_label=batch["atomic_numbers"])
        if config.task == "ab-initio" and "atomic_numbers" in batch.fields:
            dtype = batch.fields.get("frac_coords", torch.zeros(())).dtype
            batch = batch.replace(types=to_bits(batch["atomic_numbers"], dtype))
            batch = carry_given(batch, "atomic_numbers", "types")
        return batch

    return encode


def decoder(config: FlowMMConfig, statistics: Statistics) -> Callable[[CrystalBatch], CrystalBatch]:
    """The way back: the lattice of the cell; the elements whose bits are nearest, as `choose_elements` admits them."""
    from_vector, seen = VECTORS[config.lattice][1], element_mask(statistics)

    def decode(batch: CrystalBatch) -> CrystalBatch:
        batch = batch.replace(lattice=from_vector(batch["cell"])).without("cell")
        if config.task == "csp":
            return batch
        codes = to_bits(torch.arange(1, ELEMENTS + 1, device=batch["types"].device), batch["types"].dtype)
        numbers = choose_elements(batch["types"] @ codes.T, batch, seen)
        return batch.replace(atomic_numbers=numbers).without("types")

    return decode


def build(config: FlowMMConfig, statistics: Statistics) -> Denoiser:
    """The untrained model; raises ValueError where the training set has no moments of this kind of cell."""
    if config.lattice not in statistics.cells:
        known = ", ".join(statistics.cells) or "none; the statistics were made by an older version"
        raise ValueError(f"lattice = '{config.lattice}', but the training set has moments of: {known}")
    base, cells = cell_base(config, statistics), statistics.cells[config.lattice]
    moments = path_moments(base, torch.tensor(cells.mean), torch.tensor(cells.std))
    slope = config.coords_slope
    if slope is None:
        slope = 10.0 if config.task == "csp" else 5.0
    processes: dict[str, Process] = {
        "cell": EuclideanFlow((6,), base, moments.velocity_std, Gain(config.cell_slope)),
        "frac_coords": TorusFlow((3,), gain=Gain(slope), assign=config.assign),
    }
    weights = {"cell": config.lattice_weight, "frac_coords": config.coords_weight, "types": config.types_weight}
    if config.task == "ab-initio":
        processes["types"] = EuclideanFlow((BITS,), scale=math.sqrt(2), gain=Gain(config.types_slope))
    else:
        processes["atomic_numbers"] = Fixed(())
    network = FlowMMNet(
        config.hidden,
        config.layers,
        config.frequencies,
        config.time_dim,
        BITS if config.task == "ab-initio" else 0,
        VECTORS[config.lattice][1],
        (moments.mean, moments.std),
        (moments.velocity_mean, moments.velocity_std),
        COORDS_SCALE,
    )
    return Denoiser(
        conditional(network, config.hidden, config.conditions, statistics),
        processes,
        Times(),
        config.steps,
        {field: weights[field] for field in processes if field in weights},
        encode=encoder(config),
        decode=decoder(config, statistics),
    )
