"""Flow matching: bases, paths, gains, bits, pairing, and the second-order loop."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.periodic import torus_exp, torus_log, wrap
from chem.ragged import Rows
from generative.generator import Denoiser, Network, Times
from generative.noise import UnitStreams
from generative.process import Process
from generative.processes.assignment import assign_to
from generative.processes.bases import (
    LogitUniformBase,
    LogNormalBase,
    NormalBase,
    ProductBase,
    UniformBase,
    WrappedNormalBase,
    path_moments,
)
from generative.processes.bits import from_bits, to_bits
from generative.processes.flow import COORDS_SCALE, EuclideanFlow, Gain, TorusFlow
from generative.processes.gaussian import VariancePreserving
from tests.generative import conformance as suite
from tests.generative.conformance import Case, at, compare_moments, seeded
from tests.generative.stubs import OracleNetwork
from tests.generative.test_contract import crystals, empty, linear_model, no_waiting, oracle_model
from tests.generative.test_processes import FRAC, LATTICE, POSITIONS, SITE, shapes, unprojected

MP20_MU, MP20_SIGMA = (1.5754, 1.7017, 1.9782), (0.2444, 0.2653, 0.3536)
CELL = torch.tensor([[3.1, 4.4, 5.2, -0.4, 1.3, 0.2]], dtype=torch.float64)


def cell_base() -> ProductBase:
    """Lengths of MP-20 and logit angles."""
    return ProductBase((LogNormalBase(MP20_MU, MP20_SIGMA), 3), (LogitUniformBase(), 3))


CASES = {
    "cell": Case(EuclideanFlow((6,), cell_base(), gain=Gain(0.0)), CELL, level="structure", rows=60_000),
    "matrix": Case(
        EuclideanFlow((3, 3), NormalBase(torch.eye(3), 0.5), scale=2.0), LATTICE, level="structure", rows=60_000
    ),
    "strain": Case(EuclideanFlow((6,), NormalBase(torch.eye(6)[5], 0.1)), CELL / 5, level="structure", rows=60_000),
    "bits": Case(EuclideanFlow((7,)), to_bits(torch.tensor([26, 8]), torch.float64), rows=60_000),
    "torus": Case(TorusFlow(mean_free=False), FRAC, "torus", rows=60_000),
    "mean-free torus": Case(TorusFlow(), FRAC, "torus", view=suite.relative, rows=60_000),
    "wrapped normal": Case(TorusFlow(base=WrappedNormalBase(0.2), mean_free=False), FRAC, "torus", rows=60_000),
    "mean-free wrapped normal": Case(
        TorusFlow(base=WrappedNormalBase()), FRAC, "torus", view=suite.relative, rows=60_000
    ),
}
RESTRICTED = {
    "matrix": Case(EuclideanFlow((3, 3)), LATTICE, level="structure", subspace=shapes(4), rows=60_000),
    "positions": Case(EuclideanFlow((3,)), 3 * FRAC, subspace=POSITIONS, rows=60_000),
    "torus": Case(TorusFlow(), FRAC, "torus", subspace=SITE, rows=60_000),
    "wrapped normal": Case(TorusFlow(base=WrappedNormalBase()), FRAC, "torus", subspace=SITE, rows=60_000),
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=RESTRICTED, name="restricted")
def _restricted(request: pytest.FixtureRequest) -> Case:
    return RESTRICTED[request.param]


# --- conformance --------------------------------------------------------------------------------------------------


def test_ends(case: Case) -> None:
    """Base at t = 0, data at t = 1."""
    suite.check_noise_end(case)
    suite.check_data_end(case)


def test_chain(case: Case) -> None:
    """An oracle velocity on a grid of three steps reproduces the marginals."""
    suite.check_chain(case)


def test_target_and_randomness(case: Case) -> None:
    """The oracle predicts the target; draws follow the generator and not the batch."""
    suite.check_target(case)
    suite.check_generator(case)
    suite.check_batching(case)


def test_subspace(restricted: Case) -> None:
    """Restricted rows stay in their subspace, and their marginals come out right."""
    suite.check_restricted(restricted)
    suite.check_chain(restricted)


@pytest.mark.parametrize("line", [(1, 1, 0), (1, 2, 0), (1, 1, 1), (0, 0, 1), (1, -1, 0)])
def test_uniform_on_lines(line: tuple[int, int, int]) -> None:
    """The uniform base spreads a restricted row evenly over all of its line."""
    v = torch.tensor([line]).double()
    case = Case(TorusFlow(), FRAC[:1], "torus", subspace=(v.T @ v / v.square().sum()).unsqueeze(0))
    x, rows = case.many(50_000)
    along = (case.process.prior(x, rows, seeded(4)) - x)[:, v[0] == 1][:, :1]
    found = suite.features(along, "torus", torch.zeros(()))
    assert float((found.mean(0) / found.std(0)).abs().max()) < 5 / len(along) ** 0.5


# --- bases and their moments --------------------------------------------------------------------------------------


def test_prior() -> None:
    """Standard normal bits, uniform coordinates."""
    suite.check_prior(CASES["bits"])
    suite.check_prior(CASES["torus"])
    case = CASES["matrix"]
    x, rows = case.many()
    drawn = case.process.prior(x, rows, seeded(1)).flatten(1)
    compare_moments(case, drawn, torch.eye(3).flatten(), torch.full((9,), 0.25), None, "prior")
    x, rows = CASES["wrapped normal"].many(100_000)
    angle = 2 * math.pi * CASES["wrapped normal"].process.prior(x, rows, seeded(1))
    assert float(angle.cos().mean()) == pytest.approx(math.exp(-2 * math.pi**2 * 0.2**2), abs=5e-3)
    assert abs(float(angle.sin().mean())) < 5e-3


def test_log_normal_and_logistic_moments() -> None:
    """Draws have the closed moments, lengths are positive, angles uniform between 59.9 and 120.1 degrees."""
    from chem.lattice import from_logit_angles

    x, rows = CASES["cell"].many(200_000)
    drawn = cell_base().draw(x, rows, seeded(2))
    mean, std = cell_base().moments()
    assert mean[:3].tolist() == pytest.approx(
        [math.exp(m + s * s / 2) for m, s in zip(MP20_MU, MP20_SIGMA, strict=True)]
    )
    assert float(((drawn.mean(0) - mean) / (std / len(drawn) ** 0.5)).abs().max()) < 5
    torch.testing.assert_close(drawn.std(0), std, rtol=0.01, atol=0)
    assert float(drawn[:, :3].min()) > 0
    angles = (from_logit_angles(drawn[:, 3:]) - 59.9) / 60.2
    edges = torch.linspace(0, 1, 11).double()
    counts = torch.histogram(angles.flatten(), edges).hist / angles.numel()
    assert float((counts - 0.1).abs().max()) < 5 * (0.09 / angles.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logit_angles_are_finite_whatever_is_drawn(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform number of exactly zero, or just below one, is a finite logit."""
    for edge in (0.0, 1 - torch.finfo(dtype).eps / 2):
        draw = lambda rows, shape, dtype, generator, edge=edge: torch.full((len(rows.index), *shape), edge, dtype=dtype)  # noqa: E731
        monkeypatch.setattr("generative.processes.bases.uniform", draw)
        drawn = LogitUniformBase().draw(torch.zeros(2, 3, dtype=dtype), CASES["cell"].many(2)[1], None)
        assert bool(drawn.isfinite().all())


