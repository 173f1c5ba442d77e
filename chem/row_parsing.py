"""Rows of a table parsed by pymatgen and reduced to their Niggli cells, on all cores.

The work is done by separate python processes that never import torch. A process that dies takes no row with it: its
chunk is halved until the culprit is alone, and that row is reported as failed.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.convert import site_arrays, wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

CHUNK = 4000  # most rows of one process: its start costs as much as parsing 500
ROW_SECONDS = 60  # a row that takes longer is a failure
SERIAL_BELOW = 200  # fewer rows are not worth the start of a process
Row = tuple["NDArray", "NDArray", "NDArray"] | str  # numbers, frac_coords, lattice; or the reason of a failure


def reduced_arrays(structure: Structure, niggli: bool = True) -> tuple[NDArray, NDArray, NDArray]:
    """atomic_numbers (N,), frac_coords (N, 3), right-handed lattice (3, 3) of the Niggli cell, in any orientation.

    Raises ValueError for disordered sites, no atoms, and cells that are not finite or have no volume.
    """
    if len(structure) == 0:
        raise ValueError("no atoms")
    matrix = structure.lattice.matrix
    if not (np.isfinite(matrix).all() and np.isfinite(structure.frac_coords).all()):
        raise ValueError("cell or coordinates are not finite")
    if structure.volume < 1e-3 * len(structure):
        raise ValueError(f"cell of {structure.volume:.3g} cubic ångström for {len(structure)} atoms")
    if niggli:
        structure = structure.get_reduced_structure(reduction_algo="niggli")
    numbers, frac = site_arrays(structure)
    matrix = np.array(structure.lattice.matrix)
    if np.linalg.det(matrix) < 0:  # inverting basis and coordinates changes neither crystal nor cell parameters
        matrix, frac = -matrix, wrap(-frac)
    return numbers.astype(np.uint8), frac, matrix


def parse(text: str) -> Structure:
    """The structure of a CIF or POSCAR text, by pymatgen, as it stands (no primitive cell); raises ValueError."""
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser

    if not isinstance(text, str) or not text.strip():
        raise ValueError("empty text")
    if re.search(r"^\s*(data_|_cell_length_a)", text, re.MULTILINE) is None:
        return Structure.from_str(text, fmt="poscar")
    return CifParser.from_str(text).parse_structures(primitive=False)[0]


def pack_rows(texts: Sequence[str | Structure], niggli: bool = True, processes: int | None = None) -> list[Row]:
    """Every text (CIF or POSCAR) or structure as (numbers, frac_coords, lattice), or the reason it failed; in order."""
    processes = processes or _cores()
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if processes == 1 or len(texts) < SERIAL_BELOW:
        return [_row(text, niggli) for text in texts]
    rounds = math.ceil(len(texts) / (processes * CHUNK))
    size = math.ceil(len(texts) / (processes * rounds))  # equal chunks, so that all processes end together
    chunks = [list(texts[i : i + size]) for i in range(0, len(texts), size)]
    running = _Running()
    with ThreadPoolExecutor(processes) as pool:  # each thread waits for one process
        parts = [pool.submit(_in_process, chunk, niggli, running) for chunk in chunks]
        try:
            return [row for part in parts for row in part.result()]
        except BaseException:  # above all Ctrl-C, which must not wait for the rest
            running.stop()
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _row(text: str | Structure, niggli: bool) -> Row:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reduced_arrays(parse(text) if isinstance(text, str) or text is None else text, niggli)
    except Exception as error:  # whatever a parser raises on foreign text is the reason of this row alone
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _Running:
    """The processes at work, which an interruption ends all together."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._processes: set[subprocess.Popen] = set()

    def run(self, code: str, data: bytes, environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess:
        """Run python code that reads `data`; raises TimeoutExpired, and CancelledError after `stop`."""
        command = [sys.executable, "-c", code]
        with self._lock:
            if self._stopped:
                raise CancelledError
            process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
            self._processes.add(process)
        with process:
            try:
                out, err = process.communicate(data, seconds)
            finally:
                process.kill()  # nothing where it has ended
                self._processes.discard(process)
        if self._stopped:
            raise CancelledError
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def stop(self) -> None:
        """End all, and let none begin."""
        with self._lock:
            self._stopped = True
        for process in list(self._processes):
            process.kill()


def _in_process(texts: list, niggli: bool, running: _Running) -> list[Row]:
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}
    try:
        seconds = 120 + 2 * ROW_SECONDS + len(texts)
        code = "from chem.row_parsing import _serve; _serve()"
        done = running.run(code, pickle.dumps((texts, niggli)), environment, seconds)
        reason = f"the process that parsed it died with exit code {done.returncode}"
        if done.returncode == 0:
            return pickle.loads(done.stdout)  # written by our own process
        if not texts:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [reason]
            raise RuntimeError(f"a parsing process cannot start: {lines[-1]}; processes=1 parses in this one")
        _in_process([], niggli, running)  # if even that dies, the rows are not to blame
    except subprocess.TimeoutExpired as error:
        reason = f"not parsed within {error.timeout:.0f} s"
    if len(texts) == 1:
        return [reason]
    half = len(texts) // 2
    return _in_process(texts[:half], niggli, running) + _in_process(texts[half:], niggli, running)


def _serve() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # a parser that prints must not spoil the answer
    texts, niggli = pickle.load(sys.stdin.buffer)
    out.buffer.write(pickle.dumps([_row_in_time(text, niggli) for text in texts]))


def _row_in_time(text: str | Structure, niggli: bool) -> Row:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not parsed within {ROW_SECONDS} s")

    if not hasattr(signal, "SIGALRM"):
        return _row(text, niggli)
    signal.signal(signal.SIGALRM, late)
    signal.alarm(ROW_SECONDS)
    try:
        return _row(text, niggli)
    finally:
        signal.alarm(0)
