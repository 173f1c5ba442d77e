"""Densities of structures under a loaded model."""

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

import checkpoints
from chem import datasets
from chem.statistics import Statistics
from generative.models.flowmm import FlowMMConfig, build

SIZE = dict(hidden=16, layers=1, frequencies=4, time_dim=16)
PLAIN = Structure(Lattice.from_parameters(3.9, 4.4, 5.1, 88, 93, 101), ["Na", "Cl", "O"], np.eye(3) * 0.3 + 0.1)
OPTIONS = dict(method="heun", steps=4)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    config = FlowMMConfig(lattice="log-strain", **SIZE)
    statistics = Statistics.compute(datasets.load("prototypes", "train").batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config, statistics)
    folder = tmp_path_factory.mktemp("models") / "flow"
    checkpoints.save(folder, "flowmm", config, statistics, model.state_dict(), dtype=torch.float32)
    return checkpoints.load(folder, "cpu", torch.float64)


def test_a_crystal_has_one_density_however_it_is_written_down(flow):
    shifted = PLAIN.copy()
    shifted.translate_sites([0, 1, 2], [0.21, 0.33, 0.47])
    other_cell = PLAIN.make_supercell([[1, 0, 0], [2, 1, 0], [0, -1, 1]], in_place=False)
    permuted = Structure.from_sites([PLAIN[i] for i in (2, 0, 1)])
    values = flow.log_prob([PLAIN, shifted, other_cell, permuted], **OPTIONS)
    assert values.shape == (4,) and bool(torch.isfinite(values).all())
    torch.testing.assert_close(values, values[:1].expand(4), rtol=0, atol=1e-6)
    squeezed = PLAIN.copy()
    squeezed.scale_lattice(PLAIN.volume / 8)
    assert abs(float(flow.log_prob([squeezed], **OPTIONS) - values[0])) > 1


def test_a_model_that_is_no_flow_has_no_density(tiny_csp):
    with pytest.raises(ValueError, match="only flows follow an ODE"):
        checkpoints.load(tiny_csp).log_prob([PLAIN])


def test_what_has_no_reduced_cell_is_refused_by_name(flow):
    flat = Structure(Lattice([[4, 0, 0], [4, 1e-9, 0], [0, 0, 4]]), ["Na"], [[0, 0, 0]])
    for properties, name in (({}, 1), ({"id": "mp-7"}, "mp-7")):
        flat.properties = properties
        with pytest.raises(ValueError, match=f"^structures: {name}: cell of .* cubic ångström for 1 atoms$"):
            flow.log_prob([PLAIN, flat], **OPTIONS)
    with pytest.raises(ValueError, match="^structures is empty"):
        flow.log_prob([], **OPTIONS)
