"""The CUDA path: equal to the CPU's, and nothing waits for the host inside the loop. `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from chem import datasets
from chem.statistics import Statistics
from generative.models.diffcsp import DiffCSPConfig, build
from generative.noise import UnitStreams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False"),
]
KEEP = ("atomic_numbers", "frac_coords", "lattice")


@pytest.fixture(scope="module")
def crystals():
    batch = datasets.load("prototypes", "train").batch[:64]
    return batch.without(*[name for name in batch.fields if name not in KEEP])


@pytest.fixture(scope="module", params=["csp", "ab-initio"])
def model(request, crystals):
    config = DiffCSPConfig(task=request.param, hidden=64, layers=3, frequencies=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config, Statistics.compute(crystals))


def test_network_equals_the_cpu(model, crystals):
    batch, t = model.encode(crystals), torch.linspace(0, 0.99, len(crystals), dtype=torch.float64)
    double = model.network.double()
    expected = double.plain(batch.to(torch.float64), t)
    found = double.cuda()(batch.to(torch.float64).to("cuda"), t.cuda())
    double.cpu().float()
    for field, value in expected.items():
        assert (found[field].cpu() - value).abs().max() <= 1e-10 * value.abs().max()


def test_no_synchronisation_inside_the_loop(model, crystals):
    template = crystals.without("frac_coords", "lattice").to("cuda")
    cuda = model.to("cuda")
    counts = crystals["num_atoms"].tolist()
    states = cuda.trajectory(template, 10, UnitStreams(0, 0, len(counts), counts, "cuda"))
    next(states)
    torch.cuda.set_sync_debug_mode("error")
    try:
        last = None
        for last in states:  # noqa: B007
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()
    assert last is not None and torch.isfinite(last["frac_coords"]).all()
