"""Hard controls: every control on every Denoiser, digits of what is given, what contradicts itself, and the choice of
elements. A model joins by one line in `DENOISERS`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pymatgen.core import Lattice, Structure
from torch import Tensor

from chem import datasets
from chem.convert import to_structures
from chem.crystals import CrystalBatch
from chem.lattice import from_log_strain, to_log_strain, volume
from chem.statistics import Statistics
from generative.control_cells import scale_to_volume
from generative.controls import EXCLUSIVE, Controls
from generative.decoding import assign_elements, carry_given, choose_elements, element_mask
from generative.generator import Denoiser, Times
from generative.models import crysbfn, diffcsp, flowmm
from generative.noise import UnitStreams
from generative.sampling import sample_batches
from generative.templates import CrystalTemplates
from tests.generative.stubs import BayesianFlow, LinearFlow, LinearNetwork, TorusFlow

N = 1000
LATTICE = Lattice.from_parameters(4.1, 5.3, 6.7, 81, 97, 103)
SITES = [[0.0, 0.0, 0.0], [1 - 1e-9, 0.5, 1 / 3], [-0.25, 1.0, 0.7], [0.1, 0.2, 0.3]]
HOST = Structure(LATTICE, ["Na", "Cl", "O", "Ti"], SITES)
LEFT_HANDED = [[1.0, 4.0, 0.3], [5.0, 1.5, 0.1], [0.2, 0.4, 6.1]]


@cache
def statistics() -> Statistics:
    """Of the built-in prototypes."""
    return Statistics.compute(datasets.load("prototypes", "train").batch)


def tiny_diffcsp(task: str) -> Denoiser:
    config = diffcsp.DiffCSPConfig(task=task, hidden=16, layers=1, frequencies=4, time_dim=16)  # type: ignore[arg-type]
    return diffcsp.build(config, statistics())


def tiny_flowmm(task: str) -> Denoiser:
    config = flowmm.FlowMMConfig(task=task, hidden=16, layers=1, frequencies=4, time_dim=16)  # type: ignore[arg-type]
    return flowmm.build(config, statistics())


def tiny_crysbfn(task: str) -> Denoiser:
    sizes: dict[str, Any] = dict(hidden=16, layers=1, frequencies=4, time_dim=16)
    return crysbfn.build(crysbfn.CrysBFNConfig(task=task, **sizes), statistics())  # type: ignore[arg-type]


def one_hot_types(batch: CrystalBatch) -> CrystalBatch:
    if "atomic_numbers" not in batch.fields:
        return batch
    types = F.one_hot(batch["atomic_numbers"] - 1, 100).float()
    return carry_given(batch.replace(types=types), "atomic_numbers", "types")


def stub_flow() -> Denoiser:
    """Flows, with the lattice in a field of the model's own, which forgets its orientation."""

    def encode(batch: CrystalBatch) -> CrystalBatch:
        lattice = batch.fields.get("lattice", torch.eye(3).expand(len(batch), 3, 3))
        batch = batch.attach("structure", cell=to_log_strain(lattice))
        return one_hot_types(carry_given(batch, "lattice", "cell"))

    def decode(batch: CrystalBatch) -> CrystalBatch:
        numbers = choose_elements(batch["types"], batch, element_mask(statistics()))
        return batch.replace(lattice=from_log_strain(batch["cell"]), atomic_numbers=numbers)

    processes = {"frac_coords": TorusFlow(), "cell": LinearFlow((6,)), "types": LinearFlow((100,))}
    network = LinearNetwork({"frac_coords": 3, "cell": 6, "types": 100})
    return Denoiser(network, processes, Times(), 10, encode=encode, decode=decode)


def stub_beliefs() -> Denoiser:
    """Bayesian flows of lattice and elements, whose states are not noisy data."""

    def decode(batch: CrystalBatch) -> CrystalBatch:
        return batch.replace(atomic_numbers=choose_elements(batch["types"], batch, element_mask(statistics())))

    processes = {"frac_coords": TorusFlow(), "lattice": BayesianFlow((3, 3)), "types": BayesianFlow((100,))}
    network = LinearNetwork({"frac_coords": 3, "lattice": 9, "types": 100})
    return Denoiser(network, processes, Times(), 10, encode=one_hot_types, decode=decode)


