"""The edge half of a fast EGNN layer: two products per pair, in chunks that stay in the cache, forward and backward.

    m_ij = silu(W2 silu(a_i + b_j + wd d_ij^2 + wa a_ij^2) + b2)

What is asked of the messages is small, sum_j e_ij m_ij or w m_ij, so they are never kept. A training keeps the second
product alone: the first pre-activation is made again from the node terms, three passes over E x H, which costs less
than to write it out and read it back. Chunks keep the n x n layout of plan.py; e_ii = 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.backbone.gemm import linear, use_onednn
from generative.backbone.plan import Chunk, Plan


class EdgeWeights(NamedTuple):
    """phi_e or phi_x of one layer; nodes, second and shift in the dtype of products, the rest in that of the weights.

    nodes (2H, H), bias (H,): the terms a and b. distances (H, 2): wd, wa. second (H, H), shift (H,): the second
    product. readout (H,), offset (1,): of the scores w m_ij, where there are any.
    """

    nodes: Tensor
    bias: Tensor
    distances: Tensor
    second: Tensor
    shift: Tensor
    readout: Tensor | None = None
    offset: Tensor | None = None


def edge_weights(mlp: nn.Sequential, readout: nn.Linear | None, dtype: torch.dtype) -> EdgeWeights:
    """The weights of the two products of an MLP on [h_i, h_j, d^2, a^2] and of what reads its messages."""
    first, second = (cast("nn.Linear", mlp[i]) for i in (0, 2))
    hidden = first.out_features
    receive, send, distances = first.weight.split([hidden, hidden, 2], 1)
    nodes = torch.cat([receive, send]).to(dtype)
    last = () if readout is None else (readout.weight[0], readout.bias)
    return EdgeWeights(nodes, first.bias, distances, second.weight.to(dtype), second.bias.to(dtype), *last)


def messages(weights: EdgeWeights, h: Tensor, squares: Tensor, others: Tensor, plan: Plan) -> Tensor:
    """sum_j e_ij m_ij (M, H), e_ij = sigmoid(w m_ij + b) where there is a readout; others (E,): 0 for i = j, else 1."""
    return _run(weights, h, squares, others, plan)


def scores(weights: EdgeWeights, h: Tensor, squares: Tensor, plan: Plan) -> Tensor:
    """w m_ij (E,) of every pair; h (M, H), squares (E, 2), d^2 and a^2 or what stands for them: in sorted order."""
    return _run(weights, h, squares, None, plan)


def _run(w: EdgeWeights, h: Tensor, squares: Tensor, others: Tensor | None, plan: Plan) -> Tensor:
    to, of = linear(h.to(w.nodes.dtype), w.nodes).to(h.dtype).chunk(2, 1)
    arguments = (to + w.bias, of, squares, others, *w[2:])
    if torch.is_grad_enabled():
        return EdgeProducts.apply(plan, *arguments)
    return _forward(plan, *arguments, None)


def _first(
    c: Chunk, rows: slice, to: Tensor, of: Tensor, squares: Tensor, distances: Tensor, work: Tensor | None = None
) -> Tensor:
    """The first pre-activation of a chunk, (count * n * n, H); written into the first rows of `work` where given."""
    ends = to[c.atoms].unflatten(0, (c.count, c.n, 1)), of[c.atoms].unflatten(0, (c.count, 1, c.n))
    shape = (c.count, c.n, c.n, to.shape[1])
    pre = torch.add(*ends) if work is None else torch.add(*ends, out=work[: c.count * c.n * c.n].view(shape))
    return pre.flatten(0, 2).addmm_(squares[rows], distances.t())


def _forward(
    plan: Plan,
    to: Tensor,
    of: Tensor,
    squares: Tensor,
    others: Tensor | None,
    distances: Tensor,
    second: Tensor,
    shift: Tensor,
    readout: Tensor | None,
    offset: Tensor | None,
    kept: list[Tensor] | None,
) -> Tensor:
    out = to.new_empty(len(squares)) if others is None else torch.empty_like(to)
    largest = max(c.count * c.n * c.n for c in plan.chunks)
    work = to.new_empty(largest, to.shape[1])
    spare = None if kept is not None else work.new_empty(work.shape, dtype=second.dtype)
    for c, rows in plan.edges:
        act = F.silu(_first(c, rows, to, of, squares, distances, work), inplace=True)
        z = linear(act.to(second.dtype), second, shift, out=None if spare is None else spare[: len(act)])
        message = F.silu(z, inplace=kept is None)
        if kept is not None:
            kept.append(z)
        if others is None:
            out[rows] = score(message, cast("Tensor", readout))
        else:
            gate = others[rows]
            if readout is not None and offset is not None:
                gate = gate * (score(message, readout) + offset).sigmoid()
            shape = (c.count * c.n, c.n)
            out[c.atoms] = (gate.view(shape).unsqueeze(1).to(z.dtype) @ message.view(*shape, -1)).squeeze(1)
    return out


def score(message: Tensor, readout: Tensor) -> Tensor:
    """w m (rows,), multiplied in the dtype of the messages, in that of w."""
    return torch.mv(message, readout.to(message.dtype)).to(readout.dtype)


class EdgeProducts(torch.autograd.Function):
    """`_forward` with its first derivative."""

    @staticmethod
    def forward(ctx, plan: Plan, *arguments: Tensor | None) -> Tensor:  # type: ignore[override]
        kept: list[Tensor] = []
        out = _forward(plan, *arguments, kept)  # type: ignore[call-arg, arg-type]
        ctx.plan = plan
        ctx.save_for_backward(*arguments, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[override]
        to, of, squares, others, distances, second, shift, readout, offset, *kept = ctx.saved_tensors
        wide = (distances, second, shift)
        to_first = [torch.empty_like(to), torch.empty_like(of), torch.empty_like(squares)]
        totals = [torch.zeros_like(x, dtype=to.dtype) for x in wide]
        lasts: list[Any] = [None if x is None else torch.zeros_like(x) for x in (readout, offset)]
        back = second.t().contiguous()
        for (c, rows), z in zip(ctx.plan.edges, kept, strict=True):
            gate: Any = None if others is None else others[rows].view(c.count * c.n, c.n)
            share = g[rows] if others is None else g[c.atoms].to(z.dtype)
            if readout is None:
                to_message = gate.unsqueeze(2).to(z.dtype) * share.unsqueeze(1)
            else:
                to_message = _message_gradient(z, share, gate, readout, offset, *lasts)
            to_z = torch.ops.aten.silu_backward(to_message.view_as(z), z)
            pre = _first(c, rows, to, of, squares, distances)
            totals[1] += _transposed_product(to_z, F.silu(pre).to(z.dtype))
            totals[2] += to_z.sum(0)
            to_pre = torch.ops.aten.silu_backward(linear(to_z, back).to(pre.dtype), pre)
            square = to_pre.view(c.count, c.n, c.n, -1)
            torch.sum(square, 2, out=to_first[0][c.atoms].view(c.count, c.n, -1))
            torch.sum(square, 1, out=to_first[1][c.atoms].view(c.count, c.n, -1))
            torch.mm(to_pre, distances, out=to_first[2][rows])
            totals[0].addmm_(to_pre.t(), squares[rows])
        parts = [total.to(x.dtype) for total, x in zip(totals, wide, strict=True)]
        return None, *to_first, None, *parts, *lasts


def _message_gradient(
    z: Tensor,
    g: Tensor,
    others: Tensor | None,
    readout: Tensor,
    offset: Tensor | None,
    to_readout: Tensor,
    to_offset: Tensor | None,
) -> Tensor:
    """The gradient of the messages of a chunk, given that of its scores or its sums; those of the readout add up."""
    message = F.silu(z)
    if others is None or offset is None or to_offset is None:
        to_readout += score(message.t(), g)
        return g.to(z.dtype).unsqueeze(1) * readout.to(z.dtype)
    sigmoid = (score(message, readout) + offset).sigmoid().view_as(others)
    gate = others * sigmoid
    to_gate = (message.view(*others.shape, -1) @ g.unsqueeze(2)).squeeze(2)
    to_score = (to_gate * gate * (1 - sigmoid)).flatten()
    to_readout += score(message.t(), to_score)
    to_offset += to_score.sum()
    scored = to_score.to(z.dtype).unsqueeze(1) * readout.to(z.dtype)
    return (gate.unsqueeze(2).to(z.dtype) * g.unsqueeze(1)).view_as(scored) + scored


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b."""
    return linear(a.t().contiguous(), b.t().contiguous()) if use_onednn(a) else torch.mm(a.t(), b)
