"""Many small linear programs at once: the lower hull of energies over compositions, one composition a problem.

Each problem is: minimise costs . w over w >= 0 with columns w = amounts, where the first m columns are the unit vectors
(the elements) and all amounts are positive. So the elements are a feasible start, and the revised simplex method needs
no artificial variable. A step takes the column of the most negative reduced cost; Bland's rule after PATIENCE steps
keeps a degenerate vertex, such as a composition that is a phase itself, from cycling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OPTIMAL = 1e-11  # reduced costs above -OPTIMAL are no gain; a value is off by at most as much per unit of amount
PIVOT = 1e-9  # smallest entry to divide by
PATIENCE, LIMIT = 100, 2000  # steps by the steepest rule, and in all


@dataclass(frozen=True)
class Optimum:
    """Of B problems: value (B,), the columns in the basis (B, m) and their weights (B, m)."""

    value: Tensor
    basis: Tensor
    weights: Tensor


def minimise(columns: Tensor, costs: Tensor, amounts: Tensor) -> Optimum:
    """Optima of B problems with m rows and N columns: columns (B, m, N), costs (B, N), amounts (B, m), float64.

    A column of infinite cost is never used; the first m columns must be the unit vectors, of finite cost.
    """
    import torch

    count, m, _ = columns.shape
    inverse = torch.eye(m, dtype=columns.dtype, device=columns.device).repeat(count, 1, 1)
    basis = torch.arange(m, device=columns.device).repeat(count, 1)
    level = amounts
    for step in range(LIMIT):
        prices = costs.gather(1, basis).unsqueeze(1) @ inverse
        reduced = costs - (prices @ columns).squeeze(1)
        if step < PATIENCE:
            gain, entering = reduced.min(1)
        else:
            entering = (reduced < -OPTIMAL).int().argmax(1)  # Bland: the first that gains
            gain = reduced.gather(1, entering.unsqueeze(1)).squeeze(1)
        open_ = gain < -OPTIMAL
        if not bool(open_.any()):
            weights = (inverse @ amounts.unsqueeze(2)).squeeze(2).clamp(min=0)
            return Optimum((costs.gather(1, basis) * weights).sum(1), basis, weights)
        column = columns.gather(2, entering.reshape(-1, 1, 1).expand(-1, m, 1))
        direction = (inverse @ column).squeeze(2)
        leaving = _leaving(level, direction, basis)
        inverse, level = _pivot(inverse, level, direction, leaving, open_)
        basis = torch.where(open_.unsqueeze(1), basis.scatter(1, leaving, entering.unsqueeze(1)), basis)
    raise ArithmeticError(f"{int(open_.sum())} of {count} linear programs not solved in {LIMIT} steps")


def _leaving(level: Tensor, direction: Tensor, basis: Tensor) -> Tensor:
    """The row (B, 1) that reaches zero first; among equals that of the lowest column, as Bland's rule asks."""
    import torch

    ratio = torch.where(direction > PIVOT, level / direction.clamp(min=PIVOT), torch.inf)
    tied = ratio <= ratio.amin(1, keepdim=True)
    return basis.masked_fill(~tied, torch.iinfo(basis.dtype).max).argmin(1, keepdim=True)


def _pivot(inverse: Tensor, level: Tensor, direction: Tensor, leaving: Tensor, open_: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of the basis and levels after the exchange, where the problem is open."""
    import torch

    here = torch.zeros_like(direction, dtype=torch.bool).scatter(1, leaving, True)
    pivot = direction.gather(1, leaving)
    factor = torch.where(here, direction - 1, direction) / torch.where(open_.unsqueeze(1), pivot, 1)
    factor = torch.where(open_.unsqueeze(1), factor, 0)
    row = inverse.gather(1, leaving.unsqueeze(2).expand_as(inverse[:, :1]))
    inverse = inverse - factor.unsqueeze(2) * row
    level = level - factor * level.gather(1, leaving)
    return inverse, torch.where(level < PIVOT * 1e-3, 0, level)
