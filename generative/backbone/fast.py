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
    """Fourier features of the unordered pairs of one chunk, and the map from its n x n edges to their terms."""

    sin: Tensor
    cos: Tensor
    edge: Tensor


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
    return [_chunk_pairs(sin[c.atoms], cos[c.atoms], c, dtype) for c in plan.chunks]


def _chunk_pairs(sin: Tensor, cos: Tensor, chunk: Chunk, dtype: torch.dtype) -> Pairs:
    i, j = torch.triu_indices(chunk.n, chunk.n, 1, device=sin.device)
    sin, cos = sin.view(chunk.count, chunk.n, -1), cos.view(chunk.count, chunk.n, -1)
    sin_i, cos_i, sin_j, cos_j = sin[:, i], cos[:, i], sin[:, j], cos[:, j]
    odd = sin_j * cos_i - cos_j * sin_i
    even = cos_j * cos_i + sin_j * sin_i
    edge = torch.full((chunk.n, chunk.n), 2 * len(i), device=sin.device)
    edge[i, j] = torch.arange(len(i), device=sin.device)
    edge[j, i] = torch.arange(len(i), device=sin.device) + len(i)
    return Pairs(odd.to(dtype), even.to(dtype), edge.flatten())


def edge_means(
    layer: CSPLayer, u: Tensor, gram: Tensor, plan: Plan, pairs: list[Pairs], frequencies: int, dtype: torch.dtype
) -> Tensor:
    """mean_j m_ij (M, H) of every atom, in sorted order."""
    first, second = layer.edge_mlp[0], layer.edge_mlp[2]
    hidden = u.shape[1]
    receive, send, metric, fourier = first.weight.split([hidden, hidden, 9, 6 * frequencies], 1)
    sine, cosine = fourier.unflatten(1, (2, 3, frequencies)).unbind(1)
    bias = first.bias + cosine[:, :, 0].sum(1)
    sine, cosine = sine[:, :, 1:].flatten(1).to(dtype), cosine[:, :, 1:].flatten(1).to(dtype)
    # two node products in one; the lattice term is per structure
    received, sent = linear(u.to(dtype), torch.cat([receive, send])).split(hidden, 1)
    received = received + F.linear(gram, metric, bias).to(dtype)[plan.owner]
    diagonal = cosine.sum(1)
    weight, shift = second.weight.to(dtype), second.bias.to(dtype)
    means = []
    for chunk, (odd, even, edge) in zip(plan.chunks, pairs, strict=True):
        shape = (chunk.count, chunk.n, hidden)
        s, c = F.linear(odd, sine), F.linear(even, cosine)
        terms = torch.cat([c + s, c - s, diagonal.expand(chunk.count, 1, hidden)], 1)
        pre = terms[:, edge].view(chunk.count, chunk.n, chunk.n, hidden)
        pre = pre + received[chunk.atoms].view(shape).unsqueeze(2) + sent[chunk.atoms].view(shape).unsqueeze(1)
        message = F.silu(F.linear(F.silu(pre), weight, shift))
        means.append(message.mean(2, dtype=u.dtype).flatten(0, 1))
    return torch.cat(means)
