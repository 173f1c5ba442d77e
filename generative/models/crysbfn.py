"""CrysBFN: a periodic Bayesian flow of crystals (Wu et al., ICLR 2025).

Representation: beliefs. Of each fractional coordinate a von Mises distribution, whose mean and realised concentration
the network sees; of the cell, as the entries of its matrix in a fixed orientation, scaled by their moments in the
training set, a normal distribution; ab initio, of each element a categorical one. The network, CSPNet's layers,
predicts clean data, counted from the means of the beliefs in units of their deviations: so its outputs are of unit size
whatever is known. Deviations from the paper: these units; six entries of the matrix instead of nine, which know no
rotation; the cell's numbers instead of its Gram matrix as features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chem.cell_vectors import VECTORS
from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS
from generative.backbone.fast import plan_of, run_layers
from generative.backbone.gemm import use_onednn
from generative.backbone.layers import PairLayer, conditioned
from generative.decoding import carry_given, choose_elements, element_mask
from generative.generator import Denoiser, Network, Times
from generative.guidance import conditional
from generative.process import Fixed, Process
from generative.processes.bayesian import CategoricalFlow, ContinuousFlow
from generative.processes.circular import FAINTEST, CircularFlow, read_belief

CELL = 6
UNSURE = 0.3  # added to concentrations, so that one of zero has the deviation of a uniform angle
WIDEST = 5.0  # deviations of a cell's number from its mean that an estimate may have


@dataclass(frozen=True)
class CrysBFNConfig:
    """Settings of CrysBFN; the defaults are the paper's for MP-20.

    task: "csp" (composition given) or "ab-initio". steps: of sampling, by default; resolution: T of the accuracies.
    beta_coords: concentration at t = 1. sigma_cell: deviation at t = 1. beta_types: accuracy of elements at t = 1.
    sampler: "flow" (the paper's) or "bayes". The weights, ours, are those of the bound in nats of 1000 messages, but
    for a common factor that brings it to order one, to which clipping by value is no stranger. conditions: properties
    it can be asked for (guidance.py).
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
        for name, allowed in (("task", ("csp", "ab-initio")), ("sampler", ("flow", "bayes"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = '{getattr(self, name)}', allowed: {', '.join(allowed)}")
        for name in ("hidden", "layers", "frequencies", "steps", "resolution"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: >= 1")


class CrysBFNNet(Network):
    """Clean `frac_coords` (M, 3), `cell` (B, 6) and, ab initio, logits of `types` (M, 100), from beliefs."""

    compile_kernels: bool = False
    self_pairs: bool = True
    directions: bool = False

    def __init__(self, config: CrysBFNConfig):
        super().__init__()
        hidden, self.types = config.hidden, config.task == "ab-initio"
        self.hidden, self.frequencies, self.beta = hidden, config.frequencies, config.beta_coords
        self.sigma_cell = config.sigma_cell
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
        faintest = math.log(FAINTEST)
        sureness = ((concentration + FAINTEST).log() - faintest) / (math.log(self.beta) - faintest)
        given = 2 * batch["types"].exp() - 1 if self.types else batch["atomic_numbers"] - 1
        time = self.time_embedding(t.unsqueeze(1))[batch["batch"]]
        h = conditioned(self.atom_latent_emb(torch.cat([self.node_embedding(given), time, sureness], 1)), batch)
        rows = batch.rows("frac_coords")
        h = self.final_layer_norm(run_layers(self, batch.replace(frac_coords=mean), h, batch["cell"]))
        deviation = 1 / (2 * math.pi * (concentration + UNSURE).sqrt())
        cell = batch["cell"] + self.sigma_cell ** t.unsqueeze(1) * self.cell_out(rows.mean(h))
        out = {"frac_coords": mean + deviation * self.coord_out(h), "cell": cell}
        if self.types:
            out["types"] = self.type_out(h)
        return out


def coders(config: CrysBFNConfig, statistics: Statistics) -> tuple[Callable, Callable]:
    """`encode` and `decode`: lattices as scaled entries under `cell`, elements as one-hot vectors under `types`."""
    (to_vector, from_vector), moments = VECTORS["matrix"], statistics.cells["matrix"]
    mean, std = torch.tensor(moments.mean), torch.tensor(moments.std).clamp(min=1e-3)
    seen = element_mask(statistics)

    def encode(batch: CrystalBatch) -> CrystalBatch:
        if "lattice" in batch.fields:
            entries = to_vector(batch["lattice"])
            cell = (entries - mean.to(entries)) / std.to(entries)
            batch = carry_given(batch.replace(cell=cell), "lattice", "cell")
        if config.task == "ab-initio" and "atomic_numbers" in batch.fields:
            dtype = batch.fields.get("frac_coords", torch.zeros(())).dtype
            batch = batch.replace(types=F.one_hot(batch["atomic_numbers"] - 1, ELEMENTS).to(dtype))
            batch = carry_given(batch, "atomic_numbers", "types")
        return batch

    def decode(batch: CrystalBatch) -> CrystalBatch:
        cell = batch["cell"]
        batch = batch.replace(lattice=from_vector(cell * std.to(cell) + mean.to(cell))).without("cell")
        if config.task == "csp":
            return batch
        return batch.replace(atomic_numbers=choose_elements(batch["types"], batch, seen)).without("types")

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
    encode, decode = coders(config, statistics)
    weights = {field: weights[field] for field in processes if field in weights}
    network = conditional(CrysBFNNet(config), config.hidden, config.conditions, statistics)
    return Denoiser(network, processes, Times(config.resolution), config.steps, weights, encode, decode)


def transfer(state: dict[str, Tensor], model: Denoiser) -> dict[str, Tensor]:
    """Weights of one task as a start for a model of the other: what has another shape there stays as built."""
    built = model.state_dict()
    return {k: state[k] if k in state and state[k].shape == v.shape else v for k, v in built.items()}
