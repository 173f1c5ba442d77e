"""CSPNet: message passing on the complete graph of a unit cell (DiffCSP, Jiao et al. 2023).

Periodicity enters through Fourier features of fractional differences, rotation through the Gram matrix L L^T, so the
network is invariant to both and to permutations. `forward` is the fast form (fast.py); `plain` is the edge list that
reads like the paper and is the oracle of the tests. Parameter names and shapes are those of the published model.

One layer, for every ordered pair (i, j) of a cell, i = j included, with u = LayerNorm(h):

    m_ij = phi_e([u_i, u_j, vec(L L^T), sin 2 pi k (f_j - f_i), cos 2 pi k (f_j - f_i)]),   k = 0..K-1
    h_i <- h_i + phi_h([u_i, mean_j m_ij])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from chem.periodic import wrap
from chem.ragged import Rows
from generative.generator import Network

ELEMENTS = 100


class SinusoidalSteps(nn.Module):
    """Embedding (B, dim) of the integer step T (1 - t): sines then cosines at frequencies 1 .. 1e-4."""

    frequency: Tensor

    def __init__(self, dim: int = 256, steps: int = 1000):
        super().__init__()
        self.dim, self.steps = dim, steps

    def forward(self, t: Tensor) -> Tensor:
        # not a buffer: .float() would round it, and at step 1000 the phase with it
        exact = torch.float32 if t.device.type == "mps" else torch.float64
        place = torch.arange(self.dim // 2, dtype=exact, device=t.device) / (self.dim // 2 - 1)
        frequency = torch.exp(-math.log(1e4) * place)
        angle = ((1 - t) * self.steps).round().to(exact).unsqueeze(1) * frequency
        return torch.cat([angle.sin(), angle.cos()], 1).to(t.dtype)


class CSPLayer(nn.Module):
    """Parameters of one layer; the arithmetic is in `CSPNet.plain` and in fast.py."""

    def __init__(self, hidden: int, frequencies: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(hidden)
        self.edge_mlp = nn.Sequential(
            nn.Linear(2 * hidden + 9 + 6 * frequencies, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.node_mlp = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )


class CSPNet(Network):
    """Predictions for `frac_coords` (M, 3) and `lattice` (B, 3, 3) and, where `types` is set, for `types` (M, 100).

    Inputs: `frac_coords`, `lattice` and `atomic_numbers` in 1..100, or `types` (M, 100) instead of the latter.
    time_embedding: module from t (B,) to (B, time_dim). products: dtype of the matrix products of the fast form
    (None: that of the weights; torch.bfloat16: relative error about 2e-4, state, norms, means and heads stay exact).
    compile_kernels: use the compiled kernel of compiled.py where nothing needs a gradient.
    """

    compile_kernels: bool = False

    def __init__(
        self, hidden: int, layers: int, frequencies: int, time_embedding: nn.Module, time_dim: int, types: bool = False
    ):
        super().__init__()
        self.hidden, self.layers, self.frequencies, self.types = hidden, layers, frequencies, types
        self.time_embedding = time_embedding
        self.node_embedding = nn.Linear(ELEMENTS, hidden) if types else nn.Embedding(ELEMENTS, hidden)
        self.atom_latent_emb = nn.Linear(hidden + time_dim, hidden)
        for i in range(layers):
            self.add_module(f"csp_layer_{i}", CSPLayer(hidden, frequencies))
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.coord_out = nn.Linear(hidden, 3, bias=False)
        self.lattice_out = nn.Linear(hidden, 9, bias=False)
        if types:
            self.type_out = nn.Linear(hidden, ELEMENTS)

    @property
    def csp_layers(self) -> list[CSPLayer]:
        """The layers, in order."""
        return [self.get_submodule(f"csp_layer_{i}") for i in range(self.layers)]  # type: ignore[misc]

    def embed(self, batch: CrystalBatch, t: Tensor) -> Tensor:
        """Initial node state (M, H)."""
        given = batch["types"] if self.types else batch["atomic_numbers"] - 1
        time = self.time_embedding(t)[batch["batch"]]
        return self.atom_latent_emb(torch.cat([self.node_embedding(given), time], 1))

    def heads(self, h: Tensor, lattice: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Predictions from the final node state (M, H); the lattice head multiplies the lattice: it rotates with it."""
        h = self.final_layer_norm(h)
        matrix = self.lattice_out(rows.mean(h)).reshape(-1, 3, 3)
        out = {"frac_coords": self.coord_out(h), "lattice": matrix @ lattice}
        if self.types:
            out["types"] = self.type_out(h)
        return out

    def prepare(self, batch: CrystalBatch) -> None:
        """Build the pair layout of this batch; the probe of the products, once in a process, runs here too."""
        from generative.backbone.fast import plan_of
        from generative.backbone.gemm import use_onednn

        plan_of(self, batch)
        use_onednn(self.coord_out.weight)

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """The fast form; see `plain`."""
        from generative.backbone.fast import run_layers

        h = run_layers(self, batch, self.embed(batch, t))
        return self.heads(h, batch["lattice"], batch.rows("frac_coords"))

    def plain(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """The same function on edge lists: slow, and the oracle of the fast form."""
        h, lattice = self.embed(batch, t), batch["lattice"]
        receiver, sender = complete_edges(batch)
        delta = wrap(batch["frac_coords"][sender] - batch["frac_coords"][receiver])
        angle = 2 * math.pi * (delta.unsqueeze(-1) * torch.arange(self.frequencies, device=h.device)).flatten(1)
        fourier = torch.cat([angle.sin(), angle.cos()], 1)
        gram = (lattice @ lattice.transpose(1, 2)).flatten(1)[batch["batch"][receiver]]
        count = batch["num_atoms"][batch["batch"]].unsqueeze(1)
        for layer in self.csp_layers:
            u = layer.layer_norm(h)
            message = layer.edge_mlp(torch.cat([u[receiver], u[sender], gram, fourier], 1))
            mean = torch.zeros_like(h).index_add(0, receiver, message) / count
            h = h + layer.node_mlp(torch.cat([u, mean], 1))
        return self.heads(h, lattice, batch.rows("frac_coords"))


def complete_edges(batch: CrystalBatch) -> tuple[Tensor, Tensor]:
    """Receivers and senders (E,) of every ordered pair of each structure, self-pairs included, receiver-major."""
    counts = batch["num_atoms"][batch["batch"]]
    receiver = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    start = batch["ptr"][batch["batch"]]
    first = torch.cumsum(counts, 0) - counts
    sender = torch.arange(len(receiver), device=counts.device) - first[receiver] + start[receiver]
    return receiver, sender
