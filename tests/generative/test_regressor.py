"""The regressor: what it must not see, that it is a Denoiser of one step, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from chem.crystals import CrystalBatch
from chem.molecules import MoleculeBatch
from chem.statistics import Statistics
from generative.backbone.egnn import EGNN, EGNNLayer
from generative.generator import Denoiser
from generative.models.regressor import RegressorConfig, build, predictor
from tests.generative.symmetry import orthogonal, relative


def molecules(counts: list[int], seed: int = 0) -> MoleculeBatch:
    """Random molecules of H, C and O whose property is the mean distance of the atoms from their centre."""
    g = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([1, 6, 8])[torch.randint(0, 3, (sum(counts),), generator=g)]
    scale = (0.5 + torch.rand(len(counts), generator=g, dtype=torch.float64)).repeat_interleave(torch.tensor(counts))
    pos = torch.randn(sum(counts), 3, generator=g, dtype=torch.float64) * scale.unsqueeze(1)
    batch = MoleculeBatch(counts, pos=pos, atomic_numbers=numbers)
    rows = batch.rows("pos")
    return batch.attach("structure", spread=rows.mean(rows.center(pos).norm(dim=1)))


def model(batch: MoleculeBatch, **options) -> tuple[Denoiser, Statistics]:
    statistics = Statistics.compute(batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build(RegressorConfig("spread", **{"hidden": 32, "layers": 2, **options}), statistics)
    return made, statistics


@pytest.mark.parametrize("attention", [True, False])
def test_a_prediction_knows_neither_frame_nor_order_nor_neighbours_in_the_batch(attention):
    batch = molecules([5, 1, 9])
    made, statistics = model(batch, attention=attention)
    predict = predictor(made.double().eval(), "spread", statistics)
    found = predict(batch)
    assert float(found.std()) > 1e-6
    turned = batch.replace(pos=batch["pos"] @ orthogonal(3, improper=True) + 2.0)
    assert relative(predict(turned), found) < 1e-10
    order = torch.cat([torch.randperm(5), torch.tensor([5]), 6 + torch.randperm(9)])
    mixed = batch.replace(pos=batch["pos"][order], atomic_numbers=batch["atomic_numbers"][order])
    assert relative(predict(mixed), found) < 1e-10
    alone = torch.cat([predict(batch[i]) for i in range(3)])
    assert relative(alone, found) < 1e-10
    assert torch.equal(predictor(made, "spread", statistics, size=1)(batch), alone)


def test_a_prediction_does_not_see_the_answer():
    batch = molecules([5, 1, 9])
    made, statistics = model(batch)
    predict = predictor(made.double(), "spread", statistics)
    assert torch.equal(predict(batch), predict(batch.replace(spread=batch["spread"] + 5)))
    assert torch.equal(predict(batch), predict(batch.without("spread")))


def test_the_loss_is_the_absolute_error_in_deviations():
    batch = molecules([5, 1, 9, 4])
    made, statistics = model(batch)
    found = predictor(made.double().eval(), "spread", statistics)(batch)
    expected = (found - batch["spread"]).abs() / statistics.properties["spread"].std
    (losses,) = made.losses(batch, torch.zeros(4).double()).values()
    assert relative(losses, expected) < 1e-10
    assert made.network_calls() == 1


def test_an_element_that_was_not_trained_on_has_no_prediction():
    batch = molecules([5, 1, 9])
    made, statistics = model(batch)
    numbers = batch["atomic_numbers"].clone()
    numbers[5] = 16
    found = predictor(made, "spread", statistics)(batch.replace(atomic_numbers=numbers))
    assert found.isnan().tolist() == [False, True, False]


def test_crystals_and_unknown_properties_are_refused():
    made, statistics = model(molecules([5, 1, 9]))
    with pytest.raises(ValueError, match="a regressor needs positions: it is for molecules"):
        made.encode(CrystalBatch([1], atomic_numbers=torch.tensor([6])))
    with pytest.raises(ValueError, match="property = 'gap', allowed: spread"):
        build(RegressorConfig("gap"), statistics)
    with pytest.raises(ValueError, match="layers = 0, allowed: >= 1"):
        RegressorConfig(layers=0)


def test_layers_that_do_not_move_atoms_have_a_fast_and_a_plain_form():
    class Numbers(nn.Module):
        def forward(self, batch: MoleculeBatch) -> torch.Tensor:
            return batch["atomic_numbers"].double().unsqueeze(1) / 8

    net, batch = EGNN(16, 2, Numbers(), 1, {"types": 3}), molecules([5, 1, 9])
    net.egnn_layers = nn.ModuleList(EGNNLayer(16, True, moves=False) for _ in range(2))
    net, t = net.double(), torch.full((3,), 0.5, dtype=torch.float64)
    fast, plain = net(batch, t), net.plain(batch, t)
    assert relative(fast["types"], plain["types"]) < 1e-10
    assert not fast["pos"].any() and not plain["pos"].any()


def test_it_learns():
    g = torch.Generator().manual_seed(0)
    train, held_out = molecules([4] * 256, 1), molecules([4] * 64, 2)
    made, statistics = model(train)
    made = made.float()
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        made.loss(train.select(torch.randperm(256, generator=g)[:64]), g)["total"].backward()
        optimizer.step()
    error = (predictor(made.eval(), "spread", statistics)(held_out) - held_out["spread"]).abs().mean()
    knowing_nothing = (held_out["spread"] - held_out["spread"].median()).abs().mean()
    assert float(error) < 0.3 * float(knowing_nothing) and math.isfinite(float(error))
