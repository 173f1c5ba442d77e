"""The choice of the matrix product: the probe, and both libraries against float64."""

import pytest
import torch
import torch.nn.functional as F

from generative.backbone import gemm
from tests.generative.symmetry import crystals, relative, times
from tests.generative.test_cspnet import network, with_gradients

needs_onednn = pytest.mark.skipif(not gemm.available(), reason="this torch has no oneDNN linear product")
CHOICES = [False, pytest.param(True, marks=needs_onednn)]


def inputs(requires_grad: bool = False) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g).requires_grad_(requires_grad) for s in ((70, 96), (48, 96), (48,))]


def test_probe_is_exact_and_measured_once():
    found = gemm.probe()
    assert found.default_rate > 0 and found.default_error < gemm.EXACT
    assert gemm.probe() is found
    if gemm.available():
        assert found.onednn_rate > 0


def test_probe_refuses_other_dtypes():
    with pytest.raises(ValueError, match="dtype = torch.bfloat16, allowed: torch.float32"):
        gemm.probe(torch.bfloat16)


@pytest.mark.parametrize(
    ("onednn_rate", "onednn_error", "pays"), [(200, 1e-6, True), (120, 1e-6, False), (200, 1e-2, False), (0, 1, False)]
)
def test_onednn_must_be_clearly_faster_and_exact(onednn_rate, onednn_error, pays):
    assert gemm.GemmProbe(100, onednn_rate, 1e-6, onednn_error).onednn_pays == pays


@pytest.mark.parametrize("onednn", CHOICES)
def test_products_are_exact(onednn):
    x, w, b = inputs()
    exact = F.linear(x.double(), w.double(), b.double())
    out = torch.empty(70, 48)
    with torch.no_grad(), gemm.forced(onednn):
        assert gemm.use_onednn(x) == onednn
        for got in (gemm.linear(x, w, b), gemm.linear(x, w, b, out=out)):
            assert relative(got, exact) < gemm.EXACT
        for got in (gemm.linear_silu(x, w, b), gemm.linear_silu(x, w, b, out=out)):
            assert relative(got, F.silu(exact)) < gemm.EXACT
        assert relative(gemm.linear(x, w), exact - b.double()) < gemm.EXACT


@pytest.mark.parametrize("onednn", CHOICES)
def test_gradients_are_exact(onednn):
    x, w, b = inputs(True)
    exact = torch.autograd.grad(F.silu(F.linear(x.double(), w.double(), b.double())).square().sum(), [x, w, b])
    with gemm.forced(onednn):
        got = torch.autograd.grad(gemm.linear_silu(x, w, b).square().sum(), [x, w, b])
    for a, e in zip(got, exact, strict=True):
        assert relative(a, e) < gemm.EXACT


def test_double_precision_and_bf16_never_go_through_the_choice():
    with gemm.forced(True):
        assert not gemm.use_onednn(torch.zeros(1, dtype=torch.float64))
        assert not gemm.use_onednn(torch.zeros(1, dtype=torch.bfloat16))


@needs_onednn
def test_the_network_is_the_same_through_onednn():
    net, batch = network(True).float(), crystals([5, 1, 20, 2, 0, 7], dtype=torch.float32, types=True)
    t = times(6, dtype=torch.float32)
    plain = with_gradients(net, "plain", batch, t)
    with gemm.forced(True):
        fast = with_gradients(net, "fast", batch, t)
        with torch.no_grad():
            inference = net(batch, t)
    for name, x in plain.items():
        assert relative(fast[name].detach(), x.detach()) < 1e-5, name
    for name, x in inference.items():
        assert relative(x, plain[name].detach()) < 5e-6, name
