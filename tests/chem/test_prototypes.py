"""The made data set: geometry, charges, symmetry, determinism."""

import numpy as np
import pytest
import spglib

from chem.convert import to_structures
from chem.datasets import load
from chem.packing import Packed
from chem.prototypes import PROTOTYPES, build, ionic_radius

SPACE_GROUPS = {
    "rock-salt": 225, "caesium-chloride": 221, "zinc-blende": 216, "wurtzite": 186, "fluorite": 225,
    "antifluorite": 225, "rutile": 136, "rhenium-trioxide": 221, "perovskite": 221, "elpasolite": 225,
    "layered-oxide": 166,
}  # fmt: skip


@pytest.fixture(scope="module")
def packed() -> Packed:
    return build()


def kind(name: str) -> str:
    return next(p.name for p in PROTOTYPES if name.startswith(p.name + "-"))


def test_a_few_hundred_crystals_of_every_prototype(packed: Packed) -> None:
    assert 300 <= len(packed.ids) <= 700 and len(set(packed.ids)) == len(packed.ids)
    assert {kind(name) for name in packed.ids} == SPACE_GROUPS.keys()
    assert packed.failures == [] and packed.num_atoms.max() <= 20


def test_space_group_of_every_crystal(packed: Packed) -> None:
    for name, one in zip(packed.ids, to_structures(packed.batch()), strict=True):
        cell = (one.lattice.matrix, one.frac_coords, [s.specie.Z for s in one])
        assert spglib.get_symmetry_dataset(cell, symprec=1e-3).number == SPACE_GROUPS[kind(name)], name


def test_distances_are_sums_of_radii(packed: Packed) -> None:
    structures = dict(zip(packed.ids, to_structures(packed.batch()), strict=True))
    for name, one in structures.items():
        apart = min(one.lattice.abc)
        if len(one) > 1:
            apart = min(apart, (one.distance_matrix + 99 * np.eye(len(one))).min())
        assert 1.6 < apart < 4.0, name
    salt = structures["rock-salt-Na-Cl"]
    assert salt.get_distance(0, 1) == pytest.approx(1.02 + 1.81, abs=1e-9)  # measured: 2.82
    rutile = next(one for name, one in structures.items() if name == "rutile-Mg-F")
    metal = next(i for i, site in enumerate(rutile) if site.specie.symbol == "Mg")
    near = sorted(n.nn_distance for n in rutile.get_neighbors(rutile[metal], 4.0) if n.specie.symbol == "F")[:6]
    np.testing.assert_allclose(near, near[0], rtol=1e-6)


def test_charges_balance(packed: Packed) -> None:
    ions = {p.name: p for p in PROTOTYPES}
    for one in ions.values():
        for charges in one.charges:
            assert sum(q * n for q, n in zip(charges, one.multiplicity, strict=True)) == 0
    guesses = [s.composition.oxi_state_guesses() for s in to_structures(packed.batch())[::25]]
    assert all(guesses)  # pymatgen finds neutral oxidation states too


def test_deterministic(packed: Packed) -> None:
    again = build()
    assert again.ids == packed.ids
    np.testing.assert_array_equal(again.frac_coords, packed.frac_coords)
    np.testing.assert_array_equal(again.lattice, packed.lattice)


def test_loads_by_name_without_files() -> None:
    parts = [load("prototypes", split, purpose="report") for split in ("train", "val", "test")]
    total = sum(len(p) for p in parts)
    np.testing.assert_allclose([len(p) / total for p in parts], (0.8, 0.1, 0.1), atol=0.01)
    assert len({i for p in parts for i in p.ids}) == total
    density = parts[0].batch["density"]
    assert ((density > 0.5) & (density < 20)).all()
    with pytest.raises(ValueError, match="purpose='report'"):
        load("prototypes", "test")


def test_radius_of_an_unknown_ion() -> None:
    assert ionic_radius("Na", 1, 6) == 1.02 and ionic_radius("O", -2, 4) == 1.38
    with pytest.raises(ValueError, match=r"no Shannon radius of He with charge \+1"):
        ionic_radius("He", 1, 6)
