"""Files: every format there and back on triclinic cells, and bad files that must not end a stream."""

import gzip
import json
import random
import warnings

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chem import io as files
from chem.io import Record, Writer, read, write
from chem.structure_text import from_cell, to_cell

TEXT_FILES = ["out.cif", "out.extxyz", "out.jsonl", "out.csv"]
ALL_FILES = [*TEXT_FILES, "out.parquet"]
PROPERTIES = {
    "energy": -3.25,
    "steps": 1000,
    "ok": True,
    "method": "flow matching",
    "looks_like": "123",
    "truth": "T",
    "quoted": 'a "b" #c \\d',
    "unicode": "Å ö",
    "lines": "one\ntwo;\n;three",
    "list": [1.5, 2.0],
    "nested": {"seed": 0, "names": ["a", "b"]},
    "with space": 1,
    "stress": 2.5,
}


def triclinic(elements=("Na", "Cl", "Na", "O"), seed: int = 0, left_handed: bool = False) -> Structure:
    rng = np.random.default_rng(seed)
    angles = 75 + 35 * rng.random(3)
    matrix = Lattice.from_parameters(*(3 + 4 * rng.random(3)), *angles).matrix
    matrix = matrix @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if (np.linalg.det(matrix) < 0) != left_handed:
        matrix = -matrix
    return Structure(matrix, list(elements), rng.random((len(elements), 3)))


def same_crystal(a: Structure, b: Structure, tolerance: float = 1e-6) -> bool:
    """Equal site by site up to a proper rotation and the choice of images; a mirror image differs."""
    if [s.specie.Z for s in a] != [s.specie.Z for s in b]:
        return False
    forms = []
    for s in (a, b):
        sign = np.sign(np.linalg.det(s.lattice.matrix))
        forms.append((np.array(s.lattice.parameters), sign * s.frac_coords))
    (cell_a, frac_a), (cell_b, frac_b) = forms
    delta = frac_a - frac_b
    return np.allclose(cell_a, cell_b, atol=tolerance) and np.abs(delta - delta.round()).max() < tolerance


def structures() -> list[Structure]:
    return [triclinic(seed=0), triclinic(("Fe",), seed=1), triclinic(("Si", "O", "Si", "H", "O"), 2, left_handed=True)]


@pytest.mark.parametrize("name", ALL_FILES)
def test_round_trip(tmp_path, name):
    path = tmp_path / name
    given = structures()
    with Writer(path) as out:
        for i, structure in enumerate(given):
            structure.properties = {"source": "here"}
            out.write(structure, id=f"id-{i}", properties={**PROPERTIES, "n": i})
        assert out.count == 3
    records = list(read(path))
    assert [r.id for r in records] == ["id-0", "id-1", "id-2"] and [r.index for r in records] == [0, 1, 2]
    assert {r.source for r in records} == {str(path)} and {r.error for r in records} == {None}
    for i, (record, structure) in enumerate(zip(records, given, strict=True)):
        assert record.properties == {"source": "here", **PROPERTIES, "n": i}
        assert record.structure.properties == record.properties
        assert same_crystal(record.structure, structure)
    assert not [p for p in tmp_path.iterdir() if p != path], "temporary files are left"


@pytest.mark.parametrize("format", ["cif", "poscar"])
def test_folder_round_trip(tmp_path, format):
    folder = tmp_path / "made"
    given = structures() * 4
    assert write([Record(s, f"a/b {i}", {"n": i}) for i, s in enumerate(given)], folder, format) == 12
    records = list(read(folder))
    assert [r.properties for r in records] == [{"n": i} for i in range(12)]
    assert [r.id for r in records] == [f"a/b {i}" for i in range(12)]
    assert all(same_crystal(r.structure, s) for r, s in zip(records, given, strict=True))
    with pytest.raises(ValueError, match="holds 12 .* files already; mode='a' adds"):
        Writer(folder, format)
    with Writer(folder, format, mode="a") as out:
        out.write(given[0])
        assert out.count == 13
    assert len(list(read(folder, format))) == 13


