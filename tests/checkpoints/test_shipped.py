"""Every checkpoint that comes with the package: small enough, verified, described, and able to sample."""

from __future__ import annotations

import numpy as np
import pytest

import atomsmith
import checkpoints
from checkpoints.manifest import SHIPPED


@pytest.mark.parametrize("name", sorted(checkpoints.available()))
def test_shipped(name):
    assert sum(p.stat().st_size for p in (SHIPPED / name).iterdir()) < 26e6
    loaded = atomsmith.load(name, "cpu")
    assert loaded.name == name and loaded.statistics.num_structures > 0
    card = (SHIPPED / name / "card.md").read_text()
    for part in ("data: ", "command: `atomsmith train ", "seed: ", "hardware and time: "):
        assert f"- {part}" in card
    assert "## Loss" in card and "## Measured" in card
    chooses = "atomic_numbers" not in loaded.model.processes
    given = {"num_atoms": 4} if chooses else {"formula": "NaCl"}
    made = atomsmith.sample(loaded, 2, steps=20, **given)
    assert all(np.isfinite(s.lattice.matrix).all() and 5 < s.volume < 1000 for s in made)


def test_something_is_shipped():
    assert "diffcsp-mp20-csp" in checkpoints.available()
