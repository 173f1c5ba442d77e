"""What every process must pass, without training: the shared conformance suite.

A process test writes down a `Case` and calls the checks, one line each. The networks are oracles, so the reverse
chain is compared with the forward marginal it must reproduce. Exact kernels are tested on a coarse grid with many
rows: they are exact at any step count, while a wrong variance or an index off by one shrinks with the step. Kernels
that are exact only in the limit get a fine grid and a stated tolerance, where the chain is blunt, so one step is also
compared with its mean and variance. All in float64, in standard errors, with fixed generators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.periodic import torus_log, wrap
from chem.ragged import Level, Rows
from generative.noise import UNIT, Random, UnitStreams
from generative.process import Process

Space = Literal["euclidean", "torus", "categorical"]
ROWS = 200_000
BOUND = 5.0  # standard errors; the largest of some dozens of correct moments stays below it
FLOOR = 1e-7  # added to every standard error: rounding, where a distribution has collapsed to a point


def whole(x: Tensor, rows: Rows) -> Tensor:
    """The rows themselves."""
    return x


def relative(x: Tensor, rows: Rows) -> Tensor:
    """Rows (two to a structure) less the first of their structure: what a mean-free process defines on a torus."""
    return wrap(x - x[2 * rows.index])


@dataclass(frozen=True)
class Case:
    """A process and the data of one structure, x (A, *shape), float64 or int64, which the checks repeat many times.

    subspace: (A, D, D) projectors or None. view: the part of the state that is compared. kernel: "exact" runs chains
    of 3 steps, "limit" of 300. rows: number of rows of a chain.
    """

    process: Process
    x: Tensor
    space: Space = "euclidean"
    level: Level = "atom"
    subspace: Tensor | None = None
    view: Callable[[Tensor, Rows], Tensor] = whole
    kernel: Literal["exact", "limit"] = "exact"
    rows: int = ROWS

    def many(self, rows: int | None = None) -> tuple[Tensor, Rows]:
        """x (R, *shape) for many copies of the structure, and its rows."""
        atoms = len(self.x)
        copies = (rows or self.rows) // atoms
        x = self.x.repeat(copies, *[1] * (self.x.dim() - 1))
        subspace = None if self.subspace is None else self.subspace.repeat(copies, 1, 1)
        return x, Rows(self.level, torch.arange(copies).repeat_interleave(atoms), copies, subspace)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Entrywise distance of two states."""
        return torus_log(a, b).abs() if self.space == "torus" else (a - b).abs()


def seeded(seed: int) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


