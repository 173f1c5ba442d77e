"""Files read and measured through chunks: the same structures, rows and numbers as at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from chem import datasets
from chem.convert import to_structures
from chem.io import Record, write
from chem.reading import count, read, read_slice
from evaluation.descriptors.described import composition_fingerprints
from evaluation.descriptors.fingerprints import structure_fingerprints
from evaluation.evaluate import evaluate
from evaluation.inputs import gather
from evaluation.runs import stages
from evaluation.runs.stages import STAGES, Describe, describe_files, described, in_chunks, read_items
from evaluation.validity import densities, structural_validity


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Crystals in files of several formats, with a torn line, a text that is no crystal and an empty file between."""
    folder = tmp_path_factory.mktemp("files")
    batch = datasets.load("prototypes", "val").batch
    made = to_structures(batch[torch.nonzero(batch["num_atoms"] <= 8).flatten()[:20].tolist()])
    made[3].perturb(0.1)
    made[4].scale_lattice(0.3)
    records = [Record(s, f"s{i}", {"target": f"s{i}"}) for i, s in enumerate(made)]
    write(records[:7], folder / "a.extxyz")
    write(records[7:12], folder / "b.jsonl")
    text = (folder / "b.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "b.jsonl").write_bytes(b"".join([*text[:2], text[2][:-30] + b"\n", *text[3:]]))
    write(records[12:18], folder / "c.csv")
    (folder / "d.cif").write_text("not a crystal")
    (folder / "e.cif").write_text("")
    write(records[18:], folder / "f", "cif")
    return [folder, folder / "f"]


@pytest.fixture
def few(monkeypatch):
    """Chunks already for a handful of structures, of three each, so that most files are cut."""
    monkeypatch.setattr(stages, "MANY", 5)
    monkeypatch.setattr(describe_files, "__kwdefaults__", {"size": 3})


def test_a_slice_is_what_reading_all_gives(files):
    for file in files[0].glob("*.*"):
        kind = file.suffix[1:]
        whole = list(read(file))
        assert count(file, kind) == len(whole) >= 1
        for start, stop in ((0, 2), (1, 4), (2, 3), (0, len(whole))):
            part = list(read_slice(file, kind, start, stop))
            assert [(r.id, r.index, r.error, r.structure) for r in part] == [
                (r.id, r.index, r.error, r.structure) for r in whole[start:stop]
            ]


def test_items_are_those_of_gather(files, tmp_path, few):
    at_once, through = gather(files), in_chunks(files, tmp_path, 0)
    for name in ("place", "ids", "targets", "errors", "sources", "name"):
        assert getattr(through, name) == getattr(at_once, name), name
    for name in ("atomic_numbers", "frac_coords", "lattice", "num_atoms"):
        assert torch.equal(through.batch[name], at_once.batch[name])
    assert sum(map(bool, through.errors)) == 3


@pytest.mark.parametrize("protocol", ["cdvae-2022", "diffcsp-csp"])
def test_reports_are_the_same(files, tmp_path, few, protocol):
    reference = files[0] / "c.csv" if protocol == "diffcsp-csp" else None
    given = [files[0] / "c.csv"] if reference else files
    once = evaluate(given, reference, protocol, processes=0)
    chunked = evaluate(given, reference, protocol, tmp_path / "out", processes=0)
    assert once.as_dict() == chunked.as_dict() and list(once.rows) == list(chunked.rows)
    (folder,) = (tmp_path / "out").glob("structures-*")
    files_before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    evaluate(given, reference, protocol, tmp_path / "out", processes=0)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files_before


def test_small_inputs_and_other_sources_stay_as_they_are(files, tmp_path):
    structure = next(read(files[0] / "c.csv")).structure
    for source in (files, str(files[0] / "c.csv"), [structure], "prototypes:val", "baseline:random", [], None):
        assert in_chunks(source, tmp_path, 0) is source
    assert not list(tmp_path.iterdir())


def test_every_stage_gives_what_its_function_gives(files, tmp_path):
    folder = describe_files(files, tmp_path / "o", tuple(STAGES), size=4, workers=0)
    step = Describe(stages._counted(files), tuple(STAGES))
    items, table = read_items(folder, step), folder.read()
    known = [row for row, place in enumerate(items.place) if place is not None]
    assert [table["density"].to_pylist()[row] is None for row in range(len(items))] == [p is None for p in items.place]
    at = table.take(known)
    np.testing.assert_array_equal(at["density"].to_numpy(), densities(items.batch))
    assert at["invalid_strict"].to_pylist() == structural_validity(items.batch, "strict").reasons
    assert any(at["invalid_strict"].to_pylist()) and not all(at["invalid_strict"].to_pylist())
    found = described(folder, items, tmp_path / "cache")
    magpie, crystalnn = composition_fingerprints(items.batch), structure_fingerprints(items.batch)
    np.testing.assert_allclose(found.composition.values, magpie.values, rtol=1e-12, equal_nan=True)
    np.testing.assert_allclose(found.structure.values, crystalnn.values, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert found.structure.reasons == crystalnn.reasons and not (tmp_path / "cache").exists()
    assert found.n == len(items) > len(found.batch)


def test_what_ended_its_worker_is_counted(files, tmp_path, monkeypatch):
    def fatal(batch):
        if any(torch.equal(lattice, crystal["lattice"][0]) for lattice in batch["lattice"]):
            raise MemoryError("no room")
        return {}

    crystal = gather(files).batch[5]
    monkeypatch.setitem(STAGES, "density", fatal)
    folder = describe_files(files, tmp_path / "o", ("density",), size=4, workers=0)
    items = read_items(folder, Describe(stages._counted(files), ("density",)))
    lost = [i for i, error in enumerate(items.errors) if "MemoryError: no room" in error]
    at_once = gather(files)
    assert lost == [5] and len(items) == len(at_once) and items.ids[5] == "a_5"
    assert items.sources == at_once.sources
    assert len(items.batch) == len(at_once.batch) - len(lost)


def test_other_files_or_stages_are_refused(files, tmp_path):
    describe_files(files[1], tmp_path / "o", workers=0)
    with pytest.raises(ValueError, match="holds results made with files = "):
        describe_files(files[0] / "c.csv", tmp_path / "o", size=512, workers=0)
    with pytest.raises(ValueError, match="^stages = 'magic', allowed: validity, composition"):
        describe_files(files[1], tmp_path / "p", ("magic",), workers=0)
    with pytest.raises(ValueError, match="cannot read .*nowhere.cif"):
        describe_files("nowhere.cif", tmp_path / "p", workers=0)
    assert json.loads((tmp_path / "o" / "chunks.json").read_text())["stages"] == ["validity", "composition", "density"]