# name: (builder, whether the composition is given)
DENOISERS: dict[str, tuple[Callable[[], Denoiser], bool]] = {
    "diffcsp-csp": (lambda: tiny_diffcsp("csp"), True),
    "diffcsp-ab-initio": (lambda: tiny_diffcsp("ab-initio"), False),
    "flowmm-csp": (lambda: tiny_flowmm("csp"), True),
    "flowmm-ab-initio": (lambda: tiny_flowmm("ab-initio"), False),
    "crysbfn-csp": (lambda: tiny_crysbfn("csp"), True),
    "crysbfn-ab-initio": (lambda: tiny_crysbfn("ab-initio"), False),
    "stub-flow": (stub_flow, False),
    "stub-beliefs": (stub_beliefs, False),
}
CSP = [name for name, (_, given) in DENOISERS.items() if given]
DE_NOVO = [name for name in DENOISERS if name not in CSP]


@cache
def denoiser(name: str) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DENOISERS[name][0]()


def templates(name: str, seed: int = 0, **asked: Any) -> CrystalTemplates:
    return CrystalTemplates(Controls.read(**asked), denoiser(name), statistics(), seed)


def sample(name: str, n: int = N, steps: int = 2, seed: int = 0, size: int = 256, **asked: Any) -> CrystalBatch:
    """Samples as the front door makes them, before they become pymatgen structures."""
    from chem.ragged import concatenate

    made = sample_batches(denoiser(name), templates(name, seed, **asked), n, 0, size, steps, seed)
    keep = ("atomic_numbers", "frac_coords", "lattice")
    return concatenate([b.without(*(b.fields.keys() - set(keep))) for _, b in made])


def numbers(*symbols: str) -> list[int]:
    from pymatgen.core import Element

    return [Element(s).Z for s in symbols]


def compositions(made: CrystalBatch) -> list[list[int]]:
    return [part.tolist() for part in made["atomic_numbers"].split(made["num_atoms"].tolist())]


def has_formula(made: CrystalBatch) -> bool:
    return all(c == numbers("Na", "Na", "Ti", "O", "O", "O") for c in compositions(made))


def has_elements(made: CrystalBatch) -> bool:
    return set(made["atomic_numbers"].tolist()) <= set(numbers("Li", "O", "Ti"))


def has_system(made: CrystalBatch) -> bool:
    return all(set(c) == set(numbers("Li", "K", "Ti", "O")) for c in compositions(made))


def lacks_forbidden(made: CrystalBatch) -> bool:
    return not set(made["atomic_numbers"].tolist()) & set(numbers("F", "Cl", "Br", "I", "O"))


def has_sizes(*allowed: int) -> Callable[[CrystalBatch], bool]:
    return lambda made: set(made["num_atoms"].tolist()) == set(allowed)


def has_lattice(matrix: Any) -> Callable[[CrystalBatch], bool]:
    return lambda made: bool((made["lattice"] == torch.tensor(np.array(matrix))).all())


def has_volume(made: CrystalBatch) -> bool:
    return float((torch.linalg.det(made["lattice"]).abs() / 123.4 - 1).abs().max()) < 1e-9


def has_fixed(made: CrystalBatch) -> bool:
    """Sites 2 and 1 of HOST, in this order, in every digit."""
    place = torch.arange(len(made["batch"])) - made["ptr"][:-1][made["batch"]]
    ok = bool((made["num_atoms"] >= 2).all())
    for i, site in enumerate((2, 1)):
        rows = place == i
        ok &= bool((made["frac_coords"][rows] == torch.tensor(SITES[site], dtype=torch.float64)).all())
        ok &= bool((made["atomic_numbers"][rows] == HOST.atomic_numbers[site]).all())
    return ok


