"""The batched matcher: every decision and every rms against pymatgen, and each of its steps against an oracle."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import decisions
from chem import datasets
from chem.convert import batch_from_arrays
from evaluation.matching import frames, matcher
from evaluation.matching.alignment import Kind, _assign
from evaluation.matching.lattice_maps import lattice_maps, lll_steps, to_one_volume
from evaluation.matching.matcher import Cells, best_values
from evaluation.matching.pairs import match_pairs
from evaluation.matching.reduction import Arrays, arrays_of_batch, reduced, reduced_cells, structure, surely_primitive
from evaluation.protocols import DEFAULT, DIFFCSP, LOOSE, Tolerances
from evaluation.workers import Failed

TRICLINIC = np.array([[4.1, 0.0, 0.0], [1.7, 3.9, 0.0], [-1.2, 1.1, 4.6]])


@pytest.fixture(scope="module")
def crystals() -> list[Arrays]:
    batch = datasets.load("prototypes", "train").batch
    return arrays_of_batch(batch[batch["num_atoms"] <= 12][:24])


def agree(pairs: list[tuple[Arrays, Arrays]], tolerances: Tolerances) -> int:
    """Asserts that both matchers say the same of every pair, by rms and by fit; how many match."""
    cells = [reduced(crystal) for pair in pairs for crystal in pair]
    ours, theirs = decisions.decide(cells, tolerances, False), decisions.asked(pairs, tolerances, False)
    sure = ~np.isnan(ours)
    assert (np.isfinite(ours) == np.isfinite(theirs))[sure].all()
    both = sure & np.isfinite(ours)
    assert np.abs(ours[both] - theirs[both]).max(initial=0.0) < 1e-9
    assert sure.mean() >= 0.8
    fits = decisions.decide(cells, tolerances, True)
    assert (np.isfinite(fits) == np.isfinite(decisions.asked(pairs, tolerances, True))).all()
    return int(both.sum())


def random_crystals(seed: int, count: int) -> list[tuple[Arrays, Arrays]]:
    """Pairs of triclinic crystals of one content: unlike, or the second a noisy, sheared, re-ordered copy in another
    cell; some cells are left-handed, and rarest elements are tied."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        numbers = np.repeat(rng.choice([8, 14, 22, 38], rng.integers(1, 4), replace=False), rng.integers(1, 4))
        numbers = rng.permutation(numbers)
        lattice = TRICLINIC * rng.uniform(0.8, 1.4, (3, 1)) + rng.normal(0, 0.3, (3, 3))
        lattice *= rng.choice([1, -1])
        frac = rng.random((len(numbers), 3))
        one = Arrays(numbers, frac, lattice)
        if rng.random() < 0.3:
            other = Arrays(rng.permutation(numbers), rng.random(frac.shape), lattice + rng.normal(0, 0.2, (3, 3)))
        else:
            change = np.eye(3) + np.tril(rng.integers(-1, 2, (3, 3)), -1)
            order = rng.permutation(len(numbers))
            moved = (frac + rng.normal(0, rng.choice([1e-3, 0.05, 0.1]), frac.shape) + rng.random(3))[order]
            strain = np.eye(3) + rng.normal(0, 0.05, (3, 3))
            other = Arrays(numbers[order], moved @ np.linalg.inv(change) % 1, change @ lattice @ strain)
        pairs.append((one, other))
    return pairs


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_triclinic_crystals_are_judged_as_by_pymatgen(seed):
    for tolerances in (LOOSE, DEFAULT):
        agree(random_crystals(seed, 4), tolerances)


