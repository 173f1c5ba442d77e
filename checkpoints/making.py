"""How a checkpoint is made: data by name, a model by name, the run, the best weights exported as they come."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import builders, store
from chem import datasets
from chem.molecules import MoleculeBatch
from chem.output import PART, usable_folder, write_atomically
from chem.ragged import RaggedBatch
from chem.statistics import Statistics, new_elements
from generative.models.crysbfn import CrysBFNConfig
from generative.models.diffcsp import DiffCSPConfig
from generative.models.flowmm import FlowMMConfig
from generative.models.geobfn import GeoBFNConfig
from generative.training import TrainSettings, fit, newest

RUN, BEST, LAST = "run.json", "best", "last"
FIELDS = ("atomic_numbers", "frac_coords", "lattice", "pos")


@dataclass(frozen=True)
class Recipe:
    """A model's settings and how to train it."""

    kind: str
    config: Any
    settings: TrainSettings


def _diffcsp(task: str) -> dict[str, Recipe]:
    small = DiffCSPConfig(
        task=task,  # type: ignore[arg-type]
        hidden=256,
        layers=4,
        frequencies=32,
        types="classes",
        types_weight=0.5,
    )
    paper = DiffCSPConfig(task=task)  # type: ignore[arg-type]
    return {
        "small": Recipe("diffcsp", small, TrainSettings(epochs=115, batch_size=128, precision="bf16", save_every=206)),
        "paper": Recipe("diffcsp", paper, TrainSettings(schedule="plateau", warmup=0)),
    }


def _flowmm(task: str) -> dict[str, Recipe]:
    small = FlowMMConfig(task=task, hidden=256, layers=4, frequencies=32)  # type: ignore[arg-type]
    paper = FlowMMConfig(task=task)  # type: ignore[arg-type]
    return {
        "small": Recipe("flowmm", small, TrainSettings(epochs=115, batch_size=64, precision="bf16", save_every=206)),
        "paper": Recipe("flowmm", paper, TrainSettings(epochs=2000, lr=3e-4, warmup=0)),
    }


def _crysbfn(task: str) -> dict[str, Recipe]:
    small = CrysBFNConfig(task=task, hidden=256, layers=4, frequencies=32)  # type: ignore[arg-type]
    paper = CrysBFNConfig(task=task)  # type: ignore[arg-type]
    return {
        "small": Recipe("crysbfn", small, TrainSettings(epochs=115, batch_size=64, precision="bf16", save_every=206)),
        "paper": Recipe("crysbfn", paper, TrainSettings(ema=0.995, schedule="plateau", warmup=0)),
    }


def _geobfn() -> dict[str, Recipe]:
    small = GeoBFNConfig(hidden=128, layers=6)
    settings = TrainSettings(epochs=60, batch_size=64, lr=5e-4, precision="bf16", ema=0.999, save_every=500)
    paper = TrainSettings(epochs=3000, batch_size=64, lr=1e-4, ema=0.9999, warmup=0)
    return {"small": Recipe("geobfn", small, settings), "paper": Recipe("geobfn", GeoBFNConfig(), paper)}


RECIPES: dict[str, dict[str, Recipe]] = {
    "diffcsp-csp": _diffcsp("csp"),
    "diffcsp-ab-initio": _diffcsp("ab-initio"),
    "flowmm-csp": _flowmm("csp"),
    "flowmm-ab-initio": _flowmm("ab-initio"),
    "crysbfn-csp": _crysbfn("csp"),
    "crysbfn-ab-initio": _crysbfn("ab-initio"),
    "geobfn": _geobfn(),
}


def recipe(model: str, preset: str, model_options: dict[str, Any], options: dict[str, Any]) -> Recipe:
    """The recipe of a model by name and preset, with some settings changed; ValueError names what is allowed."""
    if model not in RECIPES:
        raise ValueError(f"model = '{model}', allowed: {', '.join(RECIPES)}")
    if preset not in RECIPES[model]:
        raise ValueError(f"preset = '{preset}', allowed: {', '.join(RECIPES[model])}")
    base = RECIPES[model][preset]
    changed = replace(base.settings, **{k: v for k, v in options.items() if v is not None})
    asked = {k: v for k, v in model_options.items() if v is not None}
    if foreign := [k for k in asked if not hasattr(base.config, k)]:
        raise ValueError(f"{foreign[0]} = {asked[foreign[0]]}, allowed: not with model = '{model}', which has none")
    config = replace(base.config, **asked)
    return Recipe(base.kind, config, changed)


