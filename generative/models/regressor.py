"""A regressor: one number of a molecule, such as its gap, from elements and positions.

Representation: the property, z-scored by the training set, as a field `value` per molecule, of which nothing is known
before it is predicted; a Denoiser of one step. The network is EGNN's layers over atoms that stay where they are, their
states averaged over the molecule. It judges conditional samples (EDM's protocol, evaluation/molecules/asked.py). After
the classifier of EDM (Hoogeboom et al., ICML 2022), which sums where this one averages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chem.molecules import MoleculeBatch
from chem.ragged import Rows
from chem.statistics import Statistics
from generative.backbone.egnn import EGNNLayer
from generative.backbone.egnn_fast import plan_of, run_layers
from generative.backbone.gemm import use_onednn
from generative.generator import Denoiser, Network, Times
from generative.guidance import check_names
from generative.noise import Random
from generative.process import Process
from generative.settings import check_counts

TABLE = 118  # elements


@dataclass(frozen=True)
class RegressorConfig:
    """Settings of the regressor; the defaults are those of EDM's classifier of QM9. property: a column of the data."""

    property: str = "gap"
    hidden: int = 128
    layers: int = 7
    attention: bool = True

    def __post_init__(self) -> None:
        check_counts(self, "hidden", "layers")


class Unseen(Process):
    """No noise path: before t = 1 the field is zero, whatever the data; a step takes the prediction. Absolute error."""

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return torch.zeros_like(like)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), x

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return prediction

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return x

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return (prediction - target).abs()


class PooledEGNN(Network):
    """`value` (B,) of each molecule: the mean over its atoms of their last state, and two layers."""

    normalization: float = 1.0
    sharpness: float = 0.0

    def __init__(self, hidden: int, layers: int, attention: bool):
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(TABLE, hidden)
        self.egnn_layers = nn.ModuleList(EGNNLayer(hidden, attention, moves=False) for _ in range(layers))
        self.atom_out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU())
        self.molecule_out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    @property
    def layers(self) -> list[EGNNLayer]:
        """The layers, in order."""
        return list(self.egnn_layers)  # type: ignore[arg-type]

    def bound(self, s: Tensor) -> Tensor:
        """Nothing moves."""
        return s

    def prepare(self, batch: MoleculeBatch) -> None:
        """Build the pair layout of this batch; the probe of the products, once in a process, runs here too."""
        plan_of(self.hidden, batch)
        use_onednn(self.embedding.weight)

    def forward(self, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
        h, _ = run_layers(self, batch, self.embedding(batch["atomic_numbers"] - 1))
        pooled = batch.rows("pos").mean(self.atom_out(h))
        return {"value": self.molecule_out(pooled).squeeze(1)}


def coders(
    name: str, mean: float, std: float
) -> tuple[Callable[[MoleculeBatch], MoleculeBatch], Callable[[MoleculeBatch], MoleculeBatch]]:
    """`encode` and `decode` between the property in its unit and `value`; where it is absent, zeros hold its place."""

    def encode(batch: MoleculeBatch) -> MoleculeBatch:
        if "pos" not in batch.fields:
            raise ValueError("a regressor needs positions: it is for molecules")
        column = batch.fields.get(name)
        value = batch["pos"].new_zeros(len(batch)) if column is None else (column - mean) / std
        return batch.attach("structure", value=value)

    def decode(batch: MoleculeBatch) -> MoleculeBatch:
        return batch.attach("structure", **{name: batch["value"] * std + mean}).without("value")

    return encode, decode


def build(config: RegressorConfig, statistics: Statistics) -> Denoiser:
    """The untrained model; ValueError for a property that the training set lacks."""
    check_names((config.property,), statistics, "property")
    column = statistics.properties[config.property]
    network = PooledEGNN(config.hidden, config.layers, config.attention)
    encode, decode = coders(config.property, column.mean, column.std)
    return Denoiser(network, {"value": Unseen(())}, Times(1), 1, encode=encode, decode=decode)


def predictor(
    denoiser: Denoiser, name: str, statistics: Statistics, size: int = 256
) -> Callable[[MoleculeBatch], Tensor]:
    """A function from molecules to their property `name` (B,), float64 on the CPU, `size` molecules at a time.

    NaN for a molecule with an element that the regressor was not trained on.
    """
    elements = torch.tensor(sorted(statistics.elements))

    def predict(batch: MoleculeBatch) -> Tensor:
        found = torch.zeros(len(batch), dtype=torch.float64)
        for part in torch.arange(len(batch)).split(size):
            some = batch.select(part)
            bare = MoleculeBatch(some["num_atoms"], pos=some["pos"], atomic_numbers=some["atomic_numbers"])
            made = denoiser.sample(bare.to(denoiser.dtype).to(denoiser.device))
            found[part] = made[name].cpu().double()
        found[batch["batch"][~torch.isin(batch["atomic_numbers"], elements)]] = torch.nan
        return found

    return predict
