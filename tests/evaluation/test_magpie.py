"""Magpie fingerprints: goldens of the sheet, matminer's own numbers, and plain statistics of made-up compositions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chem import datasets
from chem.crystals import CrystalBatch
from evaluation.compositions.amounts import amounts, symbols
from evaluation.compositions.magpie import DATA, _properties, feature_names, magpie, standardise, table_source

FIXTURE = json.loads((Path(__file__).parents[1] / "data" / "magpie_matminer.json").read_text())
MATMINER = FIXTURE["features"]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available()")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


def plain(counts: dict[int, int]) -> list[float]:
    """The definition, a property at a time."""
    weights, found = np.array(list(counts.values()), dtype=float), []
    for column in _properties().T.numpy():
        values = column[list(counts)]
        mean = np.average(values, weights=weights)
        spread = np.average(abs(values - mean), weights=weights)
        mode = values[weights == weights.max()].min()
        found += [values.min(), values.max(), np.ptp(values), mean, spread, mode]
    return found


def test_names_are_those_of_the_scaler():
    with (DATA / "magpie_scaler.csv").open() as file:
        assert feature_names() == [row["feature"] for row in csv.DictReader(file)]
    assert table_source().startswith("matminer 0.10.1 ") and table_source().startswith(FIXTURE["source"])


def test_goldens_of_the_sheet():
    found = magpie(["SrTiO3", "NaCl", "BaTiO3", "C"])
    assert found[0, :6].tolist() == pytest.approx([8, 38, 30, 16.8, 10.56, 8], rel=1e-12)
    distance = torch.cdist(standardise(found), standardise(found))
    goldens = {(0, 1): 13.3287, (0, 2): 2.80876, (1, 3): 29.8061}
    for pair, expected in goldens.items():
        assert float(distance[pair]) == pytest.approx(expected, abs=1e-4), pair


@pytest.mark.parametrize("device", DEVICES)
def test_equals_matminer(device):
    found = magpie(list(MATMINER), device).cpu()
    expected = torch.tensor(list(MATMINER.values()), dtype=torch.float64)
    assert len(expected) == 200 and torch.allclose(found, expected, rtol=1e-12, atol=1e-11)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.dictionaries(st.integers(1, 118), st.integers(1, 30), min_size=1, max_size=9), max_size=6))
def test_equals_the_definition(compositions):
    found = magpie([dict(zip(symbols(list(c)), c.values(), strict=True)) for c in compositions])
    expected = np.array([plain(c) for c in compositions]).reshape(len(compositions), 132)
    assert np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_equal_formulas(device):
    batch = datasets.load("prototypes", "train").batch
    table = amounts(batch)
    formulas = [dict(zip(symbols(z := row.nonzero()[:, 0].tolist()), row[z].tolist(), strict=True)) for row in table]
    assert torch.equal(magpie(batch.to(device)).cpu(), magpie(formulas, device).cpu())
    assert torch.equal(magpie(batch, device), magpie(batch.to(device)))
    assert torch.equal(amounts(formulas), table) and magpie(batch[:0]).shape == (0, 132)


def test_chunks_do_not_show(monkeypatch):
    batch = datasets.load("prototypes", "train").batch
    whole, crystals = magpie(list(MATMINER)), magpie(batch)
    monkeypatch.setattr("evaluation.compositions.amounts.AT_ONCE", 7)
    assert torch.allclose(magpie(list(MATMINER)), whole, rtol=1e-13, atol=1e-13)
    for size in (7, len(batch), len(batch) - 1):
        monkeypatch.setattr("evaluation.compositions.amounts.AT_ONCE", size)
        assert torch.allclose(magpie(batch), crystals, rtol=1e-13, atol=1e-13)


def test_multiples_brackets_and_deuterium():
    assert torch.allclose(magpie(["Sr2Ti2O6"]), magpie(["SrTiO3"]), rtol=1e-12)
    assert torch.equal(magpie(["Ca(OH)2"]), magpie(["CaO2H2"])) and torch.equal(magpie(["HDO"]), magpie(["H2O"]))


def test_bad_input():
    empty = CrystalBatch([0, 1], atomic_numbers=torch.tensor([6]))
    found = magpie(empty)
    assert found[0].isnan().all() and torch.equal(found[1:], magpie(["C"]))
    with pytest.raises(ValueError, match="^atomic_numbers range from 0 to 119, allowed: 1 to 118$"):
        magpie(CrystalBatch([2], atomic_numbers=torch.tensor([0, 119])))
    for bad in ("Xx2", "", {"Na": -1}, "Na0"):
        with pytest.raises(ValueError, match="^composition = .*allowed: "):
            magpie(["NaCl", bad])