def test_poscar_file_holds_one(tmp_path):
    with Writer(tmp_path / "POSCAR") as out:
        out.write(triclinic())
        with pytest.raises(ValueError, match="one structure already"):
            out.write(triclinic())
    record = next(read(tmp_path / "POSCAR"))
    assert record.id == "POSCAR" and same_crystal(record.structure, triclinic())


def test_precision_of_the_lattice_and_the_coordinates(tmp_path):
    exact = triclinic(seed=5)
    for name, tolerance in [("a.jsonl", 1e-15), ("a.vasp", 1e-11), ("a.cif", 1e-9), ("a.extxyz", 1e-8)]:
        write([exact], tmp_path / name)
        back = next(read(tmp_path / name)).structure
        assert same_crystal(back, exact, 5 * tolerance), name
    assert np.allclose(next(read(tmp_path / "a.extxyz")).structure.lattice.matrix, exact.lattice.matrix, atol=1e-14)


def test_json_lines_keep_site_properties_charges_and_plain_structures(tmp_path):
    structure = triclinic()
    structure.add_site_property("magmom", [1.0, 2.0, 3.0, 4.0])
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1, "O": -2})
    write([structure], tmp_path / "a.jsonl")
    with open(tmp_path / "a.jsonl", "a") as out:
        out.write(json.dumps(triclinic(seed=3).as_dict()) + "\n")
    first, second = read(tmp_path / "a.jsonl")
    assert first.structure == structure and first.structure.site_properties["magmom"] == [1, 2, 3, 4]
    assert second.structure == triclinic(seed=3) and second.id == "a_1"


def test_json_lines_import_nothing(tmp_path):
    data = triclinic().as_dict()
    data["sites"][0]["properties"] = {"x": {"@module": "os", "@class": "system"}}
    data["properties"] = {"y": {"@module": "pathlib", "@class": "Path", "@version": "1"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(data))
    record = next(read(tmp_path / "a.jsonl"))
    assert record.error is None and record.properties["y"]["@class"] == "Path"


def test_symprec_writes_symmetry_and_falls_back(tmp_path, monkeypatch):
    fcc = Structure(Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), ["Cu"], [[0, 0, 0]])
    write([fcc], tmp_path / "with.cif", symprec=0.01)
    write([fcc], tmp_path / "without.cif")
    assert "Fm-3m" in (tmp_path / "with.cif").read_text() and "P 1" in (tmp_path / "without.cif").read_text()
    record = next(read(tmp_path / "with.cif"))
    assert len(record.structure) == 4 and record.structure.density == pytest.approx(fcc.density)

    def fails(*_, **__):
        raise TypeError("no symmetry today")

    monkeypatch.setattr("pymatgen.io.cif.SpacegroupAnalyzer", fails)
    write([fcc], tmp_path / "fallback.cif", symprec=0.01)
    assert same_crystal(next(read(tmp_path / "fallback.cif")).structure, fcc)
    with pytest.raises(ValueError, match="symprec is for CIF text"):
        Writer(tmp_path / "a.extxyz", symprec=0.1)


def test_foreign_cif_with_symmetry_uncertainties_and_several_blocks(tmp_path):
    foreign = """
data_global
_publ_author_name 'A. Person'
data_rocksalt
_cell_length_a 5.64(2)
_cell_length_b 5.64(2)
_cell_length_c 5.64(2)
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_publ_section_title
;
data_not a block
;
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na 0 0 0
Cl1 Cl 0.5 0.5 0.5
"""
    partial = foreign.replace("_fract_z\n", "_fract_z\n_atom_site_occupancy\n").replace("0 0 0\n", "0 0 0 0.5\n")
    partial = partial.replace("0.5 0.5 0.5\n", "0.5 0.5 0.5 1\n")
    (tmp_path / "two.cif").write_text(foreign + partial + "data_broken\n_cell_length_a 3\n")
    whole, half, broken = read(tmp_path / "two.cif")
    assert whole.structure.formula == "Na4 Cl4" and whole.id == "two_0"
    assert half.structure is None and half.error.startswith("partial occupancy: site Na")
    assert broken.structure is None and broken.error and "\n" not in broken.error
    (tmp_path / "one.cif").write_text(foreign)
    assert [r.id for r in read(tmp_path / "one.cif")] == ["one"]


