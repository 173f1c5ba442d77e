"""What the fast form needs of the edges: features of unordered pairs, and the edge weights in the order of its sums."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.backbone.gemm import linear
from generative.backbone.layers import PairLayer, direction
from generative.backbone.plan import Chunk, Plan


class Pairs(NamedTuple):
    """Features of one chunk that are odd in f_j - f_i, 3 (K - 1) sines and 3 of a direction where there is one, and the
    even ones, 3 (K - 1) cosines: (count * pairs, ...) of the unordered pairs in the order of the upper triangle, or of
    every edge, both side by side in `odd`, where `even` is None.
    """

    odd: Tensor
    even: Tensor | None = None


def pair_features(
    frac: Tensor, plan: Plan, frequencies: int, dtype: torch.dtype, metric: Tensor | None = None
) -> list[Pairs]:
    """Features of every chunk, axis-major like the weights, k = 1..K-1; frac (M, 3) in sorted order.

    metric: (B, 3, 3) Gram matrices, in sorted order, where directions are wanted.
    """
    exact = torch.float32 if frac.device.type == "mps" else torch.float64
    turns = frac.to(exact).unsqueeze(-1) * torch.arange(1, frequencies, device=frac.device)
    # the integer part is dropped before rounding: at k = 127 it would cost two digits of the phase
    angle = (2 * math.pi * (turns - turns.floor()).to(frac.dtype)).flatten(1)
    sin, cos = angle.sin(), angle.cos()
    # in bf16, and on a GPU, putting pairs in their places costs more than the product it saves
    unordered = frac.device.type == "cpu" and dtype != torch.bfloat16
    out = []
    for c in plan.chunks:
        (sin_i, sin_j), (cos_i, cos_j), (f_i, f_j) = (_ends(x[c.atoms], c, unordered) for x in (sin, cos, frac))
        odd, even = sin_j * cos_i - cos_j * sin_i, cos_j * cos_i + sin_j * sin_i
        if metric is not None:
            g = metric[c.structures].view(c.count, *[1] * (odd.dim() - 2), 3, 3)
            odd = torch.cat([odd, direction(g, f_i, f_j)], -1)
        parts = [odd, even] if unordered else [torch.cat([odd, even], -1)]
        out.append(Pairs(*(x.to(dtype).flatten(0, -2) for x in parts)))
    return out


def _ends(x: Tensor, c: Chunk, unordered: bool) -> tuple[Tensor, Tensor]:
    """The rows x (count * n, C) at both ends of the unordered pairs, (count, pairs, C), or of all, to be broadcast."""
    x = x.view(c.count, c.n, -1)
    if not unordered:
        return x.unsqueeze(2), x.unsqueeze(1)
    i, j = torch.triu_indices(c.n, c.n, 1, device=x.device)
    return x[:, i], x[:, j]


class EdgeWeights(NamedTuple):
    """phi_e of one layer, its first product split by input; all but structure and bias in the dtype of products.

    nodes (2H, H): receiver, sender. structure (H, S), bias (H,): term of the structure, with cos 0 = 1 of k = 0. odd,
    even: of the features of `Pairs`, waves: both side by side, diagonal (H,): their product with sin 0, cos 0.
    second (H, H), shift (H,): the second product.
    """

    nodes: Tensor
    structure: Tensor
    bias: Tensor
    odd: Tensor
    even: Tensor
    waves: Tensor
    diagonal: Tensor
    second: Tensor
    shift: Tensor


def edge_weights(layer: PairLayer, frequencies: int, directions: bool, dtype: torch.dtype) -> EdgeWeights:
    """The edge weights of a layer, differentiable."""
    first, second = (cast("nn.Linear", layer.edge_mlp[i]) for i in (0, 2))
    hidden, waves, ways = first.out_features, 6 * frequencies, 3 * directions
    widths = [hidden, hidden, first.in_features - 2 * hidden - waves - ways, waves, ways]
    receive, send, structure, fourier, way = first.weight.split(widths, 1)
    fourier = fourier.unflatten(1, (2, 3, frequencies))
    odd = torch.cat([fourier[:, 0, :, 1:].flatten(1), way], 1).to(dtype)
    even = fourier[:, 1, :, 1:].flatten(1).to(dtype)
    return EdgeWeights(
        torch.cat([receive, send]).to(dtype),
        structure,
        first.bias + fourier[:, 1, :, 0].sum(1),
        odd,
        even,
        torch.cat([odd, even], 1),
        even.sum(1),
        second.weight.to(dtype),
        second.bias.to(dtype),
    )


def node_terms(weights: EdgeWeights, u: Tensor, structure: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The receiver's term, with that of its structure, and the sender's, (M, H) each; u (M, H), structure (B, S)."""
    dtype = weights.nodes.dtype
    received, sent = linear(u.to(dtype), weights.nodes).chunk(2, 1)
    return received + F.linear(structure, weights.structure, weights.bias).to(dtype)[plan.owner], sent


def own_messages(messages: Tensor, chunk: Chunk) -> Tensor:
    """m_ii (count * n, H) out of the messages of a chunk (count * n * n, H)."""
    square = messages.view(chunk.count, chunk.n, chunk.n, -1)
    return square.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(0, 1)
