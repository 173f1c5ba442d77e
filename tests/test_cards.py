"""Cards: measured by one command that continues what was interrupted, and written without touching the rest."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import atomsmith
import checkpoints
from benchmarks import cards
from benchmarks.drawing import Sampler, ab_initio, draw, predictions
from benchmarks.judging import Results, labels
from checkpoints.cards import rewrite, section, ship
from chem import datasets
from chem.prototypes import build
from evaluation.groups import matched, rates_by, size_label
from evaluation.protocols import protocol
from generative.generator import Denoiser

CARD = "# tiny\n\nWhat it is.\n\n## Loss\n\n| a | b |\n|---|---|\n\n## Measured\n\nNothing yet.\n\n## Licence\n\nMIT.\n"
OPTIONS = ["--data", "prototypes", "--steps", "2", "--processes", "0", "--batch-size", "16"]


@pytest.fixture(scope="module", autouse=True)
def prototypes_made_once():
    """Making them takes seconds, and every part of a card loads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chem.prototypes.build", cache(build))
        yield


@pytest.fixture
def shelf(tmp_path, tiny_csp, tiny_ab_initio) -> Path:
    """A folder of checkpoints with a manifest, as the shipped ones are."""
    for source, name in ((tiny_csp, "csp"), (tiny_ab_initio, "ab-initio")):
        shutil.copytree(source, tmp_path / "shelf" / name)
        rewrite(tmp_path / "shelf" / name, "Measured", "Nothing yet.")
    checkpoints.register(tmp_path / "shelf")
    return tmp_path / "shelf"


def run(shelf: Path, name: str, *more: str) -> int:
    return cards.main([str(shelf / name), "--out", str(shelf.parent / "out"), *OPTIONS, *more])


def table_column(text: str, heading: str, column: int) -> list[str]:
    """Cells of a column of the table under a heading."""
    lines = text.split(f"### {heading}")[1].split("###")[0].strip().splitlines()
    return [line.split("|")[column].strip() for line in lines if line.startswith("|")][2:]


@pytest.fixture
def plain_cells(monkeypatch):
    """Cubic cells for those of random weights, which are so skewed that the matcher takes a second for each."""
    sample = Denoiser.sample

    def cubic(self, template, *args, **options):
        made = sample(self, template, *args, **options)
        return made.replace(lattice=4 * torch.eye(3).expand(len(made), 3, 3))

    monkeypatch.setattr(Denoiser, "sample", cubic)


def test_card_of_structure_prediction(shelf, plain_cells):
    n = 10
    assert run(shelf, "csp", "--n", str(n), "--n20", "1") == 0
    text = section((shelf / "csp" / "card.md").read_text(), "Measured") or ""
    assert f"the first {n} crystals of `prototypes` val" in text and "the first 1 crystals" in text
    for heading in ("By cell size", "By whether element substitution", "By whether the formula"):
        assert sum(map(int, table_column(text, heading, 2))) == n
    whole = re.search(r"\| csp \| \d+: [^|]+ \| (\d+): ", text)
    hits = [int(cell.split(":")[0]) for cell in table_column(text, "By cell size", 3)]
    assert whole is not None and sum(hits) == int(whole.group(1))
    assert "random coordinates in the true cell |" in text and "element substitution from train |" in text
    for said in (protocol("diffcsp-csp").hash, "2 steps, 4 network calls", "--n 10 --n20 1 --steps 2", "seed 0"):
        assert said in text
    assert "paper" not in text  # which reports nothing of this data set
    assert atomsmith.load(shelf / "csp").name == "csp"  # hashes follow the card
    manifest = json.loads((shelf / "manifest.json").read_text())
    assert manifest["csp"] == json.loads((shelf / "csp" / "sha256.json").read_text())


def test_card_of_an_ab_initio_model(shelf):
    assert run(shelf, "ab-initio", "--samples", "20") == 0
    text = section((shelf / "ab-initio" / "card.md").read_text(), "Measured") or ""
    n = len(datasets.load("prototypes", "val"))
    assert "### 20 samples against `prototypes` val" in text and "--samples 20" in text
    assert f"| all {n} crystals of `prototypes:val` themselves | {n}: 100.0" in text
    assert "floor" in text and protocol("cdvae-2022").hash in text


def test_what_is_finished_is_not_done_again(shelf, plain_cells, monkeypatch, capsys):
    options = ("csp", "--n", "5", "--n20", "0")
    assert run(shelf, *options) == 0
    first = (shelf / "csp" / "card.md").read_text()

    def never(*args, **options):
        raise AssertionError("done again")

    monkeypatch.setattr(Denoiser, "sample", never)
    monkeypatch.setattr("benchmarks.sections.judge_csp", never)
    assert run(shelf, *options) == 0
    assert (shelf / "csp" / "card.md").read_text() == first
    assert run(shelf, *options, "--show") == 0
    assert "### k = 1" in capsys.readouterr().out


