"""Conditions through the front door: training on columns with gaps, asking, judging by a regressor."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

import atomsmith
import checkpoints
from benchmarks import conditional
from checkpoints import making
from checkpoints.cards import section
from chem import datasets
from chem.halves import training_splits
from chem.molecules import MoleculeBatch
from generative import guidance
from tests.commands import cli

SIZE = dict(hidden=16, layers=1, batch_size=32, precision="fp32")


def with_settings(**changes):
    """`making.recipe` with settings of the training changed that the verb does not offer."""
    recipe = making.recipe

    def changed(*arguments):
        made = recipe(*arguments)
        return replace(made, settings=replace(made.settings, **changes))

    return changed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Water-like molecules and pairs, with `spread` (missing in a quarter), `size`, and `same`, one value for all."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    frames = []
    for i in range(240):
        length = draw.uniform(0.8, 1.6)
        pos = length * np.array([[0.0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])[: 3 - i % 2]
        atoms = Atoms("OHH"[: len(pos)], pos + draw.normal(size=3))
        atoms.info.update({"id": f"m{i}", "size": float(len(pos)), "same": 1.0})
        if i % 4:
            atoms.info["spread"] = length
        frames.append(atoms)
    write(folder / "toys.extxyz", frames)
    atomsmith.prepare(folder / "toys.extxyz", "toys", folder)
    return folder / "toys"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A conditional GeoBFN of two epochs, which have taught it something."""
    out = tmp_path_factory.mktemp("runs") / "asked"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "recipe", with_settings(ema=0.0, warmup=0))
        atomsmith.train("geobfn", data, out, epochs=2, conditions="spread,size", lr=3e-3, **SIZE)
    return out


@pytest.fixture(scope="module")
def regressor(data, tmp_path_factory):
    """A regressor of `size`, trained, without averages, until it knows it."""
    out = tmp_path_factory.mktemp("runs") / "judge"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "recipe", with_settings(ema=0.0, warmup=0))
        atomsmith.train("regressor", f"{data}:first-half", out, epochs=40, property="size", lr=3e-3, **SIZE)
    return out


def test_conditions_are_part_of_the_checkpoint(run, data):
    loaded = atomsmith.load(run)
    assert loaded.config.conditions == ("spread", "size")
    spread = loaded.statistics.properties["spread"]
    known = ~datasets.load(data, "train").batch["spread"].isnan()
    assert spread.count == int(known.sum()) < loaded.statistics.num_structures
    assert json.loads((run / "run.json").read_text())["config"]["conditions"] == ["spread", "size"]


@pytest.mark.parametrize("name", ["height", "same"])
def test_columns_that_cannot_be_conditions_are_refused(data, tmp_path, name):
    with pytest.raises(ValueError, match=rf"conditions = '{name}', allowed: (spread, size|size, spread)"):
        atomsmith.train("geobfn", data, tmp_path / "out", conditions=[name], **SIZE)
    assert not (tmp_path / "out").exists()


