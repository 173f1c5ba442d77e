"""What the edges of CSPNet need: features of unordered pairs, and the edge weights in the order the fast form uses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.backbone.gemm import linear
from generative.backbone.plan import Plan

if TYPE_CHECKING:
    from generative.backbone.cspnet import CSPLayer


class Pairs(NamedTuple):
    """Fourier features of one chunk, 3 (K - 1) columns: (count * pairs, ...) sines and cosines of the unordered pairs
    in the order of the upper triangle, or of every edge, sines and cosines side by side in `sin`, where `cos` is None.
    """

    sin: Tensor
    cos: Tensor | None


def pair_features(frac: Tensor, plan: Plan, frequencies: int, dtype: torch.dtype) -> list[Pairs]:
    """Features of every chunk, axis-major like the weights, k = 1..K-1; frac (M, 3) in sorted order."""
    exact = torch.float32 if frac.device.type == "mps" else torch.float64
    turns = frac.to(exact).unsqueeze(-1) * torch.arange(1, frequencies, device=frac.device)
    # the integer part is dropped before rounding: at k = 127 it would cost two digits of the phase
    angle = (2 * math.pi * (turns - turns.floor()).to(frac.dtype)).flatten(1)
    sin, cos = angle.sin(), angle.cos()
    # in bf16, and on a GPU, putting pairs in their places costs more than the product it saves
    build = _unordered_pairs if frac.device.type == "cpu" and dtype != torch.bfloat16 else _every_edge
    out = []
    for c in plan.chunks:
        s, k = (x[c.atoms].view(c.count, c.n, sin.shape[1]) for x in (sin, cos))
        out.append(build(s, k, c.n, dtype))
    return out


def _unordered_pairs(sin: Tensor, cos: Tensor, n: int, dtype: torch.dtype) -> Pairs:
    i, j = torch.triu_indices(n, n, 1, device=sin.device)
    sin_i, cos_i, sin_j, cos_j = sin[:, i], cos[:, i], sin[:, j], cos[:, j]
    odd, even = sin_j * cos_i - cos_j * sin_i, cos_j * cos_i + sin_j * sin_i
    return Pairs(odd.to(dtype).flatten(0, 1), even.to(dtype).flatten(0, 1))


def _every_edge(sin: Tensor, cos: Tensor, n: int, dtype: torch.dtype) -> Pairs:
    sin_i, cos_i, sin_j, cos_j = sin.unsqueeze(2), cos.unsqueeze(2), sin.unsqueeze(1), cos.unsqueeze(1)
    odd, even = sin_j * cos_i - cos_j * sin_i, cos_j * cos_i + sin_j * sin_i
    return Pairs(torch.cat([odd, even], -1).to(dtype).flatten(0, 2), None)


class EdgeWeights(NamedTuple):
    """phi_e of one layer, its first product split by input; all but metric and bias in the dtype of products.

    nodes (2H, H): receiver, sender. metric (H, 9), bias (H,): lattice term, with cos 0 = 1 of k = 0. sine, cosine
    (H, 3 (K - 1)), waves: both side by side, diagonal (H,): their product with sin 0, cos 0. second (H, H),
    shift (H,): the second product.
    """

    nodes: Tensor
    metric: Tensor
    bias: Tensor
    sine: Tensor
    cosine: Tensor
    waves: Tensor
    diagonal: Tensor
    second: Tensor
    shift: Tensor


def edge_weights(layer: CSPLayer, frequencies: int, dtype: torch.dtype) -> EdgeWeights:
    """The edge weights of a layer, differentiable."""
    first, second = (cast("nn.Linear", layer.edge_mlp[i]) for i in (0, 2))
    hidden = first.out_features
    receive, send, metric, fourier = first.weight.split([hidden, hidden, 9, 6 * frequencies], 1)
    fourier = fourier.unflatten(1, (2, 3, frequencies))
    waves = fourier[:, :, :, 1:].flatten(1).to(dtype)
    sine, cosine = waves.chunk(2, 1)
    return EdgeWeights(
        torch.cat([receive, send]).to(dtype),
        metric,
        first.bias + fourier[:, 1, :, 0].sum(1),
        sine,
        cosine,
        waves,
        cosine.sum(1),
        second.weight.to(dtype),
        second.bias.to(dtype),
    )


def node_terms(weights: EdgeWeights, u: Tensor, gram: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The receiver's term, with that of its lattice, and the sender's, (M, H) each; u (M, H), gram (B, 9), sorted."""
    dtype = weights.nodes.dtype
    received, sent = linear(u.to(dtype), weights.nodes).chunk(2, 1)
    return received + F.linear(gram, weights.metric, weights.bias).to(dtype)[plan.owner], sent
