"""Bayesian flows of continuous, discretised and categorical data: conformance, the sheet's numbers, planted bugs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from chem.crystals import CrystalBatch
from generative.generator import Denoiser, Network, Times
from generative.noise import UnitStreams, normal
from generative.processes.bayesian import (
    BayesianFlow,
    CategoricalFlow,
    ContinuousFlow,
    DiscretisedFlow,
    bin_centers,
    bin_probabilities,
)
from generative.processes.circular import CircularFlow, read_belief
from tests.generative import conformance as suite
from tests.generative.conformance import Case, at, seeded
from tests.generative.test_contract import no_waiting

POS = torch.tensor([[0.4, -1.2, 0.7], [-1.1, 0.9, 0.2], [0.7, 0.3, -0.9]], dtype=torch.float64)  # of zero mean
LATTICE = torch.tensor([[[1.1, 0.2, -0.4], [0.3, 1.6, 0.3], [-0.7, 0.9, 1.3]]], dtype=torch.float64)
CHARGE = bin_centers(9)[[0, 5, 8]]
TYPES = torch.eye(5, dtype=torch.float64)[[2, 4]]
PLANE = torch.diag(torch.tensor([1.0, 0, 1.0])).double()
SITES = torch.stack([PLANE, torch.eye(3).double(), torch.ones(3, 3).double() / 3])

CASES = {
    "continuous": Case(ContinuousFlow((3,)), POS),
    "continuous, data": Case(ContinuousFlow((3, 3), 0.0316, "data"), LATTICE, level="structure"),
    "continuous, centered": Case(ContinuousFlow((3,), centered=True), POS, rows=300_000),
    "continuous, bounds, n steps": Case(ContinuousFlow((3,), bounds=(-2.0, 2.0), steps=20), POS),
    "continuous, flow": Case(ContinuousFlow((3,), 0.02, sampler="flow"), POS),
    "discretised": Case(DiscretisedFlow(9), CHARGE),
    "discretised, n steps": Case(DiscretisedFlow(9, steps=20), CHARGE),
    "discretised, matrix, flow": Case(DiscretisedFlow(9, (3, 1), sampler="flow"), CHARGE.reshape(1, 3, 1)),
    "categorical": Case(CategoricalFlow(5), TYPES),
    "categorical, n steps": Case(CategoricalFlow(5, 0.5, steps=20), TYPES),
    "categorical, flow": Case(CategoricalFlow(5, sampler="flow"), TYPES),
}
RESTRICTED = {
    "noise": Case(ContinuousFlow((3,)), POS, subspace=SITES, rows=60_000),
    "data": Case(ContinuousFlow((3,), 0.02, "data"), POS, subspace=SITES, rows=60_000),
    "flow, bounds": Case(ContinuousFlow((3,), bounds=(-3.0, 3.0), sampler="flow"), POS, subspace=SITES, rows=60_000),
}
LEAVES: dict[str, Callable[..., BayesianFlow]] = {
    "lattice": lambda **o: ContinuousFlow((3, 3), **o),
    "charge": lambda **o: DiscretisedFlow(9, **o),
    "types": lambda **o: CategoricalFlow(4, **o),
    "frac_coords": lambda **o: CircularFlow(**{"steps": 100} | o),
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


# --- conformance --------------------------------------------------------------------------------------------------


def test_prior() -> None:
    """Nothing is known: mean zero, or equal probabilities."""
    for name in ("continuous", "continuous, data", "continuous, centered", "discretised"):
        suite.check_prior(CASES[name], variance=0.0)
    suite.check_prior(CASES["categorical"], mean=-math.log(5), variance=0.0)


def test_ends(case: Case) -> None:
    """The prior at t = 0, the data at t = 1."""
    suite.check_noise_end(case)
    suite.check_data_end(case)


def test_chain(case: Case) -> None:
    """Three steps with oracle predictions reproduce the flow distribution."""
    suite.check_chain(case)


def test_target(case: Case) -> None:
    """The oracle has no loss, at t = 0 and in n steps too."""
    suite.check_target(case, accuracy=1e-8)


def test_randomness(case: Case) -> None:
    """Draws follow the generator, and with unit streams not the batch."""
    suite.check_generator(case)
    suite.check_batching(case)


@pytest.mark.parametrize("name", RESTRICTED)
def test_subspace(name: str) -> None:
    """Restricted rows stay in their subspace, with the right distribution there."""
    suite.check_restricted(RESTRICTED[name])
    suite.check_chain(RESTRICTED[name])


@pytest.mark.parametrize("field", ["charge", "types", "frac_coords"])
def test_refused_subspace(field: str) -> None:
    """Beliefs that cannot be restricted say so."""
    process = LEAVES[field]()
    x, rows = Case(process, torch.zeros(1, *process.shape).double(), subspace=PLANE.unsqueeze(0)).many(2)
    for draw in (lambda: process.prior(x, rows, None), lambda: process.corrupt(x, at(0.5, rows, x), rows, None)):
        with pytest.raises(ValueError, match=f"subspace, allowed for {type(process).__name__}: free rows"):
            draw()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ContinuousFlow((3,), 1.0), r"sigma_1 = 1\.0, allowed: above 0 and below 1"),
        (lambda: ContinuousFlow((3,), predicts="score"), "predicts = 'score', allowed: noise, data"),
        (lambda: ContinuousFlow((3,), sampler="ode"), "sampler = 'ode', allowed: bayes, flow"),
        (lambda: ContinuousFlow((3,), steps=0), "steps = 0, allowed: >= 1"),
        (lambda: DiscretisedFlow(0), "bins = 0, allowed: >= 1"),
        (lambda: CategoricalFlow(1), "classes = 1, beta_1 = 2.0, allowed: at least 2 classes"),
    ],
)
def test_bad_settings(build: Callable, message: str) -> None:
    """One line that names the argument, its value and what is allowed."""
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


# --- the sheet ----------------------------------------------------------------------------------------------------


def test_fifty_updates_golden() -> None:
    """sigma_1 = 0.02, n = 50: precision 2500, mean gamma x and variance gamma (1 - gamma) at the half and the end."""
    process, n = ContinuousFlow((1,), 0.02), 50
    x, rows = Case(process, torch.full((1, 1), 0.8).double()).many(100_000)
    state, draws = process.prior(x, rows, None), seeded(1)
    assert float(process._precision(torch.ones(1).double())) == pytest.approx(2500)
    for i in range(n):
        state = process.update(state, x, at(i / n, rows, x), at((i + 1) / n, rows, x), rows, draws)
        if i + 1 in (n // 2, n):
            gamma = 1 - 0.02 ** (2 * (i + 1) / n)
            variance = gamma * (1 - gamma)
            assert abs(float(state.mean()) - gamma * 0.8) < 5 * (variance / len(x)) ** 0.5
            assert float(state.var()) == pytest.approx(variance, rel=5 * (2 / len(x)) ** 0.5)


def test_categorical_updates_golden() -> None:
    """n updates with true data against softmax(z), z ~ N(beta (K e_x - 1), beta K): mean probabilities to 5e-4."""
    process, n = CategoricalFlow(5, beta_1=0.5), 5
    x, rows = Case(process, TYPES[:1]).many(600_000)
    state, draws = process.prior(x, rows, None), seeded(2)
    for i in range(n):
        state = process.update(state, x, at(i / n, rows, x), at((i + 1) / n, rows, x), rows, draws)
    z = 0.5 * (5 * x - 1) + (0.5 * 5) ** 0.5 * torch.randn(x.shape, generator=seeded(3), dtype=x.dtype)
    difference = state.exp().mean(0) - z.softmax(1).mean(0)
    assert float(difference.abs().max()) < 5e-4
    torch.testing.assert_close(state.exp().sum(1), torch.ones(len(x)).double())


@pytest.mark.parametrize(("t", "share"), [(0.01, 0.88), (0.05, 0.72), (0.2, 0.41), (0.5, 0.06)])
def test_edge_bins_golden(t: float, share: float) -> None:
    """The outer bins' share of the mass with mu = 0, sigma_1 = 0.15, K = 9 and unit noise."""
    gamma = 1 - 0.15 ** (2 * t)
    p = bin_probabilities(torch.zeros(()).double(), torch.tensor(((1 - gamma) / gamma) ** 0.5).double(), 9)
    assert float(p[0] + p[-1]) == pytest.approx(share, abs=0.005)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)


