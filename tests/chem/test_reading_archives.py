"""Zip archives and the .pt files of CDVAE and DiffCSP: read in place, refused in one line, nothing executed."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from pymatgen.core import Lattice, Structure
from torch_geometric.data import Batch, Data

from chem import archives
from chem.io import Record, read, write
from chem.molecule_files import kind_of, read_molecules
from chem.prepare import prepare
from chem.reading import count, read_slice

SUFFIXES = ("cif", "vasp", "extxyz", "jsonl", "csv", "parquet")


def triclinic(elements=("Na", "Cl", "O"), seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    lattice = Lattice.from_parameters(*(3 + 3 * rng.random(3)), *(75 + 30 * rng.random(3)))
    return Structure(lattice, elements, rng.random((len(elements), 3)))


def file_of(folder: Path, structures: list[Structure], suffix: str) -> bytes:
    path = folder / f"made.{suffix}"
    write([Record(s, f"{suffix}{i}") for i, s in enumerate(structures)], path)
    data = path.read_bytes()
    path.unlink()
    return data


def zipped(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Every format, two structures each but for one in a POSCAR, in nested folders, with what macOS adds."""
    files = {}
    for i, suffix in enumerate(SUFFIXES):
        given = [triclinic(seed=2 * i), triclinic(seed=2 * i + 1)][: 1 if suffix == "vasp" else 2]
        files[f"all/deep{i % 2}/{suffix}.{suffix}"] = file_of(tmp_path, given, suffix)
    buffer = io.BytesIO()
    torch.save(output([triclinic(seed=20)]), buffer)
    files["all/deep1/eval_gen.pt"] = buffer.getvalue()
    junk = {"__MACOSX/all/._cif.cif": b"\0\5\26\7", "all/.DS_Store": b"x", "all/deep0/.hidden.cif": b"x"}
    unread = {"all/readme.md": b"text", "all/deep1/weights.pt": b"x", "all/inner.zip": b"PK"}
    return zipped(tmp_path / "mixed.ZIP", files | junk | unread)


def test_every_format_in_an_archive_is_what_it_is_outside(mixed, tmp_path):
    found = list(read(mixed))
    with zipfile.ZipFile(mixed) as archive:
        archive.extractall(tmp_path / "out")
    names = [f"deep{i % 2}/{s}.{s}" for i, s in enumerate(SUFFIXES)] + ["deep1/eval_gen.pt"]
    outside = [record for name in sorted(names) for record in read(tmp_path / "out" / "all" / name)]
    assert [r.structure for r in found] == [r.structure for r in outside] and all(r.structure for r in found)
    assert [r.properties for r in found] == [r.properties for r in outside]
    assert [r.index for r in found] == list(range(12)) and not any(r.error for r in found)
    assert found[0].source == f"{mixed}/all/deep0/cif.cif" and len({r.id for r in found}) == 12


def test_slices_and_counts_of_an_archive(mixed):
    whole = list(read(mixed))
    assert count(mixed, "zip") == len(whole)
    for start, stop in ((0, 3), (2, 9), (7, 12), (11, 40)):
        assert list(read_slice(mixed, "zip", start, stop)) == whole[start:stop]


def test_nothing_is_written_to_the_disk(mixed, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))

    def watch(path, mode="r", *args, **kwargs):
        assert not set(mode) & set("wax+"), f"{path} was opened to write"
        return opened(path, mode, *args, **kwargs)

    opened = builtins.open
    monkeypatch.setattr(builtins, "open", watch)
    assert len(list(read(mixed))) == 12 and sorted(tmp_path.rglob("*")) == before


def test_ids_are_paths_without_the_folder_that_all_share(tmp_path):
    poscar = file_of(tmp_path, [triclinic()], "vasp").split(b"\n", 1)[1]
    files = {f"top/{name}/POSCAR": b"comment\n" + poscar for name in ("a", "b.c")}
    assert [r.id for r in read(zipped(tmp_path / "x.zip", files))] == ["a/POSCAR", "b.c/POSCAR"]
    assert [r.id for r in read(zipped(tmp_path / "y.zip", {"top/one.vasp": b"comment\n" + poscar}))] == ["one"]


