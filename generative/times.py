"""The grid of times: t = 0 is noise, t = 1 is data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Times:
    """The times a process is trained at: all of [0, 1), or 0, 1/T, ..., 1 - 1/T where resolution = T."""

    resolution: int | None = None

    def draw(self, u: Tensor) -> Tensor:
        """Times from numbers u (B,) uniform in [0, 1)."""
        return u if self.resolution is None else (u * self.resolution).floor() / self.resolution

    def grid(self, steps: int, start: float = 0.0) -> Tensor:
        """steps + 1 increasing times from 0 to 1, float64 on the CPU; a sub-grid where the resolution is finite.

        start: the share `start` of time and steps is left out, rounded so that one step at least remains.
        Raises ValueError for fewer than one step or more steps than the resolution.
        """
        if steps < 1 or (self.resolution is not None and steps > self.resolution):
            allowed = f"1..{self.resolution}" if self.resolution else ">= 1"
            raise ValueError(f"steps = {steps}, allowed: {allowed}")
        left = max(1, round((1 - start) * steps))
        if self.resolution is None:
            # nearer to the data float32 would see no step at all
            return torch.linspace(min(start, 0.9999), 1, left + 1, dtype=torch.float64)
        first = min(round(start * self.resolution), self.resolution - 1)
        left = min(left, self.resolution - first)
        grid = torch.linspace(first / self.resolution, 1, left + 1, dtype=torch.float64)
        return (grid * self.resolution).round() / self.resolution
