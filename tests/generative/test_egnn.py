"""EGNN: the fast form against the plain one, symmetries, what no molecule may break."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chem.molecules import MoleculeBatch
from generative.backbone import gemm
from generative.backbone.egnn import EGNN, RANGE
from generative.backbone.egnn_fast import plan_of
from tests.generative.symmetry import MOLECULE_SYMMETRIES, assert_symmetric, molecules, relative, times

FORMS = ("plain", "fast")
VARIANTS: dict[str, dict] = {
    "bare": {},
    "published": {"attention": True, "bounded": True, "normalization": 4.0},
    "refined": {"attention": True, "normalization": 4.0, "stride": partial(torch.pow, 0.02), "sharpness": 8.0},
    "unnormalized": {"attention": True, "stride": partial(torch.pow, 0.02), "sharpness": 8.0},
}
MIXED = [5, 1, 20, 2, 1, 0, 9, 29, 2]
TYPES = {"types": 2, "charges": 1}


class Types(nn.Module):
    """The field `types` as it is."""

    def forward(self, batch: MoleculeBatch) -> Tensor:
        return batch["types"]


def network(variant: str = "bare", hidden: int = 32, layers: int = 3, seed: int = 0, gain: float = 0.1) -> EGNN:
    """Random weights, float64. What moves the atoms is not small."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = EGNN(hidden, layers, Types(), 3, TYPES, **VARIANTS[variant])
        for layer in net.layers:
            nn.init.xavier_uniform_(layer.coord_mlp[4].weight, gain=gain)
    return net.double()


def call(net: EGNN, form: str, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
    return net.plain(batch, t) if form == "plain" else net(batch, t)


def with_gradients(net: EGNN, form: str, batch: MoleculeBatch, t: Tensor) -> dict[str, Tensor]:
    """Outputs, and the gradients of a random projection of them with respect to all parameters and the fields."""
    pos, types = (batch[f].clone().requires_grad_() for f in ("pos", "types"))
    out = call(net, form, batch.replace(pos=pos, types=types), t)
    g = torch.Generator().manual_seed(9)
    loss = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype)).sum() for x in out.values())
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, [pos, types, *parameters])
    return out | dict(zip(["d pos", "d types", *[f"d {n}" for n in names]], gradients, strict=True))


