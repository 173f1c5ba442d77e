"""GeoBFN: Bayesian flow of molecules (Song et al., ICLR 2024).

Representation: beliefs. Of positions, in units of 2 Å and without centre of mass, a normal distribution; of elements
one of two: atomic numbers as integers in bins of [-1, 1] ("discretised", the paper's for QM9, where it orders chemistry
by Z), or classes ("categorical", for any set of elements). An EGNN sees the means and the time, and predicts the noise
of positions and the elements. Deviation from the published code: messages are not clipped (processes/bayesian.py).

Our small models learn ten times faster with two changes (docs/decisions.md). predicts = "data": the belief mu is the
best guess about data of unit variance, with deviation sigma_1^t, so that the atoms of the network move in steps of
sigma_1^t and end at the prediction: at every t its output is of unit size, the loss weighs it evenly, and each layer
sees a geometry better than the last. sharpness: layers see distances at a scale at which bonds of 1.4 and 1.5 Å differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chem.molecules import MoleculeBatch, centered
from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS
from generative.backbone.egnn import EGNN
from generative.decoding import carry_given, choose_elements, element_mask
from generative.generator import Denoiser, Times
from generative.guidance import conditional
from generative.process import Process
from generative.processes.bayesian import CategoricalFlow, ContinuousFlow, DiscretisedFlow, bin_centers
from generative.settings import check_choices, check_counts

LENGTH = 2.0  # ångström
BASIS, REACH = 16, 2.0  # Gaussians that show the network the mean of an atomic number, over [-2, 2]


@dataclass(frozen=True)
class GeoBFNConfig:
    """Settings of GeoBFN; the defaults are the paper's for QM9 but for `steps`.

    types: how elements are represented. predicts: of positions; "noise" is the paper's. sigma_pos, sigma_types:
    deviations at t = 1. beta_types: accuracy of categorical elements at t = 1. attention, bounded, sharpness (per 2 Å):
    of the EGNN. steps: of sampling, by default. sampler: "bayes" (the paper's) or "flow", for few steps. conditions:
    properties it can be asked for (guidance.py).
    """

    types: Literal["discretised", "categorical"] = "discretised"
    predicts: Literal["noise", "data"] = "noise"
    hidden: int = 256
    layers: int = 9
    attention: bool = False
    bounded: bool = False
    sharpness: float = 0.0
    steps: int = 100
    sigma_pos: float = 0.001
    sigma_types: float = 0.15
    beta_types: float = 2.0
    sampler: Literal["bayes", "flow"] = "bayes"
    pos_weight: float = 1.0
    types_weight: float = 1.0
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choices(
            self, types=("discretised", "categorical"), predicts=("noise", "data"), sampler=("bayes", "flow")
        )
        check_counts(self, "hidden", "layers", "steps")
        if self.sharpness < 0:
            raise ValueError(f"sharpness = {self.sharpness}, allowed: >= 0")


class NumberFeatures(nn.Module):
    """The mean of an atomic number (M,) as shares of Gaussians, (M, 16) in [-1, 1]."""

    centers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(-REACH, REACH, BASIS), persistent=False)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Features of the field `types`."""
        z = (batch["types"].unsqueeze(1) - self.centers) / (2 * REACH / BASIS)
        return 2 * (-z.square() / 2).softmax(1) - 1


class ClassFeatures(nn.Module):
    """Probabilities of the classes as numbers in [-1, 1]."""

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Features of the field `types`, which holds logarithms."""
        return 2 * batch["types"].exp() - 1


def coders(
    config: GeoBFNConfig, elements: list[int]
) -> tuple[Callable[[MoleculeBatch], MoleculeBatch], Callable[[MoleculeBatch], MoleculeBatch]]:
    """`encode` and `decode` between molecules and beliefs' data: positions in units of 2 Å, and `types`.

    Positions are centred, but where some are given: then these say where the origin is.
    """
    known, bins = torch.tensor(elements), max(elements)
    seen, centers = element_mask(set(elements)), bin_centers(bins)[known - 1]

    def encode(batch: MoleculeBatch) -> MoleculeBatch:
        if "pos" in batch.fields:
            origin = batch if "pos_given" in batch.fields else centered(batch)
            batch = origin.replace(pos=origin["pos"] / LENGTH)
        if "atomic_numbers" not in batch.fields:
            return batch
        numbers = batch["atomic_numbers"]
        dtype = batch.fields.get("pos", torch.zeros(())).dtype
        if config.types == "discretised":
            types = ((2 * numbers - 1) / bins - 1).to(dtype)
        else:
            types = F.one_hot(torch.searchsorted(known.to(numbers.device), numbers), len(known)).to(dtype)
        return carry_given(batch.replace(types=types), "atomic_numbers", "types")

    def decode(batch: MoleculeBatch) -> MoleculeBatch:
        types = batch["types"]
        if config.types == "discretised":
            scores = -(types.unsqueeze(1) - centers.to(types)).abs()
        else:
            scores = types.clamp(min=torch.finfo(types.dtype).tiny).log()
        every = scores.new_full((len(scores), ELEMENTS), -torch.inf)
        numbers = choose_elements(every.index_copy(1, known.to(types.device) - 1, scores), batch, seen)
        return batch.replace(atomic_numbers=numbers, pos=batch["pos"] * LENGTH).without("types")

    return encode, decode


def build(config: GeoBFNConfig, statistics: Statistics) -> Denoiser:
    """The untrained model; samples have the elements of the training set alone."""
    elements = sorted(statistics.elements)
    if elements[-1] > ELEMENTS:
        raise ValueError(f"statistics: the training set has the element {elements[-1]}, allowed: 1..{ELEMENTS}")
    features: nn.Module
    types: Process
    if config.types == "discretised":
        features, inputs, outputs = NumberFeatures(), BASIS, 2
        types = DiscretisedFlow(max(elements), (), config.sigma_types, sampler=config.sampler)
    else:
        features, inputs, outputs = ClassFeatures(), len(elements), len(elements)
        types = CategoricalFlow(len(elements), config.beta_types, sampler=config.sampler)
    egnn = EGNN(
        config.hidden,
        config.layers,
        features,
        inputs,
        {"types": outputs},
        config.attention,
        config.bounded,
        stride=partial(torch.pow, config.sigma_pos) if config.predicts == "data" else None,
        sharpness=config.sharpness,
    )
    network = conditional(egnn, config.hidden, config.conditions, statistics)
    processes: dict[str, Process] = {
        "pos": ContinuousFlow((3,), config.sigma_pos, config.predicts, centered=True, sampler=config.sampler),
        "types": types,
    }
    weights = {"pos": config.pos_weight, "types": config.types_weight}
    encode, decode = coders(config, elements)
    return Denoiser(network, processes, Times(), config.steps, weights, encode, decode)