FIXED: dict[str, Any] = {"fixed": (HOST, [2, 1])}
SYSTEM = {"chemical_system": "Li-K-Ti-O", "num_atoms": {4: 0.5, 6: 0.5}}
CSP_CASES: dict[str, tuple[dict[str, Any], tuple[Callable[[CrystalBatch], bool], ...]]] = {
    "formula": ({"formula": "NaTi0.5O1.5", "z": 2}, (has_formula,)),
    "forbid": ({"formula": "Na2S", "forbid": "F,Cl,Br,I,O"}, (lacks_forbidden,)),
    "lattice": ({"formula": "NaCl", "lattice": LEFT_HANDED}, (has_lattice(LEFT_HANDED),)),
    "volume": ({"formula": "NaCl", "volume": 123.4}, (has_volume,)),
    "fixed": ({"formula": "NaClO", **FIXED}, (has_fixed, has_sizes(3))),
    "fixed lattice": ({"formula": "TiO2Cl", **FIXED, "lattice": LATTICE}, (has_fixed, has_lattice(LATTICE.matrix))),
    "init": ({"init": HOST, "noise": 0.4, "volume": 123.4}, (has_sizes(4), has_volume)),
    "init fixed": ({"init": HOST, "noise": 1, **FIXED}, (has_fixed, has_sizes(4))),
}
DE_NOVO_CASES: dict[str, tuple[dict[str, Any], tuple[Callable[[CrystalBatch], bool], ...]]] = {
    "number": ({"num_atoms": 3}, (has_sizes(3),)),
    "range": ({"num_atoms": (2, 4)}, (has_sizes(2, 3, 4),)),
    "histogram": ({"num_atoms": {2: 0.9, 3: 0, 5: 0.1}}, (has_sizes(2, 5),)),
    "elements": ({"num_atoms": 4, "elements": ["Li", "O", "Ti"]}, (has_elements,)),
    "chemical_system": (SYSTEM, (has_system, has_sizes(4, 6))),
    "forbid": ({"num_atoms": 4, "forbid": ["F", "Cl", "Br", "I", "O"]}, (lacks_forbidden,)),
    "lattice": ({"num_atoms": 2, "lattice": LEFT_HANDED}, (has_lattice(LEFT_HANDED),)),
    "volume": ({"num_atoms": 3, "volume": 123.4}, (has_volume,)),
    "fixed": ({"num_atoms": 4, **FIXED}, (has_fixed, has_sizes(4))),
    "fixed system": (
        {"num_atoms": 4, **FIXED, "chemical_system": "O-Cl-Na-Ti", "volume": 123.4},
        (has_fixed, has_volume),
    ),
    "init": ({"init": HOST, "noise": 0.3, "elements": "Li,O,Ti"}, (has_sizes(4), has_elements)),
    "init fixed": ({"init": HOST, "noise": 0.5, **FIXED, "lattice": LATTICE}, (has_fixed, has_lattice(LATTICE.matrix))),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [*itertools.product(CSP, CSP_CASES), *itertools.product(DE_NOVO, DE_NOVO_CASES)],
)
def test_every_one_of_a_thousand_samples_adheres(name, case):
    asked, checks = (CSP_CASES if name in CSP else DE_NOVO_CASES)[case]
    made = sample(name, **asked)
    assert len(made) == N and all(check(made) for check in checks)


def test_every_control_has_a_case():
    asked = set().union(*(case.keys() for case, _ in [*CSP_CASES.values(), *DE_NOVO_CASES.values()]))
    assert asked == {f for f in Controls.__dataclass_fields__}


SHARP = Lattice([[4.0, 0.1, 0.3], [7.7, 1.3, 0.0], [0.4, 0.2, 5.5]])


@pytest.mark.parametrize("name", ["flowmm-csp", "flowmm-ab-initio"])
def test_a_cell_that_the_model_cannot_hold_is_reduced_for_the_loop_alone(name):
    """Sites that start from a structure and are hardly noised lie where they were, in the cell they were given in."""
    start = Structure(SHARP, ["Na", "Cl"], [[0.1, 0.2, 0.3], [0.6, 0.9, 0.4]])
    plan = templates(name, init=start, noise=0.5)
    template = plan.template([2, 2])
    assert float(template["lattice"][0].norm(dim=1).max()) < 6
    expected, found = start.lattice.matrix, plan.restore(template)
    np.testing.assert_allclose(found["lattice"][0], expected, atol=1e-9)
    np.testing.assert_allclose(found["frac_coords"][:2], start.frac_coords, atol=1e-9)
    gap = template["frac_coords"][:2] @ template["lattice"][0] - torch.tensor(start.cart_coords)
    whole = gap @ torch.linalg.inv(template["lattice"][0])
    assert float((whole - whole.round()).abs().max()) < 1e-9, "the same atoms, up to lattice vectors"
    given = sample(name, 16, lattice=SHARP, **({"formula": "NaCl"} if name in CSP else {"num_atoms": 2}))
    assert np.array_equal(given["lattice"][3].numpy(), SHARP.matrix)


