"""How a checkpoint is made: data by name, a model by name, the run, the best weights exported as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import builders, store
from chem.datasets import Dataset
from chem.halves import part_of, training_splits
from chem.molecules import MoleculeBatch
from chem.output import PART, usable_folder, write_atomically
from chem.ragged import RaggedBatch
from chem.statistics import Statistics, new_elements
from generative.guidance import adopt, check_names
from generative.models.crysbfn import CrysBFNConfig
from generative.models.diffcsp import DiffCSPConfig
from generative.models.flowmm import FlowMMConfig
from generative.models.geobfn import GeoBFNConfig
from generative.models.regressor import RegressorConfig
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
    small = DiffCSPConfig(task=task, hidden=256, layers=4, frequencies=32)  # type: ignore[arg-type]
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
    small = CrysBFNConfig(task=task, hidden=256, layers=4, frequencies=32, steps=50)  # type: ignore[arg-type]
    paper = CrysBFNConfig(task=task)  # type: ignore[arg-type]
    return {
        "small": Recipe("crysbfn", small, TrainSettings(epochs=115, batch_size=64, precision="bf16", save_every=206)),
        "paper": Recipe("crysbfn", paper, TrainSettings(ema=0.995, schedule="plateau", warmup=0)),
    }


def _geobfn(types: str) -> dict[str, Recipe]:
    paper = GeoBFNConfig(types=types)  # type: ignore[arg-type]
    # the paper's last noise is 0.002 Å; to learn geometry finer than 0.02 Å takes more than hours
    small = replace(paper, hidden=128, layers=4, attention=True, predicts="data", sharpness=32.0, sigma_pos=0.01)
    small = replace(small, sampler="flow", steps=50)
    settings = TrainSettings(epochs=10, batch_size=32, lr=1e-3, precision="bf16", ema=0.999, save_every=500)
    long = TrainSettings(epochs=3000, batch_size=64, lr=1e-4, ema=0.9999, warmup=0)
    return {"small": Recipe("geobfn", small, settings), "paper": Recipe("geobfn", paper, long)}


def _regressor() -> dict[str, Recipe]:
    small = RegressorConfig(hidden=64, layers=4)
    settings = TrainSettings(epochs=60, batch_size=96, precision="bf16", save_every=500)
    paper = TrainSettings(epochs=1000, batch_size=96, warmup=0)
    return {"small": Recipe("regressor", small, settings), "paper": Recipe("regressor", RegressorConfig(), paper)}


RECIPES: dict[str, dict[str, Recipe]] = {
    "diffcsp-csp": _diffcsp("csp"),
    "diffcsp-ab-initio": _diffcsp("ab-initio"),
    "flowmm-csp": _flowmm("csp"),
    "flowmm-ab-initio": _flowmm("ab-initio"),
    "crysbfn-csp": _crysbfn("csp"),
    "crysbfn-ab-initio": _crysbfn("ab-initio"),
    "geobfn": _geobfn("discretised"),
    "geobfn-categorical": _geobfn("categorical"),
    "regressor": _regressor(),
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
    another than the recipe's, and conditions may be added to a model that has none. Raises ValueError for a folder that
    holds another run, for one that holds this run unless `resume`, for elements init never saw, for an init of another
    kind of model and for properties that the data lack.
    """
    train_set, val_set = (_labelled(part, recipe.config) for part in training_splits(data, root))
    start = store.load(init, "cpu") if init is not None else None
    config, statistics = _beginning(recipe, train_set, data, start, init, restat)
    kind, columns = recipe.kind, _columns(config)
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
        trained: Any = start.model
        adopt(model, trained, builders.kind(kind).transfer)
    for part in (train_set, val_set):
        _check_representable(model, part)

    def write(weights: dict[str, Tensor], info: dict[str, Any], folder: str = BEST) -> None:
        training = {**run, **info}
        store.save(out / folder, kind, config, statistics, weights, dtype=torch.float32, training=training)

    fit(
        model,
        _slim(train_set.batch, columns),
        _slim(val_set.batch, columns),
        out,
        settings,
        write,
        seed,
        train_set.ids,
        **trainer_options,
    )
    write(model.state_dict(), {"epoch": settings.epochs, "finished": True}, LAST)
    return out / BEST


def _beginning(
    recipe: Recipe, train_set: Dataset[Any], data: str | Path, start: Any, init: str | Path | None, restat: bool
) -> tuple[Any, Statistics]:
    """Config and statistics of a run, from the recipe and, where there is one, the checkpoint that it starts from."""
    if start is not None and start.kind != recipe.kind:
        raise ValueError(f"init = '{init}' is a {start.kind}, allowed: a {recipe.kind}")
    config = recipe.config if start is None else _carried(start.config, recipe.config)
    columns = _columns(config)
    if start is not None and (new := new_elements(start.statistics, train_set.batch)):
        raise ValueError(f"init = '{init}' was not trained on {', '.join(new)}, which data = '{data}' contains")
    statistics = Statistics.compute(train_set.batch)
    check_names(columns, statistics, "property" if hasattr(config, "property") else "conditions")
    if start is None or restat:
        return config, statistics
    added = [name for name in columns if name not in _columns(start.config)]
    properties = start.statistics.properties | {name: statistics.properties[name] for name in added}
    return config, replace(start.statistics, properties=properties)


def _carried(start: Any, recipe: Any) -> Any:
    """The settings a run begins with that starts from a checkpoint: its own, but for what another task asks."""
    had, wanted = _columns(start), _columns(recipe)
    if had and had != wanted and (wanted or hasattr(recipe, "property")):
        name, same = ("property" if hasattr(recipe, "property") else "conditions"), ",".join(had)
        raise ValueError(f"{name} = '{','.join(wanted)}', allowed: '{same}', which init was trained with")
    if wanted and not had:
        start = replace(start, conditions=wanted)
    if getattr(start, "task", None) == getattr(recipe, "task", None):
        return start
    return replace(start, task=recipe.task)


def _columns(config: Any) -> tuple[str, ...]:
    """Properties that a model of this config reads."""
    return (config.property,) if hasattr(config, "property") else config.conditions


def _labelled(data: Dataset[Any], config: Any) -> Dataset[Any]:
    """The structures that can be trained on or judged by: for a regressor, those whose property is known."""
    if hasattr(config, "property") and config.property in data.batch.fields:
        known = (~data.batch[config.property].isnan()).nonzero().squeeze(1)
        data = data if len(known) == len(data) else part_of(data, known, f"with {config.property}")
    if not len(data):
        raise ValueError(f"data = '{data.name}' has no structure in its split {data.split}; training needs one")
    return data


def _slim(batch: RaggedBatch, columns: Sequence[str]) -> RaggedBatch:
    """What models are trained on, without bonds and other properties than these."""
    bare = batch.without_bonds() if isinstance(batch, MoleculeBatch) else batch
    return bare.without(*[name for name in bare.fields if name not in (*FIELDS, *columns)]).to(torch.float32)


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
        younger = asdict(builders.kind(run["kind"]).config())  # settings that the run was begun without
        made["config"] = {**json.loads(json.dumps(younger)), **made["config"]}
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