def test_bins_against_the_integral() -> None:
    """Centres of the sheet, and the mass of each bin by quadrature, the tails in the outer two."""
    k = torch.arange(1, 10).double()
    torch.testing.assert_close(bin_centers(9), (2 * k - 1) / 9 - 1)
    density = Normal(torch.tensor(0.3).double(), torch.tensor(0.4).double())
    grid = torch.linspace(-4, 5, 900_001).double()
    mass = density.log_prob(grid).exp() * 1e-5
    bins = ((grid + 1) / 2 * 9).floor().clamp(0, 8).long()
    expected = torch.zeros(9).double().index_add(0, bins, mass)
    torch.testing.assert_close(bin_probabilities(density.mean, density.stddev, 9), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discretised_output_sums_to_one(dtype: torch.dtype) -> None:
    """Whatever the network says, and (0, 1) before t_min."""
    process, g = DiscretisedFlow(9), seeded(4)
    x, rows = Case(process, CHARGE.to(dtype)).many(600)
    wild = 30 * torch.randn(*x.shape, 2, generator=g, dtype=dtype)
    for t in (0.0, 1e-3, 0.4, 1.0):
        p = process.probabilities(x, wild, at(t, rows, x), rows)
        assert p.shape == (*x.shape, 9) and bool((p >= 0).all())
        torch.testing.assert_close(p.sum(-1), torch.ones_like(x))
    silent = process.probabilities(x, wild, at(0, rows, x), rows)
    unit = bin_probabilities(torch.zeros_like(x), torch.ones_like(x), 9)
    torch.testing.assert_close(silent, unit, rtol=1e-4, atol=1e-4)


def test_noise_means_data() -> None:
    """x = mu / gamma - sqrt((1 - gamma) / gamma) eps, zero before t_min, eps clipped to +-10."""
    process = ContinuousFlow((1,), 0.1)
    x, rows = Case(process, torch.tensor([[0.5]]).double()).many(1)
    gamma = 1 - 0.1 ** (2 * 0.3)
    for eps in (0.7, -4.0, 12.0):
        expected = 0.2 / gamma - ((1 - gamma) / gamma) ** 0.5 * min(eps, 10.0)
        found = process.estimate(0 * x + 0.2, 0 * x + eps, at(0.3, rows, x), rows)
        assert float(found) == pytest.approx(expected, rel=1e-12)
    assert abs(float(process.estimate(0 * x + 0.2, 0 * x + 3, at(5e-5, rows, x), rows))) < 1e-6


@pytest.mark.parametrize("t", [0.0, 0.3, 0.99])
def test_losses_of_the_sheet(t: float) -> None:
    """Continuous-time losses from the formulas, at a time, a belief and a prediction."""
    g, t_in = seeded(5), max(t, 1e-4)
    for process, x in ((ContinuousFlow((3,)), POS), (ContinuousFlow((3,), predicts="data"), POS)):
        x, rows = Case(process, x).many(30)
        mu, target = process.corrupt(x, at(t, rows, x), rows, g)
        said = torch.randn(x.shape, generator=g, dtype=x.dtype)
        error = (x - process.estimate(mu, said, at(t, rows, x), rows)).square().sum(1)
        expected = -math.log(0.001) * 0.001 ** (-2 * t) * error
        torch.testing.assert_close(process.loss(said, target, at(t, rows, x), rows), expected, rtol=1e-6, atol=1e-9)
    process = DiscretisedFlow(9)
    x, rows = Case(process, CHARGE).many(30)
    mu, target = process.corrupt(x, at(t, rows, x), rows, g)
    said = torch.randn(*x.shape, 2, generator=g, dtype=x.dtype)
    error = x - (process.probabilities(mu, said, at(t, rows, x), rows) * bin_centers(9)).sum(-1)
    expected = -math.log(0.15) * 0.15 ** (-2 * t) * error.square()
    torch.testing.assert_close(process.loss(said, target, at(t, rows, x), rows), expected, rtol=1e-9, atol=1e-12)
    categorical = CategoricalFlow(5)
    x, rows = Case(categorical, TYPES).many(30)
    _, target = categorical.corrupt(x, at(t, rows, x), rows, g)
    said = torch.randn(x.shape, generator=g, dtype=x.dtype)
    expected = 5 * 2 * t_in * (x - said.softmax(1)).square().sum(1)
    torch.testing.assert_close(categorical.loss(said, target, at(t, rows, x), rows), expected, rtol=1e-9, atol=1e-12)


def test_losses_of_n_steps() -> None:
    """Against the densities of sender and receiver written out."""
    g, n, i = seeded(6), 20, 7
    continuous = ContinuousFlow((3,), 0.1, "data", steps=n)
    x, rows = Case(continuous, POS).many(30)
    t = at((i - 1) / n, rows, x)
    found = continuous.loss(0 * x, x, t, rows)
    weight = n / 2 * (1 - 0.1 ** (2 / n)) * 0.1 ** (-2 * i / n)
    torch.testing.assert_close(found, weight * x.square().sum(1))

    discretised = DiscretisedFlow(9, steps=n)
    x, rows = Case(discretised, CHARGE).many(30)
    mu, target = discretised.corrupt(x, t, rows, g)
    said = torch.randn(*x.shape, 2, generator=g, dtype=x.dtype)
    std = (0.15 ** (-2 * i / n) * (1 - 0.15 ** (2 / n))) ** -0.5
    y, p = target[..., 2], discretised.probabilities(mu, said, t, rows)
    mixture = (p * Normal(bin_centers(9), std).log_prob(y.unsqueeze(-1)).exp()).sum(-1)
    torch.testing.assert_close(
        discretised.loss(said, target, t, rows), n * (Normal(x, std).log_prob(y) - mixture.log()), rtol=1e-8, atol=1e-8
    )
    many, rows = Case(discretised, CHARGE[:1]).many(100_000)
    noise = discretised.corrupt(many, at((i - 1) / n, rows, many), rows, g)[1][..., 2] - many
    assert float(noise.std()) == pytest.approx(std, rel=0.01)

    categorical, alpha = CategoricalFlow(5, 0.5, steps=n), 0.5 * (2 * i - 1) / n**2
    x, rows = Case(categorical, TYPES).many(30)
    t = at((i - 1) / n, rows, x)
    _, target = categorical.corrupt(x, t, rows, g)
    said, y = torch.randn(x.shape, generator=g, dtype=x.dtype), target[:, 5:]
    sender = Normal(alpha * (5 * torch.eye(5).double() - 1), (alpha * 5) ** 0.5)
    density = sender.log_prob(y.unsqueeze(1)).sum(-1)
    expected = n * ((x * density).sum(1) - (said.softmax(1) * density.exp()).sum(1).log())
    torch.testing.assert_close(categorical.loss(said, target, t, rows), expected, rtol=1e-8, atol=1e-8)


def means_of_losses(build: Callable[[int | None], BayesianFlow], x: Tensor, said: Tensor, t: float, n: int) -> Tensor:
    """Mean loss of n steps and its standard error at time t, and that of continuous time: one network for all."""
    out = []
    for steps in (n, None):
        process = build(steps)
        many, rows = Case(process, x).many(200_000)
        _, target = process.corrupt(many, at(t, rows, many), rows, seeded(7))
        loss = process.loss(said.expand(len(many), *said.shape), target, at(t, rows, many), rows)
        out += [loss.mean(), loss.std() / len(many) ** 0.5]
    return torch.stack(out[:3])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.75])
