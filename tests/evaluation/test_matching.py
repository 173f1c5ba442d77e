"""Matching: against pymatgen directly, the filters, and workers that are killed one item at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chem import datasets
from chem.convert import batch_from_arrays, to_structures
from evaluation.matching.pairs import NO_MATCH, OTHER_COMPOSITION, match_pairs
from evaluation.protocols import LOOSE, protocol
from evaluation.workers import Failed, limited_map

CSP = protocol("diffcsp-csp")


def noisy(batch, sigma: float, seed: int = 0, strained: float = 0.04):
    """The crystals with atoms displaced by sigma in fractional coordinates and cells strained by a few per cent."""
    generator = torch.Generator().manual_seed(seed)
    frac = batch["frac_coords"] + sigma * torch.randn(batch["frac_coords"].shape, generator=generator)
    strain = torch.eye(3) + strained * torch.randn(len(batch), 3, 3, generator=generator)
    return batch.replace(frac_coords=frac % 1, lattice=batch["lattice"] @ strain.double())


@pytest.fixture(scope="module")
def crystals():
    batch = datasets.load("prototypes", "val").batch
    return batch[batch["num_atoms"] <= 8][:12]


def test_results_are_those_of_pymatgen(crystals):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    made = noisy(crystals, 0.15, strained=0.1)
    found = match_pairs(made, crystals, [(i, i) for i in range(len(crystals))], CSP, processes=0)
    loose, strict = (
        StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10),
        StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5),
    )
    hits = 0
    for one, a, b in zip(found, to_structures(made), to_structures(crystals), strict=True):
        for value, matcher in ((one.rms, loose), (one.strict_rms, strict)):
            expected = matcher.get_rms_dist(a, b)
            assert value == (None if expected is None else pytest.approx(expected[0], abs=1e-12))
            hits += expected is not None
    assert 2 < hits < 2 * len(found)


def stretched(batch, factor: float):
    return batch.replace(lattice=batch["lattice"] @ torch.diag(torch.tensor([1.0, 1.0, factor])).double())


def test_what_the_loose_tolerances_accept():
    """Of SrTiO3: rms shows no volume and no stretch by 1.3, one crystal of random coordinates in five matches."""
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    titanate = batch_from_arrays([np.array([38, 22, 8, 8, 8])], [sites], [3.905 * np.eye(3)])

    def matches(made):
        return match_pairs(made, titanate, [(i, 0) for i in range(len(made))], CSP, processes=0)

    larger = titanate.replace(lattice=titanate["lattice"] * 1.28 ** (1 / 3))
    for made in (larger, stretched(titanate, 1.3)):
        assert matches(made)[0].rms == pytest.approx(0, abs=1e-6)
    assert matches(stretched(titanate, 1.5))[0].rms is None
    many, generator = titanate[[0] * 300], torch.Generator().manual_seed(0)
    random = matches(many.replace(frac_coords=torch.rand(1500, 3, generator=generator).double()))
    assert 0.14 < np.mean([one.rms is not None for one in random]) < 0.26
    assert all(one.strict_rms is None for one in random)
    moved = matches(noisy(many, 0.5 / 3.905, strained=0.0))
    assert np.mean([one.rms is not None for one in moved]) > 0.8


def test_other_tolerances_are_tried_alone_where_the_first_do_not_contain_them(crystals):
    wide = replace(CSP, strict=replace(LOOSE, ltol=1.5, angle_tol=40.0))
    found = match_pairs(stretched(crystals, 2.2), crystals, [(i, i) for i in range(6)], wide, processes=0)
    assert any(one.rms is None and one.strict_rms is not None for one in found)


def test_filters_and_unusable_predictions(crystals):
    elements = [set(one["atomic_numbers"].tolist()) for one in crystals]
    other = next(i for i in range(len(crystals)) if elements[i] != elements[0])
    flat = crystals.replace(lattice=crystals["lattice"] * torch.tensor([1.0, 1.0, 0.0]).reshape(1, 3, 1).double())
    assert match_pairs(crystals, crystals, [(0, other)], CSP, 0)[0].reason == OTHER_COMPOSITION
    broken = match_pairs(flat, crystals, [(0, 0)], CSP, 0)[0]
    assert broken.failed and "volume" in broken.reason
    assert not match_pairs(crystals, crystals, [(0, other)], CSP, 0)[0].failed
    assert match_pairs(crystals, crystals, [], CSP, 0) == []
    with pytest.raises(ValueError, match="^targets cannot be matched against: target 0: volume"):
        match_pairs(crystals, flat, [(0, 0)], CSP, 0)


def test_a_supercell_matches_and_a_far_structure_does_not(crystals):
    from chem.convert import from_structures

    structure = to_structures(crystals[:1])[0]
    double = from_structures([structure.make_supercell([2, 1, 1], in_place=False)])
    assert match_pairs(double, crystals, [(0, 0)], CSP, 0)[0].rms == pytest.approx(0, abs=1e-6)
    assert match_pairs(stretched(crystals, 3.0), crystals, [(0, 0)], CSP, 0)[0].reason == NO_MATCH


def _work(item):
    if item == "hang":
        time.sleep(60)
    if item == "die":
        os._exit(7)
    if item == "raise":
        raise RuntimeError("two\nlines")
    return item


def _cannot_start():
    raise ImportError("a library is missing")


def test_workers_are_killed_per_item_and_lose_nothing():
    items = [0, "hang", 1, "die", 2, "raise", 3]
    started = time.monotonic()
    found = list(limited_map(_work, items, seconds=1.0, processes=2))
    assert [x for x in found if not isinstance(x, Failed)] == [0, 1, 2, 3]
    assert "within 1 s" in found[1].reason and "exit code 7" in found[3].reason
    assert found[5].reason == "RuntimeError: two lines"
    assert time.monotonic() - started < 45


def test_processes_agree_with_this_process(crystals):
    made, pairs = noisy(crystals[:3], 0.05), [(0, 0), (1, 1), (2, 2), (0, 1)]
    assert match_pairs(made, crystals, pairs, CSP, processes=1) == match_pairs(made, crystals, pairs, CSP, processes=0)


def test_a_time_limit_counts_as_a_failure(crystals):
    rng = np.random.default_rng(0)
    many = batch_from_arrays([np.full(40, 14)] * 2, list(rng.random((2, 40, 3))), [np.eye(3) * 9] * 2)
    found = match_pairs(many, many, [(0, 1)], replace(CSP, pair_seconds=0.05), processes=1)[0]
    assert found.failed and found.reason == "not done within 0.05 s"


def test_a_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "score.py"
    script.write_text("from evaluation.workers import limited_map\nprint(list(limited_map(abs, [-1, -2], 9, 1)))\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == "[1, 2]\n" and done.returncode == 0


def test_an_interrupt_ends_the_workers_at_once(tmp_path):
    code = """
