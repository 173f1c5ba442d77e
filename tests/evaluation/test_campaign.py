"""Campaigns: every stage against what it must find, restarts, parts, and the verb."""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ase.data import chemical_symbols

import atomsmith
from chem.convert import batch_from_arrays
from chem.io import read
from evaluation.campaigns import duplicates
from evaluation.campaigns.campaign import Sizes, campaign
from evaluation.campaigns.duplicates import blocks, collect, keys
from evaluation.campaigns.relaxing import AgainstHull, Relaxing
from evaluation.campaigns.screening import Filters
from evaluation.campaigns.structure_tables import STRUCTURE, read_rows, to_batch, to_table
from tests.commands import cli
from tests.evaluation.crystals_to_screen import KINDS, Merge, Toys, Weigh, prototypes

duckdb = pytest.importorskip("duckdb", reason="needs the extra 'campaign'")
N = 40
SMALL = Sizes(16, 4, 4)
BROKEN = {i for i in range(N) if i % 9 == 8} | {i for i in range(1, N) if i % 9 == 0}


def contents(folder) -> dict[str, bytes]:
    """Every file but those that hold paths or times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".db")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_tables_keep_every_digit(tmp_path):
    batch = prototypes()
    table = to_table(batch)
    back = to_batch(table.slice(2, 3))
    for name in ("atomic_numbers", "frac_coords", "lattice", "num_atoms"):
        assert torch.equal(back[name], batch[2:5][name])
    assert len(to_batch(table.slice(0, 0))) == 0
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    for start, stop in ((0, 6), (1, 2), (1, 5), (3, 4), (4, 6), (2, 2)):
        assert read_rows(tmp_path / "t.parquet", start, stop).equals(table.slice(start, stop - start))


def test_filters_name_the_first_reason():
    batch = Toys().draw(0, 10)
    refused = Filters(validity="cdvae").refuse(batch)
    assert [bool(reason) for reason in refused] == [False] * 8 + [True] * 2
    assert refused[8].startswith("validity: two atoms at 0.000 Å") and refused[9].startswith("validity: volume below")
    assert all(reason.startswith("min_distance: two atoms") for reason in Filters(min_distance=9.0).refuse(batch)[:8])
    allowed = batch[0]["atomic_numbers"].tolist()
    refused = Filters(elements=tuple(chemical_symbols[z] for z in allowed)).refuse(batch)
    for one, reason in zip(batch, refused, strict=True):
        foreign = not set(one["atomic_numbers"].tolist()) <= set(allowed)
        assert (reason is not None and reason.startswith("elements: ")) == foreign
    assert refused[KINDS] is None and refused[1] is not None


def test_the_composition_is_a_filter():
    lattice = np.array([[6.0, 0, 0], [1, 7, 0], [2, 1, 8]])
    cells = {"NaCl": [11, 17], "NaCl3": [11, 17, 17, 17]}
    frac = [np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.1], [0.5, 0, 0.2]])[: len(z)] for z in cells.values()]
    batch = batch_from_arrays([np.array(z) for z in cells.values()], frac, [lattice] * 2)
    refused = Filters(composition=True, validity="cdvae").refuse(batch)
    assert refused == [None, "composition: no neutral choice of oxidation states"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validity": "loose"}, "^validity = 'loose', allowed: cdvae, strict"),
        ({"min_distance": 0}, "^min_distance = 0, allowed: a positive number"),
        ({"elements": ("Fe", "Zz")}, "^elements: 'Zz' is no element"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Filters(**options)


def test_keys_do_not_see_the_basis():
    batch = prototypes()
    turn = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 1, 1]], dtype=torch.float64)
    other = batch.replace(frac_coords=batch["frac_coords"] @ torch.linalg.inv(turn), lattice=turn @ batch["lattice"])
    a, b = keys(batch), keys(other)
    assert a["formula"] == b["formula"] and a["space_group"] == b["space_group"] and min(a["space_group"]) > 1
    assert b["volume"] == pytest.approx(a["volume"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("campaign") / "out"
    relaxing = Relaxing(Merge(), "merge", Weigh())
    return out, campaign(out, Toys(), N, relax=relaxing, top=3, sizes=SMALL, workers=0), relaxing


def test_counts_of_every_stage(finished):
    out, outcome, _ = finished
    assert outcome.counts["samples"] == N and outcome.counts["candidates"] == N - len(BROKEN)
    assert outcome.refused["samples, validity"] == len(BROKEN)
    assert outcome.counts["unique"] == outcome.counts["relaxed"] == KINDS and outcome.unfinished is None
    assert outcome.refused["relaxed, relaxation"] == 2  # the first of each chunk of 4
    assert outcome.counts["relaxed-unique"] == KINDS - 2 and outcome.counts["shortlist"] == 3
    unique = pq.read_table(out / "unique.parquet")
    assert unique["row"].to_pylist() == list(range(KINDS))
    expected = [sum(i % KINDS == kind and i not in BROKEN for i in range(N)) for kind in range(KINDS)]
    assert unique["copies"].to_pylist() == expected
    ranked = pq.read_table(out / "ranking.parquet")
    assert ranked["e_above_hull"].to_pylist() == sorted(ranked["e_above_hull"].to_pylist())
    for sample, copies in zip(ranked["sample"].to_pylist(), ranked["copies"].to_pylist(), strict=True):
        assert copies == expected[sample]  # what the samples were counted for stays through relaxation


def test_the_shortlist_opens_in_other_programs(finished):
    from ase.db import connect

    out, _, _ = finished
    ranked = pq.read_table(out / "ranking.parquet").slice(0, 3)
    frames = list(read(out / "shortlist" / "shortlist.extxyz"))
    assert [frame.properties["rank"] for frame in frames] == [1, 2, 3] and frames[0].id.startswith("1_")
    assert [frame.properties["sample"] for frame in frames] == ranked["sample"].to_pylist()
    for frame, one in zip(frames, to_batch(ranked), strict=True):
        assert frame.structure.volume == pytest.approx(abs(float(torch.linalg.det(one["lattice"][0]))), rel=1e-6)
    cifs = list(read(out / "shortlist" / "cif"))
    assert [one.structure.composition.reduced_formula for one in cifs] == [f.structure.reduced_formula for f in frames]
    with connect(out / "shortlist" / "shortlist.db") as database:
        rows = list(database.select())
    assert [row.rank for row in rows] == [1, 2, 3]
    assert [row.natoms for row in rows] == ranked["nsites"].to_pylist()
    assert rows[0].e_above_hull == pytest.approx(ranked["e_above_hull"][0].as_py())


def test_again_changes_nothing_and_another_request_is_refused(finished):
    out, outcome, relaxing = finished
    before, times = contents(out), {p: p.stat().st_mtime_ns for p in out.rglob("chunk-*.parquet")}
    assert campaign(out, Toys(), N, relax=relaxing, top=3, sizes=SMALL, workers=0) == outcome
    assert contents(out) == before and {p: p.stat().st_mtime_ns for p in out.rglob("chunk-*.parquet")} == times
    with pytest.raises(ValueError, match="holds results made with rows = 40, asked 41"):
        campaign(out, Toys(), N + 1, relax=relaxing, sizes=SMALL, workers=0)
    with pytest.raises(ValueError, match="holds results made with filters = .*asked"):
        campaign(out, Toys(), N, Filters(validity="cdvae"), sizes=SMALL, workers=0)
    with pytest.raises(ValueError, match="holds results made with relax = 'merge', asked 'other'"):
        campaign(out, Toys(), N, relax=Relaxing(Merge(), "other"), sizes=SMALL, workers=0)


def test_parts_make_the_same_files_as_one_run(finished, tmp_path):
    whole, outcome, relaxing = finished
    unfinished = []
    for _ in range(5):
        for part in ("1/2", "0/2"):
            done = campaign(tmp_path / "o", Toys(), N, relax=relaxing, top=3, sizes=SMALL, workers=0, part=part)
            unfinished.append(done.unfinished)
    assert unfinished[0] == "samples" and done == outcome and None in unfinished
    assert contents(tmp_path / "o") == contents(whole)


def test_without_relaxation_the_most_repeated_come_first(tmp_path):
    campaign(tmp_path / "o", Toys(), N, top=100, sizes=SMALL, workers=0)
    ranked = pq.read_table(tmp_path / "o" / "ranking.parquet")
    assert ranked["copies"].to_pylist() == sorted(ranked["copies"].to_pylist(), reverse=True)
    assert ranked.num_rows == KINDS and set(STRUCTURE) < set(ranked.column_names)


def test_nothing_passes(tmp_path):
    outcome = campaign(tmp_path / "o", Toys(), 4, Filters(elements=("He",)), sizes=SMALL, workers=0)
    assert outcome.counts == {"samples": 4, "candidates": 0, "unique": 0, "shortlist": 0}
    assert outcome.refused == {"samples, elements": 4}
    assert (tmp_path / "o" / "shortlist" / "shortlist.extxyz").exists()


def test_blocks_against_a_plain_reference(tmp_path, monkeypatch):
    """1,000 rows of random keys in several files, against a loop over sorted tuples."""
    import pyarrow as pa

    from evaluation.runs.chunks import open_chunks

    random = np.random.default_rng(0)
    formula, group = random.choice(["AB", "A2B", "ABC"], 1000), random.choice([0, 62, 225], 1000)
    space, refused = random.uniform(5, 40, 1000), random.random(1000) < 0.3
    folder = open_chunks(tmp_path / "c", {}, 1000, 128)
    for chunk in folder.chunks:
        piece = folder.whole(chunk)
        rows = slice(piece.start, piece.stop)
        text = pa.array(np.where(refused[rows], "no", "yes"), pa.string(), mask=~refused[rows])
        columns = {"formula": formula[rows], "space_group": group[rows], "volume": space[rows], "refused": text}
        folder.write(piece, pa.table(columns))
    assert collect(folder, tmp_path / "candidates.parquet") == int((~refused).sum())
    rows = sorted((formula[i], group[i], space[i], i) for i in range(1000) if not refused[i])
    assert pq.read_table(tmp_path / "candidates.parquet")["row"].to_pylist() == [row[3] for row in rows]
    cuts = [0]
    for k in range(1, len(rows)):
        if rows[k][:2] != rows[k - 1][:2] or rows[k][2] > rows[k - 1][2] * 1.05:
            cuts.append(k)
    assert blocks(tmp_path / "candidates.parquet").tolist() == [*cuts, len(rows)]
    monkeypatch.setattr(duplicates, "LARGEST", 7)
    ends = blocks(tmp_path / "candidates.parquet")
    assert np.diff(ends).max() == 7 and set(cuts) <= set(ends.tolist())


def test_the_verb_draws_what_sample_draws(tiny_ab_initio, tmp_path, monkeypatch, capsys):
    words = ["campaign", tiny_ab_initio, "-n", "20", "--out", tmp_path / "o", "--steps", "3", "--num-atoms", "2-4"]
    done = cli([*words, "--seed", "5", "--workers", "0", "--validity", "cdvae", "--top", "4"], monkeypatch, capsys)
    assert done.code == 0 and done.out.splitlines()[0] == "20 samples"
    made = atomsmith.sample(tiny_ab_initio, 20, num_atoms="2-4", steps=3, seed=5)
    table = pq.read_table(tmp_path / "o" / "samples" / "chunk-00000000.parquet")
    for structure, one in zip(made, to_batch(table), strict=True):
        assert one["atomic_numbers"].tolist() == list(structure.atomic_numbers)
        np.testing.assert_allclose(one["lattice"][0].numpy(), structure.lattice.matrix, rtol=1e-12)
    request = json.loads((tmp_path / "o" / "samples" / "chunks.json").read_text())["request"]
    assert request["seed"] == 5 and request["steps"] == 3 and len(request["weights_sha256"]) == 64
    wrong = cli([*words, "--seed", "6", "--workers", "0", "--validity", "cdvae"], monkeypatch, capsys)
    assert wrong.code == 2 and "seed" in wrong.err and wrong.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "^n = 0, allowed"),
        ({"top": 0}, "^top = 0, allowed"),
        ({"formular": "NaCl"}, "^formular is no argument of a campaign"),
        ({"relax": "mace"}, "^relax = 'mace', allowed: chgnet"),
        ({"relax": "chgnet", "hull": "no.csv"}, "^hull = 'no.csv', allowed: mp20"),
        ({"hull": "no.csv"}, "^hull = 'no.csv' is for relax = 'chgnet'"),
        ({"engine": "dask"}, "^engine = 'dask', allowed: processes, ray"),
        ({"part": "2/2"}, "^part = '2/2', allowed"),
        ({"formula": "NaCl"}, "formula"),
    ],
)
def test_what_cannot_be_run_is_refused(tiny_ab_initio, tmp_path, options, message):
    arguments = {"n": 4, "workers": 0, "steps": 2, **options}
    with pytest.raises(ValueError, match=message):
        atomsmith.campaign(tiny_ab_initio, out=tmp_path / "o", **arguments)
    assert not list(tmp_path.rglob("chunk-*"))  # before anything is drawn


@pytest.mark.parametrize(("module", "extra"), [("duckdb", "campaign"), ("chgnet.model", "stability")])
def test_a_missing_extra_is_named_before_anything_is_drawn(tiny_ab_initio, tmp_path, monkeypatch, module, extra):
    table = tmp_path / "phases.csv"
    table.write_text("formula,energy\nNa,-1.3\nCl,-1.8\n")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"the extra '{extra}'"):
        atomsmith.campaign(tiny_ab_initio, 4, tmp_path / "o", steps=2, workers=0, relax="chgnet", hull=table)
    assert not list(tmp_path.rglob("chunk-*"))


def test_another_table_under_the_same_name_is_another_hull(tmp_path):
    table = tmp_path / "phases.csv"
    table.write_text("formula,energy\nNa,-1.3\nCl,-1.8\n")
    before = AgainstHull(str(table)).label
    table.write_text("formula,energy\nNa,-1.3\nCl,-1.8\nNaCl,-7\n")
    after = AgainstHull(str(table)).label
    assert before.split()[0] == after.split()[0] == "e_hull[phases]" and before != after