def assert_fast_is_plain(net: EGNN, batch: MoleculeBatch, t: Tensor, bound: float) -> None:
    plain, fast = (with_gradients(net, form, batch, t) for form in FORMS)
    with torch.no_grad():
        for name, x in net(batch, t).items():
            assert relative(x, plain[name].detach()) < bound, f"{name}, inference"
    gates = [name for name in plain if "gate" in name and bound > 1e-12]
    for name in plain.keys() - gates:
        assert relative(fast[name].detach(), plain[name].detach()) < bound, name
    if gates:  # their gradients cancel over pairs, and the plain form itself is off by up to 1e-5 in float32
        exact = with_gradients(net.double(), "plain", batch.to(torch.float64), t.double())
        for name in gates:
            own = relative(plain[name].detach(), exact[name].detach())
            assert relative(fast[name].detach(), exact[name].detach()) < max(bound, 2 * own), name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("counts", [[1], [2, 2], [9], [29], [0, 3], [1, 1, 1], MIXED], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_fast_is_plain(variant, counts, dtype, bound):
    batch = molecules(counts, dtype=dtype)
    assert_fast_is_plain(network(variant).to(dtype), batch, times(len(counts), dtype=dtype), bound)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fast_is_plain_through_onednn(variant):
    if not gemm.available():
        pytest.skip("no oneDNN: this torch lacks mkldnn._linear_pointwise")
    with gemm.forced(True):
        batch = molecules(MIXED, dtype=torch.float32)
        assert_fast_is_plain(network(variant).float(), batch, times(len(MIXED), dtype=torch.float32), 5e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(variant):
    """An oracle of both forms: the directional derivative along random directions of the positions and parameters."""
    net, batch, t = network(variant, hidden=8, layers=2), molecules([3, 1, 5]), times(3)
    found = with_gradients(net, "fast", batch, t)
    g = torch.Generator().manual_seed(11)
    way = {n: torch.randn(x.shape, generator=g, dtype=torch.float64) for n, x in found.items() if n.startswith("d ")}
    slope = sum(float((found[n] * x).sum()) for n, x in way.items())
    weights = {k: v.clone() for k, v in net.state_dict().items()}

    def value(step: float) -> float:
        net.load_state_dict({k: v + step * way[f"d {k}"] for k, v in weights.items()})
        moved = {f: batch[f] + step * way[f"d {f}"] for f in ("pos", "types")}
        with torch.no_grad():
            out = net.plain(batch.replace(**moved), t)
        g = torch.Generator().manual_seed(9)
        return sum(float((x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum()) for x in out.values())

    step = 1e-5
    assert abs((value(step) - value(-step)) / (2 * step) - slope) < 1e-6 * abs(slope)


@pytest.mark.parametrize("symmetry", MOLECULE_SYMMETRIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_symmetry(form, variant, symmetry):
    net = network(variant)
    assert_symmetric(symmetry, lambda b, t: call(net, form, b, t), molecules([3, 1, 12, 2, 7]))


def test_the_symmetry_test_sees_a_fixed_direction():
    net = network()

    def tilted(b, t):
        return net(b.replace(pos=b["pos"] * torch.tensor([1.0, 1.0, 1.01])), t)

    for symmetry in ("rotation", "reflection"):
        with pytest.raises(AssertionError, match=symmetry):
            assert_symmetric(symmetry, tilted, molecules([3, 5]))


@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_centred(form):
    batch = molecules(MIXED)
    out = call(network(), form, batch, times(len(MIXED)))
    assert list(out) == ["pos", *TYPES] and [x.shape[1] for x in out.values()] == [3, 2, 1]
    assert float(batch.rows("pos").mean(out["pos"]).abs().max()) < 1e-12 < 1e-3 < float(out["pos"].abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_lone_atoms_and_coincident_atoms_are_finite(form):
    net = network()
    batch = molecules([1, 3, 2])
    batch = batch.replace(pos=torch.where(batch["batch"].unsqueeze(1) == 1, 0.5, batch["pos"]))
    for name, x in with_gradients(net, form, batch, times(3)).items():
        assert bool(torch.isfinite(x).all()), name
    out = call(net, form, batch, times(3))
    assert bool((out["pos"][0] == 0).all()) and bool((out["types"][0] != 0).all())


def test_a_batch_without_atoms_keeps_its_shapes():
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            out = network()(molecules([0, 0]), times(2))
        assert {k: tuple(x.shape) for k, x in out.items()} == {"pos": (0, 3), "types": (0, 2), "charges": (0, 1)}


def test_a_bound_holds_the_atoms():
    """No pair moves an atom by more than R / c in a layer, whatever the weights are."""
    net, batch = network("published", layers=1), molecules([2, 2])
    nn.init.constant_(net.layers[0].coord_mlp[4].weight, 1e6)
    way = net(batch, times(2))["pos"].norm(dim=1)
    assert float(way.max()) <= RANGE / net.normalization
    assert float(way.min()) > 0.1


def test_chunks_do_not_change_the_result(monkeypatch):
    net, batch, t = network(), molecules(MIXED + MIXED), times(2 * len(MIXED))
    whole = with_gradients(net, "fast", batch, t)
    chunks = len(plan_of(net.hidden, batch).chunks)
    monkeypatch.setattr("generative.backbone.egnn_fast.CHUNK_ENTRIES", 32 * 30)
    assert len(plan_of(net.hidden, batch).chunks) > chunks
    for name, x in with_gradients(net, "fast", batch, t).items():
        assert relative(x.detach(), whole[name].detach()) < 1e-12, name


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_products_are_within_two_percent(variant, grad):
    # with atoms thrown about by R = 15 rounding would be amplified from layer to layer
    gain = 0.1 if variant == "bare" else 0.002
    net, batch = network(variant, hidden=128, layers=9, gain=gain).float(), molecules(MIXED, dtype=torch.float32)
    t = times(len(MIXED), dtype=torch.float32)
    exact = net.double().plain(batch.to(torch.float64), t.double())
    net.float().products = torch.bfloat16
    with torch.set_grad_enabled(grad):
        out = net(batch, t)
    for name, x in exact.items():
        assert out[name].dtype == torch.float32
        error = (out[name] - x).norm() / x.norm()
        assert 1e-6 < float(error) < 2e-2, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_gradients_are_within_five_percent(variant):
    gain = 0.002 if variant == "unnormalized" else 0.1
    net, batch = network(variant, hidden=64, gain=gain).float(), molecules(MIXED, dtype=torch.float32)
    t = times(len(MIXED), dtype=torch.float32)
    exact = with_gradients(net, "plain", batch, t)
    net.products = torch.bfloat16
    for name, x in with_gradients(net, "fast", batch, t).items():
        assert relative(x.detach(), exact[name].detach()) < 5e-2, name


class Recorder(TorchDispatchMode):
    """The names of the operations called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_waits_for_nothing(variant):
    """Operations whose result the host must know before it can go on; `prepare` may have them, and has."""
    waits = {"_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive", "masked_select", "is_nonzero", "equal"}
    net, batch, t = network(variant), molecules(MIXED), times(len(MIXED))

    def waiting(recorder: Recorder) -> set[str]:
        return {name.split("::")[1].split(".")[0] for name in recorder.names} & waits

    with Recorder() as before:
        net.prepare(batch)
    with torch.no_grad(), Recorder() as inside:
        net(batch, t)
    assert waiting(before) and not waiting(inside)
    assert "aten::mm" in inside.names or "aten::addmm" in inside.names


def test_time_reaches_the_outputs():
    net, batch = network(), molecules([4])
    early, late = (net(batch, torch.tensor([t], dtype=torch.float64)) for t in (0.1, 0.9))
    assert all(relative(late[k], early[k]) > 1e-3 for k in early)


def test_the_published_size():
    """17 inputs, 9 layers of 256: 2 (514 + 256) 256 for the edges, 3 x 256^2 for the nodes, 7 biases, 1 readout."""
    with torch.device("meta"):
        net = EGNN(256, 9, Types(), 16, {"types": 2})
    layer = 2 * (514 + 256) * 256 + 3 * 256**2 + 6 * 256 + 256
    assert sum(p.numel() for p in net.parameters()) == 18 * 256 + 9 * layer + 257 * 2
