"""The pre-activation of CSPNet's fast form as one compiled kernel: gather, add and SiLU in a single pass over E x H.

Worth 1.5x of that pass and about 4 % of a float32 forward at hidden 512, against some seconds of compilation and a C++
compiler at run time; hence an option, `CSPNet.compile_kernels`, and off by default.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_pre_activation(s: Tensor, c: Tensor, diagonal: Tensor, to: Tensor, of: Tensor) -> Tensor:
    """silu of what `triangle.fill` makes of the same arguments, (count, n, n, H), in a new tensor."""
    pair, sign, own = _tables(to.shape[1], s.device, s.dtype)
    return _kernel()(s, c, diagonal, to, of, pair, sign, own)


def _gathered(
    s: Tensor, c: Tensor, diagonal: Tensor, to: Tensor, of: Tensor, pair: Tensor, sign: Tensor, own: Tensor
) -> Tensor:
    count, n, _, hidden = to.shape
    terms = (1 - own) * c[:, pair] + sign * s[:, pair] + own * diagonal
    return F.silu(terms.view(count, n, n, hidden) + to + of)


@cache
def _kernel():
    return torch.compile(_gathered, dynamic=True)


@cache
def _tables(n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """For the n * n edges, receiver-major: pair (n n,), sign of S and whether it is a self-pair (n n, 1)."""
    i, j = torch.triu_indices(n, n, 1)
    pair, sign = torch.zeros(n, n, dtype=torch.long), torch.zeros(n, n, dtype=dtype)
    pair[i, j] = pair[j, i] = torch.arange(len(i))
    sign[i, j], sign[j, i] = 1, -1
    own = torch.eye(n, dtype=dtype)
    return pair.flatten().to(device), sign.view(-1, 1).to(device), own.view(-1, 1).to(device)
