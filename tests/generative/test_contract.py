"""The contract of processes, networks and the one loop, tried on six kinds of generation with stubs."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chem.crystals import CrystalBatch
from chem.periodic import torus_log
from chem.statistics import Statistics
from generative.generator import Denoiser, Times
from generative.models import diffcsp
from generative.noise import UNIT, UnitStreams
from generative.process import Fixed, Process
from generative.processes.gaussian import VariancePreserving
from generative.processes.wrapped import WrappedNormal
from tests.generative.conformance import seeded
from tests.generative.stubs import BayesianFlow, Discrete, Guided, LinearFlow, LinearNetwork, OracleNetwork, TorusFlow

MARGINAL = torch.tensor([0.3, 0.2, 0.1, 0.3, 0.1], dtype=torch.float64)
KINDS: dict[str, dict[str, Process]] = {
    "gaussian": {"lattice": VariancePreserving((3, 3))},
    "wrapped": {"frac_coords": WrappedNormal(), "lattice": VariancePreserving((3, 3), bounds=(-9.0, 9.0))},
    "flow": {"lattice": LinearFlow((3, 3)), "frac_coords": TorusFlow(mean_free=False)},
    "bayesian": {"types": BayesianFlow((4,))},
    "discrete": {"atomic_numbers": Discrete(MARGINAL)},
    "mixed": {
        "lattice": VariancePreserving((3, 3)),
        "frac_coords": TorusFlow(mean_free=False),
        "types": BayesianFlow((4,)),
        "atomic_numbers": Discrete(MARGINAL),
    },
}
CORRECTED = {"frac_coords": WrappedNormal(), "lattice": VariancePreserving((3, 3))}
SIZES = {"lattice": 9, "frac_coords": 3, "types": 4}


def to_classes(batch: CrystalBatch) -> CrystalBatch:
    """Elements 1..5 as classes 0..4."""
    known = "atomic_numbers" in batch.fields
    return batch.replace(atomic_numbers=batch["atomic_numbers"] - 1) if known else batch


def to_elements(batch: CrystalBatch) -> CrystalBatch:
    """The inverse of `to_classes`."""
    known = "atomic_numbers" in batch.fields
    return batch.replace(atomic_numbers=batch["atomic_numbers"] + 1) if known else batch


def crystals(counts: tuple[int, ...] = (1, 4, 2, 7)) -> CrystalBatch:
    """Triclinic cells with every field."""
    g, m, b = seeded(1), sum(counts), len(counts)
    return CrystalBatch(
        list(counts),
        lattice=5 * torch.eye(3).double() + torch.randn(b, 3, 3, generator=g, dtype=torch.float64),
        frac_coords=torch.rand(m, 3, generator=g, dtype=torch.float64),
        types=torch.randn(m, 4, generator=g, dtype=torch.float64),
        atomic_numbers=torch.randint(1, 6, (m,), generator=g),
    )


def empty(data: CrystalBatch) -> CrystalBatch:
    """The template that carries the counts alone."""
    return data.without(*data.fields)


def oracle_model(processes: dict[str, Process], data: CrystalBatch, steps: int = 5) -> Denoiser:
    """A denoiser whose network knows the data."""
    network = OracleNetwork(processes, to_classes(data))
    return Denoiser(network, processes, Times(1000), steps, encode=to_classes, decode=to_elements).double()


def linear_model(processes: dict[str, Process], steps: int = 5, **options) -> Denoiser:
    """A denoiser whose network is a linear function of each row."""
    sizes = {f: n for f, n in SIZES.items() if f in processes}
    classes = {"atomic_numbers": 5} if isinstance(processes.get("atomic_numbers"), Discrete) else {}
    network = LinearNetwork(sizes, classes)
    options = {"encode": to_classes, "decode": to_elements} | options
    return Denoiser(network, processes, Times(1000), steps, **options).double()


def expand(given: Tensor, x: Tensor) -> Tensor:
    """Row flags as flags of entries."""
    return given.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)


@pytest.fixture(params=KINDS, name="processes")
def _processes(request: pytest.FixtureRequest) -> dict[str, Process]:
    return KINDS[request.param]


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_oracle_samples_are_the_data(processes: dict[str, Process], steps: int) -> None:
    """Whatever the number of steps, a network that knows the data samples it, in the data's own form."""
    if steps == 1 and any(p.corrects for p in processes.values()):
        steps = 3  # the wrapped predictor is exact in the limit: a single jump from sigma 0.5 cannot land
    data = crystals()
    model = oracle_model(processes, data)
    sampled = model.sample(empty(data), steps, seeded(2))
    assert set(sampled.fields) == set(processes)
    for field in processes:
        x = sampled[field]
        off = torus_log(x, data[field]) if field == "frac_coords" else x - data[field]
        assert x.dtype == data[field].dtype and float(off.abs().max()) < 1e-8, field


