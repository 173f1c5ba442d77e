"""Bad input: one line on stderr that names the argument, exit code 2, and nothing half made.

The command line is called in this process; `tests/test_interrupted.py` has the real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import atomsmith
from chem.io import write
from tests.commands import cli

TRICLINIC = Lattice.from_parameters(4.1, 5.2, 6.3, 80, 95, 107)
GOOD = Structure(TRICLINIC, ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.4, 0.45]])
FRAME = '1\nLattice="{}" Properties=species:S:1:pos:R:3 pbc="T T T"\nNa {} 0 0\n'
CIF = GOOD.to(fmt="cif")
TINY = ("--hidden", 8, "--layers", 1, "--frequencies", 2, "--epochs", 1)

FILES: dict[str, tuple[str | bytes, str]] = {
    "empty.cif": ("", "no structure"),
    "truncated.cif": (CIF[: len(CIF) * 2 // 3], "ZeroDivisionError"),
    "letter.cif": ("Dear reader,\nno crystals today.\n", "no structure"),
    "binary.cif": (bytes(range(256)) * 4, "no structure"),
    "partial.cif": (Structure(TRICLINIC, [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]).to(fmt="cif"), "partial occupancy"),
    "empty.extxyz": ("", "no structure"),
    "truncated.extxyz": (FRAME.format("4 0 0 1 5 0 1 2 6", 0).replace("1\n", "4\n", 1), "4 atoms announced, 1 found"),
    "nan.extxyz": (FRAME.format("4 0 0 1 5 0 1 2 6", "nan"), "not a finite number"),
    "flat.extxyz": (FRAME.format("4 0 0 0 5 0 4 5 0", 0), "volume 0"),
    "empty.jsonl": ("", "no structure"),
    "broken.jsonl": ("{]\n", "enclosed in double quotes"),
    "flat.jsonl": (json.dumps({"lattice": {"matrix": [[1, 0, 0]] * 3}, "sites": []}) + "\n", ""),
    "empty.csv": ("", ""),
    "no_column.csv": ("a,b\n1,2\n", "no column cif or poscar"),
    "truncated.csv": ('id,cif\na,"data_x\n_cell', ""),
    "letter.parquet": ("Dear reader", "parquet"),
    "POSCAR": ("", "Empty POSCAR"),
    "truncated.vasp": ("NaCl\n1\n", "IndexError"),
    "thesis.txt": ("mine", "cannot tell the format"),
}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampel"], "No such command 'sampel'"),
        (["sample", "{csp}", "-n", 1, "--out", "o", "--sped", 2], "No such option: --sped"),
        (["sample", "{csp}", "--out", "o"], "Missing option '-n'"),
        (["sample", "{csp}", "-n", "many", "--out", "o"], "Invalid value for '-n'"),
        (["sample", "no-such-model", "-n", 1, "--out", "o"], "'no-such-model'"),
        (["sample", "{csp}", "-n", 1, "--out", "o", "--formula", "XyO2"], "formula names 'Xy', which is no element"),
        (["sample", "{csp}", "-n", 1, "--out", "o", "--formula", ""], "formula = ''"),
        (["sample", "{csp}", "-n", 1, "--out", "o", "--formula", "NaCl", "--z", 0], "z = 0"),
        (["sample", "{abi}", "-n", 1, "--out", "o", "--elements", "Li,Xx"], "'Xx', which is no element"),
        (["sample", "{abi}", "-n", 1, "--out", "o", "--num-atoms", "0"], "num_atoms"),
        (["sample", "{csp}", "-n", 1, "--out", "o", "--formula", "NaCl", "--device", "cuda:99"], "'cuda:99'"),
        (["sample", "{csp}", "-n", 1, "--out", "o", "--formula", "NaCl", "--device", "meta"], "'meta'"),
        (["sample", "{csp}", "-n", 1, "--out", "here/o", "--formula", "NaCl"], "here is a file"),
        (["train", "diffcsp", "prototypes", "--out", "o"], "model = 'diffcsp'"),
        (["train", "diffcsp-csp", "mp21", "--out", "o"], "'mp21'"),
        (["train", "diffcsp-csp", "prototypes", "--out", "o", "--preset", "huge"], "preset = 'huge'"),
        (["train", "diffcsp-csp", "prototypes", "--out", "o", "--devices", "two"], "devices = 'two'"),
        (["train", "diffcsp-csp", "prototypes", "--out", "here", *TINY], "here is a file"),
        (["evaluate", "good.cif", "--protocol", "best"], "protocol = 'best', allowed: diffcsp-csp"),
        (["evaluate", "good.cif", "--reference", "mp21"], "reference = 'mp21'"),
        (["evaluate", "good.cif", "--reference", "prototypes:vla"], "reference = 'prototypes:vla'"),
        (["evaluate", "missing.cif", "--protocol", "cdvae-2022"], "missing.cif"),
        (["evaluate", "empty", "--protocol", "cdvae-2022"], "folder empty has no file"),
        (["evaluate", "good.cif", "--protocol", "cdvae-2022", "--out", "here"], "out = 'here'"),
        (["prepare", "missing.cif", "--name", "o"], "missing.cif"),
        (["prepare", "good.cif", "--name", "a/b"], "name"),
        (["prepare", "good.cif", "--name", "o", "--out", "here"], "here is a file"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value.split(",")[0],
)
def test_a_mistake_on_the_command_line(words, message, tiny_csp, tiny_ab_initio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "good.cif").write_text(CIF)
    done = cli([str(word).format(csp=tiny_csp, abi=tiny_ab_initio) for word in words], monkeypatch, capsys)
    assert done.code == 2 and done.err.startswith("atomsmith: ") and done.err.count("\n") == 1
    assert message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "o").exists() and (tmp_path / "here").read_text() == "a file"


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_by_evaluate_and_prepare(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content, reason = FILES[name]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for words in (["evaluate", name, "--protocol", "cdvae-2022", "--out", "o"], ["prepare", name, "--name", "set"]):
        done = cli(words, monkeypatch, capsys)
        assert done.code == 2 and done.err.count("\n") == 1 and name in done.err and reason.lower() in done.err.lower()
    assert not Path("set").exists() and list(Path("o").glob("*")) == []


@pytest.mark.parametrize("name", [n for n in FILES if n.split(".")[0] not in ("no_column", "thesis")])
def test_a_bad_file_among_good_ones_is_counted(name, tmp_path):
    content, reason = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write([GOOD] * 3, tmp_path / "good.jsonl")
    report = atomsmith.evaluate([tmp_path / "good.jsonl", tmp_path / name], protocol="cdvae-2022", processes=0)
    assert len(report.rows) == 4 and sum(report.failures.values()) == 1
    assert reason.lower() in next(iter(report.failures)).lower()
    assert (report["structural_validity"].hits, report["structural_validity"].n) == (3, 4)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Structure(TRICLINIC, ["Na"], [[np.nan, 0, 0]]), "not a finite number"),
        (Structure(Lattice([[4, 0, 0], [0, 4, 0], [4, 4, 0]]), ["Na"], [[0, 0, 0]]), "volume"),
        (Structure(TRICLINIC, [{"Na": 0.5}], [[0, 0, 0]]), "occupan"),
        (Structure(TRICLINIC, [], []), "no atoms"),
        (None, "no structure"),
    ],
    ids=["nan", "flat", "partial", "empty", "none"],
)
@pytest.mark.parametrize("protocol", ["cdvae-2022", "diffcsp-csp"])
def test_bad_structures_from_python_are_counted(bad, reason, protocol):
    options = {} if protocol == "cdvae-2022" else {"reference": [GOOD, GOOD]}
    report = atomsmith.evaluate([GOOD, bad], protocol=protocol, processes=0, **options)
    told = [row.get("failure") or row.get("reason") for row in report.rows]
    assert len(report.rows) == 2 and not told[0] and any(word in told[1] for word in (reason, "partial", "disorder"))


def test_more_atoms_than_trained_for_is_a_warning(tiny_csp, tiny_ab_initio, tmp_path, monkeypatch, capsys):
    most = max(atomsmith.load(tiny_csp, "cpu").statistics.num_atoms)
    words = ["sample", tiny_csp, "-n", 1, "--formula", "NaCl", "--z", most, "--steps", 2, "--out", tmp_path / "o"]
    done = cli(words, monkeypatch, capsys)
    assert done.code == 0 and done.err.count("\n") == 1 and done.err.startswith("atomsmith: warning: ")
    assert f"{2 * most} atoms" in done.err and f"up to {most}" in done.err
    with pytest.warns(UserWarning, match=f"{most + 1} atoms.*up to {most}"):
        made = atomsmith.sample(tiny_ab_initio, 1, num_atoms=most + 1, steps=2)
    assert len(made[0]) == most + 1


def _flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "card.md", "sha256.json"])
@pytest.mark.parametrize("spoil", [_flip, _cut, Path.unlink])
def test_a_damaged_checkpoint_is_refused(file, spoil, tiny_csp, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_csp, folder)
    spoil(folder / file)
    words = ["sample", folder, "-n", 1, "--formula", "NaCl", "--steps", 2, "--out", tmp_path / "o"]
    done = cli(words, monkeypatch, capsys)
    assert done.err.startswith("atomsmith: ") and done.err.count("\n") == 1 and str(folder) in done.err
    if file == "sha256.json" and spoil is Path.unlink:  # a folder put together by hand
        assert done.code == 0 and "nothing tells whether its files are sound" in done.err
    else:
        # a changed hash accuses the file that it belongs to
        assert done.code == 2 and (file == "sha256.json" or file in done.err) and not (tmp_path / "o").exists()


def test_a_damaged_checkpoint_of_a_training_is_refused(tmp_path, monkeypatch, capsys):
    words = ["train", "diffcsp-csp", "prototypes", "--out", tmp_path / "run", *TINY]
    assert cli(words, monkeypatch, capsys).code == 0
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    whole = saved.read_bytes()
    for spoil in (_flip, _cut, lambda path: path.write_bytes(b"")):
        saved.write_bytes(whole)
        spoil(saved)
        done = cli([*words, "--resume"], monkeypatch, capsys)
        assert done.code == 2 and done.err.count("\n") == 1 and f"{saved} is damaged" in done.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 1, "interrupted before anything new was made; the same command starts again"),
        (MemoryError("16 cells of up to 20 atoms do not fit the memory"), 1, "16 cells of up to 20 atoms do not fit"),
        (MemoryError(), 1, "the memory is full"),
        (OSError(5, "Input/output error", "o/samples.jsonl"), 1, "Input/output error: o/samples.jsonl"),
        (PermissionError(13, "Permission denied", "/o"), 2, "Permission denied: /o"),
        (RuntimeError("the loss\nis nan"), 1, "the loss is nan"),
        (SystemExit(75), 75, "stopped; a checkpoint is written, --resume continues"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(error, code, said, tiny_csp, monkeypatch, capsys):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr(atomsmith, "sample", fails)
    done = cli(["sample", tiny_csp, "-n", 1, "--out", "o"], monkeypatch, capsys)
    assert done.code == code and done.err.count("\n") == 1 and done.err.startswith(f"atomsmith: {said}")


def test_a_fault_of_the_program_is_one_line_and_exit_code_1(tiny_csp, tmp_path, monkeypatch, capsys):
    def broken(*_args, **_options):
        return {}["surprise"]

    monkeypatch.setattr(atomsmith, "sample", broken)
    done = cli(["sample", tiny_csp, "-n", 1, "--out", tmp_path / "o"], monkeypatch, capsys)
    assert done.code == 1 and done.err.count("\n") == 1
    assert "KeyError: 'surprise' (test_bad_input.py, line" in done.err


def test_help_tells_the_exit_codes(monkeypatch, capsys):
    for words in ([], ["--help"]):
        done = cli(words, monkeypatch, capsys)
        assert done.code == 0 and done.err == "" and "2 for a mistake" in " ".join(done.out.split())


def test_a_misspelt_option_of_the_real_command():
    words = [sys.executable, "-m", "atomsmith", "evaluate", "x.cif", "--protcol", "cdvae-2022"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "--protcol" in done.stderr and "--protocol" in done.stderr
