"""Ctrl-C and a full disk: one line that says what was kept, nothing half written, and the same call goes on.

Ctrl-C is a real SIGINT to the process group of a real command. The full disk is every file that Python opens for
writing: it takes so many bytes, the last of them in mid-record, and then no more.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pymatgen.core import Lattice, Structure

import atomsmith
import checkpoints
from chem.io import Writer, read, write
from chem.molecule_files import read_molecules
from chem.prepare import prepare
from chem.row_parsing import pack_rows
from generative.callbacks import check, newest
from tests.commands import cli

GOOD = Structure(Lattice.from_parameters(4.1, 5.2, 6.3, 80, 95, 107), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.4, 0.45]])
TINY = dict(hidden=8, layers=1, frequencies=2)


class _Full(io.FileIO):
    """A file on a disk with `left` bytes of room for all files together."""

    left = 0

    def write(self, data) -> int:  # type: ignore[override, no-untyped-def]
        data = memoryview(data).cast("B")[: _Full.left]
        if not len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        _Full.left -= len(data)
        return super().write(data) or 0


@contextmanager
def disk(room: int) -> Iterator[None]:
    """Within, only `room` bytes more can be written."""
    real = io.open

    def limited(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **more):
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real(file, mode, buffering, encoding, errors, newline, *rest, **more)
        raw = _Full(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    _Full.left = room
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", limited)
        patch.setattr(io, "open", limited)
        yield


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder of samples but the manifest, which holds times, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.mark.parametrize("room", [0, 300, 600, 1500, 2200, 4000, 6500])
def test_a_full_disk_while_sampling(tiny_csp, tmp_path, room):
    arguments = dict(n=4, formula="CaTiO3", steps=2, seed=3)
    atomsmith.sample(tiny_csp, out=tmp_path / "whole", **arguments)
    with disk(room), pytest.raises(OSError, match="No space left on device") as caught:
        atomsmith.sample(tiny_csp, out=tmp_path / "o", **arguments)
    assert caught.value.errno == errno.ENOSPC and str(tmp_path / "o") in str(caught.value.filename)
    assert [path for path in (tmp_path / "o").rglob(".*")] == []
    for file in ("samples.jsonl", "samples.extxyz"):
        if (tmp_path / "o" / file).exists() and (tmp_path / "o" / file).stat().st_size:
            assert all(record.error is None for record in read(tmp_path / "o" / file))
    if room > 300:  # the first manifest was written
        kept = len((tmp_path / "o" / "samples.jsonl").read_text().splitlines())
        assert caught.value.__notes__ == [f"{kept} of 4 samples are in '{tmp_path / 'o'}'; the same call continues"]
    assert len(atomsmith.sample(tiny_csp, out=tmp_path / "o", **arguments)) == 4
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")


def test_a_full_disk_on_the_command_line(tiny_csp, tmp_path, monkeypatch, capsys):
    words = ["sample", tiny_csp, "-n", 4, "--formula", "NaCl", "--steps", 2, "--out", tmp_path / "o"]
    with disk(2500):
        done = cli(words, monkeypatch, capsys)
    assert done.code == 1 and done.err.count("\n") == 1 and done.err.startswith("atomsmith: No space left on device: ")
    assert "of 4 samples are in" in done.err and done.err.endswith("the same call continues\n")
    assert cli(words, monkeypatch, capsys).code == 0


@pytest.mark.parametrize("room", [0, 300])
def test_a_full_disk_while_scoring_leaves_the_report_before(tmp_path, room):
    atomsmith.evaluate([GOOD], protocol="cdvae-2022", out=tmp_path / "o")
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    for folder, wanted in (("o", before), ("new", {})):
        with disk(room), pytest.raises(OSError, match="No space left on device") as caught:
            atomsmith.evaluate([GOOD, GOOD], protocol="cdvae-2022", out=tmp_path / folder)
        assert caught.value.__notes__ == ["no report was written; the same call begins again"]
        assert {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} == wanted


@pytest.mark.parametrize("room", [0, 1000, 1900])
def test_a_full_disk_while_preparing(tmp_path, room):
    write([GOOD] * 10, tmp_path / "source.jsonl")
    with disk(room), pytest.raises(OSError, match="No space left on device") as caught:
        prepare(tmp_path / "source.jsonl", tmp_path, "set")
    assert "was not made; the same call begins again" in caught.value.__notes__[0]
    assert not (tmp_path / "set" / "splits.json").exists() and list((tmp_path / "set").glob(".*")) == []
    assert prepare(tmp_path / "source.jsonl", tmp_path, "set").num_structures == 10


def test_a_full_disk_while_training(tmp_path):
    arguments = ("diffcsp-csp", "prototypes", tmp_path / "run")
    with disk(30_000), pytest.raises(OSError, match="No space left on device") as caught:
        atomsmith.train(*arguments, epochs=2, **TINY)
    assert str(tmp_path / "run") in str(caught.value) and "\n" not in str(caught.value)
    left = [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".part"]
    assert left == []
    best = atomsmith.train(*arguments, epochs=2, resume=True, **TINY)
    assert atomsmith.load(best, "cpu").training["settings"]["epochs"] == 2


def test_a_full_disk_leaves_the_weights_before(tiny_csp, tmp_path):
    best = Path(shutil.copytree(tiny_csp, tmp_path / "best"))
    loaded = checkpoints.load(best, "cpu")
    state = {name: value + 1 for name, value in loaded.model.state_dict().items()}
    for room in (0, 2000, 15_000):
        with disk(room), pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(best, loaded.kind, loaded.config, loaded.statistics, state, dtype=torch.float32)
        assert checkpoints.load(best, "cpu").sha256 == loaded.sha256 and list(best.glob(".*")) == []


@pytest.mark.parametrize("suffix", ["jsonl", "extxyz", "csv", "cif"])
def test_a_record_is_whole_or_absent(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with Writer(path) as writer:
        for room, error in ((10, OSError), (10**6, None), (100, OSError), (10**6, None)):
            _limit(writer, room)
            if error is None:
                writer.write(GOOD)
            else:
                with pytest.raises(error, match="No space left on device"):
                    writer.write(GOOD)
        assert writer.count == 2
    assert [record.error for record in read(path)] == [None, None]


def _limit(writer: Writer, room: int) -> None:
    """Put the open file of a writer on a disk with so much room."""
    sink = writer._sink
    place = sink._file.name  # type: ignore[attr-defined]
    sink._file.close()  # type: ignore[attr-defined]
    _Full.left = room
    sink._file = _Full(place, "a")  # type: ignore[attr-defined]


@contextmanager
def command(words: list, folder: Path) -> Iterator[subprocess.Popen]:
    """A real command in a process group of its own, as a terminal starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "atomsmith", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(atomsmith.__file__).parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen, when: Callable[[], bool], limit: float = 120) -> tuple[int, str]:
    """Ctrl-C as soon as `when` says so: exit code and stderr."""
    end = time.monotonic() + limit
    while not when():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_within_exec_has_the_exit_code_of_any_other():
    """Imports run strings; CPython notes that one was interrupted and ends by the signal, whoever caught it."""
    said = "atomsmith.models = lambda: exec('raise KeyboardInterrupt'); sys.argv = ['atomsmith', 'models']"
    code = f"import sys, atomsmith; {said}; atomsmith.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("atomsmith: interrupted") and done.stderr.count("\n") == 1


