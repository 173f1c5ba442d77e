"""Compositional validity: goldens, the two tables, and the bitset against plain enumeration."""

from __future__ import annotations

from itertools import combinations, product
from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chem.crystals import CrystalBatch
from evaluation.compositions.amounts import parse
from evaluation.compositions.smact import (
    CDVAE,
    TABLES,
    CompositionRule,
    _data,
    _valid,
    batch_counts,
    compositional_validity,
    is_valid_composition,
    table_source,
)

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available()")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
VALID = ["NaCl", "SrTiO3", "Fe2O3", "Li2O", "CuZn", "Na", "GaAs", "Mg2Si", "AlSi", "SiC", "NO2", "XeF2", "H2O", "CO"]
INVALID = ["Fe3O4", "Mn3O4", "LaB6", "LiO2", "HeO"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("missing", ["valid", "invalid"])
def test_goldens_of_the_sheet(table, missing):
    rule = CompositionRule(table=table, missing=missing)
    assert compositional_validity(VALID, rule).all()
    assert not compositional_validity(INVALID, rule).any()


def test_formulas_that_tell_the_tables_apart():
    found = {
        t: compositional_validity(["HfSiRu", "TmAsSe"], CompositionRule(table=t, missing="invalid")) for t in TABLES
    }
    assert found["smact14"].tolist() == [True, False]
    assert found["icsd24"].tolist() == [False, True]


@pytest.mark.parametrize(("table", "share"), [("smact14", 0.9000), ("icsd24", 0.9052)])
def test_first_rows_of_the_validation_set(data_root, table, share):
    from chem import datasets

    batch = datasets.load("mp20", "val").batch[:2500]
    valid = compositional_validity(batch, CompositionRule(table=table, missing="invalid"))
    assert round(float(valid.mean()), 4) == share


def test_switches():
    assert is_valid_composition("PmCl3") and not is_valid_composition("PmCl3", CompositionRule(missing="invalid"))
    assert not is_valid_composition("PmCl4"), "unknown electronegativity still needs a neutral choice"
    assert is_valid_composition("CuZn") and not is_valid_composition("CuZn", CompositionRule(metals=False))
    assert is_valid_composition("Na") and not is_valid_composition("Na", CompositionRule(single=False, metals=False))
    assert is_valid_composition("SiC") and not is_valid_composition("SiC", CompositionRule(cap=10))
    assert is_valid_composition("He") and not is_valid_composition("He", CompositionRule(single=False))


def test_vector_form_agrees_with_formulas():
    from chem.datasets import load

    batch = load("prototypes", "train").batch
    from chem.convert import to_structures

    formulas = [s.formula.replace(" ", "") for s in to_structures(batch)]
    assert np.array_equal(compositional_validity(batch), compositional_validity(formulas))
    assert compositional_validity(batch[:0]).shape == (0,)


@pytest.mark.parametrize("rule", [CDVAE, CompositionRule("icsd24", "invalid", False, False), CompositionRule(cap=60)])
@pytest.mark.parametrize("device", DEVICES)
def test_words_equal_integers_on_real_compositions(rule, device):
    from chem.datasets import load
    from evaluation.stability.phase_tables import load_hull

    formulas = load_hull("mp20").phases.formulas[::13]
    one_by_one = [is_valid_composition(formula, rule) for formula in formulas]
    assert np.array_equal(compositional_validity(formulas, rule, device), one_by_one)
    batch = load("prototypes", "train").batch
    expected = [_valid(counts, rule) for counts in batch_counts(batch)]
    assert np.array_equal(compositional_validity(batch.to(device), rule), expected)


def test_totals_beyond_a_word():
    # 40 Fe at +3 against 60 O at -2 need 120 bits, and so does the pair that cannot balance
    formulas = ["Fe40O59F2", "Fe41O60F1", "Mg31Cl62", "Mg32Cl64S", "Mg33Cl64S", "Pm40O59F2"]
    valid = [is_valid_composition(formula) for formula in formulas]
    assert valid == [_enumerated(parse(formula), CDVAE) for formula in formulas] and 0 < sum(valid) < len(formulas)
    assert compositional_validity(formulas).tolist() == valid


def test_unknown_atomic_numbers_are_elements_without_states():
    batch = CrystalBatch([2, 2, 0], atomic_numbers=torch.tensor([11, 119, 11, 17]))
    assert compositional_validity(batch).tolist() == [False, True, False]


def test_counts_are_divided_by_their_divisor():
    rule = CompositionRule(cap=None)
    assert is_valid_composition("Sr4Ti4O12", rule) and not is_valid_composition({"Fe": 6, "O": 8}, rule)


def test_tables_say_where_they_come_from():
    assert table_source().startswith("SMACT 4.") and len(_data()["metals"]) == 79


@pytest.mark.parametrize("bad", ["Xx2O", "", "Fe0.5O", {"Na": -1}, {}, "H99999999"])
def test_bad_composition_is_refused_in_one_line(bad):
    with pytest.raises(ValueError, match="^composition = .*allowed: ") as caught:
        is_valid_composition(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("switch", [{"table": "wiki"}, {"missing": "maybe"}, {"cap": 0}])
def test_bad_switch_is_refused(switch):
    with pytest.raises(ValueError, match=f"^{next(iter(switch))} = .*allowed: "):
        CompositionRule(**switch)


def _enumerated(counts: dict[int, float], rule: CompositionRule) -> bool:
    """The rule as CDVAE wrote it, choice by choice."""
    data, divisor = _data(), gcd(*(int(n) for n in counts.values()))
    if len(counts) == 1 or all(z in data["metals"] for z in counts):
        return True
    negativity = [data["electronegativity"].get(z) for z in counts]
    for choice in product(*(data[rule.table].get(z, []) for z in counts)):
        if sum(q * n // divisor for q, n in zip(choice, counts.values(), strict=True)):
            continue
        if None in negativity:
            return rule.missing == "valid"
        pairs = combinations(zip(choice, negativity, strict=True), 2)
        if not any((p > 0 > q and x >= y) or (p < 0 < q and x <= y) for (p, x), (q, y) in pairs):
            return True
    return False


ELEMENTS = st.integers(1, 103)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    counts=st.dictionaries(ELEMENTS, st.integers(1, 9), min_size=1, max_size=5),
    table=st.sampled_from(TABLES),
    missing=st.sampled_from(["valid", "invalid"]),
)
def test_bitset_equals_enumeration(counts, table, missing):
    from pymatgen.core import Element

    rule = CompositionRule(table=table, missing=missing)
    composition = {Element.from_Z(z).symbol: n for z, n in counts.items()}
    expected = _enumerated(counts, rule)
    assert is_valid_composition(composition, rule) == expected
    assert compositional_validity([composition, "NaCl"], rule).tolist() == [expected, True]


def test_equal_electronegativity_on_both_sides_is_refused():
    # Ru and Pd both have 2.20: neither may be the anion of the other
    rule = CompositionRule(metals=False)
    assert _data()["electronegativity"][44] == _data()["electronegativity"][46]
    assert not is_valid_composition("RuPd", rule)
