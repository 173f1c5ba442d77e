"""From atoms to graphs and SMILES by RDKit, in processes that can be killed.

Two rules of validity. `largest-fragment` is EDM's: the graph can be sanitised, and so can its fragment with the most
atoms; hydrogens that are missing are taken as implied, and fragments that are left over are not looked at.
`whole-molecule` also asks that there is one fragment, and that no hydrogen or bond is missing: no radicals, nothing
implied.

Bonds come from EDM's tables, or are perceived: rdDetermineBonds.DetermineBonds with useVdw (atoms nearer than `reach`
times the sum of their covalent radii are bonded), then orders for the total charge; charged resonance forms are
allowed. RDKit's default joins the bridgeheads of strained cages, and 4.3 % of 1,000 QM9 training molecules have no
graph by it. 1.15 was the best of seven values tried on these: all of them have a graph then, and so have 17,508 of the
17,510 validation molecules. Perception can freeze or fill the memory in compiled code, so each molecule has a limit of
both; a molecule that was killed is invalid, with the reason.

SMILES are canonical, of the largest fragment, with the hydrogens as atoms and without stereochemistry.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.protocols import MoleculeProtocol
from evaluation.workers import Failed, cores, limited_map

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rdkit.Chem import Mol

    from chem.molecules import MoleculeBatch

CHUNK = 50  # molecules a process gets at a time; those of a chunk that fails are tried again one by one
FAULTS = ("unusable", "killed", "perception", "valence", "kekulisation", "sanitisation", "disconnected", "open shell")
Bonds = tuple["NDArray[np.int64]", "NDArray[np.float64]"]  # atoms (E, 2) within the molecule, orders (E,)
Task = tuple["NDArray[np.int64]", "NDArray[np.float64]", int, "Bonds | None"]  # elements, pos, total charge, bonds


@dataclass(frozen=True)
class Graph:
    """One molecule as RDKit sees it.

    bonds: atoms (E, 2) and orders (E,), 1.5 for aromatic; charges: formal ones (N,). fragments: 0 where there is no
    graph. smiles: empty where the graph is invalid by `largest-fragment`. fault: of FAULTS, why it is invalid by
    `whole-molecule`, else empty; reason: the same in a line.
    """

    bonds: list[tuple[int, int]]
    orders: list[float]
    charges: list[int]
    fragments: int = 0
    smiles: str = ""
    fault: str = ""
    reason: str = ""


def graphs(
    batch: MoleculeBatch, bonds: Sequence[Bonds] | None, protocol: MoleculeProtocol, processes: int | None = None
) -> list[Graph]:
    """The graph of every molecule of a batch, of the given bonds or, where `bonds` is None, of perceived ones.

    processes: default all cores; 0 works here, without limits.
    """
    tasks = _tasks(batch, bonds)
    chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
    if processes is None:
        processes = min(cores(), len(chunks))  # each starts, whether there is work for it or not
    start, work = partial(_start, protocol.memory), partial(judge, reach=protocol.reach)
    found: list[Graph | None] = []
    for chunk, result in zip(chunks, limited_map(work, chunks, protocol.seconds, processes, start), strict=True):
        found += [None] * len(chunk) if isinstance(result, Failed) else result
    again = [i for i, graph in enumerate(found) if graph is None]
    alone = limited_map(work, [[tasks[i]] for i in again], protocol.seconds, processes, start) if again else ()
    for i, result in zip(again, alone, strict=True):
        found[i] = _killed(tasks[i], result.reason) if isinstance(result, Failed) else result[0]
    return [graph for graph in found if graph is not None]


def judge(tasks: Iterable[Task], reach: float) -> list[Graph]:
    """What becomes of molecules, one after the other, in this process."""
    from rdkit import rdBase

    with rdBase.BlockLogs():
        return [_graph(*task, reach) for task in tasks]


def _tasks(batch: MoleculeBatch, bonds: Sequence[Bonds] | None) -> list[Task]:
    cuts = batch["ptr"][1:-1].tolist()
    numbers = np.split(batch["atomic_numbers"].cpu().numpy(), cuts)
    pos = np.split(batch["pos"].detach().cpu().double().numpy(), cuts)
    total = [0] * len(batch)
    if "charges" in batch.fields:
        total = [int(part.sum()) for part in np.split(batch["charges"].cpu().numpy(), cuts)]
    given: Sequence[Bonds | None] = [None] * len(batch) if bonds is None else bonds
    return list(zip(numbers, pos, total, given, strict=True))


def _graph(
    numbers: NDArray[np.int64], pos: NDArray[np.float64], charge: int, bonds: Bonds | None, reach: float
) -> Graph:
    from rdkit import Chem

    if not np.isfinite(pos).all():
        return _without(numbers, "unusable", "a coordinate is not a finite number")
    if not len(numbers) or numbers.min() < 1:
        return _without(numbers, "unusable", "an atomic number is not in 1..118" if len(numbers) else "no atoms")
    if bonds is not None:
        mol = _bonded(numbers, bonds)
    else:
        try:
            mol = perceive(numbers, pos, charge, reach)
        except (ValueError, RuntimeError) as error:
            return _without(numbers, "perception", f"no bonds perceived: {_line(error)}")
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    orders = [bond.GetBondTypeAsDouble() for bond in mol.GetBonds()]
    charges = [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    plain = Graph(pairs, orders, charges, len(Chem.GetMolFrags(mol)))
    try:
        Chem.SanitizeMol(mol)
        largest = max(Chem.GetMolFrags(mol, asMols=True), default=mol, key=lambda part: part.GetNumAtoms())
        Chem.SanitizeMol(largest)
    except ValueError as error:
        return replace(plain, fault=_class(error), reason=_line(error))
    smiles, fault, reason = Chem.MolToSmiles(largest), "", ""
    if plain.fragments != 1:
        fault, reason = "disconnected", f"{plain.fragments} fragments"
    else:
        open_atoms = [a for a in mol.GetAtoms() if a.GetNumRadicalElectrons() or a.GetTotalNumHs()]
        if open_atoms:
            fault = "open shell"
            reason = (
                f"{len(open_atoms)} atoms lack bonds, the first: {open_atoms[0].GetSymbol()} {open_atoms[0].GetIdx()}"
            )
    return replace(plain, smiles=smiles, fault=fault, reason=reason)


def _bonded(numbers: NDArray[np.int64], bonds: Bonds) -> Mol:
    """A molecule of these bonds whose missing hydrogens are implied, as EDM builds it."""
    from rdkit import Chem

    kind = {
        1.0: Chem.BondType.SINGLE,
        1.5: Chem.BondType.AROMATIC,
        2.0: Chem.BondType.DOUBLE,
        3.0: Chem.BondType.TRIPLE,
    }
    mol = Chem.RWMol()
    for z in numbers.tolist():
        mol.AddAtom(Chem.Atom(z))
    for (i, j), order in zip(bonds[0].tolist(), bonds[1].tolist(), strict=True):
        mol.AddBond(i, j, kind[order])
    return mol


def perceive(numbers: NDArray[np.int64], pos: NDArray[np.float64], charge: int = 0, reach: float = 1.15) -> Mol:
    """The molecule that RDKit perceives in elements (N,) and positions (N, 3) ångström; not sanitised.

    Raises ValueError where it finds none. Nothing limits its time here.
    """
    from rdkit.Chem import rdDetermineBonds

    from chem.convert_molecules import build_mol

    mol = build_mol(numbers, pos)
    rdDetermineBonds.DetermineBonds(mol, charge=charge, covFactor=reach, embedChiral=False, useVdw=True)
    return mol


def _class(error: ValueError) -> str:
    name = type(error).__name__
    return "valence" if "Valence" in name else "kekulisation" if "Kekulize" in name else "sanitisation"


def _without(numbers: NDArray[np.int64], fault: str, reason: str) -> Graph:
    return Graph([], [], [0] * len(numbers), fault=fault, reason=reason)


def _killed(task: Task, reason: str) -> Graph:
    return _without(task[0], "killed", f"killed: {reason}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _start(memory: int) -> None:
    """What a new process does before its first molecule: import, then limit what it may take beyond that."""
    from rdkit.Chem import rdDetermineBonds  # noqa: F401

    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    with suppress(ValueError, OSError):  # a lower limit may hold already
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)


def split_bonds(batch: MoleculeBatch, pairs: Any, orders: Any) -> list[Bonds]:
    """Bonds as rows (2, P) of a batch, molecule by molecule: atoms (E, 2) counted within it, and orders (E,)."""
    import torch

    index = batch["batch"].cpu()[pairs[0]]
    order = torch.argsort(index, stable=True)
    local = (pairs - batch["ptr"].cpu()[index])[:, order].T.numpy()
    cuts = np.cumsum(np.bincount(index.numpy(), minlength=len(batch)))[:-1]
    return list(zip(np.split(local, cuts), np.split(orders[order].double().numpy(), cuts), strict=True))