def integral(base: NormalBase | LogNormalBase | LogitUniformBase | WrappedNormalBase, grid: Tensor) -> float:
    """Of the density over one coordinate, by the trapezoid rule."""
    rows = Rows("atom", torch.arange(len(grid)), len(grid))
    return float(torch.trapezoid(base.log_prob(grid.unsqueeze(1), rows).exp(), grid))


def test_densities_integrate_to_one() -> None:
    """Each base, over one coordinate; the product is the sum of logarithms."""
    line = torch.linspace(-30, 40, 200_001).double()
    assert integral(NormalBase(3.0, 2.0), line) == pytest.approx(1, abs=1e-9)
    assert integral(LogNormalBase([1.2], [0.3]), line) == pytest.approx(1, abs=1e-6)
    assert integral(LogitUniformBase(), line) == pytest.approx(1, abs=1e-9)
    period = torch.linspace(0, 1, 2001).double()
    assert all(integral(WrappedNormalBase(s), period) == pytest.approx(1, abs=1e-9) for s in (0.1, 0.5))
    x, rows = CASES["cell"].many(3)
    parts = LogNormalBase(MP20_MU, MP20_SIGMA).log_prob(x[:, :3], rows), LogitUniformBase().log_prob(x[:, 3:], rows)
    torch.testing.assert_close(cell_base().log_prob(x, rows), parts[0] + parts[1])
    assert float(cell_base().log_prob(-x, rows)[0]) == -math.inf


