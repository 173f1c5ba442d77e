"""CHGNet as a potential: batched, one gradient call for forces and stresses together."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import torch

from chem.crystals import CrystalBatch
from chem.lattice import volume
from evaluation.relaxation.bond_graph import Candidates, bond_graph, candidates, still_complete
from evaluation.relaxation.chgnet_network import EnergyNetwork
from evaluation.relaxation.potentials import Prediction

if TYPE_CHECKING:
    from chgnet.model import CHGNet

CORRECTIONS = {"0.3.0": "MP2020", "r2scan": "r2SCAN"}


class CHGNetPotential:
    """CHGNet's energies, forces and stresses, with the weights that its package ships.

    version: "0.3.0", on the scale of the Materials Project with its 2020 corrections, or "r2scan". dtype: of the
    network; coordinates are always subtracted in float64. skin: how far, in ångström beyond the cutoff, pairs are
    listed, so that the list serves until atoms have moved half as far; it changes no result.
    Raises ValueError for an unknown version and ImportError, naming the extra, where chgnet is not installed.
    """

    name = "chgnet"
    elements = frozenset(range(1, 95))

    def __init__(
        self,
        version: str = "0.3.0",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        skin: float = 1.0,
    ):
        if version not in CORRECTIONS:
            raise ValueError(f"version = '{version}', allowed: {', '.join(CORRECTIONS)}")
        if not skin >= 0:
            raise ValueError(f"skin = {skin}, allowed: a number of ångström that is not negative")
        self.version, self.correction, self.skin = version, CORRECTIONS[version], skin
        self.network = EnergyNetwork(_load(version).to(device), dtype)
        self.cutoff: float | None = self.network.cutoff
        self.device = torch.device(device)
        self._known: Candidates | None = None

    def __call__(self, batch: CrystalBatch) -> Prediction:
        """Energies (B,), forces (M, 3) and stresses (B, 3, 3), on the device of the batch.

        Raises ValueError for an element beyond plutonium and for a cell without volume.
        """
        home, batch, network = batch["lattice"].device, batch.to(self.device), self.network
        if len(batch["batch"]) and int(heaviest := batch["atomic_numbers"].max()) not in self.elements:
            raise ValueError(f"atomic_numbers holds {int(heaviest)}, allowed: 1 to {max(self.elements)}")
        if self._known is None or not still_complete(self._known, batch, network.cutoff):
            self._known = candidates(batch, network.cutoff + self.skin)
        graph = bond_graph(self._known, batch, network.cutoff, network.bond_cutoff)
        vectors = graph.vectors.to(network.dtype).detach().requires_grad_()
        with torch.enable_grad():
            energies = network(batch["atomic_numbers"], batch["batch"], len(batch), graph, vectors)
            (gradient,) = torch.autograd.grad(energies.sum(), vectors)
        gradient = gradient.double()
        forces = torch.zeros(len(batch["batch"]), 3, dtype=torch.float64, device=self.device)
        forces.index_add_(0, graph.pairs[0], gradient).index_add_(0, graph.pairs[1], -gradient)
        virial = graph.vectors.unsqueeze(-1) * gradient.unsqueeze(-2)
        stress = torch.zeros(len(batch), 3, 3, dtype=torch.float64, device=self.device)
        stress.index_add_(0, graph.structure, virial).div_(volume(batch["lattice"].double()).reshape(-1, 1, 1))
        return Prediction(*(x.to(home) for x in (energies.detach().double(), forces, stress)))


def _load(version: str) -> CHGNet:
    try:
        from chgnet.model import CHGNet
    except ImportError as error:
        raise ImportError(f"CHGNet needs the extra 'stability': pip install atomsmith[stability] ({error})") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        return CHGNet.load(model_name=version, use_device="cpu", verbose=False)
