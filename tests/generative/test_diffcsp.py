"""DiffCSP: settings, both tasks, training, sampling with things given, frozen or forbidden."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.lattice import volume
from chem.statistics import Statistics
from generative.generator import Denoiser
from generative.models.diffcsp import DiffCSPConfig, build
from generative.noise import UnitStreams
from generative.process import Fixed
from tests.generative.symmetry import crystals, orthogonal, times

TASKS = ("csp", "ab-initio")
TINY = DiffCSPConfig(hidden=32, layers=2, frequencies=8, time_dim=32)
COUNTS = [3, 1, 6, 2]


def data() -> CrystalBatch:
    """A few crystals of four elements in triclinic cells of 5 Å or so."""
    batch = crystals(COUNTS, seed=3)
    elements = torch.tensor([3, 8, 14, 26])
    return batch.replace(atomic_numbers=elements[batch["atomic_numbers"] % 4])


def model(task: str = "csp", seed: int = 0, **changes: object) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(replace(TINY, task=task, **changes), Statistics.compute(data())).double()  # type: ignore[arg-type]


def template(counts=COUNTS, **fields: Tensor) -> CrystalBatch:
    """What structure prediction is given: elements."""
    batch = crystals(counts, seed=5)
    return CrystalBatch(counts, atomic_numbers=batch["atomic_numbers"] % 30 + 1, **fields)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "inverse"}, "task = 'inverse', allowed: csp, ab-initio"),
        ({"hidden": 0}, "hidden = 0, allowed: >= 1"),
        ({"layers": -1}, "layers = -1, allowed: >= 1"),
        ({"frequencies": 0}, "frequencies = 0, allowed: >= 1"),
        ({"steps": 0}, "steps = 0, allowed: >= 1"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError) as error:
        DiffCSPConfig(**settings)
    assert str(error.value) == message


def test_defaults_are_the_papers():
    c = DiffCSPConfig()
    assert (c.hidden, c.layers, c.frequencies, c.time_dim, c.steps) == (512, 6, 128, 256, 1000)
    assert (c.sigma_min, c.sigma_max) == (0.005, 0.5)
    assert (c.lattice_weight, c.coords_weight, c.types_weight) == (1, 1, 20)


@pytest.mark.parametrize(
    ("task", "noisy"), [("csp", {"lattice", "frac_coords"}), ("ab-initio", {"lattice", "frac_coords", "types"})]
)
def test_build(task, noisy):
    made = model(task)
    assert set(made.noisy) == noisy
    assert made.network.types == (task == "ab-initio")
    assert made.weights == {f: {"types": 20.0}.get(f, 1.0) for f in noisy}
    assert isinstance(made.processes["atomic_numbers"], Fixed) if task == "csp" else "types" in made.processes
    assert made.network_calls() == 2000 and made.network_calls(50) == 100
    assert made.network_calls(50, correct=False) == 50


@pytest.mark.parametrize(
    ("task", "given", "used"),
    [("csp", None, 1e-5), ("ab-initio", None, 5e-6), ("csp", 5e-7, 5e-7), ("ab-initio", 1e-6, 1e-6)],
)
def test_step_size_of_the_corrector_by_task(task, given, used):
    assert model(task, step_size=given).processes["frac_coords"].step_size == used


@pytest.mark.parametrize("task", TASKS)
def test_loss_is_finite_and_repeats_by_seed(task):
    made = model(task)
    first, again, other = (made.loss(data(), seeded(s)) for s in (0, 0, 1))
    assert set(first) == {*made.noisy, "total"}
    assert all(torch.isfinite(v) for v in first.values())
    assert torch.equal(first["total"], again["total"]) and not torch.equal(first["total"], other["total"])
    weighted = sum(made.weights[f] * first[f] for f in made.noisy)
    torch.testing.assert_close(first["total"], weighted)


@pytest.mark.parametrize("task", TASKS)
def test_training_decreases_the_loss(task):
    """Overfit four crystals, judged on fixed noise at fixed times."""
    made, batch = model(task).float(), data()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    t = torch.linspace(0.1, 0.9, 16)
    many = batch[[0, 1, 2, 3] * 4]

    def held() -> dict[str, float]:
        with torch.no_grad():
            return {f: float(v) for f, v in made.loss(many, seeded(99), t).items()}

    before = held()
    noise = seeded(1)
    for _ in range(150):
        loss = made.loss(many, noise)["total"]
        assert bool(torch.isfinite(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = held()
    assert after["total"] < 0.7 * before["total"]
    assert after["lattice"] < 0.7 * before["lattice"]
    if task == "ab-initio":
        assert after["types"] < 0.7 * before["types"]


@pytest.mark.parametrize("task", TASKS)
def test_loss_is_symmetric(task):
    """With the noise moved along, rotating, shifting or permuting the data leaves every loss as it is."""
    made, batch, t = model(task), data(), times(4)
    clean = made.encode(batch)
    pairs = {f: p.corrupt(clean[f], t, clean.rows(f), seeded()) for f, p in made.noisy.items()}

    def parts(state: CrystalBatch, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        prediction = made.network(state, t)
        return {f: p.loss(prediction[f], targets[f], t, state.rows(f)).mean() for f, p in made.noisy.items()}

    noisy, targets = clean.replace(**{f: x for f, (x, _) in pairs.items()}), {f: y for f, (_, y) in pairs.items()}
    expected = parts(noisy, targets)
    q, shift = orthogonal(), torch.tensor([0.3, 0.7, 0.123], dtype=torch.float64)
    turned = noisy.replace(lattice=noisy["lattice"] @ q), targets | {"lattice": targets["lattice"] @ q}
    shifted = noisy.replace(frac_coords=(noisy["frac_coords"] + shift) % 1), targets
    order = torch.tensor([2, 0, 1, 3, 9, 8, 7, 6, 5, 4, 11, 10])
    atoms = [f for f in ("frac_coords", "atomic_numbers", "types") if f in noisy.fields]
    moved_targets = targets | {f: targets[f][order] for f in atoms if f in targets}
    permuted = noisy.replace(**{f: noisy[f][order] for f in atoms}), moved_targets
    for state, moved in (turned, shifted, permuted):
        for field, value in parts(state, moved).items():
            torch.testing.assert_close(value, expected[field], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [5, 10, 50])
@pytest.mark.parametrize("task", TASKS)
def test_few_steps_give_finite_crystals_of_the_right_shape(task, steps):
    given = template() if task == "csp" else CrystalBatch(COUNTS)
    out = model(task).sample(given, steps, seeded())
    assert out["lattice"].shape == (4, 3, 3) and out["frac_coords"].shape == (12, 3)
    assert out["atomic_numbers"].shape == (12,) and "types" not in out.fields
    assert bool(torch.isfinite(out["lattice"]).all() and torch.isfinite(out["frac_coords"]).all())
    assert bool(((out["frac_coords"] >= 0) & (out["frac_coords"] < 1)).all())
    assert float(out["lattice"].abs().max()) < 100 and bool((volume(out["lattice"]) > 0).all())
    if task == "csp":
        assert torch.equal(out["atomic_numbers"], given["atomic_numbers"])


def test_without_the_clip_a_coarse_grid_explodes():
    """Why `clip` exists: the first jump of five divides by sqrt(abar_T) = 1.6e-5."""
    clipped, free = (model(clip=c).sample(template(), 5, seeded())["lattice"].abs().max() for c in (True, False))
    assert float(free) > 10 * float(clipped)


@pytest.mark.parametrize("task", TASKS)
def test_sampling_repeats_by_seed_and_leaves_the_global_state(task):
    given, made = (template() if task == "csp" else CrystalBatch(COUNTS)), model(task)
    before = torch.random.get_rng_state()
    a, b, c = (made.sample(given, 5, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a["frac_coords"], b["frac_coords"]) and torch.equal(a["lattice"], b["lattice"])
    assert not torch.allclose(a["frac_coords"], c["frac_coords"])


def test_a_sample_does_not_depend_on_its_batch():
    made, counts = model(), [2, 3, 1, 4] * 5
    whole = made.sample(template(counts), 5, UnitStreams(7, 0, 20, counts + [0] * 12))
    part = made.sample(template(counts)[16:20], 5, UnitStreams(7, 16, 4, counts[16:] + [0] * 12))
    torch.testing.assert_close(part["frac_coords"], whole[16:20]["frac_coords"], rtol=0, atol=1e-6)
    torch.testing.assert_close(part["lattice"], whole[16:20]["lattice"], rtol=0, atol=1e-6)


def test_only_elements_of_the_training_set_are_emitted():
    out = model("ab-initio").sample(CrystalBatch([20] * 6), 5, seeded())
    assert set(out["atomic_numbers"].tolist()) <= set(data()["atomic_numbers"].tolist())
    assert len(out["atomic_numbers"].unique()) > 1


def test_allowed_elements_narrow_the_choice_of_each_crystal():
    allowed = torch.zeros(3, 100, dtype=torch.bool)
    allowed[0, 8 - 1] = True
    allowed[1, [3 - 1, 79 - 1]] = True  # gold is not in the training set
    allowed[2, [14 - 1, 26 - 1]] = True
    given = CrystalBatch([4, 5, 12]).attach("structure", allowed_elements=allowed)
    out = model("ab-initio").sample(given, 5, seeded())
    assert set(out[0]["atomic_numbers"].tolist()) == {8}
    assert set(out[1]["atomic_numbers"].tolist()) == {3}
    assert set(out[2]["atomic_numbers"].tolist()) == {14, 26}


@pytest.mark.parametrize(("frozen", "weight"), [("lattice", "lattice_weight"), ("frac_coords", "coords_weight")])
@pytest.mark.parametrize("task", TASKS)
def test_a_weight_of_zero_freezes_a_field(task, frozen, weight):
    made, batch = model(task, **{weight: 0.0}), data()
    assert isinstance(made.processes[frozen], Fixed) and frozen not in made.noisy
    loss = made.loss(batch, seeded())
    assert frozen not in loss and bool(torch.isfinite(loss["total"]))
    given = CrystalBatch(COUNTS, **{frozen: batch[frozen]})
    if task == "csp":
        given = given.replace(atomic_numbers=batch["atomic_numbers"])
    out = made.sample(given, 5, seeded())
    assert torch.equal(out[frozen], batch[frozen])
    with pytest.raises(ValueError, match=f"template must carry field '{frozen}'"):
        made.sample(given.without(frozen), 5, seeded())


@pytest.mark.parametrize("field", ["lattice", "frac_coords"])
def test_given_rows_stay(field):
    """Of a model that generates everything, some rows of a field are given."""
    batch = data()
    rows = len(batch[field])
    mask = torch.arange(rows) % 2 == 0
    given = template(**{field: batch[field], f"{field}_given": mask})
    out = model().sample(given, 5, seeded())
    assert torch.equal(out[field][mask], batch[field][mask])
    assert float((out[field][~mask] - batch[field][~mask]).abs().max()) > 1e-3


def test_structure_prediction_needs_elements():
    with pytest.raises(ValueError, match="'atomic_numbers'"):
        model().sample(CrystalBatch(COUNTS), 5, seeded())


@pytest.mark.parametrize("steps", [-1, 1001])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps = {steps}, allowed: 1..1000"):
        model().sample(template(), steps, seeded())