@pytest.mark.parametrize("tolerances", [LOOSE, DEFAULT, replace(DEFAULT, scale=False), replace(LOOSE, stol=0.9)])
def test_prototypes_moved_as_far_as_a_tolerance(crystals, tolerances):
    pairs = list(decisions.moved(crystals, tolerances, 1))
    if tolerances.scale:
        assert 4 < agree(pairs, tolerances) < len(pairs)
    else:
        from pymatgen.analysis.structure_matcher import StructureMatcher

        found = decisions.decide([reduced(crystal) for pair in pairs for crystal in pair], tolerances, True)
        asked = [StructureMatcher(scale=False).fit(structure(a), structure(b)) for a, b in pairs]
        assert np.isfinite(found).tolist() == asked and 4 < sum(asked) < len(asked)


def test_order_of_sites_breaks_ties_as_in_pymatgen():
    rng = np.random.default_rng(3)
    numbers, lattice = np.array([22, 38, 8, 8, 8]), np.eye(3) * 3.9
    different = 0
    for _ in range(12):
        made, true = Arrays(numbers, rng.random((5, 3)), lattice), Arrays(numbers, rng.random((5, 3)), lattice)
        swapped = Arrays(numbers[[1, 0, 2, 3, 4]], true.frac[[1, 0, 2, 3, 4]], lattice)
        agree([(made, true), (made, swapped)], LOOSE)
        a, b = decisions.decide([reduced(one) for one in (made, true, made, swapped)], LOOSE, False)
        different += a != b
    assert different


def test_decisions_near_the_tolerances_on_real_crystals(data_root):
    rows = decisions.run(count=10, carbon=10)
    total = rows[-1][1]
    assert " 0 different" in total and int(total.split()[0].rstrip(",")) >= 90 and int(total.split()[1]) > 30


def test_reduction_is_that_of_pymatgen(crystals):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    rng, made, spared = np.random.default_rng(0), [], 0
    for crystal in crystals:
        large = structure(crystal)
        large.make_supercell(rng.permutation([1, 1, 2]))
        large.perturb(float(rng.choice([0.01, 0.12, 0.2])))
        made.append(Arrays(np.array(large.atomic_numbers), large.frac_coords, large.lattice.matrix))
    for one in crystals + made:
        expected = StructureMatcher()._get_reduced_structure(structure(one))
        found = reduced(one)
        assert found.numbers.tolist() == list(expected.atomic_numbers)
        assert np.array_equal(found.frac, expected.frac_coords)
        assert np.array_equal(found.lattice, expected.lattice.matrix)
        spared += surely_primitive(one)
    assert len(crystals) // 2 < spared < len(crystals + made)


def test_one_crystal_that_cannot_be_reduced_fails_alone(crystals):
    flat = crystals[1]._replace(lattice=np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]]))
    found = reduced_cells([crystals[0], flat, crystals[2]], True, 5.0, 0)
    assert isinstance(found[1], Failed) and not isinstance(found[0], Failed) and not isinstance(found[2], Failed)


def test_maps_are_those_of_pymatgen():
    from pymatgen.core import Lattice

    rng = np.random.default_rng(5)
    for _ in range(6):
        one, other = TRICLINIC + rng.normal(0, 0.2, (3, 3)), TRICLINIC * 1.2 + rng.normal(0, 0.2, (3, 3))
        made, true = to_one_volume(torch.from_numpy(one)[None], torch.from_numpy(other)[None])
        found = lattice_maps(made, true, LOOSE)
        mappings = Lattice(made[0].numpy()).find_all_mappings(Lattice(true[0].numpy()), 0.3, 10, True)
        expected = {tuple(m.flatten().tolist()) for _, _, m in mappings if abs(round(np.linalg.det(m))) == 1}
        half = found.matrix.flatten(1).long().tolist()
        assert {tuple(m) for m in half} | {tuple(-x for x in m) for m in half} == expected
        assert len(expected) == 2 * len(half) > 0