@pytest.mark.parametrize("options", [{"lattice": "log-strain"}, {"lattice": "matrix"}, {"assign": True}], ids=str)
@pytest.mark.parametrize("task", ["csp", "ab-initio"])
def test_other_cells_and_assigned_noise_obey_as_well(task, options, monkeypatch):
    """FlowMM's options, under the controls that meet them: a cell that is kept, a start, sites."""
    sizes: dict[str, Any] = dict(hidden=16, layers=1, frequencies=4, time_dim=16)
    config = flowmm.FlowMMConfig(task=task, **sizes, **options)  # type: ignore[arg-type]
    name = f"{task} {options}"
    monkeypatch.setitem(DENOISERS, name, (lambda: flowmm.build(config, statistics()), task == "csp"))
    cases = CSP_CASES if task == "csp" else DE_NOVO_CASES
    for case in ("lattice", "volume", "init fixed"):
        asked, checks = cases[case]
        made = sample(name, 48, **asked)
        assert len(made) == 48 and all(check(made) for check in checks), case


@pytest.mark.parametrize("name", DENOISERS)
def test_the_digits_survive_in_structures(name):
    """0.0, 1 - 1e-9, 1.0 and a coordinate outside of the cell come back as they were, and so do six parameters."""
    composition = {"formula": "NaClOTi", "z": 1} if name in CSP else {"num_atoms": 5}
    asked = {**composition, "fixed": (HOST, [3, 1, 2, 0]), "lattice": "4.1,5.3,6.7,81,97,103"}
    for structure in to_structures(sample(name, 20, **asked)):
        assert np.array_equal(structure.frac_coords[:4], np.array(SITES)[[3, 1, 2, 0]])
        assert [s.specie.symbol for s in structure][:4] == ["Ti", "Cl", "O", "Na"]
        np.testing.assert_allclose(structure.lattice.parameters, (4.1, 5.3, 6.7, 81, 97, 103), rtol=1e-13)


@pytest.mark.parametrize("start", [None, 0.4], ids=["prior", "start"])
@pytest.mark.parametrize("name", DENOISERS)
def test_inside_the_loop_they_equal_their_float32_cast_after_every_step(name, start):
    made = denoiser(name)
    asked: dict[str, Any] = {**FIXED, "lattice": LATTICE if "flowmm" in name else LEFT_HANDED}
    if start is not None:
        asked |= {"init": HOST, "noise": 1 - start}
    else:
        asked |= {"formula": "NaClO"} if name in CSP else {"num_atoms": 4}
    plan = templates(name, **asked)
    counts = plan.counts(0, 16)
    template = plan.template(counts).to(torch.float32)
    clean = made.encode(template)
    given = template["frac_coords_given"]
    assert torch.equal(template["frac_coords"][given][:2], torch.tensor([SITES[2], SITES[1]]))
    held = {field: p.clamps for field, p in made.noisy.items() if f"{field}_given" in clean.fields}
    assert set(held) == set(made.noisy), "every field of the model must know what is given"
    states = list(made.trajectory(template, 5, UnitStreams(0, 0, 16, counts), start=plan.start))
    assert len(states) == (6 if start is None else 4)
    for i, state in enumerate(states):
        for field, clamps in held.items():
            rows = clean[f"{field}_given"]
            if clamps or i == len(states) - 1:
                assert torch.equal(state[field][rows], clean[field][rows])


@pytest.mark.parametrize("name", [name for name in DENOISERS if "crysbfn" not in name])
def test_a_start_of_little_noise_stays_near(name):
    """A step or two from .002 of noise; a model without training may leave elements and cell, not coordinates.

    Not where samples are predictions (CrysBFN), which need a trained network.
    """
    made = sample(name, 50, 1000 if name.startswith("diffcsp") else 500, init=HOST, noise=0.002)
    expected = torch.tensor(SITES, dtype=torch.float64).repeat(50, 1)
    away = (made["frac_coords"] - expected + 0.5) % 1 - 0.5
    assert 0 < float(away.abs().max()) < 0.1
    far = sample(name, 50, 10, init=HOST, noise=1)
    assert float(((far["frac_coords"] - expected + 0.5) % 1 - 0.5).abs().max()) > 0.3


@pytest.mark.parametrize("name", DENOISERS)
def test_a_sample_does_not_depend_on_the_batch_size(name):
    asked: dict[str, Any] = {"lattice": LATTICE, **FIXED}
    asked |= {"formula": "NaTiClO3"} if name in CSP else {"chemical_system": "Na-Cl-O", "num_atoms": "4-6"}
    one, other = (sample(name, 40, 4, size=size, **asked) for size in (16, 64))
    assert torch.equal(one["atomic_numbers"], other["atomic_numbers"])
    away = (one["frac_coords"] - other["frac_coords"] + 0.5) % 1 - 0.5
    assert float(away.abs().max()) < 1e-3