def test_states_and_calls(processes: dict[str, Process]) -> None:
    """A trajectory has steps + 1 states, and one network call a step and stage; `prepare` is called once."""
    data = crystals()
    for correct in (True, False):
        model = oracle_model(processes, data)
        states = list(model.trajectory(empty(data), 4, seeded(2), correct))
        assert len(states) == 5 and all(set(s.fields) == set(processes) for s in states)
        stages = 2 if correct and any(p.corrects for p in processes.values()) else 1
        readout = any(p.reads_prediction for p in processes.values())
        assert model.network.calls == 4 * stages + readout == model.network_calls(4, correct)
        assert model.network.prepared == 1
    assert oracle_model(processes, data).network_calls() == model.network_calls(5)


def test_deterministic(processes: dict[str, Process]) -> None:
    """Equal generators give equal samples, others do not; the global random state stays."""
    template, model = empty(crystals()), linear_model(processes)
    before = torch.get_rng_state()
    a, b, c = (model.sample(template, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[f], b[f]) for f in processes)
    assert not all(torch.equal(a[f], c[f]) for f in processes)


def test_samples_do_not_depend_on_the_batch(processes: dict[str, Process]) -> None:
    """With unit streams n = 1 is the first of 40, and 16 + 24 are the 40."""
    counts, model = [1 + i % 4 for i in range(48)], linear_model(processes)

    def sample(first: int, n: int) -> CrystalBatch:
        padded = counts[first : first + -(-n // UNIT) * UNIT]
        return model.sample(CrystalBatch(counts[first : first + n]), 3, UnitStreams(7, first, n, padded))

    whole = sample(0, 40)
    for first, n in ((0, 1), (0, 16), (16, 24), (32, 8)):
        part, same = sample(first, n), whole[first : first + n]
        for field in processes:
            torch.testing.assert_close(part[field], same[field], rtol=1e-9, atol=1e-9)


def test_states_are_the_callers_to_keep(processes: dict[str, Process]) -> None:
    """A state kept by the caller is not changed by later steps, and the last one, decoded, is the sample."""
    template, model = empty(crystals()), linear_model(processes)
    kept, copies = [], []
    for state in model.trajectory(template, 3, seeded(3)):
        kept.append(state)
        copies.append({f: state[f].clone() for f in processes})
    assert all(torch.equal(s[f], c[f]) for s, c in zip(kept, copies, strict=True) for f in processes)
    sampled, last = model.sample(template, 3, seeded(3)), to_elements(kept[-1])
    assert all(torch.equal(sampled[f], last[f]) for f in processes)


# --- what is given ------------------------------------------------------------------------------------------------


def given_rows(processes: dict[str, Process], data: CrystalBatch) -> CrystalBatch:
    """A template with every other row of every noisy field given; the others hold wrong values."""
    fields: dict[str, Tensor] = {}
    for f in processes:
        given = torch.arange(data.num_rows(f)) % 2 == 0
        wrong = torch.ones_like(data[f])
        fields |= {f: torch.where(expand(given, wrong), data[f], wrong), f"{f}_given": given}
    return empty(data).replace(**fields)


def test_inpainting(processes: dict[str, Process]) -> None:
    """Given rows equal the data after every step, or at readout where it is a belief; others are not disturbed."""
    data, model = crystals(), linear_model(processes)
    template, coded = given_rows(processes, data), to_classes(data)
    free_run = list(model.trajectory(empty(data), 4, seeded(4)))
    states = list(model.trajectory(template, 4, seeded(4)))
    assert len(states) == 5
    for f, process in processes.items():
        given = template[f"{f}_given"]
        for state, free in zip(states, free_run, strict=True):
            assert torch.equal(state[f][~given], free[f][~given]), f"free rows of {f} are disturbed"
            if process.clamps or state is states[-1]:
                assert torch.equal(state[f][given], coded[f][given]), f"given rows of {f} have moved"
            assert state[f].dtype == free[f].dtype and state[f].shape == free[f].shape
        assert not torch.equal(states[-1][f][~given], coded[f][~given])
    sampled = model.sample(template, 4, seeded(4))
    assert all(torch.equal(sampled[f][template[f"{f}_given"]], data[f][template[f"{f}_given"]]) for f in processes)


def test_beliefs_of_given_rows_are_those_of_the_forward_process() -> None:
    """A Bayesian flow sees given rows as it saw them in training, at the precision of the time."""
    process, x = BayesianFlow((4,)), 2.0
    batch = CrystalBatch([20_000], types=torch.full((20_000, 4), x).double(), types_given=torch.ones(20_000).bool())
    states = list(linear_model({"types": process}).trajectory(batch, 4, seeded(5)))
    gamma = 1 - process.sigma_1 ** (2 * 0.5)
    mean, variance = states[2]["types"].mean(), states[2]["types"].var()
    assert abs(float(mean) - gamma * x) < 5 * (gamma * (1 - gamma) / 80_000) ** 0.5
    assert float(variance) == pytest.approx(gamma * (1 - gamma), rel=5 * (2 / 80_000) ** 0.5)


def projectors(rows: int, size: int) -> Tensor:
    """A random projector for each row (rows, D, D): of rank 0, 1, ..., D in turn."""
    basis = torch.linalg.qr(torch.randn(rows, size, size, generator=seeded(6), dtype=torch.float64)).Q
    keep = (torch.arange(size) < (torch.arange(rows) % (size + 1)).unsqueeze(1)).double()
    return (basis * keep.unsqueeze(1)) @ basis.mT


@pytest.mark.parametrize("kind", ["gaussian", "wrapped", "flow", "bayesian"])
def test_subspace(kind: str) -> None:
    """Each row moves in its own subspace through the anchor, shapes stay, and rows that are free move as before."""
    processes, data = KINDS[kind], crystals((1, 4, 2, 7, 3, 1, 2, 2, 1, 6, 3))
    model, ranks = linear_model(processes), {}
    template = empty(data).replace(**{f: data[f] for f in processes})
    for f in processes:
        subspace = projectors(data.num_rows(f), SIZES[f])
        ranks[f] = subspace.diagonal(dim1=1, dim2=2).sum(1).round()
        template = template.replace(**{f"{f}_subspace": subspace})
    free_run = list(model.trajectory(empty(data), 4, seeded(8)))
    for state, free in zip(model.trajectory(template, 4, seeded(8)), free_run, strict=True):
        for f in processes:
            assert state[f].shape == data[f].shape
            d = (state[f] - data[f]).flatten(1)
            still = ranks[f] == 0
            assert float(d[still].abs().max()) < 1e-9, f"{f}: a row without freedom has moved"
            if f == "frac_coords":  # wrapped, a row comes back elsewhere on its line: see test_processes.py
                continue
            blocked = d - state.rows(f).project(d)
            assert float((blocked.norm(dim=1) / (1 + d.norm(dim=1))).max()) < 1e-9, f"{f} leaves its subspace"
            whole = ranks[f] == SIZES[f]
            torch.testing.assert_close(state[f][whole], free[f][whole], rtol=1e-6, atol=1e-8)


def test_subspace_and_given_rows_together() -> None:
    """Both restrictions on one field: given rows stay at the data, the others in their planes."""
    data = crystals()
    subspace = torch.diag(torch.tensor([1.0, 0, 1.0])).double().expand(data.num_rows("frac_coords"), 3, 3)
    given = torch.arange(len(subspace)) % 3 == 0
    template = empty(data).replace(
        frac_coords=data["frac_coords"], frac_coords_given=given, frac_coords_subspace=subspace
    )
    model = linear_model({"frac_coords": WrappedNormal()})
    for state in model.trajectory(template, 5, seeded(9)):
        x = state["frac_coords"]
        assert torch.equal(x[given], data["frac_coords"][given])
        assert torch.equal(x[:, 1], data["frac_coords"][:, 1])
    assert not torch.equal(x[~given], data["frac_coords"][~given])


def test_fixed_and_other_fields_stay() -> None:
    """A Fixed field and a field without a process are the same objects in every state."""
    data = crystals().attach("structure", band_gap=torch.arange(4.0).double())
    processes = {"frac_coords": WrappedNormal(), "lattice": Fixed((3, 3)), "atomic_numbers": Fixed(())}
    model = linear_model(processes, encode=lambda batch: batch, decode=lambda batch: batch)
    template = data.without("frac_coords", "types")
    for state in model.trajectory(template, 3, seeded(1)):
        assert all(torch.equal(state[f], data[f]) for f in ("lattice", "atomic_numbers", "band_gap"))
    assert set(model.noisy) == {"frac_coords"} and set(model.weights) == {"frac_coords"}


# --- errors -------------------------------------------------------------------------------------------------------


def test_missing_fields_are_named() -> None:
    """A Fixed field, or the values of given rows, that the template lacks."""
    data = crystals()
    model = linear_model({"frac_coords": TorusFlow(), "lattice": Fixed((3, 3))})
    with pytest.raises(ValueError, match="template must carry field 'lattice'") as error:
        model.sample(empty(data), 2)
    assert "\n" not in str(error.value)
    flags = torch.ones(data.num_rows("frac_coords"), dtype=torch.bool)
    with pytest.raises(ValueError, match="template must carry field 'frac_coords'"):
        model.sample(empty(data).replace(lattice=data["lattice"], frac_coords_given=flags), 2)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps: int) -> None:
    """The allowed range is named; 0 is not taken for the default."""
    model = linear_model(CORRECTED)
    with pytest.raises(ValueError, match=rf"steps = {steps}, allowed: 1\.\.1000"):
        model.sample(empty(crystals()), steps)
    with pytest.raises(ValueError, match=r"steps = 0, allowed: >= 1"):
        Times().grid(0)


@pytest.mark.parametrize("steps", [1, 3, 7, 999, 1000])
def test_grid_is_a_sub_grid(steps: int) -> None:
    """Times of a discrete process are multiples of 1 / T, strictly increasing, from 0 to 1."""
    grid = Times(1000).grid(steps)
    assert grid[0] == 0 and grid[-1] == 1 and len(grid) == steps + 1
    assert bool((grid.diff() > 0).all())
    assert float((grid * 1000 - (grid * 1000).round()).abs().max()) < 1e-9
    drawn = Times(1000).draw(torch.rand(1000, generator=seeded(1), dtype=torch.float64))
    assert float(drawn.max()) <= 0.999 and float((drawn * 1000 - (drawn * 1000).round()).abs().max()) < 1e-9


# --- training and guidance ----------------------------------------------------------------------------------------


def test_training_loss(processes: dict[str, Process]) -> None:
    """Parts and their weighted sum; gradients reach the network; the oracle's loss is zero; draws are seeded."""
    data, first = crystals(), next(iter(processes))
    model = linear_model(processes, weights={first: 3.0})
    parts = model.loss(data, seeded(1))
    assert set(parts) == {*processes, "total"}
    total = sum((3.0 if f == first else 1.0) * parts[f] for f in processes)
    torch.testing.assert_close(parts["total"], total)
    parts["total"].backward()
    slopes = [p.grad for p in model.network.parameters()]
    assert all(g is not None and float(g.abs().max()) > 0 for g in slopes)
    assert torch.equal(model.loss(data, seeded(1))["total"], parts["total"])
    assert not torch.equal(model.loss(data, seeded(2))["total"], parts["total"])
    rows = model.losses(data, torch.full((4,), 0.5).double(), seeded(1))
    assert all(rows[f].shape == (data.num_rows(f),) for f in processes)
    assert float(oracle_model(processes, data).loss(data, seeded(1))["total"]) < 1e-12


def test_guidance_wraps_a_network() -> None:
    """A wrapper that differentiates an energy works inside the loop, which runs without gradients."""
    data, processes = crystals(), {"frac_coords": TorusFlow(mean_free=False), "lattice": LinearFlow((3, 3))}
    plain = linear_model(processes)

    def energy(batch: CrystalBatch) -> Tensor:
        volume = torch.linalg.det(batch["lattice"])[batch["batch"]]
        return ((batch["frac_coords"] - 0.5).square().sum(1) * (1 + volume.square())).sqrt()

    guided = Denoiser(Guided(plain.network, energy, "frac_coords", -0.05), processes, Times(), 5).double()
    before = plain.sample(empty(data), 5, seeded(3))
    after = guided.sample(empty(data), 5, seeded(3))
    assert plain.network.calls == plain.network_calls(5) + guided.network_calls(5) == 10
    assert not after["frac_coords"].requires_grad and torch.is_grad_enabled()
    assert torch.equal(before["lattice"], after["lattice"])
    assert not torch.equal(before["frac_coords"], after["frac_coords"])


# --- nothing waits for the device inside the loop -----------------------------------------------------------------


class Waiting(TorchDispatchMode):
    """Raises on operations for which an accelerator would have to stop: scalars read on the host, results whose shape
    depends on data, masked indexing, and copies between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "aten" and (reason := self.reason(func, args, kwargs)):
            raise AssertionError(f"{func} in the sampling loop: {reason}")
        return func(*args, **kwargs)

    @staticmethod
    def reason(func, args: tuple, kwargs: dict) -> str:
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            return "a mask as index" if masks else ""
        if torch.Tag.data_dependent_output in func.tags or name == "_local_scalar_dense":
            return "a value read on the host"
        if torch.Tag.dynamic_output_shape in func.tags:
            return "a shape that depends on data"
        devices = {a.device for a in args if isinstance(a, Tensor) and a.dim()}
        if kwargs.get("device") is not None and name in ("_to_copy", "to"):
            devices.add(torch.device(kwargs["device"]))
        return "a copy between devices" if len(devices) > 1 else ""


def no_waiting(
    model: Denoiser, template: CrystalBatch, steps: int, generator: UnitStreams, order: int = 1
) -> CrystalBatch:
    """The last state of a trajectory, with `Waiting` on after the first."""
    states = model.trajectory(template, steps, generator, order=order)
    next(states)
    with Waiting():
        for state in states:  # noqa: B007
            pass
    return state


@pytest.mark.parametrize("task", ["csp", "ab-initio"])
def test_diffcsp_does_not_wait(task: str) -> None:
    """The loop of DiffCSP with a small CSPNet, correctors, unit streams and, in csp, given rows."""
    data = crystals((3, 1, 2) * 6).without("types")
    config = diffcsp.DiffCSPConfig(task, hidden=16, layers=1, frequencies=3, time_dim=16, steps=10)  # type: ignore
    model = diffcsp.build(config, Statistics.compute(data))
    streams = UnitStreams(1, 0, len(data), [3, 1, 2] * 10 + [3, 1])
    template = empty(data)
    if task == "csp":
        given = torch.arange(data.num_rows("frac_coords")) % 2 == 0
        template = data.without("lattice").replace(frac_coords_given=given)
    state = no_waiting(model, template, 4, streams)
    assert all(bool(state[f].isfinite().all()) for f in ("lattice", "frac_coords"))
    assert torch.is_floating_point(state["types"]) if task == "ab-initio" else "types" not in state.fields


def test_stubs_do_not_wait(processes: dict[str, Process]) -> None:
    """Nor does the loop with the stub processes, rows given."""
    data = crystals()
    template = given_rows(processes, data)
    streams = UnitStreams(1, 0, 4, [1, 4, 2, 7] * 4)
    state = no_waiting(linear_model(processes), template, 3, streams)
    assert set(processes) <= set(state.fields)


MASK = torch.tensor([True, False, True])
PLANTED = {
    "item": lambda x: x[0].item(),
    "branch": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "masked read": lambda x: x[MASK],
    "masked write": lambda x: x.clone().__setitem__(MASK, 0.0),
    "masked select": lambda x: x.masked_select(MASK),
    "unique": lambda x: x.unique(),
    "repeat": lambda x: x.repeat_interleave(torch.tensor([1, 2, 0])),
    "equal": lambda x: torch.equal(x, x + 1),
    "copy": lambda x: x.to("meta"),
    "copy into": lambda x: torch.empty(3, device="meta").copy_(x),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_detector_fires(name: str) -> None:
    """Each kind of wait, planted in a network of the loop."""

    class Waits(LinearNetwork):
        def forward(self, batch, t):
            PLANTED[name](batch["types"][0, :3])
            return super().forward(batch, t)

    model = Denoiser(Waits({"types": 4}), {"types": LinearFlow((4,))}, Times(), 3)
    with pytest.raises(AssertionError, match="in the sampling loop"):
        no_waiting(model, CrystalBatch([2, 3]), 3, UnitStreams(0, 0, 2, [2, 3] * 8))


def test_the_detector_lets_other_operations_pass() -> None:
    """Integer indices, masks in `where` and new tensors are fine."""
    x = torch.arange(3.0)
    with Waiting():
        y = torch.where(MASK, x[torch.tensor([2, 0, 1])], 0.0).masked_fill(~MASK, 1.0).to(torch.float64)
    assert torch.equal(y, torch.tensor([2.0, 1.0, 1.0]).double())
