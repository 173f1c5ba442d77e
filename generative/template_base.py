"""From controls to the elements and sizes that a model starts from: what crystals and molecules have in common."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic

import numpy as np
import torch
from torch import Tensor

from chem.ragged import Batch
from chem.sizes import SizePrior
from chem.statistics import Statistics
from generative.control_values import symbols_of
from generative.controls import Controls
from generative.decoding import element_mask
from generative.generator import Denoiser
from generative.process import Fixed

UNKNOWN = 1  # stands in a template where the element of an atom is the model's to choose


class Templates(ABC, Generic[Batch]):
    """Templates of what was asked for one model: abstract. ValueError where the two do not fit names the argument.

    Atoms come in the order: fixed sites as they were given, then those of the formula or of the start structure.
    start: the time at which a start structure enters, or None. numbers: elements of all atoms, where they are known.
    allowed, required: (100,) bool, elements that may and that must occur, where that is asked. sizes: numbers of atoms
    that may be drawn.
    """

    noun: ClassVar[str]  # what one sample is, in messages
    coords: ClassVar[str]  # the field of its coordinates

    def __init__(self, controls: Controls, denoiser: Denoiser, statistics: Statistics, seed: int):
        self.controls, self.seed = controls, seed
        self.start = None if controls.noise is None else 1 - controls.noise
        self.num_fixed = 0 if controls.fixed is None else len(controls.fixed.sites)
        self.numbers: list[int] | None = None
        self.allowed: Tensor | None = None
        self.required: Tensor | None = None
        self._seen = set(statistics.elements)
        if any(f == "atomic_numbers" and isinstance(p, Fixed) for f, p in denoiser.processes.items()):
            self._fix_composition()
        else:
            self._choose_composition()
        self.sizes = self._sizes(statistics)
        if self.largest > (trained := max(statistics.num_atoms)):
            said = f"{self.noun}s of {self.largest} atoms: the model was trained on up to {trained}"
            warnings.warn(said, stacklevel=5)

    @abstractmethod
    def template(self, counts: Sequence[int]) -> Batch:
        """The template of samples with these atom counts, float64."""

    @abstractmethod
    def restore(self, batch: Batch) -> Batch:
        """Samples on the CPU in float64, with what was given in every digit."""

    @property
    def largest(self) -> int:
        """Atoms of the largest sample that can be asked for."""
        return self.sizes.largest

    def counts(self, first: int, n: int) -> list[int]:
        """Atom counts of samples first .. first + n - 1, padded to whole units; first is a multiple of 16."""
        return self.sizes.counts(self.seed, first, n)

    def _fix_composition(self) -> None:
        c = self.controls
        if c.composition is None and c.init is None:
            raise ValueError("this model predicts structures of a composition: formula is required, e.g. 'NaCl'")
        name = "formula" if c.composition is not None else "init"
        numbers = c.composition or self._start_order()[0]
        for other in ("elements", "chemical_system"):
            if getattr(c, other) is not None:
                raise ValueError(f"{c.show(other)} conflicts with {c.show(name)}, which fixes the elements")
        if hit := set(numbers) & c.numbers("forbid"):
            raise ValueError(f"{c.show('forbid')} conflicts with {c.show(name)}, which has {symbols_of(hit)}")
        self._know(set(numbers), name)
        fixed = [] if c.fixed is None else c.fixed.numbers.tolist()
        self.numbers = fixed + c.remaining(c.composition, name) if c.composition is not None else numbers

    def _choose_composition(self) -> None:
        c = self.controls
        if c.formula is not None:
            raise ValueError(f"this model chooses the composition itself: formula = '{c.formula}' is not for it")
        for name in ("elements", "chemical_system"):
            self._know(c.numbers(name), name)
        if c.fixed is not None:
            self._know(set(c.fixed.numbers.tolist()), "fixed")
        if c.init is not None:
            self._know(set(c.init.numbers.tolist()), "init")
            self.numbers = self._start_order()[0]
        allowed = (c.numbers("elements") or c.numbers("chemical_system") or self._seen) - c.numbers("forbid")
        if not allowed & self._seen:
            raise ValueError(f"{c.show('forbid')} leaves no element of the model's training set")
        if c.elements or c.chemical_system or c.forbid:
            self.allowed = element_mask(allowed)
        if c.chemical_system:
            self.required = element_mask(allowed)

    def _know(self, numbers: set[int], argument: str) -> None:
        """ValueError naming the elements that the training set lacks."""
        if new := numbers - self._seen:
            raise ValueError(f"{argument} has {symbols_of(new)}, which the model's training set lacks")

    def _start_order(self) -> tuple[list[int], np.ndarray]:
        """Elements and coordinates of the start structure, fixed sites first."""
        start, fixed = self.controls.init, self.controls.fixed
        assert start is not None
        first = [] if fixed is None else list(fixed.sites)
        order = first + [i for i in range(len(start.numbers)) if i not in first]
        return start.numbers[order].tolist(), start.coords[order]

    def _sizes(self, statistics: Statistics) -> SizePrior:
        """Numbers of atoms that may be drawn."""
        c = self.controls
        if self.numbers is not None:
            return SizePrior.fixed(len(self.numbers))
        if c.num_atoms is not None:
            return SizePrior({n: weight for n, weight in c.num_atoms.items() if weight})
        if c.least_atoms > statistics.sizes.largest:
            raise ValueError(f"{self.noun}s of at least {c.least_atoms} atoms are asked for; num_atoms is required")
        return statistics.sizes.at_least(c.least_atoms)

    def _known_coords(self) -> Tensor | None:
        """Coordinates (F or N, 3), float64, of the first atoms, where they are known."""
        c = self.controls
        if c.init is not None:
            return torch.from_numpy(self._start_order()[1])
        return None if c.fixed is None else torch.from_numpy(c.fixed.coords)

    def _with_given(self, batch: Batch, coords: Tensor | None) -> Batch:
        """The batch with the elements that are known, may and must occur, and these coordinates of the first atoms."""
        given, fields = self._is_fixed(batch), {}
        fixed = self.controls.fixed
        if self.numbers is not None:
            fields["atomic_numbers"] = torch.tensor(self.numbers * len(batch))
        elif fixed is not None:
            unknown = torch.full((len(given),), UNKNOWN)
            fields["atomic_numbers"] = self._put(unknown, given, torch.from_numpy(fixed.numbers))
        if coords is not None:
            known = given if self.controls.init is None else torch.ones_like(given)
            fields[self.coords] = self._put(torch.zeros(len(given), 3).double(), known, coords)
        if fixed is not None:
            fields |= {"atomic_numbers_given": given, f"{self.coords}_given": given}
        batch = batch.replace(**fields)
        for name, mask in (("allowed_elements", self.allowed), ("required_elements", self.required)):
            if mask is not None:
                batch = batch.attach("structure", **{name: mask.expand(len(batch), -1)})
        return batch

    def _with_fixed(self, batch: Batch) -> Batch:
        """The batch, float64 on the CPU, with the fixed sites as they were given."""
        fixed, given = self.controls.fixed, self._is_fixed(batch)
        if fixed is None:
            return batch
        values = {"atomic_numbers": fixed.numbers, self.coords: fixed.coords}
        return batch.replace(**{f: self._put(batch[f], given, torch.from_numpy(v)) for f, v in values.items()})

    def _is_fixed(self, batch: Batch) -> Tensor:
        """(M,) bool: the first atoms of each structure, where sites are fixed."""
        place = torch.arange(len(batch["batch"])) - batch["ptr"][:-1][batch["batch"]]
        return place < self.num_fixed

    def _put(self, rows: Tensor, where: Tensor, values: Tensor) -> Tensor:
        """Rows with `values` (K, ...) in the K marked rows of each structure."""
        rows = rows.clone()
        rows[where] = values.repeat(int(where.sum()) // max(1, len(values)), *[1] * (values.dim() - 1))
        return rows
