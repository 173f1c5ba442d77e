"""FlowMM's network, fast against plain, on the sizes of benchmarks/cspnet.py.

Predicted before measuring, where both float32 libraries run at one rate: the first edge product shrinks from 2,313
inputs for every ordered pair to 771 for every unordered one, so all products are 3.1 x fewer; with the overheads of
CSPNet's two forms, forward 3.1 * 1.5 / 1.25 = 3.8 x, training step 3.2 x. That left out the second edge product, which
both forms make: with it they differ by 2.55 x (V 2611, E 33665: 91.7 against 35.9 million rows of 512 products a
layer). A replay of both shows what is possible: 2.55 x times what the plain form loses to everything else, if the fast
one lost nothing. Its replay is CSPNet's, whose first products are 0.5 % smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cspnet import FEATURES, HIDDEN, Row, published_replay, restructured_replay
from benchmarks.sizes import describe, mp20_like
from benchmarks.timing import interleave, ratio
from chem import datasets
from chem.crystals import CrystalBatch
from chem.statistics import Statistics
from generative.backbone.flownet import CELL, FlowMMNet
from generative.models.flowmm import FlowMMConfig, build


def network() -> FlowMMNet:
    """The published sizes with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(FlowMMConfig(), Statistics.compute(datasets.load("prototypes", "train").batch))
    assert isinstance(model.network, FlowMMNet)
    return model.network


def inputs(crystals: int) -> tuple[CrystalBatch, Tensor]:
    """Crystals with random cells, and times."""
    g = torch.Generator().manual_seed(1)
    cell = torch.randn(crystals, 6, generator=g) + torch.tensor([5.0, 6.0, 7.0, 0.0, 0.0, 0.0])
    return mp20_like(crystals).replace(cell=cell), torch.rand(crystals, generator=g)


def run(crystals: int = 256, trained: int = 64, repeats: int = 5) -> list[Row]:
    """Inference on 256 crystals and a training step on 64, one thread, exact float32."""
    net = network()
    batch, t = inputs(crystals)
    with torch.no_grad():
        calls = {
            "plain": lambda: net.plain(batch, t),
            "plain products": published_replay(batch, CELL + HIDDEN + FEATURES + 3, self_pairs=False),
            "fast": lambda: net(batch, t),
            "fast products": restructured_replay(net, batch),
        }
        forward = interleave(calls, repeats)
        plain, fast = net.plain(batch, t), net(batch, t)
    error = max(float((fast[k] - x).abs().max() / x.abs().max()) for k, x in plain.items())
    part, times = inputs(trained)

    def step(form: str) -> list[Tensor]:
        out = net.plain(part, times) if form == "plain" else net(part, times)
        loss = torch.stack([x.square().mean() for x in out.values()]).sum()
        return list(torch.autograd.grad(loss, list(net.parameters())))

    training = interleave({"plain": lambda: step("plain"), "fast": lambda: step("fast")}, repeats)
    return [
        ("FlowMM, batch", describe(batch), ""),
        ("FlowMM forward, fast over plain", f"{ratio(forward, 'plain', 'fast'):.2f} x", ">= 4"),
        ("FlowMM plain / its products", f"{ratio(forward, 'plain', 'plain products'):.2f}", "<= 1.8"),
        ("FlowMM fast / its products", f"{ratio(forward, 'fast', 'fast products'):.2f}", "<= 1.4"),
        ("FlowMM products, plain / fast", f"{ratio(forward, 'plain products', 'fast products'):.2f} x", ""),
        ("FlowMM training step, fast over plain", f"{ratio(training, 'plain', 'fast'):.2f} x", ""),
        *((f"FlowMM forward, CPU s, {k}", f"{min(v):.2f}", "") for k, v in forward.items()),
        *((f"FlowMM training step, CPU s, {k}", f"{min(v):.2f}", "") for k, v in training.items()),
        ("FlowMM, outputs, fast - plain", f"{error:.1e}", "<= 5e-6"),
    ]
