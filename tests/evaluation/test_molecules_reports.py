"""Molecules through `evaluate`: rates, uniqueness and novelty, distances with their floor, inputs, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule as from_g2

from chem.convert_molecules import from_ase, to_rdkit
from chem.molecule_files import MoleculeRecord, write_molecules
from chem.qm9 import TRAIN_ELEMENTS, TRAIN_SIZES
from evaluation.evaluate import evaluate
from evaluation.molecules import geometry
from evaluation.molecules.distances import BINS, distances
from evaluation.molecules.score import _chain
from evaluation.molecules.stability import lookup
from evaluation.protocols import EDM, PROTOCOLS, STRICT

NAMES = ["H2O", "CH4", "NH3", "CH3OH", "C2H6", "H2CO", "HCN", "C2H4", "CH3CHO", "C2H2"]


@pytest.fixture(scope="module")
def some() -> list[Atoms]:
    return [from_g2(name) for name in NAMES]


def judge(made, reference=None, protocol="edm-qm9", **options):
    return evaluate(made, reference, protocol, processes=0, **options)


@pytest.mark.parametrize("protocol", ["edm-qm9", "edm-qm9-strict"])
def test_small_molecules_are_stable_valid_and_unique(some, protocol):
    report = judge([*some, some[0]], some[:4], protocol)
    for name in ("atom_stability", "molecule_stability", "connected", "validity", "validity_whole_molecule"):
        assert report[name].value == 1.0 and report[name].reference == 1.0
    assert (report["valid_and_unique"].hits, report["uniqueness"].n) == (10, 11)
    assert (report["valid_unique_and_novel"].hits, report["novelty"].n) == (6, 10)
    assert [row["novel"] for row in report.rows] == [False] * 4 + [True] * 6 + [False]
    assert report.rows[3]["smiles"] == "[H]OC([H])([H])[H]" and report.rows[0]["stable_atoms"] == 3
    assert report.versions["rdkit"] and "4 SMILES of the reference by the same rule" in report["novelty"].note
    assert json.dumps(report.as_dict(), allow_nan=False)


def test_what_is_broken_counts_in_every_denominator(some):
    torn = some[1][:4]
    lost = some[0].copy()
    lost.positions[0] = np.nan
    strange = Atoms("XeH", [(0, 0, 0), (0.9, 0, 0)])
    made = [some[0], torn, lost, None, strange, Atoms()]
    report = judge(made)
    assert report["molecule_stability"].n == report["validity"].n == 6
    assert report["molecule_stability"].hits == 1 and report["invalid_unusable"].hits == 3
    assert report["validity_largest_fragment"].hits == 3 and report["validity_whole_molecule"].hits == 1
    assert report["atom_stability"].n == 3 + 4 + 2 and report["atom_stability"].hits == 3 + 3 + 0
    assert report["validity"].hits >= report["valid_and_unique"].hits
    expected = ["a coordinate is not a finite number", "no molecule was given", "no atoms"]
    assert len(report.failures) == 3 and all(any(e in reason for e in expected) for reason in report.failures)
    assert report.rows[1]["reason"].startswith("1 atoms lack bonds") and report.rows[3]["failure"]


def test_a_batch_with_nan_and_unknown_elements_is_judged(some):
    batch = from_ase(some[:3])
    pos, z = batch["pos"].clone(), batch["atomic_numbers"].clone()
    pos[0], z[3] = math.nan, 200
    for protocol in ("edm-qm9", "edm-qm9-strict"):
        report = judge(batch.replace(pos=pos, atomic_numbers=z), protocol=protocol)
        assert [row["valid_whole_molecule"] for row in report.rows] == [False, False, True]
        assert report["invalid_unusable"].hits == 2 and report["molecule_stability"].hits == 1
        assert "atomic number" in report.rows[1]["failure"]


def test_published_tables_that_grow_are_refused():
    found = {x.name: x for x in _chain(["a", "a", "b"], {"b"}, 4, EDM)}
    v, vu, vun = (found[name] for name in ("validity", "valid_and_unique", "valid_unique_and_novel"))
    assert (v.hits, vu.hits, vun.hits) == (3, 2, 1) and v.value >= vu.value >= vun.value
    assert found["uniqueness"].value == 2 / 3 and found["novelty"].value == 1 / 2
    with pytest.raises(RuntimeError, match="^2 molecules, 3 valid"):
        _chain(["a", "a", "b"], None, 2, EDM)


def test_files_molecules_and_batches_give_the_same_numbers(some, tmp_path):
    mols = to_rdkit(from_ase(some))
    write_molecules(mols, tmp_path / "made.xyz")
    write_molecules(mols, tmp_path / "made.jsonl")
    sources = [some, mols, from_ase(some), tmp_path / "made.xyz", str(tmp_path / "made.jsonl")]
    found = [judge(source) for source in sources]
    assert all([n.hits for n in one.numbers] == [n.hits for n in found[0].numbers] for one in found)
    report = judge(tmp_path / "made.xyz", some, out=tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["protocol"]["margins"] == [10.0, 5.0, 3.0] and saved["protocol"]["hash"] == EDM.hash
    assert saved["numbers"]["molecule_stability"]["reference"] == 1.0
    assert len(report.rows) == 10 and report.rows[0]["source"].endswith("made.xyz")


def test_bonds_that_came_with_the_molecules_are_judged_apart(some):
    from rdkit import Chem

    mol = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
    conformer = Chem.Conformer(12)
    conformer.Set3D(True)
    mol.AddConformer(conformer)
    report = judge([mol])
    assert report["molecule_stability_of_given_bonds"].hits == 1 and report["molecule_stability"].hits == 0
    assert "atom_stability_of_given_bonds" not in {n.name for n in judge(some).numbers}


def test_the_table_has_a_column_for_the_reference(some, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    judge(some, some).show()
    printed = capsys.readouterr().out
    assert "reference" in printed and EDM.hash in printed and "rdkit" in printed and "lookup bonds" in printed


# ---- geometry and distances


def test_geometry_of_known_molecules():
    batch = from_ase([from_g2("H2O"), from_g2("H2O2"), from_g2("C2H2")])
    pairs, orders = lookup(batch)
    angle = geometry.angles(batch, pairs)
    expected = [from_g2("H2O").get_angle(1, 0, 2)]
    assert angle.values[angle.molecules == 0] == pytest.approx(expected, abs=1e-9)
    assert angle.values[angle.molecules == 2] == pytest.approx([180, 180], abs=1e-5)
    atoms = from_g2("H2O2")
    phi = geometry.torsions(batch, pairs, orders)
    h, o = ([i for i, s in enumerate(atoms.symbols) if s == x] for x in "HO")
    near = [min(o, key=lambda j, i=i: atoms.get_distance(i, j)) for i in h]
    whole = atoms.get_dihedral(h[0], near[0], near[1], h[1])
    assert phi.molecules.tolist() == [1] and phi.values[0] == pytest.approx(min(whole, 360 - whole), abs=1e-9)
    length = geometry.bond_lengths(batch, pairs, orders)
    assert len(length.values) == 2 + 3 + 3 and len(set(length.kinds.tolist())) == 4
    assert len(geometry.distances(batch).values) == 3 + 6 + 6 and geometry.sizes(batch).values.tolist() == [3, 4, 4]
    mirrored = batch.replace(pos=batch["pos"] * torch.tensor([1.0, 1.0, -1.0]))
    assert geometry.torsions(mirrored, pairs, orders).values == pytest.approx(phi.values)


def values(x, molecules=None, kinds=None):
    x = np.asarray(x, dtype=np.float64)
    index = np.arange(len(x)) if molecules is None else molecules
    return geometry.Values(x, np.zeros(len(x), np.int64) if kinds is None else np.asarray(kinds), index)


def measured(ours, theirs, name="bond_length", known=None):
    counts = int(ours.molecules.max()) + 1, int(theirs.molecules.max()) + 1
    return {n.name.split("_")[0]: n for n in distances(name, ours, theirs, counts, "of", EDM, 0, known)}


def test_distances_of_known_distributions():
    draw = np.random.default_rng(0)
    x = draw.normal(1.5, 0.1, 2000)
    same, shifted = measured(values(x), values(x)), measured(values(x + 0.1), values(x))
    assert [n.value for n in same.values()] == [0.0, 0.0, 0.0]
    assert shifted["wasserstein"].value == pytest.approx(0.1, abs=1e-3)
    assert shifted["wasserstein"].low < 0.1 < shifted["wasserstein"].high
    assert shifted["wasserstein"].error == pytest.approx(0.1 / math.sqrt(2000), rel=0.3)
    apart = measured(values(x + 1.0), values(x))
    assert apart["jsd"].value == pytest.approx(1.0, abs=1e-2) and 0 < shifted["jsd"].value < 1
    width = BINS["bond_length"].scale
    # of two Gaussians of variance s^2 and a Gaussian kernel, in closed form
    total = math.sqrt(width**2 + 2 * 0.1**2)
    exact = math.sqrt(2 * width / total * (1 - math.exp(-(0.1**2) / (2 * total**2))))
    assert shifted["mmd"].value == pytest.approx(exact, rel=0.05)
    # mmd of two samples of n from one such Gaussian: E mmd^2 = 2 / n (1 - E k)
    floor = math.sqrt(2 / 2000 * (1 - width / total))
    assert same["mmd"].reference == pytest.approx(floor, rel=0.2)
    assert 0 < same["jsd"].reference < 0.02 and 0 < same["wasserstein"].reference < 0.01


def test_a_fresh_draw_is_at_the_floor():
    draw = np.random.default_rng(1)
    theirs = values(draw.normal(1.5, 0.1, 2000))
    found = [measured(values(draw.normal(1.5, 0.1, 300)), theirs) for _ in range(20)]
    for name in ("wasserstein", "jsd", "mmd"):
        floor = np.mean([one[name].reference for one in found])
        assert np.mean([one[name].value for one in found]) == pytest.approx(floor, rel=0.3)
        assert all(one[name].low <= one[name].value <= one[name].high for one in found)


def test_a_kind_that_is_missing_shows_in_jsd_and_note():
    theirs = values([1.5] * 300 + [1.2] * 100, kinds=[0] * 300 + [1] * 100)
    found = measured(values([1.5] * 400), theirs)
    assert found["wasserstein"].value == 0.0 and "25.00% of the reference" in found["wasserstein"].note
    assert found["jsd"].value > 0.1 and found["mmd"].value > 0.3


def test_a_histogram_that_is_known_is_the_reference():
    """Where a copy of the data lacks what has fluorine, samples that have it are right."""
    whole, copy = values([1] * 50 + [6] * 40 + [9] * 10), values([1] * 50 + [6] * 40)
    found = measured(whole, copy, "element", {1: 5000, 6: 4000, 9: 1000})
    assert found["jsd"].value == found["mmd"].value == 0.0 and "the whole set" in found["jsd"].note
    assert measured(whole, copy, "element")["jsd"].value > 0.04
    sizes = measured(values([3.0] * 100), values([3.0] * 100), "num_atoms", {3: 3, 5: 1})
    assert sizes["wasserstein"].value == pytest.approx(0.5) and sizes["wasserstein"].reference == 0.0


def test_the_reference_has_no_more_unique_molecules_than_valid_ones(some):
    """Both are rates of all of it, although only a draw of it is looked at for what occurs twice."""
    torn = Atoms("CHHHHH", np.concatenate((some[1].positions, [[0.6, 0.6, -0.6]])))
    for seed in range(4):  # of three that are drawn one or two are valid
        report = judge(some[:3], [some[0], torn, some[1], torn], seed=seed)
        v, vu = (report[name].reference for name in ("validity", "valid_and_unique"))
        assert v == 0.5 >= vu > 0


def test_molecules_not_bonds_are_resampled():
    draw = np.random.default_rng(0)
    x = np.repeat(draw.normal(1.5, 0.1, 100), 20)  # all 20 bonds of a molecule are alike
    theirs = values(draw.normal(1.5, 0.1, 1000))
    alike = measured(values(x + 0.2, np.repeat(np.arange(100), 20)), theirs)["wasserstein"]
    assert alike.error == pytest.approx(0.1 / math.sqrt(100), rel=0.35)


# ---- bad input, protocols, the slow tiers, real data


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        ([], {}, "^structures_or_files holds no molecules; allowed: files"),
        ([3], {}, r"^structures_or_files\[0\] is a int; allowed"),
        (7, {}, "^structures_or_files is a int; allowed"),
        ("nowhere.sdf", {}, "^cannot read nowhere.sdf"),
        ("H2O", {"k": 2}, "^k = 2 is for structure prediction; allowed with the protocol edm-qm9: None"),
        ("H2O", {"reference": "qm10"}, "^reference = 'qm10', allowed: a file or folder, or"),
        ("H2O", {"reference": "prototypes:val"}, "^reference is a batch without the field 'pos'"),
        ("H2O", {"reference": [None]}, "^reference: none of 1 molecules could be read; the first: no molecule"),
        ([MoleculeRecord(None, "x", {}, "a.sdf", 0, "torn")], {}, "none of 1 .* the first: a.sdf: torn"),
        ("H2O", {"protocol": "edm"}, "^protocol = 'edm', allowed: diffcsp-csp, cdvae-2022, edm-qm9, edm-qm9-strict"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(made, options, message):
    made = [from_g2("H2O")] if made == "H2O" else made
    with pytest.raises(ValueError, match=message) as caught:
        judge(made, **options)
    assert "\n" not in str(caught.value)


def test_unreadable_entries_of_a_file_are_counted(some, tmp_path):
    write_molecules(to_rdkit(from_ase(some[:3])), tmp_path / "made.xyz")
    text = (tmp_path / "made.xyz").read_text()
    (tmp_path / "made.xyz").write_text(text.replace("O ", "Qq", 1))
    report = judge(tmp_path / "made.xyz")
    assert report["validity"].n == 3 and report["validity"].hits == 2
    assert [("unknown element" in reason) for reason in report.failures] == [True]


def test_hashes_of_protocols():
    """A hash that changes says that numbers under the old name can no longer be compared."""
    assert PROTOCOLS["diffcsp-csp"].hash == "440840faee1b" and PROTOCOLS["cdvae-2022"].hash == "1026eedea63e"
    assert len({p.hash for p in PROTOCOLS.values()}) == len(PROTOCOLS)
    assert replace(STRICT, name="mine").hash == STRICT.hash != EDM.hash


@pytest.mark.slow
def test_slow_tiers(some):
    pytest.importorskip("posebusters")
    pytest.importorskip("tblite")
    protocol = replace(PROTOCOLS["edm-qm9-physics"], posebusters=3, gfn2=3)
    bent = from_g2("CH3OH")
    bent.positions[1:] *= 1.08
    report = judge([some[3], bent, None], some[3:4], protocol)
    assert (report["posebusters"].n, report["gfn2_coverage"].n) == (3, 3)
    assert 1 <= report["posebusters"].hits <= 2 and report["posebusters"].reference == 1.0
    assert report["gfn2_strain"].value > report["gfn2_strain"].reference > 0
    assert report.versions["tblite"] and report.versions["posebusters"]


def test_real_molecules(data_root):
    """Published for the data: 99.0 % of atoms, 95.2 % of molecules stable, 97.7 % valid."""
    from chem.datasets import load

    batch = load("qm9", "val").batch
    drawn = batch.select(torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:1000])
    report = judge(drawn, reference=None)
    assert report["atom_stability"].value == pytest.approx(0.9943, abs=0.004)
    assert report["molecule_stability"].value == pytest.approx(0.957, abs=0.02)
    assert report["validity"].value == pytest.approx(0.980, abs=0.014)
    shares = np.array([TRAIN_ELEMENTS[z] for z in (1, 6, 7, 8, 9)]) / sum(TRAIN_ELEMENTS.values())
    sizes = sum(n * count for n, count in TRAIN_SIZES.items()) / 100_000
    beside = judge(drawn[:200], "qm9:val:400")
    have = torch.bincount(drawn[:200]["atomic_numbers"], minlength=10)[[1, 6, 7, 8, 9]].numpy()
    have, middle = have / have.sum(), drawn[:200]["num_atoms"].double().mean()
    both = (have + shares) / 2
    expected = sum((x[x > 0] * np.log2(x[x > 0] / both[x > 0])).sum() / 2 for x in (have, shares))
    assert beside["jsd_element"].value == pytest.approx(expected, abs=1e-12)
    assert abs(float(middle) - sizes) <= beside["wasserstein_num_atoms"].value + 1e-9
    strict = judge(drawn, protocol="edm-qm9-strict")
    assert strict["validity"].value > 0.995 and strict["molecule_stability"].value > 0.995
