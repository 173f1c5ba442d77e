"""The fast form of CSPNet: the same function, its sums re-ordered.

Relative to the edge list of `CSPNet.plain`:
- the first edge layer is split, pre_ij = (Wi u_i + WL vec(L L^T) + b) + Wj u_j + WF F_ij: node terms once per atom;
- sin is odd and cos even in f_j - f_i, so WF F is made for unordered pairs only: C + S for (i, j), C - S for (j, i);
- k = 0 (sin 0, cos 1) is folded into the bias, the diagonal (sin 0, cos 1) into a constant;
- sines and cosines are taken once per atom and combined by the angle-difference formulae, once for all layers;
- structures of one size lie together, so that the mean over j is a view and nothing is scattered;
- edges are worked through in chunks that stay in the cache; without autograd in place (inference.py);
- products go through the library that is faster here (gemm.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from generative.backbone import inference
from generative.backbone.gemm import linear, linear_silu
from generative.backbone.pairs import EdgeWeights, Pairs, edge_weights, node_terms, pair_features
from generative.backbone.plan import Chunk, Plan, make_plan
from generative.backbone.triangle import PreActivation

if TYPE_CHECKING:
    from generative.backbone.cspnet import CSPNet

CHUNK_ENTRIES = 2**20  # entries of one edge tensor on a CPU: 4 MiB in float32, which its cache holds
GPU_ENTRIES = 2**26  # elsewhere few large kernels pay


def plan_of(net: CSPNet, batch: CrystalBatch) -> Plan:
    """The plan this network uses for the batch."""
    entries = CHUNK_ENTRIES if batch["num_atoms"].device.type == "cpu" else GPU_ENTRIES
    return make_plan(batch, max(1, entries // net.hidden))


def run_layers(net: CSPNet, batch: CrystalBatch, h: Tensor) -> Tensor:
    """Node state (M, H) after all layers, from the initial one."""
    plan = plan_of(net, batch)
    if not plan.chunks:
        return h
    dtype = net.products or h.dtype
    h = h[plan.atom_order]
    gram = (batch["lattice"] @ batch["lattice"].transpose(1, 2)).flatten(1)[plan.structure_order]
    pairs = pair_features(batch["frac_coords"][plan.atom_order], plan, net.frequencies, dtype)
    work = None if torch.is_grad_enabled() else inference.Workspace(plan, net.hidden, h.to(dtype), net.compile_kernels)
    for layer in net.csp_layers:
        u = layer.layer_norm(h)
        weights = edge_weights(layer, net.frequencies, dtype)
        to, of = node_terms(weights, u, gram, plan)
        mean = edge_means(weights, to, of, plan, pairs, work)
        x = torch.cat([u.to(dtype), mean], 1)
        for i in (0, 2):
            product = cast("nn.Linear", layer.node_mlp[i])
            x = linear_silu(x, product.weight.to(dtype), product.bias.to(dtype))
        h = h + x.to(h.dtype)
    return h[plan.atom_place]


def edge_means(
    weights: EdgeWeights, to: Tensor, of: Tensor, plan: Plan, pairs: list[Pairs], work: inference.Workspace | None
) -> Tensor:
    """mean_j m_ij (M, H) of every atom, in sorted order; to, of (M, H): the terms of the receiver and the sender."""
    if work is not None:
        return inference.edge_means(weights, to, of, plan, pairs, work)
    sizes = [c.count * c.n for c in plan.chunks]
    means = []
    for chunk, features, t, o in zip(plan.chunks, pairs, to.split(sizes), of.split(sizes), strict=True):
        pre = pre_activation(features, weights, chunk, t, o)
        message = linear_silu(F.silu(pre).flatten(0, 2), weights.second, weights.shift)
        # sum, then scale: the gradient of a mean would be written out for every edge
        means.append(message.view(len(t), chunk.n, -1).sum(1) / chunk.n)
    return torch.cat(means)


def pre_activation(features: Pairs, weights: EdgeWeights, chunk: Chunk, to: Tensor, of: Tensor) -> Tensor:
    """The first edge product, (count, n, n, H)."""
    count, n, hidden = chunk.count, chunk.n, to.shape[1]
    to, of = to.view(count, n, 1, hidden), of.view(count, 1, n, hidden)
    if features.cos is None:
        return linear(features.sin, weights.waves).view(count, n, n, hidden) + to + of
    s = linear(features.sin, weights.sine).view(count, n * (n - 1) // 2, hidden)
    c = linear(features.cos, weights.cosine).view_as(s)
    return PreActivation.apply(s, c, weights.diagonal, to, of)