def test_a_stopped_training_with_conditions_ends_where_an_undisturbed_one_does(data, tmp_path, monkeypatch):
    """What is hidden is a function of the seed and the step, too."""
    calls, hide = [], guidance.Conditional.hide

    def stop(self, batch, generator):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("stopped by the test")
        return hide(self, batch, generator)

    def train(name: str, **options) -> dict[str, torch.Tensor]:
        atomsmith.train("geobfn", data, tmp_path / name, epochs=2, conditions="spread,size", **options, **SIZE)
        return checkpoints.load(tmp_path / name / "last").model.state_dict()

    monkeypatch.setattr(making, "recipe", with_settings(save_every=1))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped by the test"):
        patch.setattr(guidance.Conditional, "hide", stop)
        train("again")
    resumed, whole = train("again", resume=True), train("whole")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_samples_are_asked_for_conditions(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = atomsmith.sample(
            run, 3, num_atoms=3, steps=3, conditions={"spread": 1.0}, guidance=1.0, out=tmp_path / "a"
        )
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["request"]["conditions"] == {"spread": 1.0} and manifest["request"]["guidance"] == 1.0
    plain = atomsmith.sample(run, 3, num_atoms=3, steps=3)
    assert manifest["network_calls"] == 2 * (3 + 1)
    assert not np.array_equal(*(m[0].GetConformer().GetPositions() for m in (made, plain)))
    with pytest.raises(ValueError, match="holds samples made with conditions = .*1.0.*, asked .*1.1"):
        atomsmith.sample(run, 3, num_atoms=3, steps=3, conditions={"spread": 1.1}, guidance=1.0, out=tmp_path / "a")
    with pytest.warns(UserWarning, match="condition spread = 9: the model was trained on 0.8"):
        atomsmith.sample(run, 1, steps=1, conditions={"spread": 9})


def test_the_command_line_asks(run, tmp_path, monkeypatch, capsys):
    common = ["sample", run, "-n", 2, "--num-atoms", 3, "--steps", 2]
    done = cli(
        [*common, "--out", tmp_path / "a", "--condition", "spread=1.1", "--condition", "size=3"], monkeypatch, capsys
    )
    assert done.code == 0, done.err
    request = json.loads((tmp_path / "a" / "manifest.json").read_text())["request"]
    assert request["conditions"] == {"spread": 1.1, "size": 3.0} and request["guidance"] == 0.0
    for words, said in (
        (["--condition", "gap=1"], "atomsmith: condition gap = 1, allowed: spread, size"),
        (["--condition", "spread"], "atomsmith: condition = 'spread', allowed: NAME=NUMBER"),
        (["--guidance", 1], "atomsmith: guidance = 1.0, allowed: with conditions"),
    ):
        done = cli([*common, "--out", tmp_path / "b", *words], monkeypatch, capsys)
        assert (done.code, done.err.strip()) == (2, said)
    assert not (tmp_path / "b").exists()


def test_a_model_takes_up_conditions_later(data, run, tmp_path):
    first = atomsmith.train("geobfn", data, tmp_path / "bare", epochs=1, **SIZE)
    tuned = atomsmith.train(
        "geobfn", data, tmp_path / "tuned", init=first, conditions="spread", epochs=1, batch_size=32
    )
    assert checkpoints.load(tuned).config.conditions == ("spread",)
    with pytest.raises(ValueError, match="conditions = 'size', allowed: 'spread', which init was trained with"):
        atomsmith.train("geobfn", data, tmp_path / "other", init=tuned, conditions="size", epochs=1)
    kept = atomsmith.train("geobfn", data, tmp_path / "kept", init=tuned, epochs=1, batch_size=32)
    assert checkpoints.load(kept).config.conditions == ("spread",)


def test_a_run_that_is_older_than_a_setting_is_continued(data, tmp_path):
    options = dict(epochs=1, **SIZE)
    atomsmith.train("geobfn", data, tmp_path / "run", **options)
    place = tmp_path / "run" / "run.json"
    made = json.loads(place.read_text())
    del made["config"]["conditions"]
    place.write_text(json.dumps(made))
    atomsmith.train("geobfn", data, tmp_path / "run", resume=True, **options)
    with pytest.raises(ValueError, match="differs in config"):
        atomsmith.train("geobfn", data, tmp_path / "run", resume=True, conditions="size", **options)


def test_halves_share_nothing_and_make_the_whole(data):
    whole = datasets.load(data, "train")
    (first, val), (second, again) = (training_splits(f"{data}:{half}") for half in ("first-half", "second-half"))
    assert not set(first.ids) & set(second.ids) and {*first.ids, *second.ids} == set(whole.ids)
    assert abs(len(first) - len(second)) <= 1 and val.ids == again.ids == datasets.load(data, "val").ids
    for half in (first, second):
        rows = torch.tensor([whole.ids.index(name) for name in half.ids])
        assert torch.equal(half.batch["size"], whole.batch["size"][rows])
        assert torch.equal(half.batch["num_atoms"], whole.batch["num_atoms"][rows])


def test_a_regressor_learns_from_the_rows_that_have_a_value(data, tmp_path):
    best = atomsmith.train("regressor", data, tmp_path / "run", epochs=1, property="spread", **SIZE)
    known = ~datasets.load(data, "train").batch["spread"].isnan()
    assert checkpoints.load(best).training["data"]["structures"] == int(known.sum())
    with pytest.raises(ValueError, match="property = 'height', allowed: "):
        atomsmith.train("regressor", data, tmp_path / "other", property="height", **SIZE)
    with pytest.raises(ValueError, match="allowed: not with model = 'geobfn'"):
        atomsmith.train("geobfn", data, tmp_path / "other", property="size", **SIZE)
    with pytest.raises(ValueError, match="is a regressor, allowed: a generator"):
        atomsmith.sample(best, 1)


def test_a_regressor_judges_what_samples_were_asked_for(data, regressor, tmp_path, monkeypatch, capsys):
    held_out = datasets.load(data, "val").batch
    asked = MoleculeBatch(held_out["num_atoms"], pos=held_out["pos"], atomic_numbers=held_out["atomic_numbers"])
    report = atomsmith.evaluate(
        asked.attach("structure", size=held_out["size"]), f"{data}:val", "edm-conditional", regressor=regressor
    )
    assert report["mae"].value == pytest.approx(report["mae_real"].value)
    assert report["mae_real"].value < 0.1 < 0.3 < report["mae_shuffled"].value
    assert report["mae_num_atoms"].value == 0 and report["judged"].value == 1
    frames = [Atoms("OHH", p) for p in np.random.default_rng(0).normal(size=(3, 3, 3))]
    frames[0].info["conditions"], frames[1].info["conditions"] = {"size": 3.0}, {"size": 2.0}
    write(tmp_path / "made.extxyz", frames)
    words = ["evaluate", tmp_path / "made.extxyz", "--protocol", "edm-conditional", "--regressor", regressor]
    done = cli([*words, "--reference", f"{data}:val", "--out", tmp_path / "report"], monkeypatch, capsys)
    assert done.code == 0 and "does not say what it was asked for" in " ".join(done.out.split()), done.err
    found = json.loads((tmp_path / "report" / "report.json").read_text())["numbers"]
    assert found["judged"]["hits"] == 2 and found["mae"]["n"] == 2
    done = cli(words[:-2], monkeypatch, capsys)
    assert done.code == 2 and "edm-conditional and a regressor are for each other alone" in done.err


def test_the_protocol_of_conditions_in_one_command(data, run, regressor, capsys):
    words = ["--data", str(data), "--n", "24", "--steps", "4", "--weights", "0", "1"]
    conditional.main([str(run), str(regressor), *words])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" 0.")[0] for line in lines] == [
        *("size mae_real", "size mae_shuffled", "size mae_num_atoms"),
        *("size w = 0", "size w = 1"),
    ]
    assert all("of 24 of 24, correlation" in line for line in lines[3:])
    for folder, title in ((run, "Asked for a property"), (regressor, "Measured")):
        written = section((folder / "best" / "card.md").read_text(), title)
        assert written is not None and all(f"- {line}" in written for line in lines) and "--steps 4" in written
    assert atomsmith.load(run).config.conditions == ("spread", "size")  # hashes follow the card
    rows = conditional.rows_of(str(data), "spread", 24, 0)
    assert len(rows) == 24 and not rows["spread"].isnan().any()  # a row without a value cannot be asked for
    for pair in ((regressor, regressor), (run, run)):
        with pytest.raises(SystemExit):
            conditional.main([str(one) for one in pair])
    said = capsys.readouterr().err
    assert "allowed: a model with the condition size" in said and "is a geobfn, allowed: a regressor" in said


def test_errors_of_papers_are_in_the_unit_of_the_data():
    (gap,) = conditional.published("gap", "qm9")
    assert "EDM 0.0241, GeoLDM 0.0216, GeoBFN 0.0212" in gap and "real 0.0024" in gap
    assert "EDM 1.1110" in conditional.published("mu", "qm9:second-half")[0]
    assert conditional.published("zpve", "qm9") == conditional.published("gap", "mine") == []
