"""CSPNet: message passing on the complete graph of a unit cell (DiffCSP, Jiao et al. 2023).

Periodicity enters through Fourier features of fractional differences, rotation through the Gram matrix L L^T, so the
network is invariant to both and to permutations. `forward` is the fast form (fast.py); `plain` is the edge list that
reads like the paper and is the oracle of the tests. Parameter names and shapes are those of the published model.

The layers are those of layers.py, over every ordered pair of a cell, i = j included, with vec(L L^T) as the features
of a structure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from chem.ragged import Rows
from generative.backbone.fast import plan_of, run_layers
from generative.backbone.gemm import use_onednn
from generative.backbone.layers import PairLayer, conditioned, gram, plain_layers
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


class CSPNet(Network):
    """Predictions for `frac_coords` (M, 3) and `lattice` (B, 3, 3) and, where `types` is set, for `types` (M, 100).

    Inputs: `frac_coords`, `lattice` and `atomic_numbers` in 1..100, or `types` (M, 100) instead of the latter.
    time_embedding: module from t (B,) to (B, time_dim). products: dtype of the matrix products of the fast form
    (None: that of the weights; torch.bfloat16: relative error about 2e-4, state, norms, means and heads stay exact).
    compile_kernels: use the compiled kernel of compiled.py where nothing needs a gradient.
    """

    compile_kernels: bool = False
    self_pairs: bool = True
    directions: bool = False

    def __init__(
        self, hidden: int, layers: int, frequencies: int, time_embedding: nn.Module, time_dim: int, types: bool = False
    ):
        super().__init__()
        self.hidden, self.num_layers, self.frequencies, self.types = hidden, layers, frequencies, types
        self.time_embedding = time_embedding
        self.node_embedding = nn.Linear(ELEMENTS, hidden) if types else nn.Embedding(ELEMENTS, hidden)
        self.atom_latent_emb = nn.Linear(hidden + time_dim, hidden)
        for i in range(layers):
            self.add_module(f"csp_layer_{i}", PairLayer(hidden, frequencies))
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.coord_out = nn.Linear(hidden, 3, bias=False)
        self.lattice_out = nn.Linear(hidden, 9, bias=False)
        if types:
            self.type_out = nn.Linear(hidden, ELEMENTS)

    @property
    def layers(self) -> list[PairLayer]:
        """The layers, in order."""
        return [self.get_submodule(f"csp_layer_{i}") for i in range(self.num_layers)]  # type: ignore[misc]

    def embed(self, batch: CrystalBatch, t: Tensor) -> Tensor:
        """Initial node state (M, H)."""
        given = batch["types"] if self.types else batch["atomic_numbers"] - 1
        time = self.time_embedding(t)[batch["batch"]]
        return conditioned(self.atom_latent_emb(torch.cat([self.node_embedding(given), time], 1)), batch)

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
        plan_of(self, batch)
        use_onednn(self.coord_out.weight)

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """The fast form; see `plain`."""
        h = run_layers(self, batch, self.embed(batch, t), gram(batch).flatten(1))
        return self.heads(h, batch["lattice"], batch.rows("frac_coords"))

    def plain(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """The same function on edge lists: slow, and the oracle of the fast form."""
        h = plain_layers(self, batch, self.embed(batch, t), gram(batch).flatten(1))
        return self.heads(h, batch["lattice"], batch.rows("frac_coords"))
