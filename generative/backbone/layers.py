"""The layers that CSPNet and its relatives share, in the plain form: an edge list that reads like the paper.

One layer, for every ordered pair (i, j) of a cell, with u = LayerNorm(h) and s the features of the whole structure:

    m_ij = phi_e([u_i, u_j, s, sin 2 pi k (f_j - f_i), cos 2 pi k (f_j - f_i), d_ij]),   k = 0..K-1
    h_i <- h_i + phi_h([u_i, mean_j m_ij])

d_ij, where a network uses it, is the direction of the shortest way from i to j in the frame of the cell.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from chem.periodic import torus_log, wrap
from chem.ragged import RaggedBatch

TINY = 1e-6  # Å^2; keeps the direction of a displacement of length zero finite: it is zero


class PairLayer(nn.Module):
    """Parameters of one layer; the arithmetic is in `plain_layers` and in fast.py.

    structure: width of s. directions: whether d_ij is an input.
    """

    def __init__(self, hidden: int, frequencies: int, structure: int = 9, directions: bool = False):
        super().__init__()
        self.layer_norm = nn.LayerNorm(hidden)
        inputs = 2 * hidden + structure + 6 * frequencies + 3 * directions
        self.edge_mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())


class LayerStack(Protocol):
    """What the layers need to know of the network that owns them.

    self_pairs: whether i = j is a pair; without it the mean of a lone atom is zero. products, compile_kernels: see
    CSPNet.
    """

    hidden: int
    frequencies: int
    self_pairs: bool
    directions: bool
    products: torch.dtype | None
    compile_kernels: bool

    @property
    def layers(self) -> list[PairLayer]:
        """The layers, in order."""
        ...


def conditioned(h: Tensor, batch: RaggedBatch) -> Tensor:
    """The initial node state (M, H) plus the field `condition` (B, H) of its structure, where the batch has one."""
    shift = batch.fields.get("condition")
    return h if shift is None else h + shift[batch["batch"]]


def gram(batch: CrystalBatch) -> Tensor:
    """L L^T of every structure, (B, 3, 3): what rotations leave of a lattice."""
    return batch["lattice"] @ batch["lattice"].transpose(1, 2)


def direction(metric: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Unit vectors of G d, d the shortest way between points (..., 3); metric (..., 3, 3) (FlowMM's edge feature).

    Components of d of half a cell, which lead both ways, count as zero, so that d is odd; so do those of nothing but
    rounding. Zero where d is, and without a slope there: symmetric crystals have many such pairs, and slopes of
    1 / TINY would drown the divergence of the flow.
    """
    delta = (torus_log(start, end) - torus_log(end, start)) / 2
    rounding = 4 * torch.finfo(delta.dtype).eps
    delta = torch.where((delta.abs() - 0.25).abs() < 0.25 - rounding, delta, 0.0)
    v = (metric @ delta.unsqueeze(-1)).squeeze(-1)
    return v / (v.square().sum(-1, keepdim=True) + TINY**2).sqrt()


def plain_layers(net: LayerStack, batch: CrystalBatch, h: Tensor, structure: Tensor) -> Tensor:
    """Node state (M, H) after all layers, from the initial one and the structures' features (B, S)."""
    receiver, sender = complete_edges(batch)
    if not net.self_pairs:
        others = receiver != sender
        receiver, sender = receiver[others], sender[others]
    owner = batch["batch"][receiver]
    delta = wrap(batch["frac_coords"][sender] - batch["frac_coords"][receiver])
    angle = 2 * math.pi * (delta.unsqueeze(-1) * torch.arange(net.frequencies, device=h.device)).flatten(1)
    features = [structure[owner], angle.sin(), angle.cos()]
    if net.directions:
        frac = batch["frac_coords"]
        features.append(direction(gram(batch)[owner], frac[receiver], frac[sender]))
    edges = torch.cat(features, 1)
    count = (batch["num_atoms"] - int(not net.self_pairs)).clamp(min=1)[batch["batch"]].unsqueeze(1)
    for layer in net.layers:
        u = layer.layer_norm(h)
        message = layer.edge_mlp(torch.cat([u[receiver], u[sender], edges], 1))
        mean = torch.zeros_like(h).index_add(0, receiver, message) / count
        h = h + layer.node_mlp(torch.cat([u, mean], 1))
    return h


def complete_edges(batch: RaggedBatch) -> tuple[Tensor, Tensor]:
    """Receivers and senders (E,) of every ordered pair of each structure, self-pairs included, receiver-major."""
    counts = batch["num_atoms"][batch["batch"]]
    receiver = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    start = batch["ptr"][batch["batch"]]
    first = torch.cumsum(counts, 0) - counts
    sender = torch.arange(len(receiver), device=counts.device) - first[receiver] + start[receiver]
    return receiver, sender