def test_density_of_a_shape() -> None:
    """Modulo translation: integrates to one over the relative coordinate, forgets translations, 0 for a lone atom."""
    base, d = WrappedNormalBase(0.15), torch.linspace(0, 1, 501).double()
    pairs = torch.stack([torch.full_like(d, 0.3), 0.3 + d], 1).reshape(-1, 1)
    rows = Rows("atom", torch.arange(len(d)).repeat_interleave(2), len(d))
    density = base.log_prob_of_shape(pairs, rows)
    assert float(torch.trapezoid(density.exp(), d)) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(base.log_prob_of_shape(pairs + 0.37, rows), density)
    # a difference of two wrapped normals is a wrapped normal of twice the variance
    wide = WrappedNormalBase(0.15 * 2**0.5).log_prob(d.unsqueeze(1), Rows("atom", torch.arange(len(d)), len(d)))
    torch.testing.assert_close(density, wide)
    lone = base.log_prob_of_shape(torch.rand(4, 3, generator=seeded(1)).double(), Rows("atom", torch.arange(4), 4))
    torch.testing.assert_close(lone, torch.zeros(4).double(), rtol=0, atol=1e-9)
    assert float(UniformBase().log_prob_of_shape(pairs, rows).abs().max()) == 0


def test_path_moments() -> None:
    """Closed moments of x_t and of the velocity against draws, with data far from the base."""
    case = CASES["cell"]
    x, rows = case.many(400_000)
    mean, std = torch.tensor([6.0, 5, 9, -1, 0.5, 0]).double(), torch.tensor([1.0, 2, 3, 2, 1, 0.5]).double()
    data = mean + std * torch.randn(x.shape, generator=seeded(3), dtype=x.dtype)
    t = torch.rand(rows.num_structures, generator=seeded(4), dtype=x.dtype)
    x_t, target = case.process.corrupt(data, t, rows, seeded(5))
    m = path_moments(cell_base(), mean, std)
    for drawn, expected_mean, expected_std in ((x_t, m.mean, m.std), (target, m.velocity_mean, m.velocity_std)):
        assert float(((drawn.mean(0) - expected_mean) / (expected_std / len(x) ** 0.5)).abs().max()) < 5
        torch.testing.assert_close(drawn.std(0), expected_std, rtol=0.01, atol=0)


def test_path_moments_golden() -> None:
    """The sheet's MP-20 table: from its means and velocity deviations, its deviations of x_t (measured there)."""
    mean = torch.tensor([4.98, 5.68, 7.73, -0.424, -0.575, -0.449]).double()
    velocity_std = torch.tensor([1.75, 2.15, 4.69, 3.75, 3.24, 4.09]).double()
    m0, s0 = cell_base().moments()
    m = path_moments(cell_base(), 2 * mean - m0, (velocity_std.square() - s0.square()).sqrt())
    torch.testing.assert_close(m.mean, mean)
    torch.testing.assert_close(m.velocity_std, velocity_std)
    golden = torch.tensor([1.015, 1.245, 2.727, 2.179, 1.901, 2.382]).double()
    torch.testing.assert_close(m.std, golden, rtol=0.01, atol=0)


