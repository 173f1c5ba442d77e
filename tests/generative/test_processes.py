"""The processes against golden numbers and the conformance suite, and the suite against planted bugs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generative.noise import normal
from generative.process import Fixed, Process
from generative.processes.gaussian import VariancePreserving
from generative.processes.wrapped import WrappedNormal, mean_squared_score, wrapped_normal_score
from tests.generative import conformance as suite
from tests.generative.conformance import Case, at, compare_moments, seeded
from tests.generative.stubs import BayesianFlow, Discrete, LinearFlow, TorusFlow

LATTICE = torch.tensor([[[3.1, 0.2, -0.4], [1.1, 4.2, 0.3], [-0.7, 0.9, 5.3]]], dtype=torch.float64)
FRAC = torch.tensor([[0.1, 0.52, 0.93], [0.4, 0.02, 0.77]], dtype=torch.float64)
MARGINAL = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64)
EMPTY = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # every class decays to the first
DIAGONAL = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype=torch.float64)
POSITIONS = torch.stack([DIAGONAL, torch.eye(3, dtype=torch.float64)])  # one atom on a line, one free
SITE = torch.stack([DIAGONAL, torch.zeros(3, 3, dtype=torch.float64)])  # one on a line, one at a point


def shapes(rank: int) -> Tensor:
    """A projector (1, 9, 9) onto `rank` directions of a lattice, none of them along an entry."""
    basis = torch.linalg.qr(torch.randn(9, rank, generator=seeded(1), dtype=torch.float64)).Q
    return (basis @ basis.T).unsqueeze(0)


CASES = {
    "gaussian": Case(VariancePreserving((3, 3)), LATTICE, level="structure"),
    "gaussian of 12 steps": Case(VariancePreserving((3,), 12), 4 * FRAC),
    "gaussian with bounds": Case(VariancePreserving((3, 3), bounds=(-8.0, 8.0)), LATTICE, level="structure"),
    "flow": Case(LinearFlow((3,)), 3 * FRAC),
    "mean-free flow": Case(LinearFlow((3,), mean_free=True), 3 * FRAC, view=lambda x, rows: rows.center(x)),
    "torus flow": Case(TorusFlow((3,), mean_free=False), FRAC, "torus"),
    "mean-free torus flow": Case(TorusFlow((3,)), FRAC, "torus", view=suite.relative),
    "bayesian flow": Case(BayesianFlow((3,)), 3 * FRAC),
    "discrete": Case(Discrete(MARGINAL), torch.tensor([2, 4]), "categorical"),
    "absorbing": Case(Discrete(EMPTY, 12), torch.tensor([2, 0]), "categorical"),
}
RESTRICTED = {
    "gaussian": Case(VariancePreserving((3, 3)), LATTICE, level="structure", subspace=shapes(4), rows=60_000),
    "gaussian with bounds": Case(
        VariancePreserving((3, 3), bounds=(-8.0, 8.0)), LATTICE, level="structure", subspace=shapes(4), rows=60_000
    ),
    "gaussian of atoms": Case(VariancePreserving((3,)), 4 * FRAC, subspace=SITE),
    "flow": Case(LinearFlow((3,)), 3 * FRAC, subspace=POSITIONS),
    "torus flow": Case(TorusFlow((3,), mean_free=False), FRAC, "torus", subspace=SITE),
    "bayesian flow": Case(BayesianFlow((3,)), 3 * FRAC, subspace=POSITIONS),
}
WRAPPED = Case(WrappedNormal(), FRAC, "torus")
SINGLE = Case(WrappedNormal((1,)), FRAC[:, :1], "torus")
ONE = Case(WrappedNormal((1,)), FRAC[:1, :1], "torus", kernel="limit", rows=20_000)
WRAPPED_RESTRICTED = Case(WrappedNormal(), FRAC, "torus", subspace=SITE, rows=40_000)


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[*RESTRICTED, "wrapped"], name="restricted")
def _restricted(request: pytest.FixtureRequest) -> Case:
    return RESTRICTED.get(request.param, WRAPPED_RESTRICTED)


# --- goldens of the method sheets ---------------------------------------------------------------------------------


def test_cosine_schedule_golden() -> None:
    """beta, abar and the posterior deviation of DiffCSP."""
    log_abar = VariancePreserving((3, 3)).log_alpha_bar
    beta = -torch.expm1(log_abar[1:] - log_abar[:-1])
    golden = {1: 1e-4, 500: 0.00314589, 999: 0.75, 1000: 0.9999}
    assert all(float(beta[k - 1]) == pytest.approx(v, rel=2e-6) for k, v in golden.items())
    golden = {0: 1.0, 100: 0.971719, 500: 0.493654, 900: 0.0240825, 999: 2.428e-6, 1000: 2.43e-10}
    assert all(float(log_abar[k].exp()) == pytest.approx(v, rel=1e-3 if k > 900 else 2e-6) for k, v in golden.items())


@pytest.mark.parametrize(("k", "std"), [(1, 0.0), (2, 0.00707), (500, 0.0560), (900, 0.1398), (1000, 0.99995)])
def test_posterior_deviation_golden(k: int, std: float) -> None:
    """The noise of a single step, read off two draws that differ in their generator alone."""
    process, (x, rows) = VariancePreserving((3, 3)), CASES["gaussian"].many(4)
    t, s = at(1 - k / 1000, rows, x), at(1 - (k - 1) / 1000, rows, x)
    a, b = (process.step(x, torch.zeros_like(x), t, s, rows, seeded(i)) for i in (1, 2))
    za, zb = (normal(rows, (3, 3), x.dtype, seeded(i)) for i in (1, 2))
    torch.testing.assert_close((a - b) / (za - zb), torch.full_like(x, std), rtol=0, atol=6e-5)


def test_sigma_golden() -> None:
    """The geometric ramp, and sigma_0 = 0."""
    sigma = WrappedNormal().sigma
    golden = {0: 0.0, 1: 0.005, 2: 0.0050231, 250: 0.0157568, 500: 0.0498849, 750: 0.157932, 1000: 0.5}
    assert all(float(sigma[k]) == pytest.approx(v, rel=2e-6) for k, v in golden.items())


@pytest.mark.parametrize(
    ("x", "sigma", "score"),
    [(0.1, 0.05, -40), (0.3, 0.2, -7.332679), (0.45, 0.2, -5.682497), (0.25, 0.5, -0.090376), (0.49, 0.5, -0.005757)],
)
def test_wrapped_score_golden(x: float, sigma: float, score: float) -> None:
    """Scores of the sheet, at every period, odd in x, and zero at the half."""
    at_x = torch.tensor([x, x + 1, x - 3, 0.5], dtype=torch.float64)
    found = wrapped_normal_score(at_x, torch.tensor(sigma))
    torch.testing.assert_close(found, torch.tensor([score] * 3 + [0.0]).double(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(wrapped_normal_score(-at_x, torch.tensor(sigma)), -found, rtol=1e-9, atol=1e-9)


def test_mean_squared_score_golden() -> None:
    """lambda of the sheet; 1 / sigma^2 where the images do not overlap."""
    table = {0.03: 1111.1111, 0.05: 400, 0.1: 99.9955, 0.15: 43.137, 0.2: 19.0775, 0.25: 7.2195, 0.3: 2.3240}
    table |= {0.4: 0.142867, 0.5: 0.0040841}
    found = mean_squared_score(torch.tensor(list(table), dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(list(table.values())).double(), rtol=3e-5, atol=0)


def test_discrete_golden() -> None:
    """A_t and one posterior of WyckoffDiff's sheet, whose index t is our step t + 1."""
    process = Discrete(MARGINAL)
    golden = {100: 0.98569, 500: 0.70163, 900: 0.15368, 998: 0.001558, 999: 1.56e-6}
    assert all(float(process.kept[i + 1]) == pytest.approx(v, rel=2e-3 if i > 998 else 4e-4) for i, v in golden.items())
    _, rows = Case(process, torch.tensor([2])).many(1)
    guess = torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]], dtype=torch.float64)
    t, s = at(1 - 0.401, rows, guess), at(1 - 0.400, rows, guess)
    found = process.posterior(torch.tensor([2]), guess, t, s, rows)[0]
    expected = torch.tensor([8.7718e-4, 1.10610e-3, 0.99596658, 1.26108e-3, 7.8906e-4], dtype=torch.float64)
    torch.testing.assert_close(found / found.sum(), expected, rtol=1e-4, atol=0)


