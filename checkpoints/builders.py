"""From the `kind` in a checkpoint to the code that builds its model: the one dict of strings that select classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from checkpoints.manifest import refuse_unknown


def _of_equal_shape(state: dict[str, Any], model: Any) -> dict[str, Any]:
    """Weights as a start for `model`: what is not there, or has another shape, stays as built."""
    built = model.state_dict()
    return {k: state[k] if k in state and state[k].shape == v.shape else v for k, v in built.items()}


def _as_it_is(state: dict[str, Any], model: Any) -> dict[str, Any]:
    return state


class Kind(NamedTuple):
    """A frozen dataclass of settings, and `build(config, statistics) -> torch.nn.Module`.

    transfer: `(state, model) -> state` fits the weights of one task to a model of another (the config's `task`).
    """

    config: type
    build: Callable[[Any, Any], Any]
    transfer: Callable[[dict[str, Any], Any], dict[str, Any]] = _as_it_is


def _diffcsp() -> Kind:
    from generative.models.diffcsp import DiffCSPConfig, build, transfer

    return Kind(DiffCSPConfig, build, transfer)


def _flowmm() -> Kind:
    from generative.models.flowmm import FlowMMConfig, build

    return Kind(FlowMMConfig, build, _of_equal_shape)


def _crysbfn() -> Kind:
    from generative.models.crysbfn import CrysBFNConfig, build

    return Kind(CrysBFNConfig, build, _of_equal_shape)


def _geobfn() -> Kind:
    from generative.models.geobfn import GeoBFNConfig, build

    return Kind(GeoBFNConfig, build)


def _regressor() -> Kind:
    from generative.models.regressor import RegressorConfig, build

    return Kind(RegressorConfig, build)


# Each entry imports its model only when asked, so that listing checkpoints needs no network code.
BUILDERS: dict[str, Callable[[], Kind]] = {
    "diffcsp": _diffcsp,
    "flowmm": _flowmm,
    "crysbfn": _crysbfn,
    "geobfn": _geobfn,
    "regressor": _regressor,
}


def kind(name: str) -> Kind:
    """Config class and builder of a kind; raises ValueError listing the known kinds."""
    if name not in BUILDERS:
        raise ValueError(f"unknown kind '{name}' of checkpoint; known: {', '.join(BUILDERS)}")
    return BUILDERS[name]()


def to_config(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A config object from JSON values (lists become tuples).

    Raises ValueError for unknown keys, listing the known ones, for missing keys, and for what the class refuses.
    """
    known = tuple(field.name for field in fields(cls))
    refuse_unknown(values, known, f"config of {where}")
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"config of {where} lacks {', '.join(missing)}")
    try:
        return cls(**{name: _tuples(value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"config of {where} is not valid: {error}") from None


def to_statistics(values: Mapping[str, Any]) -> Any:
    """`chem.statistics.Statistics` of a training set from JSON values; raises ValueError for unknown keys."""
    from chem.statistics import Statistics

    return Statistics.from_dict(dict(values))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
