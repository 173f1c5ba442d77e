"""From controls to the batches a model starts from, and what was given back into what it returns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.lattice import niggli
from chem.periodic import wrap
from chem.sizes import SizePrior
from chem.statistics import Statistics
from generative.control_cells import scale_to_volume
from generative.control_values import symbols_of
from generative.controls import Controls
from generative.decoding import element_mask
from generative.generator import Denoiser
from generative.process import Fixed

UNKNOWN = 1  # stands in a template where the element of an atom is the model's to choose


class CrystalTemplates:
    """Templates of what was asked for one model; raises ValueError where the two do not fit, naming the argument.

    Atoms come in the order: fixed sites as they were given, then those of the formula or of the start structure.
    start: the time at which a start structure enters, or None. Lattices that are given enter the loop in the model's
    precision and leave `restore` in float64, and so do fixed sites. A cell that the model's representation cannot hold
    is Niggli-reduced for the loop, and `restore` goes back.
    """

    def __init__(self, controls: Controls, denoiser: Denoiser, statistics: Statistics, seed: int):
        self.controls, self.seed = controls, seed
        self.start = None if controls.noise is None else 1 - controls.noise
        self.num_fixed = 0 if controls.fixed is None else len(controls.fixed.sites)
        self.numbers: list[int] | None = None  # of all atoms, where they are known
        self.allowed: Tensor | None = None
        self.required: Tensor | None = None
        self._seen = set(statistics.elements)
        if any(f == "atomic_numbers" and isinstance(p, Fixed) for f, p in denoiser.processes.items()):
            self._fix_composition()
        else:
            self._choose_composition()
        self.sizes = self._sizes(statistics)
        self._frac_coords, self._lattice = self._geometry(denoiser)
        self._turn = self._reduction(denoiser)
        if self.largest > max(statistics.num_atoms):
            trained = max(statistics.num_atoms)
            warnings.warn(f"cells of {self.largest} atoms: the model was trained on up to {trained}", stacklevel=3)

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
        cell, fixed = self.controls.init, self.controls.fixed
        assert cell is not None
        first = [] if fixed is None else list(fixed.sites)
        order = first + [i for i in range(len(cell.numbers)) if i not in first]
        return cell.numbers[order].tolist(), cell.frac_coords[order]

    def _sizes(self, statistics: Statistics) -> SizePrior:
        """Numbers of atoms that may be drawn."""
        c = self.controls
        if self.numbers is not None:
            return SizePrior.fixed(len(self.numbers))
        if c.num_atoms is not None:
            return SizePrior({n: weight for n, weight in c.num_atoms.items() if weight})
        if c.least_atoms > statistics.sizes.largest:
            raise ValueError(f"cells of at least {c.least_atoms} atoms are asked for; num_atoms is required")
        return statistics.sizes.at_least(c.least_atoms)

    def _geometry(self, denoiser: Denoiser) -> tuple[Tensor | None, Tensor | None]:
        """Coordinates (F or N, 3) of the first atoms, where they are known, and the lattice (3, 3) that is kept."""
        c, needs = self.controls, {"frac_coords": "init", "types": "init"}
        frozen = {f for f, p in denoiser.processes.items() if isinstance(p, Fixed)} - {"atomic_numbers"}
        for field in sorted(frozen):
            needed = needs.get(field, "lattice")
            if c.init is None and (needed == "init" or c.lattice is None):
                raise ValueError(f"this model does not generate the field {field}: {needed} is required")
        frac = None if c.fixed is None else c.fixed.frac_coords
        lattice = c.lattice
        if c.init is not None:
            frac = self._start_order()[1]
            if lattice is None and frozen - needs.keys():
                lattice = c.init.lattice
        return None if frac is None else torch.tensor(frac), None if lattice is None else torch.tensor(lattice)

    def _reduction(self, denoiser: Denoiser) -> Tensor | None:
        """The integers T with T @ lattice a cell that the model can hold; None where the lattice is one already."""
        init = self.controls.init
        lattice = self._lattice if init is None or self._lattice is not None else torch.from_numpy(init.lattice)
        if lattice is None or _holds(denoiser, lattice):
            return None
        reduced, turn = niggli(lattice)
        if not _holds(denoiser, reduced):
            name = "init" if self._lattice is None else "lattice"
            raise ValueError(f"{name}: the model cannot hold this cell, nor its Niggli cell; allowed: see its card")
        return turn.double()

    @property
    def largest(self) -> int:
        """Atoms of the largest cell that can be asked for."""
        return self.sizes.largest

    def counts(self, first: int, n: int) -> list[int]:
        """Atom counts of samples first .. first + n - 1, padded to whole units; first is a multiple of 16."""
        return self.sizes.counts(self.seed, first, n)

    def template(self, counts: Sequence[int]) -> CrystalBatch:
        """The template of samples with these atom counts, float64."""
        batch, c = CrystalBatch(counts), self.controls
        given = self._is_fixed(batch)
        if self.numbers is not None:
            batch = batch.replace(atomic_numbers=torch.tensor(self.numbers * len(counts)))
        elif c.fixed is not None:
            unknown = torch.full((len(given),), UNKNOWN)
            batch = batch.replace(atomic_numbers=self._put(unknown, given, torch.from_numpy(c.fixed.numbers)))
        if self._frac_coords is not None:
            known = given if c.init is None else torch.ones_like(given)
            batch = batch.replace(frac_coords=self._put(torch.zeros(len(given), 3).double(), known, self._frac_coords))
        if c.fixed is not None:
            batch = batch.replace(atomic_numbers_given=given, frac_coords_given=given)
        if self._lattice is not None:
            kept = torch.ones(len(counts), dtype=torch.bool)
            batch = batch.replace(lattice=self._lattice.expand(len(counts), 3, 3), lattice_given=kept)
        elif c.init is not None:
            batch = batch.replace(lattice=torch.from_numpy(c.init.lattice).expand(len(counts), 3, 3))
        for name, mask in (("allowed_elements", self.allowed), ("required_elements", self.required)):
            if mask is not None:
                batch = batch.attach("structure", **{name: mask.expand(len(counts), -1)})
        if self._turn is not None:
            batch = batch.replace(lattice=self._turn @ batch["lattice"])
            if self._frac_coords is not None:
                batch = batch.replace(frac_coords=batch["frac_coords"] @ torch.linalg.inv(self._turn))
        return batch

    def restore(self, batch: CrystalBatch) -> CrystalBatch:
        """Samples on the CPU in float64, with what was given in every digit and the cell at the volume asked for."""
        c = self.controls
        batch = batch.to("cpu").to(torch.float64)
        given = self._is_fixed(batch)
        if self._turn is not None:
            back = torch.linalg.inv(self._turn).round()
            batch = batch.replace(frac_coords=wrap(batch["frac_coords"] @ self._turn), lattice=back @ batch["lattice"])
        if c.fixed is not None:
            numbers, frac = torch.from_numpy(c.fixed.numbers), torch.from_numpy(c.fixed.frac_coords)
            batch = batch.replace(
                atomic_numbers=self._put(batch["atomic_numbers"], given, numbers),
                frac_coords=self._put(batch["frac_coords"], given, frac),
            )
        if self._lattice is not None:
            batch = batch.replace(lattice=self._lattice.expand(len(batch), 3, 3))
        if c.volume is not None:
            batch = batch.replace(lattice=scale_to_volume(batch["lattice"], c.volume))
        return batch

    def _is_fixed(self, batch: CrystalBatch) -> Tensor:
        """(M,) bool: the first atoms of each structure, where sites are fixed."""
        place = torch.arange(len(batch["batch"])) - batch["ptr"][:-1][batch["batch"]]
        return place < self.num_fixed

    def _put(self, rows: Tensor, where: Tensor, values: Tensor) -> Tensor:
        """Rows with `values` (K, ...) in the K marked rows of each structure."""
        rows = rows.clone()
        rows[where] = values.repeat(int(where.sum()) // max(1, len(values)), *[1] * (values.dim() - 1))
        return rows


def _holds(denoiser: Denoiser, lattice: Tensor) -> bool:
    """Whether a model's representation can hold a lattice (3, 3)."""
    try:
        denoiser.encode(CrystalBatch([1], lattice=lattice.unsqueeze(0)))
    except ValueError:
        return False
    return True
