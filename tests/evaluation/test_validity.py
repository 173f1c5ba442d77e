"""Structural validity: the two rules, against pymatgen, and crystals that cannot be judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chem.convert import batch_from_arrays, to_structures
from chem.crystals import CrystalBatch
from evaluation import validity
from evaluation.validity import densities, structural_validity

TRICLINIC = np.array([[4.1, 0.0, 0.0], [1.7, 3.9, 0.0], [-1.2, 1.1, 4.6]])


def one(numbers, frac, lattice) -> CrystalBatch:
    return batch_from_arrays([np.array(numbers)], [np.array(frac, dtype=float)], [np.array(lattice, dtype=float)])


def random_batch(n: int, seed: int = 0) -> CrystalBatch:
    """Skewed cells with atoms at random, about half of them with two atoms closer than 0.5 Å."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, n)
    skew = np.eye(3) + np.tril(rng.integers(-2, 3, (n, 3, 3)), -1)
    lattices = skew @ (TRICLINIC * rng.uniform(0.4, 1.1, (n, 1, 1)) + rng.normal(0, 0.2, (n, 3, 3)))
    numbers, frac = [rng.integers(1, 80, c) for c in counts], [rng.random((c, 3)) for c in counts]
    return batch_from_arrays(numbers, frac, list(lattices))


def test_parity_rule_equals_the_distance_matrix_of_pymatgen():
    batch = random_batch(150)
    expected = []
    for s in to_structures(batch):
        distances = s.distance_matrix + np.diag(np.full(len(s), 10.0))  # the padded diagonal
        expected.append(bool(distances.min() >= 0.5 and s.volume >= 0.1))
    found = structural_validity(batch).valid
    assert found.tolist() == expected and 20 < sum(expected) < 140


def test_float32_and_chunks_change_nothing(monkeypatch):
    batch = random_batch(40, seed=3)
    expected = structural_validity(batch)
    monkeypatch.setattr(validity, "PAIRS_AT_ONCE", 100)
    assert structural_validity(batch).reasons == expected.reasons
    assert np.array_equal(structural_validity(batch.to(torch.float32)).valid, expected.valid)


def test_only_strict_looks_at_images():
    thin = one([14], [[0, 0, 0]], np.diag([0.3, 10.0, 10.0]))
    assert structural_validity(thin, "cdvae").valid[0]
    found = structural_validity(thin, "strict")
    assert not found.valid[0] and "own image" in found.reasons[0]


@pytest.mark.parametrize(
    ("numbers", "frac", "lattice", "reason"),
    [
        ([11, 17], [[0, 0, 0], [0.3, 0, 0]], np.eye(3) * 4, "covalent radii"),
        ([1], [[0, 0, 0]], np.eye(3) * 101, "outside 1 to 100"),
        ([1], [[0, 0, 0]], np.eye(3) * 30, "density outside 0.01"),
        ([14], [[0, 0, 0]], np.diag([0.9, 20, 20]), "own image"),
    ],
)
def test_strict_reasons(numbers, frac, lattice, reason):
    batch = one(numbers, frac, lattice)
    assert structural_validity(batch, "cdvae").valid[0]
    assert reason in structural_validity(batch, "strict").reasons[0]


def test_a_crystal_that_cannot_be_judged_has_a_reason_and_stops_nobody():
    nan, good = np.nan, np.eye(3) * 5
    cases = [
        ([14], [[0, 0, 0]], good, ""),
        ([14], [[0, nan, 0]], good, "coordinate"),
        ([14], [[0, 0, 0]], np.full((3, 3), nan), "lattice vector is not"),
        ([14], [[0, 0, 0]], np.zeros((3, 3)), "volume"),
        ([14], [[0, 0, 0]], [[5, 0, 0], [10, 0, 0], [0, 0, 5]], "volume"),
        ([14], [[0, 0, 0]], np.eye(3) * 0.4, "volume"),
        ([14], [[0, 0, 0]], np.diag([1e200, 1, 1]), "longer"),
        ([14, 14], [[0, 0, 0], [0.99, 0, 0]], good, "two atoms at 0.050"),
        ([], np.zeros((0, 3)), good, "no atoms"),
        ([14], [[0, 0, 0]], -good, ""),
        ([200], [[0, 0, 0]], good, "atomic number"),
    ]
    batch = batch_from_arrays(
        [np.array(z, dtype=int) for z, *_ in cases],
        [np.array(f, dtype=float) for _, f, *_ in cases],
        [np.array(lattice, dtype=float) for *_, lattice, _ in cases],
    )
    found = structural_validity(batch)
    for reason, (*_, expected) in zip(found.reasons, cases, strict=True):
        assert bool(reason) == bool(expected) and expected in reason
    assert found.valid.tolist() == [not reason for *_, reason in cases]
    strict = structural_validity(batch, "strict")
    assert not strict.valid[[1, 2, 3, 4, 5, 6, 7, 8, 10]].any()


def test_no_crystals_and_an_unknown_rule():
    assert structural_validity(random_batch(3)[:0]).valid.shape == (0,)
    with pytest.raises(ValueError, match="^rule = 'loose', allowed: cdvae, strict$"):
        structural_validity(random_batch(1), "loose")


def test_densities_equal_those_of_pymatgen():
    batch = random_batch(20)
    expected = [s.density for s in to_structures(batch)]
    np.testing.assert_allclose(densities(batch), expected, rtol=2e-3)


def test_real_crystals_are_valid(data_root):
    from chem import datasets

    batch = datasets.load("mp20", "val").batch[:1000]
    assert structural_validity(batch, "cdvae").valid.all()
    assert structural_validity(batch, "strict").valid.mean() > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ["cdvae", "strict"])
def test_the_accelerator_gives_the_same(rule):
    batch = random_batch(150)
    expected = structural_validity(batch, rule).reasons
    assert structural_validity(batch, rule, "cuda").reasons == expected
    assert structural_validity(batch.to("cuda"), rule).reasons == expected
