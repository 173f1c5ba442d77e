"""Published DiffCSP files become models of ours that give the published outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import checkpoints
from checkpoints import store
from checkpoints.foreign import ANCHOR, infer_shape, no_statistics
from chem.crystals import CrystalBatch

GOLDEN = Path(__file__).parents[1] / "golden"
TASKS = {"csp": "cspnet_csp_small", "ab-initio": "cspnet_abinitio_small"}


class Settings:
    """Stands for the configuration objects that a Lightning checkpoint holds."""

    def __init__(self) -> None:
        self.latent_dim = 256


def golden(task: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{TASKS[task]}.safetensors")


def weights(task: str) -> dict[str, Tensor]:
    start = "weights."
    return {name.removeprefix(start): value for name, value in golden(task).items() if name.startswith(start)}


def lightning_file(path: Path, task: str, dtype: torch.dtype = torch.float64) -> Path:
    """A checkpoint laid out like the published ones, with a class of somebody else inside."""
    state = {f"decoder.{name}": value.to(dtype) for name, value in weights(task).items()}
    state |= {"beta_scheduler.betas": torch.ones(1001), "sigma_scheduler.sigmas": torch.ones(1001)}
    content = {"epoch": 7, "hyper_parameters": Settings(), "state_dict": state, "optimizer_states": [{"lr": 1e-3}]}
    torch.save(content, path)
    return path


def network_output(model: Any, task: str) -> dict[str, Tensor]:
    given = golden(task)
    fields = {"frac_coords": given["in.frac_coords"], "lattice": given["in.lattice"]}
    if task == "csp":
        fields["atomic_numbers"] = given["in.atomic_numbers"]
    else:
        fields["types"] = given["in.types_onehot_noisy"]
    batch = CrystalBatch(given["in.num_atoms"], **fields)
    with torch.no_grad():
        return model.network.plain(batch, 1 - given["in.t"].double() / 1000)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["golden", "plain.safetensors", "plain.pt", "lightning.ckpt"])
def test_imported_weights_give_the_published_outputs(tmp_path: Path, task: str, form: str) -> None:
    path = tmp_path / form
    if form == "golden":
        path = GOLDEN / f"{TASKS[task]}.safetensors"
    elif form == "plain.safetensors":
        save_file(weights(task), path)
    elif form == "plain.pt":
        torch.save(weights(task), path)
    else:
        lightning_file(path, task)
    loaded = checkpoints.import_reference(path)
    config = loaded.config
    assert (config.task, config.hidden, config.layers, config.frequencies, config.time_dim) == (task, 32, 2, 8, 256)
    out, wanted = network_output(loaded.model, task), golden(task)
    pairs = {"lattice": "out.lattice", "frac_coords": "out.coords"} | ({} if task == "csp" else {"types": "out.types"})
    for field, name in pairs.items():
        assert torch.allclose(out[field], wanted[name], rtol=1e-10, atol=1e-10), field


def test_the_report_names_what_was_not_used(tmp_path: Path) -> None:
    loaded = checkpoints.import_reference(lightning_file(tmp_path / "last.ckpt", "csp"))
    ignored = ["beta_scheduler.betas", "epoch", "hyper_parameters", "optimizer_states", "sigma_scheduler.sigmas"]
    assert loaded.training == {
        "imported_from": "last.ckpt",
        "ignored": ignored,
        "placeholders": [f"{Settings.__module__}.Settings"],
    }
    assert (loaded.name, loaded.kind, len(loaded.sha256)) == ("last", "diffcsp", 64)


def test_float32_weights_stay_float32_and_the_random_state_stays(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "a.ckpt", "csp", torch.float32)
    before = torch.get_rng_state()
    loaded = checkpoints.import_reference(path)
    assert loaded.model.network.coord_out.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_imported_model_can_be_saved_and_loaded(tmp_path: Path) -> None:
    first = checkpoints.import_reference(lightning_file(tmp_path / "a.ckpt", "ab-initio", torch.float32))
    state = first.model.state_dict()
    store.save(tmp_path / "b", first.kind, first.config, first.statistics, state, None, torch.float32, first.training)
    second = checkpoints.load(tmp_path / "b", device="cpu")
    assert (second.config, second.statistics, second.training) == (first.config, no_statistics(), first.training)
    assert all(torch.equal(value, state[name]) for name, value in second.model.state_dict().items())


@pytest.mark.parametrize("hidden, layers, frequencies", [(512, 6, 128), (100, 1, 1), (256, 12, 10)])
def test_sizes_are_read_off_the_shapes(hidden: int, layers: int, frequencies: int) -> None:
    h, edge = hidden, 2 * hidden + 9 + 6 * frequencies
    shapes = {"node_embedding.weight": (100, h), "atom_latent_emb.weight": (h, h + 256), "atom_latent_emb.bias": (h,)}
    shapes |= {"coord_out.weight": (3, h), "lattice_out.weight": (9, h)}
    shapes |= {"final_layer_norm.weight": (h,), "final_layer_norm.bias": (h,)}
    for i in range(layers):
        for name, width in (("edge_mlp.0", edge), ("edge_mlp.2", h), ("node_mlp.0", 2 * h), ("node_mlp.2", h)):
            shapes |= {f"csp_layer_{i}.{name}.weight": (h, width), f"csp_layer_{i}.{name}.bias": (h,)}
        shapes |= {f"csp_layer_{i}.layer_norm.weight": (h,), f"csp_layer_{i}.layer_norm.bias": (h,)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    shape = infer_shape(tensors, "x")
    assert (shape.task, shape.hidden, shape.layers) == ("csp", hidden, layers)
    assert (shape.frequencies, shape.time_dim) == (frequencies, 256)
    if hidden == 512:
        assert sum(value.numel() for value in tensors.values()) == 12_294_656  # the published count


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


BROKEN = {
    "no network": (lambda s: {"weight": torch.ones(1)}, "holds 0 networks"),
    "two networks": (lambda s: s | {f"ema.{ANCHOR}": s[ANCHOR]}, "holds 2 networks"),
    "not a dict": (lambda s: [1], "holds a list"),
    "missing bias": (lambda s: without(s, "csp_layer_1.node_mlp.2.bias"), "lacks csp_layer_1.node_mlp.2.bias"),
    "missing layer": (lambda s: s | {"csp_layer_9.node_mlp.2.bias": torch.ones(32)}, "lacks csp_layer_2."),
    "wrong width": (lambda s: s | {ANCHOR: torch.ones(32, 120)}, r"needed: 2 x 32 \+ 9 \+ 6 x frequencies"),
    "not a matrix": (lambda s: s | {ANCHOR: torch.ones(32)}, "needed: a matrix"),
    "wrong shape": (lambda s: s | {"coord_out.weight": torch.ones(4, 32)}, r"needed: \(3, 32\)"),
    "other elements": (lambda s: s | {"node_embedding.weight": torch.ones(90, 32)}, r"needed: \(100, 32\)"),
    "unknown part": (lambda s: s | {"csp_layer_0.gate.weight": torch.ones(1)}, "csp_layer_0.gate.weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    torch.save(change(weights("csp")), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.import_reference(tmp_path / "a.pt")
    assert re.search(r"a\.pt", str(caught.value)) and "\n" not in str(caught.value)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="kind 'mattergen' cannot be imported; known: diffcsp"):
        checkpoints.import_reference("a.pt", kind="mattergen")