def test_a_bad_file_in_an_archive_is_one_record(tmp_path):
    good = file_of(tmp_path, [triclinic()], "cif")
    torn = file_of(tmp_path, [triclinic(), triclinic(seed=1)], "extxyz")[:-150]
    files = {"a.cif": good, "b.cif": b"", "c.extxyz": torn, "d.parquet": b"PAR1no", "e.cif": good, "f.csv": b"x\n1\n"}
    path = zipped(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rindex(good) + len(good) // 2] ^= 1  # in e.cif, whose checksum is then wrong
    path.write_bytes(data)
    found = list(read(path))
    assert [Path(r.source).name[0] for r in found] == [*"abccdef"]
    assert [r.error is None for r in found] == [True, False, True, False, False, False, False]
    reasons = ["no structure in the file", "breaks off", "arquet", "CRC-32", "no text in column cif"]
    assert all(word in r.error for word, r in zip(reasons, [r for r in found if r.error], strict=True))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.99])
def test_truncated_archives_are_refused_in_one_line(mixed, part):
    mixed.write_bytes(mixed.read_bytes()[: int(part * mixed.stat().st_size)])
    with pytest.raises(ValueError, match="mixed.ZIP is damaged, cut off or no zip archive: [^\n]+$"):
        read(mixed)


@pytest.mark.parametrize("name", ["../evil.cif", "a/../../evil.cif", "/etc/evil.cif", "C:/evil.cif", "..\\evil.cif"])
def test_paths_that_lead_outside_are_refused(tmp_path, name):
    path = zipped(tmp_path / "slip.zip", {"good.cif": file_of(tmp_path, [triclinic()], "cif"), name: b"data_"})
    with pytest.raises(ValueError, match=r"slip.zip names a path outside itself: '.*evil.cif'"):
        read(path)


def test_bombs_are_refused_by_their_ratio(tmp_path):
    size = archives.FREE_BYTES + 1
    with pytest.raises(ValueError, match=f"of [0-9]+ bytes unpacks to {size}; allowed: up to 200 times its size"):
        read(zipped(tmp_path / "bomb.zip", {"bomb.cif": bytes(size)}))
    other = zipped(tmp_path / "not.zip", {"readme.md": bytes(size), "a.cif": file_of(tmp_path, [triclinic()], "cif")})
    assert next(read(other)).error is None  # what is not read is not unpacked


def test_a_file_that_holds_more_than_it_says_gives_no_more(tmp_path):
    path = zipped(tmp_path / "liar.zip", {"a.jsonl": b"x" * 5000})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 5000), struct.pack("<L", 10)))
    (record,) = read(path)
    assert record.error is not None and len(record.error) < 200


def test_encrypted_archives_are_refused(tmp_path):
    path = zipped(tmp_path / "locked.zip", {"a.cif": b"data_x", "b.md": b"open"})
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\1\2") + 8, 6):  # the flags of the first file, in the directory and before the file
        data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"locked.zip is encrypted \(file 'a.cif'\); allowed: archives without a pass"):
        read(path)


def test_archives_without_anything_to_read(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"a.cif": file_of(tmp_path, [triclinic()], "cif")}).read_bytes()
    for name, files in (("none", {}), ("text", {"a.md": b"x"}), ("nested", {"inner.zip": inner})):
        with pytest.raises(ValueError, match=f"{name}.zip has no file of known format among its {len(files)}"):
            read(zipped(tmp_path / f"{name}.zip", files))
    with pytest.raises(ValueError, match="format 'cif' of .*inner.zip: in an archive the names of the files tell"):
        read(tmp_path / "inner.zip", "cif")


