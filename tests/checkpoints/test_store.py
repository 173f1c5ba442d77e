"""Checkpoint folders: what is saved comes back, and whatever is wrong with a folder is said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import checkpoints
from checkpoints import builders, manifest, store
from checkpoints.foreign import no_statistics


@dataclass(frozen=True)
class ToyConfig:
    hidden: int = 4
    scales: tuple[float, ...] = (1.0, 2.0)


class Toy(nn.Module):
    def __init__(self, config: ToyConfig):
        super().__init__()
        self.linear = nn.Linear(config.hidden, config.hidden)
        self.register_buffer("schedule", torch.linspace(0, 1, 7))
        self.register_buffer("count", torch.tensor(3))


@pytest.fixture(autouse=True)
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = builders.Kind(ToyConfig, lambda config, statistics: Toy(config), lambda state, model: state)
    monkeypatch.setitem(builders.BUILDERS, "toy", lambda: made)


@pytest.fixture
def toy() -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy(ToyConfig())


@pytest.fixture
def folder(tmp_path: Path, toy: Toy) -> Path:
    place = tmp_path / "toy-v1"
    store.save(place, "toy", ToyConfig(), no_statistics(), toy.state_dict(), "# Toy\n", training={"epochs": 3})
    return place


def refused(call: Callable[[], object], *words: str) -> None:
    """The call raises ValueError whose message is one line and holds these words."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip_in_float32_is_exact(tmp_path: Path, toy: Toy) -> None:
    sha = store.save(tmp_path / "a", "toy", ToyConfig(), no_statistics(), toy.state_dict(), dtype=torch.float32)
    loaded = checkpoints.load(tmp_path / "a", device="cpu")
    for name, value in toy.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert (loaded.name, loaded.kind, loaded.config, loaded.sha256) == ("a", "toy", ToyConfig(), sha)
    assert loaded.statistics == no_statistics()
    assert not loaded.model.training


def test_bfloat16_on_disk_loads_as_float32_and_exact_buffers_stay(tmp_path: Path, toy: Toy) -> None:
    store.save(tmp_path / "a", "toy", ToyConfig(), no_statistics(), toy.state_dict(), exact=["schedule"])
    on_disk = store.read_tensors((tmp_path / "a" / "model.safetensors").read_bytes(), tmp_path)
    assert on_disk["linear.weight"].dtype == torch.bfloat16
    model = checkpoints.load(tmp_path / "a", device="cpu").model
    assert model.linear.weight.dtype == torch.float32
    assert torch.equal(model.linear.weight, toy.linear.weight.bfloat16().float())
    assert torch.equal(model.schedule, toy.schedule)
    assert model.count.dtype == torch.int64
    double = checkpoints.load(tmp_path / "a", device="cpu", dtype=torch.float64).model
    assert double.linear.weight.dtype == torch.float64


def test_same_weights_have_the_same_hash(tmp_path: Path, toy: Toy) -> None:
    first, second = (
        store.save(tmp_path / name, "toy", ToyConfig(), no_statistics(), toy.state_dict()) for name in "ab"
    )
    assert first == second


def test_loading_leaves_the_random_state(folder: Path) -> None:
    before = torch.get_rng_state()
    checkpoints.load(folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_training_and_card_are_kept(folder: Path) -> None:
    assert checkpoints.load(folder, device="cpu").training == {"epochs": 3}
    assert (folder / "card.md").read_text() == "# Toy\n"
    assert sorted(p.name for p in folder.iterdir()) == ["card.md", "config.json", "model.safetensors", "sha256.json"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "card.md"])
def test_changed_file_names_file_and_both_hashes(folder: Path, file: str) -> None:
    expected = json.loads((folder / "sha256.json").read_text())[file]
    data = (folder / file).read_bytes() + b" "
    (folder / file).write_bytes(data)
    refused(lambda: checkpoints.load(folder), file, expected, manifest.digest(data))


def test_missing_and_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused(lambda: checkpoints.load(folder), "model.safetensors", "sha256")
    (folder / "sha256.json").unlink()
    refused(lambda: checkpoints.load(folder), "model.safetensors", "not a complete safetensors file")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(lambda: checkpoints.load(folder), "model.safetensors", "not a complete safetensors file")
    weights.unlink()
    refused(lambda: checkpoints.load(folder), "model.safetensors", "No such file")


