"""Uniqueness and novelty: groups as pymatgen makes them, the rule of disorder, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest

from chem.convert import batch_from_arrays, from_structures, to_structures
from chem.crystals import CrystalBatch
from chem.ragged import concatenate
from evaluation.matching import sameness
from evaluation.matching.sameness import DISORDERED, ORDERED, Sameness, interchangeable
from evaluation.matching.uniqueness import novelty, uniqueness
from evaluation.protocols import DEFAULT, Tolerances

SITES = [[0, 0, 0], [0.5, 0.5, 0.5], [0.4, 0.6, 0.2], [0, 0, 0.75]]  # MatterGen's own test of its disordered matcher
OTHER = [[0, 0, 0], [0.75, 0.2, 0.1], [0.25, 0.3, 0.5], [0, 0, 0.75]]


def batch(*crystals: tuple[list[str], list]) -> CrystalBatch:
    """Cubic cells of 6 Å with these elements and fractional coordinates."""
    from pymatgen.core import Structure

    return from_structures([Structure(np.eye(3) * 6, elements, frac) for elements, frac in crystals])


def carbon(count: int = 14) -> CrystalBatch:
    """Triclinic crystals of carbon, several of them alike: noisy copies, supercells, and unlike ones."""
    rng = np.random.default_rng(0)
    lattice = np.array([[3.1, 0.0, 0.0], [0.7, 3.3, 0.0], [-0.6, 0.5, 3.8]])
    models, made = rng.random((3, 4, 3)), []
    for n in range(count):
        frac, cell = models[n % 3] + rng.normal(0, 0.09, (4, 3)), lattice
        if n % 4 == 3:
            frac, cell = np.concatenate([frac, frac + [1, 0, 0]]) / [2, 1, 1], lattice * [[2], [1], [1]]
        made.append((np.full(len(frac), 6), frac % 1, cell))
    return batch_from_arrays(*([one[i] for one in made] for i in range(3)))


@pytest.mark.parametrize("tolerances", [DEFAULT, Tolerances(0.2, 0.15, 5.0)])
def test_first_come_groups_are_those_of_pymatgen(tolerances):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    crystals = carbon()
    matcher = StructureMatcher(tolerances.ltol, tolerances.stol, tolerances.angle_tol)
    structures = to_structures(crystals)
    place = {id(structure): n for n, structure in enumerate(structures)}
    expected = {frozenset(place[id(s)] for s in group) for group in matcher.group_structures(structures)}
    found = uniqueness(crystals, Sameness(tolerances), processes=0)
    assert {frozenset(np.flatnonzero(found.group == g).tolist()) for g in set(found.group.tolist())} == expected
    assert found.unique.sum() == len(expected) > 1 and found.grouping == "first-come"
    assert [int(g) for g in found.group[found.unique]] == list(range(len(expected)))


def test_components_join_both_directions_and_forget_the_order():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    crystals, tolerances = carbon(), Tolerances(0.2, 0.15, 5.0)
    matcher, structures = StructureMatcher(stol=0.15), to_structures(crystals)
    leader = list(range(len(structures)))
    for i, a in enumerate(structures):
        for j, b in enumerate(structures):
            if i != j and matcher.fit(a, b):
                leader = [leader[i] if one == leader[j] else one for one in leader]
    found = uniqueness(crystals, Sameness(tolerances), "components", processes=0)
    pairs = [(i, j) for i in range(len(leader)) for j in range(i)]
    assert [leader[i] == leader[j] for i, j in pairs] == [found.group[i] == found.group[j] for i, j in pairs]
    order = np.random.default_rng(1).permutation(len(crystals))
    again = uniqueness(crystals[order.tolist()], Sameness(tolerances), "components", processes=0)
    assert again.unique.sum() == found.unique.sum() == len(set(leader))


def test_alloys_are_the_same_where_disorder_counts():
    alloy = batch(
        (["Fe", "Fe", "Ni", "Mn"], SITES), (["Ni", "Fe", "Mn", "Fe"], SITES), (["Fe", "Ni", "Ni", "Mn"], SITES)
    )
    assert uniqueness(alloy, processes=0).group.tolist() == [0, 1, 2]
    assert uniqueness(alloy, DISORDERED, processes=0).group.tolist() == [0, 0, 1]
    moved = [[0, 0, 0], [0.3, 0.2, 0.1], [0.23, 0.3, 0.3], [0, 0, 0.3]]
    far = batch((["Fe", "Fe", "Ni", "Mn"], SITES), (["Fe", "Fe", "Ni", "Mn"], moved))
    assert uniqueness(far, DISORDERED, processes=0).group.tolist() == [0, 1]


def test_ionic_crystals_are_novel_up_to_the_exchange_of_like_cations():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    reference = batch((["O", "O", "Sr", "Ba"], SITES))
    made = batch((["O", "O", "Ba", "Sr"], SITES), (["O", "O", "Ba", "Sr"], OTHER), (["O", "O", "Be", "Po"], SITES))
    plain = novelty(made, reference, "one oxide", processes=0)
    fits = [StructureMatcher().fit(one, to_structures(reference)[0]) for one in to_structures(made)]
    assert plain.novel.tolist() == [not one for one in fits] and "radius_tolerance" not in plain.sameness.as_dict()
    found = novelty(made, reference, "one oxide", DISORDERED, processes=0)
    assert found.novel.tolist() == [False, True, True] and found.known.tolist() == [0, -1, -1]
    assert found.reference == "one oxide" and found.sameness.as_dict()["radius_tolerance"] == 0.3


def test_the_first_of_the_reference_that_fits_is_named():
    crystals = carbon()
    alike = uniqueness(crystals, processes=0)
    found = novelty(crystals[[4, 9]], crystals[:4], "carbon", processes=0)
    from pymatgen.analysis.structure_matcher import StructureMatcher

    structures = to_structures(crystals)
    for n, known in zip((4, 9), found.known.tolist(), strict=True):
        fits = [j for j in range(4) if StructureMatcher().fit(structures[n], structures[j])]
        assert known == (fits[0] if fits else -1)
    assert alike.unique.sum() < len(crystals)


def test_interchangeable_elements():
    assert interchangeable([8, 38, 56]) == {8: 8, 38: 38, 56: 38}
    assert interchangeable([25, 26, 28]) == {25: 25, 26: 25, 28: 25}
    assert interchangeable([4, 8, 84]) == {4: 4, 8: 8, 84: 84}
    assert interchangeable([10, 18, 110]) == {10: 10, 18: 18, 110: 110}


def test_what_cannot_be_compared_has_a_reason_and_is_neither_unique_nor_novel():
    good = batch((["O", "O", "Sr", "Ba"], SITES))
    flat = good.replace(lattice=good["lattice"] * 0)
    both = concatenate([flat, good])
    found = uniqueness(both, processes=0)
    assert found.group.tolist() == [-1, 0] and found.unique.tolist() == [False, True] and found.reasons[0]
    seen = novelty(both, batch((["Zn", "S"], SITES[:2])), "zinc blende", processes=0)
    assert seen.novel.tolist() == [False, True] and seen.reasons[0] and not seen.reasons[1]
    with pytest.raises(ValueError, match="^reference 'x' cannot be compared with: crystal 0"):
        novelty(good, flat, "x", processes=0)


def test_pairs_left_to_pymatgen_and_pairs_that_take_too_long(monkeypatch):
    crystals = carbon(6)
    expected = uniqueness(crystals, processes=0)
    monkeypatch.setattr("evaluation.matching.matcher.LARGE_SITES", 0)
    assert uniqueness(crystals, processes=0).group.tolist() == expected.group.tolist()
    monkeypatch.setattr(sameness, "fit", None)  # calling it fails, as a killed process does
    lost = uniqueness(crystals, processes=0)
    assert lost.unclear == 15 and lost.unique.all()


def test_bad_rules_are_refused():
    with pytest.raises(ValueError, match="^grouping = 'twins', allowed: first-come, components"):
        uniqueness(carbon(2), ORDERED, "twins", processes=0)
    with pytest.raises(ValueError, match="^tolerances.attempt_supercell = True"):
        Sameness(Tolerances(0.2, 0.3, 5.0, attempt_supercell=True))


def test_novelty_against_mp20_train(data_root):
    from chem.datasets import load

    train = load("mp20", "train").batch
    names = set(train.fields) - {"atomic_numbers", "frac_coords", "lattice"}
    samples = concatenate(
        [one.without(*(names & set(one.fields))) for one in (train[7:10], load("mp20", "val").batch[:20])]
    )
    found = novelty(samples, train, "mp20 train", processes=0)
    assert not found.novel[:3].any() and found.novel[3:].mean() > 0.5