# --- conformance --------------------------------------------------------------------------------------------------


def test_prior() -> None:
    """Moments at t = 0: standard normal, uniform, a point, or the marginal."""
    for name in ("gaussian", "flow", "torus flow"):
        suite.check_prior(CASES[name])
    suite.check_prior(WRAPPED)
    suite.check_prior(CASES["bayesian flow"], variance=0.0)
    suite.check_prior(CASES["discrete"], probabilities=MARGINAL)
    suite.check_prior(CASES["absorbing"], probabilities=EMPTY)


def test_ends(case: Case) -> None:
    """Noise at t = 0, data at t = 1."""
    coarse = getattr(case.process, "steps", 1000) == 12
    suite.check_noise_end(case, tolerance=4e-3 if coarse else 0.0)  # 12 steps leave some signal at t = 0
    suite.check_data_end(case, start=11 / 12 if coarse else 0.99)


def test_chain(case: Case) -> None:
    """Three steps with oracle predictions reproduce the forward marginal."""
    suite.check_chain(case)


def test_target(case: Case) -> None:
    """The oracle predicts the training target."""
    suite.check_target(case)


def test_randomness(case: Case) -> None:
    """Draws follow the generator, and with unit streams not the batch."""
    suite.check_generator(case)
    suite.check_batching(case)


