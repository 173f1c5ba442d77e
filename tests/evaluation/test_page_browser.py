"""The page of a report in headless Chromium: what it draws, filters, sorts and saves, and that it asks for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from evaluation.page.page import write_page
from evaluation.protocols import CDVAE, EDM
from evaluation.report import Report, rate

pytestmark = pytest.mark.browser

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
EVIL = "<img src=x onerror=alert(1)>"
INK = """image => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [240, 186];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 240, 186);
  const data = context.getImageData(0, 0, 240, 186).data;
  let ink = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 40) { ink++; sum += (i % 997) * (data[i] + data[i + 1]); }
  return [ink, sum];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium of the system, else playwright's own; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


def watched(browser, path, before=""):
    """The page of that file, and the list of everything that it should not have done."""
    page, wrong = browser.new_page(viewport={"width": 900, "height": 560}), []
    page.on("console", lambda one: wrong.append(f"console: {one.text}") if one.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}") or dialog.dismiss())
    allowed = (path.as_uri(), "data:", "blob:")
    page.on("request", lambda one: None if one.url.startswith(allowed) else wrong.append(f"request: {one.url}"))
    page.add_init_script(before)
    page.goto(path.as_uri())
    return page, wrong


@pytest.fixture(scope="module")
def crystals():
    """Triclinic cells of 1 to 20 atoms of up to four elements; every seventh is missing."""
    generator = np.random.default_rng(0)
    made = []
    for i in range(60):
        cell = Lattice.from_parameters(*generator.uniform(4, 8, 3), *generator.uniform(65, 115, 3))
        species = (["Na", "Cl", "Fe", "O"][: 1 + i % 4] * 20)[: 1 + i % 20]
        made.append(Structure(cell, species, generator.random((len(species), 3))))
    return [None if i % 7 == 6 else s for i, s in enumerate(made)]


@pytest.fixture(scope="module")
def crystal_page(crystals, tmp_path_factory):
    generator = np.random.default_rng(1)
    rows = [
        {
            "id": f"{EVIL} {i}",
            "atoms": i + 1,
            "good": bool(i % 3),
            "e_above_hull": None if i == 4 else generator.random(),
        }
        for i in range(len(crystals))
    ]
    numbers = [rate("validity", 40, 60, "all 60 structures", CDVAE)]
    report = Report(CDVAE, numbers, rows, "none", 0, {}, {})
    return rows, write_page(report, crystals, tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser, crystal_page) -> Iterator:
    opened, wrong = watched(browser, crystal_page[1])
    yield opened
    opened.close()
    assert wrong == []


def until(locator):
    """What is asserted of a part of the page after a while at most."""
    from playwright.sync_api import expect

    return expect(locator)


def order(page) -> list[int]:
    return page.locator(".card").evaluate_all("cards => cards.map(card => +card.dataset.row)")


def test_cards_come_as_they_are_needed_and_names_stay_text(page):
    assert page.locator(".card").count() == 48 and page.locator("#count").inner_text() == "60 of 60"
    assert page.locator(".card .id").first.inner_text() == f"{EVIL} 0"
    page.locator("#more").scroll_into_view_if_needed()
    until(page.locator(".card")).to_have_count(60)


def test_filters_narrow_the_gallery(page, crystal_page, crystals):
    rows = crystal_page[0]
    page.click("#toggle-filters")
    page.get_by_label("atoms, most", exact=True).fill("20")
    assert order(page) == [i for i in range(60) if rows[i]["atoms"] <= 20]
    page.get_by_label("good", exact=True).select_option("no")
    assert order(page) == [i for i in range(20) if not rows[i]["good"]]
    page.locator("#element-filter [data-element=Fe]").click()
    with_iron = [i for i in range(20) if not rows[i]["good"] and crystals[i] and "Fe" in crystals[i].symbol_set]
    assert order(page) == with_iron != []
    page.get_by_label("Search").fill("no such thing")
    assert order(page) == [] and page.locator("#empty").is_visible()
    page.click("#reset")
    assert page.locator("#count").inner_text() == "60 of 60" and page.locator("#chips button").count() == 0
    page.get_by_label("e above hull, least").fill("0")
    assert 4 not in order(page)


def test_sorting_by_a_column_both_ways(page, crystal_page):
    rows = crystal_page[0]
    page.select_option("#sort", "e_above_hull")
    values = [rows[i]["e_above_hull"] for i in order(page)]
    assert values == sorted(values)
    page.click("#direction")
    page.locator("#more").scroll_into_view_if_needed()
    until(page.locator(".card")).to_have_count(60)
    assert order(page)[-1] == 4
    values = [rows[i]["e_above_hull"] for i in order(page)[:-1]]
    assert values == sorted(values, reverse=True)


