"""QM9: its layouts say the same, EDM's split is the published one, and the real files have what the paper counts."""

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem

from chem import qm9
from chem.convert_molecules import from_rdkit, to_rdkit
from chem.datasets import DataNotFoundError, load
from chem.molecule_files import MoleculeWriter
from chem.molecules import MoleculeBatch, check
from chem.qm9 import PROPERTY_UNITS, TRAIN_ELEMENTS, TRAIN_SIZES, edm_split
from chem.qm9_files import ATOM_ENERGIES, ATOMS, KCAL, XYZ_COLUMNS, atomisation
from chem.statistics import Statistics

# number of atoms -> molecules, and elements, of EDM's training split (100,000 molecules; methods: GeoBFN, 5.2)
GOLDEN_SIZES = dict(zip(range(3, 28), [
    1, 4, 5, 9, 16, 49, 124, 362, 807, 1689, 3060, 5136, 7796, 10644, 13025, 13364, 13832, 9482, 9970, 3393, 4848, 539,
    1506, 48, 266,
], strict=True)) | {29: 25}  # fmt: skip
GOLDEN_ELEMENTS = {1: 923537, 6: 635559, 7: 101476, 8: 140202, 9: 2323}
GOLDEN_HEAVY = {1: 2, 2: 5, 3: 7, 4: 25, 5: 91, 6: 475, 7: 2404, 8: 13625, 9: 83366}
# 20 molecules, of which numbers 4 and 9 failed the consistency check
COUNT, EXCLUDED, TRAIN = 20, (4, 9), 12


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """EDM's rule at the size of the fixtures."""
    if "root" in request.fixturenames:
        monkeypatch.setattr(qm9, "CHARACTERISED", COUNT - len(EXCLUDED))
        monkeypatch.setattr(qm9, "TRAIN", TRAIN)


def molecule(i: int) -> tuple[list[int], np.ndarray]:
    """Some of H, C, N, O, F in a chain of i % 4 + 2 atoms, four decimals."""
    n = i % 4 + 2
    rng = np.random.default_rng(i)
    return [(1, 6, 7, 8, 9)[(i + k) % 5] for k in range(n)], (
        rng.normal(size=(n, 3)) + 2 * np.arange(n)[:, None]
    ).round(4)


def properties(i: int) -> dict[str, float]:
    return {name: round(i + k / 16, 4) for k, name in enumerate(XYZ_COLUMNS)}


