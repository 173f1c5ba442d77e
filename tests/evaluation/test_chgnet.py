"""CHGNet as a potential: equal to the predictions of its package, whatever is batched or reused."""

from __future__ import annotations

import sys

import pytest
import torch

from chem import datasets
from chem.convert import from_structures, to_structures
from chem.crystals import CrystalBatch
from chem.lattice import volume
from chem.ragged import concatenate
from evaluation.relaxation.bond_graph import bond_graph, candidates, still_complete
from evaluation.relaxation.chgnet_potential import CHGNetPotential
from evaluation.relaxation.potentials import label
from evaluation.relaxation.relax import RelaxationSettings, relax
from tests.evaluation.toys import clusters, strained

GPA = 160.21766208


def needs_chgnet() -> None:
    pytest.importorskip("chgnet", reason="chgnet is not installed: it comes with the extra 'stability'")


@pytest.fixture(scope="module")
def batch():
    """Perturbed prototypes of several sizes, and skewed cells."""
    prototypes = datasets.load("prototypes", "val").batch
    prototypes = prototypes[prototypes["num_atoms"] <= 12]
    known = prototypes.select(torch.argsort(prototypes["num_atoms"], stable=True)[:: len(prototypes) // 6])
    plain = type(known)(known["num_atoms"], **{k: known[k] for k in ("atomic_numbers", "frac_coords", "lattice")})
    return strained(concatenate([plain.to(torch.float64), clusters([4, 1]), clusters([2], 3.4)]), 0.1, 0.03)


@pytest.fixture(scope="module")
def theirs(batch):
    """Energies in eV, forces in eV/Å and stresses in eV/Å^3 of the package itself, one crystal at a time."""
    needs_chgnet()
    from chgnet.model import CHGNet

    model = CHGNet.load(use_device="cpu", verbose=False)
    found = [model.predict_structure(structure, task="efs") for structure in to_structures(batch)]
    energies = torch.tensor([float(one["e"]) for one in found]) * batch["num_atoms"]
    forces = torch.cat([torch.from_numpy(one["f"]) for one in found])
    return energies, forces, torch.stack([torch.from_numpy(one["s"]) for one in found]) / GPA


@pytest.fixture(scope="module")
def double():
    needs_chgnet()
    return CHGNetPotential(dtype=torch.float64)


def test_equal_to_the_package(batch, theirs):
    potential = CHGNetPotential()
    assert label(potential) == "chgnet 0.3.0" and potential.correction == "MP2020" and potential.cutoff == 6.0
    found = potential(batch)
    largest = float(theirs[1].abs().max())
    atoms = batch["num_atoms"]
    torch.testing.assert_close(found.energies / atoms, theirs[0].double() / atoms, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.forces, theirs[1].double(), atol=1e-5 * max(largest, 1), rtol=1e-5)
    torch.testing.assert_close(found.stress, theirs[2].double(), atol=1e-5, rtol=1e-5)


def test_graphs_are_those_of_the_package(batch, double):
    converter = double.network.model.graph_converter
    graph = bond_graph(candidates(batch, 7.0), batch, 6.0, 3.0)
    angles = torch.bincount(batch["batch"][graph.centre], minlength=len(batch))
    pairs = torch.bincount(graph.structure, minlength=len(batch))
    for i, structure in enumerate(to_structures(batch)):
        one = converter(structure)
        assert (2 * int(pairs[i]), int(angles[i])) == (len(one.atom_graph), len(one.bond_graph))
    assert int(angles.sum()) > 500 and 0 in angles


def test_forces_and_stress_are_derivatives(double):
    batch, h = clusters([3, 2]), 1e-5
    _, forces, stress = double(batch)
    eye = torch.eye(3, dtype=torch.float64)
    for a, b in ((0, 0), (1, 2), (2, 1)):
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[a, b] = h
        up, down = (double(batch.replace(lattice=batch["lattice"] @ (eye + s * strain))).energies for s in (1, -1))
        # the composition part of an energy is float32 in the package, but cancels here
        torch.testing.assert_close(
            (up - down) / (2 * h) / volume(batch["lattice"]), stress[:, a, b], atol=1e-7, rtol=1e-5
        )
    kick = torch.zeros_like(batch["frac_coords"])
    kick[1] = torch.tensor([1e-6, -2e-6, 1e-6])
    cartesian = (kick.unsqueeze(1) @ batch["lattice"][batch["batch"]]).squeeze(1)
    up, down = (double(batch.replace(frac_coords=batch["frac_coords"] + s * kick)).energies[0] for s in (1, -1))
    assert float(up - down) / 2 == pytest.approx(-float((forces * cartesian).sum()), rel=1e-4)


def test_alone_and_in_a_batch(batch, double):
    together = double(batch)
    for i, crystal in enumerate(batch):
        alone, rows = double(crystal), batch["batch"] == i
        torch.testing.assert_close(alone.energies, together.energies[i : i + 1], atol=1e-10, rtol=0)
        torch.testing.assert_close(alone.forces, together.forces[rows], atol=1e-9, rtol=0)
        torch.testing.assert_close(alone.stress, together.stress[i : i + 1], atol=1e-9, rtol=0)


def test_reused_topology_changes_nothing(batch, double):
    double(batch)
    listed = double._known
    moved = strained(batch, 0.05, 0.005, seed=5)
    moved = moved.replace(
        frac_coords=batch["frac_coords"] + (moved["frac_coords"] - batch["frac_coords"] + 0.5) % 1 - 0.5
    )
    warm = double(moved)
    assert double._known is listed, "the skin covers such a step"
    fresh = CHGNetPotential(dtype=torch.float64, skin=0.0)(moved)
    for ours, exact in zip(warm, fresh, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-9, rtol=0)
    double(strained(batch, 0.6, 0.1))
    assert double._known is not listed


@pytest.mark.parametrize("seed", range(6))
def test_a_list_called_complete_is_complete(seed):
    """Steps of every size: whenever the list is trusted, it holds all pairs of the moved crystals."""
    start = clusters([3, 1, 5], seed=seed)
    known, trusted = candidates(start, 5.5), 0
    for sigma, strain in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.03), (0.1, 0.02), (0.15, 0.01), (0.4, 0.2)):
        moved = strained(start, sigma, strain, seed=10 + seed)
        moved = moved.replace(
            frac_coords=start["frac_coords"] + (moved["frac_coords"] - start["frac_coords"] + 0.5) % 1 - 0.5
        )
        if still_complete(known, moved, 5.0):
            trusted += 1
            ours = bond_graph(known, moved, 5.0, 3.0)
            exact = bond_graph(candidates(moved, 5.0), moved, 5.0, 3.0)
            assert ours.pairs.shape == exact.pairs.shape and ours.first.shape == exact.first.shape
            assert ours.short == exact.short
            torch.testing.assert_close(ours.vectors.norm(dim=1).sort().values, exact.vectors.norm(dim=1).sort().values)
    assert 2 <= trusted < 6
    assert not still_complete(known, start[:2], 5.0)


