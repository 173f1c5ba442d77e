"""The fast form of CSPNet: the same function, its sums re-ordered.

Relative to the edge list of `CSPNet.plain`:
- the first edge layer is split, pre_ij = (Wi u_i + WL vec(L L^T) + b) + Wj u_j + WF F_ij: node terms once per atom;
- sin is odd and cos even in f_j - f_i, so WF F is made for unordered pairs only: C + S for (i, j), C - S for (j, i);
- k = 0 (sin 0, cos 1) is folded into the bias, the diagonal (sin 0, cos 1) into a constant;
- sines and cosines are taken once per atom and combined by the angle-difference formulae, once for all layers;
- structures of one size lie together, so that the mean over j is a view and nothing is scattered;
- edges are worked through in chunks that stay in the cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chem.crystals import CrystalBatch
from generative.backbone.plan import Chunk, Plan, make_plan

if TYPE_CHECKING:
    from generative.backbone.cspnet import CSPLayer, CSPNet

CHUNK_ENTRIES = 2**20  # entries of one edge tensor: 4 MiB in float32


class Pairs(NamedTuple):
    """Fourier features of one chunk: for unordered pairs with the map `edge` from its n x n edges to their terms, or
    for every edge, sines and cosines side by side in `sin`, where `edge` is None."""

    sin: Tensor
    cos: Tensor | None
    edge: Tensor | None


def plan_of(net: CSPNet, batch: CrystalBatch) -> Plan:
    """The plan this network uses for the batch."""
    return make_plan(batch, max(1, CHUNK_ENTRIES // net.hidden))


def run_layers(net: CSPNet, batch: CrystalBatch, h: Tensor) -> Tensor:
    """Node state (M, H) after all layers, from the initial one."""
    plan = plan_of(net, batch)
    dtype = net.products or h.dtype
    h = h[plan.atom_order]
    gram = (batch["lattice"] @ batch["lattice"].transpose(1, 2)).flatten(1)[plan.structure_order]
    pairs = pair_features(batch["frac_coords"][plan.atom_order], plan, net.frequencies, dtype)
    for layer in net.csp_layers:
        u = layer.layer_norm(h)
        mean = edge_means(layer, u, gram, plan, pairs, net.frequencies, dtype)
        first, second = layer.node_mlp[0], layer.node_mlp[2]
        hidden = F.silu(linear(torch.cat([u.to(dtype), mean.to(dtype)], 1), first.weight, first.bias))
        h = h + F.silu(linear(hidden, second.weight, second.bias)).to(h.dtype)
    return h[plan.atom_place]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in the dtype of x."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def pair_features(frac: Tensor, plan: Plan, frequencies: int, dtype: torch.dtype) -> list[Pairs]:
    """Features (count, pairs, 3 (K - 1)) of every chunk, axis-major like the weights, k = 1..K-1."""
    exact = torch.float32 if frac.device.type == "mps" else torch.float64
    turns = frac.to(exact).unsqueeze(-1) * torch.arange(1, frequencies, device=frac.device)
    # the integer part is dropped before rounding: at k = 127 it would cost two digits of the phase
    angle = (2 * math.pi * (turns - turns.floor()).to(frac.dtype)).flatten(1)
    sin, cos = angle.sin(), angle.cos()
    sizes = [c.count * c.n for c in plan.chunks]
    # in bf16 the gather of the pair form costs more than the product it saves
    build = _every_edge if dtype == torch.bfloat16 else _unordered_pairs
    parts = zip(plan.chunks, sin.split(sizes), cos.split(sizes), strict=True)
    return [build(s.view(c.count, c.n, -1), k.view(c.count, c.n, -1), c.n, dtype) for c, s, k in parts]


def _unordered_pairs(sin: Tensor, cos: Tensor, n: int, dtype: torch.dtype) -> Pairs:
    i, j = torch.triu_indices(n, n, 1, device=sin.device)
    sin_i, cos_i, sin_j, cos_j = sin[:, i], cos[:, i], sin[:, j], cos[:, j]
    edge = torch.full((n, n), 2 * len(i), device=sin.device)
    edge[i, j] = torch.arange(len(i), device=sin.device)
    edge[j, i] = edge[i, j] + len(i)
    odd, even = sin_j * cos_i - cos_j * sin_i, cos_j * cos_i + sin_j * sin_i
    return Pairs(odd.to(dtype), even.to(dtype), edge.flatten())


def _every_edge(sin: Tensor, cos: Tensor, n: int, dtype: torch.dtype) -> Pairs:
    sin_i, cos_i, sin_j, cos_j = sin.unsqueeze(2), cos.unsqueeze(2), sin.unsqueeze(1), cos.unsqueeze(1)
    odd, even = sin_j * cos_i - cos_j * sin_i, cos_j * cos_i + sin_j * sin_i
    return Pairs(torch.cat([odd, even], -1).to(dtype), None, None)


def edge_means(
    layer: CSPLayer, u: Tensor, gram: Tensor, plan: Plan, pairs: list[Pairs], frequencies: int, dtype: torch.dtype
) -> Tensor:
    """mean_j m_ij (M, H) of every atom, in sorted order."""
    first, second = layer.edge_mlp[0], layer.edge_mlp[2]
    hidden = u.shape[1]
    receive, send, metric, fourier = first.weight.split([hidden, hidden, 9, 6 * frequencies], 1)
    fourier = fourier.unflatten(1, (2, 3, frequencies))
    bias = first.bias + fourier[:, 1, :, 0].sum(1)
    waves = fourier[:, :, :, 1:].flatten(1).to(dtype)
    # two node products in one; the lattice term is per structure
    nodes = linear(u.to(dtype), torch.cat([receive, send]))
    sizes = [c.count * c.n for c in plan.chunks]
    received = nodes[:, :hidden] + F.linear(gram, metric, bias).to(dtype)[plan.owner]
    weight, shift = second.weight.to(dtype), second.bias.to(dtype)
    means = []
    parts = zip(plan.chunks, pairs, received.split(sizes), nodes[:, hidden:].split(sizes), strict=True)
    for chunk, features, to, of in parts:
        pre = edge_terms(features, waves, chunk)
        pre = pre + to.view(chunk.count, chunk.n, 1, hidden)
        pre = pre + of.view(chunk.count, 1, chunk.n, hidden)
        message = F.silu(F.linear(F.silu(pre), weight, shift))
        # sum, then scale: the gradient of a mean would be written out for every edge
        means.append((message.sum(2) / chunk.n).flatten(0, 1))
    return torch.cat(means)


def edge_terms(features: Pairs, waves: Tensor, chunk: Chunk) -> Tensor:
    """WF F_ij of every edge of a chunk, (count, n, n, H)."""
    if features.edge is None:
        return F.linear(features.sin, waves)
    sine, cosine = waves.chunk(2, 1)
    s, c = F.linear(features.sin, sine), F.linear(features.cos, cosine)
    diagonal = cosine.sum(1).expand(chunk.count, 1, -1)
    terms = torch.cat([c + s, c - s, diagonal], 1)
    return terms[:, features.edge].view(chunk.count, chunk.n, chunk.n, -1)
