"""The edge half of a fast layer without autograd: in place, in workspaces of the size of one chunk.

What is not a matrix product here is passes over E x H numbers, and each costs about 3 % of the products: the pair
terms are written straight into the n x n layout (triangle.py) and nothing is gathered.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.backbone.compiled import silu_pre_activation
from generative.backbone.gemm import linear, linear_silu
from generative.backbone.pairs import EdgeWeights, Pairs, own_messages
from generative.backbone.plan import Chunk, Plan
from generative.backbone.triangle import fill


class Workspace:
    """Buffers for the largest chunk of a plan, made once for all layers of one call.

    compiled: make pre-activations with the compiled kernel.
    """

    def __init__(self, plan: Plan, hidden: int, like: Tensor, compiled: bool = False):
        self.compiled = compiled
        edges = max((c.count * c.n * c.n for c in plan.chunks), default=0)
        pairs = max((c.count * (c.n * (c.n - 1) // 2) for c in plan.chunks), default=0)
        self._buffers = {
            name: like.new_empty(rows, hidden)
            for name, rows in {"pre": edges, "message": edges, "sin": pairs, "cos": pairs}.items()
        }

    def take(self, name: str, rows: int) -> Tensor:
        """The first `rows` rows of a buffer, (rows, H); what was in them is overwritten."""
        return self._buffers[name][:rows]


def edge_means(
    weights: EdgeWeights,
    to: Tensor,
    of: Tensor,
    plan: Plan,
    pairs: list[Pairs],
    work: Workspace,
    self_pairs: bool,
) -> Tensor:
    """mean_j m_ij (M, H) of every atom, in sorted order; to, of (M, H): the terms of the receiver and the sender."""
    means = torch.empty_like(to)
    for chunk, features in zip(plan.chunks, pairs, strict=True):
        rows = chunk.count * chunk.n * chunk.n
        pre = _pre_activation(features, weights, chunk, to[chunk.atoms], of[chunk.atoms], work)
        message = linear_silu(pre.view(rows, -1), weights.second, weights.shift, work.take("message", rows))
        mean = means[chunk.atoms]
        torch.sum(message.view(len(mean), chunk.n, -1), 1, out=mean)
        if not self_pairs:
            mean.sub_(own_messages(message, chunk))
        mean.div_(max(1, chunk.n - (not self_pairs)))
    return means


def _pre_activation(features: Pairs, w: EdgeWeights, chunk: Chunk, to: Tensor, of: Tensor, work: Workspace) -> Tensor:
    """silu of the first edge product, (count * n * n, H)."""
    count, n, hidden = chunk.count, chunk.n, to.shape[1]
    to, of = to.view(count, n, 1, hidden), of.view(count, 1, n, hidden)
    pre = work.take("pre", count * n * n)
    if features.even is None:
        pre = linear(features.odd, w.waves, out=pre).view(count, n, n, hidden)
        return F.silu(pre.add_(to).add_(of), inplace=True)
    pairs = n * (n - 1) // 2
    s = linear(features.odd, w.odd, out=work.take("sin", count * pairs)).view(count, pairs, hidden)
    c = linear(features.even, w.even, out=work.take("cos", count * pairs)).view(count, pairs, hidden)
    if work.compiled and n > 1:
        return silu_pre_activation(s, c, w.diagonal, to, of)
    return F.silu(fill(pre.view(count, n, n, hidden), s, c, w.diagonal, to, of), inplace=True)