def test_subspace(restricted: Case) -> None:
    """Restricted rows stay in their subspace."""
    suite.check_restricted(restricted)


@pytest.mark.parametrize("name", RESTRICTED)
def test_restricted_chain(name: str) -> None:
    """The marginal inside the subspace is reproduced too."""
    suite.check_chain(RESTRICTED[name])


def test_gaussian_step_moments() -> None:
    """A jump of many steps against the posterior of two joint Gaussians, built here from the betas."""
    process = VariancePreserving((3,), 12)
    abar = process.log_alpha_bar.exp()
    x, x_t = torch.tensor([1.0, -2.0, 5.0]).double(), torch.tensor([0.3, 0.4, -1.0]).double()
    k, j = 9, 5
    covariance = abar[k] / abar[j] * (1 - abar[j])  # Var(x_j) times the slope squared, of x_k on x_j
    gain = (abar[k] / abar[j]).sqrt() * (1 - abar[j]) / (covariance + 1 - abar[k] / abar[j])
    mean = abar[j].sqrt() * x + gain * (x_t - abar[k].sqrt() * x)
    variance = (1 - abar[j]) * (1 - gain * (abar[k] / abar[j]).sqrt())
    eps = (x_t - abar[k].sqrt() * x) / (1 - abar[k]).sqrt()
    case = Case(process, x.unsqueeze(0))
    suite.check_step_moments(case, x_t, eps, 1 - k / 12, 1 - j / 12, mean, variance.expand(3))


def test_discrete_step_probabilities() -> None:
    """A jump against the product of full transition matrices."""
    process, k, j = Discrete(MARGINAL, 12), 8, 3
    ratio = process.kept[1:] / process.kept[:-1]
    one = [r * torch.eye(5).double() + (1 - r) * MARGINAL.expand(5, 5) for r in ratio]
    to_j, jump = torch.linalg.multi_dot(one[:j]), torch.linalg.multi_dot(one[j:k])
    guess = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15]).double()
    posterior = (guess / (to_j @ jump)[:, 2]) @ to_j * jump[:, 2]
    case, chances = Case(process, torch.tensor([2]), "categorical"), posterior / posterior.sum()
    suite.check_step_moments(case, torch.tensor(2), guess, 1 - k / 12, 1 - j / 12, probabilities=chances)


def brute_score(d: float, sigma: float) -> float:
    """The wrapped score from the density itself, by a central difference."""
    log = lambda x: math.log(sum(math.exp(-((x + n) ** 2) / (2 * sigma**2)) for n in range(-30, 31)))  # noqa: E731
    return (log(d + 1e-5) - log(d - 1e-5)) / 2e-5


