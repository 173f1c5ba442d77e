"""The fast form of the layers of layers.py: the same function, its sums re-ordered.

Relative to the edge list:
- the first edge layer is split, pre_ij = (Wi u_i + Ws s + b) + Wj u_j + WF F_ij: node terms once per atom;
- sin and d are odd and cos even in f_j - f_i, so WF F is made for unordered pairs only: C + S for (i, j), C - S for
  (j, i);
- k = 0 (sin 0, cos 1) is folded into the bias, the diagonal (sin 0, cos 1) into a constant;
- sines and cosines are taken once per atom and combined by the angle-difference formulae, once for all layers;
- structures of one size lie together, so that the mean over j is a view and nothing is scattered;
- edges are worked through in chunks that stay in the cache; without autograd in place (inference.py);
- products go through the library that is faster here (gemm.py).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from generative.backbone import inference
from generative.backbone.gemm import linear, linear_silu
from generative.backbone.layers import LayerStack, gram
from generative.backbone.pairs import EdgeWeights, Pairs, edge_weights, node_terms, own_messages, pair_features
from generative.backbone.plan import Chunk, Plan, make_plan
from generative.backbone.triangle import PreActivation

CHUNK_ENTRIES = 2**20  # entries of one edge tensor on a CPU: 4 MiB in float32, which its cache holds
GPU_ENTRIES = 2**26  # elsewhere few large kernels pay


def plan_of(net: LayerStack, batch: CrystalBatch) -> Plan:
    """The plan this network uses for the batch."""
    entries = CHUNK_ENTRIES if batch["num_atoms"].device.type == "cpu" else GPU_ENTRIES
    return make_plan(batch, max(1, entries // net.hidden))


def run_layers(net: LayerStack, batch: CrystalBatch, h: Tensor, structure: Tensor) -> Tensor:
    """Node state (M, H) after all layers, from the initial one and the structures' features (B, S)."""
    plan = plan_of(net, batch)
    if not plan.chunks:
        return h
    dtype = net.products or h.dtype
    h = h[plan.atom_order]
    structure = structure[plan.structure_order]
    metric = gram(batch)[plan.structure_order] if net.directions else None
    pairs = pair_features(batch["frac_coords"][plan.atom_order], plan, net.frequencies, dtype, metric)
    work = None if torch.is_grad_enabled() else inference.Workspace(plan, net.hidden, h.to(dtype), net.compile_kernels)
    for layer in net.layers:
        u = layer.layer_norm(h)
        weights = edge_weights(layer, net.frequencies, net.directions, dtype)
        to, of = node_terms(weights, u, structure, plan)
        mean = edge_means(weights, to, of, plan, pairs, work, net.self_pairs)
        x = torch.cat([u.to(dtype), mean], 1)
        for i in (0, 2):
            product = cast("nn.Linear", layer.node_mlp[i])
            x = linear_silu(x, product.weight.to(dtype), product.bias.to(dtype))
        h = h + x.to(h.dtype)
    return h[plan.atom_place]


def edge_means(
    weights: EdgeWeights,
    to: Tensor,
    of: Tensor,
    plan: Plan,
    pairs: list[Pairs],
    work: inference.Workspace | None,
    self_pairs: bool,
) -> Tensor:
    """mean_j m_ij (M, H) of every atom, in sorted order; to, of (M, H): the terms of the receiver and the sender."""
    if work is not None:
        return inference.edge_means(weights, to, of, plan, pairs, work, self_pairs)
    sizes = [c.count * c.n for c in plan.chunks]
    means = []
    for chunk, features, t, o in zip(plan.chunks, pairs, to.split(sizes), of.split(sizes), strict=True):
        pre = pre_activation(features, weights, chunk, t, o)
        message = linear_silu(F.silu(pre).flatten(0, 2), weights.second, weights.shift)
        # sum, then scale: the gradient of a mean would be written out for every edge
        total = message.view(len(t), chunk.n, -1).sum(1)
        if not self_pairs:
            total = total - own_messages(message, chunk)
        means.append(total / max(1, chunk.n - (not self_pairs)))
    return torch.cat(means)


def pre_activation(features: Pairs, weights: EdgeWeights, chunk: Chunk, to: Tensor, of: Tensor) -> Tensor:
    """The first edge product, (count, n, n, H)."""
    count, n, hidden = chunk.count, chunk.n, to.shape[1]
    to, of = to.view(count, n, 1, hidden), of.view(count, 1, n, hidden)
    if features.even is None:
        return linear(features.odd, weights.waves).view(count, n, n, hidden) + to + of
    s = linear(features.odd, weights.odd).view(count, n * (n - 1) // 2, hidden)
    c = linear(features.even, weights.even).view_as(s)
    return PreActivation.apply(s, c, weights.diagonal, to, of)
