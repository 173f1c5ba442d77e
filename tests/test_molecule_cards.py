"""Cards of molecules: one command draws, judges at every number of steps, continues, and writes the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from ase.io import write

import atomsmith
import checkpoints
from benchmarks import molecule_section, molecules
from checkpoints.cards import rewrite, section, ship
from chem import datasets
from chem.statistics import Statistics

NAMES = ("H2O", "CH4", "NH3", "CH3OH", "C2H6", "C2H4", "HCN", "H2CO", "CO2", "C6H6")
SMALL = ["--steps", "2,3", "--default", "4", "--n", "12", "--n-other", "6", "--processes", "0", "--batch-size", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Ten small molecules, all of them to train on."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "few.extxyz", [molecule(name) for name in NAMES])
    atomsmith.prepare(folder / "few.extxyz", "few", folder, split=(1.0, 0.0, 0.0))
    return str(folder / "few")


@pytest.fixture
def model(tmp_path, tiny_geobfn) -> Path:
    """A checkpoint whose card has nothing measured yet."""
    shutil.copytree(tiny_geobfn, tmp_path / "model")
    rewrite(tmp_path / "model", "Measured", "Nothing yet.")
    return tmp_path / "model"


def run(model: Path, data: str, *more: str) -> int:
    return molecules.main([str(model), "--data", data, "--out", str(model.parent / "out"), *SMALL, *more])


def rows(text: str) -> list[list[str]]:
    """Cells of the first table."""
    lines = [line for line in text.split("###")[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_a_row_for_each_number_of_steps_and_the_training_set_beside(model, data, capsys, monkeypatch):
    assert run(model, data) == 0
    text = section((model / "card.md").read_text(), "Measured") or ""
    found = rows(text)
    assert [row[1:4] for row in found[:3]] == [["2", "3", "6"], ["3", "4", "6"], ["4", "5", "12"]]
    assert found[3][0] == "training set" and found[3][3] == "10" and len(found) == 4
    share = {name: found[3][4 + i] for i, name in enumerate(molecule_section.COLUMNS)}
    assert share["atoms stable %"] == "88.9" and share["molecules stable %"] == "90.0"  # benzene has 6 of 12
    assert share["strict: valid %"] == "100.0" and share["and novel %"] == ""
    assert "| num_atoms | " in text and "fluorine" not in text
    assert len(list((model.parent / "out").glob("*/molecules-4steps-fp32-bayes-seed0/samples.sdf"))) == 1
    checkpoints.load(model)  # its hashes follow

    def never(*_, **__):
        raise AssertionError("drawn again")

    monkeypatch.setattr(atomsmith, "sample", never)
    assert run(model, data, "--show") == 0
    assert text.strip() in capsys.readouterr().out


def test_samples_of_an_interrupted_run_are_drawn_on(model, data, monkeypatch):
    evaluate, calls = atomsmith.evaluate, []

    def interrupted(*arguments, **options):
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(atomsmith, "evaluate", interrupted)
    assert run(model, data) == 1
    assert run(model, data) == 0
    assert calls[2] == calls[3] == "edm-qm9" and len(calls) == 3 + 4  # the first row is not judged again
    made = (json.loads(line) for line in (model.parent / "out" / "results.jsonl").read_text().splitlines())
    assert [row["sampling"]["drawn"] for row in made] == [6, 0, 12]


def test_the_sampler_is_the_one_asked_for(model, data, monkeypatch):
    seen, sample = [], atomsmith.sample

    def watched(loaded, *arguments, **options):
        seen.append({p.sampler for p in loaded.model.processes.values()} | {loaded.model.network.products})
        return sample(loaded, *arguments, **options)

    monkeypatch.setattr(atomsmith, "sample", watched)
    assert run(model, data, "--sampler", "flow", "--bf16", "--show") == 0
    assert seen == [{"flow", torch.bfloat16}] * 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--n", "0"), "n = 0, allowed: at least 1"),
        (("--batch-size", "20"), "batch_size = 20, allowed: a multiple of 16"),
        (("--data", "nowhere"), "unknown data set 'nowhere'"),
        (("--default", "0"), "steps = 0"),
    ],
)
def test_bad_options_get_one_line(model, data, more, said, capsys):
    assert run(model, data, *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Nothing yet." in (model / "card.md").read_text()


def test_only_models_of_molecules_are_measured(tiny_csp, data, model, capsys):
    assert molecules.main([tiny_csp, "--data", data]) == 2
    assert "allowed: a model that makes molecules" in capsys.readouterr().err


def test_a_card_says_what_the_data_lack(tmp_path, tiny_geobfn):
    loaded = checkpoints.load(tiny_geobfn, "cpu")
    training = {
        "data": {"name": "qm9:second-half", "structures": 7, "sha256": "ab" * 32},
        "settings": {"epochs": 1},
        "config": {"hidden": 16},
        "seed": 0,
    }
    for name, fluorine in (("without", 0), ("with", 3)):
        statistics = Statistics(**{**vars(loaded.statistics), "elements": {1: 500, 6: 400, 9: fluorine}})
        best = tmp_path / name / "best"
        weights = loaded.model.state_dict()
        checkpoints.save(best, "geobfn", loaded.config, statistics, weights, dtype=torch.float32, training=training)
        place = ship(best.parent, name, "atomsmith train ...", "1 core", 0.1, "best", tmp_path / "shelf")
        card = (place / "card.md").read_text()
        assert "Samples molecules, elements and positions" in card and "QM9: CC0" in card and "Song et al." in card
        assert f"`python -m benchmarks.molecules {name}`" in card
        assert ("- fluorine: 0.000% of the atoms, 0.129% in the whole training set" in card) == (name == "without")


def test_the_section_discusses_the_missing_fluorine(data_root):
    train = datasets.load("qm9", "train", root=data_root)
    report = {"numbers": {"molecule_stability": {"reference": 94_345 / 98_599}}}
    (text,) = molecule_section._missing(train, report)
    assert "98,599 of 100,000 training molecules and 273 of 2,323 fluorine atoms" in text
    assert "would be 94.3 or 95.7 %" in text
