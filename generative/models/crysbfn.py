"""CrysBFN: a periodic Bayesian flow of crystals (Wu et al., ICLR 2025).

Representation: beliefs. Of each fractional coordinate a von Mises distribution, whose mean and realised concentration
the network sees; of the cell, as the entries of its matrix in a fixed orientation, scaled by their moments in the
training set, a normal distribution; ab initio, of each element a categorical one. The network, CSPNet's layers,
predicts clean data, counted from the means of the beliefs in units of their deviations: so its outputs are of unit size
whatever is known. Deviations from the paper: these units; six entries of the matrix instead of nine, which know no
rotation; the cell's numbers instead of its Gram matrix as features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from chem.cell_vectors import VECTORS
from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS
from generative.backbone.fast import plan_of, run_layers
from generative.backbone.gemm import use_onednn
from generative.backbone.layers import PairLayer, conditioned
from generative.decoding import carry_given, element_mask, elements_from, one_hot_elements
from generative.generator import Denoiser, Network, Times
from generative.guidance import conditional
from generative.process import Fixed, Process
from generative.processes.bayesian import CategoricalFlow, ContinuousFlow
from generative.processes.circular import CircularFlow, deviation, read_belief, sureness
from generative.settings import check_choices, check_counts

CELL = 6
WIDEST = 5.0  # deviations of a cell's number from its mean that an estimate may have


@dataclass(frozen=True)
class CrysBFNConfig:
    """Settings of CrysBFN; the defaults are the paper's for MP-20.

    task: "csp" (composition given) or "ab-initio". steps: of sampling, by default; resolution: T of the accuracies.
    beta_coords: concentration at t = 1. sigma_cell: deviation at t = 1. beta_types: accuracy of elements at t = 1.
    sampler: "flow" (the paper's) or "bayes". The weights are those of the bound in nats of 1000 messages, times a
    factor that brings it to order one. conditions: properties it can be asked for (guidance.py).
    """

    task: Literal["csp", "ab-initio"] = "csp"
    hidden: int = 512
    layers: int = 6
    frequencies: int = 128
    time_dim: int = 256
    steps: int = 100
    resolution: int = 1000
    beta_coords: float = 1000.0
    sigma_cell: float = 0.0316
    beta_types: float = 0.5
    sampler: Literal["flow", "bayes"] = "flow"
    lattice_weight: float = 0.002
    coords_weight: float = 0.002
    types_weight: float = 0.002
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self, task=("csp", "ab-initio"), sampler=("flow", "bayes"))
        check_counts(self, "hidden", "layers", "frequencies", "steps", "resolution")


class CrysBFNNet(Network):
    """Clean `frac_coords` (M, 3), `cell` (B, 6) and, ab initio, logits of `types` (M, 100), from beliefs."""

    compile_kernels: bool = False
    self_pairs: bool = True
    directions: bool = False

    def __init__(self, config: CrysBFNConfig):
        super().__init__()
        hidden, self.types = config.hidden, config.task == "ab-initio"
        self.hidden, self.frequencies = hidden, config.frequencies
        self.beta, self.sigma_cell = config.beta_coords, config.sigma_cell
        self.time_embedding = nn.Sequential(nn.Linear(1, config.time_dim), nn.SiLU())
        self.node_embedding = nn.Linear(ELEMENTS, hidden) if self.types else nn.Embedding(ELEMENTS, hidden)
        self.atom_latent_emb = nn.Linear(hidden + config.time_dim + 3, hidden)
        self.pair_layers = nn.ModuleList(PairLayer(hidden, config.frequencies, CELL) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.coord_out = nn.Linear(hidden, 3, bias=False)
        self.cell_out = nn.Linear(hidden, CELL)
        if self.types:
            self.type_out = nn.Linear(hidden, ELEMENTS)

    @property
    def layers(self) -> list[PairLayer]:
        """The layers, in order."""
        return list(self.pair_layers)  # type: ignore[arg-type]

    def prepare(self, batch: CrystalBatch) -> None:
        """Build the pair layout of this batch; the probe of the products, once in a process, runs here too."""
        plan_of(self, batch)
        use_onednn(self.coord_out.weight)

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """Counted from the means of beliefs, so that a common shift moves both, in units of their deviations."""
        mean, concentration = read_belief(batch["frac_coords"])
        sure = sureness(concentration, self.beta)
        given = 2 * batch["types"].exp() - 1 if self.types else batch["atomic_numbers"] - 1
        time = self.time_embedding(t.unsqueeze(1))[batch["batch"]]
        h = conditioned(self.atom_latent_emb(torch.cat([self.node_embedding(given), time, sure], 1)), batch)
        h = self.final_layer_norm(run_layers(self, batch.replace(frac_coords=mean), h, batch["cell"]))
        cell = batch["cell"] + self.sigma_cell ** t.unsqueeze(1) * self.cell_out(batch.rows("frac_coords").mean(h))
        out = {"frac_coords": mean + deviation(concentration) * self.coord_out(h), "cell": cell}
        return {**out, "types": self.type_out(h)} if self.types else out


def coders(config: CrysBFNConfig, statistics: Statistics) -> tuple[Callable, Callable]:
    """`encode` and `decode`: lattices as scaled entries under `cell`, elements as one-hot vectors under `types`."""
    (to_vector, from_vector), moments = VECTORS["matrix"], statistics.cells["matrix"]
    mean, std = torch.tensor(moments.mean), torch.tensor(moments.std).clamp(min=1e-3)
    chooses, elements = config.task == "ab-initio", elements_from(element_mask(statistics))

    def encode(batch: CrystalBatch) -> CrystalBatch:
        if "lattice" in batch.fields:
            entries = to_vector(batch["lattice"])
            batch = carry_given(batch.replace(cell=(entries - mean.to(entries)) / std.to(entries)), "lattice", "cell")
        return one_hot_elements(batch) if chooses else batch

    def decode(batch: CrystalBatch) -> CrystalBatch:
        cell = batch["cell"]
        batch = batch.replace(lattice=from_vector(cell * std.to(cell) + mean.to(cell))).without("cell")
        return elements(batch) if chooses else batch

    return encode, decode


def build(config: CrysBFNConfig, statistics: Statistics) -> Denoiser:
    """The untrained model; raises ValueError where the training set has no moments of cells."""
    if "matrix" not in statistics.cells:
        raise ValueError("the training set's statistics have no moments of cells; an older version made them")
    processes: dict[str, Process] = {
        "cell": ContinuousFlow((CELL,), config.sigma_cell, "data", bounds=(-WIDEST, WIDEST), sampler=config.sampler),
        "frac_coords": CircularFlow((3,), config.resolution, config.beta_coords, sampler=config.sampler),
    }
    weights = {"cell": config.lattice_weight, "frac_coords": config.coords_weight, "types": config.types_weight}
    if config.task == "ab-initio":
        processes["types"] = CategoricalFlow(ELEMENTS, config.beta_types, sampler=config.sampler)
    else:
        processes["atomic_numbers"] = Fixed(())
    weights = {field: weights[field] for field in processes if field in weights}
    network = conditional(CrysBFNNet(config), config.hidden, config.conditions, statistics)
    return Denoiser(network, processes, Times(config.resolution), config.steps, weights, *coders(config, statistics))
