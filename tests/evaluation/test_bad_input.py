"""Bad crystals through every metric, and every kind of file from the console: counted with a reason, never fatal."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from chem import datasets
from chem.convert import batch_from_arrays, to_structures
from chem.crystals import CrystalBatch
from chem.io import Record, read, write
from evaluation.campaigns.screening import Filters, SampleStep
from evaluation.comparison import compare, variety
from evaluation.compositions.smact import compositional_validity
from evaluation.coverage import coverage
from evaluation.descriptors.described import Described
from evaluation.descriptors.fingerprints import UNKNOWN_RADIUS
from evaluation.descriptors.isometry import amd
from evaluation.descriptors.symmetry import NOT_FOUND
from evaluation.evaluate import evaluate
from evaluation.inputs import gather
from evaluation.matching import reduction
from evaluation.matching.pairs import match_pairs
from evaluation.matching.sameness import DISORDERED, ORDERED
from evaluation.matching.uniqueness import novelty, uniqueness
from evaluation.protocols import CDVAE, DIFFCSP, PROTOCOLS
from evaluation.relaxation.relax import RelaxationSettings, relax
from evaluation.runs import stages
from evaluation.stability.hull import Hull
from evaluation.validity import MOST_ATOMS, structural_validity, unusable
from tests.commands import cli
from tests.evaluation.toys import LennardJones

TRICLINIC = np.array([[4.1, 0.2, 0.0], [1.1, 5.0, 0.3], [-0.7, 0.9, 6.2]])
PAIR = [[0.0, 0.0, 0.0], [0.5, 0.4, 0.45]]
FLAT, MANY, NEEDLE = (
    "volume below 0.1 Å^3, or a flat cell",
    "more than 2000 atoms",
    "a cell over 300 times as long as wide",
)
TWINS, NO_NUMBER = "two atoms in one place", "a coordinate is not a finite number"


def grid(per_axis: int, seed: int = 0) -> tuple[list[int], np.ndarray, np.ndarray]:
    """A triclinic cell of NaCl with atoms 3 Å apart, in no order."""
    rng = np.random.default_rng(seed)
    frac = np.stack(np.meshgrid(*[np.arange(per_axis)] * 3, indexing="ij"), -1).reshape(-1, 3)
    frac = (frac + rng.uniform(-0.05, 0.05, frac.shape)) / per_axis
    lattice = 3.0 * per_axis * np.array([[1, 0, 0], [0.2, 1, 0], [0.1, -0.3, 1]])
    return rng.permutation(np.resize([11, 17], len(frac))).tolist(), frac % 1, lattice


# numbers, coordinates, lattice, and why it cannot be measured at all
CASES: dict[str, tuple[list[int], object, np.ndarray, str]] = {
    "good": ([11, 17], PAIR, TRICLINIC, ""),
    "left-handed": ([11, 17], PAIR, -TRICLINIC, ""),
    "overlapping": ([11, 17, 17], [*PAIR, PAIR[1]], TRICLINIC, ""),
    "all in one place": ([6] * 5, [[0.1, 0.2, 0.3]] * 5, TRICLINIC, ""),
    "flat": ([11, 17], PAIR, np.array([[1.0, 0, 0], [2, 0, 0], [0, 0, 1]]), FLAT),
    "no number": ([11, 17], [[0, 0, np.nan], PAIR[1]], TRICLINIC, NO_NUMBER),
    "noble gas": ([18], [[0, 0, 0]], TRICLINIC, ""),
    "no electronegativity": ([2, 8], PAIR, TRICLINIC, ""),
    "no radius": ([118, 1], PAIR, TRICLINIC, ""),
    "actinide": ([98, 8], PAIR, TRICLINIC, ""),
    "wide": ([11], [[0, 0, 0]], TRICLINIC * 1e5, ""),
    "narrow": ([11], [[0, 0, 0]], TRICLINIC * 0.12, ""),
    "needle": ([11, 17], PAIR, np.diag([1.0, 1.0, 1000.0]) @ TRICLINIC, NEEDLE),
    "sheet": ([11, 17], PAIR, np.diag([1e-4, 1e4, 1e4]), NEEDLE),
    "10,000 atoms": (*grid(22), MANY),
    "10,000 others": (*grid(22, seed=1), MANY),
    "10,000 in one place": (grid(22)[0], np.full((22**3, 3), 0.3), grid(22)[2], MANY),
}
REASONS = [why for *_, why in CASES.values()]
BAD = {name: i for i, name in enumerate(CASES)}


@pytest.fixture(scope="module")
def crystals() -> CrystalBatch:
    cases = CASES.values()
    columns = [[np.array(numbers) for numbers, *_ in cases], [np.array(frac, float) for _, frac, *_ in cases]]
    return batch_from_arrays(*columns, [lattice for *_, lattice, _ in cases])


@pytest.fixture(scope="module")
def reference() -> CrystalBatch:
    batch = datasets.load("prototypes", "val").batch
    return batch[torch.nonzero(batch["num_atoms"] <= 6).flatten()[:12].tolist()]


@pytest.fixture
def described(crystals, tmp_path) -> Described:
    return Described(crystals, cache=tmp_path)


def test_what_cannot_be_measured_has_its_reason(crystals):
    assert unusable(crystals) == REASONS and 22**3 > 10_000 > MOST_ATOMS


def test_structural_validity(crystals):
    lenient, strict = (structural_validity(crystals, rule).reasons for rule in ("cdvae", "strict"))
    close = {"overlapping": "two atoms at 0.000 Å", "all in one place": "two atoms at 0.000 Å"}
    assert all(
        reason.startswith(close.get(name, REASONS[i])) for (name, i), reason in zip(BAD.items(), lenient, strict=True)
    )
    assert [i for i, reason in enumerate(lenient) if not reason] == [
        BAD[n] for n in CASES if n not in close and not CASES[n][3]
    ]
    assert [name for name, reason in zip(CASES, strict, strict=True) if not reason] == [
        *("good", "left-handed", "noble gas", "no electronegativity", "no radius", "actinide")
    ]


def test_fingerprints_and_symmetry(described):
    expected = dict(zip(CASES, REASONS, strict=True))
    expected |= {
        "overlapping": TWINS,
        "all in one place": TWINS,
        "no radius": UNKNOWN_RADIUS,
        "actinide": UNKNOWN_RADIUS,
    }
    assert dict(zip(CASES, described.structure.reasons, strict=True)) == expected
    expected = dict(zip(CASES, REASONS, strict=True)) | dict.fromkeys(("overlapping", "all in one place"), NOT_FOUND)
    found = described.symmetry()
    assert dict(zip(CASES, found.reasons, strict=True)) == expected
    assert [group > 0 for group in found.space_groups] == [not reason for reason in found.reasons]
    assert described.composition.valid.all()  # of every element there is something known


def test_distances_to_neighbours_do_not_depend_on_the_company(described):
    """A wide cell in the batch once made the search of all others as wide as its own."""
    alone = torch.cat([amd(described.measurable[i]) for i in range(len(described.measurable))])
    assert np.allclose(described.amd, alone.numpy(), rtol=1e-9) and np.isfinite(described.amd).all()


def test_numbers_over_bad_crystals_name_how_many_were_judged(described, reference, tmp_path):
    others = Described(reference, cache=tmp_path)
    measurable, printed = REASONS.count(""), int(described.fingerprinted.sum())
    assert (measurable, printed) == (10, 6)
    numbers = (
        coverage(described, others, CDVAE, 0) + compare(described, others, CDVAE, 0) + variety(described, CDVAE, 0)
    )
    assert all(np.isfinite(number.value) for number in numbers)
    of = {number.name: number.denominator for number in numbers}
    assert of["coverage_precision"] == f"all {len(CASES)} structures"
    assert of["amsd_precision"] == f"{printed} structures with fingerprints"
    assert of["diversity_elements"] == f"{measurable} of {len(CASES)} structures"


@pytest.mark.parametrize("sameness", [ORDERED, DISORDERED], ids=["ordered", "disordered"])
def test_uniqueness_and_novelty(crystals, reference, sameness):
    found = uniqueness(crystals, sameness, processes=0)
    assert found.reasons == REASONS and [g < 0 for g in found.group] == [bool(reason) for reason in REASONS]
    assert found.group[BAD["left-handed"]] == found.group[BAD["good"]] and found.unique.sum() == REASONS.count("") - 1
    known = novelty(crystals, reference, "prototypes", sameness, processes=0)
    assert known.reasons == REASONS and known.novel.tolist() == [not reason for reason in REASONS]


def test_matching(crystals):
    pairs = [(i, 0) for i in range(len(crystals))]
    matches = match_pairs(crystals, crystals[[0]], pairs, DIFFCSP, processes=0)
    assert [match.rms is not None for match in matches] == [name in ("good", "left-handed") for name in CASES]
    assert [match.reason if match.failed else "" for match in matches] == REASONS


def test_compositions_and_hull(crystals):
    valid = dict(zip(CASES, compositional_validity(crystals).tolist(), strict=True))
    assert valid["good"] and valid["10,000 atoms"] and not valid["no electronegativity"] and not valid["no radius"]
    found = Hull("toy", ["NaCl"], [-2.0]).distances(crystals, np.full(len(crystals), -1.0))
    missing = {"noble gas": "Ar", "no electronegativity": "He, O", "no radius": "H, Og", "actinide": "O, Cf"}
    missing["all in one place"] = "C"
    assert dict(zip(CASES, found.reasons, strict=True)) == {
        name: f"no reference energy of {missing[name]} in e_hull[toy]" if name in missing else "" for name in CASES
    }


def test_relaxation(crystals):
    found = relax(crystals, LennardJones(), RelaxationSettings(steps=3))
    close, spent = "two atoms at 0.000 Å, below 0.3 Å", "forces above 0.1 eV/Å after 3 steps"
    why = {"overlapping": close, "all in one place": close, "wide": "an atom without a neighbour within 5.5 Å"}
    for name, reason, given in zip(CASES, found.reasons, REASONS, strict=True):
        assert reason == (why.get(name) or given or spent) or name == "narrow", name
    assert found.failed.tolist() == [bool(why.get(n) or CASES[n][3] or n == "narrow") for n in CASES]
    assert bool(torch.isfinite(found.energies).eq(~found.failed).all())


def test_screening(crystals):
    def draw(start: int, stop: int) -> CrystalBatch:
        return crystals[list(range(start, stop))]

    table = SampleStep(lambda: draw, Filters())()(0, len(crystals)).to_pydict()
    passed = ["good", "left-handed", "noble gas", "no electronegativity", "no radius", "actinide"]
    assert [name for name, why in zip(CASES, table["refused"], strict=True) if why is None] == passed
    assert table["refused"][BAD["10,000 atoms"]] == f"validity: {MANY}" and table["formula"][BAD["no radius"]] == "HOg"


def test_the_search_for_a_smaller_cell_is_the_same_in_parts(monkeypatch):
    made = [
        reduction.Arrays(np.array([11] * 8), np.random.default_rng(seed).random((8, 3)), 9 * TRICLINIC / 5)
        for seed in range(5)
    ]
    for one in [1, 2, 3]:  # supercells
        shifted = np.concatenate([made[one].frac[:4] / [2, 1, 1], made[one].frac[:4] / [2, 1, 1] + [0.5, 0, 0]])
        made.append(made[one]._replace(frac=shifted))
    whole = [reduction.surely_primitive(one) for one in made]
    monkeypatch.setattr(reduction, "AT_ONCE", 30)
    assert [reduction.surely_primitive(one) for one in made] == whole and set(whole) == {True, False}


GOOD = [Structure(Lattice(TRICLINIC), ["Na", "Cl"], PAIR), Structure(Lattice(TRICLINIC), ["Sr", "O"], PAIR)]
PARTIAL = Structure(Lattice(TRICLINIC), [{"Na": 0.5, "K": 0.5}, "Cl"], PAIR)


def good_file(folder: Path, kind: str) -> Path:
    """Four crystals in a file or folder of each kind that `evaluate` takes."""
    path = folder / f"good.{kind}"
    made = [Record(s, f"s{i}") for i, s in enumerate([*GOOD, *GOOD])]
    if kind in ("folder", "zip", "poscars"):
        path.mkdir()
        for record in made:
            text = record.structure.to(fmt="poscar" if kind == "poscars" else "cif")
            (path / f"{record.id}.{'vasp' if kind == 'poscars' else 'cif'}").write_text(text)
    elif kind == "pt":
        path = folder / "eval_gen.pt"
        lattices = [r.structure.lattice for r in made]
        fields = {
            "frac_coords": torch.tensor(np.concatenate([r.structure.frac_coords for r in made])),
            "atom_types": torch.tensor([z for r in made for z in r.structure.atomic_numbers]),
            "num_atoms": torch.tensor([2] * 4),
            "lengths": torch.tensor([x.abc for x in lattices]),
            "angles": torch.tensor([x.angles for x in lattices]),
        }
        torch.save({name: x[None] for name, x in fields.items()}, path)
    else:
        write(made, path)
    if kind == "zip":
        packed = folder / "packed.zip"
        with zipfile.ZipFile(packed, "w") as archive:
            for file in path.iterdir():
                archive.write(file, f"deep/{file.name}")
        return packed
    return path


KINDS = ("folder", "poscars", "extxyz", "jsonl", "csv", "parquet", "zip", "pt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["cdvae-2022", "diffcsp-csp"])
def test_every_kind_of_file_from_the_console(kind, protocol, tmp_path, monkeypatch, capsys):
    path, targets = good_file(tmp_path, kind), tmp_path / "targets.jsonl"
    write([Record(s, f"t{i}") for i, s in enumerate([*GOOD, *GOOD])], targets)
    words = [
        "evaluate",
        path,
        "--reference",
        targets,
        "--protocol",
        protocol,
        "--out",
        tmp_path / "out",
        "--processes",
        0,
    ]
    done = cli(words, monkeypatch, capsys)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["structures"] == 4 and report["failures"] == {}
    name = "match_rate_all@1" if protocol == "diffcsp-csp" else "structural_validity"
    assert report["numbers"][name]["hits"] == 4 and report["numbers"][name]["n"] == 4
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "structures.csv").read_text())))
    assert all(str(path) in row["source"] for row in rows) and len({row["id"] for row in rows}) == 4


def mixed_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Good crystals with bad entries between them, and for each entry a word of its reason."""
    write([Record(s, f"s{i}") for i, s in enumerate([*GOOD, *GOOD])], folder / "a.jsonl")
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[1], lines[2] = lines[1][:-40], json.dumps({"structure": PARTIAL.as_dict()})
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.cif").write_text("")
    (folder / "c.cif").write_text(PARTIAL.to(fmt="cif"))
    (folder / "d.csv").write_text('id,cif\nx,"data_nothing"\ny,\n')
    frame = '1\nLattice="{}" Properties=species:S:1:pos:R:3 pbc="T T T"\n{} 0 0 0\n'
    frames = [frame.format("4 0 0 1 5 0 1 2 6", "Ar"), frame.format("4 0 0 4 0 0 1 2 6", "Na")]
    (folder / "e.extxyz").write_text("".join(frames) + "12\ntorn")
    words = [
        "",
        "",
        "partial occupancy",
        "",
        "no structure",
        "partial occupancy",
        "",
        "no text",
        "",
        "volume 0",
        "breaks off",
    ]
    return [folder / name for name in ("a.jsonl", "b.cif", "c.cif", "d.csv", "e.extxyz")], words


