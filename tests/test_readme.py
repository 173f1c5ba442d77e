"""Every code block of the README runs, in order, and so does the tutorial."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from rdkit import Chem

import atomsmith

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_python_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATOMSMITH_DATA", str(tmp_path))
    space: dict = {}
    blocks = [code for language, code in BLOCKS if language == "python"]
    for code in blocks:
        exec(compile(code, "README.md", "exec"), space)
    assert len(blocks) == 5
    assert len(list((tmp_path / "srtio3" / "cif").glob("*.cif"))) == 2
    assert len(Chem.SDMolSupplier(str(tmp_path / "molecules" / "samples.sdf"), sanitize=False)) == 4
    assert "diffcsp-mp20-csp" in capsys.readouterr().out


def test_console_blocks_name_targets_that_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for language, code in BLOCKS if language == "console" for line in code.splitlines()]
    assert {line.split()[1] for line in lines} == {"demo", "test"} <= targets


def test_the_shell_line_is_a_valid_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    line = re.search(r"`(atomsmith sample [^`]+)`", (ROOT / "README.md").read_text())
    assert line is not None
    words = [*shlex.split(line.group(1))[1:], "--steps", "2"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(atomsmith.app, words)
    assert result.exit_code == 0, result.output
    assert "2 samples in srtio3" in result.output


def test_the_picture_is_drawn(tmp_path):
    from docs import gallery

    gallery.main(["--out", str(tmp_path / "gallery.png"), "--steps", "2"])
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_tutorial(capsys):
    code = (ROOT / "docs" / "tutorial.py").read_text()
    exec(compile(code, "docs/tutorial.py", "exec"), {"__name__": "__main__"})
    assert "to train on" in capsys.readouterr().out
