"""EGNN: message passing on the complete graph of a molecule (Satorras et al. 2021, as EDM and GeoBFN use it).

Positions enter through distances alone and move along differences, so that node outputs are invariant to rotation,
reflection and translation and the vectors turn with the molecule; the network cannot tell mirror images apart. One
layer, for every pair i != j of a molecule, with d_ij = |x_i - x_j| now and a_ij the same at the input:

    m_ij = phi_e([h_i, h_j, d_ij^2, a_ij^2])
    h_i <- h_i + phi_h([h_i, (1/c) sum_j e_ij m_ij]),              e_ij = 1, or sigmoid(w m_ij + b)
    x_i <- x_i + (1/c) sum_j s_ij (x_i - x_j) / (d_ij + 1),        s_ij = phi_x([h_i, h_j, d_ij^2, a_ij^2])

where phi_x sees the new h and s_ij may be bounded, R tanh(s_ij). With a stride, atoms move by stride(t) times as much,
and where they end is the prediction, instead of how far they went. With a sharpness, the MLPs see sharpness * d in
place of d^2: they resolve the length of a bond from the first, and need not grow large weights for it. `forward`
is the fast form (egnn_fast.py); `plain` is the edge list that reads like the paper and is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from chem.molecules import MoleculeBatch
from generative.backbone.egnn_fast import as_features, plan_of, run_layers, unit_differences
from generative.backbone.gemm import use_onednn
from generative.backbone.layers import complete_edges, conditioned
from generative.generator import Network

RANGE = 15.0  # R: EDM divides it by the number of layers on paper and not in its code


class EGNNLayer(nn.Module):
    """Parameters of one layer; the arithmetic is in `EGNN.plain` and in egnn_fast.py. moves: whether atoms move."""

    def __init__(self, hidden: int, attention: bool = False, moves: bool = True):
        super().__init__()
        inputs = 2 * hidden + 2
        self.edge_mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)  # the first steps of a training hardly move an atom
        coord_mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
        self.coord_mlp = coord_mlp if moves else None
        self.gate = nn.Linear(hidden, 1) if attention else None


class EGNN(Network):
    """Predictions for `pos` (M, 3), centred in each molecule, and, by name, for the fields of `outputs` (M, width).

    features: module from the batch to the inputs of the atoms (M, inputs); the time is appended to them. attention:
    weigh messages by e_ij. bounded: R tanh for s_ij. normalization: c. stride: from times (B,) to how far atoms go
    (B,). sharpness: in inverse units of length. products: dtype of the matrix products of the
    fast form (None: that of the weights; torch.bfloat16: relative error below 1e-2, state and geometry stay exact).
    """

    def __init__(
        self,
        hidden: int,
        layers: int,
        features: nn.Module,
        inputs: int,
        outputs: Mapping[str, int],
        attention: bool = False,
        bounded: bool = False,
        normalization: float = 1.0,
        stride: Callable[[Tensor], Tensor] | None = None,
        sharpness: float = 0.0,
    ):
        super().__init__()
        self.hidden, self.outputs = hidden, dict(outputs)
        self.bounded, self.normalization = bounded, normalization
        self.stride, self.sharpness = stride, sharpness
        self.features = features
        self.embedding = nn.Linear(inputs + 1, hidden)
        self.egnn_layers = nn.ModuleList([EGNNLayer(hidden, attention) for _ in range(layers)])
        self.node_out = nn.Linear(hidden, sum(self.outputs.values()))

    @property
    def layers(self) -> list[EGNNLayer]:
        """The layers, in order."""
        return list(self.egnn_layers)  # type: ignore[arg-type]

    def embed(self, batch: MoleculeBatch, t: Tensor) -> Tensor:
        """Initial node state (M, H)."""
        return conditioned(self.embedding(torch.cat([self.features(batch), t[batch["batch"]].unsqueeze(1)], 1)), batch)

    def strides(self, batch: MoleculeBatch, t: Tensor) -> Tensor | None:
        """How far each atom goes, (M, 1), where that is not 1."""
        return None if self.stride is None else self.stride(t)[batch["batch"]].unsqueeze(1)

    def heads(self, batch: MoleculeBatch, stride: Tensor | None, h: Tensor, moved: Tensor) -> dict[str, Tensor]:
        """Predictions from the final node state (M, H) and the way (M, 3) that the atoms have gone, in strides."""
        nodes = self.node_out(h).split(list(self.outputs.values()), 1)
        pos = moved if stride is None else batch["pos"] + stride * moved
        return {"pos": batch.rows("pos").center(pos), **dict(zip(self.outputs, nodes, strict=True))}

    def bound(self, s: Tensor) -> Tensor:
        """s_ij as the positions use it."""
        return RANGE * s.tanh() if self.bounded else s

    def prepare(self, batch: MoleculeBatch) -> None:
        """Build the pair layout of this batch; the probe of the products, once in a process, runs here too."""
        plan_of(self.hidden, batch)
        use_onednn(self.node_out.weight)

    def forward(self, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
        """The fast form; see `plain`."""
        stride = self.strides(batch, t)
        return self.heads(batch, stride, *run_layers(self, batch, self.embed(batch, t), stride))

    def plain(self, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
        """The same function on edge lists: slow, and the oracle of the fast form."""
        i, j = complete_edges(batch)
        i, j = i[i != j], j[i != j]
        h, pos = self.embed(batch, t), batch["pos"]
        moved = torch.zeros_like(pos)
        stride = self.strides(batch, t)
        at_input = as_features((pos[i] - pos[j]).square().sum(1, keepdim=True), self.sharpness)
        for layer in self.layers:
            x = pos + (moved if stride is None else stride * moved)
            square, unit = unit_differences(x[i] - x[j])
            distances = torch.cat([as_features(square, self.sharpness), at_input], 1)
            message = layer.edge_mlp(torch.cat([h[i], h[j], distances], 1))
            if layer.gate is not None:
                message = layer.gate(message).sigmoid() * message
            total = torch.zeros_like(h).index_add(0, i, message) / self.normalization
            h = h + layer.node_mlp(torch.cat([h, total], 1))
            if layer.coord_mlp is not None:
                s = self.bound(layer.coord_mlp(torch.cat([h[i], h[j], distances], 1)))
                moved = moved.index_add(0, i, s * unit / self.normalization)
        return self.heads(batch, stride, h, moved)