def features(x: Tensor, space: Space, center: Tensor, classes: int = 0) -> Tensor:
    """(R, F) numbers whose means are the moments compared: mean and variance, circular moments, or frequencies."""
    if space == "categorical":
        return F.one_hot(x.flatten(1) if x.dim() > 1 else x.unsqueeze(1), classes).flatten(1).double()
    d = (x - center).flatten(1) if x.dim() > 1 else (x - center).unsqueeze(1)
    if space == "euclidean":
        return torch.cat([d, d.square()], 1)
    angle = 2 * torch.pi * d
    return torch.cat([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)


def _worst(difference: Tensor, variance: Tensor, tolerance: float) -> float:
    excess = (difference.abs() - tolerance).clamp(min=0)
    return float((excess / (variance.sqrt() + FLOOR)).max())


def standard_errors(a: Tensor, b: Tensor, case: Case, rows: Rows, tolerance: float = 0.0) -> float:
    """The largest difference between the moments of two samples, less `tolerance`, in standard errors.

    Rows of one structure may depend on each other, so each is compared apart, over independent structures.
    """
    a, b = (case.view(v, rows).unflatten(0, (-1, len(case.x))) for v in (a, b))
    center = b[0] if case.space == "torus" else b.double().mean(0)
    classes = int(max(a.max(), b.max())) + 1 if case.space == "categorical" else 0
    fa, fb = (features(v, case.space, center, classes) for v in (a, b))
    return _worst(fa.mean(0) - fb.mean(0), fa.var(0) / len(fa) + fb.var(0) / len(fb), tolerance)


def _assert_close(found: float, bound: float, what: str) -> None:
    assert found < bound, f"{what}: off by {found:.1f} standard errors (allowed {bound:g})"


def at(t: float, rows: Rows, x: Tensor) -> Tensor:
    """The time t for every structure, (B,)."""
    return torch.full((rows.num_structures,), t, dtype=x.dtype if x.is_floating_point() else torch.float64)


def check_prior(case: Case, mean: float = 0.0, variance: float = 1.0, probabilities: Tensor | None = None) -> None:
    """A draw at t = 0 has the stated moments; on a torus it is uniform, among categories it has `probabilities`."""
    x, rows = case.many()
    drawn = case.process.prior(x, rows, seeded(0))
    assert drawn.shape == x.shape and drawn.dtype == x.dtype, f"prior drew {drawn.dtype} {tuple(drawn.shape)}"
    if case.space == "torus":
        assert bool((drawn >= 0).all() and (drawn < 1).all()), "fractional coordinates lie in [0, 1)"
    _check_moments(case, drawn, torch.tensor(mean), torch.tensor(variance), probabilities, "prior")


def _check_moments(
    case: Case, drawn: Tensor, mean: Tensor, variance: Tensor, probabilities: Tensor | None, what: str
) -> None:
    classes = 0 if probabilities is None else len(probabilities)
    found = features(drawn, case.space, mean, classes)
    expected = torch.zeros(found.shape[1], dtype=found.dtype)
    if case.space == "categorical":
        assert probabilities is not None
        expected = probabilities.repeat(found.shape[1] // classes)
    elif case.space == "euclidean":
        expected[found.shape[1] // 2 :] = variance.flatten()
    _assert_close(_worst(found.mean(0) - expected, found.var(0) / len(found), 0.0), BOUND, what)


def check_noise_end(case: Case, tolerance: float = 0.0) -> None:
    """Data corrupted at t = 0 are distributed as the prior."""
    x, rows = case.many()
    noisy, _ = case.process.corrupt(x, at(0, rows, x), rows, seeded(1))
    found = standard_errors(noisy, case.process.prior(x, rows, seeded(2)), case, rows, tolerance)
    _assert_close(found, BOUND, "corrupt at t = 0 against prior")


def check_data_end(case: Case, start: float = 0.99, accuracy: float = 1e-9) -> None:
    """Corrupting at t = 1 returns x where the state is a noisy datum; an oracle step to t = 1 and readout give x."""
    process, (x, rows) = case.process, case.many(600)
    t, one = at(start, rows, x), at(1, rows, x)
    if process.clamps:
        assert float(case.distance(process.corrupt(x, one, rows, seeded(3))[0], x).max()) < accuracy
    noisy, _ = process.corrupt(x, t, rows, seeded(4))
    last = process.step(noisy, process.oracle(x, noisy, t, rows), t, one, rows, seeded(5))
    prediction = process.oracle(x, last, one, rows) if process.reads_prediction else None
    read = process.readout(last, prediction, rows)
    off = case.distance(case.view(read, rows), case.view(x, rows)).max()
    assert off < accuracy, f"an oracle step to t = 1 misses the data by {float(off):.2e}"


def check_target(case: Case, accuracy: float = 1e-9) -> None:
    """The oracle's prediction is the training target: its loss is zero, and that of another row's is not."""
    process, (x, rows) = case.process, case.many(600)
    for t in (0.0, 0.25, 0.6, 0.9):
        noisy, target = process.corrupt(x, at(t, rows, x), rows, seeded(6))
        truth = process.oracle(x, noisy, at(t, rows, x), rows)
        loss = process.loss(truth, target, at(t, rows, x), rows)
        assert loss.shape == (len(x),)
        assert float(loss.max()) < accuracy, f"the oracle has loss {float(loss.max()):.2e} at t = {t}"
        other = process.loss(-truth + 1 / truth.flatten(1).shape[1], target, at(t, rows, x), rows)
        assert float(other.max()) > 1e-6, "the loss does not see the prediction"


def check_chain(case: Case, start: float = 0.0, tolerance: float = 0.0, bound: float = BOUND) -> float:
    """The oracle's reverse chain from t = start to 1 has the forward marginal at its times (a tenth of them if fine).

    Returns the largest difference in standard errors.
    """
    process, (x, rows) = case.process, case.many()
    steps, every = (3, 1) if case.kernel == "exact" else (300, 30)
    times = torch.linspace(start, 1, steps + 1).tolist()
    draws, reference, worst = seeded(7), seeded(8), 0.0
    t = at(start, rows, x)
    state = process.corrupt(x, t, rows, draws)[0] if start else process.prior(x, rows, draws)
    for i, time in enumerate(times[1:], 1):
        s = at(time, rows, x)
        state = process.step(state, process.oracle(x, state, t, rows), t, s, rows, draws)
        t = s
        if i % every == 0:
            forward, _ = process.corrupt(x, s, rows, reference)
            found = standard_errors(state, forward, case, rows, tolerance)
            _assert_close(found, bound, f"chain of {steps} steps at t = {time:.3f}")
            worst = max(worst, found)
    return worst


def check_step_moments(
    case: Case,
    x_t: Tensor,
    prediction: Tensor,
    t: float,
    s: float,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    probabilities: Tensor | None = None,
) -> None:
    """One step from the row x_t (*shape) with a given prediction has the stated mean and variance, or probabilities."""
    _, rows = Case(case.process, x_t.unsqueeze(0), level=case.level).many(case.rows)
    states, predictions = (v.expand(len(rows.index), *v.shape).clone() for v in (x_t, prediction))
    args = states, predictions, at(t, rows, x_t), at(s, rows, x_t), rows, seeded(9)
    what = f"one step from t = {t:.3f} to {s:.3f}"
    compare_moments(case, case.process.step(*args), mean, variance, probabilities, what)


def compare_moments(
    case: Case, drawn: Tensor, mean: Tensor | None, variance: Tensor | None, probabilities: Tensor | None, what: str
) -> None:
    """Rows drawn from one state against a mean and a variance (near the mean, on a torus) or probabilities."""
    straight = case
    if case.space == "torus":  # unrolled around the mean: the noise of one step is far below half a period
        assert mean is not None
        drawn, straight = mean + torus_log(mean.expand_as(drawn), drawn), Case(case.process, case.x)
    empty = torch.zeros(())
    _check_moments(
        straight, drawn, empty if mean is None else mean, empty if variance is None else variance, probabilities, what
    )


def check_corrector(case: Case, t: float, repeats: int, tolerance: float) -> float:
    """Corrector steps with oracle predictions keep the marginal at t; returns the difference in standard errors."""
    process, (x, rows) = case.process, case.many()
    draws, time = seeded(10), at(t, rows, x)
    state, _ = process.corrupt(x, time, rows, draws)
    for _ in range(repeats):
        state = process.correct(state, process.oracle(x, state, time, rows), time, rows, draws)
    found = standard_errors(state, process.corrupt(x, time, rows, seeded(11))[0], case, rows, tolerance)
    _assert_close(found, BOUND, f"{repeats} corrector steps at t = {t:.3f}")
    return found


def outputs(process: Process, x: Tensor, rows: Rows, generator: Callable[[], Random], t: float = 0.4) -> dict:
    """Everything a process draws, each with a generator of its own; x_t and the prediction are those of `corrupt`."""
    time, later = at(t, rows, x), at(0.5 + t / 2, rows, x)
    noisy, target = process.corrupt(x, time, rows, generator())
    prediction = process.oracle(x, noisy, time, rows)
    return {
        "prior": process.prior(x, rows, generator()),
        "corrupt": noisy,
        "target": target,
        "step": process.step(noisy, prediction, time, later, rows, generator()),
        "correct": process.correct(noisy, prediction, time, rows, generator()),
    }


def check_generator(case: Case) -> None:
    """Equal generators give equal draws, others do not, and the global random state stays as it was."""
    x, rows = case.many(60)
    before = torch.get_rng_state()
    first, again, other = (outputs(case.process, x, rows, partial(seeded, s)) for s in (12, 12, 13))
    assert torch.equal(before, torch.get_rng_state()), "the global random state has moved"
    for name, value in first.items():
        assert torch.equal(value, again[name]), f"{name} differs under equal generators"
    assert not torch.equal(first["corrupt"], other["corrupt"]), "corrupt ignores its generator"


def check_batching(case: Case) -> None:
    """With unit streams a structure's rows are the same alone, in its unit, and in a larger ragged batch."""
    counts = [1 + (7 * i) % 5 for i in range(3 * UNIT)]
    total = sum(counts) if case.level == "atom" else len(counts)
    x = case.x[torch.arange(total) % len(case.x)]

    def run(first: int, n: int) -> dict:
        batch = CrystalBatch(counts[first : first + n])
        begin, end = (sum(counts[:k]) if case.level == "atom" else k for k in (first, first + n))
        rows = batch.rows("frac_coords") if case.level == "atom" else batch.structures
        padded = counts[first : first + -(-n // UNIT) * UNIT]
        return outputs(case.process, x[begin:end], rows, lambda: UnitStreams(5, first, n, padded))

    everything = run(0, 3 * UNIT)
    for first, n in ((0, 1), (0, 5), (0, UNIT), (0, 2 * UNIT), (UNIT, UNIT), (UNIT, UNIT + 3), (2 * UNIT, 2)):
        begin = sum(counts[:first]) if case.level == "atom" else first
        for name, part in run(first, n).items():
            assert torch.equal(part, everything[name][begin : begin + len(part)]), f"{name} depends on the batch"


def check_restricted(case: Case, accuracy: float = 1e-9) -> None:
    """Every output stays in x + subspace, and the part of a prediction outside the subspace has no effect."""
    assert case.subspace is not None, "the case needs a subspace"
    process, (x, rows) = case.process, case.many(600)
    assert rows.subspace is not None
    for t in (0.0, 0.4):
        drawn = outputs(process, x, rows, lambda: seeded(14), t)
        for name in ("prior", "corrupt", "step", "correct"):
            off = _outside(drawn[name], x, rows, case.space)
            assert off < accuracy, f"{name} leaves the subspace by {off:.2e} at t = {t}"
        noisy, time = drawn["corrupt"], at(t, rows, x)
        truth = process.oracle(x, noisy, time, rows)
        noise = torch.randn(truth.shape, generator=seeded(15), dtype=truth.dtype)
        wild = truth + noise - rows.project(noise)
        later = at(0.5 + t / 2, rows, x)
        same, wilder = (process.step(noisy, p, time, later, rows, seeded(16)) for p in (truth, wild))
        assert float(case.distance(same, wilder).max()) < 1e-6, "a prediction outside the subspace has an effect"
        loss = process.loss(wild, drawn["target"], time, rows)
        assert float(loss.max()) < 1e-9, "the target, or the loss, sees directions in which the row is not free"
        read = process.readout(noisy, wild, rows)
        off = _outside(read, x, rows, case.space)
        assert off < accuracy, f"readout leaves the subspace by {off:.2e}"


def _outside(y: Tensor, x: Tensor, rows: Rows, space: Space) -> float:
    """How far y lies outside x + subspace; on a torus, outside the nearest periodic image of it."""
    shifts = torch.zeros(1, x[0].numel(), dtype=x.dtype)
    if space == "torus":
        shifts = torch.tensor(list(itertools.product(range(-4, 5), repeat=x[0].numel())), dtype=x.dtype)
    assert rows.subspace is not None
    d = (y - x).flatten(1)
    blocked = torch.eye(d.shape[1], dtype=x.dtype) - rows.subspace
    off = torch.einsum("rij,rsj->rsi", blocked, d.unsqueeze(1) + shifts).norm(dim=-1)
    return float(off.min(1).values.max())