def test_structures_are_drawn_and_turn_under_the_mouse(page):
    cards = page.locator(".card .picture")
    cards.nth(3).scroll_into_view_if_needed()
    for i in (0, 1, 3):
        until(cards.nth(i).locator("img")).to_have_js_property("complete", True)
    drawn = [cards.nth(i).locator("img").evaluate(INK) for i in (0, 1, 3)]
    assert min(ink for ink, _ in drawn) > 1500 and len({total for _, total in drawn}) == 3
    assert page.locator(".card").nth(6).inner_text().startswith("not readable")
    cards.nth(3).hover()
    page.wait_for_selector("#live canvas")
    before = page.locator("#live canvas").evaluate(INK)
    assert before[0] > 1500
    box = cards.nth(3).bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    assert page.locator("#live canvas").evaluate(INK) != before
    page.mouse.move(0, 0)
    assert page.locator("#live").count() == 0


def test_a_large_view_shows_every_column_and_saves_a_cif(page, crystals, tmp_path):
    page.locator(".card").nth(9).click()
    assert page.locator("#detail").is_visible()
    labels = page.locator("#detail-rows th").all_inner_texts()
    assert {"id", "atoms", "good", "e above hull", "formula", "density"} <= set(labels)
    one = page.locator("#stage canvas").evaluate(INK)
    page.check("#repeat")
    assert page.locator("#stage canvas").evaluate(INK) != one
    with page.expect_download() as saved:
        page.locator("#downloads button").click()
    saved.value.save_as(tmp_path / "one.cif")
    again = Structure.from_file(tmp_path / "one.cif").get_sorted_structure()
    asked = crystals[9].get_sorted_structure()
    assert again.species == asked.species
    assert np.allclose(again.lattice.parameters, asked.lattice.parameters, atol=1e-3)
    assert np.allclose(again.distance_matrix, asked.distance_matrix, atol=2e-3)
    page.keyboard.press("ArrowRight")
    assert "Cl" in page.locator("#detail-title").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()


def test_all_shown_are_saved_together(page, crystals, tmp_path):
    from pymatgen.io.cif import CifFile

    page.get_by_label("Search").fill("onerror=alert(1)> 1")
    shown = [i for i in order(page) if crystals[i]]
    with page.expect_download() as saved:
        page.click("#download-all")
    saved.value.save_as(tmp_path / "all.cif")
    assert len(CifFile.from_file(tmp_path / "all.cif").data) == len(shown) == 10


def test_without_webgl_everything_else_works(browser, crystal_page):
    refuse = """for (const { prototype } of [HTMLCanvasElement, OffscreenCanvas]) {
      const get = prototype.getContext;
      prototype.getContext = function (kind, ...rest) {
        return kind.includes("webgl") ? null : get.call(this, kind, ...rest);
      };
    }"""
    page, wrong = watched(browser, crystal_page[1], refuse)
    page.locator(".card").first.scroll_into_view_if_needed()
    page.get_by_text("no WebGL in this browser").first.wait_for(timeout=10_000)
    page.locator(".card").nth(1).click()
    assert page.locator("#detail-rows tr").count() >= 6
    page.keyboard.press("Escape")
    page.get_by_label("Search").fill("> 59")
    assert page.locator(".card").count() == 1
    assert [one for one in wrong if not one.startswith("console")] == []
    page.close()


def test_molecules_are_drawn_and_saved_with_their_bonds(browser, tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    made = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in ("C[N+](C)(C)CC(=O)[O-]", "c1ccccc1C#N")]
    for one in made:
        AllChem.EmbedMolecule(one, randomSeed=1)
        Chem.Kekulize(one, clearAromaticFlags=True)
    report = Report(EDM, [], [{"id": "betaine"}, {"id": "benzonitrile"}], "none", 0, {}, {})
    page, wrong = watched(browser, write_page(report, made, tmp_path))
    for i, one in enumerate(made):
        page.locator(".card").nth(i).click()
        for button, format in enumerate(("sdf", "xyz")):
            with page.expect_download() as saved:
                page.locator("#downloads button").nth(button).click()
            saved.value.save_as(tmp_path / f"{i}.{format}")
        assert page.locator("#stage canvas").evaluate(INK)[0] > 1500
        page.keyboard.press("Escape")
        again = next(Chem.SDMolSupplier(str(tmp_path / f"{i}.sdf"), removeHs=False))
        smiles = [Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol))) for mol in (again, one)]
        assert smiles[0] == smiles[1]
        same = again.GetConformer().GetPositions() - one.GetConformer().GetPositions()
        assert np.abs(same).max() < 1e-3
        xyz = Chem.MolFromXYZFile(str(tmp_path / f"{i}.xyz"))
        assert [a.GetSymbol() for a in xyz.GetAtoms()] == [a.GetSymbol() for a in one.GetAtoms()]
    page.close()
    assert wrong == []
