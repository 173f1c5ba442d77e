"""The fast form of EGNN: the same function, its sums re-ordered.

Relative to the edge list:
- the first layer of phi_e and phi_x is split, pre_ij = (Wi h_i + b) + Wj h_j + wd d_ij^2 + wa a_ij^2: node terms once
  per atom and an outer product, so that no product has the width of the concatenated inputs;
- molecules of one size lie together: node terms are broadcast, sums over j are views, nothing is gathered or scattered;
  pairs i = j are carried along with weight zero;
- edges are worked through in chunks that stay in the cache (edge_mlp.py), and a training keeps one tensor per edge and
  layer instead of four;
- products go through the library that is faster here (gemm.py).
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from chem.ragged import RaggedBatch
from generative.backbone.edge_mlp import EdgeMLP, edge_mlp
from generative.backbone.gemm import linear, linear_silu
from generative.backbone.plan import Plan, make_plan

CHUNK_ENTRIES = 2**18  # entries of one edge tensor on a CPU: 1 MiB in float32, so that two stay in its second cache
GPU_ENTRIES = 2**26  # elsewhere few large kernels pay
TINY = 1e-8  # keeps the gradient of the distance of two atoms in one place finite


class Layer(Protocol):
    """What the fast form reads of `EGNNLayer`."""

    edge_mlp: nn.Sequential
    node_mlp: nn.Sequential
    coord_mlp: nn.Sequential
    gate: nn.Linear | None


class Layers(Protocol):
    """What the fast form reads of `EGNN`."""

    hidden: int
    normalization: float
    products: torch.dtype | None

    @property
    def layers(self) -> list: ...

    def bound(self, s: Tensor) -> Tensor: ...


def plan_of(hidden: int, batch: RaggedBatch) -> Plan:
    """The plan for this batch of a network of this width."""
    entries = CHUNK_ENTRIES if batch["num_atoms"].device.type == "cpu" else GPU_ENTRIES
    return make_plan(batch, max(1, entries // hidden))


def unit_differences(difference: Tensor) -> tuple[Tensor, Tensor]:
    """d^2 (E, 1) and (x_i - x_j) / (d + 1) (E, 3), from x_i - x_j (E, 3)."""
    square = difference.square().sum(1, keepdim=True)
    return square, difference / ((square + TINY).sqrt() + 1)


def run_layers(net: Layers, batch: RaggedBatch, h: Tensor) -> tuple[Tensor, Tensor]:
    """Node state (M, H) after all layers, from the initial one, and the way (M, 3) that the atoms have gone."""
    plan = plan_of(net.hidden, batch)
    start = batch["pos"][plan.atom_order]
    moved = torch.zeros_like(start)
    if not plan.chunks:
        return h, moved
    h = h[plan.atom_order]
    others = torch.cat([_others(c.count, c.n, h) for c in plan.chunks])
    at_input = differences(start, plan).square().sum(1, keepdim=True)
    for layer in net.layers:
        square, unit = unit_differences(differences(start + moved, plan))
        square = torch.cat([square, at_input], 1)
        message = _first(layer.edge_mlp, layer.gate, net.products or h.dtype)
        total = edge_mlp(message, h, square, others, plan)[0] / net.normalization
        x = torch.cat([h, total], 1).to(net.products or h.dtype)
        h = h + _node(layer.node_mlp, x).to(h.dtype)
        s = edge_mlp(_first(layer.coord_mlp, ...), h, square, None, plan)[1]
    return h[plan.atom_place], moved[plan.atom_place]