def test_loss_of_many_steps_is_that_of_continuous_time(t: float) -> None:
    """L_n tends to L_infinity, as 1 / n."""
    builds: list[tuple[Callable, Tensor, Tensor]] = [
        (lambda steps: ContinuousFlow((3,), 0.1, "data", steps=steps), POS[:1], torch.tensor([0.1, -0.3, 0.2])),
        (lambda steps: DiscretisedFlow(9, steps=steps), CHARGE[1:2], torch.tensor([0.6, -0.5])),
        (lambda steps: CategoricalFlow(5, steps=steps), TYPES[:1], torch.tensor([0.1, 0.4, -0.3, 0.8, 0.0])),
    ]
    for build, x, said in builds:
        coarse, fine = (means_of_losses(build, x, said.double(), t, n) for n in (4, 128))
        shift = 2 / 128 if isinstance(build(None), CategoricalFlow) else 0  # its accuracy grows from zero
        assert abs(float(fine[0] - fine[2])) < 0.05 * float(fine[2]) + 5 * float(fine[1]) + shift, (t, build(None))
        assert abs(float(coarse[0] - coarse[2])) > abs(float(fine[0] - fine[2]))


def test_sum_of_the_continuous_losses() -> None:
    """The mean over the grid is (rho_1 - 1) / 2 for every n and in the limit, where the estimate is off by one."""
    for n in (1, 10, 1000):
        process = ContinuousFlow((1,), 0.1, steps=n)
        assert float(process._weight(torch.arange(n).double() / n).mean()) == pytest.approx(99 / 2)
    t = (torch.arange(10_000).double() + 0.5) / 10_000
    assert float(ContinuousFlow((1,), 0.1)._weight(t).mean()) == pytest.approx(99 / 2, rel=1e-5)


