"""The page of a report, without a browser: what it loads, what it holds, and what it withstands."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chem import datasets
from chem.convert import from_structures, to_structures
from chem.convert_molecules import from_rdkit
from evaluation.evaluate import evaluate
from evaluation.page.charts import PERIODIC_TABLE, Histogram, periodic_table, ticks
from evaluation.page.drawings import drawings
from evaluation.page.page import write_page
from evaluation.page.page_data import columns, described, histograms, plain
from evaluation.protocols import CDVAE, EDM
from evaluation.report import Report, rate

EVIL = "</script><script>alert('1')</script><img src=x onerror=alert(2)>"


class Parsed(HTMLParser):
    """Elements of a page with their attributes, the data it embeds, and its style."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self._within = [], {}, ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._within = dict(attributes).get("id", "") if tag == "script" else tag

    def handle_data(self, text):
        self.texts[self._within] = self.texts.get(self._within, "") + text

    @property
    def data(self):
        return json.loads(self.texts["data"])


@pytest.fixture(scope="module")
def crystals():
    data = datasets.load("prototypes", "val")
    return to_structures(data.batch[:12])


def report_of(rows, protocol=CDVAE, **failures):
    numbers = [rate("validity", len(rows) // 2, len(rows), f"all {len(rows)} structures", protocol)]
    return Report(protocol, numbers, rows, "none", 0, {"atomsmith": "0"}, failures)


def test_evaluate_writes_one_page_that_loads_nothing(crystals, tmp_path):
    report = evaluate([*crystals, None], crystals, "cdvae-2022", out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "structures.csv", "report.html"}
    page = Parsed(tmp_path / "report.html")
    loading = [(tag, a) for tag, a in page.elements if a.keys() & {"src", "href", "srcset", "action", "data"}]
    assert {a.get("href", "")[:1] for tag, a in loading if tag == "a"} == {"#"}
    assert [a["href"] for tag, a in loading if tag != "a"] == ["data:,"]
    assert not re.search(r"url\(|@import", page.texts["style"])
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy
    for fact in (report.protocol.name, report.protocol.hash, "all 13 structures", report.versions["pymatgen"]):
        assert fact in (tmp_path / "report.html").read_text()
    assert len(page.data["rows"]) == len(page.data["structures"]) == 13
    assert page.data["structures"][12] == "not readable"


def test_structure_prediction_has_a_structure_for_every_candidate(crystals, tmp_path):
    made = [s.copy() for s in crystals[:3]]
    for one, target in zip(made, ("2", "2", "0"), strict=True):
        one.properties = {"target": target}
    report = evaluate(made, crystals[:3], "diffcsp-csp", out=tmp_path, processes=0)
    data = Parsed(tmp_path / "report.html").data
    names = [column["name"] for column in data["columns"]]
    shown = [[row[names.index("target")], row[names.index("formula")]] for row in data["rows"]]
    assert len(shown) == len(report.rows) == 6
    formulas = [row["formula"] for row in described(from_structures(made))]
    assert shown == [["0", formulas[2]], ["0", None], ["1", None], ["1", None], ["2", formulas[0]], ["2", formulas[1]]]
    assert [isinstance(s, dict) for s in data["structures"]] == [True, False, False, False, True, True]


def test_molecules_of_files_are_on_their_page(tmp_path):
    """With the bonds of an SDF; an xyz has none, and a torn entry keeps its row."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    from chem.molecule_files import write_molecules

    made = Chem.AddHs(Chem.MolFromSmiles("C=O"))
    AllChem.EmbedMolecule(made, randomSeed=1)
    write_molecules([made], tmp_path / "a.sdf")
    (tmp_path / "b.xyz").write_text("3\n\nO 0 0 0.1\nH 0 0.76 -0.5\nH 0 -0.76 -0.5\n1\n\nQq 0 0 0\n")
    report = evaluate([tmp_path / "a.sdf", tmp_path / "b.xyz"], None, "edm-qm9", tmp_path / "out", processes=0)
    page = Parsed(tmp_path / "out" / "report.html").data
    first, second, third = page["structures"]
    assert len(report.rows) == len(page["rows"]) == 3 and sum(report.failures.values()) == 1
    assert first["z"] == [6, 8, 1, 1] and len(first["x"]) == 12 and "cell" not in first
    assert sorted(first["bonds"][2::3]) == [1, 1, 2]
    assert second["z"] == [8, 1, 1] and not second.get("bonds") and third == "not readable"


def test_names_cannot_become_markup(crystals, tmp_path):
    rows = [{"id": EVIL, "晶体": "Fe₂O₃ ⟨é⟩", EVIL: 1.0}, {"id": "\udcff lost byte", EVIL: 2.0}]
    report = replace(report_of(rows), reference=EVIL, failures={EVIL: 1})
    page = Parsed(write_page(report, crystals[:2], tmp_path / "a.html"))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 7
    assert not [tag for tag, a in page.elements if tag == "img" or any(name.startswith("on") for name in a)]
    assert page.data["rows"][0][:2] == [EVIL, "Fe₂O₃ ⟨é⟩"] and page.data["rows"][1][0] == "? lost byte"


@pytest.mark.parametrize("protocol", [CDVAE, EDM])
@pytest.mark.parametrize("rows", [[], [{"failure": "truncated"}] * 3])
def test_no_structure_at_all(protocol, rows, tmp_path):
    data = Parsed(write_page(report_of(rows, protocol), [None] * len(rows), tmp_path)).data
    assert data["rows"] == [["truncated"]] * len(rows) and data["elements"] == {}


def test_rows_without_columns_get_those_of_the_structures(crystals, tmp_path):
    data = Parsed(write_page(report_of([{}, {"rms": 0.1}]), crystals[:2], tmp_path)).data
    assert [c["name"] for c in data["columns"]] == ["formula", "elements", "num_elements", "atoms", "density", "rms"]
    assert data["rows"][0][-1] is None and data["rows"][1][-1] == 0.1
    assert data["rows"][0][4] == pytest.approx(float(crystals[0].density), rel=1e-3)


def test_another_number_of_structures_than_rows_is_refused(crystals, tmp_path):
    with pytest.raises(ValueError, match="structures has 2 entries, allowed: one for each of 1 rows"):
        write_page(report_of([{}]), crystals[:2], tmp_path)


def test_a_thousand_structures_stay_small(tmp_path):
    generator = np.random.default_rng(0)
    cells = [Lattice.from_parameters(*generator.uniform(4, 9, 3), *generator.uniform(70, 110, 3)) for _ in range(1000)]
    made = [Structure(cell, ["Na"] * 10 + ["Cl"] * 10, generator.random((20, 3))) for cell in cells]
    rows = [{"id": f"sample-{i}", "valid": True, "e_above_hull": generator.random()} for i in range(1000)]
    place = write_page(report_of(rows), made, tmp_path)
    assert place == tmp_path / "report.html"
    assert place.stat().st_size < 1.7e6


def test_more_structures_than_the_gallery_holds(crystals, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.page.page.MOST", 5)
    place = write_page(report_of([{"n": i} for i in range(12)]), crystals, tmp_path)
    data = Parsed(place).data
    assert len(data["rows"]) == len(data["structures"]) == 5
    assert "The first 5 of 12" in place.read_text() and "n = 12" in place.read_text()


def test_without_the_extra_the_report_is_written_and_an_old_page_is_gone(crystals, tmp_path, monkeypatch):
    evaluate(crystals, None, "cdvae-2022", out=tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.warns(UserWarning, match=r"no report.html was written: pages need jinja2: pip install 'atomsmith\["):
        evaluate(crystals, None, "cdvae-2022", out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "structures.csv"}


def test_coordinates_of_a_triclinic_left_handed_cell():
    lattice = Lattice.from_parameters(3.1, 4.7, 6.3, 71, 83, 104).matrix[[1, 0, 2]]
    assert np.linalg.det(lattice) < 0
    made = Structure(lattice, ["Li", "O", "O"], [[0.1, 0.2, 0.3], [0.999999, 0.5, 0.25], [0.7, 0.6, 0.9]])
    (drawn,) = drawings(from_structures([made]), [0])
    again = Structure(np.reshape(drawn["cell"], (3, 3)), drawn["z"], np.reshape(drawn["x"], (3, 3)))
    assert again.lattice.volume > 0 and np.linalg.det(again.lattice.matrix) > 0
    assert np.allclose(again.distance_matrix, made.distance_matrix, atol=1e-3)
    assert min(drawn["x"]) >= 0 and max(drawn["x"]) < 1


def test_views_turn_c_upwards_and_flat_molecules_to_the_eye():
    from rdkit import Chem
    from rdkit.Chem import AllChem
    from scipy.spatial.transform import Rotation

    cell = Lattice.from_parameters(3, 4, 9, 65, 80, 100)
    (crystal,) = drawings(from_structures([Structure(cell, ["Si"], [[0, 0, 0]])]), [0])
    right, up, towards = Rotation.from_quat(crystal["view"]).apply(cell.matrix[2] / 9)
    assert abs(right) < 2e-3 and up == pytest.approx(math.cos(math.radians(10)), abs=2e-3) and towards > 0
    benzene = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
    AllChem.EmbedMolecule(benzene, randomSeed=1)
    (flat,) = drawings(from_rdkit([benzene]), [0])
    depth = Rotation.from_quat(flat["view"]).apply(np.reshape(flat["x"], (-1, 3)))[:, 2]
    assert np.ptp(depth) < 0.2
    assert sorted(flat["bonds"][2::3]) == [1] * 6 + [1.5] * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frac_coords": math.nan}, "cannot be drawn"),
        ({"lattice": math.inf}, "cannot be drawn"),
        ({"lattice": 0.0}, "the cell has no volume"),
    ],
)
def test_what_cannot_be_drawn_says_so(change, words):
    batch = from_structures([Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])])
    name, value = next(iter(change.items()))
    assert drawings(batch.replace(**{name: batch[name] * 0 + value}), [0]) == [words]


def test_large_cells_are_not_drawn():
    made = Structure(Lattice.cubic(30), ["H"] * 501, np.random.default_rng(0).random((501, 3)))
    assert drawings(from_structures([made]), [0]) == ["501 atoms: not drawn here"]


def test_columns_and_their_kinds():
    rows = [
        {
            "id": f"a{i}",
            "ok": bool(i % 2),
            "why": "short" if i else "",
            "x": np.float32(i),
            "none": None,
            "nan": math.nan,
        }
        for i in range(20)
    ]
    assert [(c.name, c.kind) for c in columns(rows)] == [
        ("id", "text"),
        ("ok", "flag"),
        ("why", "choice"),
        ("x", "number"),
    ]
    assert [plain(v) for v in (np.float64(1 / 3), np.bool_(True), "", math.inf, 7)] == [0.333333, True, None, None, 7]


def test_distributions_stand_beside_the_reference():
    rows = [{"e_above_hull": 0.01 * i, "density": 3.0 + i, "candidate": i, "same": 1.0} for i in range(5)]
    charts = histograms(rows, [{"density": 4.0}, {"density": math.nan}])
    assert [chart.title for chart in charts] == ["energy above hull", "density"]
    assert charts[0].marks == (0.0, 0.05, 0.1) and charts[0].theirs is None
    assert "0.1" in charts[0].svg() and charts[0].svg().count('class="mark"') == 3
    assert np.isnan(charts[1].theirs[1]) and 'class="theirs"' in charts[1].svg()


def test_histogram_bins():
    whole = Histogram("elements", "", np.array([1.0, 2, 2, 5, np.nan]))
    assert whole.edges().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    shares = re.findall(r"<title>[^:]*: ([\d.]+) %", whole.svg())
    assert [float(share) for share in shares] == [25, 50, 0, 0, 25]
    assert whole.caption() == "median 2, n = 4, 1 without a value"
    tail = Histogram("x", "", np.array([*np.linspace(0, 1, 999), 1e6]))
    assert tail.edges()[-1] < 1.1 and "beyond the axis" in tail.caption()
    assert "no value" in Histogram("<x>", "", np.array([np.nan])).svg()
    assert "&lt;x&gt;" in Histogram("<x>", "", np.array([np.nan])).svg()


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 17), (1e-6, 2e-6), (0.5, 118.5), (0, 0.3)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 6 and all(low - 1e-12 <= t <= high * (1 + 1e-12) for t in found)


def test_periodic_table_has_every_element_once():
    from ase.data import chemical_symbols

    assert sorted(PERIODIC_TABLE.replace(".", " ").split()) == sorted(chemical_symbols[1:])
    drawn = periodic_table({"O": 0.5, "Fe": 0.125}, 0.5)
    assert drawn.count("data-element=") == 118
    assert '<title>Fe: 12.50 %</title><rect width="28" height="28" rx="3" style="fill-opacity:0.500"/>' in drawn
    assert periodic_table({}, 0.0).count("none") == 118
