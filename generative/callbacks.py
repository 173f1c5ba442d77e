"""What Lightning lacks for runs that survive a crash: a safe EMA, atomic checkpoints, export of the best weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor


class Ema(WeightAveraging):
    """Exponential moving average of the weights, with warm-up: decay min(d, (1 + n) / (10 + n)) at update n.

    Lightning exchanges the two sets of weights while it validates; the exchange is undone when a run stops there, or
    the checkpoint written then would hold them the wrong way round.
    """

    def __init__(self, decay: float):
        def update(average: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = int(count)
            torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=update)
        self._swapped = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # runs before ModelCheckpoint, which Lightning puts last
        if self._swapped:
            self._swap_models(pl_module)
            self._swapped = False

    def averaged(self) -> dict[str, Tensor]:
        """The averaged state dict of the Lightning module, wherever the exchange stands outside of validation."""
        assert self._average_model is not None
        return self._average_model.module.state_dict()


class AtomicIO(TorchCheckpointIO):
    """Checkpoints under a temporary name in the same folder, synced, then renamed: whole or absent.

    Lightning's own writer goes through the system's temporary folder, whose move is a copy across file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


class ExportBest(Callback):
    """Calls `write(averaged weights, info)` at each new best of the monitored value and at the end of training."""

    def __init__(self, ema: Ema, write: Callable[[dict[str, Tensor], dict[str, Any]], None], monitor: str = "val/total"):
        self.ema, self.write, self.monitor, self.best = ema, write, monitor, float("inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not float(value) < self.best:
            return
        self.best = float(value)
        if trainer.is_global_zero:
            info = {"epoch": trainer.current_epoch, "step": trainer.global_step, self.monitor: self.best}
            self.write(strip(self.ema.averaged()), info)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def strip(state: dict[str, Tensor], prefix: str = "denoiser.") -> dict[str, Tensor]:
    """The entries of the generator inside the Lightning module, without its prefix."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
