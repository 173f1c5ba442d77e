"""Quality against network calls: one command, resumed point by point, whose tables and picture follow the points."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import atomsmith
import checkpoints
from benchmarks import calls, curves, slopes
from benchmarks.curves import Point, Series
from benchmarks.drawing import Sampler, draw, predictions, slope_of
from benchmarks.judging import Results
from benchmarks.quality import differences, equals, rates, sufficient
from checkpoints.cards import BY_CALLS, section
from chem import datasets
from chem.prototypes import build as build_prototypes
from chem.statistics import Statistics
from evaluation.csp import LEGACY
from evaluation.ranking import rank
from generative.generator import Denoiser
from generative.models.flowmm import FlowMMConfig, build

OPTIONS = ["--data", "prototypes", "--processes", "0", "--batch-size", "16"]


@pytest.fixture(scope="module", autouse=True)
def prototypes_made_once():
    """Making them takes seconds, and every point loads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chem.prototypes.build", cache(build_prototypes))
        yield


@pytest.fixture(autouse=True)
def plain_cells(monkeypatch):
    """Cubic cells for those of random weights, which are so skewed that the matcher takes a second for each."""
    sample = Denoiser.sample

    def cubic(self, template, *args, **options):
        made = sample(self, template, *args, **options)
        return made.replace(lattice=4 * torch.eye(3).expand(len(made), 3, 3))

    monkeypatch.setattr(Denoiser, "sample", cubic)


@pytest.fixture(scope="module")
def flows(tmp_path_factory) -> tuple[str, str]:
    """Folders of two tiny FlowMM of structure prediction, alike but for their random weights."""
    statistics = Statistics.compute(datasets.load("prototypes", "train").batch)
    config = FlowMMConfig(hidden=16, layers=2, frequencies=4, time_dim=16, steps=4)
    folders = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build(config, statistics)
        folder = tmp_path_factory.mktemp("models") / f"flow{seed}"
        checkpoints.save(folder, "flowmm", config, statistics, model.state_dict(), dtype=torch.float32)
        folders.append(str(folder))
    return folders[0], folders[1]


def run(place: Path, *words: object) -> int:
    return calls.main(["--out", str(place / "out"), "--docs", str(place / "docs"), *OPTIONS, *map(str, words)])


def point(number: int, hits: object, legacy: object = None, seeds: int = 1) -> Point:
    """A point with these hits (T, S) in every variant."""
    marks = np.array(hits, dtype=bool).reshape(-1, seeds)
    of = np.array(hits if legacy is None else legacy, dtype=bool).reshape(-1, seeds)
    rms = np.where(marks, 0.1, np.nan)
    return Point(number, number, number, {"all": marks, LEGACY: of, "strict": marks}, rms)


def test_table_picture_and_resume_of_all_samplers(tmp_path, tiny_csp, flows, monkeypatch, capsys):
    asked = (tiny_csp, flows[0], "--calls", "4,7", "--n", 6, "--n-long", 3)
    assert run(tmp_path, *asked) == 0
    text = (tmp_path / "docs" / "quality.md").read_text()
    lines = [line for line in text.splitlines() if "| 6 |" in line]
    assert len(lines) == 8 and (tmp_path / "docs" / "quality.png").read_bytes()[:4] == b"\x89PNG"
    wanted = {"corrector": ["4 | 2", "6 | 3"], "no corrector": ["4 | 4", "7 | 7"]}
    wanted |= {"Euler": ["4 | 4", "7 | 7"], "Heun": ["3 | 2", "7 | 4"]}
    for sampler, counts in wanted.items():
        assert [line.split(", ")[-1].split(" | ", 1)[1][:5] for line in lines if f", {sampler} |" in line] == counts
    assert f"{flows[0]}, Euler - {tiny_csp}, corrector" in text and "--calls 4,7 --n 6" in text
    rows = Results(tmp_path / "out" / "results.jsonl").rows
    assert len(rows) == 8
    for row in rows:  # the marks are those of the report
        for variant in curves.VARIANTS:
            assert row["hits"][variant].count("1") == row["report"]["numbers"][f"match_rate_{variant}@1"]["hits"]
        assert [x is not None for x in row["rms"]] == [mark == "1" for mark in row["hits"]["all"]]

    def never(*args, **options):
        raise AssertionError("done again")

    monkeypatch.setattr("benchmarks.calls.judge", never)
    monkeypatch.setattr("benchmarks.calls.draw", never)
    (tmp_path / "docs" / "quality.md").unlink()
    assert run(tmp_path, *asked) == 0 and (tmp_path / "docs" / "quality.md").read_text() == text
    assert run(tmp_path, tiny_csp, "--calls", "4,9", "--n", 6, "--finished") == 0
    assert (tmp_path / "docs" / "quality.md").read_text().count("| 6 |") == 2  # 9 calls are not there
    assert run(tmp_path, tiny_csp, "--calls", "9", "--n", 6, "--finished") == 2
    assert "no point is there yet" in capsys.readouterr().err