@pytest.mark.parametrize("protocol", ["cdvae-2022", "diffcsp-csp"])
def test_bad_entries_between_good_ones_are_counted(protocol, tmp_path, monkeypatch, capsys):
    files, words = mixed_files(tmp_path)
    targets = tmp_path / "targets.jsonl"
    write([Record(GOOD[0], f"t{i}") for i in range(len(words))], targets)
    options = ["--reference", targets, "--protocol", protocol, "--out", tmp_path / "out", "--processes", 0]
    done = cli(["evaluate", *files, *options], monkeypatch, capsys)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["structures"] == len(words) and sum(report["failures"].values()) == 8
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "structures.csv").read_text())))
    assert [i for i, row in enumerate(rows) if not row["failure"]] == [0, 3, 8]
    assert all(word in row["failure"] for word, row in zip(words, rows, strict=True))
    name = "match_rate_all@1" if protocol == "diffcsp-csp" else "structural_validity"
    hits = {"diffcsp-csp": 1, "cdvae-2022": 3}[protocol]
    assert (report["numbers"][name]["hits"], report["numbers"][name]["n"]) == (hits, len(words))


@pytest.mark.parametrize("protocol", ["cdvae-2022", "diffcsp-csp"])
def test_bad_crystals_through_a_protocol(protocol, crystals, tmp_path, monkeypatch, capsys):
    """As files, which hold whatever has a volume and finite numbers."""
    held = [i for i, reason in enumerate(REASONS) if reason not in (FLAT, NO_NUMBER) and i <= BAD["10,000 atoms"]]
    write(to_structures(crystals[held]), tmp_path / "bad.jsonl")
    write([GOOD[0]] * len(held), tmp_path / "targets.jsonl")
    options = ["--reference", tmp_path / "targets.jsonl", "--protocol", protocol, "--processes", 0]
    done = cli(["evaluate", tmp_path / "bad.jsonl", *options, "--out", tmp_path / "out"], monkeypatch, capsys)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "structures.csv").read_text())))
    assert [MANY in row["reason"] for row in rows] == [REASONS[i] == MANY for i in held]
    assert [NEEDLE in row["reason"] for row in rows] == [REASONS[i] == NEEDLE for i in held]


