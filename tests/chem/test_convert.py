"""Crystals to and from pymatgen and ASE."""

import numpy as np
import pytest
import torch
from ase import Atoms
from pymatgen.core import DummySpecies, Lattice, Structure

from chem.convert import from_ase, from_structures, to_ase, to_structures

TRICLINIC = Lattice.from_parameters(3.1, 4.2, 5.3, 80, 100, 110)


@pytest.fixture
def structures() -> list[Structure]:
    first = Structure(TRICLINIC, ["Na", "Cl", "O"], [[0.1, 0.2, 0.3], [-0.25, 1.5, 0.9], [1.0, -1e-17, 0.5]])
    second = Structure(Lattice(TRICLINIC.matrix[[1, 0, 2]]), ["Fe3+", "S2-"], [[0, 0, 0], [0.4, 0.6, 0.8]])
    return [first, second]


def test_pymatgen_round_trip_keeps_order_cell_and_positions(structures: list[Structure]) -> None:
    batch = from_structures(structures)
    assert batch["num_atoms"].tolist() == [3, 2]
    assert batch["atomic_numbers"].tolist() == [11, 17, 8, 26, 16]
    assert batch["lattice"].dtype == batch["frac_coords"].dtype == torch.float64
    assert ((batch["frac_coords"] >= 0) & (batch["frac_coords"] < 1)).all()
    for before, after in zip(structures, to_structures(batch), strict=True):
        np.testing.assert_allclose(after.lattice.matrix, before.lattice.matrix, atol=0)
        assert [s.specie.Z for s in after] == [s.specie.Z for s in before]
        assert all(a.distance(b) < 1e-9 for a, b in zip(before, after, strict=True))


def test_lattice_rows_give_cartesian_positions_of_a_triclinic_cell(structures: list[Structure]) -> None:
    batch = from_structures(structures[1:])
    np.testing.assert_allclose(batch.pos.numpy(), structures[1].cart_coords, atol=1e-12)


def test_ase_round_trip(structures: list[Structure]) -> None:
    atoms = to_ase(from_structures(structures))
    np.testing.assert_allclose(atoms[1].cell[:], structures[1].lattice.matrix, atol=1e-12)
    np.testing.assert_allclose(atoms[1].positions, structures[1].cart_coords, atol=1e-12)
    back = from_ase(atoms)
    torch.testing.assert_close(back["frac_coords"], from_structures(structures)["frac_coords"], atol=1e-12, rtol=0)
    assert back["atomic_numbers"].tolist() == [11, 17, 8, 26, 16]


def test_no_structures_is_an_empty_batch() -> None:
    assert len(from_structures([])) == 0
    assert to_structures(from_structures([])) == []


def test_disordered_site_is_named(structures: list[Structure]) -> None:
    mixed = Structure(TRICLINIC, ["Na", {"Fe": 0.5, "Co": 0.5}], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"structure 2 .*site 1 .*disordered"):
        from_structures([*structures, mixed])
    partial = Structure(TRICLINIC, [{"Na": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structure 0 .*site 0"):
        from_structures([partial])


def test_dummy_species_is_named() -> None:
    with pytest.raises(ValueError, match="site 0 .*not a chemical element"):
        from_structures([Structure(TRICLINIC, [DummySpecies("X")], [[0, 0, 0]])])


def test_ase_without_a_periodic_cell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"atoms 1 \(H2\): pbc"):
        from_ase([Atoms("Cu", cell=[2, 2, 2], pbc=True), Atoms("H2", positions=np.eye(3)[:2])])


def test_missing_field_is_named(structures: list[Structure]) -> None:
    with pytest.raises(ValueError, match="lacks the field 'lattice'"):
        to_structures(from_structures(structures).without("lattice"))
