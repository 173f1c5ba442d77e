"""One crystal structure as text, in and out: CIF, POSCAR, an extxyz frame, a JSON object, a csv cell.

Site order is kept by every format. CIF and POSCAR describe right-handed cells only, so a left-handed cell is written
with all three vectors and all coordinates reversed: the same crystal, not its mirror image.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

MOST_IMAGES = 20_000  # of the sites of a CIF under its symmetry; the time to tell them apart grows with the square
TAG = "_atomsmith_record"  # CIF data name that carries id and properties
ENCODED = "atomsmith_json"  # extxyz key for properties that the format cannot hold as they are
CIF_HEAD, CIF_END = "# atomsmith\n", "#END\n"  # frame one record of a CIF file, so that a torn one is recognised
SDF_END = "$$$$\n"  # ends one entry


def one_line(error: Exception, limit: int = 300) -> str:
    """The message of an exception on one line, cut to `limit` characters, with its type where that says too little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (LookupError, ArithmeticError, TypeError, AttributeError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plain(value: Any) -> Any:
    """numpy and torch scalars and arrays, nested in dicts and lists, as plain Python values."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def structure_from_cif(text: str) -> Structure:
    """The structure of one CIF data block; site order is kept where the block lists every atom (P 1).

    Raises ValueError, or whatever pymatgen raises, for text that holds no structure.
    """
    from pymatgen.io.cif import CifBlock, CifParser

    start = re.search(r"^\s*data_", text, re.MULTILINE)
    if start is None:
        raise ValueError("no data_ block in the CIF")
    block = CifBlock.from_str(text[start.start() :].lstrip())
    listed = _p1_structure(block.data)
    if listed is not None:
        return listed
    parser, labels = CifParser(io.StringIO(text)), block.data.get("_atom_site_label")
    images = len(labels) * len(parser.get_symops(block)) if isinstance(labels, list) else 0
    if images > MOST_IMAGES:
        raise ValueError(f"{images} images of sites to tell apart; allowed: up to {MOST_IMAGES}, or every atom in P 1")
    return parser.parse_structures(primitive=False)[0]


def _p1_structure(data: dict[str, Any]) -> Structure | None:
    """The structure if all its atoms are listed, in file order (pymatgen's reader sorts by element), else None."""
    from pymatgen.core import Element, Lattice, Structure

    operations = data.get("_symmetry_equiv_pos_as_xyz", data.get("_space_group_symop_operation_xyz"))
    operations = [operations] if isinstance(operations, str) else operations
    symbols, sites = data.get("_atom_site_type_symbol"), [data.get(f"_atom_site_fract_{k}") for k in "xyz"]
    if not operations or [re.sub(r"[\s'\"]", "", op) for op in operations] != ["x,y,z"]:
        return None
    try:
        if any(float(x) != 1 for x in data.get("_atom_site_occupancy", [])):
            return None
        if not isinstance(symbols, list) or not all(map(Element.is_valid_symbol, symbols)):
            return None
        cell = [float(data[f"_cell_length_{k}"]) for k in "abc"]
        cell += [float(data[f"_cell_angle_{k}"]) for k in ("alpha", "beta", "gamma")]
        frac = [[float(x) for x in row] for row in zip(*sites, strict=True)]
    except (KeyError, TypeError, ValueError):  # an uncertainty in brackets, "?", a missing item: pymatgen's business
        return None
    labels = data.get("_atom_site_label")
    if len(frac) != len(symbols):
        return None
    return Structure(Lattice.from_parameters(*cell), symbols, frac, labels=labels)


def structure_from_poscar(text: str) -> Structure:
    """The structure of POSCAR text; raises ValueError if it does not name its elements."""
    from pymatgen.io.vasp import Poscar

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Elements in POSCAR cannot be determined")
        try:
            return Poscar.from_str(text).structure
        except UserWarning as error:
            raise ValueError("POSCAR does not name its elements") from error


def structure_from_dict(data: dict[str, Any]) -> Structure:
    """The structure of a pymatgen dict; plain data only, nothing named in it is imported or called."""
    from pymatgen.core import Element, Species, Structure

    species = []
    for i, site in enumerate(data["sites"]):
        held = site["species"]
        if len(held) != 1 or held[0].get("occu", 1) != 1:
            raise ValueError(f"partial occupancy: site {i} holds {held}; one whole atom is allowed")
        symbol, charge = held[0]["element"], held[0].get("oxidation_state")
        species.append(Element(symbol) if charge is None else Species(symbol, charge))
    keys = set.intersection(*[set(site.get("properties") or {}) for site in data["sites"]]) if species else set()
    structure = Structure(
        data["lattice"]["matrix"],
        species,
        [site["abc"] for site in data["sites"]],
        charge=data.get("charge"),
        site_properties={key: [site["properties"][key] for site in data["sites"]] for key in sorted(keys)},
        labels=[site.get("label") for site in data["sites"]],
    )
    structure.properties = dict(data.get("properties") or {})
    return structure


def structure_from_frame(text: str) -> Structure:
    """The structure of one extxyz frame; its info becomes `properties`."""
    from pymatgen.core import Structure

    atoms, properties = atoms_from_frame(text)
    if not atoms.pbc.all():
        raise ValueError(f"a crystal needs a lattice and periodicity in three directions, got pbc {atoms.pbc.tolist()}")
    if not abs(atoms.cell.volume) > 0:  # else the fractional coordinates fail with a message about a matrix
        raise ValueError(f"the cell has volume {atoms.cell.volume:.3g}")
    structure = Structure(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions(wrap=False))
    structure.properties = properties
    return structure


def atoms_from_frame(text: str) -> tuple[Atoms, dict[str, Any]]:
    """ASE atoms of one extxyz frame, and its info as plain properties."""
    from ase.io.extxyz import read_xyz

    atoms = next(read_xyz(io.StringIO(text), index=0))
    properties = dict(atoms.info)
    if atoms.calc is not None:  # ASE takes energy and the like out of info
        properties.update({k: v for k, v in atoms.calc.results.items() if k in text.split("\n", 2)[1]})
    encoded = properties.pop(ENCODED, None)
    properties.update(json.loads(unquote(encoded)) if isinstance(encoded, str) else {})
    return atoms, plain(properties)


def cif_meta(text: str) -> dict[str, Any]:
    """What `structure_to_cif` left beside the structure: `id` and `properties`, if they are there."""
    found = re.search(rf"^{TAG}\n;(.*?)\n;", text, re.MULTILINE | re.DOTALL)
    try:
        meta = json.loads(found.group(1)) if found else {}
    except ValueError:
        meta = {}
    return meta if isinstance(meta, dict) and isinstance(meta.get("properties", {}), dict) else {}


def structure_to_cif(structure: Structure, symprec: float | None = None, meta: dict[str, Any] | None = None) -> str:
    """CIF text of a structure, and of its id and properties if given as `meta`.

    symprec (ångström) writes the refined conventional cell with its symmetry; where none can be found, P 1.
    """
    from pymatgen.io.cif import CifWriter

    structure = right_handed(structure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = str(CifWriter(structure, symprec=symprec, significant_figures=10))
        except Exception:  # the symmetry finder raises several types on close or odd sites
            if symprec is None:
                raise
            text = str(CifWriter(structure, significant_figures=10))
    text = CIF_HEAD + text.split("\n", 1)[1]
    name = (meta or {}).get("id")
    if name is not None:
        label = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)
        text = re.sub(r"^data_.*$", lambda _: f"data_{label}", text, count=1, flags=re.MULTILINE)
    if meta:
        # an indent keeps the lines short, and none can begin with the semicolon that ends the field
        text += f"{TAG}\n;{json.dumps(meta, indent=1)}\n;\n"
    return text + CIF_END


def structure_to_poscar(structure: Structure, meta: dict[str, Any] | None = None) -> str:
    """POSCAR text in the order of the sites; id and properties, if given as `meta`, are JSON in the first line."""
    from pymatgen.io.vasp import Poscar

    comment = json.dumps(meta) if meta else structure.composition.reduced_formula
    bare = right_handed(structure)
    for name in list(bare.site_properties):  # selective dynamics and velocities are not ours to write
        bare.remove_site_property(name)
    return Poscar(bare, comment=comment, sort_structure=False).get_str(significant_figures=12)


def structure_to_frame(structure: Structure, properties: dict[str, Any]) -> str:
    """One extxyz frame of a structure; see `atoms_to_frame`."""
    from ase import Atoms

    numbers = [site.specie.Z for site in structure]
    atoms = Atoms(numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
    return atoms_to_frame(atoms, properties)


def atoms_to_frame(atoms: Atoms, properties: dict[str, Any]) -> str:
    """One extxyz frame. Properties become plain key=value pairs where that survives reading, else one encoded key."""
    from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict, write_xyz

    visible: dict[str, Any] = {}
    encoded: dict[str, Any] = {}
    for key, value in properties.items():
        simple = re.fullmatch(r"[A-Za-z]\w*", key, re.ASCII) and key.lower() not in ("lattice", "properties", "pbc")
        simple = simple and isinstance(value, (bool, int, float, str)) and key not in ("stress", "virial", ENCODED)
        if simple and "\n" not in str(value):
            back = plain(key_val_str_to_dict(key_val_dict_to_str({key: value})).get(key))
            simple = type(back) is type(value) and back == value
            (visible if simple else encoded)[key] = value
        else:
            encoded[key] = value
    atoms.info = {**visible, **({ENCODED: quote(json.dumps(encoded))} if encoded else {})}
    out = io.StringIO()
    write_xyz(out, [atoms])
    return out.getvalue()


def structure_to_dict(structure: Structure) -> dict[str, Any]:
    """The pymatgen dict of a structure in plain values, without its `properties`."""
    data = plain(structure.as_dict())
    data.pop("properties", None)
    return data


def right_handed(structure: Structure) -> Structure:
    """The same crystal in a right-handed cell, as a copy: lattice and fractional coordinates both change sign."""
    import numpy as np
    from pymatgen.core import Structure as New

    if np.linalg.det(structure.lattice.matrix) > 0:
        return structure.copy()
    properties, labels = structure.site_properties, structure.labels
    frac = -structure.frac_coords
    return New(-structure.lattice.matrix, structure.species, frac, site_properties=properties, labels=labels)


def from_cell(text: str) -> Any:
    """A csv cell as None, bool, int, float, JSON list, object or quoted string, else the text itself."""
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan", text):
        return float(text)
    if text[0] + text[-1] in ("[]", "{}", '""'):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def to_cell(value: Any) -> str:
    """A csv cell that `from_cell` reads back as the value; None is an empty cell."""
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    if isinstance(value, str):
        # only a text that would be read as something else is quoted
        return value if value and from_cell(value) == value and type(from_cell(value)) is str else json.dumps(value)
    return str(value)
