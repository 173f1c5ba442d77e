"""Faults are injected into runs of a pipeline: every row is there exactly once, bad rows are named, nothing is lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.runs.chunks import ChunkFolder, Piece, open_chunks
from evaluation.runs.pipeline import mine, run
from tests.evaluation.faults import Squares, computed

ROWS, SIZE = 60, 8
ROOT = Path(__file__).parents[2]
RAY = pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])  # Ray takes seconds to start a worker
AWAY = pytest.mark.parametrize("engine", ["processes", RAY], indirect=True)


@pytest.fixture
def log(tmp_path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


@pytest.fixture
def folder(tmp_path) -> ChunkFolder:
    return open_chunks(tmp_path / "run", {"seed": 1}, ROWS, SIZE)


@pytest.fixture(scope="session")
def on_ray():
    """A local Ray of two workers that pretends to have a GPU."""
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    from evaluation.runs.ray_pool import ray_map

    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield ray_map
    ray.shutdown()


@pytest.fixture(params=["here", "processes", RAY])
def engine(request) -> dict:
    """Arguments of `run` for each engine."""
    if request.param == "ray":
        return {"workers": 2, "mapper": request.getfixturevalue("on_ray")}
    return {"workers": 0 if request.param == "here" else 2}


def check(folder: ChunkFolder, lost: set[int] = frozenset()) -> pa.Table:
    """Every row is there once, with its square or an error, and nothing temporary is left."""
    table = folder.read()
    assert table["row"].to_pylist() == list(range(folder.rows))
    for row, square, error in zip(*(table[c].to_pylist() for c in ("row", "square", "error")), strict=True):
        assert (square is None and bool(error)) if row in lost else (square == row**2 and error is None)
    left = [path.name for path in folder.path.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(".")]
    assert not list((folder.path / "pieces").glob("*"))
    return table


def test_every_row_once(folder, log, engine):
    told: list[int] = []
    summary = run(folder, Squares(str(log)), on_rows=told.append, **engine)
    assert summary.complete and summary.chunks == 8 and summary.bad == {} and sum(told) == ROWS
    check(folder)
    assert set(computed(log).values()) == {1}
    assert run(folder, Squares(str(log)), **engine).complete
    assert set(computed(log).values()) == {1}  # nothing twice


@AWAY
def test_workers_that_die_and_raise(tmp_path, log, engine):
    folder = open_chunks(tmp_path / "run", {"seed": 1}, 18, 4)
    step = Squares(str(log), crash=frozenset({5}), crash_once=frozenset({1}), fail=frozenset({10, 11}))
    summary = run(folder, step, **engine)
    assert summary.complete and set(summary.bad) == {1, 2}
    check(folder, {5, 10, 11})
    assert "died" in summary.bad[1]["5"]
    assert summary.bad[2] == {"10": "ZeroDivisionError: two lines", "11": "ZeroDivisionError: two lines"}
    assert set(computed(log).values()) == {1}  # a row whose call returned is not computed again


@AWAY
def test_a_worker_that_hangs_is_killed_at_its_limit(tmp_path, log, engine):
    """Chunks of two rows, tried twice, and each row alone in half the time, twice where it hangs."""
    folder = open_chunks(tmp_path / "run", {"seed": 1}, 6, 2)
    summary = run(folder, Squares(str(log), hang=frozenset({3})), seconds=3.0, **engine)
    assert summary.complete and summary.bad == {1: {"3": "not done within 1.5 s"}}
    check(folder, {3})
    assert set(computed(log).values()) == {1}


def test_the_guilty_row_is_found_here_too(folder, log):
    summary = run(folder, Squares(str(log), fail=frozenset({0, 59})), workers=0)
    check(folder, {0, 59})
    assert {n: list(rows) for n, rows in summary.bad.items()} == {0: ["0"], 7: ["59"]}
    again = run(folder, Squares(str(log)), workers=0)
    assert again == summary and set(computed(log).values()) == {1}


DRIVER = """
import sys
from evaluation.runs.chunks import open_chunks
from evaluation.runs.pipeline import run
from tests.evaluation.faults import Squares
if __name__ == "__main__":
    out, log, engine = sys.argv[1:]
    options = {"workers": 2}
    if engine == "ray":
        from evaluation.runs.ray_pool import ray_map
        options["mapper"] = ray_map
    run(open_chunks(out, {"seed": 1}, 60, 8), Squares(log, fail=frozenset({5}), nap=0.05), **options)
