"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and two threads that must share a core wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The directory ATOMSMITH_DATA names; the test is skipped where it is not set."""
    root = os.environ.get("ATOMSMITH_DATA")
    if not root:
        pytest.skip("no data: ATOMSMITH_DATA is not set")
    return Path(root).resolve()


def _tiny(folder, task: str) -> str:
    """A checkpoint of a tiny DiffCSP with random weights and the statistics of the built-in prototypes."""
    import torch

    import checkpoints
    from chem import datasets
    from chem.statistics import Statistics
    from generative.models.diffcsp import DiffCSPConfig, build

    config = DiffCSPConfig(task=task, hidden=16, layers=2, frequencies=4)  # type: ignore[arg-type]
    statistics = Statistics.compute(datasets.load("prototypes", "train").batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config, statistics)
    checkpoints.save(folder, "diffcsp", config, statistics, model.state_dict(), dtype=torch.float32)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_geobfn(tmp_path_factory) -> str:
    """Folder of a tiny model of molecules with random weights and the statistics of ten small ones."""
    import torch
    from ase.build import molecule

    import checkpoints
    from chem.convert_molecules import from_ase
    from chem.statistics import Statistics
    from generative.models.geobfn import GeoBFNConfig, build

    names = ("H2O", "CH4", "NH3", "CH3OH", "C2H6", "C2H4", "HCN", "H2CO", "CO2", "C6H6")
    config = GeoBFNConfig(hidden=16, layers=2)
    statistics = Statistics.compute(from_ase([molecule(name) for name in names]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config, statistics)
    folder = tmp_path_factory.mktemp("models") / "tiny-geobfn"
    checkpoints.save(folder, "geobfn", config, statistics, model.state_dict(), dtype=torch.float32)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_csp(tmp_path_factory) -> str:
    """Folder of a tiny structure-prediction model."""
    return _tiny(tmp_path_factory.mktemp("models") / "tiny-csp", "csp")


@pytest.fixture(scope="session")
def tiny_ab_initio(tmp_path_factory) -> str:
    """Folder of a tiny ab initio model."""
    return _tiny(tmp_path_factory.mktemp("models") / "tiny-ab-initio", "ab-initio")
