"""Ranking of candidates for one formula: by cluster, by callables, from files and on the command line."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

import atomsmith
import checkpoints
from chem import datasets
from chem.convert import from_structures, to_structures
from chem.io import read, write
from chem.statistics import Statistics
from evaluation.protocols import Protocol, protocol
from evaluation.ranking import centrality, rank
from generative.likelihood import log_prob
from generative.models.flowmm import FlowMMConfig, build
from generative.scoring import log_likelihoods
from tests.commands import cli

CSP = cast(Protocol, protocol("diffcsp-csp"))
TRICLINIC = Lattice.from_parameters(4.3, 5.2, 6.1, 81, 94, 106)
HELD = Structure(TRICLINIC, ["Na", "Cl", "Cl"], [[0.0, 0, 0], [0.52, 0.4, 0.47], [0.2, 0.75, 0.8]])


def shaken(sigma: float, seed: int, structure: Structure = HELD) -> Structure:
    """The structure with its atoms displaced by normal numbers of sigma (fractional), moved as a whole, in a new order
    of sites and a cell that is scaled."""
    g = np.random.default_rng(seed)
    frac = structure.frac_coords + sigma * g.normal(size=structure.frac_coords.shape) + g.random(3)
    order = g.permutation(len(structure))
    lattice = Lattice(structure.lattice.matrix * g.uniform(0.95, 1.05))
    return Structure(lattice, [structure[int(i)].specie for i in order], frac[order])


@pytest.fixture(scope="module")
def candidates() -> list[Structure]:
    """Five near one structure, candidate 3 in the middle of them, two near another, one alone."""
    other = Structure(Lattice.cubic(5.0), HELD.species, [[0.0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0]])
    alone = Structure(Lattice.hexagonal(2.6, 16.0), HELD.species, [[0.0, 0, 0], [1 / 3, 2 / 3, 0.2], [0.0, 0, 0.1]])
    near = [shaken(0.0, 0), *[shaken(sign * 0.02, seed) for seed in (1, 2) for sign in (1, -1)]]
    return [alone, shaken(0.01, 8, other), near[3], near[0], shaken(0.01, 9, other), near[1], near[4], near[2]]


def test_the_middle_of_the_largest_cluster_is_first(candidates):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    found = rank(candidates, processes=0)
    assert found.order[0] == 3 and set(found.order[:5]) == {2, 3, 5, 6, 7} and found.order[-1] == 0
    assert found.reasons == [""] * 8 and found.scores[0] == 0.0
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    for i in (1, 3):
        rms = [matcher.get_rms_dist(*(candidates[k] for k in sorted((i, j)))) for j in range(8) if j != i]
        matched = [r[0] for r in rms if r is not None]
        assert found.scores[i] == pytest.approx(len(matched) - np.mean(matched) / (2 * 0.5), abs=1e-9)


def test_ties_stay_in_order_and_the_result_is_the_same_in_processes(candidates):
    assert rank([HELD] * 3, processes=0).order == [0, 1, 2]
    assert rank(candidates, processes=1) == rank(candidates, processes=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_of_the_candidates_permutes_the_ranking(candidates, seed):
    shuffle = np.random.default_rng(seed).permutation(len(candidates)).tolist()
    found = rank([candidates[i] for i in shuffle], processes=0)
    plain = rank(candidates, processes=0)
    assert shuffle[found.order[0]] == plain.order[0]
    assert np.allclose(found.scores, [plain.scores[i] for i in shuffle], atol=0.02)  # rms is not quite symmetric


def test_groups_of_built_in_prototypes_are_ranked_together():
    data = datasets.load("prototypes", "val").batch
    picked = [int(i) for i in torch.nonzero(data["num_atoms"] >= 4).flatten()[:3]]
    made = [shaken(s, k, one) for one in to_structures(data[picked]) for k, s in enumerate((0.15, 0.0, 0.01, 0.01))]
    scores = centrality(from_structures(made), [list(range(4 * g, 4 * g + 4)) for g in range(3)], CSP, 0)
    for g, found in enumerate(scores):
        assert found.argmin() == 0 and found.max() > 2
        alone = rank(made[4 * g : 4 * g + 4], processes=0)
        assert alone.scores == pytest.approx(found.tolist(), abs=1e-12)


def test_what_cannot_be_judged_is_last_with_the_reason():
    nan = Structure(TRICLINIC, HELD.species, np.full((3, 3), np.nan))
    flat = Structure(Lattice([[4, 0, 0], [0, 4, 0], [4, 4, 0]]), HELD.species, HELD.frac_coords)
    found = rank([nan, HELD, flat, shaken(0.01, 1)], processes=0)
    assert set(found.order[:2]) == {1, 3} and found.order[2:] == [0, 2]
    assert "not a finite number" in found.reasons[0] and "volume" in found.reasons[2]
    assert math.isnan(found.scores[0]) and found.scores[1] > 0.9


def test_by_a_callable(candidates):
    def dense(structures):
        return [s.density for s in structures]

    best = atomsmith.rank(candidates, by=dense)
    densities = [s.density for s in best]
    assert densities == sorted(densities, reverse=True)
    assert [s.properties["rank"] for s in best] == list(range(1, 9))
    assert all(s.properties["rank_by"] == "dense" and s.properties["score"] == pytest.approx(s.density) for s in best)
    assert not any("rank" in s.properties for s in candidates)  # those given are left as they were
    some = atomsmith.rank(candidates, by=lambda structures: [math.nan] + [1.0] * (len(structures) - 1))
    assert some[-1].properties["not_ranked"] == "no score" and "score" not in some[-1].properties


@pytest.fixture(scope="module")
def tiny_flow(tmp_path_factory) -> str:
    """Folder of a tiny FlowMM of structure prediction."""
    config = FlowMMConfig(hidden=16, layers=2, frequencies=4, time_dim=16, steps=4)
    statistics = Statistics.compute(datasets.load("prototypes", "train").batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config, statistics)
    folder = tmp_path_factory.mktemp("models") / "tiny-flow"
    checkpoints.save(folder, "flowmm", config, statistics, model.state_dict(), dtype=torch.float32)
    return str(folder)


def test_by_likelihood(candidates, tiny_flow):
    best = atomsmith.rank(candidates[:3], by="likelihood", model=tiny_flow)
    scores = [s.properties["score"] for s in best]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    loaded = checkpoints.load(tiny_flow)
    reduced = HELD.get_reduced_structure("niggli")
    exact = log_prob(loaded.model, from_structures([reduced]), "heun", steps=4)
    # sheared, turned and moved, it is the same crystal
    sheared = HELD.copy()
    sheared.make_supercell([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    found = log_likelihoods(loaded.model, [HELD, sheared, shaken_apart()], steps=4)
    assert found == pytest.approx(exact.tolist() * 3, abs=1e-2)
    flat = Structure(Lattice([[4, 0, 0], [0, 4, 0], [4, 4, 0]]), HELD.species, HELD.frac_coords)
    assert math.isnan(log_likelihoods(loaded.model, [HELD, flat], steps=1)[1])


def shaken_apart() -> Structure:
    """The structure in another orientation and origin."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    return Structure(Lattice(HELD.lattice.matrix @ turn), HELD.species, HELD.frac_coords + [0.1, 0.2, 0.3])


