"""How to train: the settings of a run, and what the settings of models check alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


def check_choices(settings: Any, **choices: tuple[str, ...]) -> None:
    """Raises ValueError for the first of these settings that is none of its choices."""
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name} = '{getattr(settings, name)}', allowed: {', '.join(allowed)}")


def check_counts(settings: Any, *names: str) -> None:
    """Raises ValueError for the first of these settings that is less than one."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} = {getattr(settings, name)}, allowed: >= 1")


@dataclass(frozen=True)
class TrainSettings:
    """How to train. batch_size counts all processes together; clip_value 0 switches clipping off.

    precision "bf16" runs the large products of the network in bfloat16, everything else in float32. schedule: "cosine"
    falls to zero over all epochs after `warmup` steps, "plateau" is the paper's (factor 0.6, patience 30 validations,
    floor 1e-4). val_every counts epochs.
    """

    epochs: int = 1000
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "plateau"] = "cosine"
    warmup: int = 200
    clip_value: float = 0.5
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    val_every: int = 5
    save_every: int = 200

    def __post_init__(self) -> None:
        check_choices(self, schedule=("cosine", "plateau"), precision=("fp32", "bf16"))
        check_counts(self, "epochs", "batch_size", "val_every", "save_every")
        if not self.lr > 0:
            raise ValueError(f"lr = {self.lr}, allowed: > 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema = {self.ema}, allowed: 0 <= ema < 1")
        for name in ("clip_value", "weight_decay", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: >= 0")
