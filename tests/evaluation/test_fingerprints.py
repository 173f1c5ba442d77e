"""CrystalNN fingerprints: goldens, matminer's numbers, pymatgen's slow route, crystals without any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fingerprints import plain_fingerprint
from chem.convert import batch_from_arrays, from_structures, to_structures
from chem.crystals import CrystalBatch
from evaluation.descriptors import fingerprints
from evaluation.descriptors.fingerprints import structure_fingerprints, structure_names
from evaluation.descriptors.motifs import MOTIFS, order_parameters
from evaluation.descriptors.voronoi import voronoi_faces

FIXTURE = json.loads((Path(__file__).parents[1] / "data" / "crystalnn_matminer.json").read_text(encoding="utf-8"))


def one(numbers, frac, lattice) -> CrystalBatch:
    return batch_from_arrays([np.array(numbers)], [np.array(frac, dtype=float)], [np.array(lattice, dtype=float)])


def fixture() -> tuple[CrystalBatch, np.ndarray]:
    rows = FIXTURE["crystals"]
    columns = [[np.array(row[f]) for row in rows] for f in ("atomic_numbers", "frac_coords", "lattice")]
    means = np.array([[row["mean"].get(name, 0.0) for name in FIXTURE["columns"]] for row in rows])
    return batch_from_arrays(*columns), means


@pytest.fixture(scope="module")
def simple() -> CrystalBatch:
    """SrTiO3, NaCl, diamond, BaTiO3."""
    from pymatgen.core import Lattice, Structure

    def cubic(group, a, species, frac):
        return Structure.from_spacegroup(group, Lattice.cubic(a), species, frac).get_primitive_structure()

    perovskite = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    return from_structures(
        [
            cubic("Pm-3m", 3.905, ["Sr", "Ti", "O"], perovskite),
            cubic("Fm-3m", 5.64, ["Na", "Cl"], perovskite[:2]),
            cubic("Fd-3m", 3.567, ["C"], perovskite[:1]),
            cubic("Pm-3m", 4.0, ["Ba", "Ti", "O"], perovskite),
        ]
    )


def test_goldens_of_the_field(simple):
    found = structure_fingerprints(simple).values
    expected: list[dict[str, float]] = [
        {"wt CN_2": 0.3105, "linear CN_2": 0.3105, "wt CN_6": 0.4895, "octahedral CN_6": 0.4895, "wt CN_12": 0.2}
        | {"cuboctahedral CN_12": 0.2, "q6 CN_12": 0.1149, "q4 CN_12": 0.0382},
        {"wt CN_6": 1.0, "octahedral CN_6": 1.0, "pentagonal pyramidal CN_6": 0.5, "hexagonal planar CN_6": 0.2001},
        {"wt CN_4": 1.0, "tetrahedral CN_4": 1.0},
    ]
    for row, values in zip(found, expected, strict=False):
        named = dict(zip(structure_names(), row, strict=True))
        assert {name: named[name] for name in values} == pytest.approx(values, abs=6e-5)
        weights = [value for name, value in named.items() if name.startswith("wt")]
        assert sum(weights) == pytest.approx(1.0)
    distance = np.linalg.norm(found[:, None] - found, axis=-1)
    assert distance[0, 1] == pytest.approx(0.94106, abs=5e-6)
    assert distance[1, 2] == pytest.approx(2.10035, abs=5e-6)
    assert distance[0, 3] == pytest.approx(0.00438, abs=5e-6)


def test_every_column_equals_matminer():
    batch, expected = fixture()
    found = structure_fingerprints(batch)
    assert structure_names() == FIXTURE["columns"] and len(structure_names()) == 61
    assert found.valid.all()
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    # the fixture meets every column but those of impossibly many bonds
    never = [name for name, column in zip(structure_names(), expected.T, strict=True) if not column.any()]
    assert never == ["wt CN_21", "wt CN_22", "wt CN_23", "wt CN_24"]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.floats(-0.6, 0.6), min_size=9, max_size=9),
    st.floats(1.0, 2.2),
    st.integers(0, 2**31),
)
def test_triclinic_cells_equal_the_slow_route(n, skew, size, seed):
    rng = np.random.default_rng(seed)
    lattice = size * (10 * n) ** (1 / 3) * (np.eye(3) + np.array(skew).reshape(3, 3) * 0.5)
    batch = one(rng.integers(1, 95, n), rng.random((n, 3)), lattice)
    found = structure_fingerprints(batch)
    try:
        expected = plain_fingerprint(to_structures(batch)[0])
    except (RuntimeError, ValueError, IndexError):
        assert not found.valid[0]
    else:
        np.testing.assert_allclose(found.values[0], expected, atol=1e-6)


def test_faces_close_a_cell_and_share_out_the_volume():
    batch, _ = fixture()
    faces, failed = voronoi_faces(batch)
    assert not failed
    atoms = len(batch["atomic_numbers"])
    angle = torch.zeros(atoms).double().index_add(0, faces.site, faces.angle)
    np.testing.assert_allclose(angle, 4 * np.pi, atol=1e-9)
    # the true cells fill the unit cell; the cut-off of 7 Å can leave some too large, in sparse crystals alone
    cones = torch.zeros(atoms).double().index_add(0, faces.site, faces.area * faces.vector.norm(dim=-1) / 6)
    filled = batch.rows("atomic_numbers").mean(cones) * batch["num_atoms"] / torch.linalg.det(batch["lattice"]).abs()
    assert (filled > 1 - 1e-9).all() and (filled < 1 + 1e-9).float().mean() > 0.9


def test_cell_choice_rotation_order_and_company_change_nothing():
    batch, expected = fixture()
    batch = batch[40:52]
    steps = torch.tensor([[1, 0, 0], [2, 1, 0], [-1, 3, 1]]).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())[0]
    frac = batch["frac_coords"] @ torch.linalg.inv(steps) + 0.3
    other = batch.replace(lattice=steps @ batch["lattice"] @ turn, frac_coords=frac - frac.floor())
    np.testing.assert_allclose(structure_fingerprints(other).values, expected[40:52], atol=1e-6)
    alone = np.concatenate([structure_fingerprints(part).values for part in batch])
    np.testing.assert_allclose(alone, expected[40:52], atol=1e-6)


def test_chunks_change_nothing(monkeypatch):
    batch, expected = fixture()
    monkeypatch.setattr(fingerprints, "ATOMS_AT_ONCE", 5)
    np.testing.assert_allclose(structure_fingerprints(batch[:20]).values, expected[:20], atol=1e-6)


def test_perfect_motifs_score_one():
    angle = 2 * np.pi * np.arange(6) / 6
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    axis = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    square = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0.0]])
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    cube = np.array([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)]) / np.sqrt(3)
    fcc = np.array([[x, y, 0] for x in (1, -1) for y in (1, -1)]) / np.sqrt(2)
    fcc = np.concatenate([fcc, np.roll(fcc, 1, 1), np.roll(fcc, 2, 1)])
    for name, bonds in {
        "linear": axis,
        "trigonal planar": ring[::2],
        "square co-planar": square,
        "tetrahedral": tetrahedron,
        "trigonal bipyramidal": np.concatenate([ring[::2], axis]),
        "square pyramidal": np.concatenate([square, axis[:1]]),
        "octahedral": np.concatenate([square, axis]),
        "hexagonal planar": ring,
        "hexagonal pyramidal": np.concatenate([ring, axis[:1]]),
        "body-centered cubic": cube,
        "hexagonal bipyramidal": np.concatenate([ring, axis]),
        "cuboctahedral": fcc,
    }.items():
        values = order_parameters(torch.from_numpy(bonds)[None])[0]
        named = dict(zip(MOTIFS[len(bonds)], values.tolist(), strict=True))
        assert named[name] == pytest.approx(1.0, abs=0.03), name
    assert named["q6"] == pytest.approx(0.57452, abs=1e-5)


def test_crystals_without_fingerprint_have_a_reason_and_stop_nobody():
    good = np.eye(3) * 4.0
    cases = [
        ([14], [[0, 0, 0]], good, ""),
        ([14, 8], [[0, 0, 0], [0, 0, 0]], good, "two atoms in one place"),
        ([14], [[0, np.nan, 0]], good, "coordinate"),
        ([], np.zeros((0, 3)), good, "no atoms"),
        ([14], [[0, 0, 0]], np.zeros((3, 3)), "volume"),
        ([118], [[0, 0, 0]], good, "covalent radius"),
        ([200], [[0, 0, 0]], good, "atomic number"),
        ([2, 10], [[0, 0, 0], [0.5, 0.5, 0.5]], good, ""),
        ([14], [[0, 0, 0]], -good, ""),
        ([14] * 2001, np.random.default_rng(0).random((2001, 3)), good * 10, "more than 2000 atoms"),
    ]
    columns = [[np.array(case[i], dtype=float if i else int) for case in cases] for i in range(3)]
    found = structure_fingerprints(batch_from_arrays(*columns))
    for reason, values, (*_, expected) in zip(found.reasons, found.values, cases, strict=True):
        assert bool(reason) == bool(expected) and expected in reason
        assert np.isnan(values).all() if expected else np.isfinite(values).all()
    assert structure_fingerprints(batch_from_arrays([], [], [])).values.shape == (0, 61)


def test_a_slab_looks_beyond_the_first_cutoff():
    slab = one([6, 6], [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]], [[2.46, 0, 0], [-1.23, 2.13, 0], [0, 0, 30.0]])
    found = structure_fingerprints(slab)
    np.testing.assert_allclose(found.values[0], plain_fingerprint(to_structures(slab)[0]), atol=1e-6)
    assert dict(zip(structure_names(), found.values[0], strict=True))["trigonal planar CN_3"] > 0.9


def test_real_crystals_equal_the_slow_route(data_root):
    from chem import datasets

    batch = datasets.load("mp20", "val").batch[100:110]
    expected = [plain_fingerprint(structure) for structure in to_structures(batch)]
    np.testing.assert_allclose(structure_fingerprints(batch).values, expected, atol=1e-6)


@pytest.mark.gpu
def test_the_accelerator_gives_the_same():
    batch, expected = fixture()
    np.testing.assert_allclose(structure_fingerprints(batch.to("cuda")).values, expected, atol=1e-6)
    np.testing.assert_allclose(structure_fingerprints(batch, "cuda").values, expected, atol=1e-6)
