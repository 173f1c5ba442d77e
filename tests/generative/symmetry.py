"""Symmetries every network must have, in float64, those of crystals on triclinic cells; one line in a network's test:

@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_symmetry(symmetry):
    assert_symmetric(symmetry, network, crystals([1, 7, 2, 4]))

and MOLECULE_SYMMETRIES with molecules([1, 7, 2, 4]) likewise, for a network that predicts a vector for `pos`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chem.crystals import CrystalBatch
from chem.molecules import MoleculeBatch
from chem.ragged import RaggedBatch

Outputs = dict[str, Tensor]


def crystals(counts: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64, types: bool = False):
    """Random atoms in random triclinic cells, some of them left-handed; types: noisy one-hot elements as well."""
    g = torch.Generator().manual_seed(seed)
    m, b = sum(counts), len(counts)
    numbers = torch.randint(1, 101, (m,), generator=g)
    lattice = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(b, 3, 3, generator=g, dtype=torch.float64)
    batch = CrystalBatch(
        list(counts),
        frac_coords=torch.rand(m, 3, generator=g, dtype=torch.float64).to(dtype),
        lattice=(lattice * torch.tensor([1.0, 1.0, -1.0]) ** (torch.arange(b) % 2)[:, None, None]).to(dtype),
        atomic_numbers=numbers,
    )
    if not types:
        return batch
    noise = torch.randn(m, 100, generator=g, dtype=torch.float64)
    return batch.replace(types=(nn.functional.one_hot(numbers - 1, 100) + 0.5 * noise).to(dtype))


def molecules(counts: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64, width: int = 3):
    """Random atoms about random centres, with `width` numbers of each in `types`."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((sum(counts), 3), (len(counts), 3), (sum(counts), width))
    pos, center, types = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes)
    batch = MoleculeBatch(list(counts), types=types)
    return batch.replace(pos=1.5 * pos + center[batch["batch"]])


def times(n: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Times (n,) on the grid of a thousand steps."""
    return torch.randint(0, 1000, (n,), generator=torch.Generator().manual_seed(seed)).to(dtype) / 1000


def orthogonal(seed: int = 2, improper: bool = True) -> Tensor:
    """A random matrix of O(3), float64, of determinant -1 where `improper`."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    return q * (-1 if improper else 1) * torch.linalg.det(q).sign()


def rotate(batch: CrystalBatch, out: Outputs, field: str = "lattice") -> tuple[CrystalBatch, Outputs]:
    """Row vectors times Q: the prediction for the lattice turns with them, the others stay."""
    q = orthogonal()
    return batch.replace(lattice=batch["lattice"] @ q), {**out, field: out[field] @ q}


def rotate_proper(batch: CrystalBatch, out: Outputs) -> tuple[CrystalBatch, Outputs]:
    """The same with determinant +1."""
    q = orthogonal(5, improper=False)
    return batch.replace(lattice=batch["lattice"] @ q), {**out, "lattice": out["lattice"] @ q}


def translate(batch: CrystalBatch, out: Outputs) -> tuple[CrystalBatch, Outputs]:
    """A shift of its own for every crystal, on the torus."""
    shift = torch.rand(len(batch), 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    frac = batch["frac_coords"] + shift[batch["batch"]]
    return batch.replace(frac_coords=frac - frac.floor()), out


def shift_by_integers(batch: CrystalBatch, out: Outputs) -> tuple[CrystalBatch, Outputs]:
    """Every atom moved by lattice vectors of its own."""
    g = torch.Generator().manual_seed(4)
    cells = torch.randint(-2, 3, batch["frac_coords"].shape, generator=g)
    return batch.replace(frac_coords=batch["frac_coords"] + cells), out


def turn(batch: MoleculeBatch, out: Outputs) -> tuple[MoleculeBatch, Outputs]:
    """Row vectors times Q of determinant +1: the vectors turn with the positions, the others stay."""
    q = orthogonal(5, improper=False)
    return batch.replace(pos=batch["pos"] @ q), {**out, "pos": out["pos"] @ q}


def reflect(batch: MoleculeBatch, out: Outputs) -> tuple[MoleculeBatch, Outputs]:
    """The same with determinant -1."""
    q = orthogonal()
    return batch.replace(pos=batch["pos"] @ q), {**out, "pos": out["pos"] @ q}


def displace(batch: MoleculeBatch, out: Outputs) -> tuple[MoleculeBatch, Outputs]:
    """A shift of its own for every molecule."""
    shift = 5 * torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return batch.replace(pos=batch["pos"] + shift[batch["batch"]]), out


def permute(batch: RaggedBatch, out: Outputs) -> tuple[RaggedBatch, Outputs]:
    """The atoms of each structure shuffled, and the rows of every per-atom prediction with them."""
    g = torch.Generator().manual_seed(6)
    shuffled = torch.randperm(len(batch["batch"]), generator=g)
    order = shuffled[torch.argsort(batch["batch"][shuffled], stable=True)]
    levels = batch.levels
    changed = {f: x[order] for f, x in batch.fields.items() if levels[f] == "atom"}
    return batch.replace(**changed), {f: x[order] if levels[f] == "atom" else x for f, x in out.items()}


Transform = Callable[[Any, Outputs], tuple[Any, Outputs]]
TRANSFORMS: dict[str, Transform] = {
    "O(3), improper": rotate,
    "O(3), proper": rotate_proper,
    "torus translation": translate,
    "integer shifts": shift_by_integers,
    "permutation": permute,
}
MOLECULE_TRANSFORMS: dict[str, Transform] = {
    "rotation": turn,
    "reflection": reflect,
    "translation": displace,
    "permutation": permute,
}
SYMMETRIES = (*TRANSFORMS, "alone versus batched")
MOLECULE_SYMMETRIES = (*MOLECULE_TRANSFORMS, "alone versus batched")
GEOMETRY = ("frac_coords", "lattice", "pos")


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest entry of the reference b; 0 for empty tensors."""
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if b.numel() == 0:
        return 0.0
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))


@torch.no_grad()
def assert_symmetric(symmetry: str, network: Callable, batch: RaggedBatch, tolerance: float = 1e-10) -> None:
    """Transforming the input (float64) transforms the predictions as it must, to `tolerance` relative."""
    t = times(len(batch))
    if symmetry == "alone versus batched":
        parts = [network(batch[i], t[i : i + 1]) for i in range(len(batch))]
        expected = {f: torch.cat([p[f] for p in parts]) for f in parts[0]}
        got = network(batch, t)
    else:
        changed, expected = (TRANSFORMS | MOLECULE_TRANSFORMS)[symmetry](batch, network(batch, t))
        moved = max(relative(changed[f], batch[f]) for f in GEOMETRY if f in batch.fields)
        assert moved > 1e-3, f"{symmetry} did not change the input"
        got = network(changed, t)
    assert got.keys() == expected.keys()
    for field, x in expected.items():
        assert float(x.abs().max()) > 1e-6, f"the prediction for {field} is zero: it shows nothing"
        assert relative(got[field], x) < tolerance, f"{symmetry} of {field}: {relative(got[field], x):.1e}"
