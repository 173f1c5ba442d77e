"""Coverage, divergences, diversity, and the sets of crystals that they are computed of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chem.convert import batch_from_arrays, from_structures
from chem.crystals import CrystalBatch
from evaluation.comparison import compare, variety
from evaluation.coverage import CUTOFFS, Cutoffs, coverage, nearest
from evaluation.descriptors import described
from evaluation.descriptors.cache import content_hash, remembered
from evaluation.descriptors.described import Described, fingerprint_clause
from evaluation.divergence import diversity, element_shares, jensen_shannon, mmd, shares, wasserstein
from evaluation.protocols import CDVAE


@pytest.fixture(scope="module")
def simple() -> CrystalBatch:
    """SrTiO3, BaTiO3, NaCl, diamond."""
    from pymatgen.core import Lattice, Structure

    sites = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    cubic, make = Lattice.cubic, Structure.from_spacegroup
    return from_structures(
        [
            make("Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], sites),
            make("Pm-3m", cubic(4.0), ["Ba", "Ti", "O"], sites),
            make("Fm-3m", cubic(5.64), ["Na", "Cl"], sites[:2]).get_primitive_structure(),
            make("Fd-3m", cubic(3.567), ["C"], sites[:1]).get_primitive_structure(),
        ]
    )


@pytest.fixture
def bad() -> CrystalBatch:
    """A crystal that cannot be measured, and one of an element that has no fingerprint."""
    frac = [np.full((1, 3), np.nan), np.zeros((1, 3))]
    return batch_from_arrays([np.array([14]), np.array([118])], frac, [np.eye(3) * 4] * 2)


def test_goldens_of_the_field(simple, tmp_path):
    found = Described(simple, cache=tmp_path)
    both = [np.linalg.norm(f.values[:, None] - f.values, axis=-1) for f in (found.structure, found.composition)]
    expected = {(0, 2): (0.94106, 13.3287), (0, 1): (0.00438, 2.80876), (2, 3): (2.10035, 29.8061)}
    for pair, values in expected.items():
        assert [table[pair] for table in both] == pytest.approx(values, rel=1e-4, abs=5e-6)
    assert CUTOFFS["mp20"] == CUTOFFS["mpts52"] == Cutoffs(0.4, 10.0)
    assert CUTOFFS["carbon24"] == CUTOFFS["perov5"] == Cutoffs(0.2, 4.0)


def test_cut_offs_count_as_by_hand(simple, tmp_path):
    # SrTiO3 and diamond generated; SrTiO3, BaTiO3 and NaCl known
    ours, known = Described(simple[[0, 3]], 5, tmp_path), Described(simple[:3], cache=tmp_path)
    numbers = {n.name: n for n in coverage(ours, known, CDVAE, 0)}
    assert (numbers["coverage_recall"].hits, numbers["coverage_recall"].n) == (2, 3)
    assert (numbers["coverage_precision"].hits, numbers["coverage_precision"].n) == (1, 5)
    # NaCl is farther than both cut-offs from either crystal
    assert numbers["amsd_recall"].value == pytest.approx((0 + 0.00438 + 0.94106) / 3, abs=1e-5)
    assert numbers["amcd_recall"].value == pytest.approx((0 + 2.80876 + 13.3287) / 3, abs=1e-4)
    assert "cut-offs 0.4 and 10" in numbers["coverage_recall"].note
    loose = {n.name: n for n in coverage(ours, known, CDVAE, 0, Cutoffs(0.95, 13.4))}
    assert loose["coverage_recall"].hits == 3


def test_structure_and_composition_may_be_near_different_crystals(simple, tmp_path):
    # a reference with NaCl's cell and SrTiO3's elements is near no single generated crystal, yet covered
    mixed = batch_from_arrays(
        [np.array([38, 8])], [simple[2]["frac_coords"].numpy()], [simple[2]["lattice"][0].numpy()]
    )
    known = Described(mixed, cache=tmp_path)
    hits = [coverage(Described(simple[rows], cache=tmp_path), known, CDVAE, 0)[0].hits for rows in ([0], [2], [0, 2])]
    assert hits == [0, 0, 1]


def test_crystals_without_fingerprints_stay_in_the_denominator(simple, bad, tmp_path):
    from chem.ragged import concatenate

    both = concatenate([simple, bad])
    ours = Described(both, 10, tmp_path)
    assert ours.fingerprinted.tolist() == [True] * 4 + [False] * 2
    assert fingerprint_clause(both).tolist() == ours.fingerprinted.tolist()
    numbers = {n.name: n for n in coverage(ours, ours, CDVAE, 0)}
    assert (numbers["coverage_precision"].hits, numbers["coverage_precision"].n) == (4, 10)
    assert (numbers["coverage_recall"].hits, numbers["coverage_recall"].n) == (4, 4)
    assert "2 others without fingerprints" in numbers["coverage_recall"].denominator
    nothing = {n.name: n for n in coverage(Described(bad, cache=tmp_path), ours, CDVAE, 0)}
    assert nothing["coverage_recall"].hits == 0 and math.isnan(nothing["amsd_precision"].value)
    assert not [n for n in compare(Described(bad[:1], cache=tmp_path), ours, CDVAE, 0) if not math.isnan(n.value)]
    assert all(math.isnan(n.value) for n in variety(Described(bad[:1], cache=tmp_path), CDVAE, 0))
    with pytest.raises(ValueError, match="^n = 3, allowed: at least the 6 crystals"):
        Described(both, 3)


def test_nearest_equals_the_plain_loop(monkeypatch):
    monkeypatch.setattr("evaluation.coverage.ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    a, b = rng.random((40, 5)), rng.random((23, 5))
    b[3] = a[11]
    table = np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b] for x in a])
    to_b, to_a = nearest(a, b)
    np.testing.assert_allclose(to_b, table.min(1), atol=1e-12)
    np.testing.assert_allclose(to_a, table.min(0), atol=1e-12)
    assert np.isinf(nearest(a, b[:0])[0]).all() and nearest(a, b[:0])[1].shape == (0,)


def test_nothing_is_computed_twice_nor_before_it_is_asked_for(simple, tmp_path, monkeypatch):
    first = Described(simple, cache=tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
    values, groups = first.structure.values, first.symmetry(0.1)
    assert len(list(tmp_path.rglob("*.npz"))) == 2

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(described, "structure_fingerprints", never)
    monkeypatch.setattr(described, "symmetry", never)
    again = Described(simple, cache=tmp_path)
    assert np.array_equal(again.structure.values, values) and again.symmetry(0.1).templates == groups.templates
    moved = simple.replace(frac_coords=simple["frac_coords"] + 1e-9)
    with pytest.raises(AssertionError, match="again"):
        _ = Described(moved, cache=tmp_path).structure
    with pytest.raises(AssertionError, match="again"):
        Described(simple, cache=tmp_path).symmetry(0.01)


def test_a_broken_or_unwritable_cache_costs_time_alone(simple, tmp_path):
    def compute():
        return {"x": np.arange(3)}

    remembered("test", simple, {}, compute, tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(b"PK\x03\x04 half a file")
    assert remembered("test", simple, {}, compute, tmp_path)["x"].tolist() == [0, 1, 2]
    assert remembered("test", simple, {}, dict, tmp_path)["x"].tolist() == [0, 1, 2]
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert remembered("test", simple, {}, compute, blocked)["x"].tolist() == [0, 1, 2]
    assert content_hash(simple, {}) != content_hash(simple, {"symprec": 0.1}) != content_hash(simple[:2], {})
    assert not list(tmp_path.rglob("*.part"))


def test_divergences_equal_their_definitions():
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    a, b = shares(rng.integers(0, 6, 50).tolist(), range(6)), shares(rng.integers(2, 9, 70).tolist(), range(6))
    found = jensen_shannon("jsd", a, b[b.sum(1) > 0], "n", CDVAE, 0)
    assert found.value == pytest.approx(jensenshannon(a.sum(0), b.sum(0), base=2) ** 2)
    assert found.low < found.value < found.high and 0 < found.reference < found.value
    assert jensen_shannon("jsd", a, a, "n", CDVAE, 0).value == pytest.approx(0, abs=1e-12)
    apart = jensen_shannon("jsd", shares([0, 1], range(4)), shares([2, 3], range(4)), "n", CDVAE, 0)
    assert apart.value == pytest.approx(1)
    x, y = rng.normal(0, 1, 40), rng.normal(1, 1, 60)
    kernels = [np.mean([[math.exp(-((p - q) ** 2) / 2) for q in v] for p in u]) for u, v in ((x, x), (y, y), (x, y))]
    assert mmd("mmd", x, y, "n", CDVAE, 0, "").value == pytest.approx(
        math.sqrt(kernels[0] + kernels[1] - 2 * kernels[2])
    )
    assert mmd("mmd", x, x, "n", CDVAE, 0, "").value == pytest.approx(0, abs=1e-7)
    shifted = wasserstein("w", y + 2.0, y, "n", CDVAE, 0, "Å")
    assert shifted.value == pytest.approx(2.0) and shifted.low < 2 < shifted.high and shifted.reference < 0.5


def test_diversity_counts_categories_in_effect():
    even = diversity("d", shares([0, 1, 2, 3] * 25, range(10)), "n", CDVAE, 0)
    assert even.value == pytest.approx(4) and even.low < 4 < even.high
    assert diversity("d", shares([1] * 9, range(3)), "n", CDVAE, 0).value == pytest.approx(1)
    amounts = np.zeros((2, 119))
    amounts[0, [11, 17]], amounts[1, 6] = 4, 1
    assert element_shares(amounts).sum(1).tolist() == [1, 1]
    assert diversity("d", element_shares(amounts), "n", CDVAE, 0).value == pytest.approx(2 * math.sqrt(2))


def test_a_set_compared_with_itself_is_at_distance_zero(simple, tmp_path):
    one = Described(simple, cache=tmp_path)
    numbers = {n.name: n for n in compare(one, one, CDVAE, 0)}
    assert {n: abs(v.value) < 1e-6 for n, v in numbers.items()} == dict.fromkeys(numbers, True)
    wanted = {"wasserstein_volume_per_atom", "wasserstein_gamma", "jsd_elements", "jsd_space_group@0.1", "mmd_density"}
    assert wanted <= set(numbers) and all(n.n == 4 and n.high >= n.low for n in numbers.values())
    varied = {n.name: n.value for n in variety(one, CDVAE, 0)}
    assert varied["diversity_crystal_system@0.1"] == pytest.approx(1)
    assert varied["diversity_space_group@0.1"] == pytest.approx(math.exp(1.5 * math.log(2)))


def test_real_crystals_cover_each_other(data_root, tmp_path):
    from chem import datasets

    batch = datasets.load("mp20", "val").batch
    ours, known = Described(batch[:60], cache=tmp_path), Described(batch[60:260], cache=tmp_path)
    assert ours.fingerprinted.all() and known.fingerprinted.all()
    numbers = {n.name: n.value for n in coverage(ours, known, CDVAE, 0)}
    assert numbers["coverage_precision"] > 0.9 and 0.5 < numbers["coverage_recall"] < 1
    assert np.isfinite(ours.amd).all() and ours.amd.shape == (60, 100)
