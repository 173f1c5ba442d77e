"""The command line called in this process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

import atomsmith


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code, and what it wrote."""

    code: int
    out: str
    err: str


def cli(words: Iterable[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Done:
    """Call `atomsmith WORDS`."""
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["atomsmith", *map(str, words)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command line changes
        try:
            atomsmith.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    written = capsys.readouterr()
    return Done(code, written.out, written.err)
