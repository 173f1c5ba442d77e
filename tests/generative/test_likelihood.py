"""Likelihoods of flows against closed forms and quadrature, and sampling of adaptive step size."""

import math

import pytest
import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.periodic import torus_log, wrap
from chem.ragged import Rows
from generative.backbone.cspnet import CSPNet
from generative.generator import Denoiser, Network, Times
from generative.likelihood import log_prob, sample_adaptive, trace
from generative.process import Fixed, Process
from generative.processes.bases import LogitUniformBase, LogNormalBase, NormalBase, ProductBase, WrappedNormalBase
from generative.processes.flow import EuclideanFlow, Gain, TorusFlow
from generative.processes.gaussian import VariancePreserving
from tests.generative.conformance import seeded
from tests.generative.test_contract import crystals, empty, linear_model
from tests.generative.test_flow import Affine


def model(network: Network, **processes: Process) -> Denoiser:
    """A denoiser in float64."""
    return Denoiser(network, processes, Times(), 20).double()


class Drift(Network):
    """A constant translation of all atoms."""

    velocity = torch.tensor([0.3, -0.7, 0.15], dtype=torch.float64)

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        return {"frac_coords": self.velocity.expand(len(batch["batch"]), 3)}


@pytest.mark.parametrize("method", ["dopri5", "heun"])
def test_torus_translation(method: str) -> None:
    """The density is the base's, translated; modulo translation, the base's itself, and 0 for the uniform one."""
    data = crystals().without("lattice", "types", "atomic_numbers")
    base, rows = WrappedNormalBase(0.2), data.rows("frac_coords")
    found = log_prob(model(Drift(), frac_coords=TorusFlow(base=base, mean_free=False)), data, method)  # type: ignore
    torch.testing.assert_close(found, base.log_prob(data["frac_coords"] - Drift.velocity, rows))
    found = log_prob(model(Drift(), frac_coords=TorusFlow(base=base)), data, method)  # type: ignore[arg-type]
    torch.testing.assert_close(found, base.log_prob_of_shape(data["frac_coords"], rows))
    for mean_free in (True, False):
        found = log_prob(model(Drift(), frac_coords=TorusFlow(mean_free=mean_free)), data, exact=False)
        assert float(found.abs().max()) == 0


def affine_density(x: Tensor, a: float, b: float) -> Tensor:
    """log density (B,) at x of e^a z + b (e^a - 1) / a, z standard normal."""
    z = (x - b * math.expm1(a) / a) * math.exp(-a)
    return (-z.square() / 2 - math.log(2 * math.pi) / 2 - a).flatten(1).sum(1)