def test_an_interrupted_run_is_continued_with_the_same_samples(shelf, plain_cells, tmp_path, monkeypatch, capsys):
    calls, sample = [], Denoiser.sample

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, *args, **options)

    monkeypatch.setattr(Denoiser, "sample", interrupted)
    before = (shelf / "csp" / "card.md").read_text()
    assert run(shelf, "csp", "--n", "20", "--n20", "0") == 1
    assert "16 of 20 samples are in" in capsys.readouterr().err and (shelf / "csp" / "card.md").read_text() == before
    record = next((tmp_path / "out").rglob("samples.jsonl"))
    assert len(record.read_text().splitlines()) == 16
    assert run(shelf, "csp", "--n", "20", "--n20", "0") == 0 and len(calls) == 3
    plan = predictions(datasets.load("prototypes", "val"), 1)
    draw(atomsmith.load(shelf / "csp"), plan, 20, Sampler(2), tmp_path / "whole", "whole", 16)
    assert (tmp_path / "whole" / "samples.jsonl").read_text() == record.read_text()


def test_no_more_targets_than_there_are(shelf, monkeypatch, capsys):
    def asked(*args, **options):
        raise ValueError(f"asked for {args[2]}")

    monkeypatch.setattr("benchmarks.sections.judge_csp", asked)
    assert run(shelf, "csp", "--n", "1000") == 2
    assert f"asked for {len(datasets.load('prototypes', 'val'))}" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["csp", "ab-initio"])
def test_more_samples_extend_fewer(shelf, tmp_path, task):
    loaded = atomsmith.load(shelf / task)
    plan = ab_initio(loaded, 0) if task == "ab-initio" else predictions(datasets.load("prototypes", "val"), 3)
    few = draw(loaded, plan, 5, Sampler(2), tmp_path / "grown", "x").structures
    grown = draw(loaded, plan, 20, Sampler(2), tmp_path / "grown", "x")
    fresh = draw(loaded, plan, 20, Sampler(2), tmp_path / "fresh", "x")
    assert len(few) == 5 and len(grown.structures) == grown.count == 20 and grown.seconds > 0
    for one, other in zip(grown.structures, fresh.structures, strict=True):
        assert one.composition == other.composition and one.properties == other.properties
        assert np.allclose(one.lattice.matrix, other.lattice.matrix, atol=1e-4)
    with pytest.raises(ValueError, match="holds samples made with steps = 2, asked 3"):
        draw(loaded, plan, 20, Sampler(3), tmp_path / "grown", "x")


