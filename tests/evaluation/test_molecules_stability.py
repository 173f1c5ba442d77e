"""EDM's tables and rules against its fixtures and a double loop, corrected valences, graphs, and frozen perception."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule as from_g2

from chem.convert_molecules import batch_from_arrays, from_ase, from_rdkit
from evaluation.evaluate import evaluate
from evaluation.molecules.graphs import split_bonds
from evaluation.molecules.judging import judge_batch
from evaluation.molecules.stability import MARGINS, corrected_stability, edm_stability, lookup
from evaluation.molecules.tables import corrected_valences, edm_valences, thresholds
from evaluation.protocols import EDM, STRICT


def line(symbols: str, *positions: float):
    """Atoms on the x axis as a batch of one."""
    z = {"H": 1, "C": 6, "N": 7, "O": 8}
    return batch_from_arrays([np.array([z[s] for s in symbols])], [np.array([[x, 0.0, 0.0] for x in positions])])


def ring(length: float):
    """Benzene of that C-C distance."""
    turn = np.arange(6) * math.pi / 3
    plane = np.stack((np.cos(turn), np.sin(turn), 0 * turn), 1)
    return batch_from_arrays([np.array([6] * 6 + [1] * 6)], [np.concatenate((length * plane, (length + 1.09) * plane))])


def methane(bond: float = 1.087):
    corners = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) * bond / math.sqrt(3)
    return batch_from_arrays([np.array([6, 1, 1, 1, 1])], [np.concatenate((np.zeros((1, 3)), corners))])


def mmff(smiles: str):
    """Batch of one molecule in its MMFF geometry."""
    from rdkit import Chem
    from rdkit.Chem.rdDistGeom import EmbedMolecule
    from rdkit.Chem.rdForceFieldHelpers import MMFFOptimizeMolecule

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    EmbedMolecule(mol, randomSeed=7)
    MMFFOptimizeMolecule(mol, maxIters=2000)
    return from_rdkit([mol], bonds=False)


def verdict(batch) -> tuple[int, int, bool]:
    found = edm_stability(batch, *lookup(batch))
    return int(found.atoms[0]), int(batch["num_atoms"][0]), bool(found.stable[0])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (from_ase([from_g2("H2O")]), (3, 3, True)),
        (methane(), (5, 5, True)),
        (line("NN", 0, 1.0977), (2, 2, True)),
        (line("OO", 0, 1.2075), (2, 2, True)),
        (line("HCN", 0, 1.066, 1.066 + 1.153), (3, 3, True)),
        (line("OCO", -1.1626, 0, 1.1626), (3, 3, True)),
        (line("OCO", -1.160, 0, 1.160), (0, 3, False)),
        (line("CO", 0, 1.128), (0, 2, False)),
        (ring(1.394), (6, 12, False)),
        (ring(1.397), (6, 12, False)),
    ],
    ids=["H2O", "CH4", "N2", "O2", "HCN", "CO2", "CO2 short", "CO", "benzene 1.394", "benzene 1.397"],
)
def test_fixtures_of_the_rule(batch, expected):
    assert verdict(batch) == expected


@pytest.mark.parametrize(
    ("smiles", "stable", "atoms"),
    [
        ("Cc1ccccc1", 9, 15),
        ("c1ccc2ccccc2c1", 8, 18),
        ("c1ccncc1", 9, 11),
        ("c1ccsc1", 8, 9),
        ("CC(=O)Nc1ccc(O)cc1", 16, 20),
        ("C[N+](=O)[O-]", 6, 7),
        ("CSC", 8, 9),
        ("CS(C)=O", 8, 10),
        ("c1ccoc1", 9, 9),
        ("c1cc[nH]c1", 10, 10),
        ("C=CC=C", 10, 10),
        ("CC(=O)O", 8, 8),
        ("CC(N)=O", 9, 9),
        ("CC#N", 6, 6),
        ("CC(F)(F)F", 8, 8),
        ("N#CC#N", 4, 4),
    ],
)
def test_fixtures_in_force_field_geometries(smiles, stable, atoms):
    assert verdict(mmff(smiles)) == (stable, atoms, stable == atoms)


def test_tables_have_the_published_entries():
    table = thresholds((0.0, 0.0, 0.0))
    assert table[0, 6, 6] == 154 and table[0, 1, 6] == table[0, 6, 1] == 109 and table[0, 53, 53] == 266
    assert table[0, 5, 17] == table[0, 17, 5] == 175 and table[0, 7, 15] == 177 and table[0, 16, 16] == 204
    assert (table[1, 6, 6], table[1, 15, 16], table[2, 7, 7], table[2, 6, 8]) == (134, 186, 110, 113)
    sums = [(int(np.isfinite(part).sum()), part[np.isfinite(part)].sum()) for part in table]  # of the published entries
    assert sums == [(117, 20_056.0), (15, 2_112.0), (6, 688.0)]
    assert table[0, 2, 2] == -np.inf and np.isfinite(table[1]).sum() == 15 and np.isfinite(table[2]).sum() == 6
    assert np.array_equal(table, table.transpose(0, 2, 1)) and np.array_equal(thresholds(MARGINS)[1], table[1] + 5)
    allowed = edm_valences()
    assert allowed[16].nonzero()[0].tolist() == [4] and allowed[15].nonzero()[0].tolist() == [3, 5]
    assert allowed.sum() == 19


def double_loop(numbers, pos) -> dict[tuple[int, int], int]:
    table, found = thresholds(MARGINS), {}
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            distance = 100 * np.sqrt(np.sum((pos[i] - pos[j]) ** 2))
            below = [distance < table[level, numbers[i], numbers[j]] for level in range(3)]
            if below[0]:
                found[i, j] = 1 + (below[1] and (1 + below[2]))
    return found


def test_batches_give_the_orders_of_the_double_loop():
    draw = np.random.default_rng(0)
    counts = [int(n) for n in draw.integers(0, 30, 60)]
    numbers = [draw.choice([1, 6, 7, 8, 9, 16, 17, 53, 54], n) for n in counts]
    pos = [draw.normal(scale=1.2, size=(n, 3)) for n in counts]
    batch = batch_from_arrays(numbers, pos)
    parts = split_bonds(batch, *lookup(batch))
    assert len(parts) == 60 and sum(len(o) for _, o in parts) > 1000
    for (bonds, orders), z, x in zip(parts, numbers, pos, strict=True):
        ours = {(i, j): int(o) for (i, j), o in zip(bonds.tolist(), orders.tolist(), strict=True)}
        assert ours == double_loop(z, x)
    single = [verdict(batch[i])[:1] for i in range(60)]
    whole = edm_stability(batch, *lookup(batch))
    assert [n for (n,) in single] == whole.atoms.tolist() and not whole.stable[np.array(counts) == 0].any()


def test_chunks_do_not_change_the_bonds(monkeypatch):
    from evaluation.molecules import stability

    batch = batch_from_arrays(
        [np.array([6, 1, 1, 1, 1])] * 40, [methane()["pos"].numpy() * s for s in np.linspace(0.7, 1.4, 40)]
    )
    pairs, orders = lookup(batch)
    monkeypatch.setattr(stability, "PAIRS_AT_ONCE", 30)
    again = lookup(batch)
    assert torch.equal(pairs, again[0]) and torch.equal(orders, again[1]) and 0 < len(orders) < 400


def test_stability_does_not_change_when_a_molecule_is_turned_or_moved():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    batch = mmff("CC(=O)O")
    moved = batch.replace(pos=batch["pos"] @ torch.from_numpy(turn) + torch.tensor([3.0, -2.0, 9.0]))
    assert verdict(moved) == verdict(batch) == (8, 8, True)


@pytest.mark.parametrize(
    ("symbol", "charge", "orders", "stable"),
    [
        ("C", 0, [1.5, 1.5, 1], True),
        ("C", 0, [1.5, 1.5, 1.5], True),
        ("C", 0, [1, 1, 1], False),  # what the widened tables allowed
        ("C", -1, [1, 1, 1], True),
        ("N", 0, [1.5, 1.5], True),
        ("N", 1, [1, 1, 2], True),
        ("N", 0, [1, 1], False),
        ("O", -1, [1], True),
        ("O", 0, [1], False),
        ("S", 0, [1, 1], True),
        ("S", 0, [2, 2, 1, 1], True),
        ("H", 1, [], False),
        ("Cl", 9, [1], False),
    ],
)
def test_corrected_valences(symbol, charge, orders, stable):
    from ase.data import atomic_numbers

    n = len(orders)
    batch = batch_from_arrays([np.array([atomic_numbers[symbol]] + [1] * n)], [np.zeros((n + 1, 3))])
    pairs = torch.stack((torch.zeros(n, dtype=torch.long), torch.arange(1, n + 1)))
    charges = torch.tensor([charge] + [0] * n)
    found = corrected_stability(batch, pairs, torch.tensor(orders, dtype=torch.float64), charges)
    rest = sum(order == 1 for order in orders)  # a neighbour is a hydrogen, stable with one single bond
    assert found.atoms.tolist() == [rest + stable]
    assert corrected_valences().sum() == 58


# ---- graphs


def graph(batch, protocol=EDM):
    return judge_batch(batch, protocol, processes=0).graphs[0]


def test_rules_of_validity_differ_where_hydrogens_or_bonds_are_missing():
    lacking = methane()
    lacking = batch_from_arrays([lacking["atomic_numbers"].numpy()[:4]], [lacking["pos"].numpy()[:4]])
    found = graph(lacking)
    assert found.smiles == "[H]C([H])[H]" and found.fault == "open shell" and "C 0" in found.reason
    two = batch_from_arrays(
        [np.array([6, 1, 1, 1, 1, 1, 1])],
        [np.concatenate((methane()["pos"].numpy(), [[9.0, 0, 0], [9.74, 0, 0]]))],
    )
    found = graph(two)
    assert (found.smiles, found.fragments, found.fault) == ("[H]C([H])([H])[H]", 2, "disconnected")
    crowded = batch_from_arrays(
        [np.array([6, 1, 1, 1, 1, 1])], [np.concatenate((methane()["pos"].numpy(), [[0.6, 0.6, -0.6]]))]
    )
    assert graph(crowded).fault == "valence" and graph(crowded).smiles == ""
    assert graph(methane()).fault == "" and graph(methane(3.0)).fragments == 5


def test_benzene_is_valid_when_bonds_are_perceived():
    judged = judge_batch(ring(1.394), STRICT, processes=0)
    assert judged.valid.all() and judged.stability.stable.all() and judged.graphs[0].orders.count(1.5) in (0, 6)
    assert not judge_batch(ring(1.394), replace(EDM, validity="whole-molecule"), processes=0).valid.any()
    charged = mmff("C[N+](=O)[O-]")
    assert judge_batch(charged, STRICT, processes=0).stability.stable.all()
    ion = line("OH", 0, 0.97)
    assert not judge_batch(ion, STRICT, processes=0).valid.any()
    anion = ion.replace(charges=torch.tensor([-1, 0]))
    assert judge_batch(anion, STRICT, processes=0).valid.all()


def frozen():
    """36 sulfur atoms on a square grid: more bond orders than can be tried."""
    pos = np.array([(2.05 * i, 2.05 * j, 0.0) for i in range(6) for j in range(6)])
    return np.full(36, 16), pos


def test_a_molecule_that_freezes_perception_is_killed_and_counted():
    water = from_g2("H2O")
    z, pos = frozen()
    batch = batch_from_arrays([water.numbers, z, water.numbers], [water.positions, pos, water.positions])
    report = evaluate(batch, None, replace(STRICT, seconds=1.0), processes=1)
    assert [row["failure"] for row in report.rows] == ["", "killed: not done within 1 s", ""]
    assert report.failures == {"killed: not done within 1 s": 1}
    assert (report["invalid_killed"].hits, report["validity"].hits, report["validity"].n) == (1, 2, 3)
    assert report.rows[0]["smiles"] == report.rows[2]["smiles"] == "[H]O[H]"
