"""What is installed: exactly the packages, their data and the command; pins and bounds agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("chem", "generative", "evaluation", "checkpoints")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), "name==version, no more"
    return {canonical(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy of the checkout, with files that must stay out of it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "atomsmith.py"):
        shutil.copy(ROOT / name, source / name)
    for name in (*PACKAGES, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    weights = source / "checkpoints" / "sample-name"
    weights.mkdir()
    for name in ("config.json", "model.safetensors", "card.md", "sha256.json", "optimizer.ckpt"):
        (weights / name).write_text("{}")
    (source / "checkpoints" / "manifest.json").write_text("{}")
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(project: dict[str, Any]) -> list[Requirement]:
    extras = project["project"]["optional-dependencies"].values()
    return [Requirement(line) for group in (project["project"]["dependencies"], *extras) for line in group]


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules | {"atomsmith.py"}
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {*PACKAGES, "atomsmith.py"}


def test_wheel_holds_weights_and_their_hashes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    place = "checkpoints/sample-name"
    assert {f"{place}/{file}" for file in ("config.json", "model.safetensors", "card.md")} <= names
    assert "checkpoints/manifest.json" in names
    assert not {f"{place}/sha256.json", f"{place}/optimizer.ckpt"} & names
    rooms = [p for name in ("chem", "evaluation") for p in (ROOT / name).rglob("*")]
    data = {str(p.relative_to(ROOT)) for p in rooms if p.is_file() and is_data(p)}
    assert data <= names
    assert wheel.stat().st_size < 95e6


def is_data(path: Path) -> bool:
    return "__pycache__" not in path.parts and path.suffix != ".py" and not path.name.startswith(".")


def test_wheel_names_the_command_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = {name.split("/", 1)[1]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "atomsmith = atomsmith:main" in info["entry_points.txt"]
    assert "License-Expression: MIT" in info["METADATA"]
    assert "Requires-Python: >=3.11" in info["METADATA"]
    assert "The atomsmith developers" in info["licenses/LICENSE"]


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    found = {str(p.parent.relative_to(ROOT)).replace("/", ".") for n in PACKAGES for p in (ROOT / n).rglob("*.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_bounds_are_lower_bounds_that_the_pins_fulfil(project: dict[str, Any], pins: dict[str, Version]) -> None:
    for requirement in requirements(project):
        assert [part.operator for part in requirement.specifier] == [">="], str(requirement)
        assert pins[canonical(requirement.name)] in requirement.specifier, str(requirement)


def test_torch_is_pinned_first(pins: dict[str, Version]) -> None:
    assert pins["torch"] == Version("2.13.0")
    recipe = (ROOT / "Makefile").read_text()
    install = "install -q -c constraints.txt"
    assert recipe.index(f"{install} torch==2.13.0") < recipe.index(f"{install} -e")


def test_continuous_integration_is_a_valid_executable_script() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
