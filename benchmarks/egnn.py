"""EGNN, fast against the plain padded form, and both against replays of their products alone.

Predicted before measuring, for 64 molecules with the sizes of QM9: padding to the largest molecule makes 2.4 x the
pairs, and the concatenated first layers 3 x the products of a pair. The node products are 0.2 of what is left, and the
passes over E x H (two sums, two SiLU, one readout for each product) cost another 0.35 of it where float32 products run
at 170 GFLOP/s, so forward 2.4 * 3 / 1.2 * 1.3 (what the padded form loses to concatenation) / 1.35 = 5.8 x; a training
step 5 x, since half of its passes are made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.cspnet import products
from benchmarks.sizes import describe, qm9_like
from benchmarks.timing import interleave, ratio
from chem.molecules import MoleculeBatch
from generative.backbone.egnn import EGNN
from generative.backbone.egnn_fast import plan_of, unit_differences
from generative.backbone.gemm import linear

Row = tuple[str, str, str]
Run = Callable[[MoleculeBatch, Tensor], dict[str, Tensor]]
HIDDEN, LAYERS, BASIS, MOLECULES = 256, 9, 16, 64


class GaussianBasis(nn.Module):
    """16 Gaussians of the one number of an atom, as the inputs of a published network have them."""

    def forward(self, batch: MoleculeBatch) -> Tensor:
        centers = torch.linspace(-2, 2, BASIS, dtype=batch["types"].dtype)
        basis = (-((batch["types"] - centers) * BASIS / 4).square() / 2).exp()
        return 2 * basis / basis.sum(1, keepdim=True) - 1


def network() -> EGNN:
    """The published sizes with random weights; what moves the atoms is not as small as at the start of a training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = EGNN(HIDDEN, LAYERS, GaussianBasis(), BASIS, {"types": 2})
        for layer in net.layers:
            nn.init.xavier_uniform_(layer.coord_mlp[4].get_parameter("weight"), gain=0.1)
    return net


