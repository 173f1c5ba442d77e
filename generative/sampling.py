"""Sampling in batches: templates for a request, random streams per unit of 16, memory errors, whole batches out.

Samples are numbered. What sample i looks like depends on the model, the request, the seed and i, not on how many
others are drawn beside it (up to rounding: another batch size sums in another order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS
from generative.generator import Denoiser
from generative.noise import UNIT, UnitStreams, mix
from generative.process import Fixed


@dataclass(frozen=True)
class CrystalRequest:
    """What to sample: a composition where the model wants one, else sizes and elements.

    formula, z: a cell of z formula units. num_atoms: atoms in a cell, by default drawn from the sizes of the training
    set. elements: symbols that may occur.
    """

    formula: str | None = None
    z: int = 1
    num_atoms: int | None = None
    elements: tuple[str, ...] | None = None


class CrystalTemplates:
    """Templates of a request for one model; raises ValueError where the two do not fit, naming the argument."""

    def __init__(self, request: CrystalRequest, denoiser: Denoiser, statistics: Statistics, seed: int):
        self.request, self.seed = request, seed
        self.sizes = torch.tensor(sorted(statistics.num_atoms))
        self.weights = torch.tensor([float(statistics.num_atoms[n]) for n in sorted(statistics.num_atoms)])
        self.composition: list[int] | None = None
        self.allowed: torch.Tensor | None = None
        if "atomic_numbers" in denoiser.processes and isinstance(denoiser.processes["atomic_numbers"], Fixed):
            self._fix_composition(statistics)
        else:
            self._allow_elements(statistics)

    def _fix_composition(self, statistics: Statistics) -> None:
        r = self.request
        if r.formula is None:
            raise ValueError("this model predicts structures of a composition: formula is required, e.g. 'NaCl'")
        for name in ("num_atoms", "elements"):
            if getattr(r, name) is not None:
                raise ValueError(f"{name} = {getattr(r, name)} conflicts with formula = '{r.formula}', which fixes it")
        self.composition = atomic_numbers(r.formula, r.z)
        known_elements(set(self.composition), statistics, "formula")

    def _allow_elements(self, statistics: Statistics) -> None:
        r = self.request
        if r.formula is not None or r.z != 1:
            raise ValueError(f"this model chooses the composition itself: formula = '{r.formula}' is not for it")
        if r.num_atoms is not None and r.num_atoms < 1:
            raise ValueError(f"num_atoms = {r.num_atoms}, allowed: >= 1")
        if r.elements is not None:
            numbers = {element_number(symbol, "elements") for symbol in r.elements}
            known_elements(numbers, statistics, "elements")
            self.allowed = torch.zeros(ELEMENTS, dtype=torch.bool)
            self.allowed[torch.tensor(sorted(numbers)) - 1] = True

    @property
    def largest(self) -> int:
        """Atoms of the largest cell that can be asked for."""
        if self.composition is not None:
            return len(self.composition)
        return self.request.num_atoms or int(self.sizes.max())

    def counts(self, first: int, n: int) -> list[int]:
        """Atom counts of samples first .. first + n - 1, padded to whole units; first is a multiple of 16."""
        out: list[int] = []
        for unit in range(first // UNIT, -(-(first + n) // UNIT)):
            if self.composition is not None or self.request.num_atoms is not None:
                out += [self.largest] * UNIT
            else:
                draw = torch.Generator().manual_seed(mix(self.seed, unit, 1))
                out += self.sizes[torch.multinomial(self.weights, UNIT, replacement=True, generator=draw)].tolist()
        return out

    def template(self, counts: Sequence[int]) -> CrystalBatch:
        """The template of samples with these atom counts."""
        batch = CrystalBatch(counts)
        if self.composition is not None:
            return batch.replace(atomic_numbers=torch.tensor(self.composition * len(counts)))
        if self.allowed is not None:
            return batch.attach("structure", allowed_elements=self.allowed.expand(len(counts), -1))
        return batch


def sample_batches(
    denoiser: Denoiser,
    templates: CrystalTemplates,
    n: int,
    start: int = 0,
    batch_size: int = 64,
    steps: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, CrystalBatch]]:
    """(index of the first sample, batch) until samples `start` .. n - 1 are all there.

    Batches begin at multiples of `batch_size`, so the first one may begin before `start`. On a memory error the batch
    is halved and drawn again; MemoryError names the size where one unit of 16 does not fit. `on_step` is told the
    number of samples that moved one step.
    """
    if batch_size < UNIT or batch_size % UNIT:
        raise ValueError(f"batch_size = {batch_size} must be a multiple of {UNIT}")
    first = start - start % batch_size
    while first < n:
        size = min(batch_size, n - first)
        counts = templates.counts(first, size)
        template = templates.template(counts[:size]).to(denoiser.device)
        streams = UnitStreams(seed, first, size, counts, denoiser.device)
        try:
            for state in denoiser.trajectory(template, steps, streams):  # noqa: B007
                if on_step is not None:
                    on_step(size)
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            if batch_size == UNIT:
                raise MemoryError(f"{size} cells of up to {max(counts)} atoms do not fit the memory") from error
            batch_size = batch_size // 2 // UNIT * UNIT or UNIT
            torch.cuda.empty_cache()
            continue
        yield first, denoiser.decode(state)
        first += size


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; on the CPU torch raises a plain RuntimeError for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def batch_size_for(denoiser: Denoiser) -> int:
    """Samples at a time: enough to fill the device; a memory error halves it."""
    return 64 if denoiser.device.type == "cpu" else 512


def atomic_numbers(formula: str, z: int = 1) -> list[int]:
    """Elements of z formula units, in the order of the formula; ValueError for what is not a formula of whole atoms."""
    from pymatgen.core import Composition

    if z < 1:
        raise ValueError(f"z = {z}, allowed: >= 1")
    try:
        amounts = Composition(formula).items()
    except (ValueError, KeyError) as error:
        raise ValueError(f"formula = '{formula}' is not a chemical formula: {error}") from None
    numbers: list[int] = []
    for element, amount in amounts:
        if abs(amount * z - round(amount * z)) > 1e-6:
            raise ValueError(f"formula = '{formula}', z = {z}: {amount * z:g} atoms of {element} is not a whole number")
        numbers += [element_number(element.symbol, "formula")] * round(amount * z)
    if not numbers:
        raise ValueError(f"formula = '{formula}' has no atoms")
    return numbers


def element_number(symbol: str, argument: str) -> int:
    """Atomic number of a symbol; ValueError naming the argument."""
    from pymatgen.core import Element

    if not Element.is_valid_symbol(symbol):
        raise ValueError(f"{argument} names '{symbol}', which is no element")
    return int(Element(symbol).Z)


def known_elements(numbers: set[int], statistics: Statistics, argument: str) -> None:
    """ValueError naming the elements that the training set lacks."""
    from pymatgen.core import Element

    new = sorted(numbers - set(statistics.elements))
    if new:
        names = ", ".join(Element.from_Z(z).symbol for z in new)
        raise ValueError(f"{argument} has {names}, which the model's training set lacks")