def test_an_interruption_keeps_the_finished_points(tmp_path, flows, monkeypatch, capsys):
    judge, times = calls.judge, []

    def interrupted(*args, **options):
        times.append(1)
        if len(times) == 3:
            raise KeyboardInterrupt
        return judge(*args, **options)

    monkeypatch.setattr("benchmarks.calls.judge", interrupted)
    asked = (flows[0], "--calls", "2,3", "--n", 4)
    assert run(tmp_path, *asked) == 1 and not (tmp_path / "docs").exists()
    assert "what is finished is kept" in capsys.readouterr().err
    assert run(tmp_path, *asked) == 0 and len(times) == 5  # two, the interrupted one and the two that are left


def test_cards_of_shipped_models_get_their_points(tmp_path, tiny_csp, flows, monkeypatch):
    copies = {}
    for name, source in (("old", tiny_csp), ("new", flows[0])):
        copies[name] = tmp_path / "shipped" / name
        shutil.copytree(source, copies[name])
    monkeypatch.setattr(atomsmith, "models", lambda: {n: SimpleNamespace(folder=f) for n, f in copies.items()})
    assert run(tmp_path, "old", f"new+{flows[1]}", "--calls", "2,4", "--n", 4) == 0
    for name, others in (("old", "| new ("), ("new", "| old,")):
        text = section((copies[name] / "card.md").read_text(), BY_CALLS)
        assert text is not None and others not in text.split("### Differences")[0]
        assert text.count("| 4 |") >= 4 and "[../../docs/quality.md](../../docs/quality.md)" in text
        paired = [line for line in text.splitlines() if line.startswith("| new (2 seeds), ")]
        assert [line for line in paired if " - old, " in line] and " - old, no corrector |" in text
        assert atomsmith.load(copies[name]).sha256  # hashes follow the card
    assert section((Path(flows[1]) / "card.md").read_text(), BY_CALLS) is None  # not shipped


def test_slopes_and_several_seeds(tmp_path, flows):
    assert run(tmp_path, "+".join(flows), "--calls", "3", "--n", 5, "--slopes", "0,4") == 0
    text = (tmp_path / "docs" / "quality.md").read_text()
    assert text.count("| 5 |") == 2 and "slope 4 - " in text and "Slope of the gain" in text
    assert {row["key"]["gain"] for row in Results(tmp_path / "out" / "results.jsonl").rows} == {0.0, 4.0}
    assert not (tmp_path / "docs" / "quality.png").exists()
    assert run(tmp_path, flows[0], "--calls", "3", "--n", 5) == 0  # the other part stays in the page
    assert "Slope of the gain" in (tmp_path / "docs" / "quality.md").read_text()


