"""Relaxation inside a space group: what is found, what is kept, and what would be lost without it."""

from __future__ import annotations

import pytest
import torch

from chem.convert import from_structures, to_structures
from chem.lattice import volume
from chem.ragged import concatenate
from evaluation.relaxation.relax import RelaxationSettings, relax
from evaluation.relaxation.symmetry_constraint import averages, constrain, symmetrise
from tests.evaluation.toys import LennardJones, clusters, strained


def crystal(group: str, lattice, species, coords):
    from pymatgen.core import Structure

    return from_structures([Structure.from_spacegroup(group, lattice, species, coords).get_primitive_structure()])


@pytest.fixture(scope="module")
def batch():
    """Rock salt, rutile, quartz-like trigonal and a monoclinic crystal, in primitive (skewed) cells."""
    from pymatgen.core import Lattice

    return concatenate(
        [
            crystal("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
            crystal("P4_2/mnm", Lattice.tetragonal(4.9, 3.3), ["Ti", "O"], [[0, 0, 0], [0.31, 0.31, 0]]),
            crystal("R-3m", Lattice.hexagonal(4.1, 19.0), ["Bi", "Te"], [[0, 0, 0.4], [0, 0, 0.2]]),
            crystal("C2/m", Lattice.monoclinic(9.0, 4.2, 6.1, 112), ["Ga", "O"], [[0.1, 0, 0.2], [0.3, 0.5, 0.4]]),
        ]
    )


def groups(batch, symprec: float = 1e-4) -> list[int]:
    return [structure.get_space_group_info(symprec)[1] for structure in to_structures(batch)]


def test_a_perturbed_crystal_is_moved_back_into_its_group(batch):
    disturbed = strained(batch, 0.01, 0.003)
    assert groups(disturbed) == [1, 1, 1, 1] and groups(batch) == [225, 136, 166, 12]
    parts = [symmetrise(one, 0.1) for one in disturbed]
    assert groups(concatenate([one for one, _ in parts])) == groups(batch)
    for (one, _), before in zip(parts, disturbed, strict=True):
        assert float((one["lattice"] - before["lattice"]).abs().max()) < 0.1
        assert float(volume(one["lattice"])) == pytest.approx(float(volume(before["lattice"])), rel=1e-2)
        gap = one["frac_coords"] - before["frac_coords"]
        assert float(gap.abs().max()) < 0.02, "an atom jumped to another cell"


def test_a_symmetric_crystal_is_left_alone(batch):
    for one in batch:
        same, operations = symmetrise(one, 1e-3)
        torch.testing.assert_close(same["frac_coords"], one["frac_coords"], atol=1e-9, rtol=0)
        torch.testing.assert_close(same["lattice"], one["lattice"], atol=1e-9, rtol=0)
        assert operations.images.shape == (len(operations.rotations), len(one["batch"]))


def test_true_forces_obey_the_group_and_others_are_projected_once(batch):
    parts = [symmetrise(one, 0.01) for one in batch]
    exact = concatenate([one for one, _ in parts])
    group = averages(exact, [operations for _, operations in parts])
    honest = LennardJones()(exact)
    for ours, theirs in zip(constrain(exact, honest, group), honest, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    generator = torch.Generator().manual_seed(0)
    noise = type(honest)(*(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in honest))
    once = constrain(exact, noise, group)
    twice = constrain(exact, once, group)
    assert float((once.forces - noise.forces).abs().max()) > 0.1
    torch.testing.assert_close(twice.forces, once.forces, atol=1e-9, rtol=0)
    torch.testing.assert_close(twice.stress, once.stress, atol=1e-9, rtol=0)
    moved = exact.replace(
        frac_coords=exact["frac_coords"]
        + 0.01 * (once.forces.unsqueeze(1) @ torch.linalg.inv(exact["lattice"])[exact["batch"]]).squeeze(1),
        lattice=exact["lattice"] @ torch.linalg.matrix_exp(0.01 * (once.stress + once.stress.mT) / 2),
    )
    assert groups(moved) == groups(batch), "a step along constrained forces leaves the group"


def test_a_constrained_relaxation_keeps_the_group_that_a_free_one_leaves(batch):
    disturbed = strained(batch[:2], 0.02, 0.004, seed=3)
    settings = RelaxationSettings(fmax=0.01, steps=60, symprec=0.2, max_edges=1)
    kept = relax(disturbed, LennardJones(sigma=2.2), settings)
    assert groups(kept.batch, 1e-3) == groups(batch[:2])
    assert bool((kept.energies < kept.initial_energies).all()) and not bool(kept.failed.any())
    free = relax(disturbed, LennardJones(sigma=2.2), RelaxationSettings(fmax=0.01, steps=60))
    assert groups(free.batch, 1e-3) != groups(batch[:2])


def test_a_crystal_without_symmetry_relaxes_as_without_the_constraint():
    batch = clusters([3, 2, 4])
    bound = relax(batch, LennardJones(), RelaxationSettings(symprec=1e-5))
    free = relax(batch, LennardJones())
    torch.testing.assert_close(bound.energies, free.energies, atol=1e-9, rtol=0)
    assert torch.equal(bound.steps, free.steps)
