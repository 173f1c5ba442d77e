"""How many atoms a sample has: one prior for crystals and molecules, shared by all generators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from chem.seeds import UNIT, mix


@dataclass(frozen=True)
class SizePrior:
    """Numbers of atoms that may be drawn, each with its weight; `Statistics.num_atoms` is such a table.

    Raises ValueError for an empty table, sizes below 1 and weights that are not positive numbers.
    """

    weights: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("sizes: no number of atoms to draw from")
        for size, weight in self.weights.items():
            if size < 1 or not 0 < weight < math.inf:
                raise ValueError(f"sizes: {size} atoms with weight {weight}, allowed: >= 1 atoms, weight > 0")

    @classmethod
    def fixed(cls, num_atoms: int) -> SizePrior:
        """Every sample has this size."""
        return cls({num_atoms: 1.0})

    def at_least(self, num_atoms: int) -> SizePrior:
        """The same weights without the smaller sizes; raises ValueError naming the largest size where none is left."""
        kept = {size: weight for size, weight in self.weights.items() if size >= num_atoms}
        if not kept:
            raise ValueError(f"at least {num_atoms} atoms are needed, the largest size is {self.largest}")
        return SizePrior(kept)

    @property
    def largest(self) -> int:
        """Atoms of the largest sample."""
        return max(self.weights)

    @property
    def mean(self) -> float:
        """Mean number of atoms."""
        return sum(size * weight for size, weight in self.weights.items()) / sum(self.weights.values())

    def draw(self, seed: int, unit: int) -> list[int]:
        """Sizes of the 16 samples of a unit, a function of (seed, unit) alone."""
        sizes = sorted(self.weights)
        weights = torch.tensor([float(self.weights[size]) for size in sizes])
        stream = torch.Generator().manual_seed(mix(seed, unit, 1))
        return torch.tensor(sizes)[torch.multinomial(weights, UNIT, replacement=True, generator=stream)].tolist()

    def counts(self, seed: int, first: int, n: int) -> list[int]:
        """Sizes of samples first .. first + n - 1, padded to whole units; `first` is a multiple of 16."""
        if first % UNIT:
            raise ValueError(f"first = {first}, allowed: multiples of {UNIT}")
        return [size for unit in range(first // UNIT, -(-(first + n) // UNIT)) for size in self.draw(seed, unit)]

    def log_prob(self, num_atoms: int) -> float:
        """Natural logarithm of the probability of a size; minus infinity for one that is never drawn."""
        weight = self.weights.get(num_atoms, 0.0)
        return math.log(weight / sum(self.weights.values())) if weight else -math.inf
