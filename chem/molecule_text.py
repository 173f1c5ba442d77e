"""One molecule as text, in and out: an SDF entry, an xyz or extxyz frame, a JSON object; all by way of RDKit.

SDF keeps bonds and charges and 4 decimals, extxyz charges and 8 decimals; xyz every digit, JSON everything.
Nothing is sanitised on the way, so a molecule with impossible valences can still be read, counted and judged.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.structure_text import atoms_from_frame, atoms_to_frame, from_cell, plain, to_cell

if TYPE_CHECKING:
    from rdkit.Chem import Mol

HIDDEN = "atomsmith_json"  # SDF data item for properties whose names cannot stand in its header


def get_properties(mol: Mol) -> dict[str, Any]:
    """Properties set on an RDKit molecule, without private and computed ones; text that says a number is a number."""
    found = mol.GetPropsAsDict(includePrivate=False, includeComputed=False, autoConvertStrings=False)
    out = {str(k): from_cell(v) if isinstance(v, str) else plain(v) for k, v in found.items()}
    hidden = out.pop(HIDDEN, None)
    return {k: v for k, v in out.items() if v is not None} | (hidden if isinstance(hidden, dict) else {})


def set_properties(mol: Mol, properties: dict[str, Any]) -> None:
    """Set properties on an RDKit molecule as text that `get_properties` reads back; None is left out."""
    hidden: dict[str, Any] = {}
    for key, value in plain(properties).items():
        if not re.fullmatch(r"[^\s<>_][^<>\n\r]*(?<!\s)", key) or key == HIDDEN:
            hidden[key] = value
        elif value is not None:
            mol.SetProp(key, _item(value))
    if hidden:
        mol.SetProp(HIDDEN, json.dumps(hidden))


def _item(value: Any) -> str:
    """A value as text that can stand in an SDF data item."""
    text = to_cell(value)
    if isinstance(value, str) and (text != text.strip() or re.search(r"[\n\r]|^>|^\$\$\$\$", text)):
        return json.dumps(value)
    return text


def mol_from_sdf(text: str) -> Mol:
    """The molecule of one SDF entry with its data items as properties, every atom kept, not sanitised.

    Raises ValueError naming what is wrong with it.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        entries = Chem.SDMolSupplier()
        entries.SetData(text, sanitize=False, removeHs=False)
        mol = entries[0] if len(entries) else None
    if mol is None:
        raise ValueError(_fault(text))
    return mol


def _fault(text: str) -> str:
    """Why RDKit cannot read an entry, as far as the text shows it; RDKit itself says so on stderr only."""
    from ase.data import chemical_symbols

    lines = text.splitlines()
    counts = lines[3] if len(lines) > 3 else ""
    if "V3000" in counts:
        return "RDKit cannot read the V3000 entry"
    if not re.match(r"[ \d]{2}\d[ \d]{2}\d", counts):
        return f"no counts line: line 4 is {counts.strip()[:60]!r}"
    rows = lines[4 : 4 + int(counts[:3])]
    for i, row in enumerate(rows):
        symbol = row[31:34].strip()
        if symbol and symbol not in (*chemical_symbols[1:], "D", "T"):
            return f"atom {i}: unknown element '{symbol}'"
    if len(lines) < 4 + int(counts[:3]) + int(counts[3:6]) or not any(line.startswith("M  END") for line in lines):
        return f"the entry breaks off: {int(counts[:3])} atoms and {int(counts[3:6])} bonds are announced"
    return "RDKit cannot read the entry"


def mol_to_sdf(mol: Mol, name: str | None, properties: dict[str, Any]) -> str:
    """One SDF entry with the id as title; aromatic bonds stay aromatic."""
    from rdkit import Chem

    bare = Chem.Mol(mol)
    for key in bare.GetPropNames(includePrivate=True, includeComputed=False):
        bare.ClearProp(key)
    bare.SetProp("_Name", " ".join((name or "").split()))
    set_properties(bare, properties)
    out = io.StringIO()
    writer = Chem.SDWriter(out)
    writer.SetKekulize(False)
    try:
        writer.write(bare)
    except RuntimeError as error:  # an atom of fewer than no electrons, as H2+
        raise ValueError(f"RDKit cannot write the molecule: {str(error).strip().splitlines()[1].strip()}") from None
    writer.close()
    return out.getvalue()


