"""FlowMM: the fast form of its network against the plain one, symmetries, representations, sampling."""

import math
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from pymatgen.core import Lattice, Structure
from torch import Tensor

from checkpoints.making import _check_representable
from chem import datasets
from chem.cell_vectors import VECTORS
from chem.convert import from_structures
from chem.crystals import CrystalBatch
from chem.periodic import wrap
from chem.statistics import Statistics
from generative.generator import Denoiser
from generative.likelihood import trace
from generative.models.flowmm import FlowMMConfig, build, cell_base
from generative.processes.bases import path_moments
from generative.processes.flow import COORDS_SCALE, slopes_of
from tests.generative.symmetry import SYMMETRIES, assert_symmetric, crystals, orthogonal, relative

MIXED = [5, 1, 20, 2, 1, 7, 2]
TASKS = ("csp", "ab-initio")
SIZE = dict(hidden=32, layers=2, frequencies=8, time_dim=16)


@cache
def data() -> CrystalBatch:
    return datasets.load("prototypes", "train").batch.to(torch.float64)


def model(task: str = "csp", **options) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(FlowMMConfig(task=task, **{**SIZE, **options}), Statistics.compute(data())).double()


def noisy(task: str, counts: list[int]) -> tuple[CrystalBatch, Tensor]:
    """Random cells, right-handed and reduced or nearly, with the fields the network sees, and times."""
    g = torch.Generator().manual_seed(1)
    cell = torch.randn(len(counts), 6, generator=g, dtype=torch.float64) + torch.tensor([5.0, 6, 7, 0, 0, 0])
    batch = crystals(counts).replace(cell=cell)
    bits = torch.randn(len(batch["batch"]), 7, generator=g, dtype=torch.float64)
    return batch.replace(types=bits), torch.rand(len(counts), generator=g, dtype=torch.float64)


