"""The verb `sample`: order, seeds, batch sizes, memory errors, output folders that resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

import atomsmith
import checkpoints
from chem import datasets
from chem.io import read
from chem.statistics import Statistics
from generative import sampling
from generative.controls import Controls
from generative.generator import Denoiser
from generative.models.flowmm import FlowMMConfig, build
from generative.templates import CrystalTemplates


def coords(structures):
    return [s.frac_coords for s in structures]


def wrapped_difference(a, b):
    delta = np.abs(a - b)
    return np.minimum(delta, 1 - delta).max()


def test_structures_in_order_with_provenance(tiny_csp):
    made = atomsmith.sample(tiny_csp, 3, formula="NaCl", z=2, steps=5, seed=4)
    assert [s.properties["index"] for s in made] == [0, 1, 2]
    assert all(s.composition.formula == "Na2 Cl2" for s in made)
    provenance = made[0].properties
    assert provenance["seed"] == 4 and provenance["steps"] == 5
    assert provenance["model"] == Path(tiny_csp).name and len(provenance["weights_sha256"]) == 64


def test_same_seed_same_bits_other_seed_other_crystals(tiny_csp):
    a, b, c = (atomsmith.sample(tiny_csp, 2, formula="SrTiO3", steps=5, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(coords(a), coords(b), strict=True))
    assert not np.allclose(a[0].frac_coords, c[0].frac_coords)


def test_global_random_state_is_untouched(tiny_csp):
    before = torch.get_rng_state()
    atomsmith.sample(tiny_csp, 1, formula="NaCl", steps=2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("batch_size", [16, 48])
def test_batch_size_changes_rounding_only(tiny_ab_initio, batch_size):
    """Bound of the design: 1e-3 in fractional coordinates, 1e-2 Å in lattices; none of 100 may be chaotic here."""
    reference = atomsmith.sample(tiny_ab_initio, 100, steps=20, batch_size=256)
    other = atomsmith.sample(tiny_ab_initio, 100, steps=20, batch_size=batch_size)
    assert [s.atomic_numbers for s in reference] == [s.atomic_numbers for s in other]
    off = [
        i
        for i, (a, b) in enumerate(zip(reference, other, strict=True))
        if wrapped_difference(a.frac_coords, b.frac_coords) > 1e-3
        or np.abs(a.lattice.matrix - b.lattice.matrix).max() > 1e-2
    ]
    assert off == []


@pytest.mark.parametrize("fixture", ["tiny_csp", "tiny_ab_initio"])
def test_one_sample_is_the_first_of_a_hundred(fixture, request):
    model, formula = request.getfixturevalue(fixture), "CaTiO3" if fixture == "tiny_csp" else None
    one = atomsmith.sample(model, 1, formula=formula, steps=20)[0]
    first = atomsmith.sample(model, 100, formula=formula, steps=20)[0]
    assert one.atomic_numbers == first.atomic_numbers
    assert wrapped_difference(one.frac_coords, first.frac_coords) < 1e-3
    assert np.abs(one.lattice.matrix - first.lattice.matrix).max() < 1e-2


def test_sizes_and_elements_of_an_ab_initio_model(tiny_ab_initio):
    made = atomsmith.sample(tiny_ab_initio, 20, num_atoms=7, elements=["Li", "O", "Na"], steps=5)
    assert {len(s) for s in made} == {7}
    assert {site.specie.symbol for s in made for site in s} <= {"Li", "O", "Na"}
    sizes = {len(s) for s in atomsmith.sample(tiny_ab_initio, 64, steps=2)}
    assert sizes <= set(atomsmith.load(tiny_ab_initio).statistics.num_atoms) and len(sizes) > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n=0), "n = 0"),
        (dict(formula="Nope!"), "formula = 'Nope!'"),
        (dict(formula=None), "formula is required"),
        (dict(formula="Li0.3O"), "not a whole number"),
        (dict(formula="NaCl", z=0), "z = 0"),
        (dict(formula="NaCl", num_atoms=4), "num_atoms = 4 conflicts"),
        (dict(formula="NaPu"), "Pu, which the model's training set lacks"),
        (dict(formula="NaCl", steps=0), "steps = 0"),
        (dict(formula="NaCl", steps=5000), "steps = 5000"),
        (dict(formula="NaCl", batch_size=10), "batch_size = 10"),
    ],
)
def test_bad_arguments_get_one_line(tiny_csp, arguments, message):
    with pytest.raises(ValueError) as error:
        atomsmith.sample(tiny_csp, **{"n": 1, "steps": 2, **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_elements_that_do_not_exist_or_were_not_seen(tiny_ab_initio):
    with pytest.raises(ValueError, match="elements names 'Xx', which is no element"):
        atomsmith.sample(tiny_ab_initio, 1, elements=["Xx"])
    with pytest.raises(ValueError, match="elements has Pu"):
        atomsmith.sample(tiny_ab_initio, 1, elements=["Pu"])
    with pytest.raises(ValueError, match="formula = 'NaCl' is not for it"):
        atomsmith.sample(tiny_ab_initio, 1, formula="NaCl")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_a_memory_error_halves_the_batch(tiny_csp, monkeypatch, error):
    sizes, trajectory = [], Denoiser.trajectory

    def hungry(self, template, *args, **kwargs):
        sizes.append(len(template))
        if len(template) > 16:
            raise error
        return trajectory(self, template, *args, **kwargs)

    monkeypatch.setattr(Denoiser, "trajectory", hungry)
    made = atomsmith.sample(tiny_csp, 40, formula="NaCl", steps=3, batch_size=64)
    assert sizes == [40, 32, 16, 16, 8]
    monkeypatch.setattr(Denoiser, "trajectory", trajectory)
    whole = atomsmith.sample(tiny_csp, 40, formula="NaCl", steps=3, batch_size=64)
    assert max(wrapped_difference(a, b) for a, b in zip(coords(made), coords(whole), strict=True)) < 1e-3


def test_a_memory_error_of_one_unit_is_reported(tiny_csp, monkeypatch):
    def hungry(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Denoiser, "trajectory", hungry)
    with pytest.raises(MemoryError, match="16 cells of up to 2 atoms do not fit"):
        atomsmith.sample(tiny_csp, 16, formula="NaCl", steps=3)


def test_folder_holds_frames_cifs_and_manifest(tiny_csp, tmp_path):
    made = atomsmith.sample(tiny_csp, 5, formula="NaCl", steps=3, out=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["n"] == 5 and manifest["network_calls"] == 6 and manifest["request"]["formula"] == "NaCl"
    assert len(list((tmp_path / "out" / "cif").glob("*.cif"))) == 5
    again = atomsmith.sample(tiny_csp, 5, formula="NaCl", steps=3, out=tmp_path / "out")
    assert all(np.array_equal(a, b) for a, b in zip(coords(made), coords(again), strict=True))
    assert again[3].properties["index"] == 3


def test_a_larger_n_extends_and_nothing_is_overwritten(tiny_csp, tmp_path):
    arguments = dict(formula="NaCl", steps=3, batch_size=16)
    atomsmith.sample(tiny_csp, 20, out=tmp_path / "a", **arguments)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a" / "cif").iterdir()}
    longer = atomsmith.sample(tiny_csp, 40, out=tmp_path / "a", **arguments)
    whole = atomsmith.sample(tiny_csp, 40, out=tmp_path / "b", **arguments)
    assert len(longer) == 40
    assert all((tmp_path / "a" / "cif" / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert max(wrapped_difference(a, b) for a, b in zip(coords(longer), coords(whole), strict=True)) < 1e-3
    assert len(atomsmith.sample(tiny_csp, 7, out=tmp_path / "a", **arguments)) == 7


def test_other_arguments_are_refused_by_name(tiny_csp, tmp_path):
    atomsmith.sample(tiny_csp, 1, formula="NaCl", steps=3, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"formula = 'NaCl', asked 'KCl'; steps = 3, asked 4") as error:
        atomsmith.sample(tiny_csp, 1, formula="KCl", steps=4, out=tmp_path / "out")
    assert "\n" not in str(error.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        atomsmith.sample(tiny_csp, 1, formula="NaCl", steps=3, out=tmp_path / "other")


def _run(model, out):
    torch.set_num_threads(1)
    atomsmith.sample(model, 64, formula="CaTiO3", steps=40, batch_size=16, out=out)


def test_killed_at_three_random_moments_the_result_is_that_of_an_undisturbed_run(tiny_csp, tmp_path):
    torch.set_num_threads(1)
    started = time.perf_counter()
    _run(tiny_csp, tmp_path / "whole")
    whole_time = time.perf_counter() - started
    moments, context = random.Random(7), multiprocessing.get_context("fork")
    killed = 0
    for _ in range(3):
        child = context.Process(target=_run, args=(tiny_csp, tmp_path / "killed"))
        child.start()
        child.join(whole_time * moments.uniform(0.2, 0.6))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.join()
    assert killed
    _run(tiny_csp, tmp_path / "killed")
    for file in ("samples.jsonl", "samples.extxyz"):
        assert (tmp_path / "whole" / file).read_text() == (tmp_path / "killed" / file).read_text()
    names = [sorted(p.name for p in (tmp_path / name / "cif").glob("*.cif")) for name in ("whole", "killed")]
    assert names[0] == names[1] and len(names[0]) == 64


def test_batches_that_begin_before_the_first_missing_sample(tiny_csp):
    loaded = atomsmith.load(tiny_csp, "cpu")
    templates = CrystalTemplates(Controls.read("NaCl"), loaded.model, loaded.statistics, 0)
    parts = list(sampling.sample_batches(loaded.model, templates, 50, start=20, batch_size=16, steps=2))
    assert [(first, len(batch)) for first, batch in parts] == [(16, 16), (32, 16), (48, 2)]


def threads_above(count: int, patience: float = 5.0) -> int:
    """Threads beyond `count` that are alive after some patience: the bar tells its thread to end and does not wait."""
    end = time.monotonic() + patience
    while threading.active_count() > count and time.monotonic() < end:
        time.sleep(0.01)
    return threading.active_count() - count


def test_the_progress_bar_ends_with_the_call(tiny_csp, tmp_path, capsys):
    """Also where nothing is left to draw, and where drawing fails: a bar left running would spoil the terminal."""
    before = threading.active_count()
    for _ in range(2):
        atomsmith.sample(tiny_csp, 2, formula="NaCl", steps=2, out=tmp_path / "out", progress=True)
        assert threads_above(before) == 0
    with pytest.raises(ValueError, match="batch_size = 10"):
        atomsmith.sample(tiny_csp, 2, formula="NaCl", steps=2, batch_size=10, progress=True)
    assert threads_above(before) == 0
    assert "sampling" in capsys.readouterr().err


def host():
    """Four sites in a triclinic cell, with coordinates that float32 or a wrap would change."""
    lattice = Lattice.from_parameters(4.1, 5.3, 6.7, 81, 97, 103)
    coords = [[0.0, 0.0, 0.0], [1 - 1e-9, 0.5, 1 / 3], [-0.25, 1.0, 0.7], [0.1, 0.2, 0.3]]
    return Structure(lattice, ["Na", "Cl", "O", "Ti"], coords)


def test_controls_are_kept_in_the_folder_and_their_provenance_travels(tiny_ab_initio, tmp_path):
    given = host()
    asked = dict(chemical_system="Na-Cl-O", num_atoms="4-6", fixed=(given, [1, 2]), lattice=given.lattice, steps=3)
    made = atomsmith.sample(tiny_ab_initio, 20, out=tmp_path / "out", **asked)
    again = atomsmith.sample(tiny_ab_initio, 20, out=tmp_path / "out", **asked)
    for structure in [*made, *again]:
        assert np.array_equal(structure.frac_coords[:2], given.frac_coords[1:3])
        assert np.array_equal(structure.lattice.matrix, given.lattice.matrix)
        assert {site.specie.symbol for site in structure} == {"Na", "Cl", "O"} and 4 <= len(structure) <= 6
    controls = made[0].properties["controls"]
    assert controls["chemical_system"] == "Cl-Na-O" and controls["num_atoms"] == {"4": 1.0, "5": 1.0, "6": 1.0}
    assert controls["fixed"]["sites"] == [1, 2] and controls["lattice"] == given.lattice.matrix.tolist()
    request = json.loads((tmp_path / "out" / "manifest.json").read_text())["request"]
    assert {k: request[k] for k in controls} == controls == again[0].properties["controls"]
    frames = [record.properties["controls"] for record in read(tmp_path / "out" / "samples.extxyz")]
    assert frames == [controls] * 20


def test_another_structure_or_site_is_another_request(tiny_csp, tmp_path):
    asked = dict(formula="NaCl", fixed=(host(), [1]), steps=2, out=tmp_path / "out")
    atomsmith.sample(tiny_csp, 2, **asked)
    assert len(atomsmith.sample(tiny_csp, 3, **asked)) == 3
    with pytest.raises(ValueError, match=r"fixed = .*, asked .*'sites': \[0\]"):
        atomsmith.sample(tiny_csp, 2, **asked | {"fixed": (host(), [0])})
    with pytest.raises(ValueError, match=r"fixed = .*, asked"):
        atomsmith.sample(tiny_csp, 2, **asked | {"fixed": (host().perturb(0.1), [1])})


def test_a_start_structure_takes_its_part_of_the_steps(tiny_csp, tmp_path):
    made = atomsmith.sample(tiny_csp, 2, init=host(), noise=0.3, steps=10, volume=150, out=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["network_calls"] == 6 and manifest["request"]["noise"] == 0.3
    assert [site.specie.symbol for site in made[0]] == ["Na", "Cl", "O", "Ti"]
    assert all(abs(structure.volume / 150 - 1) < 1e-9 for structure in made)


def test_a_folder_made_before_there_were_controls_is_continued(tiny_csp, tmp_path):
    atomsmith.sample(tiny_csp, 1, formula="NaCl", steps=2, out=tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    kept = json.loads(manifest.read_text())
    old = ("model", "weights_sha256", "seed", "steps", "formula", "z", "num_atoms", "elements")
    manifest.write_text(json.dumps(kept | {"request": {k: kept["request"][k] for k in old}}))
    assert len(atomsmith.sample(tiny_csp, 2, formula="NaCl", steps=2, out=tmp_path / "out")) == 2


def test_controls_on_the_command_line_are_those_of_python(tiny_csp, tiny_ab_initio, tmp_path):
    given = tmp_path / "host.vasp"
    host().to(filename=str(given), fmt="poscar")
    common = ["-n", "3", "--steps", "4", "--device", "cpu"]
    free = f"--num-atoms 4:0.5,6:0.5 --chemical-system Na-Cl-O --forbid F,Ti --volume 90 --fixed {given}:2,1".split()
    asked = dict(num_atoms={4: 0.5, 6: 0.5}, chemical_system="Na-Cl-O", forbid=["F", "Ti"], volume=90)
    start = f"--init {given} --noise 0.5 --lattice 4,5,6,80,95,100".split()
    read_back = next(iter(read(given))).structure
    cases = [
        (tiny_ab_initio, free, asked | {"fixed": (read_back, [2, 1])}),
        (tiny_csp, start, dict(init=read_back, noise=0.5, lattice="4,5,6,80,95,100")),
        (tiny_ab_initio, ["--elements", "Li, O", "--num-atoms", "3"], dict(elements=["Li", "O"], num_atoms=3)),
    ]
    for i, (model, words, arguments) in enumerate(cases):
        out = tmp_path / str(i)
        result = CliRunner().invoke(atomsmith.app, ["sample", model, *common, *words, "--out", str(out)])
        assert result.exit_code == 0, result.output
        expected = atomsmith.sample(model, 3, steps=4, device="cpu", **arguments)
        made = [record.structure for record in read(out / "samples.jsonl")]
        assert all(np.array_equal(a.frac_coords, b.frac_coords) for a, b in zip(made, expected, strict=True))
        assert all(np.array_equal(a.lattice.matrix, b.lattice.matrix) for a, b in zip(made, expected, strict=True))
        assert [a.atomic_numbers for a in made] == [b.atomic_numbers for b in expected]


def test_the_manifest_says_how_a_flow_was_sped_up(tmp_path):
    statistics = Statistics.compute(datasets.load("prototypes", "train").batch)
    config = FlowMMConfig(hidden=16, layers=1, frequencies=4, time_dim=16, cell_slope=1.5)
    with torch.random.fork_rng():
        state = build(config, statistics).state_dict()
    checkpoints.save(tmp_path / "flow", "flowmm", config, statistics, state)
    atomsmith.sample(tmp_path / "flow", 1, formula="NaCl", steps=2, out=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["slopes"] == {"cell": 1.5, "frac_coords": 10.0} and manifest["network_calls"] == 2
