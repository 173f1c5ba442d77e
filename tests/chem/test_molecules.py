"""Batches of molecules: bonds as a level of their own, centres, soundness, RDKit and ASE, sizes."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem

from chem.convert_molecules import build_mol, from_ase, from_rdkit, to_ase, to_rdkit
from chem.crystals import CrystalBatch
from chem.molecule_text import mol_from_dict, mol_from_sdf, mol_to_dict, mol_to_sdf
from chem.molecules import BOND_ORDERS, MoleculeBatch, centered, check, offset
from chem.ragged import concatenate
from chem.sizes import SizePrior
from chem.statistics import Statistics

# water, a bare proton, nothing, carbon monoxide
COUNTS, BONDS = [3, 1, 0, 2], [2, 0, 0, 1]


def molecules() -> MoleculeBatch:
    g = torch.Generator().manual_seed(0)
    return MoleculeBatch(
        COUNTS,
        num_bonds=BONDS,
        atomic_numbers=torch.tensor([8, 1, 1, 1, 6, 8]),
        pos=torch.randn(6, 3, generator=g, dtype=torch.float64) + 2,
        charges=torch.tensor([0, 0, 0, 1, -1, 1]),
        bond_atoms=torch.tensor([[0, 1], [2, 0], [0, 1]]),
        bond_order=torch.tensor([1.0, 1.0, 3.0]).double(),
    ).attach("bond", weight=torch.arange(3.0))


def same(a: MoleculeBatch, b: MoleculeBatch) -> bool:
    names = {*a.fields, "num_atoms", *(("num_bonds",) if "num_bonds" in a else ())}
    return a.fields.keys() == b.fields.keys() and all(torch.equal(a[k], b[k]) for k in names)


def conformers(*smiles: str) -> list[Chem.Mol]:
    out = []
    for i, text in enumerate(smiles):
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        assert AllChem.EmbedMolecule(mol, randomSeed=i + 1) == 0
        out.append(mol)
    return out


def test_bonds_have_their_own_counts_and_follow_their_molecules():
    batch = molecules()
    assert batch["bond_ptr"].tolist() == [0, 2, 2, 2, 3] and batch["bond_batch"].tolist() == [0, 0, 3]
    assert batch.rows("bond_order").level == "bond" and batch.rows("bond_order").index.tolist() == [0, 0, 3]
    assert batch.bond_index.tolist() == [[0, 2, 4], [1, 0, 5]]
    part = batch[[3, 1, 0]]
    assert part["num_bonds"].tolist() == [1, 0, 2] and part["weight"].tolist() == [2.0, 0.0, 1.0]
    assert part.bond_index.tolist() == [[0, 3, 5], [1, 4, 3]]
    assert same(concatenate([batch[:2], batch[2:]]), batch) and same(concatenate(list(batch)), batch)
    assert same(batch.replace(pos=batch["pos"] + 0.0), batch)
    assert batch.to(torch.float32)["bond_order"].dtype == torch.float32
    assert batch.to("meta")["bond_ptr"].is_meta


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_keep_bonds(clone):
    assert same(clone(molecules()), molecules()) and same(clone(molecules())[[0]], molecules()[[0]])


def test_a_batch_without_bonds_carries_nothing_of_them():
    bare = molecules().without_bonds()
    assert not any("bond" in name for name in bare.keys()) and "weight" not in bare.levels  # noqa: SIM118
    assert bare["charges"].tolist() == molecules()["charges"].tolist()
    again = bare.with_bonds(BONDS, molecules()["bond_atoms"], molecules()["bond_order"])
    assert torch.equal(again.bond_index, molecules().bond_index)
    crystal = CrystalBatch([1], lattice=torch.eye(3).unsqueeze(0))
    assert set(crystal.keys()) == {"num_atoms", "ptr", "batch", "lattice"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: b.without_bonds().replace(bond_order=torch.ones(3)), "'bond_order' is per bond.*without num_bonds"),
        (lambda b: b.replace(bond_order=torch.ones(6)), r"'bond_order' is per bond and needs 3 rows, got \(6,\)"),
        (lambda b: b.replace(bond_ptr=torch.ones(5)), "field 'bond_ptr' is derived"),
        (lambda b: MoleculeBatch([1, 2], num_bonds=[1]), "one count for each of 2 structures, got 1"),
        (lambda b: MoleculeBatch([1], num_bonds=[-1]), "num_bonds must be a vector of counts >= 0"),
        (lambda b: concatenate([b.without("bond_atoms", "bond_order", "weight"), b.without_bonds()]), "batch 1 and"),
        (lambda b: check(b.replace(atomic_numbers=b["atomic_numbers"] - 1)), "molecule 0: atomic_numbers = 0, allowed"),
        (lambda b: check(b.replace(pos=b["pos"] / 0)), r"molecule 0: pos = \[.*allowed: finite"),
        (lambda b: check(b.replace(bond_atoms=b["bond_atoms"] + 1)), r"molecule 0: bond_atoms = \[3, 1\], allowed"),
        (lambda b: check(b.replace(bond_atoms=b["bond_atoms"] * 0)), "two different atoms"),
        (lambda b: check(b.replace(bond_order=b["bond_order"] * 2)), "molecule 3: bond_order = 6.0, allowed: 1, 1.5"),
        (
            lambda b: check(b.replace(bond_atoms=torch.tensor([[0, 1], [1, 0], [0, 1]]))),
            r"molecule 0: bond_atoms = \[0, 1\], allowed: each pair once",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(molecules())


def test_sound_batches_pass():
    assert check(molecules()) is not None and len(check(MoleculeBatch([3]))) == 1
    assert len(check(from_rdkit(conformers("c1ccncc1", "C#N")))) == 2


def test_centered_is_a_translation_of_each_molecule():
    batch = molecules()
    moved = centered(batch)
    assert offset(batch)[[0, 1, 3]].min() > 1 and torch.allclose(offset(moved), torch.zeros(4).double(), atol=1e-15)
    shift = moved["pos"] - batch["pos"]
    assert torch.allclose(shift[:3], shift[:1].expand(3, 3), atol=1e-15) and moved["pos"][3].tolist() == [0, 0, 0]
    elsewhere = batch.replace(pos=batch["pos"] + 7)
    torch.testing.assert_close(centered(elsewhere)["pos"], moved["pos"], atol=1e-14, rtol=0)


def test_rdkit_round_trip_is_exact():
    given_ = conformers("CCO", "c1ccncc1", "C[N+](C)(C)CC(=O)[O-]", "[H][H]", "C#N", "O=C=O")
    batch = check(from_rdkit(given_))
    back = to_rdkit(batch)
    assert same(from_rdkit(back), batch) and set(batch["bond_order"].tolist()) == set(BOND_ORDERS)
    for before, after in zip(given_, back, strict=True):
        np.testing.assert_array_equal(before.GetConformer().GetPositions(), after.GetConformer().GetPositions())
        Chem.SanitizeMol(after)
        assert Chem.MolToSmiles(after) == Chem.MolToSmiles(before)
        assert not any(atom.GetNumRadicalElectrons() for atom in after.GetAtoms())


def test_rdkit_molecules_of_a_batch_without_bonds_are_atoms_and_a_conformer():
    batch = from_rdkit(conformers("CCO")).without_bonds().without("charges")
    (mol,) = to_rdkit(batch)
    assert mol.GetNumBonds() == 0 and mol.GetNumAtoms() == 9 and mol.GetConformer().Is3D()
    assert not any(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    assert same(from_rdkit([mol]), batch)
    assert to_rdkit(from_rdkit([])) == []


def test_rdkit_molecules_that_cannot_be_taken_are_named():
    flat, dummy = Chem.MolFromSmiles("CC"), Chem.MolFromSmiles("*C")
    AllChem.EmbedMolecule(dummy, randomSeed=1)
    good, dative = conformers("CC", "CN")
    dative.GetBondWithIdx(0).SetBondType(Chem.BondType.DATIVE)
    with pytest.raises(ValueError, match="molecule 1: no 3D coordinates"):
        from_rdkit([good, flat])
    with pytest.raises(ValueError, match=r"molecule 0: atom 0 \('\*'\) is not a chemical element"):
        from_rdkit([dummy])
    with pytest.raises(ValueError, match="molecule 1: bond 0 is DATIVE"):
        from_rdkit([good, dative])
    with pytest.raises(ValueError, match="molecule 0: no atoms"):
        from_rdkit([Chem.Mol()])
    with pytest.raises(ValueError, match="atom 0: atomic number 0, allowed: 1..118"):
        build_mol(np.array([0]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="the batch lacks the field 'pos'"):
        to_rdkit(MoleculeBatch([1], atomic_numbers=torch.tensor([1])))


def test_ase_round_trip_is_exact():
    batch = molecules().without_bonds()[[0, 1, 3]]
    atoms = to_ase(batch)
    assert atoms[1].get_initial_charges().tolist() == [1.0] and not atoms[0].pbc.any()
    assert same(from_ase(atoms), batch)
    neutral = batch.without("charges")
    assert same(from_ase(to_ase(neutral)), neutral)
    with pytest.raises(ValueError, match=r"atoms 1 \(H2\): pbc .* a molecule is not periodic"):
        from_ase([atoms[0], Atoms("H2", positions=np.eye(3)[:2], cell=[3, 3, 3], pbc=True)])
    with pytest.raises(ValueError, match="initial charges .* are not whole"):
        from_ase([Atoms("H2", positions=np.eye(3)[:2], charges=[0.3, -0.3])])
    with pytest.raises(ValueError, match="atomic numbers must be 1..118"):
        from_ase([Atoms("XH", positions=np.eye(3)[:2])])


@st.composite
def random_batches(draw) -> MoleculeBatch:
    """Any graph on any elements: nothing about a round trip needs chemistry."""
    parts = []
    for n in draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)):
        pairs = [(i, j) for i in range(n) for j in range(i)]
        chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=8)) if pairs else []
        numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
        elements = torch.tensor(draw(st.lists(st.integers(1, 118), min_size=n, max_size=n)))
        charges = torch.tensor(draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)))
        parts.append(
            MoleculeBatch(
                [n],
                num_bonds=[len(chosen)],
                atomic_numbers=elements,
                pos=torch.tensor(draw(st.lists(numbers, min_size=3 * n, max_size=3 * n))).double().reshape(n, 3),
                charges=torch.minimum(charges, elements),  # RDKit refuses fewer than no electrons
                bond_atoms=torch.tensor(chosen, dtype=torch.long).reshape(-1, 2),
                bond_order=torch.tensor([draw(st.sampled_from(BOND_ORDERS)) for _ in chosen], dtype=torch.float64),
            )
        )
    return concatenate(parts)


@settings(max_examples=40, deadline=None)
@given(random_batches())
def test_any_graph_survives_rdkit_and_ase(batch: MoleculeBatch):
    check(batch)
    assert same(from_rdkit(to_rdkit(batch), bonds=True), batch)
    assert same(from_ase(to_ase(batch)), batch.without_bonds())


@settings(max_examples=40, deadline=None)
@given(random_batches())
def test_any_graph_survives_text(batch: MoleculeBatch):
    mols = to_rdkit(batch)
    assert same(from_rdkit([mol_from_dict(json.loads(json.dumps(mol_to_dict(m)))) for m in mols], bonds=True), batch)
    back = from_rdkit([mol_from_sdf(mol_to_sdf(m, "name", {"n": i})) for i, m in enumerate(mols)], bonds=True)
    assert float((back["pos"] - batch["pos"]).abs().max()) < 5.1e-5
    assert same(back.replace(pos=batch["pos"]), batch)


def test_statistics_of_molecules():
    batch = molecules()[[0, 1, 3]].attach("structure", gap=torch.tensor([0.5, math.nan, 0.1], dtype=torch.float64))
    stats = Statistics.compute(batch)
    assert stats.num_atoms == {1: 1, 2: 1, 3: 1} and stats.elements == {1: 3, 6: 1, 8: 2}
    gap = stats.properties["gap"]
    assert (gap.count, gap.low, gap.high) == (2, 0.1, 0.5) and gap.mean == pytest.approx(0.3)
    assert all(math.isnan(x) for x in (*stats.log_length_mean, *stats.angle_std, stats.volume_per_atom_mean))
    text = json.dumps(stats.to_dict(), allow_nan=False)
    assert Statistics.from_dict(json.loads(text)) == stats and stats.sizes.weights == stats.num_atoms


def test_statistics_written_before_ranges_were_kept_can_be_read():
    values = Statistics.compute(molecules().attach("structure", gap=torch.ones(4))).to_dict()
    values["properties"]["gap"] = {"count": 4, "mean": 1.0, "std": 0.0}
    gap = Statistics.from_dict(values).properties["gap"]
    assert gap.mean == 1.0 and math.isnan(gap.low) and math.isnan(gap.high)


def test_sizes_depend_on_seed_and_unit_alone():
    prior = SizePrior({3: 1, 5: 2, 9: 1})
    assert prior.draw(7, 2) == prior.draw(7, 2) != prior.draw(7, 3) and len(prior.draw(7, 2)) == 16
    assert prior.counts(7, 16, 20) == prior.draw(7, 1) + prior.draw(7, 2)
    assert prior.counts(7, 0, 64)[16:32] == prior.draw(7, 1)
    assert (prior.largest, prior.mean) == (9, 5.5)
    assert prior.log_prob(5) == math.log(0.5) and prior.log_prob(4) == -math.inf


def test_sizes_are_drawn_by_their_weights():
    drawn = torch.tensor(SizePrior({3: 1, 5: 2, 9: 1}).counts(0, 0, 16_000))
    shares = [float((drawn == n).double().mean()) for n in (3, 5, 9)]
    # the standard error of a share is at most 0.004
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.016)
    assert set(SizePrior.fixed(4).draw(0, 0)) == {4}
    assert set(SizePrior({3: 1, 5: 2}).at_least(4).draw(0, 0)) == {5}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: SizePrior({}), "no number of atoms"),
        (lambda: SizePrior({0: 1.0}), "0 atoms with weight 1.0, allowed: >= 1 atoms"),
        (lambda: SizePrior({3: -1.0}), "weight > 0"),
        (lambda: SizePrior({3: 1.0}).at_least(4), "at least 4 atoms are needed, the largest size is 3"),
        (lambda: SizePrior({3: 1.0}).counts(0, 5, 3), "first = 5, allowed: multiples of 16"),
    ],
)
def test_bad_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_atom_of_fewer_than_no_electrons_is_refused_in_one_line():
    atom = MoleculeBatch([1], atomic_numbers=torch.tensor([1]), pos=torch.zeros(1, 3), charges=torch.tensor([2]))
    with pytest.raises(ValueError, match="^RDKit cannot write the molecule: Atomic number not found$"):
        mol_to_sdf(to_rdkit(atom)[0], "proton", {})