def write_xyz(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(1, COUNT + 1):
        numbers, positions = molecule(i)
        symbols = [Chem.GetPeriodicTable().GetElementSymbol(z) for z in numbers]
        rows = [f"{s}\t" + "\t".join(f"{x:.4f}" for x in p) + "\t-0.1" for s, p in zip(symbols, positions, strict=True)]
        rows[0] = rows[0].replace("-0.1", "-1.0*^-1")
        head = f"gdb {i}\t" + "\t".join(map(str, properties(i).values()))
        text = "\n".join([str(len(numbers)), head, *rows, "100.0\t200.0", "C\tC", "InChI=1S/C\tInChI=1S/C"])
        (folder / f"dsgdb9nsd_{i:06d}.xyz").write_text(text + "\n")


def write_exclusions(folder: Path) -> None:
    rows = [f"{i:9}   CC{i}     CC" for i in EXCLUDED]
    (folder / "uncharacterized.txt").write_text("\n".join([*["2 lines of talk"] * 9, *rows, "=====", ""]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def chains() -> list[Chem.Mol]:
    numbers, positions = zip(*(molecule(i) for i in range(1, COUNT + 1)), strict=True)
    bare = MoleculeBatch(
        [len(n) for n in numbers],
        atomic_numbers=torch.tensor([z for n in numbers for z in n]),
        pos=torch.from_numpy(np.concatenate(positions)),
        charges=torch.tensor([int(k == 0 and i % 3 == 0) for i, n in enumerate(numbers) for k in range(len(n))]),
    )
    bonds = torch.tensor([[k, k + 1] for n in numbers for k in range(len(n) - 1)])
    return to_rdkit(bare.with_bonds([len(n) - 1 for n in numbers], bonds, torch.ones(len(bonds))))


def check_split(root: Path, split: str) -> MoleculeBatch:
    """Whatever the layout, the same molecules with the same properties."""
    rest = [i for i in range(1, COUNT + 1) if i not in EXCLUDED]
    order = [rest[k] for k in np.random.RandomState(0).permutation(len(rest))]
    wanted = sorted({"train": order[:12], "val": order[12:17], "test": order[17:]}[split])
    data = load("qm9", split, root=root, cache=root / "cache", purpose="report")
    assert data.ids == [f"gdb_{i}" for i in wanted] and data.failures == [] and len(data.sha256) == 64
    for i, one in zip(wanted, data.batch, strict=True):
        numbers, positions = molecule(i)
        assert one["atomic_numbers"].tolist() == numbers
        np.testing.assert_allclose(one["pos"].numpy(), positions, atol=1e-6)
        for name, value in properties(i).items():
            assert float(one[name]) == pytest.approx(value, abs=1e-9), name
        table = dict(zip(ATOMS, ATOM_ENERGIES["u0"], strict=True))
        assert float(one["u0_atom"]) == pytest.approx((float(one["u0"]) - sum(table[z] for z in numbers)) * KCAL)
    return data.batch


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_xyz_archive(root: Path, split: str) -> None:
    write_xyz(root / "files")
    with tarfile.open(root / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as archive:
        for path in sorted((root / "files").iterdir(), reverse=True):
            archive.add(path, path.name)
    write_exclusions(root)
    assert "num_bonds" not in check_split(root, split)
    check_split(root, split)  # from the cache


def test_xyz_folder(root: Path) -> None:
    write_xyz(root / "qm9" / "dsgdb9nsd")
    write_exclusions(root / "qm9")
    check_split(root, "train")


def test_gdb9_sdf_keeps_bonds_and_charges(root: Path) -> None:
    folder = root / "qm9" / "raw"
    with MoleculeWriter(folder / "gdb9.sdf") as out:
        for i, mol in enumerate(chains(), 1):
            out.write(mol, f"gdb_{i}")
    rows = [{"mol_id": f"gdb_{i}", **properties(i)} for i in range(1, COUNT + 1)]
    pd.DataFrame(rows).to_csv(folder / "gdb9.sdf.csv", index=False)
    write_exclusions(folder)
    batch = check(check_split(root, "train"))
    assert batch["num_bonds"].tolist() == (batch["num_atoms"] - 1).tolist() and int(batch["charges"].sum()) > 0


def test_an_entry_that_cannot_be_read_keeps_its_place_in_the_split(root: Path) -> None:
    with MoleculeWriter(root / "gdb9.sdf") as out:
        for i, mol in enumerate(chains(), 1):
            out.write(mol, f"gdb_{i}")
    text = (root / "gdb9.sdf").read_text()
    third = text.index("gdb_3\n")
    (root / "gdb9.sdf").write_text(text[:third] + text[third:].replace("V2000", "V2xxx", 1).replace(" O ", " Q ", 1))
    write_exclusions(root)
    found = [load("qm9", s, root=root, cache=root / "cache", purpose="report") for s in ("train", "val", "test")]
    assert [name for data in found for name, _ in data.failures] == ["gdb_3"]
    assert [len(data) + len(data.failures) for data in found] == [12, 5, 1]


def test_edm_npz(root: Path) -> None:
    rest = [i for i in range(1, COUNT + 1) if i not in EXCLUDED]
    order = [rest[k] for k in np.random.RandomState(0).permutation(len(rest))]
    chosen = sorted(order[12:17])
    names = {"u0": "U0", "u298": "U", "h298": "H", "g298": "G", "cv": "Cv"}
    numbers, positions = np.zeros((5, 7), int), np.zeros((5, 7, 3))
    for row, i in enumerate(chosen):
        z, x = molecule(i)
        numbers[row, : len(z)], positions[row, : len(z)] = z, x
    columns = {names.get(n, n): np.array([properties(i)[n] for i in chosen]) for n in XYZ_COLUMNS}
    (root / "qm9").mkdir()
    counts = (numbers > 0).sum(1)
    arrays = dict(num_atoms=counts, charges=numbers, positions=positions, index=np.array(chosen), **columns)
    np.savez(root / "qm9" / "valid.npz", **arrays)
    check_split(root, "val")
    np.savez(root / "qm9" / "train.npz", charges=numbers)
    with pytest.raises(DataNotFoundError, match=r"has no array 'num_atoms'; it has charges"):
        load("qm9", "train", root=root, cache=root / "cache")


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"looked for .*qm9_valid.parquet.*gdb9.sdf.*dsgdb9nsd.xyz.tar.bz2"):
        load("qm9", "val", root=root)
    write_xyz(root / "dsgdb9nsd")
    with pytest.raises(DataNotFoundError, match=r"needs the list uncharacterized.txt beside it"):
        load("qm9", "val", root=root, cache=root / "cache")
    (root / "uncharacterized.txt").write_text("nothing\n")
    with pytest.raises(DataNotFoundError, match=r"EDM's split is of 18 molecules, 20 are here; use prepare for a part"):
        load("qm9", "val", root=root, cache=root / "cache")
    pd.DataFrame({"qm9_index": [1], "atomic_numbers": [[1]]}).to_parquet(root / "qm9_valid.parquet")
    with pytest.raises(DataNotFoundError, match=r"has no column 'positions'; it has qm9_index, atomic_numbers"):
        load("qm9", "val", root=root, cache=root / "cache")


def test_edm_split_at_full_size() -> None:
    parts = edm_split(range(1, 133_886), range(1, 3_055))
    assert {name: len(part) for name, part in parts.items()} == {"train": 100_000, "val": 17_748, "test": 13_083}
    assert set().union(*parts.values()) == set(range(3_055, 133_886))
    with pytest.raises(ValueError, match="EDM's split is of 130831 molecules, 3 are here"):
        edm_split(range(3), [])


def test_split_of_the_real_files_is_edms(data_root: Path) -> None:
    """Read in order of their numbers, without the test split, the labels are those of the permutation."""
    found = {
        int(i): split
        for split, part in (("train", "train"), ("val", "valid"))
        for i in pd.read_parquet(data_root / f"qm9_{part}.parquet", columns=["qm9_index"])["qm9_index"]
    }
    missing = pd.read_csv(data_root / "qm9_missing_rows.csv")
    named = {"train": "train", "valid": "val"}
    found |= {int(i): named[s] for i, s in zip(missing["qm9_index"], missing["edm_split"], strict=True)}
    where = {i: name for name, part in edm_split(range(130_831), []).items() for i in part}
    assert [found[i] for i in sorted(found)] == [where[i] for i in range(130_831) if where[i] != "test"]


def test_real_validation_split(data_root: Path, tmp_path: Path) -> None:
    data = load("qm9", "val", root=data_root, cache=tmp_path)
    batch = check(data.batch)
    assert len(data) == 17_510 and data.ids[0] == "gdb_3" and set(PROPERTY_UNITS) - {"A", "B", "C"} <= set(batch.fields)
    assert set(batch["atomic_numbers"].unique().tolist()) == {1, 6, 7, 8, 9}
    # water: the third molecule of QM9, 1.85 debye, 0.3615 hartree
    assert batch[0]["atomic_numbers"].tolist() == [8, 1, 1] and float(batch[0]["mu"]) == 1.8511
    assert float(torch.linalg.vector_norm(batch[0]["pos"][0] - batch[0]["pos"][1])) == pytest.approx(0.962, abs=2e-3)
    for name in ATOM_ENERGIES:
        made = atomisation(batch["num_atoms"].numpy(), batch["atomic_numbers"].numpy(), {name: batch[name].numpy()})
        np.testing.assert_allclose(made[f"{name}_atom"], batch[f"{name}_atom"].numpy(), atol=2e-3)
    again = load("qm9", "val", root=data_root, cache=tmp_path)
    assert again.sha256 == data.sha256 and torch.equal(again.batch["pos"], batch["pos"])


def test_real_training_split_is_edms_less_the_missing_molecules(data_root: Path, tmp_path: Path) -> None:
    batch = load("qm9", "train", root=data_root, cache=tmp_path).batch
    stats = Statistics.compute(batch)
    assert sum(GOLDEN_SIZES.values()) == sum(GOLDEN_HEAVY.values()) == 100_000 and stats.num_structures == 98_599
    assert GOLDEN_SIZES == TRAIN_SIZES and GOLDEN_ELEMENTS == TRAIN_ELEMENTS
    lacking = {n: GOLDEN_SIZES[n] - stats.num_atoms.get(n, 0) for n in GOLDEN_SIZES}
    assert min(lacking.values()) >= 0 and sum(lacking.values()) == 1401 and set(stats.num_atoms) <= set(GOLDEN_SIZES)
    elements = {z: GOLDEN_ELEMENTS[z] - n for z, n in stats.elements.items()}
    assert min(elements.values()) >= 0 and elements[9] > 0.8 * GOLDEN_ELEMENTS[9]
    heavy = batch.rows("pos").mean((batch["atomic_numbers"] > 1).double()) * batch["num_atoms"]
    for n, count in GOLDEN_HEAVY.items():
        assert 0 <= count - int((heavy.round() == n).sum()) <= 1401
    assert stats.properties["gap"].low > 0 and stats.properties["gap"].count == 98_597


def test_what_is_missing_makes_the_copy_whole(data_root: Path, tmp_path: Path) -> None:
    """By the SMILES of the missing rows, seven of which have none; hydrogens of a few SMILES differ."""
    stats = Statistics.compute(load("qm9", "train", root=data_root, cache=tmp_path).batch)
    missing = pd.read_csv(data_root / "qm9_missing_rows.csv")
    texts = missing[missing["edm_split"] == "train"]["smiles"].dropna()
    mols = [Chem.AddHs(Chem.MolFromSmiles(text)) for text in texts]
    assert len(mols) == 1401 - 7
    sizes = Counter(stats.num_atoms) + Counter(mol.GetNumAtoms() for mol in mols)
    elements = Counter(stats.elements) + Counter(a.GetAtomicNum() for mol in mols for a in mol.GetAtoms())
    assert max(abs(sizes[n] - TRAIN_SIZES[n]) for n in TRAIN_SIZES) <= 4
    assert all(abs(elements[z] / TRAIN_ELEMENTS[z] - 1) < 3e-3 for z in TRAIN_ELEMENTS)


def test_round_trip_of_real_molecules(data_root: Path, tmp_path: Path) -> None:
    batch = load("qm9", "val", root=data_root, cache=tmp_path).batch[:50]
    back = from_rdkit(to_rdkit(batch))
    assert torch.equal(back["pos"], batch["pos"]) and torch.equal(back["atomic_numbers"], batch["atomic_numbers"])