def test_nearest_centre() -> None:
    """Messages go to the centre nearest to the mean, which is the sample."""
    process = DiscretisedFlow(9)
    x, rows = Case(process, bin_centers(9)).many(9)
    one = at(1, rows, x)
    sure = process.oracle(x, x, one, rows)
    assert torch.equal(process.estimate(x, sure, one, rows), x)
    torch.testing.assert_close(process.readout(x, sure, rows), x, rtol=0, atol=1e-12)
    vague = torch.stack([0 * x, 0 * x + 4], -1)
    torch.testing.assert_close(process.expected(0 * x, vague, one, rows), 0 * x, rtol=0, atol=1e-12)
    assert torch.equal(process.estimate(0 * x, vague, one, rows), 0 * x + x[4])
    between = torch.stack([(x - 0.03) / process._noise_to_data(one, rows, x)[1], 0 * x - 0.5], -1)
    assert torch.equal(process.estimate(0 * x, between, one, rows), process.estimate(x, sure, one, rows))
    assert float((process.readout(0 * x, between, rows) - x).abs().max()) > 1e-3


def test_centered() -> None:
    """Beliefs have zero mean at every step, whatever the data's origin; the noise loses the share of the mean."""
    process = CASES["continuous, centered"].process
    x, rows = Case(process, POS + 7.0).many(30_000)
    half = at(0.5, rows, x)
    mu, target = process.corrupt(x, half, rows, seeded(8))
    torch.testing.assert_close(mu, process.corrupt(rows.center(x), half, rows, seeded(8))[0], rtol=1e-9, atol=1e-9)
    state = process.step(mu, target, half, at(0.9, rows, x), rows, seeded(9))
    for v in (mu, target, state):
        assert float(rows.mean(v).abs().max()) < 1e-9
    assert float(target.var()) == pytest.approx(2 / 3, rel=0.02)


