"""The Bayesian flow on the circle: von Mises messages, the schedule, conformance, planted bugs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from chem.ragged import Rows
from generative.noise import normal
from generative.processes.circular import (
    EXACT,
    FAINTEST,
    CircularFlow,
    entropy,
    linear_entropy_accuracies,
    mean_cosine,
    message_moments,
    read_belief,
    von_mises_angles,
)
from tests.generative import conformance as suite
from tests.generative.conformance import Case, at, seeded

FRAC = torch.tensor([[0.1, 0.93], [0.52, 0.02]], dtype=torch.float64)
ONE = FRAC[:1, :1]
ROWS = 16_000
CASES = {
    "1000 steps": Case(CircularFlow((2,)), FRAC, rows=ROWS),
    "12 steps": Case(CircularFlow((2,), 12, 300.0), FRAC, rows=ROWS),
    "33 steps, structures": Case(CircularFlow((2, 1), 33), FRAC[:1].unsqueeze(2), level="structure", rows=ROWS),
    "60 steps, flow": Case(CircularFlow((2,), 60, distance="squared", sampler="flow"), FRAC, rows=ROWS),
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def von_mises_density(concentration: float, points: int = 20_001) -> tuple[Tensor, Tensor]:
    """Angles of a grid over the circle, and the masses of vM(0, c) there."""
    angle = torch.linspace(-math.pi, math.pi, points, dtype=torch.float64)[:-1]
    mass = torch.exp(concentration * (angle.cos() - 1))
    return angle, mass / mass.sum()


# --- the von Mises distribution -----------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [0.0, 0.1, 1.0, 8.0, 100.0])
def test_entropy_and_moments(concentration: float) -> None:
    """Against quadrature: entropy, mean cosine, and the moments of a message."""
    angle, mass = von_mises_density(concentration)
    c = torch.tensor(concentration).double()
    step = 2 * math.pi / len(angle)
    assert float(entropy(c)) == pytest.approx(float(-(mass * (mass / step).log()).sum()), abs=1e-9)
    cos = float((mass * angle.cos()).sum())
    assert float(mean_cosine(c)) == pytest.approx(cos, rel=1e-7)  # torch's Bessel functions have eight digits
    mean, along, across = (float(v) for v in message_moments(c))
    assert mean == pytest.approx(concentration * cos, rel=1e-7)
    squares = float((mass * angle.cos().square()).sum())
    assert along == pytest.approx(concentration**2 * (squares - cos**2), rel=1e-6, abs=1e-12)
    assert across == pytest.approx(concentration**2 * float((mass * angle.sin().square()).sum()), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("concentration", [0.01, 0.125, 1.0, 8.0, 100.0, 1000.0, 1e5])
def test_angles_have_the_moments(concentration: float) -> None:
    """cos, cos 2y and sin^2 of angles made from equal quantiles of a normal, at every concentration."""
    u = (torch.arange(200_000).double() + 0.5) / 200_000
    z = torch.special.ndtri(u)
    y = torch.from_numpy(von_mises_angles(concentration, z.numpy()))
    c = torch.tensor(concentration).double()
    a = float(mean_cosine(c))
    assert float(1 - y.cos().mean()) == pytest.approx(1 - a, rel=1e-4)
    assert float(y.sin().square().mean()) == pytest.approx(a / concentration, rel=1e-4)
    assert abs(float(y.sin().mean())) < 1e-9
    assert bool((y.diff() > 0).all()) and float(y.abs().max()) <= math.pi


def test_angles_of_the_process() -> None:
    """The table of quantiles, against the function it holds and against numpy's own draws."""
    process = CASES["12 steps"].process
    assert isinstance(process, CircularFlow)
    z = 1.1 * torch.randn(5000, 12, 2, generator=seeded(1), dtype=torch.float64)
    y = process._angles(z)
    for e, alpha in enumerate(process.accuracy.tolist()):
        exact = torch.from_numpy(von_mises_angles(alpha, z[:, e].numpy()))
        torch.testing.assert_close(y[:, e], exact, rtol=0, atol=2e-4)
    drawn = process._angles(torch.randn(40_000, 12, 2, generator=seeded(2), dtype=torch.float64))[:, :, 0].numpy()
    reference = np.random.default_rng(3)
    for e, alpha in enumerate(process.accuracy.tolist()):
        other = reference.vonmises(0, alpha, 40_000)
        for f in (np.cos, np.sin, lambda v: np.cos(2 * v), np.abs):
            a, b = f(drawn[:, e]), f(other)
            assert abs(a.mean() - b.mean()) < 5 * math.sqrt((a.var() + b.var()) / 40_000), (e, alpha)


