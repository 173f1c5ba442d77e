"""The verb: pairing, numbers, files, protocols, and bad input."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chem import datasets
from chem.convert import to_structures
from chem.io import Record, write
from evaluation.csp import LEGACY
from evaluation.evaluate import BASELINES, evaluate
from evaluation.inputs import load_reference
from evaluation.protocols import PROTOCOLS


@pytest.fixture(scope="module")
def truth():
    data = datasets.load("prototypes", "val")
    keep = torch.nonzero(data.batch["num_atoms"] <= 6).flatten()[:6]
    structures = to_structures(data.batch[keep.tolist()])
    for i, one in enumerate(structures):
        one.properties = {"id": f"t{i}"}
    return structures


def moved(structures, sigma=0.02, **properties):
    """Copies with atoms displaced a little and volumes 10 % larger."""
    made = [s.copy() for s in structures]
    for i, one in enumerate(made):
        one.perturb(sigma)
        one.scale_lattice(one.volume * 1.1)
        one.properties = {key: value[i] for key, value in properties.items()}
    return made


def csp(made, truth, **options):
    return evaluate(made, truth, "diffcsp-csp", processes=0, **options)


def test_numbers_of_good_predictions(truth):
    report = csp(moved(truth), truth)
    every = report["match_rate_all@1"]
    assert (every.hits, every.n, every.value) == (6, 6, 1.0) and every.denominator == "all 6 targets"
    assert every.low == pytest.approx(0.6097, abs=1e-4) and every.high == 1.0
    assert 0 < report["rmse_all@1"].value < 0.1
    assert report["crmse_all@1"].value == pytest.approx(report["rmse_all@1"].value)
    assert report["volume_error@1"].value == pytest.approx(0.1, abs=1e-9)
    assert report["match_rate_strict@1"].hits == 6
    assert report[f"match_rate_{LEGACY}@1"].hits == report["target_validity"].hits
    assert report[f"match_rate_{LEGACY}@1"].note == ""


def test_a_miss_counts_in_every_denominator(truth):
    made = moved(truth)
    made[0] = truth[1].copy()  # another composition
    made[2] = Record(None, "broken", {}, "some.cif", 2, "truncated")
    report = csp(made, truth)
    rms = [row["rms"] for row in report.rows if row["rms"] is not None]
    assert report["match_rate_all@1"].hits == 4 and report["match_rate_all@1"].n == 6
    assert report["rmse_all@1"].n == 4 and report["rmse_all@1"].value == pytest.approx(np.mean(rms))
    assert report["crmse_all@1"].value == pytest.approx((sum(rms) + 2 * 0.5) / 6)
    assert report.failures == {"truncated": 1}
    assert report.rows[0]["reason"] == "another composition" and report.rows[0]["failure"] == ""
    assert report.rows[2]["source"] == "some.cif"


def test_best_of_k_in_order_and_the_first_alone(truth):
    bad, good = moved(truth, 1.2), moved(truth)
    made = [one for both in zip(bad, good, strict=True) for one in both]
    report = csp(made, truth, k=2)
    assert report["match_rate_all@2"].hits == 6
    assert report["rmse_all@2"].value < 0.1
    first = csp(bad, truth)
    for name in ("match_rate_all@1", "rmse_all@1", f"match_rate_{LEGACY}@1", "match_rate_strict@1"):
        assert report[name].value == pytest.approx(first[name].value, nan_ok=True)


def test_legacy_asks_for_the_truth_at_one_candidate_only(truth):
    thin = truth[0].copy()
    thin.scale_lattice(0.2)  # atoms 0.4 Å apart: an invalid truth, while the prediction is valid
    good = truth[0].copy()
    report = csp([good, good], [thin], k=2)
    assert report["match_rate_all@1"].hits == report["match_rate_all@2"].hits == 1
    assert report[f"match_rate_{LEGACY}@1"].hits == 0
    assert report[f"match_rate_{LEGACY}@2"].hits == int(report.rows[0]["composition_valid"])
    assert csp([thin, thin], [good], k=2)[f"match_rate_{LEGACY}@2"].hits == 0


def test_legacy_asks_for_fingerprints(truth):
    lone = truth[0].copy()
    lone.remove_sites(range(1, len(lone)))
    lone.replace(0, "Og")  # its covalent radius is not known, so there is no fingerprint
    made = evaluate([lone], [lone], "diffcsp-csp", processes=0)
    assert made["match_rate_all@1"].hits == 1 and made[f"match_rate_{LEGACY}@1"].hits == 0
    assert made.rows[0]["structure_valid"] and made.rows[0]["composition_valid"] and not made.rows[0]["valid"]
    without = replace(PROTOCOLS["diffcsp-csp"], name="without", fingerprints=False)
    other = evaluate([lone], [lone], without, processes=0)[f"match_rate_{LEGACY}@1"]
    assert other.hits == 1 and other.note == "without fingerprint clause"


def test_pairing_by_target(truth):
    names = [f"t{i}" for i in range(6)]
    made = moved(truth, target=names)
    report = csp([made[4], made[1], made[4]], truth)
    assert report["match_rate_all@2"].hits == 2 and report["match_rate_all@2"].n == 6
    assert report.failures == {"no candidate": 9}
    assert {row["target"] for row in report.rows if row["rms"] is not None} == {"t1", "t4"}
    assert csp(made[::-1], truth)["match_rate_all@1"].hits == 6


def test_files_in_and_out(truth, tmp_path):
    made, names = moved(truth), [f"t{i}" for i in range(6)]
    records = [Record(s, f"p{i}", {"target": names[i]}) for i, s in enumerate(made)]
    values = set()
    for suffix in ("extxyz", "jsonl", "csv"):
        write(records[::-1], tmp_path / f"made.{suffix}")
        write([Record(s, name) for name, s in zip(names, truth, strict=True)], tmp_path / f"true.{suffix}")
        report = csp(str(tmp_path / f"made.{suffix}"), tmp_path / f"true.{suffix}", out=tmp_path / f"out-{suffix}")
        values.add(round(report["rmse_all@1"].value, 4))
        saved = json.loads((tmp_path / f"out-{suffix}" / "report.json").read_text())
        number = saved["numbers"]["match_rate_all@1"]
        assert number["hits"] == 6 and number["protocol_hash"] == report.protocol.hash
        assert number["versions"]["oxidation states"].startswith("smact14 of SMACT 4")
        with open(tmp_path / f"out-{suffix}" / "structures.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6 and float(rows[0]["rms"]) == pytest.approx(report.rows[0]["rms"])
        written = {p.name for p in (tmp_path / f"out-{suffix}").iterdir()}
        assert written == {"report.html", "report.json", "structures.csv"}
    assert len(values) == 1


def test_the_table_is_printed_with_its_protocol(truth, capsys):
    report = csp(moved(truth), truth)
    report.show()
    printed = capsys.readouterr().out
    assert "diffcsp-csp" in printed and report.protocol.hash in printed and "match rate" in printed
    with pytest.raises(KeyError, match="there are: match_rate_all@1"):
        report["match_rate"]


def test_baselines_by_the_same_call():
    random, template = (evaluate(name, "prototypes:val:12", processes=0) for name in BASELINES)
    assert random.rows[0]["id"] == "baseline:random-0" and random["match_rate_all@1"].n == 12
    assert random["volume_error@1"].value == pytest.approx(0, abs=1e-9)
    assert template["match_rate_all@1"].n == 12 and template["match_rate_all@1"].hits >= 6
    again = evaluate("baseline:random", "prototypes:val:12", processes=0)
    assert [r["rms"] for r in again.rows] == [r["rms"] for r in random.rows]


def test_ab_initio_numbers(truth):
    batch = datasets.load("prototypes", "train").batch
    report = evaluate(batch, "prototypes:train", "cdvae-2022", seed=1)
    assert report["structural_validity"].hits == report["structural_validity"].n == len(batch)
    both = report["validity"]
    assert both.hits <= report["compositional_validity"].hits and both.low < both.value <= both.high
    density = report["wasserstein_density"]
    # a set is at no distance from itself, which the interval must not exclude, unlike a draw of its size
    assert density.n == both.hits and density.value == density.low == 0 < min(density.reference, density.high)
    assert density.low < density.high and density.error > 0
    assert "floor" in density.note and (density.n == 1000 or "asks for 1000" in density.note)
    assert evaluate(batch, "prototypes:train", "cdvae-2022", seed=1)["wasserstein_density"] == density
    assert {n.name for n in evaluate(truth, protocol="cdvae-2022").numbers} == {
        "structural_validity", "compositional_validity", "validity", "structural_validity_strict"}  # fmt: skip


def test_a_shifted_distribution_is_at_its_distance():
    batch = datasets.load("prototypes", "train").batch
    larger = batch.replace(lattice=batch["lattice"] * 2 ** (1 / 3))
    report = evaluate(larger, "prototypes:train", "cdvae-2022")
    valid = np.array([row["composition_valid"] for row in report.rows])
    expected = np.mean([row["density"] for row in report.rows])  # halved, so the distance is the halved density
    density = report["wasserstein_density"]
    assert density.value == pytest.approx(expected, rel=0.25) and valid.any()
    assert 0 < density.low < density.value < density.high and density.error > 0


def test_no_valid_sample_gives_no_distance():
    batch = datasets.load("prototypes", "val").batch[:4]
    flat = batch.replace(lattice=batch["lattice"] * 1e-3)
    report = evaluate(flat, "prototypes:val", "cdvae-2022")
    assert report["validity"].hits == 0 and math.isnan(report["wasserstein_density"].value)
    assert json.dumps(report.as_dict(), allow_nan=False)


# ---- bad input: one clear line, or a counted failure with its reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"made": []}, "structures_or_files holds no structures"),
        ({"made": [3]}, r"structures_or_files\[0\] is a int; allowed"),
        ({"made": 7}, "structures_or_files is a int; allowed"),
        ({"made": "nowhere.cif"}, "cannot read nowhere.cif"),
        ({"made": "baseline:magic"}, "structures_or_files = 'baseline:magic', allowed: baseline:random"),
        ({"made": "baseline:substitution"}, "needs a reference by name"),
        ({"truth": None}, "reference = None, needed by the protocol diffcsp-csp"),
        ({"truth": "mp21"}, "reference = 'mp21', allowed: a file or folder, or mp20"),
        ({"truth": "prototypes:best"}, "reference = 'prototypes:best', allowed: NAME:SPLIT:N with SPLIT train, val"),
        ({"truth": "prototypes:val:0"}, "reference = 'prototypes:val:0', allowed"),
        ({"truth": "prototypes:val:99999"}, "allowed: up to"),
        ({"protocol": "csp"}, "protocol = 'csp', allowed: diffcsp-csp, cdvae-2022"),
        ({"seed": -1}, "seed = -1, allowed"),
        ({"k": 0}, "k = 0, allowed"),
        ({"k": 4}, "6 structures for 6 targets and k = 4, which needs 24"),
        ({"protocol": "cdvae-2022", "k": 2}, "k = 2 is for structure prediction"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(truth, options, message):
    options = dict(options)
    made, reference = options.pop("made", truth), options.pop("truth", truth)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(made, reference, options.pop("protocol", "diffcsp-csp"), processes=0, **options)
    assert "\n" not in str(caught.value)


def test_counts_that_do_not_fit_are_refused(truth):
    with pytest.raises(ValueError, match="^5 structures for 6 targets and k = 1, which needs 6; allowed"):
        csp(moved(truth)[:5], truth)
    names = [f"t{i}" for i in range(6)]
    made = moved(truth, target=names)
    with pytest.raises(ValueError, match="^target 't2' has 2 candidates and k = 1"):
        csp([*made, made[2]], truth, k=1)
    made[3].properties["target"] = "t9"
    with pytest.raises(ValueError, match=r"^structure 3 \(3\) has target = 't9', allowed: the ids of the reference"):
        csp(made, truth)
    del made[3].properties["target"]
    with pytest.raises(ValueError, match=r"^structure 3 \(3\) has target = None"):
        csp(made, truth)
    twice = [truth[0], truth[0]]
    with pytest.raises(ValueError, match="^reference has the id 't0' twice"):
        csp(made[:1], twice)


def test_files_without_a_structure(truth, tmp_path):
    for name, text in {
        "empty.cif": "",
        "text.cif": "not a crystal",
        "half.cif": "data_x\n_cell_length_a 4.0\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="none of 1 structures could be read; the first: .*" + name) as caught:
            csp(tmp_path / name, truth[:1])
        assert "\n" not in str(caught.value)
    write(truth[:2], tmp_path / "torn.jsonl")
    whole = (tmp_path / "torn.jsonl").read_bytes()
    (tmp_path / "torn.jsonl").write_bytes(whole[:-40])
    report = csp(tmp_path / "torn.jsonl", truth[:2])
    assert report["match_rate_all@1"].hits == 1 and sum(report.failures.values()) == 1
    with pytest.raises(ValueError, match="^reference: 1 of 2 structures could not be read"):
        csp(truth[:2], tmp_path / "torn.jsonl")


@pytest.mark.parametrize("protocol", ["diffcsp-csp", "cdvae-2022"])
def test_structures_that_cannot_be_judged_are_counted(truth, protocol):
    from pymatgen.core import Lattice, Structure

    made = [truth[0], *(s.copy() for s in truth[1:6])]
    made[1] = Structure(made[1].lattice, made[1].species, np.full((len(made[1]), 3), np.nan))
    made[2] = Structure(Lattice(np.zeros((3, 3))), made[2].species, made[2].frac_coords)
    made[3].replace(0, {made[3][0].specie: 0.5})
    made[4] = Structure(Lattice(np.full((3, 3), np.nan)), made[4].species, made[4].frac_coords)
    made[5] = None
    report = evaluate(made, truth, protocol, processes=0)
    reasons = [row["failure"] or row["reason"] for row in report.rows]
    wanted = ["", "coordinate", "volume", "disordered", "lattice vector", "given"]
    for reason, expected in zip(reasons, wanted, strict=True):
        assert expected in reason and bool(reason) == bool(expected) and "\n" not in reason
    rate = report["match_rate_all@1" if protocol == "diffcsp-csp" else "structural_validity"]
    assert (rate.hits, rate.n) == (1, 6)


def test_an_output_that_is_no_folder_is_refused_before_the_work(truth, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="^out = .*allowed: a folder or a new path"):
        csp(truth, truth, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_reference_by_name_states_what_it_is():
    items = load_reference("prototypes:val:5")
    assert len(items) == 5 and items.name.startswith("prototypes val, first 5 of ")
    assert len(load_reference("prototypes")) == len(datasets.load("prototypes", "val"))
    assert len(load_reference(datasets.load("prototypes", "val"))) == len(load_reference("prototypes:val"))


@pytest.mark.slow
def test_element_substitution_on_real_crystals(data_root):
    """70.3 +- 3 % on 1,000 crystals (methods: MP-20 baseline); 200 have a standard error of 3.2 points, so +- 9."""
    report = evaluate("baseline:substitution", "mp20:val:200", processes=1)
    assert abs(report["match_rate_all@1"].value - 0.703) < 0.09
    assert report["rmse_all@1"].value == pytest.approx(0.027, abs=0.006)


def test_the_real_validation_set_as_samples(data_root):
    report = evaluate("mp20:val:1000", "mp20:val", "cdvae-2022")
    assert report["structural_validity"].value == 1.0
    assert report["compositional_validity"].value == pytest.approx(0.91, abs=0.02)
    assert report["wasserstein_density"].value < 0.3 and report["wasserstein_num_elements"].value < 0.1
