"""Energy above hull: against pymatgen's phase diagrams and a general solver, and what can go wrong in a table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluation.stability.hull
import evaluation.stability.simplex
from evaluation.compositions.amounts import amounts, symbols
from evaluation.stability.hull import Hull
from evaluation.stability.phase_tables import load_hull
from evaluation.stability.phases import Phases

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available()")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
SYSTEM = ("Li", "Fe", "P", "O")
TABLE = {"Li2O": -2.0, "Fe2O3": -1.6, "FeO": -1.3, "Fe3O4": -1.55, "P2O5": -2.2, "Li3PO4": -2.7, "FePO4": -2.3}
TABLE |= {"LiFePO4": -2.5, "Li4P2O7": -2.6, "LiFeO2": -1.9, "FeP": -0.5, "Li3P": -0.9, "LiFe": 0.3, "Fe6O8": -1.2}


@pytest.fixture(scope="module")
def hull() -> Hull:
    return Hull("small", list(TABLE), list(TABLE.values()))


@pytest.fixture(scope="module")
def mp20() -> Hull:
    return load_hull("mp20")


def pymatgen_hull(table: dict[str, float], formula: str, energy: float) -> tuple[float, dict[str, float]]:
    """Signed distance and mixture of one composition by the community's path, elements at zero."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    whole = Composition(formula)
    inside = {f: e for f, e in table.items() if set(Composition(f)) <= set(whole)}
    entries = [PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in inside.items()]
    diagram = PhaseDiagram([*entries, *(PDEntry(Composition(e.symbol), 0.0) for e in whole)])
    entry = PDEntry(whole, energy * whole.num_atoms)
    mixture, distance = diagram.get_decomp_and_e_above_hull(entry, allow_negative=True)
    return distance, {phase.composition.reduced_formula: float(share) for phase, share in mixture.items()}


def reduced(mixture: dict[str, float]) -> dict[str, float]:
    from pymatgen.core import Composition

    return {Composition(name).reduced_formula: share for name, share in mixture.items()}


FORMULAS = ["LiFePO4", "Li2FeP2O7", "FeO", "Li", "LiO", "Li3FeO3", "Fe2PO5", "LiP", "Fe9O", "Li7Fe3P5O31"]


@pytest.mark.parametrize("device", DEVICES)
def test_equals_phase_diagrams_with_mixtures(hull, device):
    found = hull.distances(FORMULAS, np.linspace(-3, 0.5, len(FORMULAS)), device=device)
    assert found.reasons == [""] * len(FORMULAS) and found.metric == "e_hull[small]"
    for i, formula in enumerate(FORMULAS):
        distance, mixture = pymatgen_hull(TABLE, formula, np.linspace(-3, 0.5, len(FORMULAS))[i])
        assert found.e_above_hull[i] == pytest.approx(distance, abs=1e-9)
        # pymatgen calls the elements O2, P and so on; both are reduced the same way
        assert reduced(found.mixtures[i]) == pytest.approx(mixture, abs=1e-8)


def test_lowest_entry_of_a_composition_counts(hull):
    assert len(hull.phases) == len(TABLE) - 1, "Fe6O8 is Fe3O4"
    assert hull.distances(["Fe12O16"], [-1.2]).e_above_hull[0] == pytest.approx(0.35)


def test_hash_is_of_the_phases_that_count(hull):
    same = Hull("other name", [*reversed(TABLE), "Li2O"], [*reversed(TABLE.values()), 5.0])
    assert same.hash == hull.hash and len(hull.hash) == 12
    assert hull.with_phases("more", ["LiP"], [0.0]).hash != hull.hash
    assert Hull("fewer elements", list(TABLE), list(TABLE.values()), [3, 8, 26]).hash != hull.hash


