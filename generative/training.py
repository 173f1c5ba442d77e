"""Training: a thin Lightning module. Batch k of a run and its noise are functions of (seed, k) alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from chem.ragged import RaggedBatch
from generative.backbone.gemm import forced, use_onednn
from generative.batches import Loaders
from generative.callbacks import AtomicIO, Ema, ExportBest, Saver, check, newest, strip
from generative.generator import Denoiser
from generative.interrupts import interruptible
from generative.loggers import loggers_for, quiet
from generative.noise import Share, mix
from generative.settings import TrainSettings

Parts = dict[str, Tensor]
NEVER = 10**12  # epochs between Lightning's own steps of the plateau schedule


class NonFiniteLoss(RuntimeError):
    """The loss of a batch is not finite; the message names its structures."""


class Training(LightningModule):
    """Loss, optimizer and schedule of a denoiser.

    names: what to call structure i of the training set when its batch fails.
    """

    def __init__(self, denoiser: Denoiser, settings: TrainSettings, seed: int, total_steps: int, names: Sequence[str]):
        super().__init__()
        self.denoiser, self.settings, self.seed, self.total_steps = denoiser, settings, seed, total_steps
        self.names = names

    @property
    def loaders(self) -> Loaders:
        """The data module of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _parts(self, batch: RaggedBatch, seed: int, everyone: Tensor, data: RaggedBatch, even: bool) -> Parts:
        """Each field's loss: the sum over this process's rows over the count of all processes' rows, times world.

        Noise and times are drawn for the structures `everyone` (of `data`) that all processes hold, in that order, so
        that they do not depend on the number of processes. even: times that cover [0, 1) evenly.
        """
        model, rank, world = self.denoiser, self.global_rank, self.trainer.world_size
        generator = torch.Generator(self.device).manual_seed(seed)
        if even:
            place = torch.randperm(len(everyone), generator=generator, device=self.device)
            u = (place.to(model.dtype) + 0.5) / len(everyone)
        else:
            u = torch.rand(len(everyone), generator=generator, device=self.device, dtype=model.dtype)
        share = generator if world == 1 else Share(generator, data["num_atoms"][everyone], rank, world)
        t = model.times.draw(u[rank::world])
        # a validation may end with fewer structures than processes
        rows = model.losses(batch, t, share) if len(batch) else {f: t for f in model.noisy}
        counts = torch.tensor([float(len(r)) for r in rows.values()], device=self.device)
        if world > 1:
            torch.distributed.all_reduce(counts)
        parts = {f: r.sum() * world / n for (f, r), n in zip(rows.items(), counts, strict=True)}
        parts["total"] = torch.stack([model.weights[f] * value for f, value in parts.items()]).sum()
        return parts

    def on_train_start(self) -> None:
        # a run that stopped within a step had fetched that step's batch already
        self.loaders.training.goto(self.global_step)
        self.on_train_epoch_start()  # which Lightning leaves out where a run continues within an epoch

    def on_train_epoch_start(self) -> None:
        # the end is judged whatever val_every is: a schedule that falls to zero has its best weights there
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["onednn"] = use_onednn(torch.zeros(1))

    def training_step(self, batch: RaggedBatch, batch_idx: int) -> Tensor:
        step, loader = self.global_step, self.loaders.training
        # the loggers' step, which Lightning miscounts after some stops
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = step
        parts = self._parts(batch, mix(self.seed, step, 0), loader.everyone(step), loader.data, even=False)
        if not torch.isfinite(parts["total"]):
            names = ", ".join(self.names[i] for i in batch["index"].tolist())
            raise NonFiniteLoss(f"the loss of step {step} is {parts['total'].item()}; its structures: {names}")
        self.log_dict({f"train/{f}": v.detach() for f, v in parts.items()}, batch_size=len(batch))
        return parts["total"]

    def validation_step(self, batch: RaggedBatch, batch_idx: int) -> None:
        """Fixed noise and evenly spread times: the same numbers at every validation."""
        loader = self.loaders.validation
        everyone = loader.everyone(batch_idx)
        parts = self._parts(batch, mix(self.seed, batch_idx, 2**32), everyone, loader.data, even=True)
        self.log_dict({f"val/{f}": v for f, v in parts.items()}, batch_size=len(everyone), sync_dist=True)

    def on_validation_end(self) -> None:
        # Lightning would step it after the checkpoint of the epoch's end, and not again when that is resumed
        plateau = self.lr_schedulers()
        if isinstance(plateau, torch.optim.lr_scheduler.ReduceLROnPlateau):
            plateau.step(self.trainer.callback_metrics["val/total"])

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.AdamW(self.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        if s.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.6, patience=30, min_lr=1e-4)
            scheduler = {"scheduler": plateau, "monitor": "val/total", "interval": "epoch", "frequency": NEVER}
        else:
            cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, self._cosine)
            scheduler = {"scheduler": cosine, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _cosine(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.settings.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total_steps)))


def fit(
    denoiser: Denoiser,
    train: RaggedBatch,
    val: RaggedBatch,
    out: Path,
    settings: TrainSettings,
    write: Callable[[dict[str, Tensor], dict[str, Any]], None],
    seed: int = 0,
    names: Sequence[str] = (),
    **trainer_options: Any,
) -> Trainer:
    """Train `denoiser` in place; on return it holds the averaged weights.

    Continues from the newest checkpoint under out/checkpoints, bit for bit in fp32 on the CPU at a fixed number of
    threads. `write` receives the averaged weights at each new best validation. The global random state is untouched.
    Raises NonFiniteLoss naming the structures of the batch and ValueError for a damaged checkpoint; after SIGTERM
    SystemExit(75) and after Ctrl-C KeyboardInterrupt, with a checkpoint written.
    """
    loaders = Loaders(train, val, settings.batch_size, seed)
    steps = settings.epochs * (len(train) // settings.batch_size)
    denoiser.network.products = torch.bfloat16 if settings.precision == "bf16" else None
    module = Training(denoiser, settings, seed, steps, names or [str(i) for i in range(len(train))])
    ema = Ema(settings.ema)
    callbacks: list[Any] = [ema, ExportBest(ema, write), Saver(out / "checkpoints", settings.save_every)]
    trainer_options.setdefault("log_every_n_steps", 20)
    if trainer_options.setdefault("enable_progress_bar", sys.stdout.isatty()):
        callbacks.append(RichProgressBar())
    last = newest(out)
    if last is not None:
        check(last)
    # which library multiplies is measured, and the answer may change from start to start, and with it the last digits
    onednn = torch.load(last, weights_only=True, mmap=True).get("onednn") if last else None
    with quiet(), torch.random.fork_rng(), forced(use_onednn(torch.zeros(1)) if onednn is None else onednn):
        trainer = Trainer(
            max_epochs=settings.epochs,
            callbacks=callbacks,
            plugins=[AtomicIO()],
            logger=loggers_for(out, asdict(settings)),
            check_val_every_n_epoch=settings.val_every,
            gradient_clip_val=settings.clip_value or None,
            gradient_clip_algorithm="value",
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            **trainer_options,
        )
        with interruptible(out):
            trainer.fit(module, datamodule=loaders, ckpt_path=last, weights_only=True)
    # Lightning leaves the raw weights where there was nothing left to train
    denoiser.load_state_dict(strip(ema.averaged()) or denoiser.state_dict())
    return trainer
