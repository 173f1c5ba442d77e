"""CSPNet, fast against plain, and both against GEMM replays: only their matrix products, on inputs made before.

Predicted before measuring, on a CPU whose two float32 libraries run at one rate: the restructured products are 2.27 x
fewer, the plain form loses 1.5 x and the fast one 1.25 x to everything else, so forward 2.27 * 1.5 / 1.25 = 2.7 x;
bf16 (AMX) doubles that; training step 2.4 x, since backward passes over edges are written out by autograd.
Where oneDNN is 2.2 x faster than the default: 5.5 x and 3.7 x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.sizes import describe, mp20_like
from benchmarks.timing import interleave, ratio
from chem.crystals import CrystalBatch
from generative.backbone.cspnet import CSPNet, SinusoidalSteps
from generative.backbone.fast import plan_of
from generative.backbone.flownet import FlowMMNet
from generative.backbone.gemm import linear
from generative.generator import Network

Row = tuple[str, str, str]
HIDDEN, LAYERS, FREQUENCIES = 512, 6, 128
FEATURES = 6 * FREQUENCIES


def network() -> CSPNet:
    """The published sizes with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CSPNet(HIDDEN, LAYERS, FREQUENCIES, SinusoidalSteps(256), 256)


@contextmanager
def products(net: Network, dtype: torch.dtype | None) -> Iterator[None]:
    """The network with its products in another dtype."""
    before, net.products = net.products, dtype
    try:
        yield
    finally:
        net.products = before


def published_replay(batch: CrystalBatch, features: int = 9 + FEATURES, self_pairs: bool = True) -> Callable[[], None]:
    """The products of the edge-list form at torch's default precision, written into one output.

    features: inputs of an edge besides its two atoms.
    """
    h, atoms = HIDDEN, len(batch["batch"])
    edges = int(batch["num_atoms"].square().sum()) - (0 if self_pairs else atoms)
    shapes = [(edges, 2 * h + features), (edges, h), (atoms, 2 * h), (atoms, h)]
    inputs = [(torch.randn(rows, k), torch.randn(h, k).t()) for rows, k in shapes]
    out = torch.empty(edges, h)

    def run() -> None:
        for _ in range(LAYERS):
            for x, w in inputs:
                torch.mm(x, w, out=out[: len(x)])

    return run


def restructured_replay(
    net: CSPNet | FlowMMNet, batch: CrystalBatch, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """The products of the fast form, chunk by chunk, in the library it uses."""
    h, atoms, waves = HIDDEN, len(batch["batch"]), FEATURES // 2 - 3
    shapes = [(atoms, h, 2 * h), (atoms, 2 * h, h), (atoms, h, h), (len(batch), 9, h)]
    for c in plan_of(net, batch).chunks:
        edges, pairs = c.count * c.n * c.n, c.count * c.n * (c.n - 1) // 2
        first = [(edges, 2 * waves, h)] if dtype == torch.bfloat16 else 2 * [(pairs, waves, h)]
        shapes += [*first, (edges, h, h)]
    weights = {shape[1:]: torch.randn(shape[2], shape[1]).to(dtype) for shape in shapes}
    inputs = {shape[:2]: torch.randn(shape[0], shape[1]).to(dtype) for shape in shapes}
    outputs = {(m, n): torch.empty(m, n, dtype=dtype) for m, _, n in shapes}
    calls: list[tuple[Tensor, Tensor, Tensor]] = [(inputs[m, k], weights[k, n], outputs[m, n]) for m, k, n in shapes]

    def run() -> None:
        with torch.no_grad():
            for _ in range(LAYERS):
                for x, w, out in calls:
                    linear(x, w, out=out)

    return run


def relative_error(net: CSPNet, batch: CrystalBatch, t: Tensor, call: Callable[[], dict[str, Tensor]]) -> float:
    """Largest error of a prediction against the plain form in float64, over its largest entry."""
    got = call()
    exact = net.double().plain(batch.to(torch.float64), t.double())
    net.float()
    return max(float((got[k] - exact[k]).abs().max() / exact[k].abs().max()) for k in exact)


@torch.no_grad()
def forward(crystals: int = 256, repeats: int = 5) -> list[Row]:
    """Inference on 256 crystals, one thread."""
    net, batch = network(), mp20_like(crystals)
    t = torch.randint(0, 1000, (crystals,), generator=torch.Generator().manual_seed(1)) / 1000

    def bf16() -> dict[str, Tensor]:
        with products(net, torch.bfloat16):
            return net(batch, t)

    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: net.plain(batch, t),
        "fast": lambda: net(batch, t),
        "bf16": bf16,
        "published products": published_replay(batch),
        "restructured products": restructured_replay(net, batch),
        "bf16 products": restructured_replay(net, batch, torch.bfloat16),
    }
    times = interleave(calls, repeats)
    small = mp20_like(24, seed=3)  # float64 of the whole batch would take longer than all the timings
    errors = [
        relative_error(net, small, t[:24], lambda: net.plain(small, t[:24])),
        relative_error(net, small, t[:24], lambda: net(small, t[:24])),
    ]
    with products(net, torch.bfloat16):
        low = net(small, t[:24])
    errors.append(relative_error(net, small, t[:24], lambda: low))
    return [
        ("forward, batch", describe(batch), ""),
        ("forward, fast over plain", f"{ratio(times, 'plain', 'fast'):.2f} x", ">= 2.2; 5 where oneDNN pays"),
        ("forward, bf16 products over plain", f"{ratio(times, 'plain', 'bf16'):.2f} x", ""),
        ("plain / its products", f"{ratio(times, 'plain', 'published products'):.2f}", "<= 1.8"),
        ("fast / its products", f"{ratio(times, 'fast', 'restructured products'):.2f}", "<= 1.4"),
        ("bf16 / its products", f"{ratio(times, 'bf16', 'bf16 products'):.2f}", ""),
        *((f"forward, CPU s, {k}", f"{min(v):.2f}", "") for k, v in times.items()),
        *((f"forward, error, {k}", f"{e:.1e}", "") for k, e in zip(("plain", "fast", "bf16"), errors, strict=True)),
    ]


def training(crystals: int = 64, repeats: int = 5) -> list[Row]:
    """Forward and backward to all parameters on 64 crystals, one thread."""
    net, batch = network(), mp20_like(crystals, seed=1)
    t = torch.randint(0, 1000, (crystals,), generator=torch.Generator().manual_seed(1)) / 1000

    def step(run: Callable[[CrystalBatch, Tensor], dict[str, Tensor]]) -> list[Tensor]:
        loss = torch.stack([x.square().mean() for x in run(batch, t).values()]).sum()
        return list(torch.autograd.grad(loss, list(net.parameters())))

    def bf16() -> list[Tensor]:
        with products(net, torch.bfloat16):
            return step(net)

    calls = {"plain": lambda: step(net.plain), "fast": lambda: step(net), "bf16": bf16}
    times = interleave(calls, repeats)
    plain, fast = step(net.plain), step(net)
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(plain, fast, strict=True))
    return [
        ("training step, batch", describe(batch), ""),
        ("training step, fast over plain", f"{ratio(times, 'plain', 'fast'):.2f} x", ">= 2.2; 3.5 where oneDNN pays"),
        ("training step, bf16 products over plain", f"{ratio(times, 'plain', 'bf16'):.2f} x", ""),
        *((f"training step, CPU s, {k}", f"{min(v):.2f}", "") for k, v in times.items()),
        ("training step, gradients, fast - plain", f"{error:.1e}", "<= 5e-6"),
    ]


def run() -> list[Row]:
    """Forward and training step."""
    return forward() + training()