import os, time
from evaluation.workers import limited_map
results = limited_map(time.sleep, [0, *[60] * 6], 100, 2)
next(results)
print("working", flush=True)
try:
    list(results)
except KeyboardInterrupt:
    print(len(__import__("multiprocessing").active_children()))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert done.stdout is not None and done.stdout.readline() == "working\n"
    started = time.monotonic()
    done.send_signal(signal.SIGINT)
    assert done.communicate(timeout=40)[0] == "0\n" and done.returncode == 0
    assert time.monotonic() - started < 20


def test_workers_that_cannot_start_are_a_fault_and_not_a_score():
    with pytest.raises(RuntimeError, match="^worker processes cannot start"):
        list(limited_map(abs, [1, 2], 5.0, 1, start=_cannot_start))


def test_bad_limits_are_refused():
    with pytest.raises(ValueError, match="^processes = -1"):
        limited_map(abs, [1], 1.0, -1)
    local = lambda x: x  # noqa: E731
    local.__module__ = "__main__"
    with pytest.raises(ValueError, match="of the running script"):
        limited_map(local, [1], 1.0, 1)


def test_import_is_light():
    names = "baselines csp distributions evaluate inputs intervals protocols report validity workers compositions.smact"
    names += " matching.alignment matching.frames matching.lattice_maps matching.matcher matching.pairs"
    names += " matching.reduction matching.sameness matching.uniqueness"
    heavy = "pymatgen ase rdkit pandas pyarrow scipy pebble rich torch_geometric"
    code = f"import sys\nfor name in {names.split()}: __import__('evaluation.' + name)\n"
    code += f"print([m for m in {heavy.split()} if m in sys.modules], 'generative' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[] False\n"
