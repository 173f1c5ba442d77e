"""AMD and PDD: goldens, a plain loop over images, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chem.convert import batch_from_arrays
from chem.crystals import CrystalBatch
from evaluation.descriptors.isometry import amd, amd_distances, pdd, pdd_distance

TRICLINIC = np.array([[4.1, 0.0, 0.0], [1.7, 3.9, 0.0], [-1.2, 1.1, 4.6]])


def one(frac, lattice) -> CrystalBatch:
    frac = np.array(frac, dtype=float)
    return batch_from_arrays([np.full(len(frac), 14)], [frac], [np.array(lattice, dtype=float)])


def random_batch(seed: int = 0) -> CrystalBatch:
    rng = np.random.default_rng(seed)
    counts = [3, 1, 5, 2, 8, 1, 4]
    skew = np.eye(3) + np.tril(rng.integers(-2, 3, (len(counts), 3, 3)), -1)
    lattices = skew @ (TRICLINIC * rng.uniform(0.6, 1.6, (len(counts), 1, 1)))
    return batch_from_arrays([np.full(n, 14) for n in counts], [rng.random((n, 3)) for n in counts], list(lattices))


def plain(frac: np.ndarray, lattice: np.ndarray, k: int) -> np.ndarray:
    """Every image in a block of cells that surely holds the k nearest."""
    reach = 8
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rows = []
    for f in frac:
        distances = np.linalg.norm((frac[:, None] + steps - f).reshape(-1, 3) @ lattice, axis=1)
        rows.append(np.sort(distances)[1 : k + 1])
    return np.array(rows)


def test_golden_of_the_field():
    frac = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    found = amd(one(frac, np.eye(3) * 3.905), 5)
    np.testing.assert_allclose(found[0], [2.11425, 2.11425, 2.59950, 2.59950, 2.59950], atol=5e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.lists(st.floats(-0.5, 0.5), min_size=9, max_size=9), st.integers(0, 2**31))
def test_triclinic_cells_equal_the_plain_loop(n, skew, seed):
    lattice = 4 * (np.eye(3) + 0.6 * np.array(skew).reshape(3, 3))
    frac = np.random.default_rng(seed).random((n, 3))
    np.testing.assert_allclose(pdd(one(frac, lattice), 20), plain(frac, lattice, 20), atol=1e-9)


def test_a_batch_equals_its_crystals_in_any_order():
    batch = random_batch()
    together = amd(batch, 40)
    np.testing.assert_allclose(together, torch.cat([amd(part, 40) for part in batch]), atol=1e-9)
    np.testing.assert_allclose(together[[4, 0, 6]], amd(batch[[4, 0, 6]], 40), atol=1e-9)


def test_cell_choice_rotation_and_supercell_change_nothing():
    batch = random_batch(3)
    steps = torch.tensor([[1, 0, 0], [2, 1, 0], [-1, 3, 1]]).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    moved = batch.replace(lattice=steps @ batch["lattice"] @ turn, frac_coords=batch["frac_coords"] @ steps.inverse())
    np.testing.assert_allclose(amd(moved), amd(batch), atol=1e-9)
    frac = batch[0]["frac_coords"].numpy()
    doubled = np.concatenate([frac / [1, 1, 2], (frac + [0, 0, 1]) / [1, 1, 2]])
    lattice = batch[0]["lattice"][0].numpy()
    double = one(doubled, lattice * [[1], [1], [2]])
    np.testing.assert_allclose(amd(double), amd(batch[0]), atol=1e-9)
    assert pdd_distance(pdd(double).numpy(), pdd(batch[0]).numpy()) == pytest.approx(0, abs=1e-9)


def test_needles_and_sparse_cells_find_their_neighbours():
    batch = batch_from_arrays(
        [np.array([1]), np.array([1, 1]), np.zeros(0, int)],
        [np.zeros((1, 3)), np.array([[0, 0, 0], [0, 0, 0.01]]), np.zeros((0, 3))],
        [np.diag([1.0, 60, 60]), np.diag([90.0, 90, 90]), np.eye(3)],
    )
    found = amd(batch, 6)
    np.testing.assert_allclose(found[0], [1, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(found[1], [0.9, 89.1, 90, 90, 90, 90], atol=1e-9)
    assert (found[2] == 0).all()


def test_distances_between_crystals():
    a = np.array([[1.0, 2.0], [3.0, 3.0]])
    b = np.array([[1.0, 2.5], [3.0, 3.0], [4.0, 4.0]])
    # weights 1/2, 1/2 to 1/3, 1/3, 1/3, costs of the largest column: a linear programme by hand
    from scipy.optimize import linprog

    cost = np.abs(a[:, None] - b).max(-1)
    sums = np.concatenate([np.kron(np.eye(2), np.ones(3)), np.kron(np.ones(2), np.eye(3))])
    expected = linprog(cost.ravel(), A_eq=sums, b_eq=[1 / 2] * 2 + [1 / 3] * 3).fun
    assert pdd_distance(a, b) == pytest.approx(expected) and pdd_distance(b, a) == pytest.approx(expected)
    assert pdd_distance(a, a) == 0
    table = amd_distances(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 4.0], [1.0, 2.0]]))
    assert table.tolist() == [[2.0, 0.0]]


def test_bad_arguments():
    with pytest.raises(ValueError, match="^k = 0, allowed: at least 1$"):
        pdd(random_batch(), 0)
    with pytest.raises(ValueError, match="rows of the same number of distances"):
        pdd_distance(np.ones((2, 3)), np.ones((2, 4)))


@pytest.mark.gpu
def test_the_accelerator_gives_the_same():
    batch = random_batch()
    np.testing.assert_allclose(amd(batch, device="cuda").cpu(), amd(batch), atol=1e-9)
