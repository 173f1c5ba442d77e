"""CrysBFN: symmetries of its network in beliefs, representations, and that it learns."""

import math
from functools import cache
from statistics import mean

import pytest
import torch
from torch import Tensor

from chem import datasets
from chem.crystals import CrystalBatch
from chem.periodic import torus_log
from chem.statistics import Statistics
from generative.generator import Denoiser, Network
from generative.models.crysbfn import CrysBFNConfig, build
from generative.processes.circular import read_belief
from tests.generative.symmetry import crystals, orthogonal, permute, relative

TASKS = ("csp", "ab-initio")


@cache
def data() -> CrystalBatch:
    return datasets.load("prototypes", "train").batch.to(torch.float64)


def model(task: str = "csp", **options) -> Denoiser:
    sizes = dict(hidden=32, layers=2, frequencies=8, time_dim=16, resolution=100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(CrysBFNConfig(task=task, **{**sizes, **options}), Statistics.compute(data())).double()


def beliefs(task: str, counts: list[int]) -> tuple[CrystalBatch, Tensor]:
    """States half-way, of random crystals, and times."""
    chosen, g = model(task), torch.Generator().manual_seed(1)
    clean = chosen.encode(crystals(counts))
    t = chosen.times.draw(0.2 + 0.6 * torch.rand(len(counts), generator=g, dtype=torch.float64))
    noisy = {f: p.corrupt(clean[f], t, clean.rows(f), g)[0] for f, p in chosen.noisy.items()}
    return clean.replace(**noisy), t


@pytest.mark.parametrize("task", TASKS)
def test_a_common_shift_of_beliefs_shifts_the_coordinates_alone(task):
    net, (batch, t) = model(task).network, beliefs(task, [3, 1, 8, 2])
    angle = 2 * math.pi * torch.rand(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    angle = angle[batch["batch"]]
    x, y = batch["frac_coords"].unbind(-1)
    turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
    before, after = net(batch, t), net(batch.replace(frac_coords=turned), t)
    moved = torus_log(before.pop("frac_coords") + angle / (2 * math.pi), after.pop("frac_coords"))
    assert float(moved.abs().max()) < 1e-9
    for field, value in before.items():
        assert relative(after[field], value) < 1e-9


@pytest.mark.parametrize("task", TASKS)
def test_permutation_and_alone_versus_batched(task):
    net, (batch, t) = model(task).network, beliefs(task, [3, 1, 8, 2])
    whole = net(batch, t)
    shuffled, expected = permute(batch, whole)
    assert not torch.equal(shuffled["frac_coords"], batch["frac_coords"])
    for field, value in net(shuffled, t).items():
        assert relative(value, expected[field]) < 1e-10
    for field, value in whole.items():
        parts = torch.cat([net(batch[i], t[i : i + 1])[field] for i in range(4)])
        assert relative(parts, value) < 1e-10


@pytest.mark.parametrize("task", TASKS)
def test_decoding_undoes_encoding_whatever_the_orientation(task):
    chosen = model(task)
    turned = data()[:20].replace(lattice=data()[:20]["lattice"] @ orthogonal(5, improper=False))
    back = chosen.decode(chosen.encode(turned))
    assert torch.equal(back["atomic_numbers"], turned["atomic_numbers"])
    gram, expected = (b["lattice"] @ b["lattice"].mT for b in (back, turned))
    torch.testing.assert_close(gram, expected, atol=1e-9, rtol=0)


def test_the_network_sees_how_sure_a_belief_is():
    """Concentration is random given t: without it the model of the paper loses 12 points of match rate."""
    net, (batch, t) = model().network, beliefs("csp", [4])
    surer = batch.replace(frac_coords=2 * batch["frac_coords"])
    assert torch.equal(read_belief(surer["frac_coords"])[0], read_belief(batch["frac_coords"])[0])
    assert relative(net(surer, t)["cell"], net(batch, t)["cell"]) > 1e-4


class Blind(Network):
    """Reads no belief: the mean cell, every atom in one place, all elements alike."""

    def forward(self, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
        atoms = len(batch["batch"])
        return {"frac_coords": torch.zeros(atoms, 3), "cell": torch.zeros(len(t), 6), "types": torch.zeros(atoms, 100)}


@pytest.mark.parametrize("sampler", ["flow", "bayes"])
@pytest.mark.parametrize("task", TASKS)
def test_it_learns_one_crystal(task, sampler):
    chosen = model(task, hidden=48, sampler=sampler).float()
    one = data()[10].to(torch.float32)
    batch = one[torch.zeros(32, dtype=torch.long)]
    optimizer = torch.optim.Adam(chosen.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    blind = mean(float(chosen.around(Blind()).loss(batch, g)["total"]) for _ in range(5))
    losses = []
    for _ in range(300):
        loss = chosen.loss(batch, g)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert mean(losses[-50:]) < 0.01 * blind
    # untrained, it says what the beliefs say; half of what is left (where a crystal of two atoms lies) cannot be
    # learned
    assert mean(losses[-50:]) < 0.6 * mean(losses[:5])
    made = chosen.sample(batch.without("frac_coords", "lattice"), 20, torch.Generator().manual_seed(1))
    true_volume = float(torch.linalg.det(one["lattice"][0]).abs())
    volumes = torch.linalg.det(made["lattice"]).abs()
    assert float((volumes / true_volume - 1).abs().mean()) < 0.2
    if task == "ab-initio":
        right = made["atomic_numbers"] == batch["atomic_numbers"]
        assert float(right.float().mean()) > 0.3  # by chance 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(task="dng"), "task = 'dng', allowed: csp, ab-initio"),
        (dict(sampler="ode"), "sampler = 'ode', allowed: flow, bayes"),
        (dict(resolution=0), "resolution = 0"),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CrysBFNConfig(**options)
