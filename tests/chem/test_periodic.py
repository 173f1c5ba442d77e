"""Periodic geometry against brute force, pymatgen and ASE, on oblique triclinic cells."""

import itertools

import numpy as np
import pytest
import torch

from chem import periodic
from chem.crystals import CrystalBatch


def oblique_cells(n: int, seed: int = 0, shear: int = 3) -> torch.Tensor:
    """Triclinic cells with unimodular shears of up to `shear` vectors: angles far outside 60 to 120 degrees."""
    g = torch.Generator().manual_seed(seed)
    cells = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(n, 3, 3, generator=g, dtype=torch.float64)
    mix = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    k = torch.randint(-shear, shear + 1, (n, 3), generator=g).double()
    mix[:, 1, 0], mix[:, 2, 0], mix[:, 2, 1] = k[:, 0], k[:, 1], k[:, 2]
    return mix @ cells


def random_batch(counts=(1, 2, 0, 5, 3), seed: int = 0, shear: int = 1) -> CrystalBatch:
    g = torch.Generator().manual_seed(seed)
    frac = torch.rand(sum(counts), 3, generator=g, dtype=torch.float64)
    numbers = torch.ones(sum(counts), dtype=torch.long)
    lattice = oblique_cells(len(counts), seed, shear)
    return CrystalBatch(counts, frac_coords=frac, lattice=lattice, atomic_numbers=numbers)


def images(reach: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=3)), dtype=torch.float64)


def brute_force(a, b, cell, reach: int = 4) -> torch.Tensor:
    """Smallest distance over all images up to +-reach of every pair (..., 3) in one cell (3, 3)."""
    delta = b - a
    vectors = (delta - delta.round()).unsqueeze(-2) + images(reach)
    return torch.linalg.vector_norm(vectors @ cell, dim=-1).amin(-1)


def test_wrap():
    x = torch.tensor([-1e-17, 0.0, 1.0, -0.25, 3.5, 1 - 1e-17, -1e-9], dtype=torch.float64)
    assert periodic.wrap(x).tolist()[:6] == [0.0, 0.0, 0.0, 0.75, 0.5, 0.0]
    many = torch.cat([torch.randn(10_000) * 10.0 ** -torch.randint(0, 30, (10_000,)), x.float()])
    for values in (many, many.double()):
        wrapped = periodic.wrap(values)
        assert bool(((wrapped >= 0) & (wrapped < 1)).all())


def test_torus_log_golden_and_range():
    pairs = torch.tensor([[0.1, 0.9, -0.2], [0.2, 0.45, 0.25], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]], dtype=torch.float64)
    assert torch.allclose(periodic.torus_log(pairs[:, 0], pairs[:, 1]), pairs[:, 2], atol=1e-15)
    x, y = torch.rand(2, 1000, 3, dtype=torch.float64)
    v = periodic.torus_log(x, y + 3)
    assert bool(((v > -0.5) & (v <= 0.5)).all())
    turn = 2 * torch.pi * (y - x)
    assert torch.allclose(v, torch.atan2(torch.sin(turn), torch.cos(turn)) / (2 * torch.pi))
    back = periodic.torus_exp(x, v)
    assert torch.allclose(periodic.torus_log(back, y), torch.zeros_like(y), atol=1e-12)


def test_minimum_image_equals_brute_force_on_oblique_cells():
    cells = oblique_cells(40, shear=1)
    a, b = torch.rand(2, 40, 7, 3, dtype=torch.float64)
    ours = periodic.minimum_image_distances(a, b, cells[:, None])
    theirs = torch.stack([brute_force(x, y, c) for x, y, c in zip(a, b, cells, strict=True)])
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_minimum_image_does_not_depend_on_the_choice_of_cell():
    """Strong shears: beyond any fixed number of images, so compare with the brute force in the unsheared cell."""
    g = torch.Generator().manual_seed(5)
    plain = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(30, 3, 3, generator=g, dtype=torch.float64)
    mix = torch.eye(3, dtype=torch.float64).repeat(30, 1, 1)
    mix[:, 1, 0], mix[:, 2, 0], mix[:, 2, 1] = 23, -17, 31
    a, b = torch.rand(2, 30, 5, 3, generator=g, dtype=torch.float64)
    inverse = torch.linalg.inv(mix).round()
    ours = periodic.minimum_image_distances(a @ inverse, b @ inverse, (mix @ plain)[:, None])
    theirs = torch.stack([brute_force(x, y, c) for x, y, c in zip(a, b, plain, strict=True)])
    assert torch.allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (1.0, 1.0, 60.0), (1.0, 40.0, 50.0)])
