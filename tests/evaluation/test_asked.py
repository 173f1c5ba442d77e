"""EDM's conditional protocol: its arithmetic, with judges whose predictions are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from rdkit import Chem
from rdkit.Chem import AllChem

from chem.molecule_text import set_properties
from chem.molecules import MoleculeBatch
from evaluation.evaluate import evaluate
from evaluation.molecules.asked import Judge, guesses


def molecules(counts: list[int]) -> MoleculeBatch:
    """Chains of carbon."""
    atoms = sum(counts)
    pos = torch.arange(atoms).double().unsqueeze(1) * torch.tensor([1.5, 0.0, 0.0])
    return MoleculeBatch(counts, pos=pos.double(), atomic_numbers=torch.full((atoms,), 6))


def by_size(offset: float = 0.0) -> Judge:
    """Predicts ten times the number of atoms, plus an offset."""
    return Judge("gap", lambda batch: 10.0 * batch["num_atoms"] + offset, "by size")


def test_the_error_is_that_against_what_was_asked():
    samples = molecules([1, 2, 3]).attach("structure", gap=torch.tensor([10.0, 21.0, 28.0]))
    report = evaluate(samples, None, "edm-conditional", judge=by_size())
    assert report["mae"].value == pytest.approx(1.0) and report["mae"].n == 3
    assert "gap by by size" in report["mae"].note
    assert [row["error"] for row in report.rows] == [0.0, 1.0, 2.0]
    assert [n.name for n in report.numbers] == ["mae", "judged"]


def test_the_three_numbers_of_the_reference():
    sizes = [2, 3, 4, 5] * 50
    reference = molecules(sizes).attach("structure", gap=10.0 * torch.tensor(sizes) + 1)
    samples = reference.select(torch.arange(8))
    report = evaluate(samples, reference, "edm-conditional", judge=by_size())
    assert report["mae"].value == report["mae_real"].value == pytest.approx(1.0)
    assert report["mae_num_atoms"].value == pytest.approx(0.0)
    # |10 (a - b) - 1| over independent sizes: 1 with probability 1/4, else 9, 11, 19, 21, 29, 31
    pairs = [abs(10 * (a - b) - 1) for a in (2, 3, 4, 5) for b in (2, 3, 4, 5)]
    spread = np.std(pairs) / math.sqrt(len(sizes))
    assert report["mae_shuffled"].value == pytest.approx(np.mean(pairs), abs=5 * spread)
    again = evaluate(samples, reference, "edm-conditional", judge=by_size())
    assert again["mae_shuffled"].value == report["mae_shuffled"].value
    assert (
        evaluate(samples, reference, "edm-conditional", seed=1, judge=by_size())["mae_shuffled"]
        != report["mae_shuffled"]
    )


def test_guesses_are_medians_of_the_other_half():
    values = np.array([1.0, 2.0, 9.0, 3.0, 5.0, 7.0])
    sizes, half = np.array([2, 2, 2, 2, 3, 3]), np.array([0, 0, 0, 1, 1, 1])
    # half 0 is guessed from 3 (size 2); half 1 from 1, 2, 9 (size 2), and from all of these where there is no size 3
    assert guesses(values, sizes, half).tolist() == [3.0, 3.0, 3.0, 2.0, 2.0, 2.0]


def test_gaps_in_the_reference_are_left_out():
    sizes = [2, 3] * 20
    gap = 10.0 * torch.tensor(sizes)
    gap[::4] = math.nan
    report = evaluate(
        molecules([2]).attach("structure", gap=torch.tensor([20.0])),
        molecules(sizes).attach("structure", gap=gap),
        "edm-conditional",
        judge=by_size(2.0),
    )
    assert report["mae_real"].n == 30 and report["mae_real"].value == pytest.approx(2.0)


def test_what_molecules_say_they_were_asked_for():
    methane = Chem.AddHs(Chem.MolFromSmiles("C"))
    AllChem.EmbedMolecule(methane, randomSeed=0)
    set_properties(methane, {"conditions": {"gap": 49.0, "mu": 1.0}})
    water = Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], info={"conditions": {"gap": 33.0}})
    silent, strange = Atoms("He", [[0, 0, 0]]), Atoms("OHH", np.eye(3), info={"conditions": {"gap": 0.0}})

    def predict(batch: MoleculeBatch) -> torch.Tensor:
        found = 10.0 * batch["num_atoms"]
        found[-1] = math.nan
        return found

    report = evaluate([methane, water, silent, None, strange], None, "edm-conditional", judge=Judge("gap", predict))
    assert report["mae"].value == pytest.approx((1 + 3) / 2) and report["mae"].n == 2
    assert (report["judged"].hits, report["judged"].n) == (2, 5)
    assert report.failures == {
        "does not say what it was asked for": 1,
        "no molecule was given": 1,
        "the regressor's prediction is not finite": 1,
    }


def test_what_cannot_be_judged_is_refused():
    samples = molecules([2]).attach("structure", gap=torch.tensor([20.0]))
    with pytest.raises(ValueError, match="no molecule says which gap it was asked for"):
        evaluate(molecules([2]), None, "edm-conditional", judge=by_size())
    with pytest.raises(ValueError, match="has no property gap"):
        evaluate(samples, molecules([2, 3]), "edm-conditional", judge=by_size())
    with pytest.raises(ValueError, match="are for each other alone"):
        evaluate(samples, None, "edm-conditional")
    with pytest.raises(ValueError, match="are for each other alone"):
        evaluate(samples, None, "edm-qm9", judge=by_size())
