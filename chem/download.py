"""Downloads that are complete and verified, or absent.

A file arrives under a temporary name, is checked, and is renamed. An interrupted download goes on where it stopped, if
the server supports ranges and its file is still the same. A source whose sha256 is not given is trusted once: the hash
is written beside the file as NAME.sha256.json and every later download from that address must agree with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BLOCK = 1 << 20
TIMEOUT = 30.0  # seconds without any byte


class DownloadError(ValueError):
    """A download that failed or did not pass its check; the message names the address and the reason."""


def fetch(url: str, destination: str | Path, sha256: str | None = None, timeout: float = TIMEOUT) -> Path:
    """Download `url` (http or https) to the file `destination` and return its path.

    With sha256 the content must have that hash; without it, the hash recorded at the first download, if there is one.
    A file that is there and has the right hash is kept and nothing is downloaded. timeout is in seconds without data.
    Raises DownloadError; the destination is then as it was before.
    """
    destination = Path(destination).expanduser()
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"url '{url}': only http and https are allowed")
    expected = _expected(url, destination, sha256)
    if expected and destination.is_file() and file_sha256(destination) == expected:
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{hashlib.sha256(url.encode()).hexdigest()[:12]}.part")
    _download(url, part, timeout)
    got = file_sha256(part)
    if expected and got != expected:
        part.unlink()
        part.with_suffix(".tag").unlink(missing_ok=True)
        source = "given" if sha256 else f"recorded at the first download in {record_path(destination).name}"
        raise DownloadError(f"{url}: sha256 is {got}, but {expected} was {source}")
    size = part.stat().st_size
    os.replace(part, destination)
    part.with_suffix(".tag").unlink(missing_ok=True)
    _write_json(record_path(destination), {"url": url, "sha256": got, "bytes": size})
    return destination


def record_path(destination: str | Path) -> Path:
    """Where the hash of a downloaded file is recorded: NAME.sha256.json beside it."""
    destination = Path(destination)
    return destination.with_name(destination.name + ".sha256.json")


def file_sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expected(url: str, destination: Path, sha256: str | None) -> str | None:
    if sha256 is not None:
        if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
            raise DownloadError(f"sha256 must be 64 hexadecimal digits, got '{sha256}'")
        return sha256.lower()
    record = record_path(destination)
    if not record.is_file():
        return None
    try:
        known = json.loads(record.read_text())
        return known["sha256"] if known["url"] == url else None
    except (ValueError, KeyError, TypeError):
        raise DownloadError(f"{record} is not a record of a download; remove it to trust {url} again") from None


def _download(url: str, part: Path, timeout: float) -> None:
    """Bring `part` to the full content of `url`, going on from what is there when the server agrees that it fits."""
    tag_file = part.with_suffix(".tag")
    start = part.stat().st_size if part.is_file() else 0
    tag = tag_file.read_text() if tag_file.is_file() else ""
    headers = {"User-Agent": "atomsmith", "Accept-Encoding": "identity"}
    if start and tag:  # If-Range: the rest if the file is unchanged, else all of it
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            resumed = response.status == 206 and _starts_at(response, start)
            if response.status == 206 and not resumed:
                part.unlink(missing_ok=True)
                raise DownloadError(f"{url}: the server sent another range than asked for; try again")
            tag_file.write_text(_tag(response))
            _receive(response, part, url, start if resumed else 0)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left of the range: the part is whole or of another version
            part.unlink()
            return _download(url, part, timeout)
        raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from None
    except TimeoutError:
        raise DownloadError(f"{url}: no data for {timeout:g} s; call again to go on") from None
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: {error.reason}") from None
    except (HTTPException, ConnectionError) as error:
        raise DownloadError(f"{url}: connection lost ({type(error).__name__}); call again to go on") from None


def _receive(response: HTTPResponse, part: Path, url: str, start: int) -> None:
    length = response.headers.get("Content-Length")
    received = start
    with open(part, "ab" if start else "wb") as file:
        while block := response.read(BLOCK):
            file.write(block)
            received += len(block)
    if part.stat().st_size != received:
        raise DownloadError(f"{url}: another process is writing {part}; wait for it")
    if length is not None and received != start + int(length):
        raise DownloadError(f"{url}: got {received} of {start + int(length)} bytes; call again to go on")


def _starts_at(response: HTTPResponse, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _tag(response: HTTPResponse) -> str:
    """What identifies this version of the file in an If-Range header; weak tags are not allowed there."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