def test_sizes_left_open_are_those_of_the_training_set_that_can_hold_what_is_asked():
    made = sample("diffcsp-ab-initio", 200, **FIXED, chemical_system="Cl-O-Na-Ti-K")
    assert set(made["num_atoms"].tolist()) == {n for n in statistics().num_atoms if n >= 5}


def test_cells_larger_than_trained_are_made_with_a_warning():
    largest = max(statistics().num_atoms)
    for name, asked in (("diffcsp-csp", {"formula": "NaCl", "z": 10}), ("diffcsp-ab-initio", {"num_atoms": "4-20"})):
        with pytest.warns(UserWarning, match=f"cells of 20 atoms: the model was trained on up to {largest}"):
            assert templates(name, **asked).largest == 20


DISORDERED = Structure(LATTICE, [{"Na": 0.5, "K": 0.5}, "Cl"], SITES[:2])
CONFLICTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("diffcsp-csp", {"formula": "NaCl", "elements": ["Na"]}, ("elements = ['Na']", "formula = 'NaCl'")),
    ("diffcsp-csp", {"formula": "NaCl", "num_atoms": 2}, ("num_atoms = 2", "formula = 'NaCl'")),
    ("diffcsp-csp", {"formula": "NaCl", "chemical_system": "Na-Cl"}, ("chemical_system = 'Cl-Na'", "formula")),
    ("diffcsp-csp", {"formula": "NaCl", "init": HOST, "noise": 0.5}, ("init = 4 atoms", "formula = 'NaCl'")),
    ("diffcsp-csp", {"formula": "NaCl", "forbid": "Cl,O"}, ("forbid = ['Cl', 'O']", "formula", "which has Cl")),
    ("diffcsp-csp", {"formula": "NaCl", **FIXED}, ("formula = 'NaCl'", "fixed = sites [2, 1]", "more O")),
    ("diffcsp-csp", {"formula": "NaO", "fixed": (HOST, [0, 2, 1])}, ("formula = 'NaO'", "fixed", "more Cl")),
    ("diffcsp-csp", {"init": HOST, "noise": 0.5, "elements": "Na"}, ("elements", "init = 4 atoms")),
    ("diffcsp-csp", {"init": HOST, "noise": 0.5, "chemical_system": "Na-O"}, ("chemical_system", "init")),
    ("diffcsp-csp", {"init": HOST, "noise": 0.5, "forbid": "O"}, ("forbid", "init", "which has O")),
    ("diffcsp-csp", {"elements": "Na"}, ("formula is required",)),
    ("diffcsp-csp", {"fixed": (HOST, [0])}, ("formula is required",)),
    ("diffcsp-ab-initio", {"formula": "NaCl"}, ("formula = 'NaCl' is not for it",)),
    ("diffcsp-ab-initio", {"z": 2}, ("z = 2", "formula")),
    ("diffcsp-ab-initio", {"elements": "Na", "chemical_system": "Na-O"}, ("elements", "chemical_system")),
    ("diffcsp-ab-initio", {"elements": "Na,O", "forbid": "O"}, ("forbid", "elements", "which has O")),
    ("diffcsp-ab-initio", {"chemical_system": "Na-O", "forbid": "O"}, ("forbid", "chemical_system", "which has O")),
    ("diffcsp-ab-initio", {"chemical_system": "Na-O-Ti", "num_atoms": 2}, ("num_atoms = 2", "chemical_system")),
    ("diffcsp-ab-initio", {"chemical_system": "Na-O-Ti", "num_atoms": "2-8"}, ("num_atoms", "chemical_system")),
    ("diffcsp-ab-initio", {"chemical_system": "O-Cl-Na", "num_atoms": 2, **FIXED}, ("num_atoms", "fixed", "chemical")),
    ("diffcsp-ab-initio", {"chemical_system": "O-Na-Ti-Cl-K", "init": HOST, "noise": 1}, ("init", "chemical_system")),
    ("diffcsp-ab-initio", {"num_atoms": 1, **FIXED}, ("num_atoms = 1", "fixed = sites [2, 1]")),
    ("diffcsp-ab-initio", {"num_atoms": 4, "init": HOST, "noise": 0.5}, ("num_atoms = 4", "init = 4 atoms")),
    ("diffcsp-ab-initio", {"elements": "Na,O", **FIXED}, ("elements", "fixed", "which has Cl")),
    ("diffcsp-ab-initio", {"chemical_system": "Na-O", **FIXED}, ("chemical_system", "fixed", "which has Cl")),
    ("diffcsp-ab-initio", {"forbid": "Cl", **FIXED}, ("forbid", "fixed", "which has Cl")),
    ("diffcsp-ab-initio", {"lattice": LATTICE, "volume": 10}, ("volume = 10.0", "lattice")),
    ("diffcsp-ab-initio", {"init": HOST}, ("noise", "init")),
    ("diffcsp-ab-initio", {"noise": 0.5}, ("noise = 0.5", "init")),
    ("diffcsp-ab-initio", {"init": HOST * (1, 1, 2), "noise": 0.5, **FIXED}, ("fixed", "init")),
]
BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("diffcsp-ab-initio", {"elements": "Na,Xx"}, ("elements names 'Xx', which is no element",)),
    ("diffcsp-ab-initio", {"forbid": ["Xx"]}, ("forbid names 'Xx'",)),
    ("diffcsp-ab-initio", {"forbid": []}, ("forbid = [] names no element",)),
    ("diffcsp-ab-initio", {"elements": [11]}, ("elements names '11'",)),
    ("diffcsp-ab-initio", {"chemical_system": "Li,Fe"}, ("chemical_system names 'Li,Fe'",)),
    ("diffcsp-ab-initio", {"chemical_system": "Li-Pu"}, ("chemical_system has Pu, which the model's training set",)),
    ("diffcsp-ab-initio", {"elements": "Og"}, ("elements has Og",)),
    ("diffcsp-ab-initio", {"init": HOST.copy().replace(0, "Pu"), "noise": 0.5}, ("init has Pu",)),
    ("diffcsp-ab-initio", {"fixed": (HOST.copy().replace(0, "Pu"), [0])}, ("fixed has Pu",)),
    ("diffcsp-ab-initio", {"fixed": (HOST, [0, 4])}, ("fixed: site 4, allowed: 0..3",)),
    ("diffcsp-ab-initio", {"fixed": (HOST, [-1])}, ("fixed: site -1, allowed: 0..3",)),
    ("diffcsp-ab-initio", {"fixed": (HOST, [1, 1])}, ("fixed: site 1 is named twice",)),
    ("diffcsp-ab-initio", {"fixed": (HOST, [])}, ("fixed names no site",)),
    ("diffcsp-ab-initio", {"fixed": (HOST, [0.5])}, ("fixed = ", "allowed: (structure, site indices)")),
    ("diffcsp-ab-initio", {"fixed": HOST}, ("fixed = ", "allowed: (structure, site indices)")),
    ("diffcsp-ab-initio", {"fixed": "host.cif"}, ("fixed = ", "FILE:0,1,2")),
    ("diffcsp-ab-initio", {"fixed": "nowhere.cif:0"}, ("nowhere.cif",)),
    ("diffcsp-ab-initio", {"fixed": (DISORDERED, [1])}, ("fixed", "site 0", "disordered")),
    ("diffcsp-ab-initio", {"init": DISORDERED, "noise": 0.5}, ("init", "disordered")),
    ("diffcsp-ab-initio", {"init": 3, "noise": 0.5}, ("init = '3', allowed: a pymatgen Structure or a file",)),
    ("diffcsp-ab-initio", {"init": HOST, "noise": 0}, ("noise = 0, allowed: > 0 and <= 1",)),
    ("diffcsp-ab-initio", {"init": HOST, "noise": 1.5}, ("noise = 1.5, allowed: > 0 and <= 1",)),
    ("diffcsp-ab-initio", {"init": HOST, "noise": "much"}, ("noise = much, allowed",)),
    ("diffcsp-ab-initio", {"volume": 0}, ("volume = 0, allowed: > 0",)),
    ("diffcsp-ab-initio", {"volume": -3.0}, ("volume = -3.0, allowed: > 0",)),
    ("diffcsp-ab-initio", {"volume": float("nan")}, ("volume = nan, allowed: > 0",)),
    ("diffcsp-ab-initio", {"volume": float("inf")}, ("volume = inf, allowed: > 0",)),
    ("diffcsp-ab-initio", {"lattice": np.ones((3, 3))}, ("lattice", "degenerate")),
    ("diffcsp-ab-initio", {"lattice": np.zeros((3, 3))}, ("lattice", "degenerate")),
    ("diffcsp-ab-initio", {"lattice": np.full((3, 3), np.nan)}, ("lattice", "degenerate")),
    ("diffcsp-ab-initio", {"lattice": "3,3,3,120,120,120"}, ("lattice = 3,3,3,120,120,120 is degenerate",)),
    ("diffcsp-ab-initio", {"lattice": "3,3,3,10,10,120"}, ("lattice = 3,3,3,10,10,120 is degenerate",)),
    ("diffcsp-ab-initio", {"lattice": "3,3,-3,90,90,90"}, ("is degenerate",)),
    ("diffcsp-ab-initio", {"lattice": "3,3,3"}, ("lattice = 3,3,3, allowed: 3 x 3 numbers",)),
    ("diffcsp-ab-initio", {"lattice": "cubic"}, ("lattice = cubic, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": 0}, ("num_atoms = 0, allowed: a number >= 1",)),
    ("diffcsp-ab-initio", {"num_atoms": 2.5}, ("num_atoms = 2.5, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": True}, ("num_atoms = True, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": "8-4"}, ("num_atoms = 8-4, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": (1, 2, 3)}, ("num_atoms = (1, 2, 3), allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": {4: -1.0}}, ("num_atoms = {4: -1.0}, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": {}}, ("num_atoms = {}, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": "four"}, ("num_atoms = four, allowed",)),
    ("diffcsp-ab-initio", {"num_atoms": "4:0.5,8"}, ("num_atoms = 4:0.5,8, allowed",)),
]