def test_unknown_and_missing_keys_are_named(folder: Path) -> None:
    (folder / "sha256.json").unlink()
    config = folder / "config.json"
    original = config.read_text()
    for changes, words in (
        ({"optimizer": 1}, ("optimizer", "known: format, kind, config, statistics, training")),
        ({"config": {"hiden": 4}}, ("hiden", "known: hidden, scales")),
        ({"kind": "tyo"}, ("tyo", "known: diffcsp, ", "toy")),
        ({"format": 2}, ("format 2", "reads format 1")),
        ({"statistics": {"n": 1}}, ("statistics", "num_atoms")),
    ):
        config.write_text(original)
        edit(config, **changes)
        refused(lambda: checkpoints.load(folder), *words)
    config.write_text('{"format": 1}')
    refused(lambda: checkpoints.load(folder), "config.json", "lacks kind, config, statistics")
    config.write_text("{")
    refused(lambda: checkpoints.load(folder), "config.json", "not JSON")


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    (folder / "sha256.json").unlink()
    edit(folder / "config.json", config={"hidden": 5})
    refused(lambda: checkpoints.load(folder), "linear.weight (4, 4) (needs (5, 5))")


def test_save_refuses_what_load_would_refuse(tmp_path: Path, toy: Toy) -> None:
    state = toy.state_dict()
    place = tmp_path / "a"
    refused(lambda: store.save(place, "toy", {"hiden": 1}, no_statistics(), state), "hiden", "hidden, scales")
    refused(lambda: store.save(place, "tyo", {}, no_statistics(), state), "tyo")
    refused(lambda: store.save(place, "toy", {}, {}, state), "statistics")
    bad = {**state, "linear.bias": torch.full((4,), float("nan"))}
    refused(lambda: store.save(place, "toy", {}, no_statistics(), bad), "linear.bias", "not finite")
    assert not place.exists()


def test_interrupted_write_keeps_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "card.md").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        manifest.write_atomically(folder / "card.md", b"new")
    assert (folder / "card.md").read_bytes() == before
    assert not list(folder.glob(".*"))


def test_register_then_load_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = folder.parent
    table = checkpoints.register(shipped)
    assert json.loads((shipped / "manifest.json").read_text()) == table
    info = checkpoints.available(shipped)["toy-v1"]
    assert (info.kind, info.training, info.sha256) == ("toy", {"epochs": 3}, table["toy-v1"]["model.safetensors"])
    assert info.num_bytes == sum((folder / file).stat().st_size for file in table["toy-v1"])
    monkeypatch.setattr(store, "SHIPPED", shipped)
    assert checkpoints.load("toy-v1", device="cpu").sha256 == info.sha256
    refused(lambda: checkpoints.load("toy-v2"), "toy-v2", "known: toy-v1")
    (folder / "sha256.json").unlink()
    (folder / "card.md").write_text("changed")
    refused(lambda: checkpoints.load("toy-v1"), "card.md", table["toy-v1"]["card.md"])


def test_register_refuses_a_damaged_folder(folder: Path) -> None:
    (folder / "card.md").write_text("changed")
    refused(lambda: checkpoints.register(folder.parent), "card.md")
    assert not (folder.parent / "manifest.json").exists()


def test_wrong_device_is_one_line(folder: Path) -> None:
    refused(lambda: checkpoints.load(folder, device="gpu0"), "gpu0", "'auto'")


def test_shipped_checkpoints_match_their_manifest_and_stay_small() -> None:
    for name, info in checkpoints.available().items():
        assert info.num_bytes < 26e6, name
        for file, expected in manifest.read_hashes(manifest.SHIPPED / manifest.MANIFEST)[name].items():
            assert manifest.digest((info.folder / file).read_bytes()) == expected
    shipped = {path.parent.name for path in manifest.SHIPPED.glob("*/config.json")}
    assert shipped == set(checkpoints.available()), "run checkpoints.register()"


def test_listing_needs_no_torch() -> None:
    code = "import sys, checkpoints; checkpoints.available(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="laod"):
        checkpoints.laod  # noqa: B018
