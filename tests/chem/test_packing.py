"""Tables packed once: orientation, reduction, failures, dying processes, the cache."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from chem import packing, row_parsing
from chem.convert import to_structures
from chem.packing import assemble, load_packed, pack, save
from chem.row_parsing import pack_rows

SKEWED = [[1, 0, 0], [1, 1, 0], [-2, 1, 1]]  # an unreduced basis of the same lattice


def structure(seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    lattice = Lattice(SKEWED @ Lattice.from_parameters(3.1, 4.2, 5.3, 80, 100, 110).matrix)
    return Structure(lattice, ["Na", "Cl", "O", "O"], rng.random((4, 3)))


def cif(one: Structure) -> str:
    return str(CifWriter(one, significant_figures=12))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    texts = [cif(structure(0)), "data_x\n_cell_length_a broken", cif(structure(1)), None]
    frame = pd.DataFrame({"material_id": ["a", "bad", "c", "none"], "cif": texts, "split": ["train"] * 3 + ["val"]})
    frame["gap"] = [1.5, 2.0, np.nan, 0.0]
    frame["num_atoms"] = [7, 7, 7, 7]
    frame["label"] = "text"
    frame.to_parquet(tmp_path / "table.parquet")
    frame.to_csv(tmp_path / "table.csv")
    return tmp_path / "table.parquet"


def test_orientation_of_the_sheet() -> None:
    one = Structure(Lattice.from_parameters(3, 4, 5, 80, 100, 110), ["Si"], [[0.1, 0.2, 0.3]])
    turned = Structure(Lattice(one.lattice.matrix @ np.linalg.qr(np.random.default_rng(0).random((3, 3)))[0]), ["Si"],
                       one.frac_coords)  # fmt: skip
    expected = [[2.954423, 0, -0.520945], [-1.26671, 3.730012, 0.694593], [0, 0, 5]]
    packed = assemble(pack_rows([one, turned], niggli=False), ["a", "b"], {})
    np.testing.assert_allclose(packed.lattice, [expected, expected], atol=5e-7)


def test_niggli_cell() -> None:
    packed = assemble(pack_rows([cif(structure())]), ["a"], {})
    reduced, expected = Lattice(packed.lattice[0]), structure().lattice.get_niggli_reduced_lattice()
    np.testing.assert_allclose(reduced.parameters, expected.parameters, atol=1e-6)
    assert reduced.matrix[0, 1] == 0 and abs(reduced.matrix[2, :2]).max() == 0
    assert abs(np.subtract(reduced.parameters, structure().lattice.parameters)).max() > 1


@pytest.mark.parametrize("niggli", [True, False])
@pytest.mark.parametrize("hand", [1, -1])
def test_packing_keeps_the_crystal_and_its_hand(niggli: bool, hand: int) -> None:
    one = structure()
    one = Structure(Lattice(hand * one.lattice.matrix[[0, 2, 1]]), one.species, one.frac_coords)
    packed = assemble(pack_rows([one], niggli), ["a"], {})
    after = to_structures(packed.batch())[0]
    assert np.linalg.det(after.lattice.matrix) > 0
    assert StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1, primitive_cell=False, scale=False).fit(one, after)
    assert _chirality(one) == pytest.approx(_chirality(after), rel=1e-6)


def _chirality(one: Structure) -> float:
    """Triple product of the shortest vectors from the sodium atom to Cl and to both O; changes sign in a mirror."""
    vectors = []
    for neighbour in one.get_neighbors(one[[s.specie.symbol for s in one].index("Na")], 12.0):
        vectors.append((neighbour.nn_distance, neighbour.specie.symbol, neighbour.coords))
    centre = one[[s.specie.symbol for s in one].index("Na")].coords
    nearest = [next(v - centre for _, s, v in sorted(vectors, key=lambda x: x[0]) if s == want) for want in ("Cl", "O")]
    third = sorted((v for v in vectors if v[1] == "O"), key=lambda x: x[0])[1][2] - centre
    return float(np.linalg.det([*nearest, third]))


def test_table_to_arrays_and_named_failures(table: Path, tmp_path: Path) -> None:
    packed, digest = pack(table, split="train", cache=tmp_path / "cache")
    assert packed.ids == ["a", "c"]
    assert [name for name, _ in packed.failures] == ["bad"]
    assert all(reason and "\n" not in reason for _, reason in packed.failures)
    assert packed.atomic_numbers.dtype == np.uint8 and packed.num_atoms.dtype == np.int32
    assert packed.num_atoms.tolist() == [4, 4]
    np.testing.assert_equal(packed.properties["gap"], [1.5, np.nan])
    assert (tmp_path / "cache" / "packed" / f"{digest}.safetensors").is_file()
    batch = packed.batch()
    assert batch["num_atoms_"].tolist() == [7.0, 7.0]  # the table's own column does not hide the counts
    assert batch["num_atoms"].tolist() == [4, 4]


def test_csv_and_parquet_agree(table: Path, tmp_path: Path) -> None:
    one, first = pack(table, cache=tmp_path / "cache")
    two, second = pack(table.with_suffix(".csv"), cache=tmp_path / "cache")
    assert first != second
    np.testing.assert_array_equal(one.frac_coords, two.frac_coords)
    assert one.ids == two.ids and one.properties.keys() == two.properties.keys()
    assert [name for name, _ in two.failures] == ["bad", "none"]


def test_second_load_reads_the_cache_and_a_damaged_one_is_made_again(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, digest = pack(table, cache=tmp_path)
    read_table = packing.read_table
    monkeypatch.setattr(packing, "read_table", lambda *_: pytest.fail("parsed again"))
    second, _ = pack(table, cache=tmp_path)
    for name in packing.Packed.ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.ids, first.failures) == (second.ids, second.failures)
    monkeypatch.setattr(packing, "read_table", read_table)
    path = tmp_path / "packed" / f"{digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="packing again"):
        third, _ = pack(table, cache=tmp_path)
    assert third.ids == first.ids and load_packed(path).ids == first.ids
    assert not list(path.parent.glob(".*"))


def test_options_and_content_change_the_address(table: Path, tmp_path: Path) -> None:
    digests = {pack(table, cache=tmp_path)[1], pack(table, cache=tmp_path, niggli=False)[1]}
    digests.add(pack(table, cache=tmp_path, split="train")[1])
    pd.read_parquet(table).iloc[:1].to_parquet(table)
    digests.add(pack(table, cache=tmp_path)[1])
    assert len(digests) == 4


def test_several_processes_give_the_rows_of_one_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_parsing, "SERIAL_BELOW", 0)
    texts = [cif(structure(i)) for i in range(6)] + ["nonsense"]
    alone, together = pack_rows(texts, processes=1), pack_rows(texts, processes=2)
    assert alone[-1] == together[-1] and isinstance(alone[-1], str)
    for one, two in zip(alone[:-1], together[:-1], strict=True):
        for x, y in zip(one, two, strict=True):
            np.testing.assert_array_equal(x, y)


class Deadly:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_dying_process_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_parsing, "SERIAL_BELOW", 0)
    start = time.monotonic()
    rows = pack_rows([structure(0), structure(1), Deadly(), structure(2)], processes=2)  # type: ignore[list-item]
    assert [isinstance(row, str) for row in rows] == [False, False, True, False]
    assert "died with exit code 9" in rows[2]
    assert time.monotonic() - start < 30


def test_processes_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_parsing, "SERIAL_BELOW", 0)
    monkeypatch.setattr(row_parsing.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="cannot start"):
        pack_rows(["x", "y"], processes=2)


@pytest.mark.parametrize("change, message", [
    (dict(column="poscar"), "no column 'poscar'; it has material_id, cif"),
    (dict(id_column="key"), "no column 'key'"),
    (dict(split="test"), "no rows of split 'test'; it has train, val"),
])  # fmt: skip
def test_bad_options_are_named(table: Path, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(table, cache=tmp_path, **change)


def test_poscar_text_disorder_and_flat_cells() -> None:
    half = Structure(Lattice.cubic(3), [{"Na": 0.5}], [[0, 0, 0]])
    flat = Structure(Lattice.from_parameters(3, 3, 3, 90, 90, 1e-7), ["Na"], [[0, 0, 0]])
    rows = pack_rows([structure().to(fmt="poscar"), half, flat, cif(half)])
    assert not isinstance(rows[0], str) and sorted(rows[0][0].tolist()) == [8, 8, 11, 17]
    assert "disordered" in rows[1] and "cubic ångström" in rows[2] and "disordered" in rows[3]


def test_other_files_are_not_read_as_packed(tmp_path: Path) -> None:
    packed = assemble([], [], {})
    save(packed, tmp_path / "empty")
    assert len(load_packed(tmp_path / "empty").batch()) == 0
    (tmp_path / "json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a packed file"):
        load_packed(tmp_path / "json")
