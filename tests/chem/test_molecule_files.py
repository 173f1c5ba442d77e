"""Files of molecules: there and back, bad entries, torn files, the folder of samples, data sets of one's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write as ase_write
from pymatgen.core import Lattice, Structure
from rdkit import Chem
from rdkit.Chem import AllChem

from chem.convert_molecules import from_rdkit, to_rdkit
from chem.datasets import load
from chem.molecule_files import MoleculeRecord, MoleculeWriter, kind_of, read_molecules, write_molecules
from chem.molecule_folder import MoleculeFolder
from chem.molecule_text import get_properties, mol_to_sdf
from chem.molecules import MoleculeBatch
from chem.prepare import prepare
from chem.reading import read
from chem.statistics import Statistics

FILES = ["out.sdf", "out.xyz", "out.extxyz", "out.jsonl"]
# largest error of a coordinate, ångström
PRECISION = {"out.sdf": 5.001e-5, "out.xyz": 0.0, "out.extxyz": 5.001e-9, "out.jsonl": 0.0}
PROPERTIES = {
    "energy": -3.25,
    "tiny": 1e-17,
    "steps": 1000,
    "ok": True,
    "method": "flow matching",
    "looks_like": "123",
    "truth": "T",
    "quoted": 'a "b" #c \\d',
    "unicode": "Å ö",
    "lines": "one\ntwo;\n;three",
    "ends": "$$$$",
    "header": "> <x>",
    "blank": "",
    "list": [1.5, 2.0],
    "nested": {"seed": 0, "names": ["a", "b"]},
    "with space": 1,
    "<bracket>": 2,
}


def conformers(*smiles: str) -> list[Chem.Mol]:
    """Without any property, as molecules of a batch are."""
    out = []
    for i, text in enumerate(smiles):
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        assert AllChem.EmbedMolecule(mol, randomSeed=i + 1) == 0
        out.append(mol)
    return to_rdkit(from_rdkit(out))


@pytest.fixture(scope="module")
def mols() -> list[Chem.Mol]:
    return conformers("CCO", "c1ccncc1", "C[N+](C)(C)CC(=O)[O-]", "[H][H]", "C#N")


def errors(path: Path) -> list[str | None]:
    return [record.error for record in read_molecules(path)]


@pytest.mark.parametrize("name", FILES)
def test_round_trip(tmp_path, mols, name):
    path = tmp_path / name
    with MoleculeWriter(path) as out:
        for i, mol in enumerate(mols):
            out.write(mol, id=f"id-{i}", properties={**PROPERTIES, "n": i})
    records = list(read_molecules(path))
    assert [r.id for r in records] == [f"id-{i}" for i in range(5)] and [r.index for r in records] == list(range(5))
    assert {r.source for r in records} == {str(path)} and {r.error for r in records} == {None}
    before, after = from_rdkit(mols), from_rdkit([r.molecule for r in records])
    assert after["atomic_numbers"].tolist() == before["atomic_numbers"].tolist()
    assert float((after["pos"] - before["pos"]).abs().max()) <= PRECISION[name]
    kept = {"out.sdf": ("charges", "bond_atoms", "bond_order"), "out.extxyz": ("charges",), "out.xyz": ()}
    for field in kept.get(name, kept["out.sdf"]):
        assert torch.equal(after[field], before[field]), field
    for i, record in enumerate(records):
        assert record.properties == ({} if name == "out.xyz" else {**PROPERTIES, "n": i})
        assert get_properties(record.molecule) == record.properties
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FILES)
def test_appending_cuts_a_torn_record_off(tmp_path, mols, name):
    path = tmp_path / name
    assert write_molecules(mols[:3], path) == 3
    whole = path.read_bytes()
    assert write_molecules(mols[3:], path, mode="a") == 5
    path.write_bytes(path.read_bytes()[: len(whole) + 20])
    with MoleculeWriter(path, mode="a") as out:
        assert out.count == 3 and path.read_bytes() == whole
        out.write(mols[3])
    assert errors(path) == [None] * 4
    with pytest.raises(ValueError, match="exists; mode='a' appends"):
        MoleculeWriter(path)


def test_other_programs_read_what_is_written(tmp_path, mols):
    write_molecules(mols, tmp_path / "a.sdf")
    assert [Chem.MolToSmiles(m) for m in Chem.SDMolSupplier(str(tmp_path / "a.sdf"))][1] == "c1ccncc1"
    from ase.io import read as ase_read

    for name in ("a.xyz", "a.extxyz"):
        write_molecules(mols, tmp_path / name)
        frames = ase_read(tmp_path / name, index=":")
        assert [len(f) for f in frames] == [m.GetNumAtoms() for m in mols]
        np.testing.assert_allclose(frames[0].positions, mols[0].GetConformer().GetPositions(), atol=1e-8)


def test_a_bad_entry_of_an_sdf_is_counted_and_the_next_is_read(tmp_path, mols):
    path = tmp_path / "a.sdf"
    write_molecules(mols[:1], path)
    good = path.read_text()
    flat = Chem.MolToMolBlock(Chem.MolFromSmiles("CC")) + "$$$$\n"
    dummy = good.replace(" C   0", " R   0", 1)
    unknown = good.replace(" C   0", " Qq  0", 1)
    path.write_text(good + "junk\n\n\nhello\n$$$$\n" + unknown + dummy + flat + good + good[:300])
    assert [e.split(":")[0] if e else None for e in errors(path)] == [
        None,
        "no counts line",
        "atom 0",
        "atom 0 ('R') is not a chemical element",
        "no 3D coordinates",
        None,
        "the entry breaks off",
    ]
    assert errors(path)[2] == "atom 0: unknown element 'Qq'"
    (tmp_path / "dos.sdf").write_bytes(good.replace("\n", "\r\n").encode())
    assert errors(tmp_path / "dos.sdf") == [None]
    (tmp_path / "empty.sdf").write_text("")
    assert errors(tmp_path / "empty.sdf") == ["no structure in the file"]


def test_impossible_valences_radicals_and_fragments_can_be_read(tmp_path):
    batch = MoleculeBatch(
        [6, 4, 4],
        num_bonds=[5, 3, 2],
        atomic_numbers=torch.tensor([6, 1, 1, 1, 1, 1, 6, 1, 1, 1, 1, 1, 1, 1]),
        pos=torch.randn(14, 3, generator=torch.Generator().manual_seed(0)),
        bond_atoms=torch.tensor([[0, i] for i in range(1, 6)] + [[0, 1], [0, 2], [0, 3], [0, 1], [2, 3]]),
        bond_order=torch.ones(10),
    )
    for name in ("a.sdf", "a.jsonl"):
        write_molecules(to_rdkit(batch), tmp_path / name)
        back = from_rdkit([r.molecule for r in read_molecules(tmp_path / name)])
        assert torch.equal(back["bond_atoms"], batch["bond_atoms"]) and torch.equal(
            back["num_bonds"], batch["num_bonds"]
        )


def test_frames_of_all_kinds(tmp_path):
    (tmp_path / "a.xyz").write_text(
        "2\nsome id\nH 0 0 0 0.1\n1 0 0 1*^-1\n"
        "2\n\nH 0 0 0\nQ 0 0 1\n"
        "1\nenergy=3 flag\nHe 0 0 0\n"
        '1\nProperties=species:S:1:pos:R:3 pbc="F F F" gap=0.25\nXx 0 0 0\n'
        '1\nLattice="1 0 0 0 1 0 0 0 1"\nHe 0 0 0\n'
        "1\n\nC 0 nan 0\n2\n\nC 0 0\nC 0 0 1\n3\n\nH 0 0 0\n"
    )
    records = list(read_molecules(tmp_path / "a.xyz"))
    assert [r.error for r in records] == [
        None,
        "atom 1: unknown element 'Q'",
        None,
        "unknown element 'Xx'",
        "the frame has a lattice; a molecule is not periodic",
        "a coordinate is not a finite number",
        "atom 0: an element and three coordinates are needed, got 'C 0 0'",
        "the frame breaks off: 3 atoms announced, 1 found",
    ]
    assert (records[0].id, records[2].id) == ("some id", "a_2") and records[2].properties == {"energy": 3, "flag": True}
    assert records[0].molecule.GetConformer().GetPositions()[1].tolist() == [0.0, 0.0, 0.1]


def test_bad_lines_of_json(tmp_path):
    good = {"id": 5, "molecule": {"atomic_numbers": [1, 1], "pos": [[0, 0, 0], [0, 0, 0.7]], "bonds": [[0, 1, 1]]}}
    bad = [
        "nonsense",
        {"molecule": {"atomic_numbers": [1], "pos": [[0, 0, 0], [1, 1, 1]]}},
        {"molecule": {"atomic_numbers": [200], "pos": [[0, 0, 0]]}},
        {"molecule": {**good["molecule"], "bonds": [[0, 1, 4]]}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in [good, *bad]) + "\n")
    records = list(read_molecules(tmp_path / "a.jsonl"))
    assert records[0].id == "5" and records[0].molecule.GetNumBonds() == 1
    assert [r.error.split(":")[0] for r in records[1:]] == [
        "a line must be an object with the key molecule",
        "1 atoms, but 2 positions or other charges",
        "atom 0",
        "bond of atoms 0 and 1",
    ]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, m: read_molecules(p / "nowhere.sdf"), "cannot read .*nowhere.sdf"),
        (
            lambda p, m: read_molecules(p / "a.cif"),
            r"cannot tell the format of .*known suffix: sdf \(.sdf, .sd, .mol\), xyz",
        ),
        (lambda p, m: read_molecules(p), "folder .* has no file to read; known: sdf"),
        (lambda p, m: MoleculeWriter(p / "a.sdf", mode="b"), "mode must be 'x', 'a' or 'w', got 'b'"),
        (lambda p, m: MoleculeWriter(p / "a.mol", mode="a"), "a.mol holds one molecule"),
        (lambda p, m: write_molecules([Chem.Mol()], p / "a.sdf"), "molecule 0 has 0 atoms"),
        (lambda p, m: MoleculeWriter(p / "a.sdf").write(m, properties={"f": print}), "molecule 0 are not plain data"),
        (lambda p, m: write_molecules([MoleculeRecord(None, error="why")], p / "a.sdf"), "no molecule: why"),
    ],
)
def test_bad_calls_are_named(tmp_path, mols, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path, mols[0])


def test_folder_of_samples_continues_after_a_crash(tmp_path, mols):
    for i, mol in enumerate(mols):
        mol.SetProp("index", str(i))
    request = {"model": "m", "seed": 0}
    folder = MoleculeFolder(tmp_path / "out", request)
    folder.append(mols[:3])
    folder.close()
    wanted = {name: (tmp_path / "out" / name).read_bytes() for name in ("samples.sdf", "samples.extxyz")}
    for name, content in wanted.items():  # lose the last record of one file, all of the other
        (tmp_path / "out" / name).write_bytes(content[: len(content) - 30 if name.endswith("sdf") else 0])
    with open(tmp_path / "out" / "samples.jsonl", "a") as record:
        record.write('{"properties": {"ind')
    folder = MoleculeFolder(tmp_path / "out", request)
    assert folder.count == 3
    assert {name: (tmp_path / "out" / name).read_bytes() for name in wanted} == wanted
    folder.append(mols[3:])
    folder.note(n=folder.count)
    folder.close()
    back = MoleculeFolder(tmp_path / "out", request).samples(9)
    assert [get_properties(m)["index"] for m in back] == [0, 1, 2, 3, 4]
    assert torch.equal(from_rdkit(back)["pos"], from_rdkit(mols)["pos"])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["n"] == 5
    for name in ("samples.sdf", "samples.extxyz", "samples.jsonl"):
        assert errors(tmp_path / "out" / name) == [None] * 5
    with pytest.raises(ValueError, match="holds samples made with seed = 0, asked 1"):
        MoleculeFolder(tmp_path / "out", {"model": "m", "seed": 1})


def test_a_sample_without_finite_coordinates_stays_in_every_file(tmp_path, mols):
    broken = Chem.Mol(mols[0])
    broken.GetConformer().SetAtomPosition(0, [float("nan")] * 3)
    folder = MoleculeFolder(tmp_path / "out", {})
    folder.append([broken, mols[1]])
    folder.close()
    assert len(MoleculeFolder(tmp_path / "out", {}).samples(2)) == 2
    for name in ("samples.sdf", "samples.extxyz", "samples.jsonl"):
        first, second = errors(tmp_path / "out" / name)
        assert first is not None and second is None


def test_a_sample_that_sdf_cannot_hold_is_there_without_bonds(tmp_path, mols, monkeypatch):
    def refuse_triple_bonds(mol: Chem.Mol, *rest: Any) -> str:
        if any(bond.GetBondType() == Chem.BondType.TRIPLE for bond in mol.GetBonds()):
            raise RuntimeError("no triple bonds")
        return mol_to_sdf(mol, *rest)

    monkeypatch.setattr("chem.molecule_writing.mol_to_sdf", refuse_triple_bonds)
    folder = MoleculeFolder(tmp_path / "out", {})
    folder.append([mols[4], mols[0]])
    folder.close()
    found = [record.molecule for record in read_molecules(tmp_path / "out" / "samples.sdf")]
    assert [mol.GetNumBonds() for mol in found] == [0, 8] and found[0].GetNumAtoms() == 3
    assert folder.manifest["without_bonds"] == {"0": "no triple bonds"}
    assert [mol.GetNumBonds() for mol in folder.samples(2)] == [2, 8]


def test_kinds_are_told_apart(tmp_path, mols):
    crystal = Structure(
        Lattice.from_parameters(3.1, 4.2, 5.3, 80, 100, 110), ["Na", "Cl"], [[0, 0, 0], [0.4, 0.5, 0.6]]
    )
    from chem.writing import write

    for name in ("c.cif", "c.extxyz", "c.jsonl", "c.csv"):
        write([crystal], tmp_path / name)
        assert kind_of(tmp_path / name) == "crystal", name
    assert kind_of(tmp_path) == "crystal" and [r.error for r in read(tmp_path)] == [None] * 4
    for name in FILES:
        write_molecules(mols[:1], tmp_path / name)
        assert kind_of(tmp_path / name) == "molecule", name
    with pytest.raises(ValueError, match=r"has both crystals \(c.cif\) and molecules \(out.extxyz\)"):
        kind_of(tmp_path)
    with pytest.raises(ValueError, match="source has crystals .* and molecules .*; give one kind"):
        prepare([tmp_path / "out.sdf", tmp_path / "c.cif"], tmp_path, "x")


def test_prepare_from_sdf_keeps_bonds_and_counts_every_refusal(tmp_path):
    good = conformers("CCO", "CC", "CCC", "C[Si](C)(C)C", "CBr", "FC(F)(F)F", "C[N+](C)(C)C", "C#N", "[Se]", "O=S=O")
    ids = [f"m{i}" for i in range(10)]
    path = tmp_path / "mine.sdf"
    with MoleculeWriter(path) as out:
        for i, mol in enumerate(good):
            out.write(mol, ids[i], {"my property": i / 2, "colour": "red"})
        methyl, pair = conformers("[CH3]", "C.C")
        over = conformers("C")[0]
        bonded = Chem.RWMol(over)
        bonded.AddBond(1, 2, Chem.BondType.SINGLE)
        for name, mol in (("methyl", methyl), ("pair", pair), ("over", bonded.GetMol())):
            out.write(mol, name, {"my property": 1.0})
    with open(path, "a") as file:
        file.write("broken\n\n\nx\n$$$$\n")
    report = prepare(path, tmp_path, "mine", split=(0.6, 0.2, 0.2))
    assert report.properties == ["my property"] and report.ignored_columns == ["colour"]
    reasons = dict(report.failures)
    assert set(reasons) == {"methyl", "pair", "over", "broken"}
    assert "radical" in reasons["methyl"] and "2 fragments" in reasons["pair"]
    assert "RDKit does not accept it" in reasons["over"] and "counts line" in reasons["broken"]
    parts = [load(report.folder, s, purpose="report") for s in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == report.num_structures == len(ids)
    train = parts[0]
    assert isinstance(train.batch, MoleculeBatch) and train.name == "mine"
    for name, one, value in zip(train.ids, train.batch, train.batch["my property"].tolist(), strict=True):
        i = ids.index(name)
        wanted = from_rdkit([good[i]], bonds=True)
        assert value == i / 2 and torch.equal(one["bond_atoms"], wanted["bond_atoms"])
        assert one["charges"].tolist() == wanted["charges"].tolist()
        assert float((one["pos"] - wanted["pos"]).abs().max()) < 1e-4
    stats = Statistics.from_dict(json.loads((report.folder / "statistics.json").read_text()))
    assert stats.num_structures == len(train) and stats.sizes.largest == int(train.batch["num_atoms"].max())


def test_prepare_from_frames_of_any_element_with_gaps_in_a_property(tmp_path):
    source = tmp_path / "files"
    source.mkdir()
    frames = [Atoms(numbers, positions=np.eye(3)[:2]) for numbers in ([92, 9], [79, 17], [1, 1], [54, 9])]
    for i, frame in enumerate(frames[1:], 1):
        frame.info["dipole"] = float(i)
    ase_write(source / "a.extxyz", frames, format="extxyz")
    (source / "b.xyz").write_text("1\nhelium\nHe 0 0 0\n")
    report = prepare(source, tmp_path, "frames", split=(1.0, 0.0, 0.0))
    data = load(report.folder, "train")
    assert data.ids == ["a_0", "a_1", "a_2", "a_3", "helium"] and "num_bonds" not in data.batch
    np.testing.assert_equal(data.batch["dipole"].numpy(), [np.nan, 1, 2, 3, np.nan])
    assert data.batch["atomic_numbers"].tolist() == [92, 9, 79, 17, 1, 1, 54, 9, 2]
