"""The verb `sample` for molecules: bonds, failures, order, seeds, output folders that resume, the command line."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from rdkit import Chem
from typer.testing import CliRunner

import atomsmith
from chem.convert_molecules import from_ase, to_rdkit
from chem.molecule_files import read_molecules, write_molecules
from chem.molecule_list import NO_BONDS
from chem.molecule_text import get_properties
from evaluation.molecules.perceived import with_perceived_bonds
from evaluation.protocols import STRICT
from generative.generator import Denoiser
from tests.commands import cli

WATER = molecule("H2O")


def positions(molecules):
    return [mol.GetConformer().GetPositions() for mol in molecules]


def numbers(molecules):
    return [[atom.GetAtomicNum() for atom in mol.GetAtoms()] for mol in molecules]


def bonds(molecules):
    return [
        [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), b.GetBondTypeAsDouble()) for b in m.GetBonds()] for m in molecules
    ]


def same(a, b):
    assert numbers(a) == numbers(b) and bonds(a) == bonds(b)
    assert [get_properties(mol) for mol in a] == [get_properties(mol) for mol in b]
    return all(np.array_equal(x, y) for x, y in zip(positions(a), positions(b), strict=True))


def test_molecules_in_order_with_provenance(tiny_geobfn):
    made = atomsmith.sample(tiny_geobfn, 3, num_atoms=4, steps=5, seed=4)
    assert len(made) == 3 and all(isinstance(mol, Chem.Mol) and mol.GetConformer().Is3D() for mol in made)
    assert [get_properties(mol)["index"] for mol in made] == [0, 1, 2]
    said = get_properties(made[1])
    assert said["seed"] == 4 and said["steps"] == 5 and said["controls"] == {"num_atoms": 4}
    assert said["model"] == Path(tiny_geobfn).name and len(said["weights_sha256"]) == 64


def test_bonds_charges_and_failures():
    """Carbon monoxide has formal charges; a radical, as an odd number of electrons, no bonds."""
    atoms = [molecule(name) for name in ("CH3CH2OH", "C6H6", "CO", "CH3")]
    made = with_perceived_bonds(from_ase(atoms), processes=0)
    known = ["[H]OC([H])([H])C([H])([H])[H]", "[H]c1c([H])c([H])c([H])c([H])c1[H]", "[C-]#[O+]"]
    smiles = []
    for mol in made[:3]:
        Chem.SanitizeMol(mol)
        smiles.append(Chem.MolToSmiles(mol))
    assert smiles == known
    assert made[3].GetNumBonds() == 0 and made[3].GetProp(NO_BONDS).startswith("no bonds perceived: ")
    (failed,) = made.failures
    assert failed.info == {"index": 3, "reason": made[3].GetProp(NO_BONDS)}
    assert np.array_equal(failed.positions, atoms[3].positions) and failed.get_chemical_symbols() == [
        "C",
        "H",
        "H",
        "H",
    ]
    assert list(made.reasons.values()) == [1] and "#" in next(iter(made.reasons))


def test_a_diverged_molecule_is_a_failure_with_its_reason(tmp_path):
    from chem.molecule_folder import MoleculeFolder
    from chem.molecule_list import Molecules

    batch = from_ase([WATER, WATER])
    pos = batch["pos"].clone()
    pos[4] = torch.nan
    made = with_perceived_bonds(batch.replace(pos=pos), processes=1)
    assert made.reasons == {"a coordinate is not a finite number": 1} and made[0].GetNumBonds() == 2
    folder = MoleculeFolder(tmp_path / "out", {})
    folder.append(made)
    folder.close()
    assert Molecules(MoleculeFolder(tmp_path / "out", {}).samples(2)).reasons == made.reasons


def test_a_molecule_that_freezes_perception_is_killed_and_counted():
    """36 sulfur atoms on a square grid: more bond orders than can be tried. Its neighbours go on."""
    grid = Atoms("S36", [(2.05 * i, 2.05 * j, 0.0) for i in range(6) for j in range(6)])
    made = with_perceived_bonds(from_ase([WATER, grid, WATER]), replace(STRICT, seconds=1.0), processes=1)
    assert [mol.GetNumBonds() for mol in made] == [2, 0, 2]
    assert made.reasons == {"killed: not done within # s": 1}
    assert made.failures[0].info == {"index": 1, "reason": "killed: not done within 1 s"}


def test_the_list_keeps_failures_in_their_places(tiny_geobfn):
    made = atomsmith.sample(tiny_geobfn, 40, steps=4)
    failed = [i for i, mol in enumerate(made) if mol.HasProp(NO_BONDS)]
    assert 0 < len(failed) == sum(made.reasons.values()) and len(made) == 40
    for atoms, i in zip(made.failures, failed, strict=True):
        assert atoms.info["index"] == i and np.array_equal(atoms.positions, positions(made)[i])


def test_same_seed_same_bits_other_seed_other_molecules(tiny_geobfn):
    before = torch.get_rng_state()
    a, b, c = (atomsmith.sample(tiny_geobfn, 2, num_atoms=5, steps=5, seed=s) for s in (1, 1, 2))
    assert same(a, b) and not np.allclose(positions(a)[0], positions(c)[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("batch_size", [16, 48])
def test_batch_size_changes_rounding_only(tiny_geobfn, batch_size):
    reference = atomsmith.sample(tiny_geobfn, 100, steps=20, batch_size=256)
    other = atomsmith.sample(tiny_geobfn, 100, steps=20, batch_size=batch_size)
    assert numbers(reference) == numbers(other)
    assert max(np.abs(a - b).max() for a, b in zip(positions(reference), positions(other), strict=True)) < 1e-3
    one = atomsmith.sample(tiny_geobfn, 1, steps=20)
    assert numbers(one) == numbers(reference)[:1]


def test_fixed_atoms_come_back_in_every_digit_from_the_folder_too(tiny_geobfn, tmp_path):
    host = molecule("CH3OH")
    host.positions += [11 / 3, -7.1, 1e-9]
    asked = dict(fixed=(host, [1, 0]), num_atoms="4-6", chemical_system="C-O-H", steps=6, out=tmp_path / "out")
    made = atomsmith.sample(tiny_geobfn, 20, **asked)
    again = atomsmith.sample(tiny_geobfn, 20, **asked)
    assert same(made, again)
    for mol in made:
        assert np.array_equal(mol.GetConformer().GetPositions()[:2], host.positions[[1, 0]])
        assert [a.GetSymbol() for a in mol.GetAtoms()][:2] == ["O", "C"] and mol.GetNumAtoms() in (4, 5, 6)
        assert {a.GetSymbol() for a in mol.GetAtoms()} == {"C", "O", "H"}
    controls = get_properties(again[3])["controls"]
    request = json.loads((tmp_path / "out" / "manifest.json").read_text())["request"]
    assert {k: request[k] for k in controls} == controls and controls["fixed"]["sites"] == [1, 0]
    with pytest.raises(ValueError, match=r"fixed = .*, asked .*'sites': \[0\]"):
        atomsmith.sample(tiny_geobfn, 20, **asked | {"fixed": (host, [0])})


def test_folder_holds_sdf_frames_and_manifest(tiny_geobfn, tmp_path):
    """Water that is hardly noised is perceived; entry i is sample i in every file."""
    asked = dict(init=WATER, noise=0.02, elements="H,O", steps=100)
    made = atomsmith.sample(tiny_geobfn, 20, out=tmp_path / "out", **asked)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["n"] == 20 and manifest["network_calls"] == 3 and manifest["failures"] == made.reasons
    assert manifest["request"]["noise"] == 0.02 and manifest["versions"]["atomsmith"] == atomsmith.__version__
    files = {name: list(read_molecules(tmp_path / "out" / f"samples.{name}")) for name in ("sdf", "extxyz", "jsonl")}
    for records in files.values():
        assert [record.error for record in records] == [None] * 20
        assert [record.properties["index"] for record in records] == list(range(20))
        assert numbers([record.molecule for record in records]) == numbers(made)
    assert bonds([r.molecule for r in files["sdf"]]) == bonds([r.molecule for r in files["jsonl"]]) == bonds(made)
    for file, digits in (("sdf", 1e-4), ("extxyz", 1e-8)):
        found = positions([record.molecule for record in files[file]])
        assert max(np.abs(a - b).max() for a, b in zip(found, positions(made), strict=True)) < digits


def test_a_larger_n_extends_and_nothing_is_perceived_twice(tiny_geobfn, tmp_path, monkeypatch):
    arguments = dict(num_atoms=5, steps=3, batch_size=16)
    atomsmith.sample(tiny_geobfn, 20, out=tmp_path / "a", **arguments)
    kept = (tmp_path / "a" / "samples.sdf").read_text()
    seen = []

    def counting(batch, *rest, **options):
        seen.append(len(batch))
        return with_perceived_bonds(batch, *rest, **options)

    monkeypatch.setattr("evaluation.molecules.perceived.with_perceived_bonds", counting)
    longer = atomsmith.sample(tiny_geobfn, 40, out=tmp_path / "a", **arguments)
    assert seen == [12, 8] and (tmp_path / "a" / "samples.sdf").read_text().startswith(kept)
    assert same(longer, atomsmith.sample(tiny_geobfn, 40, out=tmp_path / "b", **arguments))
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["failures"] == longer.reasons
    assert len(atomsmith.sample(tiny_geobfn, 7, out=tmp_path / "a", **arguments)) == 7


def test_a_memory_error_halves_the_batch_and_one_unit_is_reported(tiny_geobfn, monkeypatch):
    sizes, trajectory = [], Denoiser.trajectory

    def hungry(self, template, *args, **kwargs):
        sizes.append(len(template))
        if len(template) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trajectory(self, template, *args, **kwargs)

    monkeypatch.setattr(Denoiser, "trajectory", hungry)
    assert len(atomsmith.sample(tiny_geobfn, 24, num_atoms=3, steps=2, batch_size=64)) == 24
    assert sizes == [24, 24, 16, 8]  # 64, 32, 16 at a time
    monkeypatch.setattr(Denoiser, "trajectory", lambda *_, **__: hungry(None, range(99)))
    with pytest.raises(MemoryError, match="16 molecules of up to 3 atoms do not fit the memory"):
        atomsmith.sample(tiny_geobfn, 16, num_atoms=3, steps=2)


def _run(model, out):
    torch.set_num_threads(1)
    atomsmith.sample(model, 64, num_atoms="3-6", steps=40, batch_size=16, out=out)


def test_killed_at_three_random_moments_the_result_is_that_of_an_undisturbed_run(tiny_geobfn, tmp_path):
    started = time.perf_counter()
    _run(tiny_geobfn, tmp_path / "whole")
    whole_time = time.perf_counter() - started
    moments, context = random.Random(7), multiprocessing.get_context("fork")
    killed = 0
    for _ in range(3):
        child = context.Process(target=_run, args=(tiny_geobfn, tmp_path / "killed"))
        child.start()
        child.join(whole_time * moments.uniform(0.2, 0.6))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.join()
    assert killed
    _run(tiny_geobfn, tmp_path / "killed")
    for file in ("samples.jsonl", "samples.sdf", "samples.extxyz"):
        assert (tmp_path / "whole" / file).read_text() == (tmp_path / "killed" / file).read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n=0), "n = 0"),
        (dict(lattice="4,5,6,80,95,103"), "this model makes molecules, which have no cell: lattice = "),
        (dict(volume=90), "this model makes molecules, which have no cell: volume = 90.0 is not for it"),
        (dict(formula="CH4"), "formula = 'CH4' is not for it"),
        (dict(elements="Si"), "elements has Si"),
        (dict(steps=0), "steps = 0"),
        (dict(batch_size=10), "batch_size = 10"),
        (dict(fixed="nowhere.sdf:0"), "nowhere.sdf"),
    ],
)
def test_bad_arguments_get_one_line(tiny_geobfn, arguments, message, monkeypatch, capsys, tmp_path):
    with pytest.raises(ValueError) as error:
        atomsmith.sample(tiny_geobfn, **{"n": 1, "steps": 2, **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)
    words = [w for k, v in {"n": 1, "steps": 2, **arguments}.items() for w in (_flag(k), v)]
    done = cli(["sample", tiny_geobfn, *words, "--out", tmp_path / "out"], monkeypatch, capsys)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def _flag(name):
    return "-n" if name == "n" else "--" + name.replace("_", "-")


def test_the_command_line_does_what_python_does(tiny_geobfn, tmp_path):
    write_molecules(to_rdkit(from_ase([molecule("CH3OH")])), tmp_path / "host.jsonl")
    words = f"-n 5 --steps 4 --num-atoms 4:0.5,6:0.5 --chemical-system C-O-N --fixed {tmp_path / 'host.jsonl'}:1,0"
    out = tmp_path / "out"
    result = CliRunner().invoke(atomsmith.app, ["sample", tiny_geobfn, *words.split(), "--out", str(out)])
    assert result.exit_code == 0, result.output
    asked = dict(num_atoms={4: 0.5, 6: 0.5}, chemical_system="C-O-N", fixed=(molecule("CH3OH"), [1, 0]))
    expected = atomsmith.sample(tiny_geobfn, 5, steps=4, **asked)
    made = [record.molecule for record in read_molecules(out / "samples.jsonl")]
    assert numbers(made) == numbers(expected) and bonds(made) == bonds(expected)
    assert all(np.array_equal(a, b) for a, b in zip(positions(made), positions(expected), strict=True))
    failed = sum(expected.reasons.values())
    assert failed and result.output == f"5 samples in {out}, {failed} of them without bonds\n"


def test_trained_saved_loaded_sampled_and_judged(tmp_path):
    """From files of molecules to a report, each verb once."""
    names = ("CH4", "NH3", "H2O", "CH3OH", "C2H6", "H2CO")
    write_molecules(to_rdkit(from_ase([molecule(name) for name in names * 5])), tmp_path / "few.sdf")
    folder = atomsmith.prepare(tmp_path / "few.sdf", "few", tmp_path).folder
    best = atomsmith.train("geobfn", folder, tmp_path / "run", epochs=2, hidden=16, layers=1, batch_size=8)
    assert atomsmith.load(tmp_path / "run").kind == "geobfn"
    made = atomsmith.sample(best, 20, steps=5, out=tmp_path / "samples")
    assert {z for part in numbers(made) for z in part} <= {1, 6, 7, 8}
    assert {mol.GetNumAtoms() for mol in made} <= {3, 4, 5, 6, 8}
    report = atomsmith.evaluate(tmp_path / "samples" / "samples.sdf", protocol="edm-qm9-strict", processes=0)
    assert report["validity"].n == 20
