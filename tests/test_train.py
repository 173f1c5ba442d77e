"""The verbs `train` and `prepare`, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import atomsmith
import checkpoints
from chem import datasets
from chem.io import write

SIZE = dict(hidden=16, layers=1, frequencies=4)
CHECKPOINT = {"config.json", "model.safetensors", "card.md", "sha256.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs on the prototypes."""
    out = tmp_path_factory.mktemp("runs") / "first"
    atomsmith.train("diffcsp-csp", "prototypes", out, epochs=2, **SIZE)
    return out


def test_a_run_leaves_a_checkpoint_that_loads_and_samples(run):
    assert {p.name for p in (run / "best").iterdir()} == CHECKPOINT
    loaded = atomsmith.load(run)
    assert loaded.name == "first" and loaded.config.hidden == 16
    assert loaded.training["settings"]["epochs"] == 2 and loaded.training["seed"] == 0
    assert loaded.training["data"]["name"] == "prototypes" and len(loaded.training["data"]["sha256"]) == 64
    assert len(atomsmith.sample(run, 2, formula="MgO", steps=3)) == 2


def test_a_run_folder_is_not_taken_twice(run, tmp_path):
    with pytest.raises(ValueError, match="holds this run already; resume=True continues it"):
        atomsmith.train("diffcsp-csp", "prototypes", run, epochs=2, **SIZE)
    with pytest.raises(ValueError, match="differs in seed"):
        atomsmith.train("diffcsp-csp", "prototypes", run, seed=1, epochs=2, resume=True, **SIZE)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        atomsmith.train("diffcsp-csp", "prototypes", tmp_path, epochs=1, **SIZE)


def test_resume_of_a_finished_run_changes_nothing(run):
    before = (run / "last" / "model.safetensors").read_bytes()
    atomsmith.train("diffcsp-csp", "prototypes", run, epochs=2, resume=True, **SIZE)
    assert (run / "last" / "model.safetensors").read_bytes() == before


def test_fine_tuning_keeps_statistics_and_config(run, tmp_path):
    tuned = atomsmith.train("diffcsp-csp", "prototypes", tmp_path / "tuned", init=run / "best", epochs=1, lr=1e-4)
    first, second = atomsmith.load(run), checkpoints.load(tuned)
    assert second.statistics == first.statistics and second.config == first.config
    assert second.training["init"] == first.sha256
    parameters = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in parameters)
    with pytest.raises(ValueError, match="hidden, layers, frequencies are fixed by init"):
        atomsmith.train("diffcsp-csp", "prototypes", tmp_path / "other", init=run / "best", hidden=8)


def test_a_model_of_the_other_task_starts_from_the_same_function(run, tmp_path):
    """At data the noisy elements are one-hot vectors, so both networks must predict the same; and back again."""
    there = atomsmith.train("diffcsp-ab-initio", "prototypes", tmp_path / "a", init=run / "best", epochs=1, lr=1e-30)
    back = atomsmith.train("diffcsp-csp", "prototypes", tmp_path / "b", init=there, epochs=1, lr=1e-30)
    first, other, again = (checkpoints.load(path).model for path in (run / "best", there, back))
    assert "types" in other.processes and "types" not in again.processes
    batch = datasets.load("prototypes", "val").batch[:5].to(torch.float32)
    t = torch.linspace(0.1, 0.9, 5)
    expected = first.network(batch, t)
    for model in (other, again):
        found = model.network(model.encode(batch), t)
        for field, value in expected.items():
            torch.testing.assert_close(found[field], value, atol=1e-5, rtol=1e-4)


def test_fine_tuning_refuses_new_elements_by_name(run, tmp_path):
    from pymatgen.core import Lattice, Structure

    gold = [Structure(Lattice.cubic(4.0 + 0.1 * i), ["Pu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]]) for i in range(6)]
    write(gold, tmp_path / "gold.jsonl")
    report = atomsmith.prepare(tmp_path / "gold.jsonl", "gold", out=tmp_path, split=(0.5, 0.5, 0.0))
    assert report.num_structures == 6 and len(datasets.load(report.folder, "train")) == 3
    with pytest.raises(ValueError, match=r"was not trained on .*Pu"):
        atomsmith.train("diffcsp-csp", report.folder, tmp_path / "tuned", init=run / "best", epochs=1)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(model="nope"), "model = 'nope', allowed: diffcsp-csp"),
        (dict(preset="huge"), "preset = 'huge', allowed: small, paper"),
        (dict(data="nope"), "unknown data set 'nope'"),
        (dict(precision="fp8"), "precision = 'fp8', allowed: fp32, bf16"),
        (dict(epochs=0), "epochs = 0"),
        (dict(hidden=0), "hidden = 0"),
        (dict(init="nope"), "nope"),
        (dict(model="geobfn", frequencies=4), "frequencies = 4, allowed: not with model = 'geobfn'"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path, arguments, message):
    with pytest.raises(ValueError) as error:
        atomsmith.train(**{"model": "diffcsp-csp", "data": "prototypes", "out": tmp_path / "run", **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_molecules_are_trained_on_like_crystals(tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    from chem.molecule_files import write_molecules

    mols = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in ("O", "N", "C", "CO", "CC", "C=O", "CN", "CCO", "OO", "C#N")]
    for mol in mols:
        AllChem.EmbedMolecule(mol, randomSeed=1)
    write_molecules(mols, tmp_path / "few.sdf")
    folder = atomsmith.prepare(tmp_path / "few.sdf", "few", out=tmp_path, split=(0.6, 0.4, 0.0)).folder
    best = atomsmith.train("geobfn", folder, tmp_path / "run", epochs=2, hidden=16, layers=1)
    loaded = atomsmith.load(best)
    assert loaded.kind == "geobfn" and set(loaded.statistics.elements) <= {1, 6, 7, 8}
    best = atomsmith.train("geobfn-categorical", folder, tmp_path / "classes", epochs=1, hidden=16, layers=1)
    assert atomsmith.load(best).config.types == "categorical"
    with pytest.raises(ValueError, match="is a diffcsp, allowed: a geobfn"):
        atomsmith.train("geobfn", folder, tmp_path / "other", init="diffcsp-mp20-csp")


def test_global_random_state_is_untouched(tmp_path):
    before = torch.get_rng_state()
    atomsmith.train("diffcsp-csp", "prototypes", tmp_path / "run", epochs=1, **SIZE)
    assert torch.equal(before, torch.get_rng_state())


def test_commands_are_the_verbs(tiny_csp, tmp_path):
    runner = CliRunner()
    words = ["sample", tiny_csp, "-n", "2", "--formula", "NaCl", "--steps", "2", "--out", str(tmp_path / "o")]
    made = runner.invoke(atomsmith.app, words)
    assert made.exit_code == 0 and "2 samples" in made.output
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["n"] == 2 and manifest["request"]["steps"] == 2
    prepared = runner.invoke(
        atomsmith.app, ["prepare", str(tmp_path / "o" / "cif"), "--name", "mine", "--out", str(tmp_path)]
    )
    assert prepared.exit_code == 0 and "2 structures" in prepared.output


def test_a_mistake_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "atomsmith", "sample", "no-such-model", "-n", "1", "--out", "x"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("atomsmith: ") and done.stderr.count("\n") == 1 and "no-such-model" in done.stderr
