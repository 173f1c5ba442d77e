"""Everything that is known of every molecule of a batch: its bonds, stability, validity and SMILES."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch

from evaluation.molecules.graphs import Bonds, Graph, graphs, split_bonds
from evaluation.molecules.stability import Stability, corrected_stability, edm_stability, lookup
from evaluation.protocols import MoleculeProtocol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.molecules import MoleculeBatch

KEPT = 1000  # molecules from which on the graphs of a reference are kept for the next call


@dataclass(frozen=True)
class Judged:
    """B molecules as a protocol sees them.

    pairs (2, P), orders (P,): bonds as rows of the batch. stability: by the protocol's valences. graphs (B). valid
    (B,): by the protocol's rule.
    """

    batch: MoleculeBatch
    pairs: Tensor
    orders: Tensor
    stability: Stability
    graphs: list[Graph]
    valid: NDArray[np.bool_]

    def drawn(self, rows: NDArray[np.int64]) -> tuple[MoleculeBatch, Tensor, Tensor]:
        """These molecules, in ascending order, and their bonds as rows of the smaller batch."""
        chosen = torch.zeros(len(self.batch), dtype=torch.bool)
        chosen[torch.from_numpy(rows)] = True
        kept = chosen[self.batch["batch"]]
        place, inside = torch.cumsum(kept, 0) - 1, kept[self.pairs[0]]
        return self.batch[chosen], place[self.pairs[:, inside]], self.orders[inside]


def judge_batch(
    batch: MoleculeBatch, protocol: MoleculeProtocol, processes: int | None = None, keep: bool = False
) -> Judged:
    """Judge every molecule of a batch; atoms that are no element have no bonds and no stability.

    keep: leave the graphs in the cache of data sets, or take them from there.
    """
    z = batch["atomic_numbers"].cpu()
    known = batch.to("cpu").replace(atomic_numbers=torch.where((z >= 1) & (z <= 118), z, 0))
    if protocol.bonds == "lookup":
        pairs, orders = lookup(known, protocol.margins)
        found = _graphs(known, split_bonds(known, pairs, orders), protocol, processes, keep)
    else:
        found = _graphs(known, None, protocol, processes, keep)
        pairs, orders = _rows(known, found)
    if protocol.valences == "edm":
        stability = edm_stability(known, pairs, orders)
    else:
        charges = torch.tensor([q for graph in found for q in graph.charges], dtype=torch.long)
        stability = corrected_stability(known, pairs, orders, charges)
    rule = protocol.validity == "whole-molecule"
    valid = np.array([bool(g.smiles) and not (rule and g.fault) for g in found], dtype=bool)
    return Judged(known, pairs, orders, stability, found, valid)


def _rows(batch: MoleculeBatch, found: list[Graph]) -> tuple[Tensor, Tensor]:
    """The bonds of graphs as rows (2, P) of the batch, and orders (P,)."""
    counts = torch.tensor([len(graph.bonds) for graph in found], dtype=torch.long)
    bonds = torch.tensor([pair for graph in found for pair in graph.bonds], dtype=torch.long).reshape(-1, 2)
    orders = torch.tensor([order for graph in found for order in graph.orders], dtype=torch.float64)
    return bonds.T + torch.repeat_interleave(batch["ptr"][:-1], counts), orders


def _graphs(
    batch: MoleculeBatch, bonds: list[Bonds] | None, protocol: MoleculeProtocol, processes: int | None, keep: bool
) -> list[Graph]:
    from chem.output import write_atomically
    from chem.packing import default_cache

    if not keep or len(batch) < KEPT:
        return graphs(batch, bonds, protocol, processes)
    path = default_cache() / "judged" / f"{_digest(batch, protocol)}.json"
    if path.is_file():
        try:
            return [Graph(**row) for row in json.loads(path.read_text())]
        except (ValueError, TypeError):
            pass  # not whole, or of another version: made again
    found = graphs(batch, bonds, protocol, processes)
    if not any(graph.fault == "killed" for graph in found):  # which depends on the machine
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps([asdict(graph) for graph in found]))
    return found


def _digest(batch: MoleculeBatch, protocol: MoleculeProtocol) -> str:
    """sha256 over the molecules and every choice that their graphs depend on."""
    total = hashlib.sha256(f"graphs 1, rdkit {version('rdkit')}".encode())
    total.update(json.dumps([protocol.bonds, protocol.margins, protocol.reach]).encode())
    for name in ("num_atoms", "atomic_numbers", "pos", "charges"):
        if name in batch:
            total.update(batch[name].contiguous().numpy().tobytes())
    return total.hexdigest()
