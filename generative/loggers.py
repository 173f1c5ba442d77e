"""Where training curves go: CSV always, TensorBoard and Weights & Biases where they are installed."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger


def loggers_for(out: Path, settings: dict[str, Any]) -> list[Logger]:
    """Loggers writing under out/logs; every start gets a CSV folder of its own, since Lightning empties an old one.

    Weights & Biases is used where it is installed and an API key is set.
    """
    logs = out / "logs"
    start = len(list((logs / "csv").glob("start_*")))
    loggers: list[Logger] = [CSVLogger(logs, name="csv", version=f"start_{start}", flush_logs_every_n_steps=1)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(logs, name="tensorboard", version=""))
    if importlib.util.find_spec("wandb") and os.environ.get("WANDB_API_KEY"):
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(project="atomsmith", save_dir=logs, config=settings))
    return loggers


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hardware report, advertisements and warnings about its own internals; undone at the end."""
    talkers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in talkers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated")
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in talkers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(talkers, levels, strict=True):
                logger.setLevel(level)


def read_curves(out: Path) -> list[dict[str, float]]:
    """Rows of all starts in order of step; where a step was replayed after a crash, the last start wins."""
    import csv

    rows: dict[tuple[int, bool], dict[str, float]] = {}
    files = (out / "logs" / "csv").glob("start_*/metrics.csv")
    for path in sorted(files, key=lambda p: int(p.parent.name.removeprefix("start_"))):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                values = {k: float(v) for k, v in row.items() if v}
                rows[int(values["step"]), "val/total" in values] = values
    return [rows[key] for key in sorted(rows)]
