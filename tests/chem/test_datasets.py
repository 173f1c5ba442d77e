"""Data sets by name, their layouts and splits, and statistics."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from chem.convert import from_structures
from chem.datasets import DataNotFoundError, load, split_rows
from chem.statistics import Statistics


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """perov5 as csv files of the CDVAE layout, carbon24 as one parquet file with a column `split`."""
    cifs = [Structure(Lattice.cubic(3.5 + i / 10), ["Cs", "Cl"], [[0] * 3, [0.5] * 3]).to(fmt="cif") for i in range(6)]
    frame = pd.DataFrame({"material_id": range(6), "cif": cifs, "heat_all": np.arange(6.0)})
    (tmp_path / "perov_5").mkdir()
    for split, rows in {"train": slice(0, 3), "val": slice(3, 4), "test": slice(4, 6)}.items():
        frame[rows].to_csv(tmp_path / "perov_5" / f"{split}.csv")
    frame.assign(split=["val", "train", "train", "test", "val", "val"]).to_parquet(tmp_path / "carbon_24.parquet")
    return tmp_path


def test_csv_layout(root: Path) -> None:
    data = load("perov5", "train", root=root, cache=root / "cache")
    assert (data.name, data.split, len(data)) == ("perov5", "train", 3)
    assert data.ids == ["0", "1", "2"] and data.failures == [] and len(data.sha256) == 64
    assert data.batch["heat_all"].tolist() == [0.0, 1.0, 2.0]
    torch.testing.assert_close(data.batch["lattice"][1], 3.6 * torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    chosen = data.select(torch.tensor([2, 0]))
    assert chosen["heat_all"].tolist() == [2.0, 0.0] and chosen["atomic_numbers"].tolist() == [55, 17, 55, 17]


def test_parquet_layout_with_a_split_column(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSMITH_DATA", str(root))
    assert load("carbon24", "val", cache=root / "cache").ids == ["0", "4", "5"]
    assert load("carbon24", "train", cache=root / "cache").ids == ["1", "2"]


def test_tuning_code_cannot_open_the_test_split(root: Path) -> None:
    with pytest.raises(ValueError, match="purpose='report'"):
        load("perov5", "test", root=root)
    assert load("perov5", "test", root=root, cache=root / "cache", purpose="report").ids == ["4", "5"]


@pytest.mark.parametrize("arguments, message", [
    (("mp21", "train"), "unknown data set 'mp21'; known: mp20, perov5"),
    (("mp20", "training"), "split must be one of train, val, test, got 'training'"),
])  # fmt: skip
def test_wrong_names_are_refused_with_the_known_ones(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(*arguments)


def test_wrong_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="'tuning' or 'report'"):
        load("mp20", "train", purpose="fun")  # type: ignore[arg-type]


def test_missing_files_are_named_in_one_line(root: Path) -> None:
    with pytest.raises(DataNotFoundError) as error:
        load("mp20", "train", root=root)
    message = str(error.value)
    assert str(root / "mp20_train.parquet") in message and str(root / "mp_20" / "train.csv") in message
    assert "\n" not in message and "ATOMSMITH_DATA" in message


def test_split_rows_does_not_depend_on_order_and_covers_all() -> None:
    ids = [f"id-{i}" for i in range(50)]
    parts = split_rows(ids, (0.6, 0.2, 0.2), seed=3)
    assert [len(rows) for rows in parts.values()] == [30, 10, 10]
    assert sorted(sum(parts.values(), [])) == list(range(50))
    backwards = split_rows(ids[::-1], (0.6, 0.2, 0.2), seed=3)
    assert {ids[i] for i in parts["val"]} == {ids[::-1][i] for i in backwards["val"]}
    assert split_rows(ids, seed=4) != split_rows(ids, seed=5)
    with pytest.raises(ValueError, match="add up to 1"):
        split_rows(ids, (0.5, 0.1, 0.1))


def test_statistics_against_numpy() -> None:
    cells = [(3.1, 4.2, 5.3, 80, 100, 110), (4.0, 4.5, 6.0, 75, 95, 85)]
    frac = np.random.default_rng(0).random((3, 3))
    structures = [
        Structure(Lattice.from_parameters(*c), ["Na", "Cl", "O"][:n], frac[:n])
        for c, n in zip(cells, (2, 3), strict=True)
    ]
    batch = from_structures(structures).attach("structure", gap=torch.tensor([2.0, float("nan")]))
    stats = Statistics.compute(batch)
    assert stats.num_structures == 2 and stats.num_atoms == {2: 1, 3: 1} and stats.elements == {8: 1, 11: 2, 17: 2}
    np.testing.assert_allclose(stats.log_length_mean, np.log(cells)[:, :3].mean(0), atol=1e-12)
    np.testing.assert_allclose(stats.log_length_std, np.log(cells)[:, :3].std(0), atol=1e-12)
    np.testing.assert_allclose(stats.angle_mean, np.mean(cells, 0)[3:], atol=1e-10)
    np.testing.assert_allclose(stats.angle_std, np.std(cells, 0)[3:], atol=1e-10)
    logs = [np.log(s.volume / len(s)) for s in structures]
    np.testing.assert_allclose((stats.volume_per_atom_mean, stats.volume_per_atom_std), (np.mean(logs), np.std(logs)))
    assert (stats.properties["gap"].count, stats.properties["gap"].mean) == (1, 2.0)
    assert Statistics.from_dict(json.loads(json.dumps(stats.to_dict(), allow_nan=False))) == stats


def test_statistics_refuse_unknown_and_missing_keys() -> None:
    stats = Statistics.compute(from_structures([Structure(Lattice.cubic(3), ["Na"], [[0, 0, 0]])])).to_dict()
    with pytest.raises(ValueError, match="unknown key 'mean_mass'; known: num_structures, num_atoms"):
        Statistics.from_dict({**stats, "mean_mass": 1})
    with pytest.raises(ValueError, match="missing key 'elements'"):
        Statistics.from_dict({k: v for k, v in stats.items() if k != "elements"})
    with pytest.raises(ValueError, match="at least one structure"):
        Statistics.compute(from_structures([]))


def test_perov5_validation_split_of_the_real_data(data_root: Path, tmp_path: Path) -> None:
    data = load("perov5", "val", root=data_root, cache=tmp_path)
    assert len(data) == 3787 and data.failures == []
    assert data.batch["num_atoms"].unique().tolist() == [5]
    assert not data.batch["heat_all"].isnan().any()
    lattice = data.batch["lattice"]
    assert (lattice[:, 0, 1] == 0).all() and (lattice[:, 2, :2] == 0).all() and (torch.linalg.det(lattice) > 0).all()