def test_minimum_image_in_flat_and_needle_cells(scale):
    cells = oblique_cells(10, seed=2, shear=0) @ torch.diag(torch.tensor(scale, dtype=torch.float64))
    a, b = torch.rand(2, 10, 6, 3, dtype=torch.float64)
    ours = periodic.minimum_image_distances(a, b, cells[:, None])
    theirs = torch.stack([brute_force(x, y, c, reach=20) for x, y, c in zip(a, b, cells, strict=True)])
    assert torch.allclose(ours, theirs, atol=1e-10)


def test_minimum_image_equals_pymatgen():
    from pymatgen.core import Lattice

    for cell in oblique_cells(5, seed=1, shear=0):
        a, b = torch.rand(6, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
        ours = periodic.minimum_image_distances(a[:, None], b[None], cell)
        theirs = Lattice(cell.numpy()).get_all_distances(a.numpy(), b.numpy())
        assert ours.shape == (6, 4) and np.allclose(ours.numpy(), theirs, atol=1e-10)


def test_minimum_image_gradients():
    cell = oblique_cells(2, seed=3)[:, None].requires_grad_()
    a, b = (torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(periodic.minimum_image_distances, (a, b, cell))
    periodic.minimum_image_distances(a, a, cell).sum().backward()
    assert bool(torch.isfinite(a.grad).all()) and float(a.grad.abs().max()) == 0.0


def test_pair_distances_and_min_distance():
    batch = random_batch((1, 2, 0, 5, 3), shear=2)
    pairs, distances = periodic.pair_distances(batch)
    assert pairs.shape == (2, 1 + 10 + 3) and bool((pairs[0] < pairs[1]).all())
    smallest = periodic.min_distance(batch)
    plain = oblique_cells(5, 0, 2)
    for k, crystal in enumerate(batch):
        frac = crystal["frac_coords"]
        if not len(frac):
            assert smallest[k] == torch.inf
            continue
        n = images(9)
        every = (frac[None] - frac[:, None]).unsqueeze(2) + n
        length = torch.linalg.vector_norm(every @ plain[k], dim=-1)
        length[length < 1e-9] = torch.inf
        assert smallest[k].item() == pytest.approx(length.min().item(), abs=1e-10)
    here = batch["batch"][pairs[0]] == 3
    nearest = brute_force(batch["frac_coords"][pairs[0, here]], batch["frac_coords"][pairs[1, here]], plain[3], 9)
    assert torch.allclose(distances[here], nearest, atol=1e-10)


def test_coincident_atoms_and_single_precision():
    frac = torch.tensor([[0.1, 0.2, 0.3], [1.1, -0.8, 0.3]])
    batch = CrystalBatch([2], frac_coords=frac, lattice=3 * torch.eye(3)[None])
    smallest = periodic.min_distance(batch)
    assert smallest.dtype == torch.float32 and smallest.item() == pytest.approx(0.0, abs=1e-6)


def edges_of(batch: CrystalBatch, cutoff: float) -> set[tuple[int, ...]]:
    edge_index, shift = periodic.neighbour_list(batch, cutoff)
    rows = torch.cat([edge_index, shift.T]).T.tolist()
    assert len(rows) == len({tuple(row) for row in rows}), "an edge is listed twice"
    return {tuple(row) for row in rows}


@pytest.mark.parametrize("cutoff", [1.5, 4.0, 7.5])
def test_neighbour_list_equals_pymatgen_and_ase(cutoff):
    from ase import Atoms
    from ase.neighborlist import primitive_neighbor_list
    from pymatgen.core import Structure

    batch = random_batch((1, 2, 0, 5, 3), seed=4, shear=2)
    ours = edges_of(batch, cutoff)
    theirs, by_ase = set(), set()
    for k, crystal in enumerate(batch):
        start, frac = int(batch["ptr"][k]), crystal["frac_coords"].numpy()
        cell = crystal["lattice"][0].numpy()
        if not len(frac):
            continue
        i, j, shift, _ = Structure(cell, ["H"] * len(frac), frac).get_neighbor_list(cutoff)
        theirs |= {(a + start, b + start, *map(int, n)) for a, b, n in zip(i, j, shift, strict=True)}
        atoms = Atoms("H" * len(frac), scaled_positions=frac, cell=cell, pbc=True)
        i, j, shift = primitive_neighbor_list("ijS", [True] * 3, cell, atoms.positions, cutoff)
        by_ase |= {(a + start, b + start, *map(int, n)) for a, b, n in zip(i, j, shift, strict=True)}
    assert ours == theirs == by_ase
    assert len(ours) > 0 or cutoff < 2


def test_neighbour_list_displacements_order_and_unwrapped_coordinates():
    batch = random_batch(seed=6, shear=1)
    edge_index, shift = periodic.neighbour_list(batch, 5.0)
    i, j = edge_index
    assert torch.equal(batch["batch"][i], batch["batch"][j])
    assert bool((i.diff() >= 0).all()) and bool((j.diff()[i.diff() == 0] >= 0).all())
    frac, cells = batch["frac_coords"], batch["lattice"][batch["batch"][i]]
    length = torch.linalg.vector_norm(((frac[j] + shift - frac[i]).unsqueeze(1) @ cells).squeeze(1), dim=-1)
    assert float(length.max()) <= 5.0 and float(length.min()) > 0
    moved = torch.randint(-3, 4, frac.shape).double()
    other, other_shift = periodic.neighbour_list(batch.replace(frac_coords=frac + moved), 5.0)
    as_before = other_shift + moved[other[1]].long() - moved[other[0]].long()
    assert set(map(tuple, torch.cat([other, as_before.T]).T.tolist())) == edges_of(batch, 5.0)


def test_neighbour_list_in_chunks_and_empty(monkeypatch):
    batch = random_batch(seed=7)
    whole = periodic.neighbour_list(batch, 6.0)
    monkeypatch.setattr(periodic, "CANDIDATES", 50)
    parts = periodic.neighbour_list(batch, 6.0)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    empty = CrystalBatch([0, 0], frac_coords=torch.zeros(0, 3), lattice=torch.eye(3).repeat(2, 1, 1))
    edge_index, shift = periodic.neighbour_list(empty, 3.0)
    assert edge_index.shape == (2, 0) and shift.shape == (0, 3)
    assert torch.equal(periodic.min_distance(empty), torch.full((2,), torch.inf))


def test_bad_input_is_named():
    batch = random_batch()
    with pytest.raises(ValueError, match="cutoff must be a positive number of ångström, got -1"):
        periodic.neighbour_list(batch, -1.0)
    flat = batch["lattice"].clone()
    flat[3, 2] = flat[3, 0] + flat[3, 1]
    with pytest.raises(ValueError, match="lattice 3"):
        periodic.min_distance(batch.replace(lattice=flat))
    with pytest.raises(ValueError, match="lattice 0"):
        periodic.neighbour_list(batch.replace(lattice=torch.full_like(flat, torch.nan)), 3.0)
    with pytest.raises(ValueError, match="cutoff 5.0 reaches .* images of one atom in structure 1"):
        periodic.neighbour_list(batch.replace(lattice=flat * 0 + 1e-3 * torch.eye(3)), 5.0)
    with pytest.raises(ValueError, match=r"frac_b must have shape \(\.\.\., 3\), got \(2,\)"):
        periodic.minimum_image_distances(torch.zeros(3), torch.zeros(2), torch.eye(3))
