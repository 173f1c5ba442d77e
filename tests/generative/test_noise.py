"""Random numbers drawn per unit of 16 samples."""

import pytest
import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from generative.noise import UNIT, UnitStreams, mix, normal, uniform

COUNTS = [1 + (5 * i) % 9 for i in range(256)]


def draws(first: int, n: int, seed: int = 3) -> list[Tensor]:
    """Three draws in a row for samples first, ..., first + n - 1: of atoms, of structures, of atoms again."""
    batch = CrystalBatch(COUNTS[first : first + n])
    streams = UnitStreams(seed, first, n, COUNTS[first : first + -(-n // UNIT) * UNIT])
    atoms, cells = batch.rows("frac_coords"), batch.structures
    return [
        normal(atoms, (3,), torch.float32, streams),
        uniform(cells, (3, 3), torch.float64, streams),
        uniform(atoms, (), torch.float32, streams),
    ]


def test_one_equals_the_first_of_many() -> None:
    """n = 1 draws what the first of 16 and of 100 draws."""
    alone = draws(0, 1)
    assert len(alone[0]) == COUNTS[0] and len(alone[1]) == 1
    for n in (16, 100):
        assert all(torch.equal(a, b[: len(a)]) for a, b in zip(alone, draws(0, n), strict=True))


def test_batch_size_does_not_matter() -> None:
    """Batches of 16, 48 and 256 draw the same numbers for 240 samples and a partial batch at the end."""
    n = 250
    whole = draws(0, n)
    for size in (16, 48, 256):
        parts = [draws(first, min(size, n - first)) for first in range(0, n, size)]
        assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts, strict=True), whole, strict=True))


def test_units_and_seeds_differ() -> None:
    """No two units, seeds or draws share their numbers."""
    fields = [draws(first, UNIT, seed)[1].flatten() for first in (0, 16, 32) for seed in (3, 4)]
    numbers = torch.cat([*fields, draws(0, UNIT)[2].double()])
    assert len(numbers.unique()) == len(numbers)


def test_global_state_is_untouched() -> None:
    """Neither streams nor a given generator touch the global state; None uses it."""
    before = torch.get_rng_state()
    draws(0, 20)
    rows = CrystalBatch([2, 3]).rows("frac_coords")
    a, b = (normal(rows, (3,), torch.float64, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(a, b)
    normal(rows, (3,), torch.float64, None)
    assert not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)


def test_device_and_dtype() -> None:
    """Numbers come on the streams' device, in the dtype asked for; an unknown device is refused."""
    streams = UnitStreams(0, 0, 1, COUNTS[:UNIT], device=torch.device("cpu"))
    drawn = normal(CrystalBatch(COUNTS[:1]).structures, (2,), torch.float64, streams)
    assert drawn.device.type == "cpu" and drawn.dtype == torch.float64 and drawn.shape == (1, 2)
    with pytest.raises(RuntimeError):
        UnitStreams(0, 0, 1, COUNTS[:UNIT], device="no_such_device")


@pytest.mark.parametrize(
    ("first", "n", "counts"), [(1, 16, 16), (0, 0, 16), (0, -1, 16), (0, 17, 16), (0, 5, 5), (16, 33, 32), (0, 1, 0)]
)
def test_bad_arguments(first: int, n: int, counts: int) -> None:
    """A start inside a unit, no samples, or counts that are not whole units: one line with the numbers."""
    with pytest.raises(ValueError, match=rf"samples {first}\.\.{first + n} with {counts} counts") as error:
        UnitStreams(0, first, n, COUNTS[:counts])
    assert "\n" not in str(error.value)


def test_moments() -> None:
    """Standard normal and uniform in [0, 1)."""
    counts = [100] * 160
    rows, streams = CrystalBatch(counts).rows("frac_coords"), UnitStreams(1, 0, 160, counts)
    z, u = normal(rows, (3,), torch.float64, streams), uniform(rows, (3,), torch.float64, streams)
    n = z.numel()
    assert abs(float(z.mean())) < 5 / n**0.5 and abs(float(z.var()) - 1) < 5 * (2 / n) ** 0.5
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 5 * (1 / 12 / n) ** 0.5


def test_mix() -> None:
    """63-bit, deterministic, no collision on a grid that holds negative and huge numbers, order and length matter."""
    values = [*range(-40, 100), 2**31, 2**63 - 1, 2**64 - 1 - 2**20]
    grid = {mix(a, b) for a in values for b in values}
    assert len(grid) == len(values) ** 2
    assert all(0 <= seed < 2**63 for seed in grid)
    assert mix(1, 2) != mix(2, 1) and mix(1) != mix(1, 0) and mix(0, 1) != mix(1)
    assert mix(7, 3) == mix(7, 3)


def test_mix_changes_half_of_the_bits() -> None:
    """Neighbouring units get unrelated seeds."""
    flips = [(mix(5, unit) ^ mix(5, unit + 1)).bit_count() for unit in range(500)]
    assert 28 < sum(flips) / len(flips) < 35
