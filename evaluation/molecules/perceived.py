"""RDKit molecules with perceived bonds, of elements and positions alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chem.molecule_list import NO_BONDS, Molecules
from evaluation.molecules.graphs import graphs
from evaluation.protocols import STRICT, MoleculeProtocol

if TYPE_CHECKING:
    from chem.molecules import MoleculeBatch


def with_perceived_bonds(
    batch: MoleculeBatch, protocol: MoleculeProtocol = STRICT, processes: int | None = None
) -> Molecules:
    """The molecules of a batch with the bonds and formal charges that the rule of the protocol perceives.

    Neutral as a whole, in order, not sanitised; valences may still be impossible. Where nothing is perceived, in time
    and in the memory of the protocol, a molecule has no bonds and the property `no_bonds`, the reason. processes: see
    `evaluation.molecules.graphs`.
    """
    import torch

    from chem.convert_molecules import to_rdkit

    found = graphs(batch, None, protocol, processes)
    pairs = torch.from_numpy(np.array([pair for graph in found for pair in graph.bonds], dtype=np.int64).reshape(-1, 2))
    orders = torch.tensor([order for graph in found for order in graph.orders], dtype=torch.float64)
    charges = torch.tensor([charge for graph in found for charge in graph.charges], dtype=torch.int64)
    bonded = batch.with_bonds([len(graph.bonds) for graph in found], pairs, orders, charges=charges)
    molecules = Molecules(to_rdkit(bonded))
    for mol, graph in zip(molecules, found, strict=True):
        if not graph.fragments:
            mol.SetProp(NO_BONDS, graph.reason)
    return molecules
