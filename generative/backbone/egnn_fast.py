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
from generative.backbone.edge_mlp import edge_weights, messages, scores
from generative.backbone.gemm import linear, linear_silu
from generative.backbone.plan import Plan, make_plan

CHUNK_ENTRIES = 2**18  # entries of one edge tensor on a CPU: 1 MiB in float32, so that two stay in its second cache
GPU_ENTRIES = 2**26  # elsewhere few large kernels pay
TINY = 1e-8  # keeps the gradient of the distance of two atoms in one place finite


class Layers(Protocol):
    """What the fast form reads of `EGNN`."""

    hidden: int
    normalization: float
    sharpness: float
    products: torch.dtype | None

    @property
    def layers(self) -> list: ...

    def bound(self, s: Tensor) -> Tensor: ...


def plan_of(hidden: int, batch: RaggedBatch) -> Plan:
    """The plan for this batch of a network of this width."""
    entries = CHUNK_ENTRIES if batch["num_atoms"].device.type == "cpu" else GPU_ENTRIES
    return make_plan(batch, max(1, entries // hidden))


def as_features(square: Tensor, sharpness: float) -> Tensor:
    """What the MLPs see of a distance, from its square: sharpness * d, or, where that is 0, the square itself."""
    return sharpness * (square + TINY).sqrt() if sharpness else square


def unit_differences(difference: Tensor) -> tuple[Tensor, Tensor]:
    """d^2 (..., 1) and (x_i - x_j) / (d + 1) (..., 3), from x_i - x_j (..., 3)."""
    square = difference.square().sum(-1, keepdim=True)
    return square, difference / ((square + TINY).sqrt() + 1)


def run_layers(net: Layers, batch: RaggedBatch, h: Tensor, stride: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Node state (M, H) after all layers, from the initial one, and the way (M, 3) that the atoms have gone, in units
    of `stride` (M, 1), where there is one."""
    plan = plan_of(net.hidden, batch)
    start = batch["pos"][plan.atom_order]
    moved = torch.zeros_like(start)
    if not plan.chunks:
        return h, moved
    h = h[plan.atom_order]
    scale: Tensor | float = 1.0 if stride is None else stride[plan.atom_order]
    dtype = net.products or h.dtype
    others = others_of(plan, h)
    at_input = as_features(differences(start, plan).square().sum(1, keepdim=True), net.sharpness)
    for layer in net.layers:
        square, unit = unit_differences(differences(start + scale * moved, plan))
        distances = torch.cat([as_features(square, net.sharpness), at_input], 1)
        weights = edge_weights(layer.edge_mlp, layer.gate, dtype)
        total = messages(weights, h, distances, others, plan) / net.normalization
        h = h + node_mlp(layer.node_mlp, torch.cat([h, total], 1).to(dtype)).to(h.dtype)
        if layer.coord_mlp is None:
            continue
        weights = edge_weights(layer.coord_mlp, layer.coord_mlp[4], dtype)
        s = net.bound(scores(weights, h, distances, plan))
        moved = moved + sums(s.unsqueeze(1) * unit, plan) / net.normalization
    return h[plan.atom_place], moved[plan.atom_place]


def differences(x: Tensor, plan: Plan) -> Tensor:
    """x_i - x_j (E, 3) of every pair; x (M, 3) in sorted order."""
    parts = zip(plan.chunks, x.split([c.count * c.n for c in plan.chunks]), strict=True)
    square = [(p.view(c.count, c.n, 1, 3), p.view(c.count, 1, c.n, 3)) for c, p in parts]
    return torch.cat([(a - b).flatten(0, 2) for a, b in square])


def sums(x: Tensor, plan: Plan) -> Tensor:
    """The sum (M, 3) over j of values (E, 3) of every pair."""
    parts = zip(plan.chunks, x.split([c.count * c.n * c.n for c in plan.chunks]), strict=True)
    return torch.cat([p.view(-1, c.n, 3).sum(1) for c, p in parts])


def others_of(plan: Plan, like: Tensor) -> Tensor:
    """(E,) zero for an atom with itself, else one."""
    tables = {c.n: 1 - torch.eye(c.n, dtype=like.dtype, device=like.device) for c in plan.chunks}
    return torch.cat([tables[c.n].expand(c.count, c.n, c.n).flatten() for c in plan.chunks])


def node_mlp(mlp: nn.Sequential, x: Tensor) -> Tensor:
    """phi_h (M, H) of [h, sum], in the dtype of x (M, 2H)."""
    first, second = (cast("nn.Linear", mlp[i]) for i in (0, 2))
    x = linear_silu(x, first.weight.to(x.dtype), first.bias.to(x.dtype))
    return linear(x, second.weight.to(x.dtype), second.bias.to(x.dtype))
