"""S.U.N. of crystals whose energies are known, under each protocol, with everything that can go wrong."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import atomsmith
from chem.convert import to_structures
from chem.io import Record, read
from chem.ragged import concatenate
from evaluation.campaigns.relaxing import AgainstHull, Chgnet
from evaluation.campaigns.structure_tables import to_table
from evaluation.compositions.supply_risk import supply_risk
from evaluation.evaluate import evaluate
from evaluation.progress import showing
from evaluation.protocols import PROTOCOLS, SunProtocol
from evaluation.relaxation import samples
from evaluation.relaxation.relax import RelaxationSettings, relax
from evaluation.relaxation.samples import RelaxMade
from evaluation.runs.chunks import to_parquet
from evaluation.runs.pipeline import Unfinished
from evaluation.stability.scale import Relaxer, find_scale
from tests.commands import cli
from tests.evaluation.crystals_to_screen import Toys, prototypes
from tests.evaluation.test_uniqueness import SITES, batch
from tests.evaluation.toys import LennardJones

NAMES = ("flowmm-sun", "mattergen-sun", "lemat-2025", "strict")
# eV/atom; relaxed by the toy, NaCl is at -0.390 and the other kinds at -0.726, whatever their elements
TABLE = dict.fromkeys(("Ag", "Cl", "Na", "Ba"), 0.0) | dict.fromkeys(("Ca", "Te"), -0.75) | {"BaTe": -0.7}
TABLE |= dict.fromkeys(("Pb", "O"), -0.78) | dict.fromkeys(("Tl", "N"), -1.0)
ABOVE = {"AgCl": -0.726, "CaTe": 0.024, "BaTe": -0.026, "PbO": 0.054, "TlN": 0.274, "NaCl": -0.390}
KINDS = tuple(ABOVE)


@pytest.fixture(scope="module")
def hull(tmp_path_factory):
    """A table of total energies: AgCl, BaTe and NaCl are stable, CaTe and PbO a little above, TlN far."""
    path = tmp_path_factory.mktemp("hull") / "toy.json"
    path.write_text(json.dumps([{"formula": formula, "energy_per_atom": e} for formula, e in TABLE.items()]))
    return path


@pytest.fixture(scope="module")
def known():
    """The reference: CaTe and NaCl."""
    return prototypes().without("formation_energy")[[1, 5]]


@pytest.fixture(scope="module")
def made():
    """Crystals 0 to 5 are of the six kinds, 6 and 7, 10 and 11 copies; 8 has two atoms in one place, 9 no volume."""
    return Toys().draw(0, 12)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SIZE", 5)
        yield


def judge(crystals, reference, name="flowmm-sun", hull=None, potential=None, **options):
    protocol = replace(PROTOCOLS[name] if isinstance(name, str) else name, resamples=5)
    potential = potential or LennardJones()
    return evaluate(crystals, reference, protocol, potential=potential, hull=hull, processes=0, **options)


@pytest.fixture(scope="module", params=NAMES)
def report(request, made, known, hull):
    return judge(made, known, request.param, hull)


def column(report, name):
    return [row.get(name) for row in report.rows]


def hits(report, *names):
    return [report[name].hits for name in names]


def test_the_numbers_are_those_of_the_known_energies(report):
    assert hits(report, "sun@0", "msun@0.05", "msun@0.1") == [2, 2, 3]
    assert hits(report, "stable@0", "stable@0.05", "stable@0.1") == [5, 7, 8]
    assert report["sun"].hits == (3 if report.protocol.stable == 0.1 else 2)
    assert report["sun"].n == 12 and report["sun"].denominator == "all 12 structures"
    assert report["sun"].interval == "Wilson 95%" and report["sun"].low < 2 / 12 < report["sun"].high
    assert report["symmetric_sun"].hits == report["sun"].hits  # all of them are rock salt
    wanted = [ABOVE[KINDS[i % 6]] for i in range(12)]
    wanted[8:10] = [np.nan, np.nan]
    np.testing.assert_allclose(column(report, "e_above_hull"), wanted, atol=2e-3)
    assert report["e_above_hull"].n == 10 and "10 of 12" in report["e_above_hull"].denominator
    assert report["e_above_hull"].value == pytest.approx(np.nanmean(wanted), abs=2e-3)
    assert hits(report, "relaxation_converged", "far_below_hull") == [10, 4]  # AgCl and NaCl, twice each


def test_what_is_wrong_stays_in_the_denominators(report):
    tried = 10 if report.protocol.relaxed == "valid" else 12
    assert report["relaxation_failed"].n == tried and report["relaxation_failed"].hits == tried - 10
    assert report.failures == ({"the relaxation failed": 2} if tried == 12 else {})
    for name in ("unique", "novel", "stable@0", "structural_validity", "not_evaluable"):
        assert report[name].n == 12, name
    for i in (8, 9):
        assert not any(report.rows[i][name] for name in ("sun", "stable", "structure_valid"))
        assert report.rows[i]["decomposition"] == "" and report.rows[i]["space_group"] is None
    assert not report.rows[9]["unique"] and not report.rows[9]["novel"]


def test_rows_say_of_what_a_crystal_is_a_copy(report):
    # the atoms of crystal 8 are in one place: it can be compared as it was made, not as it was relaxed
    assert report.rows[8]["unique"] == report.rows[8]["novel"] == (report.protocol.compared == "made")
    assert column(report, "copy_of")[:8] == ["", "", "", "", "", "", "0", "1"]
    assert column(report, "known_as")[:8] == ["", "0", "", "", "", "1", "", "0"]
    assert [report.rows[i]["sun"] for i in (0, 1, 2, 4, 5, 6)] == [True, False, True, False, False, False]
    assert report.rows[2]["decomposition"] == "1 BaTe"
    assert sorted(report.rows[1]["decomposition"].split(" + ")) == ["0.5 Ca", "0.5 Te"]
    assert sum(column(report, "sun")) == report["sun"].hits


def test_energies_as_made_are_weighed_too(report, made):
    some = made[[0, 2, 3, 5]].without("formation_energy")
    energies = LennardJones()(some).energies / 2
    elements = [0.0, -0.7, -0.78, 0.0]  # of which BaTe lies on a phase
    found = [column(report, "e_hull_as_made")[i] for i in (0, 2, 3, 5)]
    np.testing.assert_allclose(found, energies.numpy() - elements, atol=1e-6)
    start = np.array(column(report, "e_hull_as_made"))
    assert report["stable_unrelaxed"].hits == (start <= report.protocol.stable).sum()


def test_what_each_protocol_adds(report):
    names = {number.name for number in report.numbers}
    wanted = {
        "rmsd_to_relaxed": ("mattergen-sun", "strict"),
        "match_to_relaxed": ("mattergen-sun", "strict"),
        "sun_self_consistent": ("strict",),
        "coverage_recall": ("strict",),
        "jsd_elements": ("lemat-2025", "strict"),
        "mmd_density": ("lemat-2025", "strict"),
        "wasserstein_density": ("lemat-2025", "strict"),
        "diversity_elements": ("lemat-2025", "strict"),
        "supply_risk": ("lemat-2025", "strict"),
        "p1@0.1": ("strict",),
        "p1@0.01": ("strict",),
        "sun_ordered": ("mattergen-sun", "strict"),
    }
    for name, protocols in wanted.items():
        assert (name in names) == (report.protocol.name in protocols), name
    if "rmsd_to_relaxed" in names:
        assert report["rmsd_to_relaxed"].n == 10 and 0 <= report["rmsd_to_relaxed"].value < 0.05
        assert hits(report, "match_to_relaxed") == [10] and report["match_to_relaxed"].n == 12
    if "p1@0.1" in names:
        assert report["p1@0.1"].n == 12 and report["coverage_precision"].n == 12


# ---- what a protocol asks for


def test_unreadable_structures_count(made, known, hull):
    given = [*to_structures(made[:3].without("formation_energy")), None, Record(None, "x", {}, "x.cif", 0, "truncated")]
    report = judge(given, known, hull=hull)
    assert hits(report, "sun", "unique", "novel", "stable@0.05") == [2, 3, 2, 3] and report["sun"].n == 5
    assert report.failures == {"no structure was given": 1, "truncated": 1}
    assert "e_above_hull" not in report.rows[3] and report["relaxation_failed"].n == 3


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_sound_all_rates_are_zero(made, known, hull, name):
    odd = made[0].replace(atomic_numbers=torch.tensor([47, 300]))
    report = judge(concatenate([made[8], made[9], odd]), known, name, hull)
    assert hits(report, "sun", "stable@0.1", "unique_and_novel", "relaxation_converged")[:2] == [0, 0]
    assert report.failures["an atomic number is not in 1..118"] == 1 and report["not_evaluable"].hits == 1
    assert report["e_above_hull"].n == 0 and json.dumps(report.as_dict(), allow_nan=False)


def test_relaxing_only_what_is_new_gives_the_same(made, known, hull):
    base = replace(PROTOCOLS["flowmm-sun"], name="mine", compared="made")
    counted = {}
    for relaxed in ("all", "valid", "unique-novel"):
        potential = LennardJones()
        report = judge(made, known, replace(base, relaxed=relaxed), hull, potential)
        counted[relaxed] = hits(report, "sun", "sun@0", "msun@0.05", "msun@0.1", "symmetric_sun", "unique_and_novel")
        assert report["relaxation_converged"].n == {"all": 12, "valid": 10, "unique-novel": 5}[relaxed]
        if relaxed == "unique-novel":
            assert all(number.name[:6] != "stable" for number in report.numbers)
    assert counted["all"] == counted["valid"] == counted["unique-novel"] == [2, 2, 2, 3, 2, 5]
    with pytest.raises(ValueError, match="^relaxed = 'unique-novel' with compared = 'relaxed', allowed: compared = 'm"):
        SunProtocol("mine", relaxed="unique-novel")
    with pytest.raises(ValueError, match="^compared = 'later', allowed: made, relaxed"):
        SunProtocol("mine", compared="later")


def test_comparing_after_the_relaxation_finds_more_copies(made, known, hull):
    """Two cells stretched by a third and by half are different crystals, until they have relaxed."""
    stretches = torch.diag_embed(torch.tensor([[1.35, 0.9, 0.9], [1.45, 0.85, 0.85]], dtype=torch.float64))
    both = made[[0, 0]]
    both = both.replace(lattice=both["lattice"] @ stretches)
    base = PROTOCOLS["flowmm-sun"]
    as_made, relaxed = (judge(both, known, replace(base, compared=how), hull) for how in ("made", "relaxed"))
    assert hits(as_made, "unique", "sun") == [2, 2] and hits(relaxed, "unique", "sun") == [1, 1]


def test_elements_alone_are_not_stable_where_the_protocol_says_so(made, known, hull):
    silver = made[0][[0]]
    silver = type(silver)([1], **{k: silver[k][:1] for k in ("atomic_numbers", "frac_coords", "lattice")})
    silver = silver.replace(atomic_numbers=torch.tensor([47]))
    flowmm, mattergen = (judge(silver, known, name, hull) for name in ("flowmm-sun", "mattergen-sun"))
    assert hits(flowmm, "stable@0", "sun") == [0, 0] and hits(mattergen, "stable@0", "sun") == [1, 1]
    assert "of at least 2 elements" in flowmm["stable@0"].note
    assert flowmm.rows[0]["e_above_hull"] < 0


def test_alloys_are_counted_with_and_without_their_disorder(hull):
    """Two that exchange Fe and Mn, the second of which is known, and one of another composition."""
    elements = ["Fe", "Fe", "Ni", "Mn"], ["Ni", "Fe", "Mn", "Fe"], ["Fe", "Ni", "Ni", "Mn"]
    alloys = batch(*((one, SITES) for one in elements))
    report = judge(alloys, alloys[[1]], replace(PROTOCOLS["mattergen-sun"], compared="made"), hull)
    assert hits(report, "unique", "novel", "unique_and_novel") == [2, 1, 1]
    assert hits(report, "unique_ordered", "novel_ordered") == [3, 2]


def test_a_worse_polymorph_leaves_the_hull_with_the_samples(made, known, hull):
    worse = made[5].replace(atomic_numbers=made[0]["atomic_numbers"])
    report = judge(concatenate([made[0], worse]), known, "strict", hull)
    assert hits(report, "sun", "sun_self_consistent") == [2, 1]


def test_elements_without_a_reference_are_counted_apart(made, known, hull):
    elements = {0: [84, 17], 1: [95, 8], 2: [18, 18], 3: [61, 8]}  # Po, Am, Ar and Pm
    batch = made[:4].without("formation_energy")
    batch = batch.replace(atomic_numbers=torch.tensor([z for pair in elements.values() for z in pair]))
    potential = LennardJones(correction="MP2020", elements=frozenset(range(1, 95)))
    report = judge(batch, known, "mattergen-sun", None, potential)
    assert report.failures == {
        "no reference energy of Po in e_hull[mp20]": 1,
        "lennard-jones does not know Am": 1,
    }
    assert report["not_evaluable"].hits == 2 and report["not_evaluable"].n == report["sun"].n == 4
    assert "1 x no reference energy of Po" in report["not_evaluable"].note
    assert report["relaxation_failed"].n == 2 and report["relaxation_failed"].hits == 0
    own = judge(batch, known, "flowmm-sun", hull)
    assert own["not_evaluable"].hits == 4 and "no reference energy of Po in e_hull[toy]" in own.failures
    assert np.isnan(own["e_above_hull"].value) and own["sun"].hits == 0


# ---- names and files


def test_the_name_is_bare_only_for_what_was_published(made, known, hull, capsys, monkeypatch):
    published = "mp20 train, all 26343"
    strict, mattergen = PROTOCOLS["strict"], PROTOCOLS["mattergen-sun"]
    assert strict.label("e_hull[mp20]", published) == "strict"
    for reference in ("mp20 val, all 8747", "mp20 train, first 100 of 26343", "12 structures given"):
        assert strict.label("e_hull[mp20]", reference) == "strict [chgnet, e_hull[mp20]]"
    assert mattergen.label("e_hull[mp20]", published) == "mattergen-sun [chgnet, e_hull[mp20]]"
    monkeypatch.setenv("COLUMNS", "150")
    report = judge(made[:2], known, hull=hull)
    report.show()
    printed = capsys.readouterr().out
    assert "flowmm-sun [lennard-jones 1, e_hull[toy]] (" in printed and "e_hull[toy] <= 0 eV/atom" in printed
    saved = report.as_dict()
    assert saved["protocol"]["name"] == saved["numbers"]["sun"]["protocol"] == report.name
    assert saved["protocol"]["hull"] == f"toy {saved['versions']['e_hull[toy]']}"


def test_potential_and_hull_change_the_hash(known, hull):
    base = PROTOCOLS["strict"]
    scales = [
        find_scale(base, LennardJones(correction="MP2020"))[0],
        find_scale(base, LennardJones(version="2"), hull)[0],
        find_scale(base, LennardJones(), hull)[0],
    ]
    assert len({base.hash, *(protocol.hash for protocol in scales)}) == 4
    assert len({PROTOCOLS[name].hash for name in NAMES}) == 4


def test_files_hold_everything(made, known, hull, tmp_path):
    pytest.importorskip("jinja2")
    report = judge(made, known, "mattergen-sun", hull, out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert report.name in page and "energy above hull" in page
    with open(tmp_path / "structures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sun"] == "True" for row in rows] == [bool(flag) for flag in column(report, "sun")]
    relaxed = list(read(tmp_path / "relaxed.extxyz"))
    assert [record.id for record in relaxed] == [str(i) for i in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11)]
    for record in relaxed:
        energy = record.properties["energy"] / len(record.structure)
        assert energy == pytest.approx(-0.39 if "Na" in record.structure.formula else -0.726, abs=2e-3)
        assert record.properties["e_above_hull"] == pytest.approx(report.rows[int(record.id)]["e_above_hull"])


@dataclass
class Interrupted(LennardJones):
    """Is interrupted at its call number `last`."""

    last: int = 10**9

    def __call__(self, batch):
        if len(self.calls) == self.last:
            raise KeyboardInterrupt
        return super().__call__(batch)


def test_a_relaxation_that_was_stopped_goes_on(made, known, hull, tmp_path, capsys):
    def work(**options):
        potential = Interrupted(**options)
        return judge(made, known, "mattergen-sun", hull, potential, out=tmp_path), potential

    with pytest.raises(KeyboardInterrupt) as stopped:
        work(last=20)
    assert any("the same call goes on" in note for note in stopped.value.__notes__)
    capsys.readouterr()
    (folder,) = tmp_path.glob("relaxed-*")
    before = {file: file.stat().st_mtime_ns for file in folder.glob("chunk-*")}
    assert 0 < len(before) < 3 and not (tmp_path / "report.json").exists()
    with showing(True):
        report, potential = work()
    assert any("relaxing" in line and "12/12 2 failed" in line for line in capsys.readouterr().err.splitlines())
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list(folder.glob("chunk-*"))) == 3
    whole = Interrupted()
    assert judge(made, known, "mattergen-sun", hull, whole).as_dict() == report.as_dict()
    done = len(before) * 5
    alone = Interrupted()
    relax(made[:done], alone, RelaxationSettings(fmax=0.05))
    assert sum(potential.calls) + sum(alone.calls) == sum(whole.calls)
    again = work()[1]
    assert again.calls == []


def test_jobs_share_out_the_relaxation_and_the_last_one_reports(made, known, hull, tmp_path):
    for part in ("2/3", "0/3"):
        with pytest.raises(Unfinished, match="^relaxing: other parts are still to be computed$"):
            judge(made, known, hull=hull, out=tmp_path, part=part)
        assert not (tmp_path / "report.json").exists()
    potential = Interrupted()
    report = judge(made, known, hull=hull, out=tmp_path, part="1/3", potential=potential)
    assert report.as_dict() == judge(made, known, hull=hull, potential=Interrupted()).as_dict()
    assert (tmp_path / "report.json").exists() and sum(potential.calls) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_cluster_gives_the_same(made, known, hull, tmp_path):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    protocol = replace(PROTOCOLS["flowmm-sun"], resamples=5)
    options = {"potential": LennardJones(), "hull": hull, "out": tmp_path, "processes": 1, "engine": "ray"}
    assert evaluate(made, known, protocol, **options).as_dict() == judge(made, known, hull=hull).as_dict()


def test_the_step_is_the_same_in_another_process(made, tmp_path):
    path = tmp_path / "made.parquet"
    path.write_bytes(to_parquet(to_table(made)))
    step = RelaxMade(str(path), Relaxer(LennardJones(), RelaxationSettings()))
    here, there = (one()(2, 6) for one in (step, pickle.loads(pickle.dumps(step))))
    assert here.equals(there) and here.num_rows == 4 and here["converged"].to_pylist() == [True] * 4
    assert pickle.loads(pickle.dumps(Chgnet(RelaxationSettings(steps=7)))).settings.steps == 7


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"potential": "mace"}, "^potential = 'mace', allowed: chgnet, or an object of evaluation.relaxation.pot"),
        ({"potential": 7}, "^potential = a int, allowed: chgnet"),
        ({"hull": "mp21"}, "^hull = 'mp21', allowed: mp20, or an existing .json, .csv, .parquet file"),
        ({}, "^potential = 'lennard-jones 1' has energies with correction 'none', the references 'mp2020' need"),
        ({"k": 2}, "^k = 2 is for structure prediction; allowed with the protocol flowmm-sun: None"),
        ({"reference": None}, "^reference = None, needed by the protocol flowmm-sun; allowed: a data set"),
        ({"part": "0/2"}, "^part = '0/2' with out = None, allowed: with a folder"),
        ({"part": "2/2"}, "^part = '2/2', allowed: k/n"),
        ({"engine": "ray"}, "^engine = 'ray' with out = None, allowed: with a folder"),
        ({"protocol": "cdvae-2022", "part": "0/2"}, "^part = '0/2' is for stability; allowed with the protocol cdvae"),
        ({"device": "cpu"}, "^device = 'cpu' is for potential = 'chgnet'; allowed with an object of one: None"),
        ({"protocol": "cdvae-2022"}, "^potential = .*is for stability; allowed with the protocol cdvae-2022: None"),
        ({"protocol": "edm-qm9", "potential": None, "hull": "mp20"}, "^hull = 'mp20' is for stability"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(made, known, options, message):
    asked = {"reference": known, "protocol": "flowmm-sun", "potential": LennardJones(), **options}
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(made[:1], asked.pop("reference"), asked.pop("protocol"), processes=0, **asked)
    assert "\n" not in str(caught.value)


def test_an_unfinished_job_is_no_fault_on_the_console(monkeypatch, capsys):
    def unfinished(*_, part, **__):
        raise Unfinished(f"relaxing {part}")

    monkeypatch.setattr("evaluation.evaluate.evaluate", unfinished)
    done = cli(["evaluate", "x.cif", "--part", "1/4"], monkeypatch, capsys)
    assert (done.code, done.out) == (0, "relaxing 1/4: other parts are still to be computed\n")


def test_the_console_says_it_in_one_line(monkeypatch, capsys):
    words = ["evaluate", "prototypes:val:2", "--reference", "prototypes", "--protocol", "strict", "--potential", "mace"]
    done = cli(words, monkeypatch, capsys)
    assert done.code == 2 and done.err.startswith("atomsmith: potential = 'mace', allowed: chgnet")
    assert len(done.err.splitlines()) == 1


def test_without_chgnet_the_extra_is_named(made, known, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "chgnet.model", None)
    with pytest.raises(ImportError, match="the extra 'stability'"):
        evaluate(made[:1], known, "flowmm-sun", processes=0)


# ---- parts


def test_a_table_of_total_energies_has_its_own_elements(hull, made):
    weigh = AgainstHull(str(hull))()
    found = weigh(made[[0, 2]].without("formation_energy"), [-2 * 0.7, -2 * 0.8])
    np.testing.assert_allclose(found.e_above_hull, [-0.7, -0.1], atol=1e-12)


def test_supply_risk_is_that_of_pymatgen():
    from pymatgen.analysis.hhi import HHIModel

    formulas = ["SrTiO3", "NaCl", "Fe2O3", "Pm2O3", "Pt"]
    expected = [HHIModel().get_hhi(formula) for formula in formulas]
    wanted = [(0.25 * production + 0.75 * reserves) / 1000 for production, reserves in expected]
    np.testing.assert_allclose(supply_risk(formulas), wanted, rtol=1e-4)
    assert supply_risk(["SrTiO3"])[0] == pytest.approx(2.0914, abs=1e-4)
    assert np.isnan(supply_risk(["LiH", "ArO"])).all()


def test_real_crystals_by_chgnet(data_root):
    pytest.importorskip("chgnet", reason="chgnet is not installed: it comes with the extra 'stability'")
    report = evaluate("mp20:val:4", "mp20:val:4", "mattergen-sun", processes=0)
    assert report.name == "mattergen-sun [chgnet, e_hull[mp20]]" and report["sun"].n == 4
    assert report["novel"].hits == report["sun"].hits == 0 and report["relaxation_converged"].hits == 4
    assert report["e_above_hull"].value < 0.2 and report["rmsd_to_relaxed"].value < 0.2
    assert "residual 20 meV/atom" in report["sun"].note


def test_the_device_reaches_what_relaxes_and_what_weighs(made, known):
    pytest.importorskip("chgnet", reason="chgnet is not installed: it comes with the extra 'stability'")
    scale = find_scale(PROTOCOLS["strict"], device="cpu")[1]
    assert (scale.potential.device, scale.relaxer.device) == (torch.device("cpu"), "cpu")
    with pytest.raises(ValueError, match="^device must be 'auto' or a device of this machine such as 'cpu', got 'tpu'"):
        atomsmith.evaluate(made[:1], known, "strict", device="tpu")


def test_references_belong_to_a_potential():
    """Those fitted to one potential serve no other, even of the same corrections."""
    protocol, scale = find_scale(PROTOCOLS["strict"])
    assert (protocol.references, scale.references.name) == ("chgnet", "chgnet")
    protocol, scale = find_scale(PROTOCOLS["strict"], LennardJones(correction="MP2020"))
    assert (protocol.references, scale.references.name) == ("mp2020", "mp2020")
