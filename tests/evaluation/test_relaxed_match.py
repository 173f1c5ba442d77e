"""RMSD to relaxed: known displacements, failures that count, other cells of the same crystal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chem import datasets
from chem.lattice import volume
from evaluation.relaxation.relaxed_match import match_relaxed
from tests.evaluation.toys import strained


@pytest.fixture(scope="module")
def crystals():
    batch = datasets.load("prototypes", "val").batch
    return batch[batch["num_atoms"] <= 6][:6].to(torch.float64)


def test_a_crystal_and_itself(crystals):
    found = match_relaxed(crystals, crystals, processes=0)
    assert found.matched.all() and found.rmsd == pytest.approx(0, abs=1e-6) and found.reasons == [""] * 6


def test_a_known_displacement_in_angstrom():
    from pymatgen.core import Lattice, Structure

    from chem.convert import from_structures

    lattice = Lattice.from_parameters(5.1, 5.9, 6.7, 83, 96, 108)
    frac = np.array([[0, 0, 0], [0.43, 0.55, 0.38], [0.1, 0.62, 0.77]])
    away = frac.copy()
    away[1, 0] += 0.3 / 5.1  # one atom of three by 0.3 Å; the mean is taken out
    made, relaxed = (from_structures([Structure(lattice, ["Na", "Cl", "O"], f)]) for f in (away, frac))
    expected = 0.3 * np.sqrt(1 / 3 - 1 / 9)
    assert match_relaxed(made, relaxed, processes=0).rmsd == pytest.approx([expected], rel=1e-6)


def test_the_more_disturbed_the_farther(crystals):
    means = [match_relaxed(strained(crystals, s, 0), crystals, processes=0).rmsd.mean() for s in (0.02, 0.1, 0.25)]
    assert means[0] < means[1] < means[2] and 0.01 < means[0] < 0.04


def test_what_cannot_be_aligned_counts_with_the_largest_distance(crystals):
    other = crystals.replace(atomic_numbers=crystals["atomic_numbers"] % 90 + 3)
    found = match_relaxed(other, crystals, processes=0)
    lengths = 0.5 * (volume(crystals["lattice"]) / crystals["num_atoms"]) ** (1 / 3)
    assert not found.matched.any() and set(found.reasons) == {"no alignment"}
    assert found.rmsd == pytest.approx(lengths.numpy(), rel=1e-6)


def test_batches_of_different_length_are_refused(crystals):
    with pytest.raises(ValueError, match="relaxed = 2 crystals, allowed: 6"):
        match_relaxed(crystals, crystals[:2])
