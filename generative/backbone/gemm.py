"""Which library multiplies float32 matrices on this CPU, decided by a probe and never by the name of the vendor.

On some CPUs torch's default product (MKL) runs at half the speed of oneDNN's in the same torch, on others at the same.
oneDNN is used where the probe finds it clearly faster and as exact as float32 is. `set_float32_matmul_precision` is
not touched: "medium" reaches oneDNN too, but where the CPU has AMX it multiplies in bfloat16.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from chem.packing import default_cache

PAYS = 1.4  # far from 1, so that noise in the timing does not change the library, and the last digits, between runs
EXACT = 1e-5
ROWS, WIDTH = 512, 512  # of the probe's product
_forced: list[bool] = []


@dataclass(frozen=True)
class GemmProbe:
    """GFLOP/s of torch's default float32 product and of oneDNN's, and their relative errors against float64.

    onednn_rate is 0 and onednn_error infinite where this torch has no oneDNN product.
    """

    default_rate: float
    onednn_rate: float
    default_error: float
    onednn_error: float

    @property
    def onednn_pays(self) -> bool:
        """oneDNN is at least 1.4 times as fast, and exact to 1e-5 of the largest entry."""
        return self.onednn_rate > PAYS * self.default_rate and self.onednn_error < EXACT


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, after: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")


def available() -> bool:
    """Whether this torch has oneDNN's fused linear product; it is private, so it may vanish."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def probe(dtype: torch.dtype = torch.float32) -> GemmProbe:
    """Measure both products, once in a process, at the current number of threads; takes about 0.1 s.

    Raises ValueError for another dtype than float32, for which there is nothing to choose.
    """
    if dtype != torch.float32:
        raise ValueError(f"dtype = {dtype}, allowed: torch.float32")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(n, WIDTH, generator=generator) for n in (ROWS, WIDTH))
        calls: dict[str, Callable[[], Tensor]] = {"default": lambda: F.linear(x, weight)}
        if available():
            calls["onednn"] = lambda: _onednn(x, weight, None, "none")
        exact = F.linear(x.double(), weight.double())
        errors = {k: float((call().double() - exact).abs().max() / exact.abs().max()) for k, call in calls.items()}
        seconds = {k: min(times) for k, times in _interleaved(calls, 16).items()}
    work = 2e-9 * ROWS * WIDTH * WIDTH
    rates = {k: work / s for k, s in seconds.items()}
    return GemmProbe(rates["default"], rates.get("onednn", 0.0), errors["default"], errors.get("onednn", float("inf")))


def _interleaved(calls: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


@contextmanager
def forced(onednn: bool) -> Iterator[None]:
    """Inside, oneDNN is used wherever it can be, or nowhere, whatever the probe says."""
    _forced.append(onednn)
    try:
        yield
    finally:
        _forced.pop()


def use_onednn(x: Tensor) -> bool:
    """Whether products of x go through oneDNN: not empty, float32, on a CPU, where it is there and pays."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0 or not available():
        return False
    return _forced[-1] if _forced else _pays_here()


@cache
def _pays_here() -> bool:
    """The probe's verdict for this CPU and torch, kept in the cache directory.

    Kept, so that two processes never choose differently: a choice changes the last digits. Where the directory cannot
    be written each process probes for itself.
    """
    place = default_cache() / "gemm.json"
    machine = f"{_cpu()} / torch {torch.__version__}"
    try:
        known = json.loads(place.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known.get(machine), bool):
        known[machine] = probe().onednn_pays
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(known, indent=2) + "\n")
            os.replace(part, place)
    return known[machine]


def _cpu() -> str:
    """Name of the CPU, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x W^T + b for x (rows, inputs); through oneDNN where it pays, then without a second derivative.

    out: where the result may be written when nothing needs a gradient; it is used or ignored.
    """
    if use_onednn(x):
        return _Linear.apply(x, weight, bias) if _records(x, weight, bias) else _onednn(x, weight, bias, "none")
    if out is None or _records(x, weight, bias):
        return F.linear(x, weight, bias)
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def linear_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """silu(x W^T + b), as one oneDNN kernel where that pays and nothing needs a gradient; out: see `linear`."""
    if _records(x, weight, bias):
        return F.silu(linear(x, weight, bias))
    if use_onednn(x):
        return _onednn(x, weight, bias, "swish")
    return F.silu(linear(x, weight, bias, out), inplace=True)


def _records(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _Linear(torch.autograd.Function):
    """x W^T + b whose two backward products go through oneDNN as well."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _onednn(x, weight, bias, "none")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = _onednn(gradient, weight.t().contiguous(), None, "none")
        if ctx.needs_input_grad[1]:
            to_weight = _onednn(gradient.t().contiguous(), x.t().contiguous(), None, "none")
        if ctx.biased and ctx.needs_input_grad[2]:
            to_bias = gradient.sum(0)
        return to_x, to_weight, to_bias
