"""Conditions and classifier-free guidance: the same wrapper around the network of every model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.molecules import MoleculeBatch
from chem.ragged import RaggedBatch
from chem.statistics import Statistics
from generative import guidance
from generative.generator import Denoiser
from generative.guidance import Conditional, Guided
from generative.models import crysbfn, diffcsp, flowmm, geobfn
from generative.noise import Share, UnitStreams
from generative.processes.bayesian import CategoricalFlow
from tests.generative.symmetry import relative

MODELS = {
    "diffcsp": (diffcsp, diffcsp.DiffCSPConfig(task="ab-initio", hidden=16, layers=1, frequencies=4, steps=20)),
    "flowmm": (flowmm, flowmm.FlowMMConfig(task="ab-initio", hidden=16, layers=1, frequencies=4)),
    "crysbfn": (crysbfn, crysbfn.CrysBFNConfig(task="ab-initio", hidden=16, layers=1, frequencies=4)),
    "geobfn": (geobfn, geobfn.GeoBFNConfig(hidden=16, layers=1)),
    "geobfn-classes": (geobfn, geobfn.GeoBFNConfig(types="categorical", hidden=16, layers=1)),
}
NAMES = ("gap", "mu")


def structures(name: str, counts: list[int]) -> RaggedBatch:
    """Triclinic crystals, or molecules, with two properties of which some are missing."""
    g = torch.Generator().manual_seed(3)
    atoms, n = sum(counts), len(counts)
    numbers = torch.tensor([1, 6, 8])[torch.arange(atoms) % 3]
    if name.startswith("geobfn"):
        pos = torch.randn(atoms, 3, generator=g, dtype=torch.float64)
        batch: RaggedBatch = MoleculeBatch(counts, atomic_numbers=numbers, pos=pos)
    else:
        frac = torch.rand(atoms, 3, generator=g, dtype=torch.float64)
        shape = torch.tensor([[4.0, 0.3, 0.2], [0.1, 5.0, 0.4], [0.2, 0.1, 6.0]], dtype=torch.float64)
        lattice = shape + 0.2 * torch.rand(n, 3, 3, generator=g, dtype=torch.float64)
        batch = CrystalBatch(counts, atomic_numbers=numbers, frac_coords=frac, lattice=lattice)
    values = torch.arange(n).double()
    return batch.attach("structure", gap=values, mu=torch.where(values == 1, math.nan, -values))


def build(name: str, conditions: tuple[str, ...] = NAMES) -> tuple[Denoiser, Statistics]:
    """A model in float64 whose embeddings are not zero, in evaluation mode."""
    module, config = MODELS[name]
    statistics = Statistics.compute(structures(name, [3, 5, 2, 6]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = module.build(replace(config, conditions=conditions), statistics)
        if isinstance(model.network, Conditional):
            for embedding in model.network.embeddings:
                torch.nn.init.normal_(embedding[2].weight)  # type: ignore[index]
    return model.double().eval().requires_grad_(False), statistics


def state_of(model: Denoiser, name: str) -> tuple[RaggedBatch, Tensor]:
    """Noised structures with conditions, and their times."""
    batch, t = structures(name, [3, 5, 2]), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    clean, g = model.encode(batch), torch.Generator().manual_seed(1)
    noisy = {f: p.corrupt(clean[f], t, clean.rows(f), g)[0] for f, p in model.noisy.items()}
    return clean.replace(**noisy), t


def draws() -> UnitStreams:
    return UnitStreams(0, 0, 3, [3, 5, 2, *[1] * 13])


def template(name: str) -> RaggedBatch:
    """Atom counts, and no property."""
    return (MoleculeBatch if name.startswith("geobfn") else CrystalBatch)([3, 5, 2])


def assert_same(first: RaggedBatch, second: RaggedBatch) -> None:
    assert first.fields.keys() == second.fields.keys()
    assert all(torch.equal(value, second[field]) for field, value in first.fields.items())


@pytest.mark.parametrize("name", MODELS)
def test_without_conditions_it_is_the_bare_network(name):
    model, statistics = build(name)
    (state, t), inner = state_of(model, name), guidance.bare(model).network
    bare = inner(state, t)
    for network in (model.network, Guided(model.network, 2.0)):  # type: ignore[arg-type]
        for field, value in network(state.without(*NAMES), t).items():
            assert torch.equal(value, bare[field]), field
    first = model.sample(template(name), 4, draws())
    assert_same(first, guidance.guided(model, 2.0).sample(template(name), 4, draws()))
    assert_same(first, guidance.under(model, {}, 0.0, statistics).sample(template(name), 4, draws()))


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_value_is_as_no_condition(name):
    """Structure 1 has a gap and no mu; without its gap, too, it meets the bare network, beside others that do not."""
    model, _ = build(name)
    state, t = state_of(model, name)
    asked = model.network(state, t)
    bare = guidance.bare(model).network(state, t)
    gap = torch.where(torch.arange(3) == 1, math.nan, state["gap"])
    partly = model.network(state.replace(gap=gap), t)
    for field, value in partly.items():
        mine = state.rows(field).index == 1
        assert torch.equal(value[mine], bare[field][mine]), field
        assert relative(value[~mine], asked[field][~mine]) < 1e-12, field
        assert not torch.equal(asked[field][mine], bare[field][mine]), field


@pytest.mark.parametrize("name", MODELS)
def test_guidance_extrapolates_every_prediction(name):
    model, statistics = build(name)
    state, t = state_of(model, name)
    c, u = model.network(state, t), guidance.bare(model).network(state, t)
    for field, value in Guided(model.network, 1.5)(state, t).items():  # type: ignore[arg-type]
        assert relative(value, 2.5 * c[field] - 1.5 * u[field]) < 1e-12, field
        assert relative(c[field], u[field]) > 1e-6, field
    asked = {"gap": 2.0, "mu": -1.0}
    plain = guidance.under(model, asked, 0.0, statistics)
    by_hand = template(name).attach("structure", **{k: torch.full((3,), v) for k, v in asked.items()})
    assert_same(plain.sample(template(name), 4, draws()), model.sample(by_hand, 4, draws()).without(*asked))
    strong = guidance.under(model, asked, 2.0, statistics)
    place = "pos" if name.startswith("geobfn") else "frac_coords"
    assert not torch.equal(*(m.sample(template(name), 4, draws())[place] for m in (plain, strong)))
    assert strong.network_calls(4) == 2 * plain.network_calls(4) == 2 * model.network_calls(4)


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_form_of_a_network_sees_the_conditions(name):
    model, _ = build(name)
    assert isinstance(model.network, Conditional)
    if not hasattr(model.network.network, "plain"):
        pytest.skip("this network has no plain form")
    state, t = state_of(model, name)
    shift = model.network.condition(state)
    plain = model.network.network.plain(state.attach("structure", condition=shift), t)  # type: ignore[operator]
    for field, value in model.network(state, t).items():
        assert relative(value, plain[field]) < 1e-10, field


def test_guided_logits_are_a_ratio_of_probabilities():
    process, w = CategoricalFlow(4), 1.5
    c, u = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = MoleculeBatch([5]).rows("types")
    p, q = (process.estimate(c, logits, torch.ones(1).double(), rows) for logits in (c, u))
    expected = p ** (1 + w) / q**w
    found = process.estimate(c, c + w * (c - u), torch.ones(1).double(), rows)
    assert relative(found, expected / expected.sum(1, keepdim=True)) < 1e-12


def many(n: int) -> RaggedBatch:
    return MoleculeBatch([1] * n).attach("structure", gap=torch.ones(n), mu=torch.ones(n))


def test_the_share_of_hidden_conditions():
    """One condition is hidden at the rate of dropout; of two, all at once at this rate, and each alone besides."""
    n, p = 40_000, 0.2
    error = 5 * math.sqrt(0.25 / n)
    columns = Statistics.compute(structures("geobfn", [2, 3, 4])).properties
    network = build("geobfn", ())[0].network
    one = Conditional(network, 16, {"gap": columns["gap"]}, p).hide(many(n), torch.Generator().manual_seed(0))
    assert float(one["gap"].isnan().double().mean()) == pytest.approx(p, abs=error)
    assert not one["mu"].isnan().any()
    two = Conditional(network, 16, columns, p).hide(many(n), torch.Generator().manual_seed(0))
    gap, mu = two["gap"].isnan(), two["mu"].isnan()
    assert float((gap & mu).double().mean()) == pytest.approx(p + (1 - p) * p * p, abs=error)
    for hidden in (gap, mu):
        assert float(hidden.double().mean()) == pytest.approx(p + (1 - p) * p, abs=error)


def test_hiding_is_a_function_of_the_generator_and_shared_out_by_ranks():
    network, batch = build("geobfn")[0].network, many(64)

    def hidden(seed: int) -> Tensor:
        return network.hide(batch, torch.Generator().manual_seed(seed))["gap"].isnan()

    before = torch.get_rng_state()
    whole = hidden(0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(whole, hidden(0)) and not torch.equal(whole, hidden(1))
    for rank in (0, 1):
        share = Share(torch.Generator().manual_seed(0), batch["num_atoms"], rank, 2)
        part = network.hide(batch.select(torch.arange(rank, 64, 2)), share)["gap"].isnan()
        assert torch.equal(part, whole[rank::2])


def test_only_training_hides():
    model, _ = build("geobfn")
    model.network.dropout = 1.0  # type: ignore[assignment]
    batch, t = structures("geobfn", [3, 5, 2]), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)

    def loss(of: Denoiser, data: RaggedBatch) -> dict[str, Tensor]:
        return of.losses(data, t, torch.Generator().manual_seed(0))

    asked, without = loss(model, batch), loss(model, batch.without(*NAMES))
    assert all(not torch.equal(asked[f], without[f]) for f in asked)
    # in training the draws of the noise come after those that hide; all else is the loss without conditions
    model.train()
    g = torch.Generator().manual_seed(0)
    model.network.hide(batch, g)
    hidden, bare = loss(model, batch), guidance.bare(model).losses(batch.without(*NAMES), t, g)
    assert all(torch.equal(hidden[f], bare[f]) for f in hidden)


def test_a_new_conditional_model_is_the_model_it_starts_from():
    start, statistics = build("diffcsp", ())
    model = diffcsp.build(replace(MODELS["diffcsp"][1], conditions=NAMES), statistics).double().eval()
    guidance.adopt(model, start, lambda state, _: state)
    state, t = state_of(start, "diffcsp")
    for field, value in model.network(state, t).items():
        assert torch.equal(value, start.network(state, t)[field]), field
    again, taught = diffcsp.build(replace(MODELS["diffcsp"][1], conditions=NAMES), statistics), build("diffcsp")[0]
    guidance.adopt(again, taught, lambda state, _: state)
    assert all(torch.equal(value.double(), taught.state_dict()[k]) for k, value in again.state_dict().items())


def test_products_are_those_of_the_wrapped_network():
    model, _ = build("geobfn")
    model.network.products = torch.bfloat16
    assert model.network.network.products is torch.bfloat16  # type: ignore[union-attr]
    model.network.products = None
    assert model.network.products is None


@pytest.mark.parametrize(
    ("conditions", "weight", "said"),
    [
        (["gap"], None, "condition = 'gap', allowed: NAME=NUMBER"),
        (["gap=wide"], None, "condition gap = 'wide', allowed: a number"),
        ({"gap": math.nan}, None, "condition gap = nan, allowed: a finite number"),
        ({"gap": 1}, -0.5, "guidance = -0.5, allowed: >= 0"),
        (None, 1.0, "guidance = 1.0, allowed: with conditions"),
    ],
)
def test_conditions_that_cannot_be_read(conditions, weight, said):
    with pytest.raises(ValueError) as error:
        guidance.read_values(conditions, weight)
    assert str(error.value) == said


def test_conditions_are_read_from_text_and_mappings():
    assert guidance.read_values({"gap": 1}, 2) == ({"gap": 1.0}, 2)
    assert guidance.read_values(["gap = 0.2", "mu=-1e-3"], None) == ({"gap": 0.2, "mu": -0.001}, 0.0)
    assert guidance.read_values("gap=0.2,mu=1", None)[0] == {"gap": 0.2, "mu": 1.0}
    assert guidance.read_names("gap, mu") == NAMES and guidance.read_names(None) is None


def test_what_a_model_does_not_know_is_refused_and_what_it_has_not_seen_warned_of():
    model, statistics = build("geobfn")
    bare, _ = build("geobfn", ())
    with pytest.raises(ValueError, match="conditions = gap, allowed: none, the model was trained without conditions"):
        guidance.under(bare, {"gap": 1.0}, 0.0, statistics)
    with pytest.raises(ValueError, match="condition alpha = 1, allowed: gap, mu"):
        guidance.under(model, {"alpha": 1.0}, 0.0, statistics)
    with pytest.warns(UserWarning, match="condition gap = 7: the model was trained on 0 to 3"):
        guidance.under(model, {"gap": 7.0}, 0.0, statistics)
    with pytest.raises(ValueError, match="conditions = 'alpha', allowed: gap, mu"):
        build("geobfn", ("alpha",))
    with pytest.raises(ValueError, match="conditions has 'gap' twice"):
        build("geobfn", ("gap", "gap"))


def pairs(counts: int, g: torch.Generator) -> MoleculeBatch:
    """Molecules of two atoms whose distance is their property `length`, which a third of them lack."""
    length = 1 + torch.rand(counts, generator=g)
    axis = torch.nn.functional.normalize(torch.randn(counts, 3, generator=g), dim=1)
    pos = torch.stack([axis, -axis], 1).flatten(0, 1) * length.repeat_interleave(2).unsqueeze(1) / 2
    asked = torch.where(torch.rand(counts, generator=g) < 1 / 3, math.nan, length)
    data = MoleculeBatch([2] * counts, pos=pos, atomic_numbers=torch.tensor([6, 8] * counts))
    return data.attach("structure", length=asked)


def test_samples_follow_the_condition():
    """Farther apart when asked for; guidance follows more closely and exaggerates; unasked, all lengths occur."""
    g, steps = torch.Generator().manual_seed(0), 600
    data, wanted, template = pairs(128, g), torch.linspace(1.1, 1.9, 64), MoleculeBatch([2] * 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = geobfn.GeoBFNConfig(hidden=32, layers=2, conditions=("length",), sigma_pos=0.05, bounded=True)
        model = geobfn.build(config, Statistics.compute(data))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(data, g)["total"].backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    model.eval()

    def lengths(weight: float | None) -> Tensor:
        asked = template if weight is None else template.attach("structure", length=wanted)
        made = guidance.guided(model, weight or 0.0).sample(asked, 30, torch.Generator().manual_seed(1))
        return (made["pos"][::2] - made["pos"][1::2]).norm(dim=1)

    def follows(found: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([wanted, found]))[0, 1])

    unasked, plain, strong = (lengths(weight) for weight in (None, 0.0, 1.0))
    assert abs(follows(unasked)) < 0.4 and float(unasked.std()) > 0.1
    assert follows(plain) > 0.7 and float((plain - wanted).abs().median()) < 0.15
    assert follows(strong) > 0.85 and float(strong.std()) > float(plain.std())