def test_an_archive_in_a_folder(mixed, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.replace(mixed, folder / "b.zip")
    (folder / "a.zip").write_bytes(b"PK\3\4 torn")
    found = list(read(folder))
    assert len(found) == 13 and "a.zip is damaged" in (found[0].error or "") and not any(r.error for r in found[1:])


def test_a_data_set_is_prepared_from_an_archive(tmp_path):
    made = [triclinic(seed=i) for i in range(12)]
    path = zipped(tmp_path / "a.zip", {f"in/{i:02}.cif": file_of(tmp_path, [s], "cif") for i, s in enumerate(made)})
    report = prepare(path, tmp_path, "packed")
    assert not report.failures and sum(report.splits.values()) == 12


def test_molecules_in_archives(tmp_path):
    from ase.io import write as ase_write

    for name in ("H2O", "CH4"):
        ase_write(tmp_path / f"{name}.xyz", molecule(name))
    files = {f"m/{name}.xyz": (tmp_path / f"{name}.xyz").read_bytes() for name in ("H2O", "CH4")}
    path = zipped(tmp_path / "m.zip", files)
    assert [r.molecule.GetNumAtoms() for r in read_molecules(path)] == [5, 3] and kind_of(path) == "molecule"
    crystals = zipped(tmp_path / "c.zip", {"a.cif": b"data_"})
    assert kind_of(crystals) == "crystal"
    with pytest.raises(ValueError, match="has both crystals"):
        kind_of(zipped(tmp_path / "both.zip", files | {"a.cif": b"data_"}))


def output(structures: list[Structure], evaluations: int = 0) -> dict[str, torch.Tensor]:
    """What CDVAE and DiffCSP save; evaluation e of a crystal is moved by e / 10."""
    lattices = [s.lattice for s in structures]
    frac = torch.tensor(np.concatenate([s.frac_coords for s in structures]), dtype=torch.float32)
    fields = {
        "frac_coords": frac,
        "atom_types": torch.tensor([z for s in structures for z in s.atomic_numbers]),
        "num_atoms": torch.tensor([len(s) for s in structures]),
        "lengths": torch.tensor([x.abc for x in lattices]),
        "angles": torch.tensor([x.angles for x in lattices]),
    }
    if evaluations:
        fields = {name: torch.stack([x] * evaluations) for name, x in fields.items()}
        fields["frac_coords"] = torch.stack([frac + e / 10 for e in range(evaluations)])
    return fields


def close(a: Structure, b: Structure) -> bool:
    same = a.atomic_numbers == b.atomic_numbers and np.allclose(a.lattice.parameters, b.lattice.parameters, atol=1e-4)
    return same and np.allclose(a.frac_coords, b.frac_coords, atol=1e-6)


CRYSTALS = [triclinic(("Sr", "Ti", "O", "O"), 0), triclinic(("C",), 1), triclinic(("Og", "H"), 2)]


@pytest.mark.parametrize("evaluations", [0, 1])
@pytest.mark.parametrize("legacy", [False, True])
def test_outputs_of_generation(tmp_path, evaluations, legacy):
    extra = {"eval_setting": argparse.Namespace(n=3), "time": 3.5, "all_frac_coords_stack": []}
    path = tmp_path / "eval_gen.pt"
    torch.save(output(CRYSTALS, evaluations) | extra, path, _use_new_zipfile_serialization=not legacy)
    found = list(read(path))
    assert [r.id for r in found] == ["eval_gen_0", "eval_gen_1", "eval_gen_2"]
    assert all(close(r.structure, s) for r, s in zip(found, CRYSTALS, strict=True))
    assert count(path, "torch") == 3 and list(read_slice(path, "torch", 1, 3)) == found[1:]


def test_candidates_follow_their_target(tmp_path):
    given = Data(frac_coords=torch.rand(2, 3), num_nodes=2)
    extra = {"input_data_batch": Batch.from_data_list([given] * 2), "eval_setting": argparse.Namespace(path=Path("x"))}
    torch.save(output(CRYSTALS, 3) | extra, tmp_path / "eval_diff.pt")
    found = list(read(tmp_path / "eval_diff.pt"))
    assert [r.id for r in found] == [f"eval_diff_{i}_{e}" for i in range(3) for e in range(3)]
    for i, record in enumerate(found):
        moved = CRYSTALS[i // 3].copy()
        moved.translate_sites(range(len(moved)), [(i % 3) / 10] * 3, to_unit_cell=False)
        assert close(record.structure, moved)


def test_scores_of_elements_are_read_by_their_largest(tmp_path):
    for evaluations in (0, 2):
        fields = output(CRYSTALS, evaluations)
        fields["atom_types"] = torch.nn.functional.one_hot(fields["atom_types"] - 1, 118) + 0.1
        torch.save(fields, tmp_path / "eval_x.pt")
        each = [s.atomic_numbers for s in CRYSTALS for _ in range(evaluations or 1)]
        assert [r.structure.atomic_numbers for r in read(tmp_path / "eval_x.pt")] == each


def test_bad_crystals_of_an_output_are_counted_each(tmp_path):
    fields = output(CRYSTALS * 3)
    fields["lengths"][0, 1] = -3
    fields["angles"][1] = torch.tensor([20.0, 30.0, 100.0])
    fields["lengths"][2, 0] = float("nan")
    fields["frac_coords"][7] = float("inf")  # crystal 3
    fields["atom_types"][11] = 0  # crystal 4
    fields["num_atoms"][8], fields["num_atoms"][7] = 3, 0
    torch.save(fields, tmp_path / "bad.pt")
    found = list(read(tmp_path / "bad.pt"))
    words = ["not all positive", "to no cell", "not a finite number", "not a finite", "=0", "", "", "no atoms", ""]
    assert [bool(r.error) for r in found] == [True] * 5 + [False] * 2 + [True, False]
    assert all(word in (r.error or "") for word, r in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frac_coords": None}, "frac_coords is a NoneType, needed: a tensor of numbers"),
        ({"lengths": torch.rand(3, 2)}, r"lengths has the shape \(1, 3, 2\), allowed .*: \(1, 3, 3\)"),
        ({"frac_coords": torch.rand(7)}, "frac_coords has the shape"),
        ({"num_atoms": torch.tensor(7)}, "num_atoms has the shape"),
        ({"num_atoms": torch.tensor([4, 1, 1])}, "num_atoms must be counts that add up to the 7 atoms"),
        ({"num_atoms": torch.tensor([9, -3, 1])}, "num_atoms must be counts"),
        ({"num_atoms": torch.tensor([2**62, 2**62, 2**63 - 1])}, "num_atoms must be counts"),
        ({"num_atoms": torch.tensor([4.0, 1.0, 2.0])}, "num_atoms must be counts"),
        ({"atom_types": argparse.Namespace()}, "atom_types is a Placeholder"),
    ],
)
def test_outputs_that_do_not_fit_together(tmp_path, change, reason):
    torch.save(output(CRYSTALS) | change, tmp_path / "eval_gen.pt")
    (record,) = read(tmp_path / "eval_gen.pt")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(record.error)


def test_other_files_of_torch_have_a_plain_reason(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"text")
    errors = [next(read(tmp_path / f"{name}.pt")).error for name in "abc"]
    assert "the file has state_dict" in errors[0] and "the file has list" in errors[1]
    assert errors[2] == "not a file of PyTorch: it starts with b'text'"


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_malicious_file_runs_nothing(tmp_path, legacy, packed):
    canary, path = tmp_path / "canary", tmp_path / "eval_gen.pt"
    torch.save(output(CRYSTALS) | {"input_data_batch": Evil(canary)}, path, _use_new_zipfile_serialization=not legacy)
    bad = tmp_path / "eval_bad.pt"
    torch.save(output(CRYSTALS) | {"lengths": Evil(canary)}, bad, _use_new_zipfile_serialization=not legacy)
    if packed:
        path = zipped(tmp_path / "a.zip", {path.name: path.read_bytes()})
        bad = zipped(tmp_path / "b.zip", {bad.name: bad.read_bytes()})
    assert [r.error for r in read(path)] == [None] * 3  # what is not needed does not matter
    (record,) = read(bad)
    assert record.error == "lengths is a Placeholder, needed: a tensor of numbers" and not canary.exists()
    torch.load(bad if not packed else tmp_path / "eval_bad.pt", weights_only=False)
    assert canary.exists()  # the same file does harm elsewhere
