"""Bars count what is done and what failed, and only where a verb on a terminal asked for them."""

from __future__ import annotations

import sys

import pytest
from pymatgen.core import Lattice, Structure

from chem.convert import from_structures
from chem.io import write
from evaluation.descriptors.fingerprints import structure_fingerprints
from evaluation.inputs import gather
from evaluation.matching.uniqueness import uniqueness
from evaluation.molecules.inputs import gather_molecules
from evaluation.progress import counting, showing, watched

CELL = Lattice.from_parameters(4.1, 5.2, 6.3, 80, 95, 107)
CRYSTAL = Structure(CELL, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.4, 0.45]])
TWINS = Structure(CELL, ["Na", "Cl"], [[0, 0, 0], [0, 0, 0]])


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What stands behind the name of each bar at the end."""
    written = capsys.readouterr()
    assert not written.out
    return {line.split()[0]: line for line in written.err.splitlines() if line.strip()}


def test_reading_counts_what_failed(tmp_path, capsys):
    write([CRYSTAL] * 3, tmp_path / "a.jsonl")
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("torn\n{}\n")
    with showing(True):
        items = gather(tmp_path / "a.jsonl")
    (line,) = lines(capsys).values()
    assert len(items) == 5 and line.startswith("reading") and "5/5 2 failed" in line
    (tmp_path / "m.xyz").write_text("1\n\nH 0 0 0\n1\n\nXx y\n")
    with showing(True):
        gather_molecules(tmp_path / "m.xyz")
    assert "2/2 1 failed" in lines(capsys)["reading"]


def test_metrics_count_too(capsys):
    batch = from_structures([CRYSTAL, TWINS, CRYSTAL])
    with showing(True):
        structure_fingerprints(batch)
        uniqueness(batch, processes=0)
    found = lines(capsys)
    assert "3/3 1 failed" in found["fingerprints"] and "3/3" in found["reducing"]


def test_without_a_terminal_or_a_verb_nothing_is_written(tmp_path, capsys, monkeypatch):
    write([CRYSTAL], tmp_path / "a.jsonl")
    with showing():
        gather(tmp_path / "a.jsonl")
    gather(tmp_path / "a.jsonl")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    gather(tmp_path / "a.jsonl")
    assert capsys.readouterr() == ("", "")
    with showing():
        gather(tmp_path / "a.jsonl")
    assert "reading" in capsys.readouterr().err
    with showing(False):
        gather(tmp_path / "a.jsonl")
    assert capsys.readouterr() == ("", "")


def test_a_fault_within_a_bar_ends_it(capsys):
    with pytest.raises(ValueError, match="broken"), showing(True), counting("work", 3) as tick:
        tick(1, 0)
        raise ValueError("broken")
    assert "1/3" in lines(capsys)["work"] and list(watched(iter("ab"), "more")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