@pytest.mark.parametrize(("name", "asked", "said"), [*CONFLICTS, *BAD])
def test_conflicts_and_bad_values_get_one_line(name, asked, said):
    with pytest.raises(ValueError) as error:
        templates(name, **asked)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in said), message


def test_every_pair_of_the_table_is_tried():
    tried = [set(asked) for _, asked, _ in CONFLICTS]
    assert all(any({a, b} <= pair for pair in tried) for a, b, _ in EXCLUSIVE)


def test_pairs_that_go_together():
    """What is not refused: each pair that one request can hold, with values that agree."""
    values: dict[str, Any] = {
        "num_atoms": 6,
        "elements": "Na,Cl,O,Ti",
        "chemical_system": "Na-Cl-O-Ti",
        "forbid": "K",
        "lattice": LATTICE,
        "volume": 80,
        "fixed": (HOST, [2, 1]),
        "init": HOST,
    }
    refused = {frozenset(pair[:2]) for pair in EXCLUSIVE}
    for a, b in itertools.combinations(values, 2):
        if frozenset((a, b)) not in refused:
            asked = {a: values[a], b: values[b]} | ({"noise": 0.5} if "init" in (a, b) else {})
            assert templates("diffcsp-ab-initio", **asked).largest >= 4
    for a in ("forbid", "lattice", "volume", "fixed"):
        assert templates("diffcsp-csp", formula="NaClO", **{a: values[a]}).largest == 3


