"""Analog bits: elements as seven numbers (Chen, Zhang and Hinton 2023; FlowMM, Miller et al. 2024).

Z - 1 in binary, least significant bit first, a bit 0 as -1 and a bit 1 as +1. Noise and network treat them as real
numbers; reading off is by sign, which is the nearest code. 118 of the 128 codes are elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 7


def to_bits(atomic_numbers: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Bits (M, 7) of atomic numbers (M,) in 1..118, as -1 and +1, by default in torch's default dtype."""
    places = torch.arange(BITS, device=atomic_numbers.device)
    return 2.0 * ((atomic_numbers.unsqueeze(-1) - 1) >> places & 1).to(dtype or torch.get_default_dtype()) - 1


def from_bits(values: Tensor, allowed: Tensor) -> Tensor:
    """Atomic numbers (M,), int64, of real bits (M, 7): the allowed element whose code is nearest.

    allowed: bool (E,) or (M, E), entry Z - 1 for element Z. Where the signs spell an allowed element it is that one.
    Raises ValueError where nothing is allowed.
    """
    if not bool(allowed.any(-1).all()):
        raise ValueError("allowed has no element for some atom, needed: at least one")
    codes = to_bits(torch.arange(1, allowed.shape[-1] + 1, device=values.device), values.dtype)
    # all codes have the same length, so the nearest one has the largest product
    return (values @ codes.T).masked_fill(~allowed, -torch.inf).argmax(-1) + 1