"""


@AWAY
def test_a_run_that_is_killed_goes_on(tmp_path, log, engine):
    out, name = tmp_path / "run", "ray" if "mapper" in engine else "processes"
    command = [sys.executable, "-c", DRIVER, str(out), str(log), name]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        wait_until(lambda: len(list(out.glob("chunk-*.parquet"))) >= 3 or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
    settled(log)
    assert not open_chunks(out, {"seed": 1}, 60, 8).done(7)
    folder = open_chunks(out, {"seed": 1}, 60, 8)
    step = Squares(str(log), fail=frozenset({5}), nap=0.05)
    assert run(folder, step, **engine).bad == {0: {"5": "ZeroDivisionError: two lines"}}
    check(folder, {5})
    assert set(computed(log).values()) == {1} and len(computed(log)) == 59
    undisturbed = open_chunks(tmp_path / "other", {"seed": 1}, 60, 8)
    (tmp_path / "log2").mkdir()
    run(undisturbed, Squares(str(tmp_path / "log2"), fail=frozenset({5})), workers=0)
    for chunk in folder.chunks:
        assert folder.file(chunk).read_bytes() == undisturbed.file(chunk).read_bytes()


def wait_until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def settled(log: Path) -> None:
    """Orphans of a killed run finish the chunk in hand and leave; wait until nothing is logged any more."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 1.0:
        if len(list(log.iterdir())) != last:
            last, since = len(list(log.iterdir())), time.monotonic()
        time.sleep(0.05)


def test_parts_of_a_job_array_in_any_order(folder, log):
    for part, done in (("2/3", 2), ("0/3", 5), ("1/3", 8)):
        summary = run(folder, Squares(str(log)), part=part, workers=0)
        assert summary.done == done and summary.complete == (done == 8)
        if not summary.complete:
            with pytest.raises(ValueError, match="^chunk 0 of .* is not done" if done == 2 else "^chunk 1 of"):
                folder.read()
    check(folder)
    assert set(computed(log).values()) == {1}
    assert sorted(n for k in range(3) for n in mine(range(8), f"{k}/3")) == list(range(8))


@pytest.mark.parametrize("part", ["3/3", "1", "a/b", "1/0", "-1/2", "/2", "1/2/3"])
def test_a_part_that_cannot_be_is_refused(part):
    with pytest.raises(ValueError, match="^part = .*allowed: k/n with k from 0 to n - 1"):
        mine(range(8), part)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_that_cannot_be_loaded_stops_the_run(folder, log, workers):
    with pytest.raises((RuntimeError, ImportError), match="the weights are missing"):
        run(folder, Squares(str(log), broken=True), workers=workers)
    assert not list(folder.path.glob("chunk-*"))


def test_a_step_that_fails_on_every_row_stops_the_run(folder, log):
    with pytest.raises(RuntimeError, match="^none of 16 rows tried alone has a result; the last: ZeroDivisionError"):
        run(folder, Squares(str(log), fail=frozenset(range(ROWS))), workers=0)


def test_a_function_that_returns_too_few_rows_is_found_out(folder, log):
    class Short(Squares):
        def rows(self, start, stop):
            return super().rows(start, stop).slice(1)

    with pytest.raises(RuntimeError, match="gave a table of 0 rows"):
        run(folder, Short(str(log)), workers=0)


def test_a_step_that_cannot_be_sent_is_refused(folder, log):
    class Local(Squares):
        pass

    with pytest.raises(ValueError, match="^step cannot be sent to workers .*; workers=0 works without"):
        run(folder, Local(str(log)), workers=1)
    assert run(folder, Local(str(log)), workers=0).complete
    assert run(folder, Local(str(log)), workers=1).complete  # nothing is left to send