def test_what_leaves_nothing_to_draw_is_refused():
    from pymatgen.core import Element

    everything = [Element.from_Z(z).symbol for z in statistics().elements]
    with pytest.raises(ValueError, match="leaves no element of the model's training set"):
        templates("diffcsp-ab-initio", forbid=everything)
    big = HOST * (1, 1, 3)
    with pytest.raises(ValueError, match="at least 12 atoms are asked for; num_atoms is required"):
        templates("diffcsp-ab-initio", fixed=(big, range(12)))


def test_a_frozen_lattice_must_be_given():
    frozen = diffcsp.build(diffcsp.DiffCSPConfig(hidden=16, layers=1, frequencies=4, lattice_weight=0), statistics())
    with pytest.raises(ValueError, match="does not generate the field lattice: lattice is required"):
        CrystalTemplates(Controls.read("NaCl"), frozen, statistics(), 0)
    for asked in ({"formula": "NaCl", "lattice": LATTICE}, {"init": HOST, "noise": 0.5}):
        plan = CrystalTemplates(Controls.read(**asked), frozen, statistics(), 0)
        ((_, made),) = sample_batches(frozen, plan, 3, steps=2)
        assert has_lattice(LATTICE.matrix)(made)


def test_what_is_asked_is_plain_and_the_same_for_equal_requests(tmp_path):
    import json

    HOST.to(filename=str(tmp_path / "host.vasp"))
    read = Structure.from_file(str(tmp_path / "host.vasp"))
    a = Controls.read(num_atoms="2-3", chemical_system="O-Cl", fixed=(read, [2]), lattice=LATTICE)
    b = Controls.read(
        num_atoms=[2, 3], chemical_system="Cl-O", fixed=f"{tmp_path / 'host.vasp'}:2", lattice=LATTICE.matrix
    )
    assert json.loads(json.dumps(a.plain())) == a.plain() == b.plain()
    assert a.asked().keys() == {"num_atoms", "chemical_system", "fixed", "lattice"}
    assert Controls.read(num_atoms=8).plain()["num_atoms"] == 8
    moved = read.copy().translate_sites([0], [1e-12, 0, 0], to_unit_cell=False)
    assert Controls.read(init=moved, noise=1).plain()["init"] != Controls.read(init=read, noise=1).plain()["init"]


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_of_required_elements_is_the_best_one(seed):
    """Against all assignments of three elements to four atoms, one of them given."""
    g = torch.Generator().manual_seed(seed)
    scores, kinds = torch.full((4, 100), -torch.inf), [2, 7, 21]
    scores[:, kinds] = torch.randn(4, 3, generator=g)
    required = torch.zeros(100, dtype=torch.bool)
    required[kinds] = True
    free = torch.tensor([True, seed % 2 == 0, True, True])
    start = scores.argmax(1) + 1
    made = assign_elements(scores, start, required, free)
    choices = [c for c in itertools.product(kinds, repeat=4) if set(c) == set(kinds) and fits(c, start, free)]
    best = max(choices, key=lambda choice: float(sum(scores[i, k] for i, k in enumerate(choice))))
    assert (made - 1).tolist() == list(best)


