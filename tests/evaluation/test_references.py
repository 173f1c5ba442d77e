"""Elemental references: fits that must come out exactly, and those that are packaged."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.compositions.amounts import amounts
from evaluation.stability.phase_tables import load_hull
from evaluation.stability.references import HUBBARD, ElementalReferences, fit_references, load_references

MU = {"Li": -1.9, "O": -4.9, "Fe": -8.3, "P": -5.4}
FORMULAS = ["Li2O", "FeO", "Fe2O3", "FeP", "LiFeP", "LiFePO4", "P2O5", "Li3P", "Fe", "Li4"]


def totals(formulas: list[str], formation: np.ndarray, oxide_shift: float) -> np.ndarray:
    found = []
    for energy, row in zip(formation, amounts(formulas), strict=True):
        count = {symbol: float(row @ amounts([symbol])[0]) for symbol in MU}
        elements = sum(MU[symbol] * n for symbol, n in count.items())
        found.append(energy * float(row.sum()) + elements + (oxide_shift * count["Fe"] if count["O"] else 0.0))
    return np.array(found)


def test_fit_finds_the_energies_it_was_given():
    formation = np.random.default_rng(0).normal(-1, 0.5, len(FORMULAS))
    energies = totals(FORMULAS, formation, 2.256)
    found = fit_references("made", FORMULAS, energies, formation)
    assert found.energies == pytest.approx(MU) and found.hubbard == pytest.approx({"Fe": 2.256})
    assert found.crystals == len(FORMULAS) and found.residual == pytest.approx(0, abs=1e-12)
    assert found.formation_energies(FORMULAS, energies) == pytest.approx(formation)


def test_a_metal_seen_in_oxides_alone_has_one_energy():
    formation = np.zeros(3)
    found = fit_references("made", ["Fe2O3", "FeO", "O2"], totals(["Fe2O3", "FeO", "O2"], formation, 2.0), formation)
    assert found.hubbard == {} and found.energies == pytest.approx({"O": -4.9, "Fe": -6.3})


def test_residual_is_the_mean_absolute_error_of_the_formation_energies():
    rng = np.random.default_rng(1)
    formation = rng.normal(-1, 0.5, len(FORMULAS))
    energies = totals(FORMULAS, formation, 0.0) + rng.normal(0, 0.1, len(FORMULAS))
    found = fit_references("made", FORMULAS, energies, formation)
    error = np.abs(found.formation_energies(FORMULAS, energies) - formation).mean()
    assert found.residual == pytest.approx(error) and error > 0.001


def test_missing_values_are_left_out_and_unknown_elements_have_no_energy():
    formation = np.linspace(-2, 0, len(FORMULAS))
    energies = totals(FORMULAS, formation, 0.0)
    energies[1], formation[2] = np.nan, np.nan
    found = fit_references("made", FORMULAS, energies, formation)
    assert found.crystals == len(FORMULAS) - 2 and found.energies == pytest.approx(MU)
    assert np.isnan(found.formation_energies(["XeO3", "LiO"], [1.0, 1.0])).tolist() == [True, False]
    with pytest.raises(ValueError, match="^none of 1 crystals has both"):
        fit_references("made", ["LiO"], [np.nan], [0.0])
    with pytest.raises(ValueError, match=r"^energies of shape \(2,\), allowed: one for each of 1 compositions"):
        found.formation_energies(["LiO"], [1.0, 2.0])


@pytest.mark.parametrize("name", ["mace", "orb", "uma", "ensemble"])
def test_packaged_fits_find_the_published_corrections(name):
    """The second energy of a metal is the correction that Wang et al. published, with the other sign."""
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    published = MaterialsProject2020Compatibility().u_corrections["O"]
    found = load_references(name)
    assert set(found.hubbard) == set(HUBBARD) and found.residual is not None and found.residual < 0.016
    for metal, shift in found.hubbard.items():
        assert shift == pytest.approx(-published[metal], abs=0.2), metal


def test_tabulated_references():
    found = load_references("mp2020")
    assert len(found.energies) == 89 and found.residual is None and found.hubbard == {}
    oxygen = found.formation_energies(["O2", "Xe2"], [2 * found.energies["O"], 0.1])
    assert oxygen[0] == pytest.approx(0) and oxygen[1] == pytest.approx(0.05 - found.energies["Xe"])
    with pytest.raises(ValueError, match="^references = 'dft', allowed: mp2020, chgnet, mace, orb, uma, ensemble$"):
        load_references("dft")
    assert np.isnan(ElementalReferences("none", {}).formation_energies(["Li"], [0.0])).all()


def test_references_of_chgnet():
    """Its energies hold the corrections already: no metal needs a second energy of the size of one."""
    found = load_references("chgnet")
    assert found.crystals > 30_000 and found.residual is not None and found.residual < 0.03
    assert len(found.energies) == 87 and max(map(abs, found.hubbard.values())) < 0.1


def test_the_packaged_hull_knows_the_oxides_of_iron():
    """No iron oxide of MP-20 has a DFT energy in the source; without one, FeO would be on the hull."""
    found = load_hull("mp20").distances(["FeO", "Fe2O3"])
    assert (found.hull_energy < -1).all()
    assert any("O" in formula for formula in found.mixtures[0]) and "O2" not in found.mixtures[0]