def test_from_files_and_on_the_command_line(candidates, tmp_path, monkeypatch, capsys):
    write(candidates, tmp_path / "made.jsonl")
    (tmp_path / "broken.cif").write_text("data_x\n_cell_length_a 4\n")
    with pytest.warns(UserWarning, match="1 of 9 candidates left out; the first:"):
        best = atomsmith.rank([tmp_path / "made.jsonl", tmp_path / "broken.cif"], processes=0)
    assert len(best) == 8 and best[0].properties["id"] == "made_3"
    words = ["rank", tmp_path / "made.jsonl", "--out", tmp_path / "ranked.extxyz", "--processes", 0]
    done = cli(words, monkeypatch, capsys)
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) == 8 and lines[0].startswith("1\tmade_3\tNa1 Cl2\t3.9")
    records = list(read(tmp_path / "ranked.extxyz"))
    assert [r.properties["rank"] for r in records] == list(range(1, 9)) and records[0].id == "made_3"
    again = cli(words, monkeypatch, capsys)
    assert again.code == 2 and "ranked.extxyz' exists" in again.err and again.err.count("\n") == 1
    reordered = atomsmith.rank(tmp_path / "ranked.extxyz", processes=0)
    assert reordered[0].properties["rank"] == 1 and reordered[0].properties["id"] == "made_3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(by="energy"), "^by = 'energy', allowed: cluster, likelihood"),
        (dict(by="likelihood"), "^model = None, allowed with by = 'likelihood': a flow"),
        (dict(model="diffcsp-mp20-csp"), "^model = 'diffcsp-mp20-csp', allowed with by = 'cluster': None"),
        (dict(by=lambda structures: [1.0]), "returned 1 numbers, allowed: one for each of 2"),
        (dict(by=lambda structures: ["high", "low"]), "returned list, allowed: a list of numbers"),
        (dict(by=lambda structures: None), "returned NoneType, allowed: a list of numbers"),
    ],
)
def test_bad_arguments_get_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        atomsmith.rank([HELD, HELD], **options)


def test_candidates_that_are_none(tiny_flow, tiny_csp):
    other = Structure(TRICLINIC, ["K", "Cl", "Cl"], HELD.frac_coords)
    with pytest.raises(ValueError, match=r"2 formulas \(NaCl2, Cl2K\), allowed: one|2 formulas \(Cl2K, NaCl2\)"):
        atomsmith.rank([HELD, other])
    with pytest.raises(ValueError, match="holds no structures"):
        atomsmith.rank([])
    with pytest.raises(ValueError, match="matches no crystals"):
        rank([HELD], protocol="cdvae-2022")
    nan = Structure(TRICLINIC, HELD.species, np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="none of 1 can be ranked; the first: a coordinate"):
        rank([nan])
    double = HELD.copy()
    double.make_supercell([2, 1, 1])
    with pytest.raises(ValueError, match="cells of one size, got 3 and 6 atoms"):
        atomsmith.rank([HELD, double], by="likelihood", model=tiny_flow)
    with pytest.raises(ValueError, match="has no likelihood: field 'lattice' has a"):
        atomsmith.rank([HELD, HELD], by="likelihood", model=tiny_csp)