def fits(choice: tuple[int, ...], start: Tensor, free: Tensor) -> bool:
    return all(bool(free[i]) or choice[i] == int(start[i]) - 1 for i in range(4))


def test_elements_are_required_even_of_a_network_that_diverged():
    required = torch.zeros(2, 100, dtype=torch.bool)
    required[:, [2, 7]] = True
    batch = CrystalBatch([2, 3]).attach("structure", allowed_elements=required, required_elements=required)
    made = choose_elements(torch.full((5, 100), torch.nan), batch, torch.ones(100, dtype=torch.bool))
    assert set(made[:2].tolist()) == set(made[2:].tolist()) == {3, 8}
    with pytest.raises(ValueError, match="1 free atoms cannot hold 2 required elements"):
        batch = CrystalBatch([1]).attach("structure", required_elements=required[:1])
        choose_elements(torch.zeros(1, 100), batch, torch.ones(100, dtype=torch.bool))


def test_a_cell_is_scaled_to_a_volume_whatever_its_shape():
    g = torch.Generator().manual_seed(0)
    usual = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(50, 3, 3, generator=g, dtype=torch.float64)
    scaled = scale_to_volume(usual, 70.0)
    torch.testing.assert_close(volume(scaled), torch.full((50,), 70.0, dtype=torch.float64), rtol=1e-12, atol=0)
    ratio = scaled / usual
    assert float((ratio - ratio[:, :1, :1]).abs().max()) < 1e-12
    line = torch.ones(3, 3, dtype=torch.float64)
    flat = torch.stack([line, 0 * line, 1e-200 * line, 17 * line + torch.diag(torch.tensor([1e-9, 0, 0])), 1e90 * line])
    assert float((torch.linalg.det(scale_to_volume(flat, 70.0)).abs() / 70 - 1).abs().max()) < 1e-9
    assert bool(scale_to_volume(line.unsqueeze(0) * torch.nan, 70.0).isnan().all())


@pytest.mark.parametrize("times", [Times(), Times(10), Times(7)], ids=["continuous", "ten", "seven"])
def test_a_grid_that_starts_late(times):
    """noise = .3 of ten steps is three; the grid ends at the data, and one step is left of the smallest noise."""
    T = times.resolution or 10
    for noise in (1e-9, 0.05, 0.3, 0.5, 0.95, 1.0):
        for steps in range(1, T + 1):
            grid = times.grid(steps, 1 - noise).float()
            assert bool((grid.diff() > 0).all()) and float(grid[-1]) == 1
            assert abs(len(grid) - 1 - max(1, noise * steps)) <= 0.5
            assert abs(float(grid[0]) - (1 - noise)) <= (0.5 if noise > 0.5 / T else 1) / T + 1e-6
    assert torch.equal(times.grid(T, 0.0), times.grid(T)) and len(Times(10).grid(10, 0.7)) == 4