# --- the schedule -------------------------------------------------------------------------------------------------


def simulated_entropy(process: CircularFlow, t: float, rows: int = 20_000) -> tuple[float, float]:
    """Mean entropy of drawn beliefs at t, and its standard error."""
    x, index = Case(process, ONE).many(rows)
    h = entropy(read_belief(process.belief(x, at(t, index, x), index, seeded(4)))[1])
    return float(h.mean()), float(h.std()) / rows**0.5


@pytest.mark.parametrize(("steps", "beta_1"), [(1000, 1000.0), (100, 1000.0), (10, 300.0), (33, 1e4)])
def test_entropy_falls_linearly(steps: int, beta_1: float) -> None:
    """From ln 2 pi to the entropy of vM(beta_1), in beliefs that the schedule has not seen."""
    process = CircularFlow((1,), steps, beta_1)
    end = float(entropy(torch.tensor(beta_1).double()))
    for i in range(1, 11):
        t = round(i * steps / 10) / steps
        expected = math.log(2 * math.pi) * (1 - t) + end * t
        found, error = simulated_entropy(process, t)
        assert abs(found - expected) < 4 * error + 4e-3, f"entropy {found:.4f} at t = {t}, not {expected:.4f}"


def test_entropy_of_von_mises_chains() -> None:
    """The same in chains of 1000 messages, every one a von Mises number of numpy's: also their concentrations."""
    accuracies = linear_entropy_accuracies(1000, 1000.0)
    draws, chains, process = np.random.default_rng(5), np.zeros((2, 4000)), CircularFlow((1,))
    end = float(entropy(torch.tensor(1000.0).double()))
    for i, alpha in enumerate(accuracies, 1):
        y = draws.vonmises(0, alpha, 4000)
        chains += alpha * np.stack([np.cos(y), np.sin(y)])
        if i not in (5, 40, 100, 300, 600, 1000):
            continue
        c = torch.from_numpy(np.hypot(*chains))
        h, expected = entropy(c), math.log(2 * math.pi) * (1 - i / 1000) + end * i / 1000
        assert abs(float(h.mean()) - expected) < 4 * float(h.std()) / 4000**0.5 + 4e-3
        x, rows = Case(process, ONE).many(20_000)
        state = process.belief(x, at(i / 1000, rows, x), rows, seeded(6))
        mean, own = read_belief(state)
        turned = (2 * math.pi * (mean - x)).cos().flatten()
        pairs = ((c.log(), own.flatten().log()), (c, own.flatten()), (torch.from_numpy(chains[0]) / c, turned))
        for a, b in pairs:
            error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
            assert abs(float(a.mean() - b.mean())) < 5 * error, f"{i} messages"
            assert float(b.std()) == pytest.approx(float(a.std()), rel=0.1)


def test_accuracies() -> None:
    """Deterministic, positive, the first given by its entropy alone; settings out of range are refused."""
    alphas = linear_entropy_accuracies(100, 1000.0)
    linear_entropy_accuracies.cache_clear()
    assert alphas == linear_entropy_accuracies(100, 1000.0) and len(alphas) == 100 and min(alphas) > 0
    end = float(entropy(torch.tensor(1000.0).double()))
    first = math.log(2 * math.pi) - float(entropy(torch.tensor(alphas[0]).double()))
    assert first == pytest.approx((math.log(2 * math.pi) - end) / 100, rel=1e-3)
    assert linear_entropy_accuracies(1, 50.0)[0] == pytest.approx(50, rel=1e-4)
    for settings in ((0, 1000.0), (10, 0.0), (10, math.nan)):
        with pytest.raises(ValueError, match="allowed: steps >= 1 and beta_1 > 0"):
            linear_entropy_accuracies(*settings)
    with pytest.raises(ValueError, match="distance = 'l1', allowed: cosine, squared"):
        CircularFlow(steps=10, distance="l1")  # type: ignore[arg-type]


