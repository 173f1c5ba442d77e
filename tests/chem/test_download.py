"""Downloads against a local server: whole, cut off, wrong, changed, resumed."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from chem.datasets import load
from chem.download import DownloadError, fetch, file_sha256, record_path
from chem.prepare import prepare

CONTENT = bytes(range(256)) * 400


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`; stops after `server.cut` bytes; honours Range and If-Range when `server.ranges`."""

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        tag = f'"{hashlib.sha256(server.content).hexdigest()[:8]}"'
        start, wanted = 0, self.headers.get("Range")
        if server.ranges and wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        if self.path == "/gone" or start >= len(server.content):
            self.send_error(404 if self.path == "/gone" else 416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", tag)
        self.end_headers()
        if self.path == "/slow":
            server.released.wait(10)
        self.wfile.write(body[: server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.cut, server.ranges, server.requests = CONTENT, None, True, []  # type: ignore[attr-defined]
    server.released = threading.Event()  # type: ignore[attr-defined]
    server.url = f"http://127.0.0.1:{server.server_port}/data.csv"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_whole_file_is_recorded_and_not_fetched_twice(server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path / "deep" / "data.csv")
    assert path.read_bytes() == CONTENT and leftovers(path.parent) == []
    record = json.loads(record_path(path).read_text())
    assert record == {"url": server.url, "sha256": hashlib.sha256(CONTENT).hexdigest(), "bytes": len(CONTENT)}
    fetch(server.url, path)
    assert len(server.requests) == 1


def test_given_hash_is_checked(server, tmp_path: Path) -> None:
    right = hashlib.sha256(CONTENT).hexdigest()
    assert file_sha256(fetch(server.url, tmp_path / "a", sha256=right.upper())) == right
    with pytest.raises(DownloadError, match=f"sha256 is {right}, but {'0' * 64} was given"):
        fetch(server.url, tmp_path / "b", sha256="0" * 64)
    assert not (tmp_path / "b").exists() and leftovers(tmp_path) == []
    with pytest.raises(DownloadError, match="64 hexadecimal digits, got 'abc'"):
        fetch(server.url, tmp_path / "b", sha256="abc")


def test_content_that_changed_since_it_was_recorded_is_refused(server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path / "data")
    path.unlink()
    server.content = b"something else"
    with pytest.raises(DownloadError, match="recorded at the first download in data.sha256.json"):
        fetch(server.url, path)
    assert not path.exists()
    server.content = CONTENT
    assert fetch(server.url, path).read_bytes() == CONTENT


def test_damaged_file_is_fetched_again(server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path / "data")
    path.write_bytes(b"damaged")
    assert fetch(server.url, path).read_bytes() == CONTENT


def test_cut_off_download_goes_on_where_it_stopped(server, tmp_path: Path) -> None:
    server.cut = 30_000
    with pytest.raises(DownloadError, match=f"got 30000 of {len(CONTENT)} bytes"):
        fetch(server.url, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    server.cut = None
    assert fetch(server.url, tmp_path / "data").read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=30000-" and leftovers(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_resume_starts_over_when_the_file_changed_or_ranges_are_not_known(server, tmp_path: Path, ranges: bool) -> None:
    server.cut, server.ranges = 30_000, ranges
    with pytest.raises(DownloadError, match="call again"):
        fetch(server.url, tmp_path / "data")
    server.cut, server.content = None, CONTENT[::-1] if ranges else CONTENT
    assert fetch(server.url, tmp_path / "data").read_bytes() == server.content


def test_part_that_was_whole_already(server, tmp_path: Path) -> None:
    server.cut = 30_000
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "data")
    next(tmp_path.glob(".*.part")).write_bytes(CONTENT)  # died between the last byte and the renaming
    server.cut = None
    assert fetch(server.url, tmp_path / "data").read_bytes() == CONTENT


def test_errors_name_the_address(server, tmp_path: Path) -> None:
    gone = server.url.replace("data.csv", "gone")
    with pytest.raises(DownloadError, match=f"{gone}: the server answered 404"):
        fetch(gone, tmp_path / "data")
    with pytest.raises(DownloadError, match="no data for 0.2 s"):
        fetch(server.url.replace("data.csv", "slow"), tmp_path / "data", timeout=0.2)
    with pytest.raises(DownloadError, match="only http and https are allowed"):
        fetch("file:///etc/hostname", tmp_path / "data")
    with pytest.raises(DownloadError, match="127.0.0.1:9"):
        fetch("http://127.0.0.1:9/x", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_prepare_takes_the_address_of_a_table(server, tmp_path: Path) -> None:
    text = Structure(Lattice.cubic(3), ["Na"], [[0, 0, 0]]).to(fmt="cif")
    quoted = '"' + text.replace('"', '""') + '"'
    server.content = ("material_id,cif\n" + "".join(f"r{i},{quoted}\n" for i in range(5))).encode()
    report = prepare(server.url, tmp_path, "remote", split=(0.6, 0.2, 0.2))
    assert report.splits == {"train": 3, "val": 1, "test": 1}
    assert len(load(report.folder, "train")) == 3
    with pytest.raises(ValueError, match="must end in .csv"):
        prepare(server.url.replace("data.csv", "page"), tmp_path, "other")