def padded(net: EGNN, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
    """The same function as published codes arrange it: (B, N, N) pairs, N the largest molecule, and masks."""
    sizes = batch["num_atoms"]
    atom = torch.arange(int(sizes.max())) < sizes.unsqueeze(1)

    def dense(x: Tensor) -> Tensor:
        return x.new_zeros(*atom.shape, x.shape[1]).masked_scatter(atom.unsqueeze(2), x)

    node_mask = atom.unsqueeze(2).to(batch["pos"].dtype)
    pair_mask = (atom.unsqueeze(1) & atom.unsqueeze(2) & ~torch.eye(atom.shape[1], dtype=torch.bool)).unsqueeze(3)
    edge_mask, h, start = pair_mask.to(node_mask.dtype), dense(net.embed(batch, t)), dense(batch["pos"])

    def pairs(h: Tensor, *rest: Tensor) -> Tensor:
        shape = (len(h), h.shape[1], h.shape[1], h.shape[2])
        return torch.cat([h.unsqueeze(2).expand(shape), h.unsqueeze(1).expand(shape), *rest], 3)

    x, at_input = start, (start.unsqueeze(2) - start.unsqueeze(1)).square().sum(3, keepdim=True)
    for layer in net.layers:
        square, unit = unit_differences(x.unsqueeze(2) - x.unsqueeze(1))
        message = layer.edge_mlp(pairs(h, square, at_input)) * edge_mask
        h = (h + layer.node_mlp(torch.cat([h, message.sum(2)], 2))) * node_mask
        s = layer.coord_mlp(pairs(h, square, at_input)) * edge_mask
        x = (x + (s * unit).sum(2)) * node_mask
    return net.heads(batch, None, h[atom], (x - start)[atom])


def padded_replay(batch: MoleculeBatch) -> Callable[[], None]:
    """The products of the padded form at torch's default precision, written into one output."""
    h, atoms = HIDDEN, len(batch) * int(batch["num_atoms"].max())
    edges = atoms * int(batch["num_atoms"].max())
    shapes = [(edges, 2 * h + 2), (edges, h), (atoms, 2 * h), (atoms, h), (edges, 2 * h + 2), (edges, h)]
    inputs = {shape: torch.randn(shape) for shape in shapes}
    weights = {k: torch.randn(h, k).t() for _, k in shapes}
    out = torch.empty(edges, h)

    def run() -> None:
        for _ in range(LAYERS):
            for shape in shapes:
                torch.mm(inputs[shape], weights[shape[1]], out=out[: shape[0]])

    return run


def restructured_replay(net: EGNN, batch: MoleculeBatch, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """The products of the fast form, chunk by chunk, in the library it uses."""
    h, atoms = HIDDEN, len(batch["batch"])
    shapes = [(atoms, h, 2 * h), (atoms, 2 * h, h), (atoms, h, h), (atoms, h, 2 * h)]
    shapes += 2 * [(c.count * c.n * c.n, h, h) for c in plan_of(net.hidden, batch).chunks]
    weights = {shape[1:]: torch.randn(shape[2], shape[1]).to(dtype) for shape in shapes}
    inputs = {shape[:2]: torch.randn(shape[0], shape[1]).to(dtype) for shape in shapes}
    outputs = {(m, n): torch.empty(m, n, dtype=dtype) for m, _, n in shapes}

    def run() -> None:
        with torch.no_grad():
            for _ in range(LAYERS):
                for m, k, n in shapes:
                    linear(inputs[m, k], weights[k, n], out=outputs[m, n])

    return run


def problem(seed: int) -> tuple[EGNN, MoleculeBatch, Tensor]:
    """The network, 64 molecules and their times."""
    return network(), qm9_like(MOLECULES, seed), torch.rand(MOLECULES, generator=torch.Generator().manual_seed(seed))


def difference(found: Iterable[Tensor], exact: Iterable[Tensor]) -> str:
    """Largest difference of any tensor of the two over its largest entry."""
    pairs = zip(found, exact, strict=True)
    return f"{max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs):.1e}"


@torch.no_grad()
def forward(repeats: int = 3) -> list[Row]:
    """Inference on 64 molecules, one thread."""
    net, batch, t = problem(1)

    def bf16() -> dict[str, Tensor]:
        with products(net, torch.bfloat16):
            return net(batch, t)

    runs: dict[str, Callable[[], dict[str, Tensor]]] = {
        "padded": lambda: padded(net, batch, t),
        "plain": lambda: net.plain(batch, t),
        "fast": lambda: net(batch, t),
        "bf16": bf16,
    }
    replays = {
        "padded products": padded_replay(batch),
        "restructured products": restructured_replay(net, batch),
        "bf16 products": restructured_replay(net, batch, torch.bfloat16),
    }
    times = interleave({**runs, **replays}, repeats)
    exact = net.double().plain(batch.to(torch.float64), t.double())
    net.float()
    return [
        ("EGNN, batch", f"{describe(batch)}, padded to {MOLECULES * int(batch['num_atoms'].max()) ** 2}", ""),
        ("EGNN forward, fast over padded", f"{ratio(times, 'padded', 'fast'):.2f} x", ">= 5"),
        ("EGNN forward, fast over plain edge list", f"{ratio(times, 'plain', 'fast'):.2f} x", ""),
        ("EGNN forward, bf16 products over padded", f"{ratio(times, 'padded', 'bf16'):.2f} x", ""),
        ("EGNN padded / its products", f"{ratio(times, 'padded', 'padded products'):.2f}", ""),
        ("EGNN fast / its products", f"{ratio(times, 'fast', 'restructured products'):.2f}", ""),
        ("EGNN bf16 / its products", f"{ratio(times, 'bf16', 'bf16 products'):.2f}", ""),
        *((f"EGNN forward, CPU s, {k}", f"{min(v):.2f}", "") for k, v in times.items()),
        *((f"EGNN forward, error, {k}", difference(run().values(), exact.values()), "") for k, run in runs.items()),
    ]


def training(repeats: int = 3) -> list[Row]:
    """Forward and backward to all parameters on 64 molecules, one thread."""
    net, batch, t = problem(1)

    def step(run: Run) -> list[Tensor]:
        loss = torch.stack([x.square().mean() for x in run(batch, t).values()]).sum()
        return list(torch.autograd.grad(loss, list(net.parameters())))

    def bf16() -> list[Tensor]:
        with products(net, torch.bfloat16):
            return step(net)

    opponent = partial(padded, net)
    times = interleave({"padded": lambda: step(opponent), "fast": lambda: step(net), "bf16": bf16}, repeats)
    return [
        ("EGNN training step, fast over padded", f"{ratio(times, 'padded', 'fast'):.2f} x", ">= 3"),
        ("EGNN training step, bf16 products over padded", f"{ratio(times, 'padded', 'bf16'):.2f} x", ""),
        *((f"EGNN training step, CPU s, {k}", f"{min(v):.2f}", "") for k, v in times.items()),
        ("EGNN training step, gradients, fast - padded", difference(step(net), step(opponent)), "<= 2e-5"),
    ]


def run() -> list[Row]:
    """Forward and training step."""
    return forward() + training()