def test_lll_reduction_is_that_of_pymatgen():
    from pymatgen.core import Lattice

    rng = np.random.default_rng(2)
    skew = np.eye(3) + np.tril(rng.integers(-3, 4, (40, 3, 3)), -1)
    cells = skew @ (TRICLINIC + rng.normal(0, 0.4, (40, 3, 3)))
    found = lll_steps(torch.from_numpy(cells)) @ torch.from_numpy(cells)
    expected = np.array([Lattice(cell).lll_matrix for cell in cells])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_nearest_images_within_the_tolerance_are_exact():
    rng = np.random.default_rng(4)
    cells = torch.from_numpy(TRICLINIC + rng.normal(0, 0.6, (30, 3, 3)))
    cells = lll_steps(cells) @ cells
    tolerance = torch.from_numpy(rng.uniform(0.2, 0.7, (30, 3)))
    gap = torch.from_numpy(rng.uniform(-0.5, 0.5, (30, 200, 3))) * (2 * tolerance.clamp(max=0.5)).unsqueeze(1)
    useful = frames._useful(cells, tolerance)
    square, which = frames.nearest(gap @ cells, cells, useful)
    assert which is not None and 0 < int(useful.sum()) < useful.numel()
    around = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3))).double()
    every = (gap.unsqueeze(2) + around) @ cells.unsqueeze(1)
    torch.testing.assert_close(square, every.square().sum(-1).amin(-1))
    vectors = (gap + frames.steps(cells)[which]) @ cells
    torch.testing.assert_close(vectors.square().sum(-1), square)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_assignments_cost_as_little_as_scipys(count):
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(count)
    cost = torch.from_numpy(rng.random((50, count, count)))
    cost[torch.from_numpy(rng.random(cost.shape) < 0.2)] = torch.inf
    found = cost.gather(2, _assign(cost)[0].unsqueeze(-1)).sum((1, 2))
    for mine, one in zip(found.tolist(), cost.numpy(), strict=True):
        one = np.where(np.isinf(one), 1e6, one)
        best = one[linear_sum_assignment(one)].sum()
        assert mine == pytest.approx(best) if best < 1e6 else mine == np.inf


@pytest.mark.parametrize("count", [3, 6])
def test_sites_that_only_one_partner_reaches_are_not_assigned(count):
    """All rows like one column and no row reaches the last: a choice row by row would look like a match."""
    cost = torch.full((1, count, count), torch.inf)
    cost[..., 0] = 1.0
    assert torch.isinf(cost.gather(2, _assign(cost)[0].unsqueeze(-1)).sum())


def test_equally_good_assignments_are_noticed():
    cost = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.5]], [[torch.inf, 2.0], [3.0, 4.0]]])
    assert _assign(cost)[1].tolist() == [True, False, False]


# two layers half a cell apart: whether rounding takes a layer up or down decides whether they match (MP-20)
LAYERS_MADE = Arrays(
    np.array([25, 25, 25, 33, 33, 33, 27, 45, 45]),
    np.array(
        [[0, 0, 0.596519], [0, 0.59652, 0], [0, 0.40348, 0.40348], [0.5, 0.773574, 0.773574], [0.5, 0.226426, 0]]
        + [[0.5, 0, 0.226426], [0, 0, 1e-06], [0.5, 0.333333, 0.666667], [0.5, 0.666667, 0.333333]]
    ),
    np.array([[4.18163053, 0, 0], [0, 6.030756390694758, -3.4818577467543954], [0, 0, 6.96371471]]),
)
LAYERS_TRUE = Arrays(
    np.array([25, 25, 25, 27, 33, 33, 33, 45, 45]),
    np.array(
        [[0.5, 0.412949, 1], [0.5, 0.997662, 0.404148], [0.5, 0.593514, 0.595852], [0, 0.740074, 0]]
        + [[0, 0.348131, 0.676916], [0, 0.671215, 0.323084], [0.5, 0.980602, 1], [0, 0.997135, 0.738316]]
        + [[0, 0.258819, 0.261684]]
    ),
    np.array([[3.653745, 0, 0], [0, 5.503141986828844, -3.1089069706396115], [0, 0, 6.42506562]]),
)