def with_gradients(net, form: str, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
    frac, cell = (batch[f].clone().requires_grad_() for f in ("frac_coords", "cell"))
    changed = batch.replace(frac_coords=frac, cell=cell)
    out = net.plain(changed, t) if form == "plain" else net(changed, t)
    g = torch.Generator().manual_seed(9)
    loss = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype)).sum() for x in out.values())
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, [frac, cell, *parameters])
    return out | dict(zip(["d frac", "d cell", *[f"d {n}" for n in names]], gradients, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("counts", [[1], [2, 2], [20], [64], MIXED], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_fast_is_plain(task, counts, dtype, bound):
    net = model(task).to(dtype).network
    batch, t = noisy(task, counts)
    batch, t = batch.to(dtype), t.to(dtype)
    plain, fast = (with_gradients(net, form, batch, t) for form in ("plain", "fast"))
    for name, x in plain.items():
        # a lone atom has no pairs: what only pairs use has no gradient
        assert float(x.detach().abs().max()) > 0 or max(counts) == 1, name
        assert relative(fast[name].detach(), x.detach()) < bound, name
    with torch.no_grad():
        for name, x in net(batch, t).items():
            assert relative(x, plain[name].detach()) < bound, f"{name}, inference"


def test_bf16_products_are_within_a_percent():
    net = model("ab-initio", hidden=128).network
    batch, t = noisy("ab-initio", MIXED)
    with torch.no_grad():
        exact = net.plain(batch, t)
        net.float().products = torch.bfloat16
        out = net(batch.to(torch.float32), t.float())
    for name, x in exact.items():
        assert 1e-7 < relative(out[name], x) < 2e-2, name


@pytest.mark.parametrize("symmetry", [s for s in SYMMETRIES if "O(3)" not in s])
@pytest.mark.parametrize("task", TASKS)
def test_symmetry(task, symmetry):
    batch, _ = noisy(task, [3, 1, 12, 2, 7])
    assert_symmetric(symmetry, model(task).network, batch)


def test_a_way_of_half_a_cell_has_no_direction():
    """It leads both ways, and special positions make such ways common: both forms must agree on them."""
    net = model().network
    batch, t = noisy("csp", [2, 4])
    frac = torch.tensor([[0, 0, 0], [0.5, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    batch = batch.replace(frac_coords=frac.double())
    plain, fast = net.plain(batch, t), net(batch, t)
    for name, x in plain.items():
        assert relative(fast[name].detach(), x.detach()) < 1e-12, name


@pytest.mark.parametrize("lattice", VECTORS)
def test_cells_do_not_know_their_orientation(lattice):
    chosen = model(lattice=lattice)
    batch = data()[:20]
    turned = batch.replace(lattice=batch["lattice"] @ orthogonal(5, improper=False))
    torch.testing.assert_close(chosen.encode(turned)["cell"], chosen.encode(batch)["cell"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("lattice", VECTORS)
@pytest.mark.parametrize("task", TASKS)
def test_decoding_undoes_encoding(task, lattice):
    chosen = model(task, lattice=lattice)
    back = chosen.decode(chosen.encode(data()[:30]))
    assert torch.equal(back["atomic_numbers"], data()[:30]["atomic_numbers"])
    gram, expected = (b["lattice"] @ b["lattice"].mT for b in (back, data()[:30]))
    torch.testing.assert_close(gram, expected, atol=1e-9, rtol=0)
    assert "cell" not in back.fields and "types" not in back.fields


def test_network_input_and_output_are_scaled_by_the_moments_of_the_path():
    """Measured on noisy data: scaled cells have mean 0 and deviation 1, and so have scaled velocities."""
    chosen = model()
    many = data()[torch.arange(20_000) % len(data())]
    g = torch.Generator().manual_seed(0)
    t = torch.rand(len(many), generator=g, dtype=torch.float64)
    clean = chosen.encode(many)
    x_t, velocity = chosen.processes["cell"].corrupt(clean["cell"], t, clean.rows("cell"), g)
    net = chosen.network
    for values, mean, std in ((x_t, net.mean, net.std), (velocity, net.velocity_mean, net.velocity_std)):
        z = (values - mean) / std
        assert float(z.mean(0).abs().max()) < 0.04 and float((z.std(0) - 1).abs().max()) < 0.04


@pytest.mark.parametrize("options", [{}, {"assign": True}, {"lattice": "log-strain"}, {"lattice": "matrix"}], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_losses_are_finite_and_samples_are_crystals(task, options):
    chosen = model(task, **options)
    parts = chosen.loss(data(), torch.Generator().manual_seed(0))
    assert all(math.isfinite(value) and value > 0 for value in parts.values())
    template = CrystalBatch([3, 1, 4])
    if task == "csp":
        template = template.replace(atomic_numbers=torch.tensor([22, 8, 8, 11, 22, 8, 8, 8]))
    made = chosen.sample(template, 5, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(made["lattice"]).all()) and made["atomic_numbers"].shape == (8,)
    assert bool(((made["frac_coords"] >= 0) & (made["frac_coords"] < 1)).all())


def test_slopes_are_those_asked_for_and_by_default_those_of_the_task():
    assert slopes_of(model("csp").processes) == {"cell": 0, "frac_coords": 10}
    assert slopes_of(model("ab-initio").processes) == {"cell": 0, "frac_coords": 5, "types": 0}
    asked = dict(cell_slope=1.5, coords_slope=0.0, types_slope=2.0)
    assert slopes_of(model("ab-initio", **asked).processes) == {"cell": 1.5, "frac_coords": 0, "types": 2}


def divergence(dtype: torch.dtype, nudge: float) -> float:
    """Of the coordinates' velocities of rock salt, all of whose ways are halves of a cell, moved a little."""
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    chosen = model().to(dtype)
    batch = from_structures([salt]).to(dtype)
    moved = wrap(batch["frac_coords"] + nudge * torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(dtype))
    batch = chosen.encode(batch.replace(frac_coords=moved))
    x = batch["frac_coords"].clone().requires_grad_()
    v = chosen.network(batch.replace(frac_coords=x), torch.full((1,), 0.9, dtype=dtype))["frac_coords"]
    return float(trace(v, x, batch.rows("frac_coords")).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_crystals_have_a_divergence_of_the_size_of_their_neighbours(dtype):
    """A pair half a cell apart has no direction, and no slope of one: 1e6 for each would drown the density."""
    near = abs(divergence(dtype, 1e-3))
    for nudge in (0.0, torch.finfo(dtype).eps):
        assert abs(divergence(dtype, nudge)) < 10 * near + 1


LOG_LENGTHS = {  # of the sheet, measured on the same data but for what was left out since
    "mp20": ((1.5754, 1.7017, 1.9782), (0.2444, 0.2653, 0.3536), 0.01, 0.274),
    "perov5": ((1.4192,) * 3, (0.0727,) * 3, 5e-5, 0.258),
}


@pytest.mark.parametrize("name", LOG_LENGTHS)
def test_statistics_of_the_data_are_those_of_the_paper(name, data_root):
    """Log-normal lengths, and the deviation of the coordinates' targets, (N - 1) / N of 1 / 12 for each atom."""
    mu, sigma, tolerance, spread = LOG_LENGTHS[name]
    batch = datasets.load(name, "train", data_root).batch
    known = Statistics.compute(batch)
    assert known.log_length_mean == pytest.approx(mu, abs=tolerance)
    assert known.log_length_std == pytest.approx(sigma, abs=tolerance)
    rows = batch.rows("frac_coords")
    of_atoms = 1 - 1 / batch["num_atoms"].double()[rows.index]
    assert float(of_atoms.mean()) ** 0.5 * COORDS_SCALE == pytest.approx(spread, abs=5e-4)


def test_moments_of_the_path_on_mp20_are_those_of_the_paper(data_root):
    """x_t and u_t of the cell; the paper drew them over a few epochs, and from some crystals more."""
    known = Statistics.compute(datasets.load("mp20", "train", data_root).batch)
    cells = known.cells["parameters"]
    found = path_moments(cell_base(FlowMMConfig(), known), torch.tensor(cells.mean), torch.tensor(cells.std))
    golden = {
        "mean": [4.98, 5.68, 7.73, -0.424, -0.575, -0.449],
        "std": [1.015, 1.245, 2.727, 2.179, 1.901, 2.382],
        "velocity_std": [1.75, 2.15, 4.69, 3.75, 3.24, 4.09],
    }
    for name, values in golden.items():
        near = dict(rtol=0, atol=0.18) if name == "mean" else dict(rtol=0.025, atol=0)
        torch.testing.assert_close(getattr(found, name), torch.tensor(values).double(), **near)


def test_second_order_steps_count_twice():
    assert model().network_calls(10, order=2) == 19


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(task="dng"), "task = 'dng', allowed: csp, ab-initio"),
        (dict(lattice="niggli"), "lattice = 'niggli', allowed: parameters, log-strain, matrix"),
        (dict(hidden=0), "hidden = 0"),
        (dict(time_dim=0), "time_dim = 0, allowed: >= 1"),
        (dict(coords_slope=-1.0), "coords_slope = -1.0, allowed: >= 0"),
        (dict(types_slope=math.inf), "types_slope = inf, allowed: >= 0"),
        (dict(cell_slope=math.nan), "cell_slope = nan, allowed: >= 0"),
        (dict(coords_weight=-2.0), "coords_weight = -2.0, allowed: >= 0"),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FlowMMConfig(**options)


def test_cells_that_are_not_reduced_are_refused_with_their_angle():
    sharp = torch.tensor([[[4.0, 0, 0], [3.8, 1.2, 0], [0, 0, 5]]], dtype=torch.float64)
    batch = CrystalBatch([1], lattice=sharp, frac_coords=torch.zeros(1, 3).double(), atomic_numbers=torch.tensor([11]))
    angle = math.degrees(math.atan2(1.2, 3.8))
    with pytest.raises(ValueError, match=f"lattice 0 has gamma = {angle:.4f}.*reduce the cell first"):
        model().encode(batch)


def test_training_refuses_cells_that_are_not_reduced_by_the_id_of_the_material():
    known = datasets.load("prototypes", "val")
    lattice = known.batch["lattice"].clone()
    lattice[3] = torch.tensor([[4.0, 0, 0], [3.8, 1.2, 0], [0, 0, 5]])
    bad = replace(known, batch=known.batch.replace(lattice=lattice))
    _check_representable(model(), known)
    with pytest.raises(ValueError, match=f"^data = 'prototypes': {re.escape(known.ids[3])}: lattice 0 has gamma = 17"):
        _check_representable(model(), bad)
    _check_representable(model(lattice="log-strain"), bad)