def test_a_full_disk_stops_the_run_with_the_name_of_the_file(folder, log):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        with pytest.raises(OSError, match="chunk-00000000.parquet") as caught:
            run(folder, Squares(str(log)), workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "the same call goes on" in caught.value.__notes__[0]
    assert [path.name for path in folder.path.iterdir()] == ["chunks.json"]
    assert run(folder, Squares(str(log)), workers=0).complete


def test_a_torn_or_foreign_file_is_named(folder, log):
    run(folder, Squares(str(log)), workers=0)
    whole = folder.file(3).read_bytes()
    folder.file(3).write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="chunk-00000003.parquet is no whole parquet file"):
        run(folder, Squares(str(log)), workers=0)
    folder.file(3).write_bytes(folder.file(2).read_bytes())
    with pytest.raises(ValueError, match="chunk-00000003.parquet does not hold rows 24 to 31"):
        folder.read()
    folder.file(3).write_bytes(b"\0" * 50 + b"PAR1")
    with pytest.raises(ValueError, match="chunk-00000003.parquet cannot be read"):
        folder.read()
    folder.file(3).unlink()
    run(folder, Squares(str(log)), workers=0)
    assert folder.file(3).read_bytes() == whole


def test_a_folder_of_another_request_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds results made with seed = 1, asked 2; size = 8, asked 9; choose"):
        open_chunks(folder.path, {"seed": 2}, ROWS, 9)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no chunks.json"):
        open_chunks(tmp_path / "mine", {}, ROWS, SIZE)
    with pytest.raises(ValueError, match="^size = 0, allowed: at least 1"):
        open_chunks(tmp_path / "new", {}, ROWS, 0)


def test_pieces_and_gaps(folder):
    def table(rows: int) -> pa.Table:
        return pa.table({"square": [0.0] * rows})

    assert folder.missing(7) == [Piece(7, 56, 60)] and folder.chunks == range(8)
    assert Piece(0, 0, 7).halves() == (Piece(0, 0, 3), Piece(0, 3, 7))
    folder.write(Piece(0, 2, 4), table(2))
    folder.write(Piece(0, 5, 6), table(1))
    assert folder.missing(0) == [Piece(0, 0, 2), Piece(0, 4, 5), Piece(0, 6, 8)] and not folder.join(0)
    for gap in folder.missing(0):
        folder.write(gap, table(len(gap)))
    assert folder.join(0) and folder.done(0) and not list((folder.path / "pieces").glob("*"))
    assert pq.read_table(folder.file(0))["row"].to_pylist() == list(range(8))


def test_a_query_over_the_chunks_finds_every_row(folder, log):
    duckdb = pytest.importorskip("duckdb", reason="needs the extra 'campaign'")
    run(folder, Squares(str(log), fail=frozenset({7})), workers=0)
    query = (
        f"select count(*), count(distinct row), sum(square) from read_parquet('{folder.pattern}', union_by_name=true)"
    )
    assert duckdb.sql(query).fetchall()[0] == (ROWS, ROWS, sum(row**2 for row in range(ROWS)) - 49)


@pytest.mark.ray
@pytest.mark.slow
def test_no_more_actors_than_a_gpu_has_room_for(on_ray):
    """Four shares of a pretended GPU and two cores: two actors at most, and results in the order of the items."""
    started = time.monotonic()
    found = list(on_ray(_pid_after_a_nap, range(6), 60.0, processes=4, gpus=0.5))
    assert [item for item, _ in found] == list(range(6)) and 1 <= len({pid for _, pid in found}) <= 2
    assert time.monotonic() - started < 60


def _pid_after_a_nap(item: int) -> tuple[int, int]:
    time.sleep(0.1)
    return item, os.getpid()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_that_cannot_start_stop_the_run(on_ray):
    with pytest.raises(RuntimeError, match="workers cannot start .*a library is missing"):
        list(on_ray(_pid_after_a_nap, range(2), 60.0, processes=1, start=_cannot_start))


def _cannot_start() -> None:
    raise ImportError("a library is missing")