def mol_from_frame(text: str) -> tuple[Mol, dict[str, Any]]:
    """The molecule of one xyz or extxyz frame, without bonds, and its properties.

    A comment line without `=` is the id. Raises ValueError for a periodic frame, unknown elements and broken lines.
    """
    from ase.data import atomic_numbers

    from chem.convert_molecules import build_mol

    lines = text.splitlines()
    comment = lines[1].strip()
    if "Properties=" in comment:
        from chem.convert_molecules import from_ase, to_rdkit

        try:
            atoms, properties = atoms_from_frame(text)
        except KeyError as error:
            raise ValueError(f"unknown element {error}") from None
        return to_rdkit(from_ase([atoms]))[0], properties
    numbers, positions = [], []
    for i, line in enumerate(lines[2:]):
        words = line.replace("*^", "e").split()
        if len(words) < 4:
            raise ValueError(f"atom {i}: an element and three coordinates are needed, got {line.strip()[:60]!r}")
        z = int(words[0]) if words[0].isdecimal() else atomic_numbers.get(words[0].capitalize(), 0)
        if not 1 <= z <= 118:
            raise ValueError(f"atom {i}: unknown element '{words[0]}'")
        numbers.append(z)
        positions.append([float(word) for word in words[1:4]])
    mol = build_mol(np.array(numbers, dtype=np.int64), np.array(positions))
    if "=" not in comment:
        return mol, {"id": comment} if comment else {}
    head = atoms_from_frame(f"1\n{comment}\nH 0 0 0\n")
    if head[0].pbc.any():
        raise ValueError("the frame has a lattice; a molecule is not periodic")
    return mol, head[1]


def mol_to_frame(mol: Mol, name: str | None, properties: dict[str, Any]) -> str:
    """One extxyz frame; formal charges, where there are any, are the column initial_charges."""
    from ase import Atoms

    numbers, charges = zip(*((a.GetAtomicNum(), a.GetFormalCharge()) for a in mol.GetAtoms()), strict=True)
    atoms = Atoms(numbers, mol.GetConformer().GetPositions(), charges=charges if any(charges) else None)
    return atoms_to_frame(atoms, {**({} if name is None else {"id": name}), **properties})


def mol_to_xyz(mol: Mol, name: str | None) -> str:
    """One plain xyz frame with the id as comment."""
    points = mol.GetConformer().GetPositions().tolist()
    rows = [f"{atom.GetSymbol():2} {x!r} {y!r} {z!r}\n" for atom, (x, y, z) in zip(mol.GetAtoms(), points, strict=True)]
    return f"{len(rows)}\n{' '.join((name or '').replace('=', ' ').split())}\n{''.join(rows)}"


def mol_to_dict(mol: Mol) -> dict[str, Any]:
    """A molecule as plain values: atomic_numbers, pos, and charges and bonds [i, j, order] where there are any.

    Coordinates that are not finite are allowed: a record keeps whatever was sampled.
    """
    from chem.convert_molecules import mol_bonds

    charges = [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    pairs, orders = mol_bonds(mol)
    bonds = [[*pair, order] for pair, order in zip(pairs.tolist(), orders.tolist(), strict=True)]
    out: dict[str, Any] = {"atomic_numbers": [atom.GetAtomicNum() for atom in mol.GetAtoms()]}
    out["pos"] = plain(np.array(mol.GetConformer().GetPositions()).reshape(-1, 3))
    return out | ({"charges": charges} if any(charges) else {}) | ({"bonds": bonds} if bonds else {})


def mol_from_dict(data: dict[str, Any]) -> Mol:
    """The molecule of `mol_to_dict`; raises ValueError or KeyError for anything else."""
    from chem.convert_molecules import build_mol

    numbers = np.array(data["atomic_numbers"], dtype=np.int64)
    positions = np.array(data["pos"], dtype=np.float64).reshape(-1, 3)
    charges = np.array(data["charges"], dtype=np.int64) if "charges" in data else None
    if len(positions) != len(numbers) or (charges is not None and len(charges) != len(numbers)):
        raise ValueError(f"{len(numbers)} atoms, but {len(positions)} positions or other charges")
    bonds = data.get("bonds", [])
    pairs = np.array([bond[:2] for bond in bonds], dtype=np.int64).reshape(-1, 2)
    return build_mol(numbers, positions, charges, (pairs, np.array([float(bond[2]) for bond in bonds])))