def test_of_the_reference_against_phase_diagrams(mp20):
    table = dict(zip(mp20.phases.formulas, mp20.phases.energies.tolist(), strict=True))
    formulas = [f for f in table if f.count("O")][5:5000:333] + ["NaClO5", "Sr2TiO7", "UPuO", "He2O"]
    found = mp20.distances(formulas, np.zeros(len(formulas)))
    rows = amounts(formulas).numpy() > 0
    for formula, row, distance in zip(formulas, rows, found.e_above_hull, strict=True):
        _, within = mp20.phases.within(np.flatnonzero(row)[None])
        part = {mp20.phases.formulas[i]: float(mp20.phases.energies[i]) for i in within}
        assert distance == pytest.approx(pymatgen_hull(part, formula, 0.0)[0], abs=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_equals_a_general_solver(data):
    from scipy.optimize import linprog

    elements = SYSTEM[: data.draw(st.integers(1, 4))]
    # few distinct amounts and energies make degenerate vertices and ties, where a simplex method may cycle
    count = st.lists(st.integers(0, 3), min_size=len(elements), max_size=len(elements)).filter(any)
    rows = data.draw(st.lists(count, min_size=1, max_size=25))
    energies = data.draw(
        st.lists(st.sampled_from([-2, -1.5, -1, -0.5, 0, 0.25]), min_size=len(rows), max_size=len(rows))
    )
    targets = data.draw(st.lists(count, min_size=1, max_size=6)) + rows[:3]

    def names(rows):
        return ["".join(f"{e}{n}" for e, n in zip(elements, row, strict=True) if n) for row in rows]

    reference = Hull("made", names(rows), energies, elements=[int(amounts([e]).argmax()) for e in elements])
    found = reference.distances(names(targets), np.zeros(len(targets)))
    columns = np.concatenate([np.eye(len(elements)), np.array(rows) / np.sum(rows, 1, keepdims=True)])
    costs = np.concatenate([np.zeros(len(elements)), energies])
    for i, row in enumerate(targets):
        expected = linprog(costs, A_eq=columns.T, b_eq=np.array(row) / sum(row), method="highs").fun
        assert found.hull_energy[i] == pytest.approx(expected, abs=1e-8)
        mixture = amounts(list(found.mixtures[i])).numpy()
        shares = (mixture / mixture.sum(1, keepdims=True)).T @ list(found.mixtures[i].values())
        assert np.allclose(shares, amounts(names([row])).numpy()[0] / sum(row), atol=1e-8)


def test_blands_rule_alone_finds_the_same(mp20, monkeypatch):
    formulas = mp20.phases.formulas[:3000:60]
    steepest = mp20.distances(formulas, exclude_self=True)
    monkeypatch.setattr(evaluation.stability.simplex, "PATIENCE", 0)
    assert np.allclose(mp20.distances(formulas, exclude_self=True).hull_energy, steepest.hull_energy, atol=1e-9)


def test_too_few_steps_are_an_error(hull, monkeypatch):
    monkeypatch.setattr(evaluation.stability.simplex, "LIMIT", 1)
    with pytest.raises(ArithmeticError, match="^2 of 2 linear programs not solved in 1 steps"):
        hull.distances(["LiFePO4", "Li2FePO4"])


def test_exclude_self(hull):
    members = [f for f in TABLE if f not in ("Fe6O8", "LiFe")]
    energies = [TABLE[f] for f in members]
    found = hull.distances(members, energies, exclude_self=True)
    for i, formula in enumerate(members):
        others = {f: e for f, e in TABLE.items() if f != formula and not (formula == "Fe3O4" and f == "Fe6O8")}
        assert found.e_above_hull[i] == pytest.approx(pymatgen_hull(others, formula, energies[i])[0], abs=1e-9)
    assert (found.e_above_hull < 0).any() and (hull.distances(members, energies).e_above_hull > -1e-9).all()
    assert hull.distances(["Li"], [0.0], exclude_self=True).e_above_hull[0] == 0


def test_self_consistent_hull(hull):
    samples, energies = ["Li5FeO4", "LiFePO5", "Li2O"], [-3.0, -2.9, -1.0]
    assert (hull.distances(samples, energies).e_above_hull[:2] < 0).all()
    own = hull.with_phases("small + samples", samples, energies)
    found = own.distances(samples, energies)
    assert found.e_above_hull == pytest.approx([0, 0, 1], abs=1e-9) and found.metric == "e_hull[small + samples]"
    assert found.mixtures[0] == pytest.approx({"Li5FeO4": 1.0})


def test_what_cannot_be_judged_is_counted_with_its_reason(hull):
    found = hull.distances(["LiFeO2", "XeO3", "LiO", "UXe"], [-1.9, 0.0, np.nan, 0.0])
    assert found.reasons == [
        "",
        "no reference energy of Xe in e_hull[small]",
        "no energy",
        "no reference energy of Xe, U in e_hull[small]",
    ]
    assert np.isnan(found.e_above_hull).tolist() == [False, True, True, True]
    assert found.mixtures[1] == {} and np.isfinite(found.hull_energy[2])
    assert hull.distances([]).e_above_hull.shape == (0,)


def test_batches_and_cuts_do_not_show(mp20, monkeypatch):
    from chem import datasets

    batch = datasets.load("prototypes", "train").batch
    table = amounts(batch)
    formulas = [dict(zip(symbols(z := row.nonzero()[:, 0].tolist()), row[z].tolist(), strict=True)) for row in table]
    whole = mp20.distances(batch)
    monkeypatch.setattr(evaluation.stability.hull, "AT_ONCE", 500)
    monkeypatch.setattr(evaluation.stability.hull, "SYSTEMS", 7)
    assert np.array_equal(mp20.distances(formulas).hull_energy, whole.hull_energy, equal_nan=True)


def test_phases_within_systems_are_those_of_a_search_through_all(mp20):
    some = Phases(mp20.phases.formulas[::2], mp20.phases.energies[::2])
    systems = np.array([[3, 8, 15, 26], [1, 6, 7, 8], [8, 12, 13, 14], [1, 2, 8, 10]])
    which, rows = some.within(systems)
    for i, system in enumerate(systems):
        expected = np.flatnonzero(~some.shares[:, np.setdiff1d(np.arange(119), system)].any(1))
        assert np.array_equal(rows[which == i], expected)
    assert len(rows) > 20 and (np.diff(which) >= 0).all()
    for nothing in (Phases([], np.zeros(0)).within(systems), some.within(systems[:0])):
        assert [len(part) for part in nothing] == [0, 0]


def test_many_elements_are_no_burden(mp20):
    """15 elements have 32,767 subsystems; those that the table has are visited, and a general solver agrees."""
    from scipy.optimize import linprog

    formula = "LiNaKMgCaSrTiFeCoNiO12FClSN"
    row = amounts([formula]).numpy()[0]
    _, within = mp20.phases.within(np.flatnonzero(row)[None])
    assert len(within) > 400
    costs = mp20.phases.energies[within]
    columns = np.concatenate([np.eye(119)[row > 0], mp20.phases.shares[within]])[:, row > 0]
    expected = linprog(np.append(np.zeros(15), costs), A_eq=columns.T, b_eq=row[row > 0] / row.sum(), method="highs")
    assert mp20.distances([formula]).hull_energy == pytest.approx(expected.fun, abs=1e-9)


def test_packaged_reference(mp20):
    assert len(mp20.phases) == 30263 and len(mp20.phases.elements) == 89
    assert mp20.metric == "e_hull[mp20]"
    found = mp20.distances(["SrTiO3", "NaCl", "LiFePO4"], [-3.5, -2.1, -2.5])
    assert found.mixtures[1] == {"NaCl": 1.0}
    assert mp20.distances(["PoO2"], [0.0]).reasons == ["no reference energy of Po in e_hull[mp20]"]


def test_of_validation_crystals(data_root, mp20):
    """Crystals that the Materials Project has on its hull must not lie far above a hull of fewer phases."""
    import pandas as pd

    table = pd.read_parquet(data_root / "mp20_val.parquet")
    table = table[table.e_above_hull.notna() & table.formation_energy_per_atom.notna()][:2000]
    found = mp20.distances(table.pretty_formula.tolist(), table.formation_energy_per_atom)
    assert found.reasons == [""] * len(table)
    excess = found.e_above_hull - table.e_above_hull.to_numpy()
    assert np.median(np.abs(excess)) < 0.005 and np.mean(np.abs(excess) < 0.05) > 0.95


def _write(path, rows):
    import pandas as pd

    table = pd.DataFrame(rows)
    writers = {".csv": table.to_csv, ".parquet": table.to_parquet}
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        writers[path.suffix](path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_own_table(tmp_path, hull, suffix):
    mu = {"Li": -1.9, "Fe": -8.3, "P": -5.4, "O": -4.9}
    totals = [
        {"formula": f, "energy": e * float(t.sum()) + float(sum(mu[s] * t[amounts([s])[0].argmax()] for s in mu))}
        for (f, e), t in zip(TABLE.items(), amounts(list(TABLE)), strict=True)
    ]
    totals += [
        {"formula": "O2", "energy": 2 * mu["O"]},
        {"formula": "O", "energy": 0.0},
        {"formula": "Li2", "energy": -3.8},
    ]
    totals += [{"formula": f, "energy": mu[f]} for f in ("Fe", "P")] + [{"formula": "XeO3", "energy": -99.0}]
    own = load_hull(_write(tmp_path / f"mine{suffix}", totals))
    assert own.metric == "e_hull[mine]"
    found, expected = (h.distances(FORMULAS, np.zeros(len(FORMULAS))) for h in (own, hull))
    assert found.e_above_hull == pytest.approx(expected.e_above_hull, abs=1e-9)
    assert own.distances(["XeO3"], [0.0]).reasons == ["no reference energy of Xe in e_hull[mine]"]
    per_atom = [{"formula": f, "formation_energy_per_atom": e} for f, e in TABLE.items()]
    again = load_hull(_write(tmp_path / f"again{suffix}", per_atom))
    assert np.array_equal(again.distances(FORMULAS).hull_energy, hull.distances(FORMULAS).hull_energy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"formula": "NaCl", "energy": -1}, {"formula": "Na"}]', "row 2: no formula or energy"),
        ('[{"formula": "NaCl", "energy": "NaN"}]', "row 1: no formula or energy .*not finite"),
        ('[{"formula": "Xx", "energy": 1}]', "composition = 'Xx', allowed: "),
        ('[{"name": "NaCl", "energy": 1}]', "1 rows with columns energy, name; needed: formula and one of"),
        ('[{"formula": "Na", "energy": 1, "energy_per_atom": 1}]', "needed: formula and one of"),
        ("[]", r"0 rows with columns \(none\); needed"),
        ('{"formula": 1}', "a dict; needed: a list of objects"),
        ("{", "not a json file"),
    ],
)
def test_bad_table_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_hull(tmp_path / "bad.json")
    assert "\n" not in str(caught.value) and "bad.json" in str(caught.value)


def test_bad_arguments(hull, tmp_path):
    for source in ("mp21", tmp_path / "none.csv", tmp_path):
        with pytest.raises(ValueError, match="^hull = .*allowed: mp20, or an existing .json, .csv, .parquet file"):
            load_hull(source)
    with pytest.raises(ValueError, match="^energies of shape .*allowed: one for each of 2 compositions"):
        hull.distances(["LiO", "Li"], [1.0])
    with pytest.raises(ValueError, match="^energies of shape .*allowed: 2 finite numbers"):
        Hull("bad", ["Li", "O"], [0.0, np.inf])
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(ValueError, match="not a parquet file"):
        load_hull(tmp_path / "bad.parquet")
