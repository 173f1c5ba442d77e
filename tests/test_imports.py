"""What importing costs and pulls in."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch_geometric", "lightning", "rdkit", "ase", "pymatgen")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_atomsmith_pulls_in_nothing_heavy():
    out = python(f"import atomsmith, sys; print([m for m in {('torch', *HEAVY)!r} if m in sys.modules])")
    assert out.strip() == "[]"


def test_import_atomsmith_is_fast():
    out = python("import time; t = time.perf_counter(); import atomsmith; print(time.perf_counter() - t)")
    assert float(out) < 0.3


@pytest.mark.parametrize("package", ["chem", "generative", "evaluation", "checkpoints"])
def test_packages_import_without_side_effects(package):
    out = python(
        "import os, sys; before = dict(os.environ), os.getcwd()\n"
        f"import {package}\n"
        f"print((dict(os.environ), os.getcwd()) == before, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert out.strip() == "True []"


def test_help_answers_within_a_second_and_without_torch():
    code = "import sys, atomsmith; sys.argv = ['atomsmith', '--help']\ntry: atomsmith.main()\nexcept SystemExit: pass\n"
    started = time.perf_counter()
    out = python(code + "print('torch' in sys.modules)")
    assert time.perf_counter() - started < 1.0
    assert "sample" in out and out.strip().endswith("False")


def test_models_needs_no_torch():
    assert python("import sys, atomsmith; atomsmith.models(); print('torch' in sys.modules)").strip() == "False"