def test_p1_order_equals_pymatgen_up_to_sorting(tmp_path):
    from pymatgen.io.cif import CifParser

    structure = triclinic(("O", "Na", "O", "H", "Na"), seed=9)
    write([structure], tmp_path / "a.cif")
    ours = next(read(tmp_path / "a.cif")).structure
    theirs = CifParser(tmp_path / "a.cif").parse_structures(primitive=False)[0]
    assert [s.specie.symbol for s in ours] == ["O", "Na", "O", "H", "Na"]
    assert same_crystal(ours.get_sorted_structure(), theirs.get_sorted_structure(), 1e-6)


def test_folder_order_mixed_formats_and_lists(tmp_path):
    write([triclinic()], tmp_path / "b.cif")
    write([triclinic(), triclinic()], tmp_path / "c.extxyz")
    write([triclinic()], tmp_path / "a.vasp")
    (tmp_path / "notes.txt").write_text("nothing")
    assert [(r.source.rsplit("/")[-1], r.index) for r in read(tmp_path)] == [
        ("a.vasp", 0),
        ("b.cif", 0),
        ("c.extxyz", 0),
        ("c.extxyz", 1),
    ]
    assert [r.id for r in read([tmp_path / "b.cif", tmp_path / "a.vasp"])] == ["b", "a"]
    assert len(list(read(tmp_path, format="cif"))) == 1
    (tmp_path / "bare").mkdir()
    (tmp_path / "a.vasp").rename(tmp_path / "bare" / "mp-1")
    assert [r.id for r in read(tmp_path / "bare", format="poscar")] == ["mp-1"]


@pytest.mark.parametrize("name", ["a.cif", "a.vasp", "a.extxyz"])
def test_other_programs_read_what_we_write(tmp_path, name):
    import ase.io

    write([Record(triclinic(seed=7), "mp-1", PROPERTIES)], tmp_path / name)
    atoms = ase.io.read(tmp_path / name)
    assert atoms.get_chemical_symbols() == [s.specie.symbol for s in triclinic(seed=7)]
    assert np.allclose(atoms.cell.cellpar(), triclinic(seed=7).lattice.parameters, atol=1e-6)
    if name == "a.extxyz":
        assert atoms.info["id"] == "mp-1" and atoms.get_potential_energy() == -3.25
    else:
        assert len(Structure.from_file(tmp_path / name)) == 4