def test_predictions_are_k_in_a_row_with_the_target_they_are_for(shelf, tmp_path):
    data = datasets.load("prototypes", "val")
    made = draw(atomsmith.load(shelf / "csp"), predictions(data, 3), 7, Sampler(1), tmp_path / "x", "x").structures
    assert [s.properties["target"] for s in made] == [data.ids[i // 3] for i in range(7)]
    numbers = [data.batch[i // 3]["atomic_numbers"].tolist() for i in range(7)]
    assert [list(s.atomic_numbers) for s in made] == numbers


def test_bad_arguments_get_one_line(shelf, capsys):
    for options, message in (
        (("nothing",), "nothing', allowed: crysbfn-mp20-csp"),
        (("csp", "--n", "0", "--n20", "0"), "n = 0, n20 = 0, allowed"),
        (("csp", "--batch-size", "10"), "batch_size = 10, allowed: a multiple of 16"),
        (("ab-initio", "--samples", "0"), "samples = 0, allowed"),
        (("csp", "--steps", "0"), "steps = 0"),
    ):
        assert run(shelf, *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_torn_line_of_results_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    Results(path).part({"what": "a"}, lambda: {"value": 1})
    path.write_text(path.read_text() + '{"key": {"wha')
    results = Results(path)
    assert [row["value"] for row in results.rows] == [1]
    assert results.part({"what": "b"}, lambda: {"value": 2})["value"] == 2
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 2]


def test_rewriting_a_section_leaves_the_others(tmp_path, tiny_csp):
    place = tmp_path / "tiny"
    shutil.copytree(tiny_csp, place)
    (place / "card.md").write_text(CARD)
    rewrite(place, "Measured", "### k = 1\n\nNew.\n")
    assert (place / "card.md").read_text() == CARD.replace("Nothing yet.", "### k = 1\n\nNew.")
    rewrite(place, "Measured", "Nothing yet.")
    assert (place / "card.md").read_text() == CARD
    rewrite(place, "Licence", "Other.")
    assert (place / "card.md").read_text() == CARD.replace("MIT.", "Other.")
    rewrite(place, "Notes", "At the end.")
    assert (place / "card.md").read_text() == CARD.replace("MIT.", "Other.") + "\n## Notes\n\nAt the end.\n"
    assert checkpoints.load(place).name == "tiny"
    assert section(CARD, "Loss") == "| a | b |\n|---|---|" and section(CARD, "Los") is None
    with pytest.raises(ValueError, match="heading of level 1 or 2"):
        rewrite(place, "Notes", "## Licence\n")


def shipped(tmp_path: Path, source: str, name: str, scale: float = 1.0) -> Path:
    """Ship a run made of a tiny model."""
    loaded = checkpoints.load(source, "cpu")
    training = {
        "data": {"name": "mp20", "structures": 7, "sha256": "ab" * 32},
        "settings": {"epochs": 1},
        "config": {"task": loaded.config.task},
        "seed": 0,
    }
    weights = {k: v * scale if v.is_floating_point() else v for k, v in loaded.model.state_dict().items()}
    best = tmp_path / "run" / "best"
    args = ("diffcsp", loaded.config, loaded.statistics, weights)
    checkpoints.save(best, *args, dtype=torch.float32, training=training)
    return ship(tmp_path / "run", name, "atomsmith train ...", "1 core", 0.1, "best", tmp_path / "shelf")


def test_shipping_the_same_weights_keeps_what_was_measured(tmp_path, tiny_csp, tiny_ab_initio):
    place = shipped(tmp_path, tiny_csp, "a")
    card = (place / "card.md").read_text()
    assert "Predicts crystal structures" in card and "Nothing yet; `python -m benchmarks.cards a`" in card
    rewrite(place, "Measured", "All of it.")
    assert section((shipped(tmp_path, tiny_csp, "a") / "card.md").read_text(), "Measured") == "All of it."
    assert checkpoints.load(place).name == "a"
    other = shipped(tmp_path, tiny_csp, "a", scale=2.0)
    assert (section((other / "card.md").read_text(), "Measured") or "").startswith("Nothing yet")
    whole = (shipped(tmp_path, tiny_ab_initio, "b") / "card.md").read_text()
    assert "Samples crystals whole" in whole and "Materials Project data: CC BY 4.0" in whole
    assert set(json.loads((tmp_path / "shelf" / "manifest.json").read_text())) == {"a", "b"}


def test_groups_of_targets():
    assert [size_label(n) for n in (1, 4, 5, 8, 9, 14, 15, 20, 21, 52)] == [
        *("1-4", "1-4", "5-8", "5-8", "9-14", "9-14", "15-20", "15-20", "over 20", "over 20")
    ]
    rows = [{"candidate": c, "rms": rms} for c, rms in ((0, None), (1, 0.1), (0, None), (1, None), (0, 0.2), (1, None))]
    hits = matched(rows)
    assert hits.tolist() == [True, False, True]
    found = rates_by("all", hits, ["15-20", "5-8", "5-8"], protocol("diffcsp-csp"))
    assert [(label, x.hits, x.n) for label, x in found.items()] == [("5-8", 1, 2), ("15-20", 1, 1)]
    assert found["5-8"].low == pytest.approx(0.0945, abs=1e-4) and found["5-8"].high == pytest.approx(0.9055, abs=1e-4)
    with pytest.raises(ValueError, match="labels has 2 entries"):
        rates_by("all", hits, ["a", "b"], protocol("diffcsp-csp"))


def test_formulas_of_mp20_seen_in_train(data_root):
    """Measured by the sheet on all of validation: 20.8 %."""
    found = Counter(labels("mp20", 8903)["formula"])
    assert found["seen in train"] / found.total() == pytest.approx(0.208, abs=5e-4)


def test_rows_draw_for_either_task(shelf, monkeypatch):
    from benchmarks import rows

    pytest.importorskip("chgnet", reason="chgnet is not installed: it comes with the extra 'stability'")
    monkeypatch.setattr(
        rows.Rows, "_judge", lambda self, what, name, n: {"report": [type(what).__name__, len(what), n]}
    )
    words = ["--n", "3", "--samples", "5", "--steps", "2", "--out", str(shelf.parent / "rows"), "--batch-size", "16"]
    judge = rows.Rows(rows.parser("rows", rows.__doc__, "").parse_args(words), "prototypes")
    made = {name: judge.of(atomsmith.load(str(shelf / name))) for name in ("csp", "ab-initio")}
    assert [row["report"] for row in made.values() if row] == [["list", 5, 5], ["list", 5, 5]]
    assert judge.real()["report"] == ["str", len("prototypes:val:3"), 3]
    folders = sorted(path.name for path in (shelf.parent / "cards").glob("*/*"))
    assert [name.split("-2steps")[0] for name in folders] == ["ab-initio", "csp-prototypes-k1"]


def test_rows_of_every_metric(tmp_path, monkeypatch):
    """A page and a short table of models in columns; what a row lacks stays empty."""
    from benchmarks import rows
    from evaluation.evaluate import evaluate

    def judged(n: int) -> dict:
        return {"report": evaluate(f"prototypes:val:{n}", "prototypes:train", "cdvae-2022").as_dict()}

    table = {"real": judged(4), "ours": judged(2)}
    del table["ours"]["report"]["numbers"]["compositional_validity"]
    text = rows.page(table, "python -m benchmarks.rows")
    line = next(line for line in text.splitlines() if line.startswith("| structural validity |"))
    assert line.split("|")[2:4] == [" 100.0 (51.0 to 100.0) ", " 100.0 (34.2 to 100.0) "]
    assert line.endswith("| structures; cdvae |")
    brief = {line.split("|")[1].strip(): line for line in rows.short(table).splitlines()}
    assert brief["valid structure"].count("100.0") == 4 and brief["valid composition"].endswith("|  |")
    assert set(brief) >= set(rows.SHORT.values())
