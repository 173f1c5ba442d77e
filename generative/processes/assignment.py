"""Pairing of noise and data inside a structure.

Rows that may be exchanged (atoms of one element) have no identity, so a draw of the base may be dealt out among them,
and shifted as a whole where translations are a symmetry, without changing the base: paths become shorter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chem.periodic import torus_log, wrap
from chem.ragged import Rows

ROUNDS = 2


def assign_to(x: Tensor, start: Tensor, rows: Rows, shift: bool) -> Tensor:
    """The points `start` (R, D) of the torus, dealt out so that the squared ways to x (R, D) have the least sum.

    Points are exchanged within a structure among rows of equal `rows.label`. shift: also move each structure's points
    together, by alternating assignment and best shift two rounds, which need not find the best pair of both. Runs on
    the CPU. Raises ValueError for rows without labels or with a subspace.
    """
    from scipy.optimize import linear_sum_assignment

    if rows.label is None or rows.subspace is not None:
        raise ValueError("assignment needs rows with labels, `<field>_label`, and without subspaces")
    ends, starts, labels = (v.detach().cpu() for v in (x, start, rows.label))
    pieces = []
    counts = torch.bincount(rows.index.cpu(), minlength=rows.num_structures).tolist()
    for end, begin, label in zip(ends.split(counts), starts.split(counts), labels.split(counts), strict=True):
        barred = 1e6 * (label.unsqueeze(1) != label)
        offset = torch.zeros(x.shape[1], dtype=x.dtype)
        for _ in range(ROUNDS if shift else 1):
            ways = torus_log(begin + offset, end.unsqueeze(1))
            chosen = torch.as_tensor(linear_sum_assignment((ways.square().sum(-1) + barred).numpy())[1])
            if shift and len(end):
                offset = offset + torus_log(begin[chosen] + offset, end).mean(0)
        pieces.append(wrap(begin[chosen] + offset))
    return torch.cat(pieces).to(x.device)
