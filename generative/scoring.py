"""Log-likelihoods of structures under a flow, one number each: for choosing among candidates of one formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chem.crystals import CrystalBatch
from chem.ragged import concatenate
from generative.generator import Denoiser
from generative.likelihood import log_prob
from generative.noise import Random

if TYPE_CHECKING:
    from pymatgen.core import Structure

STEPS = 25  # of Heun's method: twice as many network calls and, exact, a backward pass for each coordinate in each


def log_likelihoods(
    denoiser: Denoiser,
    structures: Sequence[Structure],
    steps: int = STEPS,
    exact: bool = True,
    probes: int = 1,
    generator: Random = None,
    batch_size: int = 64,
) -> list[float]:
    """log p of each structure in its Niggli cell, in nats; NaN where a cell cannot be reduced to one the model knows.

    Given composition and number of atoms, so that only structures with the same of both may be compared. steps, exact,
    probes, generator: see `generative.likelihood.log_prob`, with Heun's method. Raises ValueError for a model that is
    no flow.
    """
    from chem.convert import batch_from_arrays
    from chem.row_parsing import reduced_arrays

    scores = [float("nan")] * len(structures)
    known: list[tuple[int, CrystalBatch]] = []
    for i, structure in enumerate(structures):
        try:
            batch = batch_from_arrays(*([array] for array in reduced_arrays(structure)))
            denoiser.encode(batch)
        except ValueError:  # a flat cell, or one with angles that no reduced cell has
            continue
        known.append((i, batch))
    # cells of one size together, since a pass is made for each coordinate of the largest
    known.sort(key=lambda one: int(one[1]["num_atoms"]))
    for start in range(0, len(known), batch_size):
        part = known[start : start + batch_size]
        batch = concatenate([one for _, one in part]).to(denoiser.device)
        found = log_prob(denoiser, batch, "heun", exact, probes, steps, generator=generator)
        for (i, _), value in zip(part, found.tolist(), strict=True):
            scores[i] = value
    return scores