def check_wrapped_step(process: WrappedNormal) -> None:
    """Oracle prediction and one step, where images overlap, against the ancestral formula and the brute score."""
    x, x_t, k, j = 0.1, 0.55, 900, 897
    state = torch.tensor([x_t]).double()
    rows = Case(process, state.unsqueeze(0)).many(1)[1]
    prediction = process.oracle(torch.tensor([[x]]).double(), state.unsqueeze(0), at(1 - k / 1000, rows, state), rows)
    sigma_k, sigma_j = (0.005 * 100 ** ((i - 1) / 999) for i in (k, j))
    change = sigma_k**2 - sigma_j**2
    mean = torch.tensor([x_t + change * brute_score(x_t - x, sigma_k)]).double()
    variance = torch.tensor([change * sigma_j**2 / sigma_k**2]).double()
    case = Case(process, FRAC[:1, :1], "torus")
    suite.check_step_moments(case, state, prediction[0], 1 - k / 1000, 1 - j / 1000, mean, variance)


def test_wrapped_normal_suite() -> None:
    """Ends, target, randomness; a coarse chain where images do not overlap, so that the step is exact."""
    suite.check_noise_end(SINGLE, tolerance=0.008)  # at sigma 0.5 the first circular moment is 0.0072, not 0
    suite.check_data_end(WRAPPED, start=0.999)
    suite.check_target(WRAPPED)
    suite.check_generator(WRAPPED)
    suite.check_batching(WRAPPED)
    suite.check_chain(SINGLE, start=0.5)
    suite.check_chain(WRAPPED_RESTRICTED, start=0.5)


def test_wrapped_normal_limit() -> None:
    """The predictor on 300 steps, circular moments to 0.01, and one step directly."""
    suite.check_chain(ONE, tolerance=0.01)
    check_wrapped_step(WrappedNormal((1,)))


def test_corrector_step() -> None:
    """One Langevin step: mean x - d sqrt(lambda) prediction, variance 2 d with d = gamma (sigma_k / sigma_1)^2."""
    process = WrappedNormal((1,), step_size=1e-5)
    case = Case(process, FRAC[:1, :1], "torus")
    x_t, rows = torch.full((case.rows, 1), 0.98).double(), case.many()[1]
    moved = process.correct(x_t, torch.full_like(x_t, 0.7), at(0.5, rows, x_t), rows, seeded(3))
    size = 1e-5 * float(process.sigma[500]) ** 2 / 0.005**2
    mean = torch.tensor([0.98 - size * 0.7 / float(process.sigma[500])]).double()
    compare_moments(case, moved, mean, torch.tensor([2 * size]).double(), None, "one corrector step")


@pytest.mark.parametrize("t", [0.15, 0.5])
def test_corrector_keeps_the_marginal(t: float) -> None:
    """Small steps at fixed t, with overlapping images and without."""
    process = WrappedNormal((1,), step_size=2.5e-7)
    suite.check_corrector(Case(process, FRAC[:1, :1], "torus", rows=50_000), t, repeats=20, tolerance=0.002)


def test_no_corrector_noise_at_the_last_step() -> None:
    """At k = 1 the corrector is deterministic, at k = 2 it is not."""
    process, (x, rows) = WrappedNormal(), WRAPPED.many(20)
    for k, same in ((1, True), (2, False)):
        a, b = (process.correct(x, 0 * x + 0.1, at(1 - k / 1000, rows, x), rows, seeded(i)) for i in (1, 2))
        assert torch.equal(a, b) is same
        assert not torch.equal(a, x)


@pytest.mark.parametrize("process", [WrappedNormal(), TorusFlow()])
@pytest.mark.parametrize("line", [(1, 1, 0), (1, 2, 0), (1, 1, 1), (0, 0, 1), (1, -1, 0)])
def test_prior_is_uniform_on_lines(process: Process, line: tuple[int, int, int]) -> None:
    """A row on a slanted line is spread evenly over all of it, not only over the projection of the cell."""
    v = torch.tensor([line]).double()
    case = Case(process, FRAC[:1], "torus", subspace=(v.T @ v / v.square().sum()).unsqueeze(0))
    x, rows = case.many(50_000)
    along = (process.prior(x, rows, seeded(4)) - x)[:, v[0] == 1][:, :1]
    found = suite.features(along, "torus", torch.zeros(()))
    assert float((found.mean(0) / found.std(0)).abs().max()) < 5 / len(along) ** 0.5


