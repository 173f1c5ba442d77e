"""The energy of CHGNet 0.3, arranged for inference: the same function as the package's, with a fifth of its arithmetic.

What is rearranged, and why it changes nothing but rounding (Deng et al. 2023 for the function itself):

- The first layer of a gated MLP acts on a concatenation of atoms and bonds. It is split by input, so that the products
  are formed once per atom and once per bond, and only their sums once per edge or angle.
- Both directions of a bond share its features: they are two rows of one broadcast, never gathered.
- A bond longer than the bond cutoff has weight zero in every angle, so only short bonds are ever updated.
- The last update of the angles is read by nobody.
- Parameters are constants: nothing is kept for their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.relaxation.bond_graph import BondGraph

if TYPE_CHECKING:
    from chgnet.model import CHGNet

SUPPORTED = {
    "num_radial": 31,
    "update_bond": True,
    "update_angle": True,
    "mlp_first": True,
    "is_intensive": True,
    "gMLP_norm": "layer",
    "readout_norm": "layer",
    "non_linearity": "silu",
    "mlp_out_bias": False,
}


class GatedMLP:
    """silu(norm(core)) * sigmoid(norm(gate)) of CHGNet, with its first layer split by input.

    `split[k]` (inputs, 2 * width) maps the k-th input of the concatenation to the sum that `finish` takes.
    """

    def __init__(self, mlp: Any, widths: Sequence[int]):
        core, gate = ([x for x in part.layers if isinstance(x, nn.Linear)] for part in (mlp.mlp_core, mlp.mlp_gate))
        joined = torch.cat([core[0].weight, gate[0].weight]).detach().t()
        self.split = [part.contiguous() for part in joined.split(list(widths))]
        self.bias = torch.cat([core[0].bias, gate[0].bias]).detach()
        self.second = [(c.weight.detach(), c.bias.detach()) for c in (core[1], gate[1])] if len(core) > 1 else None
        self.norms = [mlp.bn1, mlp.bn2]

    def finish(self, total: Tensor) -> Tensor:
        """The output (E, width) from the sum (E, 2 * width) of the split first layer, bias included."""
        if self.second is not None:
            total = F.silu(total)
        core, gate = total.chunk(2, -1)
        if self.second is not None:
            core, gate = (F.linear(x, *layer) for x, layer in zip((core, gate), self.second, strict=True))
        core, gate = (norm(x) for x, norm in zip((core, gate), self.norms, strict=True))
        return F.silu(core) * torch.sigmoid(gate)


class EnergyNetwork:
    """Total energies of crystals from a loaded CHGNet, whose parameters it freezes.

    Raises ValueError for a model of another architecture.
    """

    def __init__(self, model: CHGNet, dtype: torch.dtype = torch.float32):
        arguments = {"mlp_out_bias": False, **model.model_args}
        for name, value in SUPPORTED.items():
            if arguments.get(name) != value:
                raise ValueError(f"this CHGNet has {name} = {arguments.get(name)!r}, allowed: {value!r}")
        self.model = model.requires_grad_(False).eval().to(dtype)
        self.dtype = dtype
        atom, bond, angle = (int(arguments[f"{name}_fea_dim"]) for name in ("atom", "bond", "angle"))
        self.cutoff, self.bond_cutoff = (float(arguments[f"{name}_graph_cutoff"]) for name in ("atom", "bond"))
        self.atom_mlps = [GatedMLP(c.twoBody_atom, (atom, bond, atom)) for c in model.atom_conv_layers]
        widths = (bond, bond, angle, atom)
        self.bond_mlps = [GatedMLP(c.twoBody_bond, widths) for c in model.bond_conv_layers]
        self.angle_mlps = [GatedMLP(c.twoBody_bond, widths) for c in model.angle_layers][:-1]

    def __call__(self, numbers: Tensor, structure: Tensor, count: int, graph: BondGraph, vectors: Tensor) -> Tensor:
        """Energies (B,) in eV of `count` crystals of atoms (M,); differentiable in the vectors (P, 3) of the pairs."""
        model: Any = self.model
        length = torch.linalg.vector_norm(vectors, dim=-1)
        atoms = model.atom_embedding(numbers - 1)
        radial = model.bond_basis_expansion.rbf_expansion_ag(length)
        bonds, weights = model.bond_embedding(radial), model.bond_weights_ag(radial)
        near = length[: graph.short]
        inner = model.bond_weights_bg(model.bond_basis_expansion.rbf_expansion_bg(near))
        angles = model.angle_embedding(self._angular(graph, vectors[: graph.short] / near.unsqueeze(-1)))
        inner = inner[graph.first] * inner[graph.second]
        short, long = bonds[: graph.short], bonds[graph.short :]
        for k, convolution in enumerate(model.atom_conv_layers):
            bonds = torch.cat([short, long]) if k else bonds
            messages = self.atom_mlps[k].finish(self._atom_sums(k, atoms, bonds, graph.pairs)) * weights
            total = torch.zeros_like(atoms).index_add(0, graph.pairs.flatten(), messages.flatten(0, 1))
            atoms = convolution.mlp_out(total) + atoms
            if k < len(self.bond_mlps):
                update = self.bond_mlps[k].finish(self._angle_sums(self.bond_mlps[k], atoms, short, angles, graph))
                total = torch.zeros_like(short).index_add(0, graph.first, update * inner)
                short = model.bond_conv_layers[k].mlp_out(total) + short
            if k < len(self.angle_mlps):
                mlp = self.angle_mlps[k]
                angles = mlp.finish(self._angle_sums(mlp, atoms, short, angles, graph)) + angles
        sites = model.mlp(model.readout_norm(atoms)).squeeze(-1) + model.composition_model.fc.weight[0, numbers - 1]
        return sites.new_zeros(count).index_add(0, structure, sites)

    def _atom_sums(self, k: int, atoms: Tensor, bonds: Tensor, pairs: Tensor) -> Tensor:
        """First layer of the k-th atom convolution (2, P, 2 * width), for both directions of every pair."""
        mlp = self.atom_mlps[k]
        centre, bond, neighbour = mlp.split
        here, there = torch.addmm(mlp.bias, atoms, centre), atoms @ neighbour
        ends, opposite = pairs.flatten(), pairs.flip(0).flatten()
        total = here.index_select(0, ends) + there.index_select(0, opposite)
        return total.unflatten(0, tuple(pairs.shape)) + bonds @ bond

    def _angle_sums(self, mlp: GatedMLP, atoms: Tensor, bonds: Tensor, angles: Tensor, graph: BondGraph) -> Tensor:
        """First layer of an MLP on angles (T, 2 * width)."""
        first, second, angle, centre = mlp.split
        here = torch.addmm(mlp.bias, atoms, centre)
        total = (bonds @ first).index_select(0, graph.first) + (bonds @ second).index_select(0, graph.second)
        return torch.addmm(total, angles, angle) + here.index_select(0, graph.centre)

    def _angular(self, graph: BondGraph, directions: Tensor) -> Tensor:
        """Fourier basis (T, 31) of the angles between bonds with unit vectors (S, 3)."""
        cosine = (directions[graph.first] * directions[graph.second]).sum(-1) * graph.sign * (1 - 1e-6)
        phase = torch.outer(torch.acos(cosine), self.model.angle_basis_expansion.fourier_expansion.frequencies)
        constant = torch.full_like(phase[:, :1], math.sqrt(0.5))
        return torch.cat([constant, phase.sin(), phase.cos()], -1) / math.sqrt(math.pi)
