"""Slow tiers: PoseBusters' checks and the strain by GFN2-xTB, on a stated number of random samples; extra `physics`.

PoseBusters (Buttenschoen et al., arXiv:2308.05777), configuration `mol_fast`, which leaves out the energy: bonds,
angles, clashes, flat rings, radicals and connectedness. A molecule passes where every check does; a check without a
result counts as failed, and so does a molecule that is invalid.

Strain is the energy that a molecule loses when it is relaxed by GFN2-xTB (Bannwarth et al., JCTC 15, 1652, 2019) with
ASE's BFGS to FMAX within STEPS steps; RMSD after superposition. Of molecules that are valid and converge; how many of
those drawn that are is the coverage. Data have strain, too, as their geometries come from another level of theory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.molecules.judging import Judged
from evaluation.protocols import MoleculeProtocol
from evaluation.report import Number, mean, median, rate
from evaluation.workers import Failed, limited_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

FMAX, STEPS = 0.05, 300  # eV/Å
KCAL = 23.060547830619  # kcal/mol of one eV
Task = tuple["NDArray[np.int64]", "NDArray[np.float64]", list[int], list[tuple[int, int]], list[float]]


def tiers(
    judged: Judged, place: list[int | None], protocol: MoleculeProtocol, processes: int | None, seed: int
) -> list[Number]:
    """The numbers of the tiers that the protocol has; place: index of each of N molecules in the batch, or None.

    Raises ImportError naming the extra where a package is missing.
    """
    numbers: list[Number] = []
    rows = np.random.default_rng(seed).permutation(len(place))
    if protocol.posebusters:
        _need("posebusters")
        drawn, tasks = _drawn(judged, place, rows[: protocol.posebusters])
        passed = _run(busted, tasks, protocol, processes, _start_posebusters)
        of = f"{drawn} random of all {len(place)} molecules"
        numbers.append(
            rate("posebusters", sum(found is True for found in passed), drawn, of, protocol, "mol_fast, all checks")
        )
    if protocol.gfn2:
        _need("tblite")
        drawn, tasks = _drawn(judged, place, rows[: protocol.gfn2])
        found = [x for x in _run(relaxed, tasks, protocol, processes, _start_tblite) if not isinstance(x, Failed)]
        numbers += _strain(np.array(found, dtype=np.float64).reshape(-1, 2), drawn, len(place), protocol, seed)
    return numbers


def beside(numbers: list[Number], theirs: list[Number]) -> list[Number]:
    """The numbers with those that the reference has under the same names."""
    values = {number.name: number.value for number in theirs}
    return [replace(number, reference=values.get(number.name, np.nan)) for number in numbers]


def busted(task: Task) -> bool:
    """Whether a molecule passes every check of PoseBusters."""
    from posebusters import PoseBusters
    from rdkit import Chem, rdBase

    from chem.convert_molecules import build_mol

    numbers, pos, charges, bonds, orders = task
    with rdBase.BlockLogs():
        mol = build_mol(numbers, pos, np.array(charges), (np.array(bonds).reshape(-1, 2), np.array(orders)))
        Chem.SanitizeMol(mol)
        table = PoseBusters(config="mol_fast", max_workers=0).bust([mol])
    return all(value is True or value is np.True_ for value in table.astype(object).to_numpy().ravel().tolist())


def relaxed(task: Task) -> tuple[float, float]:
    """Strain in kcal/mol and RMSD in ångström of a molecule; raises ValueError where it does not converge."""
    from ase import Atoms
    from ase.build import minimize_rotation_and_translation
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    numbers, pos, charges, *_ = task
    atoms = Atoms(numbers, pos)
    atoms.calc = TBLite(method="GFN2-xTB", charge=float(sum(charges)), verbosity=0)
    before = atoms.copy()
    energy = atoms.get_potential_energy()
    if not BFGS(atoms, logfile=None).run(fmax=FMAX, steps=STEPS):
        raise ValueError(f"not relaxed to {FMAX} eV/Å within {STEPS} steps")
    strain = (energy - atoms.get_potential_energy()) * KCAL
    minimize_rotation_and_translation(before, atoms)
    return strain, float(np.sqrt(np.mean(np.sum((before.positions - atoms.positions) ** 2, axis=1))))


def _strain(found: NDArray[np.float64], drawn: int, n: int, protocol: MoleculeProtocol, seed: int) -> list[Number]:
    of = f"{len(found)} relaxed of {drawn} random molecules"
    return [
        rate("gfn2_coverage", len(found), drawn, f"{drawn} random of all {n} molecules", protocol, "valid and relaxed"),
        mean("gfn2_strain", found[:, 0], of, protocol, seed, "kcal/mol"),
        median("gfn2_strain_median", found[:, 0], of, protocol, seed),
        mean("gfn2_rmsd", found[:, 1], of, protocol, seed, "Å"),
    ]


def _drawn(judged: Judged, place: list[int | None], rows: NDArray[np.int64]) -> tuple[int, list[Task]]:
    """How many were drawn, and those of them that are valid."""
    where = [place[i] for i in rows]
    ptr = judged.batch["ptr"].tolist()
    numbers, pos = judged.batch["atomic_numbers"].numpy(), judged.batch["pos"].double().numpy()
    tasks = []
    for i in where:
        if i is not None and judged.valid[i]:
            atoms, graph = slice(ptr[i], ptr[i + 1]), judged.graphs[i]
            tasks.append((numbers[atoms], pos[atoms], graph.charges, graph.bonds, graph.orders))
    return len(where), tasks


def _run(
    function: Callable[[Task], Any],
    tasks: list[Task],
    protocol: MoleculeProtocol,
    processes: int | None,
    start: Callable[[], None],
) -> list[Any]:
    return list(limited_map(function, tasks, protocol.tier_seconds, processes, start)) if tasks else []


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ImportError(f"the slow tiers need {package}: pip install 'atomsmith[physics]'")


def _start_posebusters() -> None:
    import posebusters  # noqa: F401


def _start_tblite() -> None:
    import ase.optimize  # noqa: F401
    import tblite.ase  # noqa: F401