@pytest.mark.parametrize("exact", [True, False])
def test_affine_flow(exact: bool) -> None:
    """Triclinic lattices under dx/dt = a x + b: closed form; Hutchinson's estimate of a diagonal Jacobian is exact."""
    data = crystals().without("frac_coords", "types", "atomic_numbers")
    network = Affine(1.3, 0.4)
    network.forward = lambda batch, t: {"lattice": 1.3 * batch["lattice"] + 0.4}  # type: ignore[method-assign]
    denoiser, expected = model(network, lattice=EuclideanFlow((3, 3))), affine_density(data["lattice"], 1.3, 0.4)
    found = log_prob(denoiser, data, exact=exact, rtol=1e-8, atol=1e-8, generator=seeded(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    errors = [
        float((log_prob(denoiser, data, "heun", exact, steps=n, generator=seeded(1)) - expected).abs().max())
        for n in (20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    denoiser.processes["lattice"].gain = Gain(5.0)  # type: ignore[assignment]
    found = log_prob(denoiser, data, exact=exact, rtol=1e-8, atol=1e-8, generator=seeded(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Bent(Network):
    """A smooth nonlinear velocity of one parameter per crystal, `cell` (B, 1), or of relative coordinates (M, 1)."""

    def __init__(self, field: str):
        super().__init__()
        self.field = field

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        x, time = batch[self.field], t.unsqueeze(1)
        if self.field == "cell":
            return {"cell": (2 - time) * torch.sin(2 * x + time) + 0.5 * x.cos() + 0.3}
        first = x[batch["ptr"][:-1]][batch["batch"]]
        second = x[batch["ptr"][1:] - 1][batch["batch"]]
        d, sign = second - first, (-1.0) ** torch.arange(len(x)).unsqueeze(1)
        angle = 2 * math.pi * d
        return {"frac_coords": sign * (0.1 * angle.sin() + 0.05 * (2 * angle + 1).cos() + 0.1 * time[batch["batch"]])}


def one_parameter(n: int) -> tuple[Denoiser, CrystalBatch, Tensor]:
    """Cubic crystals that differ in their length alone."""
    a = torch.linspace(0.02, 14, n).double()
    batch = CrystalBatch([1] * n, extra={"cell": "structure"}, cell=a.unsqueeze(1))
    return model(Bent("cell"), cell=EuclideanFlow((1,), LogNormalBase([1.2], [0.3]))), batch, a


def test_one_parameter_crystal_integrates_to_one() -> None:
    """A log-normal length bent by a flow: its density over all lengths, in 1 / ångström."""
    denoiser, batch, a = one_parameter(1501)
    density = log_prob(denoiser, batch).exp()
    assert float(torch.trapezoid(density, a)) == pytest.approx(1, abs=1e-3)
    plain = LogNormalBase([1.2], [0.3]).log_prob(a.unsqueeze(1), batch.structures).exp()
    assert float((density - plain).abs().max()) > 0.1, "the flow does nothing"
    # and it is the density of what the model samples
    drawn = sample_adaptive(denoiser, CrystalBatch([1] * 20_000, extra={"cell": "structure"}), seeded(1))["cell"]
    mean = float(torch.trapezoid(density * a, a))
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * float(drawn.std()) / 20_000**0.5)


@pytest.mark.parametrize("base", [None, WrappedNormalBase(0.3)])
def test_relative_coordinate_integrates_to_one(base: WrappedNormalBase | None) -> None:
    """Two atoms on a circle have one coordinate modulo translation: the quotient measure has volume 1."""
    d = torch.linspace(0, 1, 401).double()
    frac = torch.stack([torch.full_like(d, 0.3), wrap(0.3 + d)], 1).reshape(-1, 1)
    batch = CrystalBatch([2] * len(d), frac_coords=frac)
    density = log_prob(model(Bent("frac_coords"), frac_coords=TorusFlow((1,), base)), batch).exp()
    assert float(torch.trapezoid(density, d)) == pytest.approx(1, abs=1e-3)
    assert float(density.max() - density.min()) > 0.3, "the flow does nothing"


# --- traces -------------------------------------------------------------------------------------------------------


class Coupled(Network):
    """Every atom feels every other atom of its crystal, and the lattice feels the atoms; translation-invariant."""

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        rows = Rows("atom", batch["batch"], len(batch))
        angle = 2 * math.pi * batch["frac_coords"]
        cos, sin = rows.mean(angle.cos())[rows.index], rows.mean(angle.sin())[rows.index]
        pull = cos * angle.sin() - sin * angle.cos()
        squeeze = torch.tanh(batch["lattice"] / 5).sum((1, 2))
        heat = rows.mean(pull.square() * pull.roll(1, 1)).unsqueeze(1)
        velocity = 0.3 * pull * squeeze[rows.index].unsqueeze(1) + 0.1 * pull.roll(1, 1)
        return {"frac_coords": velocity, "lattice": torch.sin(batch["lattice"] @ batch["lattice"] / 9) * (1 + heat)}


def coupled() -> Denoiser:
    """Lattice and coordinates, with elements fixed."""
    flows = {"lattice": EuclideanFlow((3, 3), NormalBase(0.0, 4.0)), "frac_coords": TorusFlow()}
    return model(Coupled(), **flows, atomic_numbers=Fixed(()))


def test_trace_is_that_of_the_jacobian() -> None:
    """Of a ragged batch, structure by structure, against autograd's full Jacobian."""
    data = crystals((1, 4, 2, 3))
    t = torch.full((4,), 0.3).double()
    for name in ("frac_coords", "lattice"):
        x = data[name].clone().requires_grad_()
        velocity = lambda value, name=name: Coupled()(data.replace(**{name: value}), t)[name]  # noqa: E731
        rows = data.rows(name)
        full = torch.autograd.functional.jacobian(velocity, data[name]).flatten(1).reshape(x.numel(), x.numel())
        diagonal = full.diagonal().reshape(x.shape)
        expected = torch.zeros(4).double().index_add(0, rows.index, diagonal.flatten(1).sum(1))
        torch.testing.assert_close(trace(velocity(x), x, rows), expected)


def test_hutchinson_within_its_standard_error() -> None:
    """Many probes of one crystal: unbiased, and several probes in one call have a smaller spread."""
    crystal = crystals((4,)).without("types")
    truth = float(log_prob(coupled(), crystal, "heun", steps=12))
    many = crystal[[0] * 600]
    single = log_prob(coupled(), many, "heun", exact=False, steps=12, generator=seeded(3))
    error = float(single.std()) / len(many) ** 0.5
    assert error > 1e-6 and abs(float(single.mean()) - truth) < 4 * error
    averaged = log_prob(coupled(), many, "heun", exact=False, probes=4, steps=12, generator=seeded(4))
    assert float(averaged.std()) == pytest.approx(float(single.std()) / 2, rel=0.2)
    again = log_prob(coupled(), many, "heun", exact=False, steps=12, generator=seeded(3))
    assert torch.equal(single, again)


def test_invariances_and_batching() -> None:
    """Translations, whole periods, exchange of atoms, and the company of other crystals change nothing."""
    data = crystals((1, 4, 2)).without("types")
    precise = lambda batch: log_prob(coupled(), batch, rtol=1e-6, atol=1e-6)  # noqa: E731
    found = precise(data)
    shift = torch.tensor([0.37, -1.2, 2.0]).double()
    moved = data.replace(frac_coords=data["frac_coords"] + shift)
    torch.testing.assert_close(precise(moved), found, rtol=0, atol=1e-4)
    order = torch.tensor([0, 3, 1, 4, 2, 6, 5])
    swapped = data.replace(frac_coords=data["frac_coords"][order])
    torch.testing.assert_close(precise(swapped), found, rtol=0, atol=1e-4)
    alone = torch.cat([precise(one) for one in data])
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-4)


class Smooth(torch.nn.Module):
    """An embedding that is continuous in time; one of integer steps would stop an adaptive method at every jump."""

    def forward(self, t: Tensor) -> Tensor:
        return torch.sin(t.unsqueeze(1) * torch.arange(1, 17, dtype=t.dtype) / 5)


class Jumping(Network):
    """A velocity that jumps with time like a stack of steps, and grows beyond all bounds."""

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        return {"lattice": (1e9 * t.reshape(-1, 1, 1)).sin().sign() * (1 + batch["lattice"].square())}


def test_a_field_that_cannot_be_integrated_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of running for ever."""
    monkeypatch.setattr("generative.likelihood.MAX_STEPS", 50)
    with pytest.raises(RuntimeError, match="dopri5 did not reach t = 0: .*method = 'heun'"):
        log_prob(model(Jumping(), lattice=EuclideanFlow((3, 3))), crystals().without("frac_coords", "types"))


def test_backbone() -> None:
    """CSPNet with its own backward passes: translation-invariant, both integrators agree, float32 is close."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CSPNet(8, 1, 2, Smooth(), 16)
    flows = {"lattice": EuclideanFlow((3, 3), NormalBase(0.0, 4.0)), "frac_coords": TorusFlow()}
    denoiser = model(network, **flows, atomic_numbers=Fixed(()))
    data = crystals((2, 1)).without("types")
    found = log_prob(denoiser, data, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in denoiser.parameters()) and not found.requires_grad
    moved = data.replace(frac_coords=wrap(data["frac_coords"] + 0.41))
    torch.testing.assert_close(log_prob(denoiser, moved, rtol=1e-4, atol=1e-4), found, rtol=0, atol=1e-2)
    torch.testing.assert_close(log_prob(denoiser, data, "heun", steps=30), found, rtol=0, atol=3e-2)
    single = log_prob(denoiser.float(), data, rtol=1e-3, atol=1e-3).double()
    torch.testing.assert_close(single, found, rtol=0, atol=0.05)


def test_bounded_cell_and_sampling() -> None:
    """Lengths and logit angles through `encode`; samples of the base alone have the base's density."""
    base = ProductBase((LogNormalBase([1.2, 1.3, 1.4], [0.2, 0.2, 0.3]), 3), (LogitUniformBase(), 3))

    class Still(Network):
        def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
            return {"cell": torch.zeros_like(batch["cell"])}

    denoiser = model(Still(), cell=EuclideanFlow((6,), base))
    drawn = sample_adaptive(denoiser, CrystalBatch([2, 3], extra={"cell": "structure"}), seeded(1))
    torch.testing.assert_close(log_prob(denoiser, drawn), base.log_prob(drawn["cell"], drawn.structures))
    outside = drawn.replace(cell=drawn["cell"] * torch.tensor([[-1.0], [1.0]]))
    assert log_prob(denoiser, outside).isfinite().tolist() == [False, True]


# --- adaptive sampling --------------------------------------------------------------------------------------------


def test_adaptive_sampling_is_the_limit_of_the_loop() -> None:
    """Against many second-order steps from the same draws; gains apply; given rows stay, and are the frame."""
    data = crystals().without("types")
    template = data.without("lattice", "frac_coords")
    tight = {"rtol": 1e-7, "atol": 1e-7}
    fine = coupled().sample(template, 200, seeded(2), order=2)
    found = sample_adaptive(coupled(), template, seeded(2), **tight)
    torch.testing.assert_close(found["lattice"], fine["lattice"], rtol=0, atol=1e-3)
    assert float(torus_log(found["frac_coords"], fine["frac_coords"]).abs().max()) < 1e-3
    assert bool(((found["frac_coords"] >= 0) & (found["frac_coords"] < 1)).all())
    fast = coupled()
    fast.processes["frac_coords"].gain = Gain(2.0)  # type: ignore[assignment]
    faster = sample_adaptive(fast, template, seeded(2))["frac_coords"]
    assert float(torus_log(faster, found["frac_coords"]).abs().max()) > 0.01
    given = torch.arange(14) % 4 == 0
    some = template.replace(frac_coords=data["frac_coords"], frac_coords_given=given)
    inpainted = sample_adaptive(coupled(), some, seeded(2), **tight)["frac_coords"]
    assert torch.equal(inpainted[given], data["frac_coords"][given])
    fine = coupled().sample(some, 200, seeded(2), order=2)
    assert float(torus_log(inpainted, fine["frac_coords"]).abs().max()) < 1e-3


def test_what_is_sampled_has_the_density() -> None:
    """log p along samples of an affine flow equals the closed form: sampling and likelihood are inverse."""
    network = Affine(0.8, -0.2)
    network.forward = lambda batch, t: {"lattice": 0.8 * batch["lattice"] - 0.2}  # type: ignore[method-assign]
    denoiser = model(network, lattice=EuclideanFlow((3, 3)))
    drawn = sample_adaptive(denoiser, CrystalBatch([1] * 4000), seeded(3), rtol=1e-7, atol=1e-7)
    found = log_prob(denoiser, drawn, exact=False, generator=seeded(4))
    torch.testing.assert_close(found, affine_density(drawn["lattice"], 0.8, -0.2), rtol=0, atol=1e-3)
    entropy = 9 * (0.5 * math.log(2 * math.pi * math.e) + 0.8)
    assert float(found.mean()) == pytest.approx(-entropy, abs=5 * float(found.std()) / 4000**0.5)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    """Processes that are no flows, restricted rows, and settings out of range, in one line each."""
    data = crystals()
    flow = linear_model({"frac_coords": TorusFlow()})
    given = data.replace(frac_coords_given=torch.ones(14, dtype=torch.bool))
    diffusion = linear_model({"lattice": VariancePreserving((3, 3))})
    calls = {
        "field 'lattice' has a VariancePreserving": lambda: log_prob(diffusion, data),
        "'lattice' has a Var": lambda: sample_adaptive(diffusion, empty(data)),
        "remove field 'frac_coords_given'": lambda: log_prob(flow, given),
        "method = 'euler', allowed: dopri5, heun": lambda: log_prob(flow, data, "euler"),  # type: ignore[arg-type]
        "probes = 0, allowed: >= 1": lambda: log_prob(flow, data, probes=0),
        "steps = -1, allowed: >= 1": lambda: log_prob(flow, data, steps=-1),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


# --- planted bugs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bug", ["sign", "base", "row"])
def test_planted_bugs_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A divergence of the wrong sign, the base at the wrong end, and a trace of the first atom alone."""
    if bug == "sign":
        monkeypatch.setattr("generative.likelihood.trace", lambda v, x, rows: -trace(v, x, rows))
        with pytest.raises(AssertionError):
            test_affine_flow(True)
    elif bug == "base":
        monkeypatch.setattr(LogNormalBase, "log_prob", lambda self, x, rows: torch.zeros(len(x)).double())
        with pytest.raises(AssertionError):
            test_one_parameter_crystal_integrates_to_one()
    else:
        first = lambda v, x, rows: trace(v[:1], x, Rows(rows.level, rows.index[:1], rows.num_structures))  # noqa: E731
        monkeypatch.setattr("generative.likelihood.trace", first)
        with pytest.raises((AssertionError, RuntimeError)):
            test_relative_coordinate_integrates_to_one(None)