def test_ctrl_c_while_sampling(tiny_csp, tmp_path):
    record = tmp_path / "o" / "samples.jsonl"
    sizes = ["-n", 6400, "--formula", "CaTiO3", "--steps", 20, "--batch-size", 16]
    with command(["sample", tiny_csp, *sizes, "--out", "o"], tmp_path) as process:
        code, err = interrupt(process, lambda: record.exists() and record.stat().st_size > 0)
    kept = record.read_text()
    count = len(kept.splitlines())
    assert code == 1 and 0 < count < 6400, err
    assert err == f"atomsmith: interrupted; {count} of 6400 samples are in 'o'; the same call continues\n"
    assert list((tmp_path / "o").rglob(".*")) == []
    made = atomsmith.sample(tiny_csp, count + 5, formula="CaTiO3", steps=20, batch_size=16, out=tmp_path / "o")
    assert len(made) == count + 5 and record.read_text().startswith(kept)
    assert len(list((tmp_path / "o" / "cif").glob("*.cif"))) == count + 5
    assert sum(1 for _ in read(tmp_path / "o" / "samples.extxyz")) == count + 5


def test_ctrl_c_while_sampling_molecules(tiny_geobfn, tmp_path):
    """Also while bonds are perceived: no process is left, and every file holds the same samples."""
    record = tmp_path / "o" / "samples.jsonl"
    sizes = ["-n", 6400, "--num-atoms", 5, "--steps", 20, "--batch-size", 16]
    with command(["sample", tiny_geobfn, *sizes, "--out", "o"], tmp_path) as process:
        code, err = interrupt(process, lambda: record.exists() and record.stat().st_size > 0)
        end = time.monotonic() + 10
        while _children(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        workers = _children(process.pid)
    kept = record.read_text()
    count = len(kept.splitlines())
    assert code == 1 and 0 < count < 6400 and workers == []
    assert err == f"atomsmith: interrupted; {count} of 6400 samples are in 'o'; the same call continues\n"
    made = atomsmith.sample(tiny_geobfn, count + 5, num_atoms=5, steps=20, batch_size=16, out=tmp_path / "o")
    assert len(made) == count + 5 and record.read_text().startswith(kept)
    for name in ("sdf", "extxyz"):
        assert sum(1 for _ in read_molecules(tmp_path / "o" / f"samples.{name}")) == count + 5


def test_ctrl_c_while_training(tmp_path):
    sizes = ["--epochs", 1000, "--hidden", 8, "--layers", 1, "--frequencies", 2, "--threads", 1]
    words = ["train", "diffcsp-csp", "prototypes", "--out", "run", *sizes]
    with command(words, tmp_path) as process:
        code, err = interrupt(process, lambda: (tmp_path / "run" / "best" / "sha256.json").exists())
    saved = newest(tmp_path / "run")
    assert saved is not None and [path.name for path in saved.parent.iterdir()] == [saved.name]
    step = saved.stem.removeprefix("step=")
    assert code == 1
    assert err == f"atomsmith: interrupted; step {step} is saved in 'run'; the same call with resume continues\n"
    check(saved)
    assert len(atomsmith.load(tmp_path / "run", "cpu").sha256) == 64


def test_ctrl_c_while_scoring(tmp_path):
    words = ["evaluate", "baseline:random", "--reference", "prototypes:train", "--k", 200, "--processes", 2]
    with command([*words, "--out", "o"], tmp_path) as process:
        code, err = interrupt(process, lambda: len(_children(process.pid)) >= 3)  # two workers and their tracker
        end = time.monotonic() + 10
        while _children(process.pid) and time.monotonic() < end:  # the tracker ends a moment after its parent
            time.sleep(0.05)
        workers = _children(process.pid)
    assert (code, err) == (1, "atomsmith: interrupted; no report was written; the same call begins again\n")
    assert list((tmp_path / "o").iterdir()) == [] and workers == []


def _children(pid: int) -> list[int]:
    """Processes in the group of a process, itself left out."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and int(place.parent.name) != pid and fields[0] != "Z":
            found.append(int(place.parent.name))
    return found


def test_ctrl_c_in_python_while_training_is_keyboard_interrupt(tmp_path, monkeypatch):
    """Lightning would end the interpreter, and leave SIGINT ignored."""
    from generative.training import Training

    step = Training.training_step

    def strike(self, batch, batch_idx):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", strike)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        atomsmith.train("diffcsp-csp", "prototypes", tmp_path / "run", epochs=4, batch_size=16, **TINY)
    assert signal.getsignal(signal.SIGINT) is before
    assert "step 2 is saved" in caught.value.__notes__[0]


def test_ctrl_c_in_python_while_sampling(tiny_csp, tmp_path, monkeypatch):
    from generative.generator import Denoiser

    trajectory, calls = Denoiser.trajectory, []

    def strike(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trajectory(self, *args, **options)

    monkeypatch.setattr(Denoiser, "trajectory", strike)
    arguments = dict(n=40, formula="NaCl", steps=2, batch_size=16, out=tmp_path / "o")
    with pytest.raises(KeyboardInterrupt) as caught:
        atomsmith.sample(tiny_csp, **arguments)
    assert caught.value.__notes__ == [f"16 of 40 samples are in '{tmp_path / 'o'}'; the same call continues"]
    assert len(atomsmith.sample(tiny_csp, **arguments)) == 40


def test_ctrl_c_while_parsing_does_not_wait_for_the_rest():
    texts = [GOOD.to(fmt="cif")] * 8000
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    before = set(_children(os.getpgrp()))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pack_rows(texts, processes=2)
    assert time.monotonic() - started < 8
    assert set(_children(os.getpgrp())) <= before | {os.getpid()}
