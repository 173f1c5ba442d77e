"""Molecules without targets: stability, validity, uniqueness, novelty, and distances to a reference.

Every rate is over all molecules that were given: what cannot be read or judged is unstable and invalid. With V the
valid molecules, V&U their distinct SMILES, V&U&N those of them that are not among the SMILES of the reference made by
the same rule (never the SMILES a data set came with), V >= V&U >= V&U&N always holds.

The reference's own score stands beside: its rates over all of it, uniqueness over a draw of as many molecules as
were given, V&U the product of both, and for a distance the floor. Distances of bonds, angles and torsions are of valid
molecules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.inputs import Items
from evaluation.intervals import bootstrap
from evaluation.molecules import distances as far
from evaluation.molecules import geometry
from evaluation.molecules.graphs import FAULTS, Graph
from evaluation.molecules.judging import Judged, judge_batch
from evaluation.molecules.stability import corrected_stability
from evaluation.protocols import MoleculeProtocol
from evaluation.report import Number, rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWN = 10_000  # molecules, at most, that distances are measured on, of the samples and of the reference


def score(
    items: Items, reference: Items | None, protocol: MoleculeProtocol, processes: int | None, seed: int
) -> tuple[list[Number], list[dict[str, Any]], Counter[str]]:
    """Numbers, one row per molecule, and the reasons why molecules could not be judged.

    Without a reference there is no novelty and no distance.
    """
    n = len(items)
    judged = judge_batch(items.batch, protocol, processes)
    against = None if reference is None else judge_batch(reference.batch, protocol, processes, keep=True)
    numbers = _rates(judged, n, protocol, seed)
    seen = None if against is None else {g.smiles for g in _valid(against)}
    numbers += _chain([g.smiles for g in _valid(judged)], seen, n, protocol)
    if reference is not None and against is not None:
        numbers = _beside(numbers, against, n, protocol, seed)
        numbers += _distances(judged, against, reference.histograms, protocol, seed)
    if "bond_order" in items.batch.fields:
        numbers += _given_bonds(items, n, protocol)
    if protocol.posebusters or protocol.gfn2:
        from evaluation.molecules import physics

        slow = physics.tiers(judged, items.place, protocol, processes, seed)
        if against is not None:
            all_of_it: list[int | None] = list(range(len(against.batch)))
            slow = physics.beside(slow, physics.tiers(against, all_of_it, protocol, processes, seed))
        numbers += slow
    rows = [_row(items, i, judged, seen) for i in range(n)]
    return numbers, rows, Counter(row["failure"] for row in rows if row["failure"])


def _valid(judged: Judged) -> list[Graph]:
    return [graph for graph, valid in zip(judged.graphs, judged.valid, strict=True) if valid]


def _rates(judged: Judged, n: int, protocol: MoleculeProtocol, seed: int) -> list[Number]:
    """The rates of n molecules of which some may not be in the batch."""
    everyone = f"all {n} molecules"
    rule = f"{protocol.bonds} bonds, {protocol.valences} valences"
    stable, sizes = judged.stability.atoms, judged.batch["num_atoms"].numpy()
    both = np.stack((stable, sizes), 1).astype(np.float64)
    (low, high), error = bootstrap(both, _share, protocol.resamples, protocol.level, seed)
    how = f"bootstrap {protocol.level:.0%} of the molecules, {protocol.resamples} resamples, seed {seed}"
    atoms, of = int(sizes.sum()), f"{int(sizes.sum())} atoms of {len(judged.batch)} molecules"
    hits = int(stable.sum())
    numbers = [Number("atom_stability", hits / atoms, atoms, of, hits, low, high, how, error, rule)]

    def add(name: str, hits: int, note: str = "") -> None:
        numbers.append(rate(name, hits, n, everyone, protocol, note))

    add("molecule_stability", int(judged.stability.stable.sum()), rule)
    add("connected", sum(g.fragments == 1 for g in judged.graphs), "one fragment")
    add("validity_largest_fragment", sum(bool(g.smiles) for g in judged.graphs))
    add("validity_whole_molecule", sum(bool(g.smiles) and not g.fault for g in judged.graphs))
    faults = Counter(g.fault for g in judged.graphs)
    faults["unusable"] += n - len(judged.graphs)
    for fault in FAULTS:
        add(f"invalid_{fault.replace(' ', '_')}", faults[fault], "as a whole molecule")
    return numbers


def _share(values: NDArray[np.float64]) -> float:
    return float(values[:, 0].sum() / values[:, 1].sum())


def _chain(valid: list[str], seen: set[str] | None, n: int, protocol: MoleculeProtocol) -> list[Number]:
    """V, V&U and, where there is a reference, V&U&N, each also as a share of the one before."""
    unique = set(valid)
    novel = unique if seen is None else unique - seen
    if not n >= len(valid) >= len(unique) >= len(novel):
        raise RuntimeError(
            f"{n} molecules, {len(valid)} valid, {len(unique)} unique, {len(novel)} novel; must not grow"
        )
    everyone = f"all {n} molecules"
    numbers = [
        rate("validity", len(valid), n, everyone, protocol, f"{protocol.validity}, {protocol.bonds} bonds"),
        rate("valid_and_unique", len(unique), n, everyone, protocol, "distinct SMILES of the largest fragment"),
        rate("uniqueness", len(unique), len(valid), f"{len(valid)} valid molecules", protocol),
    ]
    if seen is None:
        return numbers
    note = f"not among {len(seen)} SMILES of the reference by the same rule"
    return [
        *numbers,
        rate("valid_unique_and_novel", len(novel), n, everyone, protocol, note),
        rate("novelty", len(novel), len(unique), f"{len(unique)} unique molecules", protocol, note),
    ]


def _beside(numbers: list[Number], against: Judged, n: int, protocol: MoleculeProtocol, seed: int) -> list[Number]:
    """The numbers with what the reference itself scores."""
    theirs = {x.name: x.value for x in _rates(against, len(against.batch), protocol, seed)}
    size = min(n, len(against.batch))
    rows = np.random.default_rng(seed).permutation(len(against.batch))[:size]
    drawn = [against.graphs[i].smiles for i in rows if against.valid[i]]
    theirs |= {x.name: x.value for x in _chain(drawn, None, size, protocol)}
    theirs["validity"] = float(against.valid.mean())
    theirs["valid_and_unique"] = theirs["validity"] * theirs["uniqueness"]  # the draw's may exceed the validity of all
    return [replace(x, reference=theirs.get(x.name, np.nan)) for x in numbers]


def _distances(
    judged: Judged, against: Judged, known: Mapping[str, Mapping[int, int]], protocol: MoleculeProtocol, seed: int
) -> list[Number]:
    draw = np.random.default_rng(seed)
    numbers: list[Number] = []
    for kind in ("valid", "usable"):
        picked = []
        for one in (judged, against):
            good = one.valid if kind == "valid" else np.array([g.fault != "unusable" for g in one.graphs])
            picked.append(np.sort(draw.permutation(np.flatnonzero(good))[:DRAWN]))
        (ours, *our_bonds), (theirs, *their_bonds) = judged.drawn(picked[0]), against.drawn(picked[1])
        counts = len(ours), len(theirs)
        of = f"{counts[0]} {kind} molecules against {counts[1]} of the reference"
        measured: dict[str, tuple[geometry.Values, geometry.Values]]
        if kind == "valid":
            measured = {
                "bond_length": (geometry.bond_lengths(ours, *our_bonds), geometry.bond_lengths(theirs, *their_bonds)),
                "bond_angle": (geometry.angles(ours, our_bonds[0]), geometry.angles(theirs, their_bonds[0])),
                "torsion": (geometry.torsions(ours, *our_bonds), geometry.torsions(theirs, *their_bonds)),
            }
        else:
            measures = {"pair_distance": geometry.distances, "element": geometry.elements, "num_atoms": geometry.sizes}
            measured = {name: (measure(ours), measure(theirs)) for name, measure in measures.items()}
        for name, (a, b) in measured.items():
            numbers += far.distances(name, a, b, counts, of, protocol, seed, known.get(name))
    return numbers


def _given_bonds(items: Items, n: int, protocol: MoleculeProtocol) -> list[Number]:
    """Corrected stability of the bonds that the molecules came with."""
    import torch

    batch = items.batch.to("cpu")
    charges = batch["charges"] if "charges" in batch.fields else torch.zeros_like(batch["atomic_numbers"])
    stable = corrected_stability(batch, batch.bond_index, batch["bond_order"], charges)
    atoms, note = len(batch["batch"]), "corrected valences, the bonds and charges that were given"
    of = f"{atoms} atoms of {len(batch)} molecules"
    return [
        rate("atom_stability_of_given_bonds", int(stable.atoms.sum()), atoms, of, protocol, note),
        rate("molecule_stability_of_given_bonds", int(stable.stable.sum()), n, f"all {n} molecules", protocol, note),
    ]


def _row(items: Items, i: int, judged: Judged, seen: set[str] | None) -> dict[str, Any]:
    """One row of structures.csv."""
    place = items.place[i]
    row: dict[str, Any] = {"id": items.ids[i], "source": items.sources[i], "failure": items.errors[i]}
    if place is None:
        return row
    graph, valid = judged.graphs[place], bool(judged.valid[place])
    if graph.fault in ("unusable", "killed"):
        row["failure"] = graph.reason
    return row | {
        "atoms": int(judged.batch["num_atoms"][place]),
        "stable_atoms": int(judged.stability.atoms[place]),
        "stable": bool(judged.stability.stable[place]),
        "fragments": graph.fragments,
        "valid_largest_fragment": bool(graph.smiles),
        "valid_whole_molecule": bool(graph.smiles) and not graph.fault,
        "smiles": graph.smiles,
        "novel": None if seen is None or not valid else graph.smiles not in seen,
        "reason": graph.reason,
    }
