"""Many small linear programs at once: the lower hull of energies over compositions, one composition a problem.

Each problem is: minimise costs . w over w >= 0 with columns w = amounts, where the first m columns are the unit vectors
(the elements) at no cost and no amount is negative. So the elements are a feasible start, and the simplex method needs
no artificial variable. A step takes the column of the most negative reduced cost; Bland's rule after PATIENCE steps
keeps a degenerate vertex, such as a composition that is a phase itself, from cycling. What is solved takes no part in
further steps.
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
    """Optima of B problems with m rows and N columns: columns (m, B, N), costs (B, N), amounts (B, m), float64.

    A column of infinite cost is never used; the first m columns must be the unit vectors, of cost zero.
    """
    import torch

    m, count, _ = columns.shape
    rows, units = torch.arange(count, device=costs.device), torch.arange(m, device=costs.device)
    basis = units.unsqueeze(1).repeat(1, count)
    found = Optimum(costs.new_empty(count), basis.T.clone(), amounts.clone())
    table = torch.cat((columns, costs.unsqueeze(0)))  # (m + 1, B, N): what the columns are in the basis, reduced costs
    levels = torch.cat((amounts, torch.zeros_like(amounts[:, :1])), 1).T.contiguous()  # (m + 1, B): weights, -value
    for step in range(LIMIT):
        gain, entering = table[m].min(1)
        open_ = gain < -OPTIMAL
        if not bool(open_.all()):
            solved, on = (~open_).nonzero()[:, 0], open_.nonzero()[:, 0]
            done = rows[solved]
            found.value[done], found.weights[done] = -levels[m, solved], levels[:m, solved].T
            found.basis[done] = basis[:, solved].T
            if not len(on):
                return found
            table, levels, basis = (x.index_select(1, on) for x in (table, levels, basis))
            rows, entering = rows[on], entering[on]
        if step >= PATIENCE:
            entering = (table[m] < -OPTIMAL).int().argmax(1)  # Bland: the first that gains
        _pivot(table, levels, basis, entering.unsqueeze(0))
    raise ArithmeticError(f"{len(rows)} of {count} linear programs not solved in {LIMIT} steps")


def _pivot(table: Tensor, levels: Tensor, basis: Tensor, entering: Tensor) -> None:
    """Exchange a column of each basis (m, B) for the entering ones (1, B), in place.

    The row that reaches zero first leaves; among equals that of the lowest column, as Bland's rule asks.
    """
    import torch

    direction = table.gather(2, entering.unsqueeze(2).expand(len(table), -1, 1)).squeeze(2)
    ratio = torch.where(direction[:-1] > PIVOT, levels[:-1] / direction[:-1], torch.inf)
    tied = ratio <= ratio.amin(0)
    leaving = basis.masked_fill(~tied, torch.iinfo(basis.dtype).max).min(0, keepdim=True).indices
    pivot = direction.gather(0, leaving)
    factor = direction.scatter(0, leaving, pivot - 1) / pivot
    here = torch.arange(table.shape[1], device=table.device)
    table.addcmul_(factor.unsqueeze(2), table[leaving[0], here], value=-1)
    levels.addcmul_(factor, levels.gather(0, leaving), value=-1)
    levels[:-1].masked_fill_(levels[:-1] < PIVOT * 1e-3, 0)
    basis.scatter_(0, leaving, entering)