def test_drift_of_predictions_has_no_effect() -> None:
    """A common translation in a prediction of a centered field changes neither loss nor step nor sample."""
    g = seeded(14)
    for process in (ContinuousFlow((3,), centered=True), ContinuousFlow((3,), 0.02, "data", centered=True)):
        x, rows = Case(process, POS).many(60)
        t, s = at(0.4, rows, x), at(0.6, rows, x)
        mu, target = process.corrupt(x, t, rows, g)
        said = torch.randn(x.shape, generator=g, dtype=x.dtype)
        drift = torch.randn(rows.num_structures, 3, generator=g, dtype=x.dtype)[rows.index]
        a, b = (
            (
                process.loss(p, target, t, rows),
                process.step(mu, p, t, s, rows, seeded(15)),
                process.readout(mu, p, rows),
            )
            for p in (said, said + drift)
        )
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sampler", ["bayes", "flow"])
def test_given_rows_keep_their_origin(sampler: str) -> None:
    """A centered field with some rows given, off the origin: their beliefs move to the data, not to zero mean."""
    process = ContinuousFlow((3,), centered=True, sampler=sampler)
    x = (POS + 2.0).repeat(20_000, 1)
    known = torch.tensor([True, False, True]).repeat(20_000)
    batch = CrystalBatch([3] * 20_000, frac_coords=x, frac_coords_given=known)
    model = Denoiser(Constant(), {"frac_coords": process}, Times(), 3).double()
    states = list(model.trajectory(batch, 3, seeded(16)))
    for i, state in enumerate(states[1:3], 1):
        forward, _ = process.corrupt(x, torch.full((20_000,), i / 3).double(), batch.rows("frac_coords"), seeded(17))
        found, forward = state["frac_coords"][known], forward[known]
        case = Case(process, POS[:2])
        assert suite.standard_errors(found, forward, case, batch.rows("frac_coords")) < suite.BOUND
    torch.testing.assert_close(states[-1]["frac_coords"][known], x[known], rtol=0, atol=1e-10)


# --- the loop -----------------------------------------------------------------------------------------------------


class Junk(Network):
    """Predictions of the right shapes that know nothing."""

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        fields = batch.fields
        out = {f: 0.3 * fields[f] + 0.1 for f in ("lattice", "types") if f in fields}
        if "charge" in fields:
            out["charge"] = torch.stack([fields["charge"] + 0.2, -fields["charge"]], -1)
        if "frac_coords" in fields:
            out["frac_coords"] = read_belief(fields["frac_coords"])[0] + 0.3
        return out


