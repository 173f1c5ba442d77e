"""What Lightning lacks for runs that survive a crash: a safe EMA, atomic checkpoints, export of the best weights."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

log = logging.getLogger(__name__)

TOTAL = "val/total"


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
        # runs before Saver, which Lightning puts last
        if self._swapped:
            self._swap_models(pl_module)
            self._swapped = False

    def averaged(self) -> dict[str, Tensor]:
        """The averaged state dict of the Lightning module, outside of validation; empty where nothing ran here.

        (With processes forked by Lightning the average lives in them.)
        """
        return {} if self._average_model is None else self._average_model.module.state_dict()


class AtomicIO(TorchCheckpointIO):
    """Checkpoints under a temporary name in the same folder, synced, then renamed: whole or absent.

    Lightning's own writer goes through the system's temporary folder, whose move is a copy across file systems. A
    write that fails raises OSError naming the file, in one line, and leaves nothing behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            # torch's zip writer hides the cause: the system's error is the context of a RuntimeError
            cause = error if isinstance(error, OSError) else error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
            number = cause.errno if isinstance(cause, OSError) else None
            message = f"checkpoint {path} could not be written: {reason}; earlier checkpoints are untouched"
            raise OSError(number, message) from None
        finally:
            part.unlink(missing_ok=True)


class Saver(Checkpoint):
    """Saves a checkpoint every `every` steps, at the end of the run and when it stops, and keeps the newest.

    After the last batch of an epoch it waits for the validation: Lightning does not make up for one that was missed.
    """

    def __init__(self, folder: Path, every: int):
        self.folder, self.every, self._saved, self._begun = folder, every, 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0 and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step % self.every == 0 or trainer.current_epoch + 1 == trainer.max_epochs:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._begun:
            return  # a checkpoint may be restored in part: saving now would spoil it
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            return  # the other ranks may not come to the barrier of a save
        loop = trainer.fit_loop.epoch_loop
        if trainer.validating:
            # a resumed run would validate the remaining batches alone: make it look as if the first had just begun
            loop.val_loop.batch_progress.reset()
            loop.val_loop.batch_progress.increment_ready()
            loop.val_loop.batch_progress.increment_started()
        elif loop.batch_progress.total.processed < loop.batch_progress.total.ready:  # type: ignore[attr-defined]
            # stopped within a step, whose batch was counted but not used: forget it
            for count in (loop.batch_progress.total, loop.batch_progress.current):
                count.ready = count.started = count.completed  # type: ignore[attr-defined]
            steps = loop.automatic_optimization.optim_progress.optimizer.step
            for tries in (steps.total, steps.current):
                tries.ready = tries.completed
        if not isinstance(exception, OSError):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step in (0, self._saved):
            return
        trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
        self._saved = step
        if trainer.is_global_zero:
            for path in self.folder.glob("step=*.ckpt*"):
                # also what a killed process left of a save
                if path.suffix == ".part" or step_of(path) < step:
                    path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, step=123.ckpt."""
    return int(path.stem.removeprefix("step="))


def newest(out: Path) -> Path | None:
    """The checkpoint of the largest step under out/checkpoints, or None."""
    return max((out / "checkpoints").glob("step=*.ckpt"), key=step_of, default=None)


def check(path: Path) -> None:
    """Raises ValueError for a checkpoint that is cut off or holds a changed byte, which torch would take as it is."""
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        bad = str(error) or type(error).__name__
    if bad is not None:
        raise ValueError(f"checkpoint {path} is damaged ({bad}); without it the run begins again")


class ExportBest(Callback):
    """Calls `write(averaged weights, info)` at each new best of the monitored value."""

    def __init__(self, ema: Ema, write: Callable[[dict[str, Tensor], dict[str, Any]], None], monitor: str = TOTAL):
        self.ema, self.write, self.monitor, self.best = ema, write, monitor, float("inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            return
        if trainer.is_global_zero:
            line = (trainer.current_epoch, trainer.global_step, self.monitor, float(value), self.best)
            log.info("epoch %d, step %d: %s = %.5f, best before %.5f", *line)
        if not float(value) < self.best:
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
