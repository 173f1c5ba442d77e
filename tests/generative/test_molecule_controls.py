"""Hard controls of molecules: every control on every Denoiser of molecules, the frame they come back in, and what is
refused. A model joins by one line in `DENOISERS`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from rdkit import Chem
from rdkit.Geometry import Point3D

from chem.convert_molecules import build_mol, from_ase
from chem.molecule_files import write_molecules
from chem.molecules import MoleculeBatch
from chem.ragged import concatenate
from chem.statistics import Statistics
from generative.controls import Controls
from generative.generator import Denoiser, Times
from generative.models.geobfn import GeoBFNConfig, build
from generative.molecule_templates import MoleculeTemplates
from generative.noise import UnitStreams
from generative.process import Fixed
from generative.sampling import sample_batches
from tests.generative.stubs import LinearFlow, LinearNetwork
from tests.generative.test_controls import compositions, has_sizes, numbers

N = 1000
HOST = build_mol(  # methanol without one of its hydrogens, far from the origin, in digits that float32 does not hold
    np.array([6, 8, 1, 1, 1]),
    np.array([[0.1, 0.2, 1 / 3], [1.3, 1e-9, 0.7], [-0.6, 0.9, 0.1], [-0.5, -0.8, 0.3], [0.2, 0.4, 1.4]]) + [7, -5, 30],
)
POSITIONS = HOST.GetConformer().GetPositions()
Check = Callable[[MoleculeBatch], bool]


@cache
def statistics() -> Statistics:
    """Of molecules of hydrogen, boron, carbon, nitrogen, oxygen and fluorine."""
    from ase.build import molecule

    names = ("H2O", "CH4", "NH3", "CH3OH", "C2H6", "HCN", "C6H6", "CH3CH2OH", "BF3", "CF4")
    return Statistics.compute(from_ase([molecule(name) for name in names]))


def geobfn(**options: Any) -> Denoiser:
    return build(GeoBFNConfig(**{"hidden": 16, "layers": 1, **options}), statistics())


def stub_conformers() -> Denoiser:
    """A flow of the positions alone, whose states are noisy data."""
    flow = {"pos": LinearFlow((3,), mean_free=True), "atomic_numbers": Fixed(())}
    return Denoiser(LinearNetwork({"pos": 3}), flow, Times(), 10)


# name: (builder, whether the composition is given)
DENOISERS: dict[str, tuple[Callable[[], Denoiser], bool]] = {
    "geobfn": (geobfn, False),
    "geobfn-categorical": (lambda: geobfn(types="categorical", sampler="flow"), False),
    "stub-conformers": (stub_conformers, True),
}
CONFORMERS = [name for name, (_, given) in DENOISERS.items() if given]
DE_NOVO = [name for name in DENOISERS if name not in CONFORMERS]


@cache
def denoiser(name: str) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DENOISERS[name][0]()


def templates(name: str, seed: int = 0, **asked: Any) -> MoleculeTemplates:
    return MoleculeTemplates(Controls.read(**asked, molecules=True), denoiser(name), statistics(), seed)


def sample(name: str, n: int = N, steps: int = 2, seed: int = 0, size: int = 256, **asked: Any) -> MoleculeBatch:
    """Samples as the front door makes them, before they become RDKit molecules."""
    made = sample_batches(denoiser(name), templates(name, seed, **asked), n, 0, size, steps, seed)
    return concatenate([b.without(*(b.fields.keys() - {"atomic_numbers", "pos"})) for _, b in made])


def only_elements(*symbols: str) -> Check:
    return lambda made: set(made["atomic_numbers"].tolist()) <= set(numbers(*symbols))


def each_has_system(*symbols: str) -> Check:
    return lambda made: all(set(c) == set(numbers(*symbols)) for c in compositions(made))


def lacks(*symbols: str) -> Check:
    return lambda made: not set(made["atomic_numbers"].tolist()) & set(numbers(*symbols))


def has_formula(*symbols: str) -> Check:
    return lambda made: all(c == numbers(*symbols) for c in compositions(made))


def has_fixed(made: MoleculeBatch) -> bool:
    """Atoms 3 and 1 of HOST, in this order, in every digit, and others that are not all on top of them."""
    place = torch.arange(len(made["batch"])) - made["ptr"][:-1][made["batch"]]
    ok = bool((made["num_atoms"] >= 2).all())
    for i, atom in enumerate((3, 1)):
        rows = place == i
        ok &= bool((made["pos"][rows] == torch.from_numpy(POSITIONS[atom])).all())
        ok &= bool((made["atomic_numbers"][rows] == HOST.GetAtomWithIdx(atom).GetAtomicNum()).all())
    return ok and bool((made["pos"][place > 1] - torch.from_numpy(POSITIONS[1])).norm(dim=1).median() > 0.1)


def centered_on(point: np.ndarray | float) -> Check:
    return lambda made: float((made.rows("pos").mean(made["pos"]) - torch.as_tensor(point)).abs().max()) < 1e-9


FIXED: dict[str, Any] = {"fixed": (HOST, [3, 1])}
ORIGIN, INPUT = centered_on(0.0), centered_on(POSITIONS.mean(0))
CASES: dict[str, tuple[dict[str, Any], tuple[Check, ...]]] = {
    "number": ({"num_atoms": 9}, (has_sizes(9), ORIGIN)),
    "range": ({"num_atoms": "3-5"}, (has_sizes(3, 4, 5), ORIGIN)),
    "histogram": ({"num_atoms": {2: 0.9, 7: 0.1}}, (has_sizes(2, 7),)),
    "elements": ({"num_atoms": 6, "elements": "C,O,F"}, (only_elements("C", "O", "F"),)),
    "one element": ({"num_atoms": 4, "elements": ["N"]}, (only_elements("N"),)),
    "chemical_system": ({"chemical_system": "B-C-N-O", "num_atoms": "4-6"}, (each_has_system("B", "C", "N", "O"),)),
    "forbid": ({"num_atoms": 6, "forbid": ["O", "B", "F"]}, (lacks("O", "B", "F"), ORIGIN)),
    "fixed": ({"num_atoms": "4-6", **FIXED}, (has_fixed, has_sizes(4, 5, 6))),
    "fixed system": (
        {"num_atoms": 5, **FIXED, "chemical_system": "H-O-N-F"},
        (has_fixed, each_has_system("H", "O", "N", "F")),
    ),
    "init": ({"init": HOST, "noise": 0.3, "elements": "C,N"}, (has_sizes(5), only_elements("C", "N"), INPUT)),
    "init fixed": ({"init": HOST, "noise": 0.5, **FIXED}, (has_fixed, has_sizes(5))),
}
CONFORMER_CASES: dict[str, tuple[dict[str, Any], tuple[Check, ...]]] = {
    "formula": ({"formula": "CH2O", "forbid": "N"}, (has_formula("C", "H", "H", "O"), ORIGIN)),
    "fixed": ({"formula": "CH3OH", **FIXED}, (has_fixed, has_formula("H", "O", "C", "H", "H", "H"))),
    "init": ({"init": HOST, "noise": 0.4}, (has_formula("C", "O", "H", "H", "H"), INPUT)),
    "init fixed": ({"init": HOST, "noise": 1, **FIXED}, (has_fixed, has_formula("H", "O", "C", "H", "H"))),
}


@pytest.mark.parametrize(
    ("name", "case"), [*itertools.product(DE_NOVO, CASES), *itertools.product(CONFORMERS, CONFORMER_CASES)]
)
def test_every_one_of_a_thousand_samples_adheres(name, case):
    asked, checks = (CONFORMER_CASES if name in CONFORMERS else CASES)[case]
    made = sample(name, **asked)
    assert len(made) == N and [bool(check(made)) for check in checks] == [True] * len(checks)


def test_every_control_has_a_case():
    asked = set().union(*(case.keys() for case, _ in [*CASES.values(), *CONFORMER_CASES.values()]))
    assert asked == {f for f in Controls.__dataclass_fields__} - {"z", "lattice", "volume"}


@pytest.mark.parametrize("start", [None, 0.4], ids=["prior", "start"])
@pytest.mark.parametrize("name", DENOISERS)
def test_fixed_atoms_set_the_origin_of_the_loop(name, start):
    """Their mean position is the origin in every state, where states are data; their shape is that of the input."""
    made = denoiser(name)
    asked: dict[str, Any] = {**FIXED}
    asked |= {"init": HOST, "noise": 1 - start} if start else {"formula": "CH3OH"} if name in CONFORMERS else {}
    plan = templates(name, **asked)
    counts = plan.counts(0, 16)
    template = plan.template(counts)
    given, apart = template["pos_given"], torch.from_numpy(POSITIONS[3] - POSITIONS[1]) / 2
    torch.testing.assert_close(template["pos"][given].view(16, 2, 3)[:, 0], apart.expand(16, 3), rtol=0, atol=1e-12)
    clean = made.encode(template.to(torch.float32))
    states = list(made.trajectory(template.to(torch.float32), 5, UnitStreams(0, 0, 16, counts), start=plan.start))
    for field, process in made.noisy.items():
        rows = clean[f"{field}_given"]
        for state in states if process.clamps else states[-1:]:
            assert torch.equal(state[field][rows], clean[field][rows])


@pytest.mark.parametrize("name", DENOISERS)
def test_the_origin_of_the_input_makes_no_difference(name):
    """The same draws around the same atoms somewhere else: the same molecules somewhere else."""
    moved = Chem.Mol(HOST)
    for i, point in enumerate(POSITIONS):
        moved.GetConformer().SetAtomPosition(i, Point3D(*(point - [13, 2, -4])))
    asked: dict[str, Any] = {"formula": "CH3OH"} if name in CONFORMERS else {"num_atoms": "4-6"}
    here, there = (sample(name, 32, 4, fixed=(mol, [3, 1]), **asked) for mol in (HOST, moved))
    assert torch.equal(here["atomic_numbers"], there["atomic_numbers"])
    away = here["pos"] - there["pos"] - torch.tensor([13.0, 2.0, -4.0], dtype=torch.float64)
    assert float(away.abs().max()) < 1e-3


@pytest.mark.parametrize("name", DENOISERS)
def test_a_start_of_little_noise_stays_where_the_molecule_is(name):
    made = sample(name, 50, 100, init=HOST, noise=0.02)
    away = made["pos"] - torch.from_numpy(POSITIONS).repeat(50, 1)
    assert 0 < float(away.abs().max()) < 0.2
    far = sample(name, 50, 10, init=HOST, noise=1)
    assert float((far["pos"] - torch.from_numpy(POSITIONS).repeat(50, 1)).abs().max()) > 0.5


@pytest.mark.parametrize("name", DENOISERS)
def test_a_sample_does_not_depend_on_the_batch_size(name):
    asked: dict[str, Any] = {"formula": "CH3OH"} if name in CONFORMERS else {"chemical_system": "C-H-O"}
    one, other = (sample(name, 40, 4, size=size, **asked, **FIXED) for size in (16, 64))
    assert torch.equal(one["atomic_numbers"], other["atomic_numbers"])
    assert float((one["pos"] - other["pos"]).abs().max()) < 1e-3


def test_sizes_left_open_are_those_of_the_training_set_that_can_hold_what_is_asked():
    made = sample("geobfn", 200, **FIXED, chemical_system="H-O-C-N-F-B")
    assert set(made["num_atoms"].tolist()) == {n for n in statistics().num_atoms if n >= 6}


def test_molecules_larger_than_trained_are_made_with_a_warning():
    with pytest.warns(UserWarning, match="molecules of 20 atoms: the model was trained on up to 12"):
        assert templates("geobfn", num_atoms=20).largest == 20


def test_elements_are_asked_for_even_of_a_network_that_diverged():
    for name in DE_NOVO:
        batch = templates(name, num_atoms=4, chemical_system="C-N").template([4] * 16)
        types = torch.full((64, 6) if "categorical" in name else (64,), torch.nan)
        made = denoiser(name).decode(batch.replace(types=types, pos=torch.zeros(64, 3)))
        assert all(set(c) == {6, 7} for c in compositions(made))


def test_a_molecule_is_read_alike_from_rdkit_ase_and_a_file(tmp_path):
    write_molecules([HOST], tmp_path / "host.jsonl")
    atoms = Atoms([a.GetAtomicNum() for a in HOST.GetAtoms()], POSITIONS)
    asked = [(HOST, [3, 1]), (atoms, (3, 1)), f"{tmp_path / 'host.jsonl'}:3,1", (tmp_path / "host.jsonl", [3, 1])]
    plain = [Controls.read(fixed=fixed, molecules=True).plain() for fixed in asked]
    assert all(one == plain[0] for one in plain) and plain[0]["fixed"]["sites"] == [3, 1]
    moved = atoms.copy()
    moved.positions[4, 0] += 1e-12
    assert Controls.read(fixed=(moved, [3, 1]), molecules=True).plain() != plain[0]


FLAT = Chem.MolFromSmiles("CO")
CELL = Atoms("H2", [[0, 0, 0], [0, 0, 1]], cell=np.diag([3, 4, 5]), pbc=True)
NOWHERE = Atoms("H2", [[0, 0, 0], [0, 0, np.nan]])
REFUSED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("geobfn", {"lattice": "4,5,6,80,95,103"}, ("this model makes molecules, which have no cell: lattice = [[",)),
    ("geobfn", {"volume": 90}, ("this model makes molecules, which have no cell: volume = 90.0 is not for it",)),
    ("stub-conformers", {"formula": "CH2O", "z": 2}, ("this model makes molecules, allowed: z = 1, got z = 2",)),
    ("stub-conformers", {}, ("formula is required",)),
    ("geobfn", {"formula": "CH4"}, ("this model chooses the composition itself: formula = 'CH4' is not for it",)),
    ("geobfn", {"elements": "C,Si"}, ("elements has Si, which the model's training set lacks",)),
    ("geobfn", {"forbid": "H,B,C,N,O,F"}, ("leaves no element of the model's training set",)),
    ("geobfn", {"num_atoms": 1, **FIXED}, ("num_atoms = 1 conflicts with fixed = sites [3, 1]",)),
    ("geobfn", {"elements": "C,O", **FIXED}, ("elements", "conflicts with fixed = sites [3, 1], which has H")),
    (
        "geobfn",
        {"init": HOST, "noise": 0.5, "fixed": (Atoms("CO", np.eye(3)[:2]), [0])},
        ("fixed conflicts with init",),
    ),
    ("geobfn", {"init": HOST}, ("noise", "init = 5 atoms", "one needs the other")),
    ("geobfn", {"fixed": (HOST, [5])}, ("fixed: site 5, allowed: 0..4",)),
    ("geobfn", {"fixed": HOST}, ("fixed = ", "allowed: (structure, site indices), or FILE:0,1,2")),
    ("geobfn", {"fixed": (FLAT, [0])}, ("fixed = ", "no 3D coordinates")),
    ("geobfn", {"fixed": (CELL, [0])}, ("fixed = ", "a molecule is not periodic")),
    ("geobfn", {"init": NOWHERE, "noise": 1}, ("init = ", "a coordinate is not a finite number")),
    ("geobfn", {"init": Atoms(), "noise": 1}, ("init = ", "allowed: an RDKit molecule with a conformer")),
    ("geobfn", {"init": 3, "noise": 1}, ("init = '3'", "allowed: an RDKit molecule with a conformer, ASE atoms")),
    ("geobfn", {"fixed": (Atoms("Si", [[0, 0, 0]]), [0])}, ("fixed has Si, which the model's training set lacks",)),
    ("geobfn", {"fixed": (Atoms("H14", np.ones((14, 3))), range(14))}, ("molecules of at least 14 atoms",)),
]


@pytest.mark.parametrize(("name", "asked", "said"), REFUSED)
def test_what_makes_no_sense_gets_one_line(name, asked, said):
    with pytest.raises(ValueError) as error:
        templates(name, **asked)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in said), message


def test_files_with_more_or_less_than_one_molecule_are_refused(tmp_path):
    write_molecules([HOST, HOST], tmp_path / "two.sdf")
    (tmp_path / "torn.sdf").write_text("methanol\n\n\nnothing\n$$$$\n")
    for file, said in (("two.sdf", "holds several structures"), ("torn.sdf", "cannot be read: no counts line")):
        with pytest.raises(ValueError, match=said) as error:
            templates("geobfn", init=tmp_path / file, noise=0.5)
        assert "\n" not in str(error.value) and f"init = '{tmp_path / file}'" in str(error.value)