def test_scale_is_the_deviation_of_coordinate_targets() -> None:
    """A prediction of zero has loss (N - 1) / N in units of sqrt(1 / 12): one mean of N is removed."""
    x, rows = Case(TorusFlow(), torch.rand(5, 3, generator=seeded(1)).double(), "torus").many(200_000)
    _, target = TorusFlow().corrupt(x, at(0.3, rows, x), rows, seeded(2))
    loss = TorusFlow().loss(torch.zeros_like(x), target, at(0.3, rows, x), rows)
    assert float(loss.mean()) == pytest.approx(0.8, rel=0.01)
    assert abs(COORDS_SCALE - 0.2887) < 1e-4
    per_entry = EuclideanFlow((6,), scale=torch.arange(1.0, 7.0))
    cells = CASES["cell"].many(2)[1]
    found = per_entry.loss(torch.arange(1.0, 7.0).expand(2, 6), torch.zeros(2, 6), at(0, cells, x), cells)
    torch.testing.assert_close(found, torch.ones(2))


# --- geometry -----------------------------------------------------------------------------------------------------


def check_log(process: TorusFlow) -> None:
    """Shortest ways of the sheet, and exp is the inverse of log."""
    x, y = torch.tensor([0.1, 0.2, 0.0, 0.95]).double(), torch.tensor([0.9, 0.45, 0.5, 0.05]).double()
    found = process.log(x, y)
    torch.testing.assert_close(found.abs(), torch.tensor([0.2, 0.25, 0.5, 0.1]).double())
    assert found.sign().tolist()[:2] == [-1, 1]
    a, b = torch.rand(2, 1000, 3, generator=seeded(1), dtype=torch.float64)
    assert float(torus_log(torus_exp(a, process.log(a, b)), b).abs().max()) < 1e-12
    assert float(torus_log(process.exp(a, process.log(a, b)), b).abs().max()) < 1e-12


def test_torus_log_golden() -> None:
    """Of the flow on the torus."""
    check_log(TorusFlow())


def ragged_rows(counts: tuple[int, ...] = (1, 4, 2, 7), **companions: Tensor) -> Rows:
    """Rows of atoms of structures of these sizes."""
    return Rows("atom", torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), len(counts), **companions)


def test_mean_free_and_translation_invariant() -> None:
    """Targets have no mean; a drift in a prediction changes nothing; a moved state takes the same step."""
    process, rows, x = TorusFlow(gain=Gain(5.0)), ragged_rows(), crystals()["frac_coords"]
    t, s = at(0.3, rows, x), at(0.6, rows, x)
    x_t, target = process.corrupt(x, t, rows, seeded(1))
    assert float(rows.mean(target).abs().max()) < 1e-12
    assert float(target[0].abs().max()) == 0
    v, drift = (torch.randn(n, 3, generator=seeded(2), dtype=x.dtype) for n in (len(x), 4))
    moved = process.step(x_t, v, t, s, rows, None)
    assert float(torus_log(process.step(x_t, v + drift[rows.index], t, s, rows, None), moved).abs().max()) < 1e-12
    losses = [process.loss(p, target, t, rows) for p in (v, v + drift[rows.index])]
    torch.testing.assert_close(*losses)
    carried = process.step(wrap(x_t + drift[rows.index]), v, t, s, rows, None)
    assert float(torus_log(carried, moved + drift[rows.index]).abs().max()) < 1e-12


def test_anchor() -> None:
    """Displacements count from the given rows where there are any, else from the mean."""
    given = torch.zeros(14, dtype=torch.bool)
    given[[1, 3, 5]] = True
    rows = ragged_rows(given=given)
    v = torch.randn(14, 3, generator=seeded(1), dtype=torch.float64)
    found = rows.anchor(v)
    torch.testing.assert_close(found[1:5], v[1:5] - (v[1] + v[3]) / 2)
    torch.testing.assert_close(found[5:7], v[5:7] - v[5])
    torch.testing.assert_close(found[7:], v[7:] - v[7:].mean(0))
    torch.testing.assert_close(ragged_rows().anchor(v), rows.center(v))
    assert torch.equal(found[0], torch.zeros(3).double())


class Relative(Network):
    """Knows the data but no origin: velocities towards it less their mean over all atoms, plus any drift."""

    def __init__(self, data: CrystalBatch, drift: float = 0.7):
        super().__init__()
        self.data, self.drift = data, drift

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        rows = Rows("atom", batch["batch"], len(batch))
        way = torus_log(batch["frac_coords"], self.data["frac_coords"]) / (1 - t[batch["batch"]]).unsqueeze(1)
        return {"frac_coords": rows.center(way) + self.drift}


