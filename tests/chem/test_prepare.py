"""Data sets of one's own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from ase.io import write
from pymatgen.core import Lattice, Structure

from chem.datasets import load, split_rows
from chem.prepare import prepare
from chem.statistics import Statistics


def crystal(i: int) -> Structure:
    lattice = Lattice.from_parameters(3.1 + i / 20, 4.2, 5.3, 80, 100, 110)
    return Structure(lattice, ["Na", "Cl"], [[0, 0, 0], [0.4, 0.5, 0.6]])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    texts = [*(crystal(i).to(fmt="cif") for i in range(20)), "data_broken"]
    frame = pd.DataFrame({"key": [f"k{i}" for i in range(21)], "cif": texts, "bulk modulus": np.arange(21.0)})
    frame["colour"] = "red"
    frame.loc[3, "bulk modulus"] = np.nan
    frame.to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def test_table_with_any_property(table: Path, tmp_path: Path) -> None:
    report = prepare(table, tmp_path / "sets", "mine", seed=5, split=(0.5, 0.25, 0.25), id_column="key")
    assert report.folder == tmp_path / "sets" / "mine" and report.num_structures == 20
    assert report.splits == {"train": 10, "val": 5, "test": 5}
    assert (report.properties, report.ignored_columns) == (["bulk modulus"], ["colour"])
    assert [name for name, _ in report.failures] == ["k20"]
    train, val = (load(report.folder, split) for split in ("train", "val"))
    test = load("mine", "test", root=tmp_path / "sets", purpose="report")
    assert sorted(train.ids + val.ids + test.ids) == sorted(f"k{i}" for i in range(20))
    assert train.name == "mine" and train.failures == report.failures
    for part in (train, val, test):
        wanted = [np.nan if i == "k3" else float(i[1:]) for i in part.ids]
        np.testing.assert_equal(part.batch["bulk modulus"].numpy(), wanted)
    assert Statistics.from_dict(json.loads((report.folder / "statistics.json").read_text())).num_structures == 10
    assert json.loads((report.folder / "failures.json").read_text())[0]["id"] == "k20"
    with pytest.raises(ValueError, match="purpose='report'"):
        load(report.folder, "test")


def test_folder_of_mixed_files(tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    for i in range(4):
        crystal(i).to(filename=str(source / f"a{i}.cif"))
    crystal(4).to(filename=str(source / "b.vasp"), fmt="poscar")
    frames = [Atoms("NaCl", scaled_positions=[[0] * 3, [0.5] * 3], cell=[3 + i, 3, 3], pbc=True) for i in range(3)]
    for i, frame in enumerate(frames):
        frame.info.update(energy_above=0.1 * i)
    write(source / "c.extxyz", frames, format="extxyz")
    (source / "d.cif").write_text("data_broken\n")
    report = prepare(source, tmp_path, "mixed", split=(1.0, 0.0, 0.0), processes=1)
    assert report.num_structures == 8 and len(report.failures) == 1 and "d" in report.failures[0][0]
    data = load(tmp_path / "mixed", "train")
    values = data.batch["energy_above"]
    assert (~values.isnan()).sum() == 3
    torch.testing.assert_close(values[~values.isnan()], torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64))
    assert {"a0", "b"} <= set(data.ids)


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"j{i}", "structure": crystal(i).as_dict(), "gap": i}) for i in range(5)]
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    report = prepare(tmp_path / "s.jsonl", tmp_path, "lines", split=(0.6, 0.2, 0.2))
    data = load(report.folder, "train")
    assert data.batch["gap"].tolist() == [float(i[1:]) for i in data.ids] and len(data) == 3


def test_same_seed_same_split(table: Path, tmp_path: Path) -> None:
    one = prepare(table, tmp_path, "one", seed=1, id_column="key")
    two = prepare([table], tmp_path, "two", seed=1, id_column="key")
    ids = [f"k{i}" for i in range(20)]
    assert load(one.folder, "train").ids == load(two.folder, "train").ids
    assert load(one.folder, "val").ids == [ids[i] for i in split_rows(ids, seed=1)["val"]]


def test_nothing_is_overwritten(table: Path, tmp_path: Path) -> None:
    prepare(table, tmp_path, "mine")
    with pytest.raises(ValueError, match="is a data set already"):
        prepare(table, tmp_path, "mine")


def test_changed_packed_file_is_noticed(table: Path, tmp_path: Path) -> None:
    folder = prepare(table, tmp_path, "mine").folder
    packed = folder / "packed.safetensors"
    packed.write_bytes(packed.read_bytes() + b" ")
    with pytest.raises(ValueError, match="run prepare again"):
        load(folder, "train")


def test_bad_input_is_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        prepare(tmp_path / "nowhere", tmp_path, "x")
    with pytest.raises(ValueError, match="plain folder name, got 'a/b'"):
        prepare(table, tmp_path, "a/b")
    with pytest.raises(ValueError, match="add up to 1"):
        prepare(table, tmp_path, "x", split=(0.5, 0.1, 0.1))
    (tmp_path / "bad.csv").write_text("material_id,cif\nq,nonsense\n")
    with pytest.raises(ValueError, match="no structure of .* could be used; the first of 1 failures: .*'q'"):
        prepare(tmp_path / "bad.csv", tmp_path, "x")
    assert not (tmp_path / "x").exists()