# --- the process --------------------------------------------------------------------------------------------------


def test_update_of_the_paper() -> None:
    """One message: m' and c' by atan2 and the law of cosines, with the y that was drawn."""
    process = CASES["12 steps"].process
    assert isinstance(process, CircularFlow)
    x, rows = Case(process, FRAC).many(200)
    state, _ = process.corrupt(x, at(4 / 12, rows, x), rows, seeded(7))
    later = process.update(state, x, at(4 / 12, rows, x), at(5 / 12, rows, x), rows, seeded(8))
    message, alpha = later - state, float(process.accuracy[4])
    torch.testing.assert_close(message.norm(dim=-1), torch.full_like(x, alpha), rtol=1e-9, atol=0)
    y = torch.atan2(message[..., 1], message[..., 0])
    (m, c), (m_later, c_later) = read_belief(state), read_belief(later)
    m, m_later = 2 * math.pi * m, 2 * math.pi * m_later
    expected = torch.atan2(alpha * y.sin() + c * m.sin(), alpha * y.cos() + c * m.cos())
    torch.testing.assert_close((m_later - expected).cos(), torch.ones_like(x))
    torch.testing.assert_close(c_later, (alpha**2 + c.square() + 2 * alpha * c * (y - m).cos()).sqrt())


def test_prior() -> None:
    """Uniform means of concentration 1e-7, the shape of the data and a pair."""
    x, rows = Case(CircularFlow(steps=10), torch.zeros(1, 3).double()).many(20_000)
    state = CircularFlow(steps=10).prior(x, rows, seeded(9))
    mean, c = read_belief(state)
    assert state.shape == (20_000, 3, 2) and state.dtype == x.dtype
    torch.testing.assert_close(c, torch.full_like(c, FAINTEST))
    found = suite.features(mean, "torus", torch.zeros(()))
    assert float((found.mean(0) / found.std(0)).abs().max()) < 5 / len(x) ** 0.5


def test_ends(case: Case) -> None:
    """The prior at t = 0, the data at t = 1."""
    suite.check_noise_end(case)
    suite.check_data_end(case, start=0.75)


def test_chain(case: Case) -> None:
    """Three steps with oracle predictions reproduce the flow distribution."""
    suite.check_chain(case)


def test_single_messages() -> None:
    """So does a chain of single messages, through the place where they stop to be drawn one by one."""
    process = CircularFlow((1,), EXACT + 8, 300.0)
    x, rows = Case(process, ONE).many(20_000)
    state, draws = process.prior(x, rows, seeded(10)), seeded(11)
    for i in range(EXACT + 8):
        times = (at(k / (EXACT + 8), rows, x) for k in (i, i + 1))
        state = process.step(state, x, *times, rows, draws)
        if i + 1 in (1, EXACT - 1, EXACT, EXACT + 1, EXACT + 8):
            forward, _ = process.corrupt(x, at((i + 1) / (EXACT + 8), rows, x), rows, seeded(12))
            assert suite.standard_errors(state, forward, Case(process, ONE), rows) < suite.BOUND, i


def test_target_and_randomness(case: Case) -> None:
    """The oracle has no loss; draws follow the generator, and with unit streams not the batch."""
    suite.check_target(case)
    suite.check_generator(case)
    suite.check_batching(case)