def fixed_sites(base: type[TorusFlow], order: int) -> float:
    """How far free atoms end from the data when one atom or two of each structure are given."""
    data = crystals((3, 5, 2, 8))
    given = torch.zeros(18, dtype=torch.bool)
    given[[0, 3, 6, 8, 12]] = True
    template = empty(data).replace(frac_coords=data["frac_coords"], frac_coords_given=given)
    model = Denoiser(Relative(data), {"frac_coords": base()}, Times(), 7).double()
    worst = 0.0
    for state in model.trajectory(template, generator=seeded(1), order=order):
        assert torch.equal(state["frac_coords"][given], data["frac_coords"][given])
        worst = float(torus_log(state["frac_coords"], data["frac_coords"]).abs().max())
    return worst


@pytest.mark.parametrize("order", [1, 2])
def test_fixed_sites_are_the_frame(order: int) -> None:
    """A network without an origin puts the free atoms where they belong beside the given ones."""
    assert fixed_sites(TorusFlow, order) < 1e-9


# --- gains --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [Gain(), Gain(5.0), Gain(10.0, 0.3), Gain(1000.0)])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_clipped_gain_lands_on_the_data(gain: Gain, steps: int) -> None:
    """Whatever the gain, an oracle's sample is the datum: no step goes beyond it."""
    data = crystals()
    flows = EuclideanFlow((3, 3), gain=gain), TorusFlow(gain=gain, mean_free=False)
    processes: dict[str, Process] = dict(zip(("lattice", "frac_coords"), flows, strict=True))
    for order in (1, 2):
        states = list(oracle_model(processes, data).trajectory(empty(data), steps, seeded(2), order=order))
        assert float((states[-1]["lattice"] - data["lattice"]).abs().max()) < 1e-9
        assert float(torus_log(states[-1]["frac_coords"], data["frac_coords"]).abs().max()) < 1e-9
        away = [s["lattice"] - data["lattice"] for s in states]
        for before, after in itertools.pairwise(away):
            assert bool((after * before.sign() > -1e-9).all()) and bool((after.abs() <= before.abs() + 1e-9).all())


def check_gain(process: EuclideanFlow) -> None:
    """One step of unit velocity goes g(t) (s - t), and at most 1 - t."""
    x, rows = torch.zeros(1, 3).double(), Rows("atom", torch.zeros(1).long(), 1)
    for t, s, reach in ((0.0, 0.25, 0.25), (0.5, 0.6, 0.1 * 1.8), (0.2, 0.25, 0.05), (0.5, 0.9, 0.5), (0.9, 1.0, 0.1)):
        moved = process.step(x, torch.ones_like(x), at(t, rows, x), at(s, rows, x), rows, None)
        torch.testing.assert_close(moved, torch.full_like(x, reach))


def test_gain() -> None:
    """Of slope 4 from t = 0.3 on; changed on the process; settings out of range are refused."""
    process = EuclideanFlow((3,))
    process.gain = Gain(4.0, 0.3)
    check_gain(process)
    for bad in ((-1.0, 0.0), (math.nan, 0.0), (1.0, 2.0)):
        with pytest.raises(ValueError, match="slope >= 0, offset in"):
            Gain(*bad)


# --- second order -------------------------------------------------------------------------------------------------