class Constant(Network):
    """The same for every row."""

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        return {"frac_coords": torch.full_like(batch["frac_coords"], 0.3)}


def everything(atoms: int, structures: int, dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """A batch with the four kinds of field, every row the same."""
    data = {
        "lattice": LATTICE.expand(structures, 3, 3),
        "types": TYPES[:1, 1:].expand(atoms * structures, 4),
        "frac_coords": torch.tensor([[0.1, 0.55, 0.93]]).double().expand(atoms * structures, 3),
    }
    batch = CrystalBatch([atoms] * structures, **data)
    return batch.attach("atom", charge=CHARGE[1].expand(atoms * structures)).to(dtype)


def given(data: CrystalBatch, fields: dict) -> CrystalBatch:
    """A template in which every other row is given."""
    flags = {f"{f}_given": torch.arange(data.num_rows(f)) % 2 == 0 for f in fields}
    return data.replace(**flags)


@pytest.mark.parametrize("sampler", ["bayes", "flow"])
@pytest.mark.parametrize(("steps", "dtype"), [(1, torch.float64), (4, torch.float64), (4, torch.float32)])
def test_given_rows_hear_the_truth(sampler: str, steps: int, dtype: torch.dtype) -> None:
    """Beliefs of given rows are those of the forward process at every step, and the sample holds the data."""
    processes = {f: build(sampler=sampler) for f, build in LEAVES.items()}
    model = Denoiser(Junk(), processes, Times(100), steps).to(dtype)
    data = everything(2, 10_000, dtype)
    states = list(model.trajectory(given(data, processes), steps, seeded(10)))
    for f, process in processes.items():
        known = torch.arange(data.num_rows(f)) % 2 == 0
        rows = data.rows(f)
        for i in range(1, steps):
            forward, _ = process.corrupt(data[f], torch.full((len(data),), i / steps, dtype=dtype), rows, seeded(11))
            case = Case(process, data[f][:1])
            worst = suite.standard_errors(states[i][f][known].double(), forward[known].double(), case, rows)
            assert worst < suite.BOUND, f"{f} at step {i}: off by {worst:.1f} standard errors"
        sampled, accuracy = states[-1][f], 1e-5 if dtype == torch.float32 else 1e-12
        assert float((sampled[known] - data[f][known]).abs().max()) < accuracy, f
        assert float((sampled[~known] - data[f][~known]).abs().max()) > 1e-3, f"free rows of {f} know the data"


@pytest.mark.parametrize("sampler", ["bayes", "flow"])
def test_nothing_waits(sampler: str) -> None:
    """No step reads a value on the host, with unit streams and given rows; nor does corrupting."""
    processes = {f: build(sampler=sampler) for f, build in LEAVES.items()}
    model = Denoiser(Junk(), processes, Times(100), 4).double()
    template = given(everything(3, 4), processes)
    state = no_waiting(model, template, 3, UnitStreams(1, 0, 4, [3] * 16))
    assert all(bool(state[f].isfinite().all()) for f in processes)


@pytest.mark.parametrize("steps", [None, 50])
@pytest.mark.parametrize("field", LEAVES)
def test_gradients_are_finite(field: str, steps: int | None) -> None:
    """In float32, at both ends of time, for sure and for wild predictions."""
    process = LEAVES[field](**({} if steps is None else {"steps": steps}))
    data = everything(2, 50, torch.float32)
    x, rows, g = data[field], data.rows(field), seeded(12)
    for t in (0.0, 1e-4, 0.02, 0.5, 0.98):
        time = torch.full((50,), t)
        x_t, target = process.corrupt(x, time, rows, g)
        shape = process.oracle(x, x_t, time, rows).shape
        for scale in (0.0, 1.0, 100.0):
            said = (scale * torch.randn(shape, generator=g)).requires_grad_()
            process.loss(said, target, time, rows).sum().backward()
            assert said.grad is not None and bool(said.grad.isfinite().all()), (t, scale)


# --- planted bugs -------------------------------------------------------------------------------------------------


class OldPrecision(ContinuousFlow):
    """The message has the accuracy of the interval before."""

    def update(self, x_t, x, t, s, rows, generator):
        rho_t, rho_s, rho_r = (rows.spread(self._precision(u), x_t) for u in (t, s, 2 * t - s))
        y = x + self._noise(x.dtype, rows, generator) / (rho_t - rho_r).sqrt()
        return (rho_t * x_t + (rho_s - rho_t) * y) / rho_s


class LooseNoise(ContinuousFlow):
    """The noise of messages keeps its mean where beliefs have none."""

    def update(self, x_t, x, t, s, rows, generator):
        return ContinuousFlow(self.shape, self.sigma_1).update(x_t, x, t, s, rows, generator)


class CenteredAnyway(ContinuousFlow):
    """Centers structures with given rows too."""

    def _free(self, v, rows):
        return rows.project(rows.center(v))


class SilentStart(ContinuousFlow):
    """Predictions before t_min are dropped, those for given rows too."""

    def estimate(self, x_t, prediction, t, rows):
        x = super().estimate(x_t, prediction, t, rows)
        return torch.where(rows.spread(t, x) > 1e-4, x, 0.0)


class WrongSign(ContinuousFlow):
    """x = mu / gamma + noise, for a network that was trained with the minus."""

    def estimate(self, x_t, prediction, t, rows):
        return super().estimate(x_t, -prediction, t, rows)


class WideFlow(ContinuousFlow):
    """The flow distribution lacks the factor 1 - gamma of its variance."""

    def belief(self, x, t, rows, generator):
        gamma = rows.spread(self._gamma(t), x)
        return gamma * x + gamma.sqrt() * self._noise(x.dtype, rows, generator)


class DrawnBins(DiscretisedFlow):
    """Messages about the outermost centre."""

    def estimate(self, x_t, prediction, t, rows):
        return super().estimate(x_t, prediction, t, rows).sign()


class ThinMessage(CategoricalFlow):
    """The variance of a message lacks the factor K."""

    def _message(self, x, accuracy, rows, generator):
        accuracy = rows.spread(accuracy, x)
        return accuracy * (self.classes * x - 1) + accuracy.sqrt() * normal(rows, self.shape, x.dtype, generator)


class LinearAccuracy(CategoricalFlow):
    """The steps add up to beta_1 t, the flow to beta_1 t^2."""

    def update(self, x_t, x, t, s, rows, generator):
        return super().update(x_t, x, t.sqrt(), s.sqrt(), rows, generator)


class GlobalClass(CategoricalFlow):
    """Draws from the global state."""

    def update(self, x_t, x, t, s, rows, generator):
        return super().update(x_t, x, t, s, rows, None)


PLANTED: dict[str, Callable[[], object]] = {
    "accuracy of the interval before": lambda: suite.check_chain(Case(OldPrecision((3,), 0.02), POS)),
    "noise not centered": lambda: suite.check_chain(Case(LooseNoise((3,), centered=True), POS)),
    "silent start": lambda: suite.check_chain(Case(SilentStart((3,), 0.02), POS)),
    "sign of the noise": lambda: suite.check_data_end(Case(WrongSign((3,)), POS)),
    "variance of the flow": lambda: suite.check_chain(Case(WideFlow((3,), 0.02), POS)),
    "bins": lambda: suite.check_chain(Case(DrawnBins(9), CHARGE)),
    "goldens of updates": lambda: suite.check_chain(Case(LinearAccuracy(5), TYPES)),
    "global noise": lambda: suite.check_generator(Case(GlobalClass(5), TYPES)),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_suite_fails_on(bug: str) -> None:
    """Every planted bug is found by the check meant for it."""
    with pytest.raises(AssertionError):
        PLANTED[bug]()


def test_centering_given_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their data would move."""
    monkeypatch.setattr(ContinuousFlow, "_free", CenteredAnyway._free)
    with pytest.raises(AssertionError):
        test_given_rows_keep_their_origin("bayes")


def test_variance_of_a_message() -> None:
    """A wrong variance in flow and update alike leaves the chain consistent: the moments of the belief find it."""

    def check(process: CategoricalFlow) -> None:
        z = process.belief(*Case(process, TYPES[:1]).many(50_000)[:1], torch.ones(50_000).double(), rows, seeded(13))
        difference = z[:, 0] - z[:, 1]
        assert float(difference.var()) == pytest.approx(2 * 5 * 2.0, rel=0.05)

    _, rows = Case(CategoricalFlow(5), TYPES[:1]).many(50_000)
    check(CategoricalFlow(5))
    with pytest.raises(AssertionError):
        check(ThinMessage(5))
