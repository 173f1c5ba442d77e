"""CSPNet: published numbers, the fast form against the plain one, symmetries, the plan."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chem.crystals import CrystalBatch
from generative.backbone.cspnet import CSPNet, SinusoidalSteps
from generative.backbone.fast import plan_of
from generative.backbone.plan import make_plan
from tests.generative.symmetry import SYMMETRIES, assert_symmetric, crystals, relative, times

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANTS = ("csp", "abinitio")
FORMS = ("plain", "fast")
MIXED = [5, 1, 20, 2, 1, 0, 7, 64, 2]


def network(types: bool = False, hidden: int = 48, layers: int = 2, frequencies: int = 8, seed: int = 0) -> CSPNet:
    """Random weights, float64, with a lattice metric that does not drown the rest."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CSPNet(hidden, layers, frequencies, SinusoidalSteps(64), 64, types=types).double()


def call(net: CSPNet, form: str, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
    return net.plain(batch, t) if form == "plain" else net(batch, t)


def golden(variant: str) -> tuple[CSPNet, CrystalBatch, Tensor, dict[str, Tensor]]:
    data = load_file(GOLDEN / f"cspnet_{variant}_small.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in data.items() if k.startswith("weights.")}
    net = CSPNet(32, 2, 8, SinusoidalSteps(256), 256, types=variant == "abinitio").double()
    net.load_state_dict(weights)
    fields = {"frac_coords": data["in.frac_coords"], "lattice": data["in.lattice"]}
    if variant == "abinitio":
        fields["types"] = data["in.types_onehot_noisy"]
    else:
        fields["atomic_numbers"] = data["in.atomic_numbers"]
    batch = CrystalBatch(data["in.num_atoms"], **fields)
    expected = {"frac_coords": data["out.coords"], "lattice": data["out.lattice"]}
    if variant == "abinitio":
        expected["types"] = data["out.types"]
    return net, batch, 1 - data["in.t"].double() / 1000, expected


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden(variant, form, grad):
    net, batch, t, expected = golden(variant)
    with torch.set_grad_enabled(grad):
        out = call(net, form, batch, t)
    assert out.keys() == expected.keys()
    for field, x in expected.items():
        torch.testing.assert_close(out[field].detach(), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_time_embedding_is_the_published_one(variant):
    data = load_file(GOLDEN / f"cspnet_{variant}_small.safetensors")
    embedded = SinusoidalSteps(256)(1 - data["in.t"].double() / 1000)
    torch.testing.assert_close(embedded, data["in.time_embedding"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("types", "count"), [(False, 12_294_656), (True, 12_346_468)])
def test_parameter_counts_are_the_papers(types, count):
    with torch.device("meta"):
        net = CSPNet(512, 6, 128, SinusoidalSteps(256), 256, types=types)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_is_the_published_one(variant):
    published = load_file(GOLDEN / f"cspnet_{variant}_small.safetensors")
    shapes = {k.removeprefix("weights."): tuple(v.shape) for k, v in published.items() if k.startswith("weights.")}
    net = CSPNet(32, 2, 8, SinusoidalSteps(256), 256, types=variant == "abinitio")
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == shapes


def with_gradients(net: CSPNet, form: str, batch: CrystalBatch, t: Tensor) -> dict[str, Tensor]:
    """Outputs, and the gradients of a random projection of them with respect to all parameters and the geometry."""
    frac, lattice = (batch[f].clone().requires_grad_() for f in ("frac_coords", "lattice"))
    out = call(net, form, batch.replace(frac_coords=frac, lattice=lattice), t)
    g = torch.Generator().manual_seed(9)
    loss = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype)).sum() for x in out.values())
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, [frac, lattice, *parameters])
    return out | dict(zip(["d frac", "d lattice", *[f"d {n}" for n in names]], gradients, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("counts", [[1], [2, 2], [20], [64], [0, 3], [1, 1, 1], MIXED], ids=str)
@pytest.mark.parametrize("types", [False, True], ids=VARIANTS)
def test_fast_is_plain(types, counts, dtype, bound):
    net, batch = network(types).to(dtype), crystals(counts, dtype=dtype, types=types)
    t = times(len(counts), dtype=dtype)
    plain, fast = (with_gradients(net, form, batch, t) for form in FORMS)
    for name, x in plain.items():
        assert relative(fast[name].detach(), x.detach()) < bound, name
    with torch.no_grad():  # the path without autograd has kernels of its own
        for name, x in net(batch, t).items():
            assert relative(x, plain[name].detach()) < bound, f"{name}, inference"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_fast_is_plain_at_the_published_frequencies(dtype, bound):
    net, batch = network(hidden=64, layers=6, frequencies=128).to(dtype), crystals([9, 3, 20, 1, 12], dtype=dtype)
    t = times(5, dtype=dtype)
    plain, fast = (with_gradients(net, form, batch, t) for form in FORMS)
    with torch.no_grad():
        inference = net(batch, t)
    for name, x in inference.items():
        assert relative(x, plain[name].detach()) < bound, f"{name}, inference"
    # the plain form rounds 2 pi k d in float32 itself: the gradient of the phases is judged against float64 below
    for name, x in plain.items():
        if name != "d frac" or dtype == torch.float64:
            assert relative(fast[name].detach(), x.detach()) < bound, name


def test_float32_gradient_of_the_phases_is_no_worse_than_plain():
    net, batch = network(hidden=64, layers=6, frequencies=128), crystals([9, 3, 20, 1, 12])
    batch = batch.replace(frac_coords=batch["frac_coords"].float().double())
    t = times(5)
    exact = with_gradients(net, "plain", batch, t)["d frac"]
    single = {form: with_gradients(net.float(), form, batch.to(torch.float32), t.float())["d frac"] for form in FORMS}
    assert relative(single["fast"], exact) < max(5e-6, relative(single["plain"], exact))


def test_a_batch_without_atoms_and_a_trailing_empty_crystal_keep_their_rows():
    net = network()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            empty = net(crystals([0, 0]), times(2))
            trailing = net(crystals([2, 0]), times(2))
        assert empty["frac_coords"].shape == (0, 3) and empty["lattice"].shape == (2, 3, 3)
        assert trailing["lattice"].shape == (2, 3, 3) and bool((trailing["lattice"][1] == 0).all())
        assert bool((trailing["lattice"][0] != 0).any())


def test_chunks_do_not_change_the_result(monkeypatch):
    net, batch, t = network(), crystals(MIXED), times(len(MIXED))
    with torch.no_grad():
        whole = net(batch, t)
        monkeypatch.setattr("generative.backbone.fast.CHUNK_ENTRIES", 48 * 30)
        assert len(plan_of(net, batch).chunks) > len(plan_of(net, crystals([1])).chunks)
        cut = net(batch, t)
    for name, x in whole.items():
        assert relative(cut[name], x) < 1e-12, name


@pytest.mark.parametrize("grad", [False, True])
def test_calls_do_not_share_state(grad):
    """Workspaces may be reused between calls, results may not."""
    net, t = network(), times(3)
    a, b = crystals([4, 2, 9], seed=1), crystals([4, 2, 9], seed=2)
    with torch.set_grad_enabled(grad):
        first = net(a, t)
        kept = {k: v.detach().clone() for k, v in first.items()}
        second = net(b, t)
    for name, x in kept.items():
        assert torch.equal(first[name], x)
        assert relative(second[name].detach(), x) > 1e-3


@pytest.mark.parametrize("grad", [False, True])
def test_bf16_products_are_within_a_percent(grad):
    """bf16 has 8 bits: 4e-3 of a product's largest entry; six layers of means bring the outputs to about 1e-3."""
    net, batch = network(hidden=128, layers=6, frequencies=32).float(), crystals(MIXED, dtype=torch.float32)
    t = times(len(MIXED), dtype=torch.float32)
    exact = net.double().plain(batch.to(torch.float64), t.double())
    net.float().products = torch.bfloat16
    with torch.set_grad_enabled(grad):
        out = net(batch, t)
    for name, x in exact.items():
        assert out[name].dtype == torch.float32
        assert 1e-7 < relative(out[name].detach(), x.detach()) < 1e-2, name


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("types", [False, True], ids=VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_symmetry(form, types, symmetry):
    net = network(types)
    assert_symmetric(symmetry, lambda b, t: call(net, form, b, t), crystals([3, 1, 12, 2, 7], types=types))


def test_the_symmetry_test_sees_a_transposed_lattice():
    """The lattice head on the wrong side, or columns for rows, must fail on a triclinic cell."""
    net = network()
    batch = crystals([3, 2])

    def columns(b, t):
        return net(b.replace(lattice=b["lattice"].transpose(1, 2)), t)

    def wrong_side(b, t):
        out = net(b, t)
        return {**out, "lattice": out["lattice"].transpose(1, 2)}

    for broken in (columns, wrong_side):
        with pytest.raises(AssertionError, match="O\\(3\\)"):
            assert_symmetric("O(3), improper", broken, batch)


@pytest.mark.parametrize("rows", [1, 7, 30, 100, 10**6])
def test_plan_covers_everything_once_within_the_bound(rows):
    batch = crystals(MIXED)
    plan = make_plan(batch, rows)
    counts = batch["num_atoms"]
    atoms = torch.cat([torch.arange(c.atoms.start, c.atoms.stop) for c in plan.chunks])
    assert torch.equal(atoms, torch.arange(int(counts.sum())))
    structures = torch.cat([torch.arange(c.structures.start, c.structures.stop) for c in plan.chunks])
    assert torch.equal(counts[plan.structure_order][structures], counts[counts > 0].sort().values)
    for c in plan.chunks:
        assert c.count == c.structures.stop - c.structures.start
        assert c.atoms.stop - c.atoms.start == c.count * c.n
        assert c.count == 1 or c.count * c.n**2 <= rows
        assert bool((plan.owner[c.atoms].reshape(c.count, c.n) == torch.arange(9)[c.structures, None]).all())
    assert plan.num_edges == int(counts.square().sum())


def test_plan_orders_are_inverse_permutations():
    batch = crystals(MIXED)
    plan = make_plan(batch, 50)
    assert torch.equal(plan.atom_order[plan.atom_place], torch.arange(len(plan.owner)))
    assert torch.equal(plan.structure_order[plan.structure_place], torch.arange(len(MIXED)))
    assert torch.equal(batch["batch"][plan.atom_order], plan.structure_order[plan.owner])
    # atoms of one structure stay in their order
    assert all(bool((plan.atom_order[c.atoms].view(c.count, c.n).diff(dim=1) == 1).all()) for c in plan.chunks)


def test_plan_is_built_once_for_all_copies_of_a_batch():
    batch = crystals([3, 2])
    assert make_plan(batch, 50) is make_plan(batch.replace(lattice=2 * batch["lattice"]), 50)
    assert make_plan(batch, 50) is not make_plan(batch, 60)


def test_steps_of_the_time_embedding_are_integers():
    embed = SinusoidalSteps(64, 1000)
    t = torch.tensor([0.0, 0.4999999, 0.999])
    assert torch.equal(embed(t), embed(torch.tensor([0.0, 0.5, 0.999])))
    expected = torch.tensor([1000.0, 500.0, 1.0], dtype=torch.float64).sin()
    torch.testing.assert_close(embed(t)[:, 0].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_compiled_kernel_is_the_same_function(dtype, bound):
    net, batch = network().to(dtype), crystals([1, 2, 20, 3, 20, 5]).to(dtype)
    t = times(len(batch)).to(dtype)
    with torch.no_grad():
        expected = net.plain(batch, t)
        net.compile_kernels = True
        found = net(batch, t)
    for field in expected:
        assert (found[field] - expected[field]).abs().max() <= bound * expected[field].abs().max()
