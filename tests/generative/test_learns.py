"""Training learns structures, and learns them from the data: with shuffled coordinates it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chem.crystals import CrystalBatch
from chem.datasets import load
from chem.statistics import Statistics
from generative.models.diffcsp import DiffCSPConfig, build
from generative.noise import UNIT, UnitStreams
from generative.training import TrainSettings, fit

CRYSTALS = 300
SETTINGS = TrainSettings(epochs=1000, batch_size=50, lr=3e-3, warmup=50, ema=0.99, val_every=1000, save_every=10**9)
STEPS = 200  # of sampling, without corrector


def perovskites(root: Path) -> CrystalBatch:
    """300 of the training set, float32, elements, coordinates and lattice only."""
    batch = load("perov5", "train", root).batch
    chosen = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:CRYSTALS]
    batch = batch.select(chosen)
    return batch.without(*(set(batch.fields) - {"atomic_numbers", "frac_coords", "lattice"})).to(torch.float32)


def shuffled(batch: CrystalBatch) -> CrystalBatch:
    """The coordinates of all 1,500 atoms in one random order: each atom has those of any site of any crystal.

    Elements and lattices stay. What is left to learn is where sites lie on average, not which element takes which,
    and not that the five sites of a crystal differ.
    """
    order = torch.randperm(len(batch["batch"]), generator=torch.Generator().manual_seed(1))
    return batch.replace(frac_coords=batch["frac_coords"][order])


def match_rate(truth: CrystalBatch, samples: CrystalBatch) -> float:
    """Share of the samples that pymatgen's matcher takes for the crystal of the same composition."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    hits = 0
    for pair in zip(truth, samples, strict=True):
        a, b = (
            Structure(c["lattice"][0].double().numpy(), c["atomic_numbers"].tolist(), c["frac_coords"].double().numpy())
            for c in pair
        )
        hits += matcher.get_rms_dist(a, b) is not None
    return hits / len(truth)


def trained_match_rate(data: CrystalBatch, truth: CrystalBatch, out: Path) -> float:
    """Match rate, with the crystals `truth`, of one sample for each composition by a model trained on `data`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = build(DiffCSPConfig(hidden=64, layers=3, frequencies=32), Statistics.compute(data))
    fit(denoiser, data, data[:50], out, SETTINGS, lambda weights, info: None)
    counts = truth["num_atoms"].tolist() + [1] * (-CRYSTALS % UNIT)
    streams = UnitStreams(0, 0, CRYSTALS, counts)
    samples = denoiser.eval().sample(truth.without("frac_coords", "lattice"), STEPS, streams, correct=False)
    return match_rate(truth, samples)


@pytest.mark.slow
def test_training_learns_structures_from_the_data(data_root: Path, tmp_path: Path):
    truth = perovskites(data_root)
    assert match_rate(truth, truth) == 1
    rate = trained_match_rate(truth, truth, tmp_path / "data")
    control = trained_match_rate(shuffled(truth), truth, tmp_path / "shuffled")
    print(f"match rate {rate:.3f}, with shuffled coordinates {control:.3f}")
    assert rate >= 0.40
    assert control < 0.25