def test_where_rounding_decides_pymatgen_is_asked():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    pair = [LAYERS_MADE, LAYERS_TRUE]
    cells = Cells([reduced(crystal) for crystal in pair])
    assert np.isnan(best_values(cells, np.array([(0, 1)]), LOOSE)).all()
    matcher_of_pymatgen = StructureMatcher(LOOSE.ltol, LOOSE.stol, LOOSE.angle_tol)
    for made, true in (pair, pair[::-1]):
        expected = matcher_of_pymatgen.get_rms_dist(structure(made), structure(true))
        batches = [batch_from_arrays(*([column] for column in one)) for one in (made, true)]
        (found,) = match_pairs(*batches, [(0, 0)], DIFFCSP, 0)
        assert found.rms == (None if expected is None else pytest.approx(expected[0], abs=1e-9))


def test_entries_pair_like_sites_row_by_row():
    rows, columns = Kind((1, 2)).entries()
    assert rows.tolist() == [0, 1, 1, 2, 2] and columns.tolist() == [0, 1, 2, 1, 2]


def test_what_cannot_be_decided_is_left_to_pymatgen(crystals, monkeypatch):
    cells = Cells([reduced(crystal) for crystal in crystals[:4]])
    itself = np.array([(n, n) for n in range(4)])
    assert np.isnan(best_values(cells, itself, replace(LOOSE, attempt_supercell=True))).all()
    np.testing.assert_allclose(best_values(cells, itself, LOOSE), 0, atol=1e-6)
    for limit in ("LARGE_SITES", "LARGE_BOX"):
        with monkeypatch.context() as patch:
            patch.setattr(matcher, limit, 0)
            assert np.isnan(best_values(cells, itself, LOOSE)).all()


def test_small_parts_change_nothing(crystals, monkeypatch):
    cells = [reduced(one) for pair in decisions.moved(crystals, LOOSE, 0) for one in pair]
    before = decisions.decide(cells, LOOSE, False), decisions.decide(cells, DEFAULT, True)
    monkeypatch.setattr(matcher, "CHUNK", 7)
    monkeypatch.setattr(matcher, "POINTS", 500)
    monkeypatch.setattr("evaluation.matching.alignment.ENTRIES", 1)
    after = decisions.decide(cells, LOOSE, False), decisions.decide(cells, DEFAULT, True)
    np.testing.assert_allclose(before[0], after[0], atol=1e-12)
    assert np.isfinite(before[1]).tolist() == np.isfinite(after[1]).tolist()


def test_a_large_pair_gets_pymatgens_answer():
    rng = np.random.default_rng(1)
    numbers = np.repeat([8, 14, 38], [16, 15, 2])
    true = Arrays(numbers, rng.random((33, 3)), TRICLINIC * 2)
    made = true._replace(frac=true.frac + rng.normal(0, 0.01, (33, 3)))
    batches = [batch_from_arrays([one.numbers], [one.frac % 1], [one.lattice]) for one in (made, true)]
    found = match_pairs(*batches, [(0, 0)], DIFFCSP, processes=0)[0]
    assert found.rms == pytest.approx(decisions.asked([(made, true)], LOOSE, False)[0], abs=1e-9)
    assert found.strict_rms is not None and not np.isfinite(
        matcher.best_values(Cells([made]), np.zeros((1, 2), int), LOOSE)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")
def test_cuda_decides_as_the_cpu(crystals):
    cells = [reduced(one) for pair in decisions.moved(crystals, LOOSE, 0) for one in pair]
    pairs = np.arange(len(cells)).reshape(-1, 2)
    for tolerances, largest in ((LOOSE, False), (DEFAULT, True)):
        ours, theirs = (best_values(Cells(cells, device), pairs, tolerances, largest) for device in ("cpu", "cuda"))
        assert np.isfinite(ours).tolist() == np.isfinite(theirs).tolist()
        if not largest:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