def test_translation(case: Case) -> None:
    """Shifting the data turns the belief: messages depend on the angle from x alone."""
    process, (x, rows) = case.process, case.many(200)
    a, _ = process.corrupt(x, at(0.5, rows, x), rows, seeded(13))
    b, _ = process.corrupt(x + 0.31, at(0.5, rows, x), rows, seeded(13))
    off = read_belief(b)[0] - read_belief(a)[0] - 0.31
    assert float((off - off.round()).abs().max()) < 1e-5
    torch.testing.assert_close(read_belief(a)[1], read_belief(b)[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("i", [0, 3, 11])
def test_loss_is_the_divergence_of_the_messages(i: int) -> None:
    """T times KL(vM(x, alpha) || vM(x_hat, alpha)) of the message that follows t, by quadrature."""
    process, squared = CircularFlow((1,), 12, 300.0), CircularFlow((1,), 12, 300.0, "squared")
    x, rows = Case(process, ONE).many(1)
    alpha, off = float(process.accuracy[i]), 0.03
    angle, mass = von_mises_density(alpha)
    divergence = float((mass * alpha * (angle.cos() - (angle - 2 * math.pi * off).cos())).sum())
    found = [float(p.loss(x - off + 2, x, at(i / 12, rows, x), rows)) for p in (process, squared)]
    assert found[0] == pytest.approx(12 * divergence, rel=1e-9)
    ratio = (2 * math.pi * off) ** 2 / 2 / (1 - math.cos(2 * math.pi * off))
    assert found[1] == pytest.approx(ratio * found[0], rel=1e-9)


def test_float32() -> None:
    """Beliefs of a thousand messages in float32 have the concentrations of float64."""
    process = CircularFlow((1,))
    x, rows = Case(process, ONE).many(20_000)
    for t in (0.02, 0.3, 1.0):
        double, single = (
            read_belief(process.corrupt(v, at(t, rows, v), rows, seeded(14))[0])[1].double() for v in (x, x.float())
        )
        error = float((double.var() + single.var()).sqrt()) / len(x) ** 0.5
        assert abs(float(double.mean() - single.mean())) < 5 * error


# --- planted bugs -------------------------------------------------------------------------------------------------


class AdditiveAccuracy(CircularFlow):
    """Concentrations add whatever the directions are."""

    def update(self, x_t, x, t, s, rows, generator):
        moved = super().update(x_t, x, t, s, rows, generator)
        added = x_t.norm(dim=-1) + (moved - x_t).norm(dim=-1)
        return moved * (added / moved.norm(dim=-1)).unsqueeze(-1)


class LateMessages(CircularFlow):
    """Messages i..j - 1 instead of i + 1..j."""

    def update(self, x_t, x, t, s, rows, generator):
        one = 1 / self.resolution
        return super().update(x_t, x, (t - one).clamp(min=0), torch.where(s < 1, s - one, s - one), rows, generator)


class WideMessages(CircularFlow):
    """Later messages vary as if there were one more of them."""

    def _messages(self, x, i, j, rows: Rows, generator):
        exact = super()._messages(x, i, j, rows, generator)
        deviation = self.accuracy[j - 1].sqrt() * (i > 0)
        return exact + rows.spread(deviation, exact) * normal(rows, (*self.shape, 2), x.dtype, generator)


class Degrees(CircularFlow):
    """Half a turn where a whole one belongs."""

    def _messages(self, x, i, j, rows, generator):
        return super()._messages(torch.where(rows.spread(i, x) > 0, x / 2, x), i, j, rows, generator)


class CommonMean(CircularFlow):
    """Draws one message for all coordinates of a row."""

    def _messages(self, x, i, j, rows, generator):
        return super()._messages(x, i, j, rows, None)


PLANTED: dict[str, Callable[[], object]] = {
    "accuracies add": lambda: suite.check_chain(Case(AdditiveAccuracy((2,), 12), FRAC, rows=ROWS)),
    "index of a message": lambda: suite.check_chain(Case(LateMessages((2,), 12), FRAC, rows=ROWS)),
    "variance of messages": lambda: suite.check_chain(Case(WideMessages((2,), 60), FRAC, rows=ROWS)),
    "angle": lambda: suite.check_chain(Case(Degrees((2,), 12), FRAC, rows=ROWS)),
    "global noise": lambda: suite.check_generator(Case(CommonMean((2,), 12), FRAC)),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_suite_fails_on(bug: str) -> None:
    """Every planted bug is found by the check meant for it."""
    with pytest.raises(AssertionError):
        PLANTED[bug]()


def test_a_schedule_that_is_not_linear_is_found() -> None:
    """Equal accuracies instead of those of the schedule."""
    process = CircularFlow((1,), 100)
    process.moments[1:] = process.moments[-1] * torch.arange(1, 101).double().unsqueeze(1) / 100
    end = float(entropy(torch.tensor(1000.0).double()))
    found, error = simulated_entropy(process, 0.5)
    assert abs(found - (math.log(2 * math.pi) + end) / 2) > 10 * error + 4e-3