def test_magnesium_oxide_is_on_the_corrected_scale():
    """-3.04 eV/atom with the Materials Project's O2: an uncorrected scale would sit 0.34 eV/atom higher."""
    needs_chgnet()
    from pymatgen.core import Lattice, Structure

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.3), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    metal = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.2, 5.2), ["Mg"], [[1 / 3, 2 / 3, 0.25]])
    batch = from_structures([salt.get_primitive_structure(), metal])
    found = relax(batch, CHGNetPotential(), RelaxationSettings(fmax=0.02))
    oxide, magnesium = (found.energies / batch["num_atoms"]).tolist()
    assert oxide - (magnesium - 4.94795546875) / 2 == pytest.approx(-3.04, abs=0.01)
    assert float(volume(found.batch["lattice"])[0]) ** (1 / 3) * 4 ** (1 / 3) == pytest.approx(4.24, abs=0.02)


def test_relaxed_like_the_package_relaxes():
    needs_chgnet()
    from chgnet.model import StructOptimizer
    from pymatgen.core import Lattice, Structure

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.7), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    cesium = Structure(Lattice.cubic(4.2), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    batch = strained(from_structures([salt.get_primitive_structure(), cesium]), 0.05, 0.02)
    found = relax(batch, CHGNetPotential(), RelaxationSettings(fmax=0.03))
    assert bool(found.converged.all())
    for energy, structure in zip(found.energies.tolist(), to_structures(batch), strict=True):
        path = StructOptimizer(use_device="cpu").relax(structure, fmax=0.03, verbose=False)["trajectory"]
        assert energy / len(structure) == pytest.approx(float(path.energies[-1]) / len(structure), abs=1e-3)


def test_other_scales_and_unknown_versions():
    needs_chgnet()
    assert CHGNetPotential("r2scan").correction == "r2SCAN"
    with pytest.raises(ValueError, match=r"version = '0\.1', allowed: 0\.3\.0, r2scan"):
        CHGNetPotential("0.1")
    with pytest.raises(ValueError, match="skin = -1"):
        CHGNetPotential(skin=-1)


def test_edge_cases(batch, double):
    cell = 30 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    lone = CrystalBatch([1], atomic_numbers=torch.tensor([29]), frac_coords=torch.zeros(1, 3), lattice=cell)
    found = double(lone)
    assert bool(torch.isfinite(found.energies)) and not bool(found.forces.any()) and not bool(found.stress.any())
    empty = double(batch[[]])
    assert [tuple(x.shape) for x in empty] == [(0,), (0, 3), (0, 3, 3)]
    with pytest.raises(ValueError, match="atomic_numbers holds 95, allowed: 1 to 94"):
        double(lone.replace(atomic_numbers=torch.tensor([95])))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "chgnet.model", None)
    with pytest.raises(ImportError, match=r"pip install atomsmith\[stability\]"):
        CHGNetPotential()
