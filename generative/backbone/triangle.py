"""From terms of unordered pairs to the n x n pre-activations of a chunk, without an index of every edge.

    pre_ij = C_ij + S_ij + a_i + b_j,   pre_ji = C_ij - S_ij + a_j + b_i  (i < j),   pre_ii = d + a_i + b_i

Pairs come in the order of the upper triangle, so that those of one i are a slice of the pairs and of row i.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _rows(n: int) -> Iterator[tuple[int, slice]]:
    start = 0
    for i in range(n - 1):
        yield i, slice(start, start + n - 1 - i)
        start += n - 1 - i


def fill(pre: Tensor, s: Tensor, c: Tensor, diagonal: Tensor, to: Tensor, of: Tensor) -> Tensor:
    """Write the pre-activations into `pre` (count, n, n, H), without autograd.

    s, c (count, n (n - 1) / 2, H): S and C; diagonal (H,): d; to (count, n, 1, H), of (count, 1, n, H): a and b.
    """
    n = pre.shape[1]
    for i, row in _rows(n):
        torch.add(c[:, row], s[:, row], out=pre[:, i, i + 1 :])
        torch.sub(c[:, row], s[:, row], out=pre[:, i + 1 :, i])
    pre.flatten(1, 2)[:, :: n + 1] = diagonal
    return pre.add_(to).add_(of)


class PreActivation(torch.autograd.Function):
    """`fill` into a new tensor, with its first derivative."""

    @staticmethod
    def forward(ctx, s: Tensor, c: Tensor, diagonal: Tensor, to: Tensor, of: Tensor) -> Tensor:  # type: ignore[override]
        count, n, _, hidden = to.shape
        return fill(to.new_empty(count, n, n, hidden), s, c, diagonal, to, of)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[override]
        count, n, _, hidden = g.shape
        to_s, to_c = (g.new_empty(count, n * (n - 1) // 2, hidden) for _ in range(2))
        for i, row in _rows(n):
            torch.sub(g[:, i, i + 1 :], g[:, i + 1 :, i], out=to_s[:, row])
            torch.add(g[:, i, i + 1 :], g[:, i + 1 :, i], out=to_c[:, row])
        diagonal = g.flatten(1, 2)[:, :: n + 1].sum((0, 1))
        return to_s, to_c, diagonal, g.sum(2, keepdim=True), g.sum(1, keepdim=True)
