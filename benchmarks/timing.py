"""Ratios in one process: the calls are interleaved A B A B, and the median is over run-by-run ratios.

CPU time of the process at one thread: on a shared machine wall times spread many times more than these ratios do.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Times = dict[str, list[float]]


def interleave(calls: Mapping[str, Callable[[], object]], repeats: int = 5, warmups: int = 1) -> Times:
    """CPU seconds of each call, `repeats` of each, taken in turn at one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(warmups):
            for call in calls.values():
                call()
        times: Times = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                start = time.process_time()
                call()
                times[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return times


def ratio(times: Times, a: str, b: str) -> float:
    """Median over runs of time a / time b."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def cpu_model() -> str:
    """The processor by name, with the matrix instructions that decide which product is fast."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    found = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    return f"{model} ({' '.join(found)})"
