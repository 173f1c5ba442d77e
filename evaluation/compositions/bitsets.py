"""Sets of small totals as the bits of one machine word, for many compositions at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WORD = 63  # totals of 0 to 62; the sign bit means nothing
MASK = 2**WORD - 1


def neutral_across_a_cut(up: Tensor, down: Tensor, rises: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the first elements of a row, with charges up, can balance the others, with charges down.

    up, down: (G, K, S) int64, the charges >= 0 that all atoms of an element may carry together, negative in the gaps; S
    is a power of two. rises: (G, K - 1) bool, whether the cut after an element is allowed; those before the first and
    after the last are. Returns answers (G,), and whether the totals fit into a word (G,); else the answer is void.
    """
    import torch

    most = torch.minimum(*(charges.amax(2).clamp(min=0).sum(1) for charges in (up, down)))
    below, above = _reached(up), _reached(down.flip(1))[::-1]
    allowed = torch.nn.functional.pad(rises, (1, 1), value=True)
    meet = (torch.stack(below, dim=1) & torch.stack(above, dim=1) & MASK) != 0
    return (meet & allowed).any(1), most < WORD


def _reached(charges: Tensor) -> list[Tensor]:
    """The totals (G,) of none, one, two, ... of the elements with charges (G, K, S), as bits."""
    import torch

    found = [torch.ones_like(charges[:, 0, 0])]
    for shift in charges.where(charges >= 0, WORD).clamp(max=WORD).unbind(1):
        bits = found[-1].unsqueeze(1) << shift  # what leaves the word lands on the sign or beyond it, for good
        while bits.shape[1] > 1:
            low, high = bits.chunk(2, dim=1)
            bits = low | high
        found.append(bits[:, 0])
    return found
