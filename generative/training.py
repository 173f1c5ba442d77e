"""Training: a thin Lightning module. Batch k of a run and its noise are functions of (seed, k) alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from chem.ragged import RaggedBatch
from generative.batches import Batches, InOrder
from generative.callbacks import AtomicIO, Ema, ExportBest
from generative.generator import Denoiser
from generative.noise import mix


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
        for name, allowed in (("schedule", ("cosine", "plateau")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = '{getattr(self, name)}', allowed: {', '.join(allowed)}")
        for name in ("epochs", "batch_size", "val_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: >= 1")


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

    def _parts(self, batch: RaggedBatch, generator: torch.Generator, t: Tensor | None) -> dict[str, Tensor]:
        """Each field's loss: the sum over this process's rows over the count of all processes' rows, times world."""
        model = self.denoiser
        if t is None:
            u = torch.rand(len(batch), generator=generator, device=self.device, dtype=model.dtype)
            t = model.times.draw(u)
        rows = model.losses(batch, t, generator)
        counts = torch.tensor([float(len(r)) for r in rows.values()], device=self.device)
        world = self.trainer.world_size
        if world > 1:
            torch.distributed.all_reduce(counts)
        parts = {f: r.sum() * world / n for (f, r), n in zip(rows.items(), counts, strict=True)}
        parts["total"] = torch.stack([model.weights[f] * value for f, value in parts.items()]).sum()
        return parts

    def training_step(self, batch: RaggedBatch, batch_idx: int) -> Tensor:
        noise = torch.Generator(self.device).manual_seed(mix(self.seed, self.global_step, self.global_rank))
        parts = self._parts(batch, noise, None)
        if not torch.isfinite(parts["total"]):
            names = ", ".join(self.names[i] for i in batch["index"].tolist())
            raise NonFiniteLoss(f"the loss of step {self.global_step} is {parts['total'].item()}; its structures: {names}")
        self.log_dict({f"train/{f}": v.detach() for f, v in parts.items()}, batch_size=len(batch))
        return parts["total"]

    def validation_step(self, batch: RaggedBatch, batch_idx: int) -> None:
        """Fixed noise, and times that cover [0, 1) evenly: the same numbers at every validation."""
        noise = torch.Generator(self.device).manual_seed(mix(self.seed, batch_idx, 2**32 + self.global_rank))
        place = torch.randperm(len(batch), generator=noise, device=self.device)
        t = self.denoiser.times.draw((place.to(self.denoiser.dtype) + 0.5) / len(batch))
        parts = self._parts(batch, noise, t)
        self.log_dict({f"val/{f}": v for f, v in parts.items()}, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.AdamW(self.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        if s.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.6, patience=30, min_lr=1e-4)
            scheduler = {"scheduler": plateau, "monitor": "val/total", "interval": "epoch", "frequency": s.val_every}
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
    Raises NonFiniteLoss naming the structures of the batch; SystemExit(75) after SIGTERM, with a checkpoint written.
    """
    from generative.loggers import loggers_for

    steps = settings.epochs * (len(train) // settings.batch_size)
    denoiser.network.products = torch.bfloat16 if settings.precision == "bf16" else None
    module = Training(denoiser, settings, seed, steps, names or [str(i) for i in range(len(train))])
    ema = Ema(settings.ema)
    saver = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="{step}",
        every_n_train_steps=settings.save_every,
        save_on_exception=True,
        enable_version_counter=False,
    )
    trainer = Trainer(
        max_epochs=settings.epochs,
        callbacks=[ema, ExportBest(ema, write), saver],
        plugins=[AtomicIO()],
        logger=loggers_for(out, asdict(settings)),
        check_val_every_n_epoch=settings.val_every,
        gradient_clip_val=settings.clip_value or None,
        gradient_clip_algorithm="value",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=20,
        **trainer_options,
    )
    rank, world = trainer.global_rank, trainer.world_size
    loader = Batches(train, settings.batch_size, seed, rank, world)
    with torch.random.fork_rng():
        trainer.fit(
            module, loader, InOrder(val, settings.batch_size, rank, world), ckpt_path=newest(out), weights_only=True
        )
    if trainer.received_sigterm:
        raise SystemExit(75)
    return trainer


def newest(out: Path) -> Path | None:
    """The checkpoint of the largest step under out/checkpoints, or None."""
    found = (out / "checkpoints").glob("step=*.ckpt")
    return max(found, key=lambda p: int(p.stem.removeprefix("step=")), default=None)
