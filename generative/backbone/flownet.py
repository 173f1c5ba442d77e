"""FlowMM's network: CSPNet without self-pairs, for a cell of six numbers (Miller et al., ICML 2024).

What differs from CSPNet: the time enters linearly; the features of a structure are its cell, scaled by the moments
along the path, and an embedding of its number of atoms; edges have directions; the head of the cell sees mean and sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from generative.backbone.cspnet import ELEMENTS
from generative.backbone.fast import plan_of, run_layers
from generative.backbone.gemm import use_onednn
from generative.backbone.layers import PairLayer, conditioned, plain_layers
from generative.generator import Network

CELL = 6  # numbers of a cell
Scale = tuple[Tensor, Tensor]


class FlowMMNet(Network):
    """Velocities of `frac_coords` (M, 3), `cell` (B, 6) and, where `bits` is set, of `types` (M, bits).

    to_lattice: the lattice of a cell. cell, velocity: mean and standard deviation of the cell along its path and of its
    velocity. coords: standard deviation of the coordinates' velocity. See CSPNet for `products` and `compile_kernels`.
    """

    compile_kernels: bool = False
    self_pairs: bool = False
    directions: bool = True
    mean: Tensor
    std: Tensor
    velocity_mean: Tensor
    velocity_std: Tensor

    def __init__(
        self,
        hidden: int,
        layers: int,
        frequencies: int,
        time_dim: int,
        bits: int,
        to_lattice: Callable[[Tensor], Tensor],
        cell: Scale,
        velocity: Scale,
        coords: float,
    ):
        super().__init__()
        self.hidden, self.frequencies, self.bits = hidden, frequencies, bits
        self.to_lattice, self.coords = to_lattice, coords
        self.time_embedding = nn.Linear(1, time_dim, bias=False)
        self.node_embedding = nn.Linear(bits, hidden, bias=False) if bits else nn.Embedding(ELEMENTS, hidden)
        self.size_embedding = nn.Embedding(ELEMENTS, hidden)
        self.atom_latent_emb = nn.Linear(hidden + time_dim, hidden, bias=False)
        stack = [PairLayer(hidden, frequencies, CELL + hidden, self.directions) for _ in range(layers)]
        self.pair_layers = nn.ModuleList(stack)
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.coord_out = nn.Linear(hidden, 3, bias=False)
        self.cell_out = nn.Linear(2 * hidden, CELL)
        if bits:
            self.type_out = nn.Linear(hidden, bits)
        # float32 whatever the data were measured in: `.double()` must not find more digits than a checkpoint keeps
        for name, value in (("", cell), ("velocity_", velocity)):
            self.register_buffer(f"{name}mean", value[0].float(), persistent=False)
            self.register_buffer(f"{name}std", value[1].float(), persistent=False)

    @property
    def layers(self) -> list[PairLayer]:
        """The layers, in order."""
        return list(self.pair_layers)  # type: ignore[arg-type]

    def embed(self, batch: CrystalBatch, t: Tensor) -> tuple[CrystalBatch, Tensor, Tensor]:
        """The batch with the lattice of its cell, the initial node state (M, H), features of structures (B, 6 + H)."""
        given = batch["types"] if self.bits else batch["atomic_numbers"] - 1
        time = self.time_embedding(t.unsqueeze(1))[batch["batch"]]
        h = conditioned(self.atom_latent_emb(torch.cat([self.node_embedding(given), time], 1)), batch)
        size = self.size_embedding(batch["num_atoms"].clamp(1, ELEMENTS) - 1)
        structure = torch.cat([(batch["cell"] - self.mean) / self.std, size], 1)
        return batch.replace(lattice=self.to_lattice(batch["cell"])), h, structure

    def heads(self, h: Tensor, batch: CrystalBatch) -> dict[str, Tensor]:
        """Velocities from the final node state (M, H)."""
        h, rows = self.final_layer_norm(h), batch.rows("frac_coords")
        mean = rows.mean(h)
        pooled = torch.cat([mean, mean * batch["num_atoms"].unsqueeze(1)], 1)
        cell = self.cell_out(pooled) * self.velocity_std + self.velocity_mean
        out = {"frac_coords": self.coord_out(h) * self.coords, "cell": cell}
        if self.bits:
            out["types"] = self.type_out(h)
        return out

    def prepare(self, batch: CrystalBatch) -> None:
        """Build the pair layout of this batch; the probe of the products, once in a process, runs here too."""
        plan_of(self, batch)
        use_onednn(self.coord_out.weight)

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """The fast form; see `plain`."""
        batch, h, structure = self.embed(batch, t)
        return self.heads(run_layers(self, batch, h, structure), batch)

    def plain(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        """The same function on edge lists: slow, and the oracle of the fast form."""
        batch, h, structure = self.embed(batch, t)
        return self.heads(plain_layers(self, batch, h, structure), batch)
