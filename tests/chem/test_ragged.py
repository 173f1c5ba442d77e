"""The batch: immutability, levels, ragged slicing, and life inside PyTorch Geometric."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, MessagePassing, global_mean_pool

from chem.crystals import CrystalBatch
from chem.periodic import neighbour_list
from chem.ragged import RaggedBatch, Rows, concatenate

COUNTS = [2, 0, 1, 3]


def crystals(counts=COUNTS, seed: int = 0) -> CrystalBatch:
    """Triclinic cells with a property and a per-atom extra."""
    g = torch.Generator().manual_seed(seed)
    m, b = sum(counts), len(counts)
    batch = CrystalBatch(
        counts,
        frac_coords=torch.rand(m, 3, generator=g, dtype=torch.float64),
        lattice=4 * torch.eye(3, dtype=torch.float64) + torch.randn(b, 3, 3, generator=g, dtype=torch.float64),
        atomic_numbers=torch.randint(1, 119, (m,), generator=g),
    )
    return batch.attach("structure", gap=torch.arange(b).double()).attach("atom", charge=torch.arange(m).double())


def equal(a: RaggedBatch, b: RaggedBatch) -> bool:
    same = type(a) is type(b) and a.levels == b.levels and a.fields.keys() == b.fields.keys()
    return same and torch.equal(a["num_atoms"], b["num_atoms"]) and all(torch.equal(a[k], b[k]) for k in a.fields)


def test_derived_fields_and_access():
    batch = crystals()
    assert batch["num_atoms"].tolist() == COUNTS and batch.num_atoms.tolist() == COUNTS
    assert batch["ptr"].tolist() == [0, 2, 2, 3, 6] and batch.batch.tolist() == [0, 0, 2, 3, 3, 3]
    assert (batch.num_structures, batch.num_graphs, len(batch), batch.num_nodes) == (4, 4, 4, 6)
    assert isinstance(batch, Data)
    assert batch.frac_coords is batch["frac_coords"]
    assert set(batch.fields) == {"frac_coords", "lattice", "atomic_numbers", "gap", "charge"}
    assert batch.num_rows("frac_coords") == 6 and batch.num_rows("gap") == 4


def test_pos_is_rows_times_lattice():
    batch = crystals()
    for crystal in batch:
        by_hand = [sum(f[k] * crystal["lattice"][0, k] for k in range(3)) for f in crystal["frac_coords"]]
        assert torch.allclose(crystal.pos, torch.stack(by_hand) if by_hand else torch.zeros(0, 3).double())
    assert torch.equal(torch.cat([c.pos for c in batch]), batch.pos)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b, "frac_coords", b.frac_coords),
        lambda b: setattr(b, "anything", 1),
        lambda b: b.__setitem__("frac_coords", b.frac_coords),
        lambda b: b.__delitem__("frac_coords"),
        lambda b: delattr(b, "frac_coords"),
        lambda b: b.apply_(lambda x: x + 1),
    ],
)
def test_a_batch_cannot_be_changed(change):
    batch = crystals()
    before = batch["frac_coords"].clone()
    with pytest.raises(TypeError, match="CrystalBatch is immutable; .* returns a"):
        change(batch)
    assert torch.equal(batch["frac_coords"], before) and not hasattr(batch, "anything")


def test_replace_attach_without_return_new_batches():
    batch = crystals()
    moved = batch.replace(frac_coords=batch["frac_coords"] + 1)
    assert torch.equal(moved["frac_coords"], batch["frac_coords"] + 1) and moved["lattice"] is batch["lattice"]
    assert moved["ptr"] is batch["ptr"] and moved is not batch
    more = batch.attach("structure", energy=torch.zeros(4))
    assert more.levels["energy"] == "structure" and "energy" not in batch.levels and "energy" not in batch.fields
    less = batch.without("lattice", "gap")
    assert set(less.fields) == {"frac_coords", "atomic_numbers", "charge"} and "lattice" in batch.fields


def test_memo_is_shared_by_copies_with_equal_counts_only():
    batch, calls = crystals(), []
    build = lambda: calls.append(1) or len(calls)  # noqa: E731
    assert batch.memo("plan", build) == batch.replace(gap=torch.ones(4)).memo("plan", build) == 1
    assert batch[[0, 1]].memo("plan", build) == 2 and len(calls) == 2


@pytest.mark.parametrize(
    "key, chosen",
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(0, 0), []),
        ([3, 0, 3], [3, 0, 3]),
        ([], []),
        ((2, 0), [2, 0]),
        (torch.tensor([3, 1]), [3, 1]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        ([True, False, False, True], [0, 3]),
        (2, [2]),
        (-1, [3]),
        (torch.tensor(2), [2]),
        (np.int64(3), [3]),
    ],
)
def test_selection(key, chosen):
    batch = crystals()
    part = batch[key]
    assert type(part) is CrystalBatch and part["num_atoms"].tolist() == [COUNTS[i] for i in chosen]
    assert part["gap"].tolist() == [float(i) for i in chosen]
    atoms = [a for i in chosen for a in range(int(batch.ptr[i]), int(batch.ptr[i + 1]))]
    assert part["charge"].tolist() == [float(a) for a in atoms]
    assert torch.equal(part["frac_coords"], batch["frac_coords"][atoms])
    assert part["batch"].tolist() == [k for k, i in enumerate(chosen) for _ in range(COUNTS[i])]


def test_iteration_and_concatenation_are_inverse():
    batch = crystals()
    parts = list(batch)
    assert [len(p) for p in parts] == [1] * 4
    assert equal(concatenate(parts), batch)
    twice = concatenate([batch, batch[::2]])
    assert twice["num_atoms"].tolist() == [2, 0, 1, 3, 2, 1] and twice.levels == batch.levels


def test_to_casts_floating_fields_only():
    single = crystals().to(torch.float32)
    assert single["frac_coords"].dtype == single["gap"].dtype == torch.float32
    assert single["atomic_numbers"].dtype == single["ptr"].dtype == torch.int64
    assert equal(single.to(torch.device("cpu")), single) and equal(single.cpu(), single)
    only = crystals().to(torch.float32, "gap")
    assert only["gap"].dtype == torch.float32 and only["frac_coords"].dtype == torch.float64


def test_to_another_device_moves_everything():
    far = crystals().to("meta")
    assert type(far) is CrystalBatch and far.levels == crystals().levels
    assert all(value.is_meta for value in far.fields.values())
    assert far["ptr"].is_meta and far["batch"].is_meta and far["num_atoms"].is_meta


def test_apply():
    batch = crystals()
    doubled = batch.apply(lambda x: x * 2, "gap")
    assert torch.equal(doubled["gap"], batch["gap"] * 2) and doubled["lattice"] is batch["lattice"]
    tracked = batch.to(torch.float64).apply(lambda x: x.clone().requires_grad_(), "frac_coords")
    tracked.pos.sum().backward()
    assert tracked["frac_coords"].grad is not None and batch["frac_coords"].grad is None


def test_one_atom_crystals_keep_levels_apart():
    """With M == B nothing can be told from sizes."""
    batch = crystals([1, 1, 1])
    assert batch.rows("charge").level == "atom" and batch.rows("gap").level == "structure"
    part = batch[[2, 0]]
    assert part["charge"].tolist() == [2.0, 0.0] and part["gap"].tolist() == [2.0, 0.0]
    assert part.levels == batch.levels


def test_empty_batch_and_structures_without_atoms():
    none = CrystalBatch([], frac_coords=torch.zeros(0, 3), lattice=torch.zeros(0, 3, 3))
    assert len(none) == 0 and list(none) == [] and none.pos.shape == (0, 3) and none["ptr"].tolist() == [0]
    hollow = crystals([0, 0])
    assert hollow.num_nodes == 0 and hollow.pos.shape == (0, 3)
    assert torch.equal(hollow.rows("frac_coords").mean(hollow["frac_coords"]), torch.zeros(2, 3).double())
    assert len(concatenate([hollow, crystals()])) == 6


def test_rows():
    batch = crystals()
    atoms, cells = batch.rows("frac_coords"), batch.rows("lattice")
    assert (atoms.level, cells.level) == ("atom", "structure")
    assert atoms.index.tolist() == [0, 0, 2, 3, 3, 3] and cells.index.tolist() == [0, 1, 2, 3]
    values = torch.arange(4).double()
    assert atoms.spread(values, batch["frac_coords"]).shape == (6, 1)
    assert atoms.spread(values, batch["frac_coords"])[:, 0].tolist() == [0, 0, 2, 3, 3, 3]
    assert cells.spread(values, batch["lattice"]).shape == (4, 1, 1)
    x = batch["frac_coords"]
    assert torch.allclose(atoms.mean(x)[3], x[3:].mean(0)) and torch.equal(atoms.mean(x)[1], torch.zeros(3).double())
    assert torch.allclose(atoms.mean(atoms.center(x)), torch.zeros(4, 3).double(), atol=1e-15)
    assert torch.equal(cells.mean(batch["lattice"]), batch["lattice"])
    assert batch.rows("lattice").index is cells.index


def test_rows_project_on_their_subspace():
    plane = torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()).repeat(6, 1, 1)
    batch = crystals()
    rows = batch.replace(frac_coords_subspace=plane).rows("frac_coords")
    v = torch.ones(6, 3).double()
    assert rows.project(v)[0].tolist() == [1, 1, 0]
    assert batch.rows("frac_coords").project(v) is v and isinstance(rows, Rows)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda b: b.replace(lattice=torch.zeros(3, 3, 3)),
            r"'lattice' is per structure and needs 4 rows, got \(3, 3, 3\)",
        ),
        (
            lambda b: b.replace(frac_coords=torch.zeros(4, 3)),
            r"'frac_coords' is per atom and needs 6 rows, got \(4, 3\)",
        ),
        (lambda b: b.replace(lattice=torch.tensor(1.0)), r"'lattice' is per structure and needs 4 rows, got \(\)"),
        (lambda b: b.replace(lattice=[1, 2, 3, 4]), "'lattice' is per structure and needs 4 rows, got list"),
        (lambda b: b.replace(latice=torch.zeros(4)), "unknown field 'latice'; known: atomic_numbers, frac_coords"),
        (lambda b: b.replace(ptr=torch.zeros(4)), "field 'ptr' is derived from the counts"),
        (lambda b: b.attach("atom", num_atoms=torch.zeros(6)), "field 'num_atoms' is derived"),
        (lambda b: b.rows("latice"), "unknown field 'latice'; known: atomic_numbers"),
        (lambda b: concatenate([b, b.without("gap")]), r"batch 1 has fields .*, batch 0 has .*'gap'"),
        (lambda b: concatenate([]), "concatenate needs at least one batch"),
        (lambda b: CrystalBatch([[1], [2]]), r"num_atoms must be a vector of counts >= 0, got shape \(2, 1\)"),
        (lambda b: CrystalBatch([1, -1]), "num_atoms must be a vector of counts >= 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(crystals())


@pytest.mark.parametrize("index", [4, -5])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"structure {index} of a batch of 4"):
        crystals()[index]


CLONES = [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b)), lambda b: b.clone()]


@pytest.mark.parametrize("clone", CLONES)
def test_copies(clone):
    batch = crystals()
    other = clone(batch)
    assert equal(other, batch) and other is not batch
    assert other.rows("gap").level == "structure"
    with pytest.raises(TypeError, match="immutable"):
        other["gap"] = batch["gap"]
    assert equal(other.replace(gap=torch.zeros(4).double())[[0]], batch.replace(gap=torch.zeros(4).double())[[0]])
    if clone is not copy.copy:
        assert other["gap"].data_ptr() != batch["gap"].data_ptr()


def test_multiprocessing_loader_keeps_the_type():
    from torch.utils.data import DataLoader

    batch = crystals()
    loader = DataLoader(range(4), batch_size=2, num_workers=1, collate_fn=batch.__getitem__)
    assert equal(concatenate(list(loader)), batch)


def test_pooling_takes_the_batch_as_it_is():
    batch = crystals()
    pooled = global_mean_pool(batch.frac_coords, batch.batch, size=batch.num_graphs)
    assert torch.allclose(pooled, batch.rows("frac_coords").mean(batch["frac_coords"]))


class Coordination(MessagePassing):
    """Mean of the displacements to the neighbours."""

    def __init__(self):
        super().__init__(aggr="mean", flow="target_to_source")

    def forward(self, batch: CrystalBatch, cutoff: float) -> torch.Tensor:
        edge_index, shift = neighbour_list(batch, cutoff)
        return self.propagate(edge_index, x=batch.pos, cell=shift.double(), batch=batch, size=None)

    def message(self, x_i, x_j, cell, batch, index):
        lattice = batch["lattice"][batch["batch"][index]]
        return x_j + (cell.unsqueeze(1) @ lattice).squeeze(1) - x_i


def test_layers_of_pytorch_geometric_run_on_neighbour_lists():
    batch = crystals()
    out = Coordination()(batch, 6.0)
    assert out.shape == (6, 3) and bool(torch.isfinite(out).all())
    shifted = batch.replace(frac_coords=batch["frac_coords"] + torch.tensor([0.3, 1.7, -2.2]).double())
    assert torch.allclose(Coordination()(shifted, 6.0), out, atol=1e-10)
    alone = torch.cat([Coordination()(crystal, 6.0) for crystal in batch])
    assert torch.allclose(alone, out, atol=1e-12)
    edge_index, _ = neighbour_list(batch, 6.0)
    layer = GCNConv(3, 5).double()
    assert layer(batch.frac_coords, edge_index).shape == (6, 5)


def test_printing_does_not_fail():
    assert repr(crystals()).startswith("CrystalBatch(")


def test_a_level_is_declared_once():
    one_atom_each = CrystalBatch([1, 1], lattice=torch.eye(3).repeat(2, 1, 1))
    with pytest.raises(ValueError, match="'lattice' is per structure; it cannot be attached per atom"):
        one_atom_each.attach("atom", lattice=torch.zeros(2, 3, 3))
    charge = torch.zeros(2)
    with pytest.raises(ValueError, match="'charge' is per structure in batch 1"):
        concatenate([one_atom_each.attach("atom", charge=charge), one_atom_each.attach("structure", charge=charge)])