@pytest.mark.parametrize("process", [LinearFlow((3,), mean_free=True), TorusFlow()])
def test_mean_free_velocities(process: Process) -> None:
    """Targets have no mean over a structure, and a mean in a prediction changes neither loss nor step."""
    x, rows = Case(process, FRAC).many(60)
    t, s = at(0.3, rows, x), at(0.6, rows, x)
    x_t, target = process.corrupt(x, t, rows, seeded(1))
    assert float(rows.mean(target).abs().max()) < 1e-12
    v = torch.randn(x.shape, generator=seeded(2), dtype=x.dtype)
    drift = torch.randn(rows.num_structures, 3, generator=seeded(3), dtype=x.dtype)[rows.index]
    pairs = [(process.loss(p, target, t, rows), process.step(x_t, p, t, s, rows, None)) for p in (v, v + drift)]
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-10, atol=1e-10)


def test_fixed() -> None:
    """A fixed field is not touched by anything."""
    process, (x, rows) = Fixed((3,)), CASES["flow"].many(20)
    for t in (0.0, 0.7):
        drawn = suite.outputs(process, x, rows, lambda: seeded(0), t)
        assert all(torch.equal(value, x) for value in drawn.values())


# --- planted bugs -------------------------------------------------------------------------------------------------


class BetaVariance(VariancePreserving):
    """Noise of variance beta where the posterior's belongs."""

    def step(self, x_t, prediction, t, s, rows, generator):
        log_t, log_s = self._log_alpha_bar(t), self._log_alpha_bar(s)
        lacking = torch.expm1(log_t - log_s).square() / -torch.expm1(log_t)
        extra = normal(rows, self.shape, x_t.dtype, generator) * rows.spread(lacking.sqrt(), x_t)
        return super().step(x_t, prediction, t, s, rows, generator) + extra * (s < 1).reshape(-1, 1)[rows.index]


def late(base: type) -> type:
    """A process whose step ends one index before s."""

    class Late(base):
        def step(self, x_t, prediction, t, s, rows, generator):
            return super().step(x_t, prediction, t, torch.where(s < 1, s - 1 / 12, s), rows, generator)

    return Late


class OldPrecision(BayesianFlow):
    """The message has the precision of the interval before."""

    def step(self, x_t, prediction, t, s, rows, generator):
        rho_t, rho_s, rho_r = (rows.spread(self._precision(u), x_t) for u in (t, s, 2 * t - s))
        y = prediction + normal(rows, self.shape, x_t.dtype, generator) / (rho_t - rho_r).sqrt()
        return (rho_t * x_t + (rho_s - rho_t) * y) / rho_s


class WidePrior(VariancePreserving):
    """A prior 2 % too wide."""

    def prior(self, like, rows, generator):
        return 1.02 * super().prior(like, rows, generator)


class NearestImage(WrappedNormal):
    """The score of the nearest image alone."""

    def _target(self, shift, t, rows):
        nearest = shift - shift.round()
        return nearest / self._at(self.sigma, t, rows, shift).square() / self._at(self.norm, t, rows, shift)


class WrongSign(VariancePreserving):
    """The target is minus the noise."""

    def corrupt(self, x, t, rows, generator):
        x_t, target = super().corrupt(x, t, rows, generator)
        return x_t, -target


class WrongDirection(TorusFlow):
    """The step goes against the velocity."""

    def step(self, x_t, prediction, t, s, rows, generator):
        return super().step(x_t, -prediction, t, s, rows, generator)


def unprojected(base: type, method: str) -> type:
    """A process that forgets the subspace in one of its methods."""

    class Unprojected(base):
        pass

    def forgetful(self, *args):
        free = [type(a)(a.level, a.index, a.num_structures) if hasattr(a, "subspace") else a for a in args]
        return getattr(base, method)(self, *free)

    setattr(Unprojected, method, forgetful)
    return Unprojected