def test_slopes_of_whole_crystals(tmp_path, tiny_csp, monkeypatch, capsys):
    statistics = Statistics.compute(datasets.load("prototypes", "train").batch)
    config = FlowMMConfig(task="ab-initio", hidden=16, layers=2, frequencies=4, time_dim=16, steps=4)
    model = build(config, statistics)
    checkpoints.save(tmp_path / "flow", "flowmm", config, statistics, model.state_dict(), dtype=torch.float32)
    places = ["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"), *OPTIONS]
    asked = [str(tmp_path / "flow"), "--coords", "0,5", "--types", "0,9", "--samples", "6", *places]
    assert slopes.main(asked) == 0
    page = (tmp_path / "docs" / "quality.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith(("| 0 |", "| 5 |"))]
    assert [line[:13] for line in lines] == ["| 0 | 0 | 0 |", "| 0 | 0 | 9 |", "| 5 | 0 | 0 |", "| 5 | 0 | 9 |"]
    rows = Results(tmp_path / "out" / "results.jsonl").rows
    assert [row["key"]["slopes"]["types"] for row in rows] == [0, 9, 0, 9] and len(lines) == len(rows)
    made = [path.read_text() for path in sorted((tmp_path / "out").glob("*/*/samples.jsonl"))]
    assert len(set(made)) == 4

    def never(*args, **options):
        raise AssertionError("done again")

    monkeypatch.setattr("benchmarks.slopes.draw", never)
    capsys.readouterr()
    assert slopes.main(asked) == 0 and (tmp_path / "docs" / "quality.md").read_text() == page
    assert "--samples 6 --data prototypes`" in page
    for words, message in (
        ([tiny_csp, *places], "allowed: a flow that makes whole"),
        ([*asked[:1], *places[:4]], "does not say what it was trained on; --data names"),
        ([*asked, "--samples", "0"], "samples = 0, allowed: at least 1"),
    ):
        assert slopes.main(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_ranking_is_measured(tmp_path, flows, tiny_csp, monkeypatch):
    names = (flows[0], tiny_csp)
    assert run(tmp_path, *names, "--rank", "--k", 3, "--n", 4, "--calls", "2", "--probes", 1) == 0
    text = (tmp_path / "docs" / "quality.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| /")]
    answers = ["any of them", "first by cluster", "first by likelihood", "best of k"]
    assert [line[2] for line in lines if line[0] == flows[0]] == answers
    assert [line[2] for line in lines if line[0] == tiny_csp] == [a for a in answers if "likelihood" not in a]
    rows = {(r["key"]["what"], r["key"]["part"]): r["values"] for r in Results(tmp_path / "out/results.jsonl").rows}
    loaded = atomsmith.load(flows[0])
    rms, scores = rows[loaded.sha256, "rms"], rows[loaded.sha256, "cluster"]
    plan = predictions(datasets.load("prototypes", "val"), 3)
    sampler = Sampler(2, gain=slope_of(loaded.model))
    made = draw(loaded, plan, 12, sampler, tmp_path / "again", "again", 16).structures
    for t in range(4):
        found = rank(made[3 * t : 3 * t + 3], processes=0)
        assert found.scores == pytest.approx(scores[t], abs=1e-6)
    chosen = sum(rms[t][max(range(3), key=lambda c: (scores[t][c], -c))] is not None for t in range(4))
    assert lines[1][3].startswith(f"{25 * chosen:.1f} ")
    # each sampler's candidates have likelihoods of their own
    assert run(tmp_path, flows[0], "--rank", "--k", 3, "--n", 4, "--calls", "3", "--probes", 1) == 0
    keys = [r["key"] for r in Results(tmp_path / "out/results.jsonl").rows if r["key"]["part"] == "likelihood"]
    assert [key["steps"] for key in keys] == [2, 3]


def test_order_and_gain_change_the_samples_and_only_for_the_call(tmp_path, flows, tiny_csp):
    loaded, plan = atomsmith.load(flows[0]), predictions(datasets.load("prototypes", "val"), 1)
    before = slope_of(loaded.model)
    assert before == 10.0 and slope_of(atomsmith.load(tiny_csp).model) is None
    made = {
        label: draw(loaded, plan, 3, sampler, tmp_path / label, label, 16).structures
        for label, sampler in {
            "plain": Sampler(3),
            "model's": Sampler(3, gain=10.0),
            "none": Sampler(3, gain=0.0),
            "heun": Sampler(3, order=2),
        }.items()
    }
    assert slope_of(loaded.model) == before
    first = {label: structures[0].frac_coords for label, structures in made.items()}
    assert np.array_equal(first["plain"], first["model's"])
    assert not np.allclose(first["plain"], first["none"]) and not np.allclose(first["plain"], first["heun"])
    assert len({Sampler(3, gain=g, order=o).label for g in (None, 0.0, 10.0) for o in (1, 2)}) == 6
    with pytest.raises(ValueError, match=r"^gain = 2, allowed for frac_coords with a \w+: None"):
        draw(atomsmith.load(tiny_csp), plan, 1, Sampler(2, gain=2.0), tmp_path / "x", "x", 16)


@pytest.mark.parametrize("number", [1, 5, 10, 25, 1000, 2500])
def test_steps_take_no_more_calls_than_asked(number, tiny_csp, flows):
    for folder in (tiny_csp, flows[0]):
        model = atomsmith.load(folder).model
        for sampler in calls.samplers(model, Sampler(1)).values():
            if number == 1 and sampler.corrector and slope_of(model) is None:
                with pytest.raises(ValueError, match="^calls = 1, allowed with this sampler: at least 2"):
                    calls.steps_for(model, number, sampler)
                continue
            steps = calls.steps_for(model, number, sampler)
            taken, more = (model.network_calls(s, sampler.corrector, sampler.order) for s in (steps, steps + 1))
            assert taken <= number and (more > number or steps == model.times.resolution)


def test_what_is_read_off_the_points():
    low, high = [1, 0, 0, 0] * 100, [1, 1, 0, 0] * 100
    old = Series("old", "a", [point(10, low), point(1000, high[:200])])
    new = Series("new", "b", [point(5, low), point(10, high, low), point(50, high)])
    assert curves.difference(new.points[1], old.points[0], "all")[0] == pytest.approx(0.25)
    found = curves.fewest(new, old.points[-1], "all")
    assert found is not None and found[0].calls == 10 and found[1] == (0.0, (0.0, 0.0))
    assert curves.fewest(new, old.points[-1], LEGACY)[0].calls == 50  # type: ignore[index]
    assert curves.fewest(Series("x", "", new.points[:1]), old.points[-1], "all") is None
    assert curves.enough(new, "all").calls == 10 and curves.enough(new, LEGACY).calls == 50
    table = equals([old, new], "all").splitlines()
    assert table[3] == "| new, b | old, a, 1000 calls | 10 | 1/100 | +0.0 (+0.0 to +0.0) |"
    assert equals([old], "all") == "" and differences([old], "all", True) == ""
    assert [line.split(" | ")[0] for line in differences([old, new], "all", True).splitlines()[2:]] == [
        "| new, b - old, a"
    ]
    assert "| 10 (10 steps) |" in sufficient([new]) and "25.0 (" in rates([old])


def test_seeds_are_averaged_target_by_target():
    two = point(10, [[1, 0]] * 50 + [[0, 0]] * 50, seeds=2)
    value, (lower, upper) = two.rate("all")
    assert value == 0.25 and lower < 0.25 < upper
    assert upper - lower == pytest.approx(2 * 1.96 * 0.25 / 10, rel=0.2)  # deviation of a target's mean is 0.25
    assert curves.difference(two, point(10, [1] * 50 + [0] * 50), "all")[0] == pytest.approx(-0.25)
    assert two.rmse() == (pytest.approx(0.1), (pytest.approx(0.1), pytest.approx(0.1)))
    assert point(10, [0, 0]).rmse() is None


def test_bad_arguments_get_one_line(tmp_path, tiny_csp, tiny_ab_initio, flows, capsys):
    for words, message in (
        (["nothing"], "names: 'nothing', allowed"),
        ([tiny_ab_initio], "does not predict structures of given compositions"),
        ([tiny_csp, "--n", 0], "n = 0, allowed: at least 1"),
        ([tiny_csp, "--batch-size", 10], "batch_size = 10, allowed: a multiple of 16"),
        ([tiny_csp, "--slopes", "1"], "the coordinates of"),
        ([tiny_csp, "--calls", "1"], "calls = 1, allowed with this sampler: at least 2"),
        ([tiny_csp, "--rank", "--k", 1], "k = 1, allowed: at least 2"),
        ([tiny_csp, "--rank", "--calls", "1"], "calls = 1, allowed with this sampler: at least 2"),
    ):
        assert run(tmp_path, *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    for words in (["--calls", "few"], ["--calls", "0"], ["--slopes", "-1"], ["--slopes", "inf"]):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, flows[0], *words)
        assert stop.value.code == 2 and "allowed: numbers" in capsys.readouterr().err


def test_a_results_file_holds_plain_json(tmp_path, flows):
    assert run(tmp_path, flows[0], "--calls", "2", "--n", 2) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(json.loads(line)["key"]["gain"] == 10.0 for line in lines)
    shutil.rmtree(tmp_path / "out" / atomsmith.load(flows[0]).sha256[:12])  # samples are not needed any more
    assert run(tmp_path, flows[0], "--calls", "2", "--n", 2) == 0
