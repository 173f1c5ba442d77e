"""GeoBFN: symmetries of a whole step, what is given, representations, and that it learns."""

import pytest
import torch
from torch import Tensor

from chem.molecules import MoleculeBatch
from chem.statistics import Statistics
from generative.generator import Denoiser, Network, Times
from generative.models.geobfn import GeoBFNConfig, build
from generative.processes.bayesian import ContinuousFlow
from tests.generative.symmetry import orthogonal, relative

ELEMENTS = [1, 6, 7, 8]
KINDS: dict[str, dict] = {
    "discretised": {},
    "categorical": {"types": "categorical"},
    "refined": {"predicts": "data", "attention": True, "sharpness": 8.0, "sigma_pos": 0.02},
}


def molecules(counts: list[int], seed: int = 0) -> MoleculeBatch:
    g = torch.Generator().manual_seed(seed)
    atoms = sum(counts)
    numbers = torch.tensor(ELEMENTS)[torch.randint(0, 4, (atoms,), generator=g)]
    pos = 1.5 * torch.randn(atoms, 3, generator=g, dtype=torch.float64)
    return MoleculeBatch(counts, pos=pos, atomic_numbers=numbers)


def model(kind: str = "discretised", **options) -> Denoiser:
    every = molecules([40]).replace(atomic_numbers=torch.tensor(ELEMENTS * 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GeoBFNConfig(**{"hidden": 32, "layers": 2, **KINDS[kind], **options})  # type: ignore[arg-type]
        return build(config, Statistics.compute(every)).double()


class Turned:
    """Draws of another generator, three-vectors among them turned by q and atoms permuted."""

    def __init__(self, seed: int, q: Tensor, order: Tensor):
        self.generator, self.q, self.order = torch.Generator().manual_seed(seed), q, order

    def __call__(self, rows, shape, dtype, generator):
        z = torch.randn(len(rows.index), *shape, generator=self.generator, dtype=dtype)
        return (z @ self.q if tuple(shape) == (3,) else z)[self.order]


@pytest.mark.parametrize("transform", ["rotation", "reflection", "translation", "permutation"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_sampling_step_moves_with_the_molecule(kind, transform, monkeypatch):
    """With shared noise: prediction, message and update, of every field."""
    chosen, batch = model(kind), molecules([5, 1, 9])
    q = orthogonal(3, improper=transform == "reflection")
    q = q if transform in ("rotation", "reflection") else torch.eye(3, dtype=torch.float64)
    order = torch.arange(15)
    if transform == "permutation":
        order = torch.cat([torch.randperm(5), torch.tensor([5]), 6 + torch.randperm(9)])
    shift = 3.0 if transform == "translation" else 0.0

    def step(pos: Tensor, numbers: Tensor, turned: Turned) -> dict[str, Tensor]:
        monkeypatch.setattr("generative.processes.bayesian.normal", turned)
        monkeypatch.setattr(
            "generative.processes.bayesian.uniform", lambda rows, *_: torch.full((len(rows.index), 1), 0.3)
        )
        clean = chosen.encode(batch.replace(pos=pos, atomic_numbers=numbers))
        t = torch.full((3,), 0.4, dtype=torch.float64)
        state = clean.replace(**{f: p.corrupt(clean[f], t, clean.rows(f), None)[0] for f, p in chosen.noisy.items()})
        prediction = chosen.network(state, t)
        moved = {f: p.step(state[f], prediction[f], t, t + 0.1, state.rows(f), None) for f, p in chosen.noisy.items()}
        return moved | {f"predicted {f}": x for f, x in prediction.items()}

    same = torch.arange(15)
    before = step(batch["pos"], batch["atomic_numbers"], Turned(1, torch.eye(3, dtype=torch.float64), same))
    after = step((batch["pos"] @ q + shift)[order], batch["atomic_numbers"][order], Turned(1, q, order))
    for field, value in before.items():
        expected = (value @ q if value.shape[1:] == (3,) else value)[order]
        assert float(value.abs().max()) > 1e-6
        assert relative(after[field], expected) < 1e-10, field


@pytest.mark.parametrize("kind", KINDS)
def test_alone_versus_batched(kind):
    chosen, batch = model(kind), molecules([5, 1, 9])
    state, t = chosen.encode(batch), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    if kind == "categorical":
        state = state.replace(types=(state["types"] + 0.1).log_softmax(1))
    whole = chosen.network(state, t)
    for field, value in whole.items():
        parts = torch.cat([chosen.network(state[i], t[i : i + 1])[field] for i in range(3)])
        assert relative(parts, value) < 1e-10, field


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_undoes_encoding(kind):
    chosen, batch = model(kind), molecules([5, 1, 9])
    back = chosen.decode(chosen.encode(batch))
    assert torch.equal(back["atomic_numbers"], batch["atomic_numbers"]) and "types" not in back.fields
    torch.testing.assert_close(back["pos"], batch.rows("pos").center(batch["pos"]))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_elements_of_the_training_set(kind):
    made = model(kind).sample(MoleculeBatch([7, 3, 12, 1]), 10, torch.Generator().manual_seed(0))
    assert set(made["atomic_numbers"].tolist()) <= set(ELEMENTS)
    assert float(made.rows("pos").mean(made["pos"]).abs().max()) < 1e-6


@pytest.mark.parametrize("sampler", ["bayes", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_atoms_that_are_given_come_back_as_they_were(kind, sampler):
    chosen, batch = model(kind, sampler=sampler), molecules([6, 4])
    given = torch.zeros(10, dtype=torch.bool)
    given[[0, 3, 7]] = True
    template = batch.replace(pos_given=given, atomic_numbers_given=given)
    made = chosen.sample(template, 8, torch.Generator().manual_seed(0))
    assert torch.equal(made["pos"][given], batch["pos"][given])
    assert torch.equal(made["atomic_numbers"][given], batch["atomic_numbers"][given])
    assert float((made["pos"] - batch["pos"])[~given].abs().min()) > 1e-6


class KnowsShape(Network):
    """Knows the molecule up to where it is: its noise is free of a common translation, as a trained network's is."""

    def __init__(self, process: ContinuousFlow, clean: Tensor):
        super().__init__()
        self.process, self.clean = process, clean

    def forward(self, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
        rows = batch.rows("pos")
        return {"pos": rows.center(self.process.oracle(self.clean, batch["pos"], t, rows))}


@pytest.mark.parametrize("sampler", ["bayes", "flow"])
@pytest.mark.parametrize("predicts", ["noise", "data"])
def test_free_atoms_land_beside_the_given_ones(predicts, sampler):
    """One atom of 6, two of 9 and none of 4 are given, in frames of their own; the shape comes out whole."""
    process = ContinuousFlow((3,), 0.001, predicts, centered=True, sampler=sampler)
    clean = molecules([6, 9, 4])
    rows = clean.rows("pos")
    clean = clean.replace(pos=rows.center(clean["pos"]))
    given = torch.zeros(19, dtype=torch.bool)
    given[[2, 6, 9]] = True
    frame = torch.tensor([[0.4, -0.2, 1.0], [-1.1, 0.3, 0.2], [0.0, 0.0, 0.0]], dtype=torch.float64)[clean["batch"]]
    chosen = Denoiser(KnowsShape(process, clean["pos"]), {"pos": process}, Times(), 20).double()
    template = MoleculeBatch([6, 9, 4], pos=torch.where(given[:, None], clean["pos"] + frame, 0.0), pos_given=given)
    made = chosen.sample(template, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made["pos"][given], template["pos"][given])
    assert float((made["pos"] - clean["pos"] - frame).abs().max()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_water(kind):
    chosen = model(kind, hidden=48).float()
    water = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    batch = MoleculeBatch([3] * 32, pos=water.repeat(32, 1), atomic_numbers=torch.tensor([8, 1, 1] * 32))
    optimizer, g = torch.optim.Adam(chosen.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(200):
        loss = chosen.loss(batch, g)["total"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen.parameters(), 1.0)
        optimizer.step()
    made = chosen.sample(MoleculeBatch([3] * 64), 50, torch.Generator().manual_seed(1))
    right = made["atomic_numbers"].view(64, 3).sort(1).values == torch.tensor([1, 1, 8])
    assert float(right.all(1).float().mean()) > 0.5  # by chance 3 / 64
    distances = torch.cdist(made["pos"].view(64, 3, 3), made["pos"].view(64, 3, 3)).amax((1, 2))
    assert 0.8 < float(distances.median()) < 2.2  # 1.52 in the data, 12 without training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(types="one-hot"), "types = 'one-hot', allowed: discretised, categorical"),
        (dict(sampler="ode"), "sampler = 'ode', allowed: bayes, flow"),
        (dict(layers=0), "layers = 0"),
        (dict(predicts="flow"), "predicts = 'flow', allowed: noise, data"),
        (dict(sharpness=-1.0), "sharpness = -1.0, allowed: >= 0"),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        GeoBFNConfig(**options)
