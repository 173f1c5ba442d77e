"""Every checkpoint that comes with the package: small enough, verified, described, and able to sample."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

import atomsmith
import checkpoints
from checkpoints.manifest import SHIPPED
from chem.convert_molecules import from_rdkit
from generative.models.regressor import predictor


@pytest.mark.parametrize("name", sorted(checkpoints.available()))
def test_shipped(name):
    assert sum(p.stat().st_size for p in (SHIPPED / name).iterdir()) < 26e6
    loaded = atomsmith.load(name, "cpu")
    assert loaded.name == name and loaded.statistics.num_structures > 0
    card = (SHIPPED / name / "card.md").read_text()
    for part in ("data: ", "command: `atomsmith train ", "seed: ", "hardware and time: "):
        assert f"- {part}" in card
    assert "## Loss" in card and "## Measured" in card
    WORKS.get(loaded.kind, crystals_come_out)(loaded)


def crystals_come_out(loaded):
    chooses = "atomic_numbers" not in loaded.model.processes
    given = {"num_atoms": 4} if chooses else {"formula": "NaCl"}
    made = atomsmith.sample(loaded, 2, steps=20, **given)
    assert all(np.isfinite(s.lattice.matrix).all() and 5 < s.volume < 1000 for s in made)


def molecules_come_out(loaded):
    made = atomsmith.sample(loaded, 16, num_atoms="12-20", steps=20)
    assert all(12 <= mol.GetNumAtoms() <= 20 for mol in made)
    assert atomsmith.evaluate(made, protocol="edm-qm9", processes=0)["atom_stability"].value > 0.9


def properties_come_out(loaded):
    """Gaps in hartree: that of an aromatic ring is the smaller one."""
    pair = from_rdkit([from_smiles(smiles) for smiles in ("Cc1ccccc1", "CC1CCCCC1")])
    toluene, saturated = predictor(loaded.model, loaded.config.property, loaded.statistics)(pair).tolist()
    assert loaded.config.property == "gap" and 0.1 < toluene < saturated - 0.05 < 0.5


WORKS = {"geobfn": molecules_come_out, "regressor": properties_come_out}


def from_smiles(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=0)
    AllChem.MMFFOptimizeMolecule(mol)
    return mol


def test_something_is_shipped():
    assert "diffcsp-mp20-csp" in checkpoints.available()
