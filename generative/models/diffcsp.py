"""DiffCSP: joint diffusion of lattice, fractional coordinates and, ab initio, elements (Jiao et al., NeurIPS 2023).

Representation: the 3 x 3 lattice in ångström as it is (rows, Niggli cells), fractional coordinates, elements as one-hot
vectors of 100. Deviations from the published code: sigma-norms by quadrature instead of Monte-Carlo; clean lattices
and one-hot vectors implied by the predicted noise are clipped to the range of the data (`clip`), which leaves the
steps near the data unchanged and keeps coarse grids finite; elements that the training set lacks are never emitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS, CSPNet, SinusoidalSteps
from generative.decoding import element_mask, elements_from, one_hot_elements
from generative.generator import Denoiser, Times
from generative.guidance import conditional
from generative.process import Fixed, Process
from generative.processes.gaussian import VariancePreserving
from generative.processes.wrapped import WrappedNormal
from generative.settings import check_choices, check_counts


@dataclass(frozen=True)
class DiffCSPConfig:
    """Settings of DiffCSP; the defaults are the paper's for MP-20.

    task: "csp" (composition given) or "ab-initio". steps: T. step_size: gamma of the corrector, by default 1e-5 for
    csp and 5e-6 ab initio (MP-20; Perov-5 5e-7 and 1e-6, Carbon-24 5e-6 and 1e-5). A weight of 0 freezes a field:
    it is never noised, and is given when sampling. conditions: properties it can be asked for (guidance.py).
    """

    task: Literal["csp", "ab-initio"] = "csp"
    hidden: int = 512
    layers: int = 6
    frequencies: int = 128
    time_dim: int = 256
    steps: int = 1000
    sigma_min: float = 0.005
    sigma_max: float = 0.5
    step_size: float | None = None
    lattice_weight: float = 1.0
    coords_weight: float = 1.0
    types_weight: float = 20.0
    clip: bool = True
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self, task=("csp", "ab-initio"))
        check_counts(self, "hidden", "layers", "frequencies", "steps")


def build(config: DiffCSPConfig, statistics: Statistics) -> Denoiser:
    """The untrained model."""
    types = config.task == "ab-initio"
    lengths = zip(statistics.log_length_mean, statistics.log_length_std, strict=True)
    longest = max(math.exp(mean + 4 * std) for mean, std in lengths)
    step_size = config.step_size if config.step_size is not None else (5e-6 if types else 1e-5)
    network = CSPNet(
        config.hidden,
        config.layers,
        config.frequencies,
        SinusoidalSteps(config.time_dim, config.steps),
        config.time_dim,
        types=types,
    )
    processes: dict[str, Process] = {
        "lattice": VariancePreserving((3, 3), config.steps, (-longest, longest) if config.clip else None),
        "frac_coords": WrappedNormal((3,), config.steps, config.sigma_min, config.sigma_max, step_size),
    }
    weights = {"lattice": config.lattice_weight, "frac_coords": config.coords_weight}
    if types:
        processes["types"] = VariancePreserving((ELEMENTS,), config.steps, (0.0, 1.0) if config.clip else None)
        weights["types"] = config.types_weight
    else:
        processes["atomic_numbers"] = Fixed(())
    for field, weight in weights.items():
        if weight == 0:
            processes[field] = Fixed(processes[field].shape)
    return Denoiser(
        conditional(network, config.hidden, config.conditions, statistics),
        processes,
        Times(config.steps),
        config.steps,
        weights,
        encode=one_hot_elements if types else (lambda batch: batch),
        decode=elements_from(element_mask(statistics)) if types else (lambda batch: batch),
    )


def transfer(state: dict[str, Tensor], model: Denoiser) -> dict[str, Tensor]:
    """Weights of one task as a start for a model of the other: the trunk is shared, only elements enter differently.

    A row of the embedding is what a one-hot vector picks from the linear map; the head for types stays as built.
    """
    built, name = model.state_dict(), "network.node_embedding"
    if state.keys() == built.keys():
        return state
    state = dict(state)
    bias = state.pop(f"{name}.bias", torch.zeros(()))
    state[f"{name}.weight"] = (state[f"{name}.weight"] + bias.reshape(-1, *[1] * bias.dim())).T.contiguous()
    if f"{name}.bias" in built:
        state[f"{name}.bias"] = torch.zeros_like(built[f"{name}.bias"])
    return {key: state.get(key, value) for key, value in built.items()}
