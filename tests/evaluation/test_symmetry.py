"""Space groups and templates, by both backends, and the numbers made of them."""

from __future__ import annotations

import numpy as np
import pytest

from chem.convert import batch_from_arrays, from_structures
from chem.crystals import CrystalBatch
from evaluation.descriptors.symmetry import NOT_FOUND, _renamings, crystal_systems, symmetry, symmetry_health, template
from evaluation.protocols import CDVAE


@pytest.fixture(scope="module")
def known() -> CrystalBatch:
    """Two perovskites, one with its origin at the other metal, rock salt, diamond, and a crystal without symmetry."""
    from pymatgen.core import Lattice, Structure

    cubic, make = Lattice.cubic, Structure.from_spacegroup
    sites = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    odd = Structure(Lattice.from_parameters(4, 5, 6, 80, 95, 103), ["O", "H"], [[0, 0, 0], [0.3, 0.2, 0.1]])
    return from_structures(
        [
            make("Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], sites),
            make("Pm-3m", cubic(3.905), ["Ti", "Ba", "O"], [*sites[:2], [0.5, 0, 0]]),
            make("Fm-3m", cubic(5.64), ["Na", "Cl"], sites[:2]).get_primitive_structure(),
            make("Fd-3m", cubic(3.567), ["C"], sites[:1]),
            odd,
        ]
    )


@pytest.mark.parametrize("backend", ["spglib", "moyopy"])
def test_known_groups_and_templates(known, backend):
    pytest.importorskip(backend)
    found = symmetry(known, backend=backend)
    assert found.space_groups.tolist() == [221, 221, 225, 227, 1] and found.reasons == [""] * 5
    assert found.templates == ["221 a b c", "221 a b c", "225 a b", "227 a", "1 a a"]


def test_a_template_forgets_elements_and_origin():
    # perovskite with the anion on c or on d, either metal on either corner
    names = {
        template(221, np.array(z), letters, np.array([0, 1, 2, 2, 2]))
        for z in ([38, 22, 8, 8, 8], [8, 22, 38, 38, 38])
        for letters in (["a", "b", "c", "c", "c"], ["b", "a", "d", "d", "d"])
    }
    assert names == {"221 a b c"}
    assert template(221, np.array([8, 8, 22]), ["a", "b", "c"], np.array([0, 1, 2])) == "221 ab c"


def test_renamings_permute_the_letters():
    assert sorted(_renamings()) == list(range(1, 231))
    for first, *others in _renamings().values():
        assert all(old == new for old, new in first.items())
        assert all(sorted(table) == sorted(table.values()) == sorted(first) for table in others)
    swapped = _renamings()[221][1]  # the corner and the body centre of a cube change places, and all with them
    assert "abcdmn".translate(swapped) == "badcmn"


def test_noise_is_forgiven_up_to_the_tolerance(known):
    noise = np.random.default_rng(0).normal(0, 0.002, known["frac_coords"].shape)
    moved = known.replace(frac_coords=known["frac_coords"] + known["frac_coords"].new_tensor(noise))
    assert symmetry(moved[:3], 0.1).space_groups.tolist() == [221, 221, 225]
    assert (symmetry(moved[:3], 1e-4).space_groups < 221).all()


def test_shares_are_over_all_crystals(known):
    bad = batch_from_arrays(
        [np.array([14]), np.array([14, 14])],
        [np.full((1, 3), np.nan), np.zeros((2, 3))],
        [np.eye(3) * 4, np.eye(3) * 4],
    )
    from chem.ragged import concatenate

    found = symmetry(concatenate([known, bad]))
    assert "not a finite number" in found.reasons[5] and found.reasons[6] == NOT_FOUND
    assert found.space_groups[5:].tolist() == [0, 0] and found.templates[5:] == ["", ""]
    numbers = {n.name: n for n in symmetry_health(found, CDVAE, symmetry(known[:1]))}
    assert (numbers["p1@0.1"].hits, numbers["p1@0.1"].n) == (1, 7)
    assert (numbers["symmetric@0.1"].hits, numbers["symmetric@0.1"].n) == (4, 7)
    assert numbers["templates@0.1"].value == 4
    assert numbers["known_template@0.1"].hits == 2 and numbers["new_templates@0.1"].value == 3
    assert "spglib, symprec 0.1" in numbers["p1@0.1"].note and 0 < numbers["p1@0.1"].low < 1 / 7
    assert len(symmetry_health(found, CDVAE)) == 3


def test_bad_arguments(known):
    with pytest.raises(ValueError, match="^symprec = 0, allowed: a positive"):
        symmetry(known, 0)
    with pytest.raises(ValueError, match="^backend = 'findsym', allowed: spglib, moyopy$"):
        symmetry(known, backend="findsym")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference has symprec 0.01"):
        symmetry_health(symmetry(known), CDVAE, symmetry(known, 0.01))


def test_crystal_systems():
    groups = np.array([0, 1, 2, 3, 15, 16, 74, 75, 142, 143, 167, 168, 194, 195, 230])
    names = ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"]
    assert crystal_systems(groups).tolist() == ["unknown", *(name for name in names for _ in range(2))]


def test_real_crystals_are_symmetric_and_backends_agree(data_root):
    from chem import datasets

    batch = datasets.load("mp20", "val").batch[:100]
    found = symmetry(batch)
    assert (found.space_groups > 1).mean() > 0.95 and not any(found.reasons)
    pytest.importorskip("moyopy")
    assert (symmetry(batch, backend="moyopy").space_groups == found.space_groups).mean() > 0.9
