"""Molecules to and from RDKit and ASE; with `chem.molecule_text`, the only place where their objects enter and leave.

Atoms keep their order and coordinates every digit. An RDKit molecule of a batch has explicit atoms only (no implicit
hydrogens), one conformer, and formal charges and bonds where the batch has them; it is not sanitised, so that whoever
judges it decides by which rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray
    from rdkit.Chem import Mol

    from chem.molecules import MoleculeBatch

Bonds = tuple["NDArray", "NDArray"]  # atoms (E, 2) and orders (E,)


def from_rdkit(molecules: Sequence[Mol], bonds: bool | None = None) -> MoleculeBatch:
    """RDKit molecules as one float64 batch, in order; hydrogens that are only implied are left behind.

    bonds: whether the batch has bonds and formal charges; by default if any molecule has a bond. Formal charges are
    also kept where one differs from zero. Raises ValueError naming the index of a molecule that has no 3D conformer,
    an atom that is no element, or a bond that is not single, double, triple or aromatic.
    """
    numbers, positions = [], []
    for i, mol in enumerate(molecules):
        z, pos = _named(i, mol_arrays, mol)
        numbers.append(z)
        positions.append(pos)
    charges = [np.array([a.GetFormalCharge() for a in mol.GetAtoms()], dtype=np.int64) for mol in molecules]
    if bonds is None:
        bonds = any(mol.GetNumBonds() for mol in molecules)
    graphs = [_named(i, mol_bonds, mol) for i, mol in enumerate(molecules)] if bonds else None
    keep_charges = bonds or any(c.any() for c in charges)
    return batch_from_arrays(numbers, positions, charges if keep_charges else None, graphs)


def _named(index: int, function, mol: Mol):
    try:
        return function(mol)
    except ValueError as error:
        raise ValueError(f"molecule {index}: {error}") from None


def mol_arrays(mol: Mol) -> tuple[NDArray, NDArray]:
    """atomic_numbers (N,) int64 and pos (N, 3) ångström of the first conformer.

    Raises ValueError for no atoms, no 3D conformer, coordinates that are not finite, and atoms that are no element.
    """
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    if not len(numbers):
        raise ValueError("no atoms")
    if numbers.min() < 1:
        where = int(numbers.argmin())
        raise ValueError(f"atom {where} ('{mol.GetAtomWithIdx(where).GetSymbol()}') is not a chemical element")
    conformer = next(iter(mol.GetConformers()), None)
    if conformer is None or not conformer.Is3D():
        raise ValueError("no 3D coordinates")
    positions = np.array(conformer.GetPositions(), dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(positions).all():
        raise ValueError("a coordinate is not a finite number")
    return numbers, positions


def mol_bonds(mol: Mol) -> Bonds:
    """Atoms (E, 2) int64 and orders (E,) of the bonds; raises ValueError for kinds of bonds without a known order."""
    from chem.molecules import BOND_ORDERS

    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    orders = [bond.GetBondTypeAsDouble() for bond in mol.GetBonds()]
    for bond, order in zip(mol.GetBonds(), orders, strict=True):
        if order not in BOND_ORDERS or str(bond.GetBondType()).startswith("DATIVE"):
            kinds = "single, double, triple and aromatic"
            raise ValueError(f"bond {bond.GetIdx()} is {bond.GetBondType()}; {kinds} bonds are known")
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(orders, dtype=np.float64)


def batch_from_arrays(
    numbers: Sequence[NDArray],
    positions: Sequence[NDArray],
    charges: Sequence[NDArray] | None = None,
    bonds: Sequence[Bonds] | None = None,
) -> MoleculeBatch:
    """A float64 batch of B molecules from lists of (N,), (N, 3), (N,) arrays and bonds of each."""
    import torch

    from chem.molecules import MoleculeBatch

    def flat(parts: Sequence[NDArray], dtype: type, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros((0, *shape), dtype), *parts]).astype(dtype))

    z, pos = flat(numbers, np.int64), flat(positions, np.float64, 3)
    batch = MoleculeBatch([len(n) for n in numbers], atomic_numbers=z, pos=pos)
    if charges is not None:
        batch = batch.replace(charges=flat(charges, np.int64))
    if bonds is None:
        return batch
    counts = [len(order) for _, order in bonds]
    pairs, orders = flat([p for p, _ in bonds], np.int64, 2), flat([o for _, o in bonds], np.float64)
    return batch.with_bonds(counts, pairs, orders)


def to_rdkit(batch: MoleculeBatch) -> list[Mol]:
    """Every molecule of a batch as an RDKit molecule with one conformer, in order, not sanitised."""
    charges = _cut(batch, "charges") if "charges" in batch.fields else [None] * len(batch)
    bonds: list[Bonds | None] = [None] * len(batch)
    if "bond_atoms" in batch.fields and "bond_order" in batch.fields:
        bonds = list(zip(_cut(batch, "bond_atoms"), _cut(batch, "bond_order"), strict=True))
    atoms = zip(_cut(batch, "atomic_numbers"), _cut(batch, "pos"), charges, bonds, strict=True)
    return [build_mol(*one) for one in atoms]


def build_mol(numbers: NDArray, positions: NDArray, charges: NDArray | None = None, bonds: Bonds | None = None) -> Mol:
    """One RDKit molecule of arrays (N,), (N, 3) ångström, (N,) and bonds; not sanitised.

    Raises ValueError for an unknown bond order and, from RDKit, for atoms that are no element or not there.
    """
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    kind = Chem.BondType
    kinds = {1.0: kind.SINGLE, 1.5: kind.AROMATIC, 2.0: kind.DOUBLE, 3.0: kind.TRIPLE}
    mol = Chem.RWMol()
    for i, z in enumerate(numbers.tolist()):
        if not 1 <= z <= 118:
            raise ValueError(f"atom {i}: atomic number {z}, allowed: 1..118")
        atom = Chem.Atom(z)
        atom.SetNoImplicit(True)
        if charges is not None:
            atom.SetFormalCharge(int(charges[i]))
        mol.AddAtom(atom)
    for (i, j), order in zip(*((part.tolist() for part in bonds) if bonds is not None else ((), ())), strict=True):
        if order not in kinds:
            raise ValueError(f"bond of atoms {i} and {j}: order {order}, allowed: {', '.join(map(str, kinds))}")
        mol.AddBond(i, j, kinds[order])
        if order == 1.5:
            mol.GetBondBetweenAtoms(i, j).SetIsAromatic(True)
            mol.GetAtomWithIdx(i).SetIsAromatic(True)
            mol.GetAtomWithIdx(j).SetIsAromatic(True)
    conformer = Chem.Conformer(len(numbers))
    conformer.Set3D(True)
    for i, point in enumerate(np.asarray(positions, dtype=np.float64).tolist()):
        conformer.SetAtomPosition(i, Point3D(*point))
    mol.AddConformer(conformer, assignId=True)
    done = mol.GetMol()
    done.UpdatePropertyCache(strict=False)
    return done


def from_ase(atoms: Sequence[Atoms]) -> MoleculeBatch:
    """ASE atoms as one float64 batch, in order; initial charges, if any are set, are the formal charges.

    Raises ValueError naming the index of one that is periodic, holds no element or has charges that are not whole.
    """
    charges = []
    for i, one in enumerate(atoms):
        name = f"atoms {i} ({one.get_chemical_formula()})"
        if any(one.pbc):
            raise ValueError(f"{name}: pbc {one.pbc}; a molecule is not periodic")
        if not all(1 <= z <= 118 for z in one.numbers):
            raise ValueError(f"{name}: atomic numbers must be 1..118")
        charge = one.get_initial_charges()
        if not np.array_equal(charge, np.round(charge)):
            raise ValueError(f"{name}: initial charges {charge.tolist()} are not whole numbers")
        charges.append(charge.astype(np.int64))
    given = charges if any(one.has("initial_charges") for one in atoms) else None
    return batch_from_arrays([one.numbers for one in atoms], [one.positions for one in atoms], given)


def to_ase(batch: MoleculeBatch) -> list[Atoms]:
    """Every molecule of a batch as ASE atoms without a cell, in order; formal charges become initial charges."""
    from ase import Atoms

    charges = _cut(batch, "charges") if "charges" in batch.fields else [None] * len(batch)
    each = zip(_cut(batch, "atomic_numbers"), _cut(batch, "pos"), charges, strict=True)
    return [Atoms(numbers=n, positions=p, charges=None if c is None else c.astype(float)) for n, p, c in each]


def _cut(batch: MoleculeBatch, name: str) -> list[NDArray]:
    """A field, molecule by molecule; floating point as float64."""
    if name not in batch.fields:
        raise ValueError(f"the batch lacks the field '{name}'; it has {', '.join(batch.fields) or 'none'}")
    values = batch[name].detach().cpu()
    values = values.double() if values.is_floating_point() else values
    ptr = batch["bond_ptr" if batch.levels[name] == "bond" else "ptr"]
    return np.split(values.numpy(), ptr[1:-1].tolist()) if len(batch) else []