def test_tables_of_other_programs(tmp_path):
    from chem.structure_text import structure_to_cif, structure_to_poscar

    cif = structure_to_cif(triclinic()).replace('"', '""')
    table = f',material_id,cif,band_gap,note\n0,0012,"{cif}",1.5,\n1,mp-2,,0.5,x\n2,mp-3,short\n'
    (tmp_path / "cdvae.csv").write_text(table)
    first, empty, short = read(tmp_path / "cdvae.csv")
    assert first.id == "0012" and first.properties == {"band_gap": 1.5} and same_crystal(first.structure, triclinic())
    assert empty.id == "mp-2" and empty.error == "no text in column cif or poscar"
    assert short.error == "the row has 3 cells, the header 5"
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = structure_to_poscar(triclinic())
    pq.write_table(pa.table({"poscar": [text, "nonsense"], "jid": ["J1", "J2"]}), tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert same_crystal(good.structure, triclinic()) and good.properties == {"jid": "J1"}
    assert bad.structure is None and bad.error and bad.properties == {"jid": "J2"}


def test_parquet_columns_that_change_type(tmp_path):
    given = [{"a": 1}, {"a": 2.5, "b": "x"}, {"c": {"k": 1}, "b": 3}, {"d": [1.0, 2.0]}, {"e": None, "f": True}]
    write([Record(triclinic(), None, p) for p in given], tmp_path / "a.parquet")
    back = [r.properties for r in read(tmp_path / "a.parquet")]
    assert back == [{"a": 1.0}, {"a": 2.5, "b": "x"}, {"c": {"k": 1}, "b": 3}, {"d": [1.0, 2.0]}, {"f": True}]
    assert [r.id for r in read(tmp_path / "a.parquet")] == [f"a_{i}" for i in range(5)]


@pytest.mark.parametrize("name", TEXT_FILES)
def test_interrupted_file_keeps_whole_records_and_can_be_continued(tmp_path, name):
    path, whole = tmp_path / name, tmp_path / f"whole-{name}"
    given = [Record(s, f"id-{i}", {"text": "a\nb"}) for i, s in enumerate(structures())]
    write(given, whole)
    data = whole.read_bytes()
    ends = [0]
    with Writer(path) as out:
        for record in given:
            out.write(record.structure, record.id, record.properties)
            assert path.stat().st_size > ends[-1], "not flushed"
            ends.append(path.stat().st_size)
    assert path.read_bytes() == data
    for cut in [*ends[1:], *range(7, len(data), 97)]:
        path.write_bytes(data[:cut])
        kept = sum(end <= cut for end in ends[1:])
        assert sum(r.structure is not None for r in read(path)) >= kept
        with Writer(path, mode="a") as out:
            assert out.count == kept
            for record in given[kept:]:
                out.write(record.structure, record.id, record.properties)
        assert path.read_bytes() == data


def test_append_to_a_foreign_cif_loses_nothing(tmp_path):
    from pymatgen.io.cif import CifWriter

    (tmp_path / "a.cif").write_text(str(CifWriter(triclinic())))
    with Writer(tmp_path / "a.cif", mode="a") as out:
        assert out.count == 1
        out.write(triclinic(seed=1))
    back = list(read(tmp_path / "a.cif"))
    assert len(back) == 2 and all(same_crystal(r.structure, triclinic(seed=i)) for i, r in enumerate(back))


def test_writer_modes_and_parquet_atomicity(tmp_path):
    path = tmp_path / "a.parquet"
    with Writer(path) as out:
        out.write(triclinic())
        assert not path.exists()
    with pytest.raises(ValueError, match="exists; mode='a' appends to it, mode='w' replaces it"):
        Writer(path)
    with pytest.raises(ValueError, match="cannot be appended to"):
        Writer(path, mode="a")
    with pytest.raises(ValueError, match="mode must be 'x', 'a' or 'w', got 'r'"):
        Writer(path, mode="r")
    assert write([triclinic()] * 2, path, mode="w") == 2 and len(list(read(path))) == 2
    with pytest.raises(ValueError, match="is closed"):
        out.write(triclinic())


def test_bad_structures_are_refused_by_the_writer(tmp_path):
    mixed = Structure(Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    with Writer(tmp_path / "a.csv") as out:
        with pytest.raises(ValueError, match="structure 0 has partial occupancy"):
            out.write(mixed)
        with pytest.raises(ValueError, match="properties of structure 0 are not plain data"):
            out.write(triclinic(), properties={"x": object()})
        with pytest.raises(ValueError, match="property 'cif' of structure 0 is the name of a csv column"):
            out.write(triclinic(), properties={"cif": "text"})
        with pytest.raises(ValueError, match="has id 'a' and a property id 'b'"):
            out.write(triclinic(), id="a", properties={"id": "b"})
        out.write(triclinic(), properties={"x": np.float64(1.5)})
        with pytest.raises(ValueError, match=r"keeps the columns of its first row \(id, cif, x\); got 'y'"):
            out.write(triclinic(), properties={"y": 1})
    assert [r.properties for r in read(tmp_path / "a.csv")] == [{"x": 1.5}]
    with pytest.raises(ValueError, match=r"record 0 \(f.cif, 3\) has no structure: why"):
        write([Record(None, "a", {}, "f.cif", 3, "why")], tmp_path / "b.csv")


def test_what_cannot_be_read_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none\.cif: No such file.*known formats: cif"):
        read(tmp_path / "none.cif")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"cannot tell the format of .*a\.txt; .*extxyz \(\.extxyz, \.xyz\)"):
        read(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="format 'pdb' of .* is unknown; known: cif"):
        read(tmp_path / "a.txt", format="pdb")
    with pytest.raises(ValueError, match="folder .* has no file to read"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("id,formula\n1,NaCl\n")
    with pytest.raises(ValueError, match=r"a\.csv has no column cif or poscar; it has: id, formula"):
        read(tmp_path / "a.csv")


BAD_CELLS = {
    "empty.jsonl": json.dumps({"lattice": {"matrix": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}, "sites": []}),
    "flat.vasp": "comment\n1.0\n3 0 0\n0 3 0\n3 3 0\nNa\n1\nDirect\n0 0 0\n",
    "nan.xyz": '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"\nNa nan 0 0\n',
    "slab.xyz": '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T F"\nNa 0 0 0\n',
    "molecule.xyz": "1\ncomment\nH 0 0 0\n",
    "torn.xyz": '3\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nNa 0 0 0\n',
    "old.vasp": "comment\n1.0\n3 0 0\n0 3 0\n0 0 3\n1\nDirect\n0 0 0\n",
    "list.jsonl": "[1, 2]\n",
    "deep.jsonl": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_one_bad_structure_is_one_record(tmp_path, name):
    (tmp_path / name).write_text(BAD_CELLS[name])
    records = list(read(tmp_path / name))
    assert len(records) == 1 and records[0].structure is None
    assert records[0].error and "\n" not in records[0].error and len(records[0].error) <= 300


def test_stream_goes_on_after_bad_lines(tmp_path):
    write([triclinic()], tmp_path / "a.jsonl")
    line = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(line + "{torn\n" + "\n" + line.replace("Na", "Xx") + line)
    assert [r.structure is not None for r in read(tmp_path / "a.jsonl")] == [True, False, False, True]


@pytest.mark.parametrize("name", [*ALL_FILES, "out.vasp"])
def test_torn_empty_and_binary_files_never_end_the_stream(tmp_path, name):
    path = tmp_path / name
    write([triclinic()] if name == "out.vasp" else structures(), path)
    data, rng = path.read_bytes(), random.Random(0)
    bad = [b"", b"\n", bytes(rng.randrange(256) for _ in range(3000)), gzip.compress(data), b"\0" * 500]
    bad += [data[: rng.randrange(len(data))] for _ in range(15)]
    for _ in range(15):
        scratched = bytearray(data)
        for _ in range(20):
            scratched[rng.randrange(len(data))] = rng.randrange(256)
        bad.append(bytes(scratched))
    for i, content in enumerate(bad):
        (tmp_path / f"{i:03d}-{name}").write_bytes(content)
    path.rename(tmp_path / f"999-{name}")
    records = list(read(tmp_path))
    assert len({r.source for r in records}) == len(bad) + 1
    assert all((r.structure is None) == bool(r.error) and "\n" not in (r.error or "") for r in records)
    last = [r for r in records if r.source.endswith(f"999-{name}")]
    assert last and all(r.structure is not None for r in last)


CELLS = [None, True, "True", 1, "1", -2.5, "1e5", "nan", "", "a,b", '"x"', "[1", [1, "a"], {"k": None}]


@pytest.mark.parametrize("value", CELLS)
def test_csv_cells_keep_type_and_value(value):
    back = from_cell(to_cell(value))
    assert back == value and type(back) is type(value)


def test_importing_is_light():
    import subprocess
    import sys

    heavy = ("pymatgen", "ase", "pandas", "pyarrow", "torch")
    code = f"import sys, chem.io; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert set(files.__all__) <= set(dir(files))


def test_real_tables(data_root):
    records = read(data_root / "mp20_val.parquet")
    first = [record for record, _ in zip(records, range(50), strict=False)]
    assert all(r.error is None and r.id.startswith("mp-") for r in first)
    assert {"band_gap", "formation_energy_per_atom"} <= set(first[0].properties)
    import pyarrow.parquet as pq
    from pymatgen.io.cif import CifParser

    text = next(pq.ParquetFile(data_root / "mp20_val.parquet").iter_batches(batch_size=50)).to_pylist()
    for record, row in zip(first[:10], text[:10], strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = CifParser.from_str(row["cif"]).parse_structures(primitive=False)[0]
        ours = record.structure
        assert ours.formula == theirs.formula and ours.volume == pytest.approx(theirs.volume, rel=1e-6)
        assert np.allclose(ours.distance_matrix.sum(), theirs.distance_matrix.sum(), rtol=1e-3)