@pytest.mark.parametrize("name", ["mattergen-sun", "lemat-2025", "strict"])
def test_bad_crystals_through_stability(name, crystals, reference, tmp_path):
    """A table of total energies that knows Na, Cl, H, O and C, and neither noble gases nor heavier elements."""
    (tmp_path / "hull.csv").write_text("formula,energy_per_atom\n" + "Na,0\nCl,0\nH,0\nO,0\nC,0\n")
    protocol = replace(PROTOCOLS[name], resamples=5, steps=2)
    options = {"potential": LennardJones(), "hull": tmp_path / "hull.csv", "processes": 0}
    report = evaluate(crystals, reference, protocol, tmp_path / "out", **options)
    unknown = {"noble gas": "Ar", "no electronegativity": "He", "no radius": "Og", "actinide": "Cf"}
    for case, row in zip(CASES, report.rows, strict=True):
        missing = f"no reference energy of {unknown[case]} in e_hull[hull]" if case in unknown else ""
        assert row["not_evaluable"] == missing, case
        assert bool(CASES[case][3]) <= (not any(row[flag] for flag in ("unique", "novel", "stable", "sun"))), case
        assert np.isfinite(row["e_above_hull"]) == (case in ("good", "left-handed")), case
    tried = 2 if protocol.relaxed == "valid" else len(CASES) - len(unknown)
    assert report["relaxation_failed"].n == tried and report["relaxation_failed"].hits == tried - 2
    rates = [number for number in report.numbers if number.denominator == f"all {len(CASES)} structures"]
    assert len(rates) > 12 and {number.n for number in rates} == {len(CASES)}
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("protocol", ["cdvae-2022", "diffcsp-csp"])
def test_files_with_nothing_to_judge_end_in_one_line(protocol, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty.cif").write_text("")
    write(GOOD, tmp_path / "targets.jsonl")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4")
    for name, reason in (
        ("empty.cif", "no structure in the file"),
        ("other.pt", "has weights"),
        ("torn.zip", "cut off"),
    ):
        words = ["evaluate", tmp_path / name, "--reference", tmp_path / "targets.jsonl", "--protocol", protocol]
        done = cli(words, monkeypatch, capsys)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and reason in done.err


def test_candidates_of_an_output_pair_by_order(tmp_path):
    """Two evaluations of three crystals: the first finds crystals 0 and 1, the second crystal 2."""
    truth = [GOOD[0], GOOD[1], GOOD[0]]
    types = torch.tensor([z for s in truth for z in s.atomic_numbers]).repeat(2, 1)
    types[0, 4:] = types[1, :4] = 36
    fields = {
        "frac_coords": torch.tensor(np.array(PAIR * 3)).repeat(2, 1, 1),
        "atom_types": types,
        "num_atoms": torch.full((2, 3), 2),
        "lengths": torch.tensor([s.lattice.abc for s in truth]).repeat(2, 1, 1),
        "angles": torch.tensor([s.lattice.angles for s in truth]).repeat(2, 1, 1),
    }
    torch.save(fields, tmp_path / "eval_diff.pt")
    report = evaluate(tmp_path / "eval_diff.pt", truth, "diffcsp-csp", k=2, processes=0)
    assert [report[f"match_rate_all@{k}"].hits for k in (1, 2)] == [2, 3]
    assert [row["rms"] is not None for row in report.rows] == [True, False, True, False, False, True]
    with pytest.raises(ValueError, match="6 structures for 3 targets and k = 1, which needs 3"):
        evaluate(tmp_path / "eval_diff.pt", truth, "diffcsp-csp", processes=0)


def test_archives_and_outputs_are_read_in_chunks_too(tmp_path, monkeypatch):
    files = [good_file(tmp_path, "zip"), good_file(tmp_path, "pt")]
    monkeypatch.setattr(stages, "MANY", 2)
    monkeypatch.setattr(stages.describe_files, "__kwdefaults__", {"size": 3})
    at_once, through = gather(files), stages.in_chunks(files, tmp_path / "out", 0)
    assert len(through) == 8 and len(list((tmp_path / "out").rglob("*.parquet"))) == 3
    for name in ("place", "ids", "errors", "sources"):
        assert getattr(through, name) == getattr(at_once, name), name
    assert torch.equal(through.batch["frac_coords"], at_once.batch["frac_coords"])


def test_a_cif_of_too_many_images_is_refused_before_they_are_made(tmp_path):
    numbers, frac, lattice = grid(22)
    text = Structure(Lattice(lattice), numbers, frac).to(fmt="cif")
    (tmp_path / "all.cif").write_text(text)
    (tmp_path / "half.cif").write_text(text.replace("'x, y, z'", "'x, y, z'\n  2  '-x, -y, -z'"))
    every, half = read(tmp_path)
    assert len(every.structure) == 22**3
    assert half.error == "21296 images of sites to tell apart; allowed: up to 20000, or every atom in P 1"


def test_deuterium_and_tritium_are_hydrogen(tmp_path):
    """By every format but xyz, whose symbols ASE reads: there the frame is an error with its reason."""
    heavy, light = (Structure(Lattice(TRICLINIC), symbols, PAIR) for symbols in (["D", "T"], ["H", "H"]))
    (tmp_path / "a.cif").write_text(heavy.to(fmt="cif"))
    (tmp_path / "b.vasp").write_text(heavy.to(fmt="poscar"))
    (tmp_path / "c.jsonl").write_text(json.dumps(heavy.as_dict()) + "\n")
    write([heavy], tmp_path / "d.extxyz")
    for record in read(tmp_path):
        assert record.error is None and record.structure.atomic_numbers == light.atomic_numbers, record.source
    text = '1\nLattice="4 0 0 1 5 0 1 2 6" Properties=species:S:1:pos:R:3 pbc="T T T"\nD 0 0 0\n'
    (tmp_path / "e.extxyz").write_text(text)
    (record,) = read(tmp_path / "e.extxyz")
    assert record.structure is None and "D" in (record.error or "")