class GlobalNoise(LinearFlow):
    """Draws from the global state."""

    def corrupt(self, x, t, rows, generator):
        return super().corrupt(x, t, rows, None)


class BatchNoise(LinearFlow):
    """Standardises its noise over the batch."""

    def prior(self, like, rows, generator):
        noise = super().prior(like, rows, generator)
        return noise / noise.square().mean().sqrt()


class FullTarget(VariancePreserving):
    """The target of a restricted row is the whole noise."""

    def corrupt(self, x, t, rows, generator):
        return super().corrupt(x, t, rows, generator)[0], normal(rows, self.shape, x.dtype, generator)


def restrict(process: type, subspace: Tensor, x: Tensor, space: suite.Space = "euclidean") -> Case:
    """A restricted case of a process of three numbers a row."""
    return Case(process((3,)), x, space, subspace=subspace)


EARLY_GAUSSIAN = Case(late(VariancePreserving)((3,), 12), 4 * FRAC)
EARLY_DISCRETE = Case(late(Discrete)(MARGINAL, 12), torch.tensor([2, 4]), "categorical")
PLANTED: dict[str, Callable[[], object]] = {
    "posterior variance": lambda: suite.check_chain(Case(BetaVariance((3,)), 4 * FRAC)),
    "index of a gaussian": lambda: suite.check_chain(EARLY_GAUSSIAN),
    "index of discrete": lambda: suite.check_chain(EARLY_DISCRETE),
    "index of a precision": lambda: suite.check_chain(Case(OldPrecision((3,)), 3 * FRAC)),
    "prior scale": lambda: suite.check_prior(Case(WidePrior((3,)), FRAC)),
    "prior against noise end": lambda: suite.check_noise_end(Case(WidePrior((3,)), FRAC)),
    "nearest image, one step": lambda: check_wrapped_step(NearestImage((1,))),
    "nearest image, fine chain": lambda: suite.check_chain(
        Case(NearestImage((1,)), FRAC[:1, :1], "torus", kernel="limit", rows=20_000), tolerance=0.01
    ),
    "coarse grid of a limit kernel": lambda: suite.check_chain(SINGLE),
    "sign of the target": lambda: suite.check_target(Case(WrongSign((3,)), FRAC)),
    "sign of the step": lambda: suite.check_data_end(Case(WrongDirection(mean_free=False), FRAC, "torus")),
    "sign of the step, chain": lambda: suite.check_chain(Case(WrongDirection(mean_free=False), FRAC, "torus")),
    "step leaves the plane": lambda: suite.check_restricted(
        restrict(unprojected(VariancePreserving, "step"), SITE, FRAC)
    ),
    "target leaves the plane": lambda: suite.check_restricted(restrict(FullTarget, SITE, FRAC)),
    "prior leaves the plane": lambda: suite.check_restricted(restrict(unprojected(LinearFlow, "prior"), SITE, FRAC)),
    "corrector leaves the plane": lambda: suite.check_restricted(
        restrict(unprojected(WrappedNormal, "correct"), SITE, FRAC, "torus")
    ),
    "readout leaves the plane": lambda: suite.check_restricted(
        restrict(unprojected(BayesianFlow, "readout"), SITE, FRAC)
    ),
    "global noise": lambda: suite.check_generator(Case(GlobalNoise((3,)), FRAC)),
    "noise of the batch": lambda: suite.check_batching(Case(BatchNoise((3,)), FRAC)),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_suite_fails_on(bug: str) -> None:
    """Every planted bug is found by the check meant for it."""
    with pytest.raises(AssertionError):
        PLANTED[bug]()


def test_wrong_prior_is_invisible_in_the_chain() -> None:
    """Why the prior has a check of its own."""
    suite.check_chain(Case(WidePrior((3,)), FRAC))


def test_size_of_what_the_coarse_chain_sees() -> None:
    """A wrong variance stands out by more than 50 standard errors on three steps."""
    with pytest.raises(AssertionError, match=r"off by [0-9]{2,}"):
        suite.check_chain(Case(BetaVariance((3,)), 4 * FRAC), bound=50)