class Affine(Network):
    """dx/dt = a x + b for the lattice."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b, self.calls = a, b, 0

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        assert float(t.max()) < 1, "no network is trained at t = 1"
        return {"lattice": self.a * batch["lattice"] + self.b}


def affine_error(steps: int, order: int) -> float:
    """Against the exponential."""
    model = Denoiser(Affine(1.3, 0.4), {"lattice": EuclideanFlow((3, 3))}, Times(), steps).double()
    first, *_, last = model.trajectory(CrystalBatch([2, 3]), generator=seeded(1), order=order)
    exact = math.exp(1.3) * first["lattice"] + math.expm1(1.3) * 0.4 / 1.3
    assert model.network.calls == model.network_calls(order=order) == (steps if order == 1 else 2 * steps - 1)
    return float((last["lattice"] - exact).abs().max())


def test_orders_of_convergence() -> None:
    """Half the step, half the error with Euler's method, a quarter with Heun's."""
    for order in (1, 2):
        errors = [affine_error(n, order) for n in (40, 80, 160)]
        rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert all(abs(rate - order) < 0.06 for rate in rates), (order, rates)
    assert affine_error(40, 2) < affine_error(80, 1) / 10
    with pytest.raises(ValueError, match="order = 3, allowed: 1, 2"):
        affine_error(4, 3)


def gained_error(steps: int, order: int, flow: EuclideanFlow) -> float:
    """Halfway, where no step is clipped, against the exponential in the integral of the gain."""
    model = Denoiser(Affine(0.6, 0.4), {"lattice": flow}, Times(), steps).double()
    states = list(model.trajectory(CrystalBatch([2, 3]), generator=seeded(1), order=order))
    reach = 0.6 * (0.5 + flow.gain.slope * (0.5 - flow.gain.offset) ** 2 / 2)
    exact = math.exp(reach) * states[0]["lattice"] + math.expm1(reach) * 0.4 / 0.6
    return float((states[steps // 2]["lattice"] - exact).abs().max())


def check_order_with_gain(flow: EuclideanFlow) -> None:
    """Each end of a second-order step counts with its own gain."""
    for order in (1, 2):
        errors = [gained_error(n, order, flow) for n in (80, 160)]
        assert abs(math.log2(errors[0] / errors[1]) - order) < 0.07


@pytest.mark.parametrize("gain", [Gain(5.0), Gain(10.0, 0.25)], ids=str)
def test_orders_of_convergence_with_gains(gain: Gain) -> None:
    """Of the flow that is sped up, the one that adaptive steps follow too."""
    check_order_with_gain(EuclideanFlow((3, 3), gain=gain))


def test_noise_takes_first_order_steps() -> None:
    """Beside a flow, a field with noise goes its first-order way, draw by draw, and calls are counted."""
    data = crystals()
    processes: dict[str, Process] = {"lattice": VariancePreserving((3, 3)), "frac_coords": TorusFlow(mean_free=False)}
    model = linear_model(processes)
    first, second = (list(model.trajectory(empty(data), 4, seeded(3), order=o)) for o in (1, 2))
    assert all(torch.equal(a["lattice"], b["lattice"]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[-1]["frac_coords"], second[-1]["frac_coords"])
    assert model.network.calls == model.network_calls(4) + model.network_calls(4, order=2) == 4 + 7
    noisy = linear_model({"lattice": VariancePreserving((3, 3))})
    assert noisy.network_calls(4, order=2) == 4


def test_flows_do_not_wait() -> None:
    """Neither order stops an accelerator, with given rows too."""
    data = crystals()
    processes: dict[str, Process] = {"lattice": EuclideanFlow((3, 3), gain=Gain(3.0)), "frac_coords": TorusFlow()}
    given = torch.arange(14) % 3 == 0
    template = empty(data).replace(frac_coords=data["frac_coords"], frac_coords_given=given)
    model = linear_model(processes)
    for order in (1, 2):
        state = no_waiting(model, template, 3, UnitStreams(1, 0, 4, [1, 4, 2, 7] * 4), order)
        assert bool(state["frac_coords"].isfinite().all())


# --- bits ---------------------------------------------------------------------------------------------------------


def test_bits_golden() -> None:
    """Z - 1, least significant bit first; every element comes back, from noisy bits too."""
    golden = {1: "-------", 2: "+------", 26: "+--++--", 118: "+-+-+++"}
    for number, code in golden.items():
        assert to_bits(torch.tensor([number]))[0].tolist() == [1.0 if c == "+" else -1.0 for c in code]
    z, everything = torch.arange(1, 119), torch.ones(118, dtype=torch.bool)
    noise = 1.9 * (torch.rand(118, 7, generator=seeded(1)) - 0.5)
    assert torch.equal(from_bits(to_bits(z) + noise, everything), z)
    assert to_bits(z, torch.float64).dtype == torch.float64 and set(to_bits(z).flatten().tolist()) == {-1.0, 1.0}


def test_bits_of_no_allowed_element_go_to_the_nearest() -> None:
    """By distance from the real values, atom by atom."""
    values = torch.randn(500, 7, generator=seeded(2), dtype=torch.float64)
    allowed = torch.rand(500, 100, generator=seeded(3)) < 0.1
    allowed[:, 7] = True
    found = from_bits(values, allowed)
    distance = (values.unsqueeze(1) - to_bits(torch.arange(1, 101), torch.float64)).norm(dim=-1)
    assert torch.equal(found, distance.masked_fill(~allowed, torch.inf).argmin(1) + 1)
    assert not torch.equal(found, from_bits(values, torch.ones(100, dtype=torch.bool)))
    with pytest.raises(ValueError, match="allowed has no element"):
        from_bits(values, torch.zeros(100, dtype=torch.bool))


# --- pairing ------------------------------------------------------------------------------------------------------


def test_assignment_is_the_best_permutation() -> None:
    """Against all permutations, within elements; labels keep their points."""
    rows = ragged_rows((5, 1, 4), label=torch.tensor([1, 1, 2, 1, 2, 7, 3, 3, 3, 3]))
    x, start = torch.rand(2, 10, 3, generator=seeded(1), dtype=torch.float64)
    found = assign_to(x, start, rows, shift=False)
    assert rows.label is not None
    for begin, end in ((0, 5), (5, 6), (6, 10)):
        best, labels = math.inf, rows.label[begin:end]
        for order in itertools.permutations(range(begin, end)):
            if torch.equal(rows.label[list(order)], labels):
                best = min(best, float(torus_log(start[list(order)], x[begin:end]).square().sum()))
        assert float(torus_log(found[begin:end], x[begin:end]).square().sum()) == pytest.approx(best)


def test_assignment_with_a_shift() -> None:
    """Data permuted within elements and moved a little as a whole are found again; ways get shorter on average."""
    labels = torch.tensor([1, 2, 2, 2, 3, 3])
    rows = ragged_rows((6,), label=labels)
    x = torch.rand(6, 3, generator=seeded(4), dtype=torch.float64)
    start = wrap(x[[0, 3, 1, 2, 5, 4]] + torch.tensor([0.03, -0.05, 0.04]))
    assert float(torus_log(assign_to(x, start, rows, shift=True), x).abs().max()) < 1e-12
    many = Case(TorusFlow(), x, "torus").many(600)
    rows = Rows("atom", many[1].index, many[1].num_structures, label=labels.repeat(100))
    targets = (TorusFlow(assign=a).corrupt(many[0], at(0.0, rows, x), rows, seeded(5))[1] for a in (False, True))
    plain, paired = (target.square().mean() for target in targets)
    assert float(paired) < 0.75 * float(plain)


def test_assignment_in_training() -> None:
    """Labels travel as a companion of the field; without them the option is refused in one line."""
    data = crystals()
    model = linear_model({"frac_coords": TorusFlow(assign=True)})
    loss = model.loss(data.replace(frac_coords_label=data["atomic_numbers"]), seeded(1))["total"]
    assert bool(loss.isfinite())
    with pytest.raises(ValueError, match="assignment needs rows with labels"):
        model.loss(data, seeded(1))


# --- planted bugs -------------------------------------------------------------------------------------------------


class LongWay(TorusFlow):
    """Straight lines in the cell instead of the shortest way."""

    def log(self, x, y):
        return y - x


class UncentredTarget(TorusFlow):
    """The target keeps its mean."""

    def corrupt(self, x, t, rows, generator):
        start = self.prior(x, rows, generator)
        path = self.log(start, x)
        return self.exp(x, -rows.spread(1 - t, x) * path), path


class BatchCentred(TorusFlow):
    """Velocities lose the mean of the batch."""

    def velocity(self, prediction, rows):
        return prediction - prediction.mean(0)


class NoFrame(TorusFlow):
    """Velocities are centred although rows are given."""

    def velocity(self, prediction, rows):
        return rows.center(prediction)


class Unclipped(EuclideanFlow):
    """The gain may carry a step beyond the data."""

    def step(self, x_t, prediction, t, s, rows, generator):
        return x_t + rows.spread(self.gain(t) * (s - t), x_t) * prediction


class LateGain(EuclideanFlow):
    """The gain of the end of the step."""

    def step(self, x_t, prediction, t, s, rows, generator):
        reach = (self.gain(s) * (s - t) / (1 - t)).clamp(max=1) * (1 - t)
        return x_t + rows.spread(reach, x_t) * prediction


class OneGain(EuclideanFlow):
    """A second-order step with the gain of its start alone."""

    def average(self, first, second, t, s, rows):
        return (first + second) / 2


class Narrow(LogNormalBase):
    """Deviations 2 % too small when drawing."""

    def draw(self, like, rows, generator):
        return super().draw(like, rows, generator) ** 0.98


def unclipped_lands() -> None:
    case = Case(Unclipped((3,), gain=Gain(10.0)), 3 * FRAC)
    suite.check_chain(case)


def narrow_moments() -> None:
    x, rows = Case(EuclideanFlow((3,)), FRAC).many(200_000)
    base = Narrow(MP20_MU, MP20_SIGMA)
    torch.testing.assert_close(base.draw(x, rows, seeded(2)).std(0), base.moments()[1], rtol=0.01, atol=0)


def second_order_of_euler() -> None:
    errors = [affine_error(n, 1) for n in (40, 80)]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.06


def late_gain() -> None:
    process = LateGain((3,), gain=Gain(4.0, 0.3))
    check_gain(process)


def no_frame() -> None:
    assert fixed_sites(NoFrame, 1) < 1e-9


PLANTED: dict[str, Callable[[], object]] = {
    "long way": lambda: check_log(LongWay()),
    "uncentred target": lambda: suite.check_target(Case(UncentredTarget(), FRAC, "torus")),
    "centred over the batch": lambda: suite.check_batching(Case(BatchCentred(), FRAC, "torus")),
    "centred with fixed sites": no_frame,
    "gain beyond the data": unclipped_lands,
    "gain at the wrong time": late_gain,
    "one gain for both ends": lambda: check_order_with_gain(OneGain((3, 3), gain=Gain(5.0))),
    "narrow base": narrow_moments,
    "velocity leaves the plane": lambda: suite.check_restricted(
        Case(unprojected(TorusFlow, "velocity")(), FRAC, "torus", subspace=SITE)
    ),
    "first order for second": second_order_of_euler,
}


@pytest.mark.parametrize("bug", PLANTED)
def test_suite_fails_on(bug: str) -> None:
    """Every planted bug is found by the check meant for it."""
    with pytest.raises(AssertionError):
        PLANTED[bug]()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NormalBase(0.0, 0.0), r"std = 0.0, allowed: > 0"),
        (lambda: LogNormalBase([1.0], [-1.0]), r"sigma = \[-1.0\], allowed: > 0"),
        (lambda: WrappedNormalBase(0.7), r"sigma = 0.7, allowed: above 0, at most 0.5"),
        (lambda: EuclideanFlow((3,), scale=0.0), r"scale = 0.0, allowed: > 0"),
    ],
)
def test_bad_settings_are_named(call: Callable[[], object], message: str) -> None:
    """One line with argument, value and what is allowed."""
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_oracle_network_with_given_rows_needs_no_replacement() -> None:
    """What the network says of given rows is not used, except as the frame."""
    data = crystals()
    processes: dict[str, Process] = {"lattice": EuclideanFlow((3, 3)), "frac_coords": TorusFlow()}
    given = torch.arange(14) % 4 == 0
    template = empty(data).replace(frac_coords=data["frac_coords"], frac_coords_given=given)
    model = Denoiser(OracleNetwork(processes, data), processes, Times(), 5).double()
    sampled = model.sample(template, generator=seeded(1))
    lone = torch.isin(data["batch"], data["batch"][given])
    off = torus_log(sampled["frac_coords"], data["frac_coords"]).abs()
    assert float(off[lone].max()) < 1e-9