def train(
    recipe: Recipe,
    data: str | Path,
    out: Path,
    seed: int = 0,
    init: str | Path | None = None,
    restat: bool = False,
    resume: bool = False,
    root: str | Path | None = None,
    **trainer_options: Any,
) -> Path:
    """Run a recipe on a data set and return the checkpoint folder with the weights of the lowest validation loss.

    init: start from a checkpoint's weights and statistics (restat: statistics of the new data); its task may be
    another than the recipe's. Raises ValueError for a folder that holds another run, for one that holds this run unless
    `resume`, for elements init never saw and for an init of another kind of model.
    """
    train_set, val_set = (datasets.load(data, split, root) for split in ("train", "val"))
    if not len(val_set):
        raise ValueError(f"data = '{data}' has no structure in its split val, which training is judged by")
    start = store.load(init, "cpu") if init is not None else None
    if start is not None and start.kind != recipe.kind:
        raise ValueError(f"init = '{init}' is a {start.kind}, allowed: a {recipe.kind}")
    kind = recipe.kind
    config = recipe.config
    if start is not None:
        config = _carried(start.config, config)
    if start is not None and (new := new_elements(start.statistics, train_set.batch)):
        raise ValueError(f"init = '{init}' was not trained on {', '.join(new)}, which data = '{data}' contains")
    statistics = start.statistics if start is not None and not restat else Statistics.compute(train_set.batch)
    chosen = recipe.settings
    settings = replace(
        chosen,
        batch_size=min(chosen.batch_size, len(train_set)),
        val_every=min(chosen.val_every, chosen.epochs),
    )
    run = {
        "kind": kind,
        "config": asdict(config),
        "settings": asdict(settings),
        "data": {"name": train_set.name, "sha256": train_set.sha256, "structures": len(train_set)},
        "seed": seed,
        "init": start.sha256 if start is not None else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    _claim(out, run, resume)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = builders.kind(kind).build(config, statistics)
    if start is not None:
        model.load_state_dict(builders.kind(kind).transfer(start.model.state_dict(), model))

    for part in (train_set, val_set):
        _check_representable(model, part)

    def write(weights: dict[str, Tensor], info: dict[str, Any], folder: str = BEST) -> None:
        training = {**run, **info}
        store.save(out / folder, kind, config, statistics, weights, dtype=torch.float32, training=training)

    fit(
        model,
        _slim(train_set.batch),
        _slim(val_set.batch),
        out,
        settings,
        write,
        seed,
        train_set.ids,
        **trainer_options,
    )
    write(model.state_dict(), {"epoch": settings.epochs, "finished": True}, LAST)
    return out / BEST


def _carried(start: Any, recipe: Any) -> Any:
    """The settings a run begins with that starts from a checkpoint: its own, but for what another task asks."""
    if getattr(start, "task", None) == getattr(recipe, "task", None):
        return start
    asked = {name: getattr(recipe, name) for name in ("task", "types", "types_weight") if hasattr(recipe, name)}
    return replace(start, **asked)


def _slim(batch: RaggedBatch) -> RaggedBatch:
    """What models are trained on, without properties and bonds."""
    bare = batch.without_bonds() if isinstance(batch, MoleculeBatch) else batch
    return bare.without(*[name for name in bare.fields if name not in FIELDS]).to(torch.float32)


def _check_representable(model: Any, data: Any) -> None:
    """Raises ValueError with the id of the first structure that the model's representation cannot hold."""
    try:
        model.encode(data.batch)
    except ValueError:
        for name, one in zip(data.ids, data.batch, strict=True):
            try:
                model.encode(one)
            except ValueError as error:
                raise ValueError(f"data = '{data.name}': {name}: {error}") from None


def _claim(out: Path, run: dict[str, Any], resume: bool) -> None:
    """Make the run folder, or check that it holds this very run."""
    place = out / RUN
    if place.exists():
        made = json.loads(place.read_text())
        loose = ("threads", "torch")
        differ = [k for k in run if k not in loose and made.get(k) != json.loads(json.dumps(run[k]))]
        if differ:
            raise ValueError(f"out = '{out}' holds a run that differs in {', '.join(differ)}; choose another folder")
        if not resume and newest(out) is not None:
            raise ValueError(f"out = '{out}' holds this run already; resume=True continues it")
        return
    usable_folder(out, "out")
    if out.exists() and any(path.suffix != PART for path in out.iterdir()):
        raise ValueError(f"out = '{out}' is not empty and holds no {RUN}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(run, indent=2) + "\n")
