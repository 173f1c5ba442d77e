"""Lattices against published numbers, pymatgen and finite differences, on triclinic cells."""

import numpy as np
import pytest
import torch

from chem import lattice as lat

ROWS = [[3.0, 4.0, 5.0, 80.0, 100.0, 110.0], [5, 6, 7, 90, 100, 90], [3.21, 3.21, 5.21, 90, 90, 120]]
PARAMETERS = torch.tensor(ROWS, dtype=torch.float64)


def random_cells(n: int, seed: int = 0) -> torch.Tensor:
    """Triclinic cells, half of them made very oblique by integer shears that keep the volume."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.eye(3, dtype=torch.float64) * 4 + torch.randn(n, 3, 3, generator=g, dtype=torch.float64)
    shear = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    k = torch.randint(-4, 5, (n, 3), generator=g).double()
    shear[:, 0, 1], shear[:, 0, 2], shear[:, 1, 2] = k[:, 0], k[:, 1], k[:, 2]
    mixed = shear.mT @ shear @ cells
    return torch.where((torch.arange(n) % 2 == 0)[:, None, None], cells, mixed)


def test_from_parameters_golden():
    cell = lat.from_parameters(PARAMETERS[0, :3], PARAMETERS[0, 3:])
    golden = [[2.954423, 0, -0.520945], [-1.26671, 3.730012, 0.694593], [0, 0, 5]]
    assert torch.allclose(cell, torch.tensor(golden, dtype=torch.float64), atol=1e-6)
    assert lat.volume(cell).item() == pytest.approx(55.1002, abs=1e-4)


def test_from_parameters_equals_pymatgen():
    from pymatgen.core import Lattice

    for row in PARAMETERS:
        ours = lat.from_parameters(row[:3], row[3:]).numpy()
        assert np.allclose(ours, Lattice.from_parameters(*row.tolist()).matrix, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (0,)])
def test_parameters_round_trip(shape):
    row = PARAMETERS[: shape[0]].reshape(*shape, 6)
    cell = lat.from_parameters(row[..., :3], row[..., 3:])
    assert cell.shape == (*shape, 3, 3)
    lengths, angles = lat.parameters(cell)
    assert torch.allclose(lengths, row[..., :3], atol=1e-12)
    assert torch.allclose(angles, row[..., 3:], atol=1e-10)


def test_small_angles_keep_their_digits():
    row = torch.tensor([3.0, 4.0, 5.0, 0.5, 0.4, 0.3], dtype=torch.float64)
    _, angles = lat.parameters(lat.from_parameters(row[:3], row[3:]))
    assert torch.allclose(angles, row[3:], rtol=1e-8)


def test_volume_forgets_handedness_and_takes_gradients():
    cell = random_cells(4).requires_grad_()
    assert torch.allclose(lat.volume(-cell), torch.linalg.det(cell).abs())
    assert torch.autograd.gradcheck(lat.volume, cell)


LOGITS = [(60, -6.3986), (75, -1.09419), (90, 0.0), (120, 6.3986)]


def test_logit_angles_golden():
    angles = torch.tensor([a for a, _ in LOGITS] * 3).double().reshape(-1, 3)
    y = lat.to_logit_angles(angles)
    assert torch.allclose(y.flatten(), torch.tensor([v for _, v in LOGITS] * 3).double(), atol=5e-5)
    back = lat.from_logit_angles(torch.tensor([-3.0, 2.0, 0.0]).double())
    assert torch.allclose(back, torch.tensor([62.755, 112.924, 90.0]).double(), atol=5e-4)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_logit_angles_round_trip_at_the_edges(dtype, atol):
    """60 and 120 degrees survive, and any real number is an angle inside."""
    angles = torch.tensor([[60.0, 120.0, 90.0], [61.0, 119.0, 60.0]], dtype=dtype)
    y = lat.to_logit_angles(angles)
    assert bool(y.isfinite().all())
    assert torch.allclose(lat.from_logit_angles(y), angles, rtol=0, atol=atol)
    far = lat.from_logit_angles(torch.tensor([-1e4, 1e4, 0.0], dtype=dtype))
    assert torch.allclose(far, torch.tensor([59.9, 120.1, 90.0], dtype=dtype))


def test_bounded_round_trip_and_gradients():
    """Niggli-reduced triclinic cells come back up to a rotation, with gradients both ways."""
    reduced = lat.niggli(random_cells(20))[0].reshape(4, 5, 3, 3)
    vector = lat.to_bounded(reduced)
    assert vector.shape == (4, 5, 6)
    back = lat.from_bounded(vector)
    assert torch.allclose(back @ back.mT, reduced @ reduced.mT, rtol=1e-9, atol=1e-9)
    assert torch.allclose(lat.to_bounded(back), vector, rtol=1e-9, atol=1e-9)
    inner = lat.from_parameters(PARAMETERS[0, :3], PARAMETERS[0, 3:])[None]
    assert torch.autograd.gradcheck(lat.to_bounded, inner.requires_grad_())
    assert torch.autograd.gradcheck(lat.from_bounded, lat.to_bounded(inner).detach().requires_grad_())


def test_bounded_lengths_are_positive():
    vector = torch.tensor([[-1.0, 0.05, 3.0, 0.3, -0.2, 0.1]]).double()
    lengths, _ = lat.parameters(lat.from_bounded(vector))
    assert torch.allclose(lengths, torch.tensor([[0.1, 0.1, 3.0]]).double())


def test_cells_outside_the_interval_are_refused_until_reduced():
    """Very oblique cells, named with angle and remedy; their Niggli cells pass."""
    oblique = lat.from_parameters(PARAMETERS[0, :3], torch.tensor([95.0, 100.0, 125.0]).double())
    cells = torch.stack([lat.from_parameters(PARAMETERS[0, :3], PARAMETERS[0, 3:]), oblique])
    with pytest.raises(ValueError, match=r"lattice 1 has gamma = 125 degrees, allowed: above 59.9 .*niggli") as error:
        lat.to_bounded(cells)
    assert "\n" not in str(error.value)
    assert bool(lat.to_bounded(lat.niggli(cells)[0]).isfinite().all())


GOLDEN_K = [
    ((3.905, 3.905, 3.905, 90, 90, 90), (0, 0, 0, 0, 0, 2.3595)),
    ((4.594, 4.594, 2.959, 90, 90, 90), (0, 0, 0, 0, 0.359177, 2.38697)),
    ((3.21, 3.21, 5.21, 90, 90, 120), (-0.388418, 0, 0, 0, -0.454159, 2.21661)),
    ((3, 4, 5, 90, 90, 90), (0, 0, 0, -0.203422, -0.299642, 2.363871)),
    ((5, 6, 7, 90, 100, 90), (0, -0.121716, 0, -0.135533, -0.199249, 3.078315)),
    ((3, 4, 5, 80, 100, 110), (-0.239269, -0.1019, 0.110864, -0.211977, -0.322337, 2.314685)),
]


@pytest.mark.parametrize("row, golden", GOLDEN_K)
def test_log_strain_golden(row, golden):
    row = torch.tensor(row, dtype=torch.float64)
    k = lat.to_log_strain(lat.from_parameters(row[:3], row[3:]))
    assert torch.allclose(k, torch.tensor(golden, dtype=torch.float64), atol=6e-6)


def test_log_strain_round_trip_keeps_parameters_and_volume():
    cell = random_cells(20)[::2]
    k = lat.to_log_strain(cell)
    back = lat.from_log_strain(k)
    assert torch.allclose(back, back.mT)
    for ours, theirs in zip(lat.parameters(back), lat.parameters(cell), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)
    assert torch.allclose(torch.exp(3**0.5 * k[:, 5]), lat.volume(cell), rtol=1e-9)
    rotation = torch.linalg.qr(random_cells(1)[0])[0]
    assert torch.allclose(lat.to_log_strain(cell @ rotation), k, atol=1e-9)


def test_log_strain_gradients_also_for_a_cubic_cell():
    cubic = 3.9 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    for cell in (random_cells(3), cubic):
        assert torch.autograd.gradcheck(lat.to_log_strain, cell.clone().requires_grad_())
        assert torch.autograd.gradcheck(lat.from_log_strain, lat.to_log_strain(cell).requires_grad_())


def test_niggli_properties():
    cells = random_cells(60).reshape(6, 10, 3, 3)
    reduced, steps = lat.niggli(cells)
    assert steps.dtype == torch.long and steps.shape == cells.shape
    assert torch.equal(torch.linalg.det(steps.double()).round(), torch.ones(6, 10, dtype=torch.float64))
    assert torch.allclose(steps.double() @ cells, reduced)
    assert torch.allclose(lat.volume(reduced), lat.volume(cells), rtol=1e-9)
    again, _ = lat.niggli(reduced)
    for ours, theirs in zip(lat.parameters(again), lat.parameters(reduced), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)
    lengths, angles = lat.parameters(reduced)
    assert bool((lengths.diff(dim=-1) > -1e-5).all()) and bool(((angles > 59.9) & (angles < 120.1)).all())


def test_niggli_equals_pymatgen():
    from pymatgen.core import Lattice

    cells = random_cells(10, seed=3)
    reduced = torch.cat(lat.parameters(lat.niggli(cells)[0]), -1)
    for cell, ours in zip(cells, reduced, strict=True):
        theirs = Lattice(cell.numpy()).get_niggli_reduced_lattice().parameters
        assert np.allclose(ours.numpy(), theirs, atol=1e-5)


def test_primitive_keeps_density_and_properties():
    from pymatgen.core import Lattice, Structure

    cell = Structure(Lattice.from_parameters(3, 4, 5, 80, 100, 110), ["Na", "Cl"], [[0, 0, 0], [0.4, 0.5, 0.6]])
    large = cell * (2, 1, 1)
    large.properties = {"made_by": "a test"}
    small = lat.primitive(large)
    assert len(small) == 2 and small.density == pytest.approx(cell.density)
    assert small.properties == {"made_by": "a test"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lat.from_parameters(torch.ones(2), torch.ones(3)), r"lengths must have shape .* got \(2,\)"),
        (lambda: lat.volume(torch.ones(3)), r"lattice must have shape .* got \(3,\)"),
        (lambda: lat.to_logit_angles(torch.ones(2)), r"angles must have shape .* got \(2,\)"),
        (lambda: lat.to_logit_angles(torch.full((3,), torch.nan)), r"lattice 0 has alpha = nan degrees"),
        (lambda: lat.from_bounded(torch.ones(5)), r"vector must have shape .* got \(5,\)"),
        (lambda: lat.from_log_strain(torch.ones(5)), r"k must have shape .* got \(5,\)"),
        (lambda: lat.niggli(torch.stack([torch.eye(3), torch.ones(3, 3)])), "lattice 1 cannot be reduced"),
        (lambda: lat.niggli(torch.full((3, 3), torch.nan)), "lattice 0 cannot be reduced"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
