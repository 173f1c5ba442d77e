"""Relaxation on a toy with known minima: against finite differences, ASE, and each crystal on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chem.convert import from_ase, to_structures
from chem.crystals import CrystalBatch
from chem.lattice import volume
from chem.ragged import concatenate
from evaluation.relaxation.guards import Guards
from evaluation.relaxation.potentials import AsePotential, label
from evaluation.relaxation.relax import IDLE, RelaxationSettings, relax
from tests.evaluation.toys import FCC_PRIMITIVE, LennardJones, Spoiled, clusters, strained

EYE = torch.eye(3, dtype=torch.float64)
TIGHT = RelaxationSettings(fmax=1e-4, steps=2000)


def one(lattice, frac=((0.0, 0.0, 0.0),), numbers=None) -> CrystalBatch:
    frac = torch.tensor(frac, dtype=torch.float64)
    numbers = torch.tensor(numbers or [29] * len(frac))
    lattice = torch.as_tensor(lattice, dtype=torch.float64).reshape(1, 3, 3)
    return CrystalBatch([len(frac)], atomic_numbers=numbers, frac_coords=frac, lattice=lattice)


def fcc_minimum() -> tuple[float, float]:
    """Lowest energy per atom of the toy in fcc, and its nearest-neighbour distance, by a scan."""
    distance = torch.linspace(2.5, 3.1, 6001, dtype=torch.float64)
    n = len(distance)
    batch = CrystalBatch(
        [1] * n,
        atomic_numbers=torch.full((n,), 29),
        frac_coords=torch.zeros(n, 3, dtype=torch.float64),
        lattice=distance.reshape(-1, 1, 1) * 2**0.5 * FCC_PRIMITIVE,
    )
    energies = LennardJones()(batch).energies
    return float(energies.min()), float(distance[energies.argmin()])


def test_forces_and_stress_of_the_toy_are_derivatives():
    batch, toy, h = clusters([3, 1, 2]), LennardJones(), 1e-5
    _, forces, stress = toy(batch)
    for a in range(3):
        kick = torch.zeros(6, 3, dtype=torch.float64)
        kick[4, a] = h  # second crystal of three: the last atom but one of the batch
        frac = torch.linalg.inv(batch["lattice"])[batch["batch"]]
        up, down = (
            toy(batch.replace(frac_coords=batch["frac_coords"] + s * (kick.unsqueeze(1) @ frac).squeeze(1))).energies
            for s in (1, -1)
        )
        assert float(-(up - down)[2] / (2 * h)) == pytest.approx(float(forces[4, a]), abs=1e-7)
        for b in range(3):
            strain = torch.zeros(3, 3, dtype=torch.float64)
            strain[a, b] = h
            up, down = (toy(batch.replace(lattice=batch["lattice"] @ (EYE + s * strain))).energies for s in (1, -1))
            derivative = (up - down) / (2 * h) / volume(batch["lattice"])
            torch.testing.assert_close(derivative, stress[:, a, b], atol=1e-7, rtol=0)


def test_a_bad_fcc_cell_becomes_a_perfect_one():
    energy, distance = fcc_minimum()
    batch = strained(one(2.9 * 2**0.5 * FCC_PRIMITIVE), 0, 0.06)
    found = relax(batch, LennardJones(), TIGHT)
    assert bool(found.converged.all()) and found.reasons == [""] and not bool(found.failed.any())
    assert float(found.energies) == pytest.approx(energy, abs=1e-6) and float(found.initial_energies) > energy + 0.01
    (structure,) = to_structures(found.batch)
    assert structure.lattice.abc == pytest.approx([distance] * 3, abs=2e-3)
    assert structure.lattice.angles == pytest.approx([60] * 3, abs=0.05)


def test_relaxed_crystals_have_neither_force_nor_stress():
    batch = clusters([4, 1, 7, 2])
    found = relax(batch, LennardJones(), TIGHT)
    _, forces, stress = LennardJones()(found.batch)
    assert float(torch.linalg.vector_norm(forces, dim=-1).max()) < 1e-4
    virial = stress * (volume(found.batch["lattice"]) / batch["num_atoms"]).reshape(-1, 1, 1)
    assert float(torch.linalg.vector_norm(virial, dim=-1).max()) < 1e-4
    assert bool((found.energies < found.initial_energies).all())
    assert bool((found.batch["frac_coords"] >= 0).all() and (found.batch["frac_coords"] < 1).all())
    assert torch.equal(found.batch["atomic_numbers"], batch["atomic_numbers"])


@pytest.mark.parametrize("max_edges", [1, 300, 10**9])
def test_a_crystal_relaxes_in_company_as_it_does_alone(max_edges):
    batch = clusters([4, 1, 3, 2])
    together = relax(batch, LennardJones(), RelaxationSettings(fmax=0.01, max_edges=max_edges))
    for i, crystal in enumerate(batch):
        alone = relax(crystal, LennardJones(), RelaxationSettings(fmax=0.01))
        assert int(together.steps[i]) == int(alone.steps[0]) > 3
        torch.testing.assert_close(together.energies[i : i + 1], alone.energies, atol=1e-9, rtol=0)
        torch.testing.assert_close(together.batch[i]["lattice"], alone.batch["lattice"], atol=1e-8, rtol=0)
        gap = together.batch[i]["frac_coords"] - alone.batch["frac_coords"]
        torch.testing.assert_close(gap - gap.round(), torch.zeros_like(gap), atol=1e-8, rtol=0)


def test_rotating_a_crystal_rotates_its_relaxed_self():
    batch = clusters([4, 3])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    straight = relax(batch, LennardJones())
    turned = relax(batch.replace(lattice=batch["lattice"] @ turn), LennardJones())
    torch.testing.assert_close(turned.batch["lattice"], straight.batch["lattice"] @ turn, atol=1e-8, rtol=0)
    torch.testing.assert_close(turned.batch["frac_coords"], straight.batch["frac_coords"], atol=1e-8, rtol=0)


def test_arrived_crystals_make_room():
    batch = clusters([2] * 24)
    easy = relax(batch[:16], LennardJones(), replace(TIGHT, fmax=1e-3)).batch
    toy = LennardJones()
    found = relax(concatenate([easy, batch[16:]]), toy, replace(TIGHT, fmax=1e-3))
    assert bool(found.converged.all())
    assert toy.calls[0] == 24 and toy.calls[1] == 8, "16 had arrived before the first step"
    assert sum(toy.calls) <= (int(found.steps.sum()) + 24) / (1 - IDLE) + 1


def test_no_more_edges_on_the_way_than_allowed():
    batch, toy = clusters([4] * 6), LennardJones()
    relax(batch, toy, RelaxationSettings(max_edges=10**9))
    assert max(toy.calls) == 6
    toy.calls.clear()
    edges = 4 * 4 / volume(batch["lattice"]).min() * 4.19 * 5.5**3
    assert bool(relax(batch, toy, RelaxationSettings(max_edges=int(3.2 * edges))).converged.all())
    assert max(toy.calls) == 3
    toy.calls.clear()
    assert bool(relax(batch, toy, RelaxationSettings(max_edges=1)).converged.all())
    assert set(toy.calls) == {1}


def test_steps_are_counted_per_crystal():
    batch = clusters([3, 5, 2, 4])
    found = relax(batch, LennardJones(), replace(TIGHT, steps=7, max_edges=300))
    assert found.steps.tolist() == [7] * 4 and not bool(found.converged.any()) and not bool(found.failed.any())
    assert found.reasons == ["forces above 0.0001 eV/Å after 7 steps"] * 4
    torch.testing.assert_close(found.energies, LennardJones()(found.batch).energies)
    nothing = relax(batch, LennardJones(), replace(TIGHT, steps=0))
    torch.testing.assert_close(nothing.energies, LennardJones()(batch).energies)
    torch.testing.assert_close(nothing.batch["lattice"], batch["lattice"])


def test_a_held_cell_stays():
    batch = clusters([3, 5])
    found = relax(batch, LennardJones(), RelaxationSettings(fmax=0.005, cell=False))
    torch.testing.assert_close(found.batch["lattice"], batch["lattice"], atol=1e-13, rtol=0)
    assert bool(found.converged.all()) and bool((found.energies < found.initial_energies).all())
    free = relax(batch, LennardJones(), RelaxationSettings(fmax=0.005))
    assert bool((free.energies < found.energies).all())


def test_bad_crystals_fail_with_their_reason_and_stop_nobody():
    good = clusters([3])
    far, near = one(30 * EYE), one(8 * EYE, ((0, 0, 0), (0.02, 0.01, 0.0)))
    flat, nan = one(EYE * torch.tensor([3.0, 3.0, 1e-9], dtype=torch.float64)), one(EYE * float("nan"))
    own = one(EYE * torch.tensor([4.0, 4.0, 0.25], dtype=torch.float64))
    heavy = one(4 * EYE, numbers=[118])
    large = one(20 * EYE, frac=torch.rand(60, 3, generator=torch.Generator().manual_seed(0)).tolist())
    toy = LennardJones(elements=frozenset(range(1, 95)))
    batch = concatenate([far, near, good, flat, nan, own, heavy, large])
    found = relax(batch, toy, RelaxationSettings(guards=Guards(max_atoms=50)))
    assert found.converged.tolist() == [i == 2 for i in range(8)] == (~found.failed).tolist()
    words = ["no neighbour|without a neighbour", "two atoms at 0.179", "", "flat cell", "not a finite number"]
    words += ["two atoms at 0.250", "does not know Og", "60 atoms, more than 50"]
    for reason, word in zip(found.reasons, words, strict=True):
        assert (not reason) if not word else any(w in reason for w in word.split("|")), (reason, word)
    assert torch.isnan(found.energies).tolist() == found.failed.tolist()
    torch.testing.assert_close(found.energies[2:3], relax(good, LennardJones()).energies)
    torch.testing.assert_close(found.batch["lattice"][0], far["lattice"][0])


def test_potentials_that_go_wrong_on_the_way_are_caught():
    batch = clusters([3, 2, 2, 2, 4])
    numbers = batch["atomic_numbers"].clone()
    numbers[batch["ptr"][1:4]] = torch.tensor([2, 10, 18])
    batch = batch.replace(atomic_numbers=numbers)
    found = relax(batch, Spoiled(), RelaxationSettings(fmax=0.01))
    assert found.failed.tolist() == [False, True, True, True, False]
    assert found.reasons[1] == "the potential returned a number that is not finite" and int(found.steps[1]) == 0
    assert found.reasons[2] == "the volume changed by more than a factor of 5"
    assert found.reasons[3] == "the energy fell by more than 50 eV/atom"
    assert bool(torch.isfinite(found.batch["frac_coords"]).all())
    sound = relax(batch[[0, 4]], LennardJones(), RelaxationSettings(fmax=0.01))
    torch.testing.assert_close(found.energies[[0, 4]], sound.energies)


def test_crystals_that_collapse_on_the_way_fail():
    pair = one(8 * EYE, ((0, 0, 0), (0.037, 0.012, 0.0)))  # 0.311 Å apart
    sticky = LennardJones(epsilon=0.002, sigma=0.25)  # its minimum lies at 0.281 Å
    found = relax(pair, sticky, RelaxationSettings(fmax=0.001, cell=False))
    assert bool(found.failed) and int(found.steps) > 0
    assert found.reasons[0].startswith("two atoms at 0.28") and found.reasons[0].endswith("when relaxed")


def test_empty_batches_and_empty_crystals():
    batch = clusters([2])
    assert len(relax(batch[[]], LennardJones()).energies) == 0
    hollow = CrystalBatch(
        [0, 2],
        atomic_numbers=batch["atomic_numbers"],
        frac_coords=batch["frac_coords"],
        lattice=torch.cat([4 * EYE.unsqueeze(0), batch["lattice"]]),
    )
    found = relax(hollow, LennardJones())
    assert found.reasons == ["no atoms", ""] and found.converged.tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fmax": 0.0}, "fmax = 0.0, allowed: a positive number"),
        ({"steps": -1}, "steps = -1, allowed: 0 or more"),
        ({"symprec": -0.1}, "symprec = -0.1, allowed: a positive number"),
        ({"max_edges": 0}, "max_edges = 0, allowed: a positive number"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        RelaxationSettings(**change)
    with pytest.raises(ValueError, match="volume_factor = 1"):
        Guards(volume_factor=1)


def rumpled_copper():
    from ase.build import bulk

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell @ [[1.02, 0.01, 0.0], [0.0, 0.98, 0.02], [0.0, 0.0, 1.01]], scale_atoms=True)
    return atoms


def test_ase_calculators_plug_in_and_end_where_ase_ends():
    from ase.calculators.emt import EMT
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    potential = AsePotential(EMT(), "emt", "ase")
    assert label(potential) == "emt ase" and potential.correction == "none"
    found = relax(from_ase([rumpled_copper()]), potential, RelaxationSettings(fmax=0.01))
    assert found.potential == "emt ase" and bool(found.converged[0])
    atoms = rumpled_copper()
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=500)
    assert float(found.energies[0]) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert float(volume(found.batch["lattice"])[0]) == pytest.approx(atoms.get_volume(), rel=2e-3)


def test_stress_of_a_calculator_is_the_derivative_by_strain():
    from ase.calculators.emt import EMT

    batch, potential, h = from_ase([rumpled_copper()]), AsePotential(EMT(), "emt", "ase"), 1e-5
    stress = potential(batch).stress
    for a, b in ((0, 0), (0, 1), (2, 1)):
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[a, b] = h
        up, down = (potential(batch.replace(lattice=batch["lattice"] @ (EYE + s * strain))).energies for s in (1, -1))
        derivative = float((up - down) / (2 * h) / volume(batch["lattice"]))
        assert float(stress[0, a, b]) == pytest.approx(derivative, abs=1e-6)


def test_a_calculator_that_raises_fails_that_crystal_alone():
    from ase.calculators.emt import EMT

    iron = from_ase([rumpled_copper()])
    iron = iron.replace(atomic_numbers=torch.full_like(iron["atomic_numbers"], 26))
    with pytest.warns(UserWarning, match="crystal 0: emt: .*Fe"):
        found = relax(concatenate([iron, from_ase([rumpled_copper()])]), AsePotential(EMT(), "emt", "ase"))
    assert found.reasons == ["the potential returned a number that is not finite", ""]
    known = AsePotential(EMT(), "emt", "ase", elements=frozenset({29}))
    assert relax(iron, known).reasons == ["emt does not know Fe"]


def test_a_calculator_without_stress_is_refused():
    from ase.calculators.calculator import Calculator

    class Blind(Calculator):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012

    with pytest.raises(ValueError, match="calculator = Blind, allowed: one that computes stress"):
        AsePotential(Blind(), "blind", "0")
