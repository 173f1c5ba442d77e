"""Intervals and protocols."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from evaluation.compositions.smact import CompositionRule
from evaluation.intervals import bootstrap, paired_difference, wilson
from evaluation.protocols import DEFAULT, LOOSE, PROTOCOLS, Tolerances, protocol


def test_wilson_against_known_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.9])
def test_wilson_covers_as_often_as_it_says(p):
    hits = np.random.default_rng(0).binomial(200, p, 4000)
    intervals = {h: wilson(int(h), 200) for h in set(hits.tolist())}
    covered = np.mean([intervals[h][0] <= p <= intervals[h][1] for h in hits.tolist()])
    assert 0.93 < covered < 0.97


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(3.0, 2.0, 500)
    (low, high), error = bootstrap(values)
    assert error == pytest.approx(values.std() / 500**0.5, rel=0.1)
    assert low < values.mean() < high and bootstrap(values, seed=0) == bootstrap(values, seed=0)
    assert bootstrap(values, np.median, seed=1)[0] != bootstrap(values, np.median, seed=2)[0]


def test_paired_difference_is_the_bootstrap_of_the_differences():
    g = np.random.default_rng(2)
    a, b = g.random(400) < 0.6, g.random(400) < 0.45
    value, (low, high) = paired_difference(a, b)
    assert value == pytest.approx(a.mean() - b.mean(), abs=1e-12) and low < value < high
    (slow_low, slow_high), error = bootstrap(a.astype(float) - b, resamples=5000, seed=3)
    assert (low, high) == pytest.approx((slow_low, slow_high), abs=0.006)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    turned, (down, up) = paired_difference(b, a)
    assert turned == -value and (down, up) == pytest.approx((-high, -low), abs=0.006)
    assert paired_difference(a, a) == (0.0, (0.0, 0.0)) and paired_difference(a, b) == (value, (low, high))


def test_pairing_narrows_the_interval_of_models_that_find_the_same():
    g = np.random.default_rng(4)
    a = g.random(1000) < 0.5
    b = np.where(g.random(1000) < 0.1, ~a, a)  # McNemar: variance (discordant - difference^2) / n
    value, (low, high) = paired_difference(a, b)
    assert high - low == pytest.approx(2 * 1.96 * (((a != b).mean() - value**2) / 1000) ** 0.5, rel=0.06)
    shares = (a.astype(float) + b) / 2  # of two seeds
    assert paired_difference(shares, b)[0] == pytest.approx(value / 2, abs=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_paired_interval_covers_as_often_as_it_says(p):
    g, hits = np.random.default_rng(5), 0
    for seed in range(400):
        a, b = g.random(300) < 0.5 + p / 2, g.random(300) < 0.5 - p / 2
        low, high = paired_difference(a, b, resamples=1000, seed=seed)[1]
        hits += low <= p <= high
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(1, 2, 1.5),
        lambda: bootstrap(np.zeros(0)),
        lambda: paired_difference(np.zeros(3), np.zeros(4)),
        lambda: paired_difference(np.zeros(0), np.zeros(0)),
        lambda: paired_difference(np.zeros(3), np.zeros(3), level=0),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match="allowed"):
        call()


def test_protocols_by_name():
    assert protocol("diffcsp-csp").matcher == LOOSE and protocol("cdvae-2022").composition.missing == "valid"
    assert protocol(PROTOCOLS["diffcsp-csp"]) is PROTOCOLS["diffcsp-csp"]
    with pytest.raises(ValueError, match="^protocol = 'csp', allowed: diffcsp-csp, cdvae-2022"):
        protocol("csp")
    with pytest.raises(FrozenInstanceError):
        protocol("diffcsp-csp").name = "mine"  # type: ignore[misc]


def test_hash_is_of_the_choices_and_not_of_the_name():
    base = protocol("diffcsp-csp")
    assert replace(base, name="mine").hash == base.hash
    changed = [replace(base, strict=LOOSE), replace(base, composition=CompositionRule(table="icsd24"))]
    assert len({base.hash, *(p.hash for p in changed)}) == 3
    assert base.as_dict()["composition"]["table"] == "smact14" and base.as_dict()["hash"] == base.hash


def test_tolerances():
    assert LOOSE.contains(DEFAULT) and not DEFAULT.contains(LOOSE)
    assert not LOOSE.contains(Tolerances(0.2, 0.3, 5, scale=False))
    with pytest.raises(ValueError, match="^stol = 0, allowed"):
        Tolerances(0.2, 0, 5)
