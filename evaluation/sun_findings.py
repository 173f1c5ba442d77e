"""What S.U.N. is made of: every crystal compared, relaxed and weighed, in the order its protocol asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.compositions.smact import batch_counts
from evaluation.csp import formulas
from evaluation.descriptors.symmetry import symmetry
from evaluation.inputs import Items
from evaluation.matching.sameness import Sameness
from evaluation.matching.uniqueness import novelty, uniqueness
from evaluation.protocols import SunProtocol
from evaluation.relaxation.relaxed_match import RelaxedMatch, match_relaxed
from evaluation.relaxation.samples import relax_samples
from evaluation.stability.hull import HullDistances
from evaluation.stability.scale import Scale
from evaluation.validity import structural_validity, unusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

ROUNDING = 1e-8  # eV/atom: a phase of the hull lies on it


@dataclass(frozen=True)
class Compared:
    """Which of B crystals are new.

    unique, novel (B,). first (B,): the crystal that each is a copy of, itself where it is unique; known (B,): which of
    the reference it is; both -1 where there is none. unclear: pairs that could not be compared in time.
    """

    unique: NDArray[np.bool_]
    novel: NDArray[np.bool_]
    first: NDArray[np.int64]
    known: NDArray[np.int64]
    unclear: int

    @property
    def new(self) -> NDArray[np.bool_]:
        """Which crystals (B,) are unique and novel."""
        return self.unique & self.novel


@dataclass(frozen=True)
class Relaxed:
    """What became of B crystals.

    tried (B,): which were relaxed; sound (B,): which have a relaxed self. batch: that, where there is one, else the
    crystal as it was made. energies, initial (B,): totals in eV, NaN unless sound. reasons (B): why one failed or did
    not converge.
    """

    batch: CrystalBatch
    tried: NDArray[np.bool_]
    sound: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    energies: NDArray[np.float64]
    initial: NDArray[np.float64]
    reasons: list[str]


@dataclass(frozen=True)
class Findings:
    """Of the B crystals that could be read, of n that were given.

    ordered: the comparison with all elements told apart, where that of the protocol is disordered-aware, else None.
    unknown (B): why one cannot be judged whatever its structure. elements (B,): how many. above, initial, own (B,):
    eV/atom above the hull when relaxed, as made, and above the hull of table and samples, which is the hull itself
    unless the protocol is self-consistent; NaN where there is none.
    mixtures (B): what each decomposes into. rmsd (B,): to the relaxed crystal in ångström, NaN without; aligned (B,):
    whether it could be found. space_groups (B,): of the relaxed crystals, 0 without.
    """

    n: int
    relaxed: Relaxed
    compared: Compared
    ordered: Compared | None
    unknown: list[str]
    elements: NDArray[np.int64]
    above: NDArray[np.float64]
    initial: NDArray[np.float64]
    own: NDArray[np.float64]
    mixtures: list[dict[str, float]]
    rmsd: NDArray[np.float64]
    aligned: NDArray[np.bool_]
    space_groups: NDArray[np.int64]

    def stable(
        self, protocol: SunProtocol, threshold: float | None = None, above: NDArray[np.float64] | None = None
    ) -> NDArray[np.bool_]:
        """Which crystals (B,) lie low enough and have the elements that the protocol asks for.

        threshold: eV/atom, by default the protocol's. above: distances to the hull, by default of the relaxed crystals.
        """
        limit = (protocol.stable if threshold is None else threshold) + ROUNDING
        return ((self.above if above is None else above) <= limit) & (self.elements >= protocol.least_elements)


def judge(
    items: Items,
    reference: Items,
    protocol: SunProtocol,
    scale: Scale,
    processes: int | None,
    out: str | Path | None,
    **shared: Any,
) -> Findings:
    """Compare, relax and weigh; with `out` the relaxation is a run that goes on where it was stopped.

    shared: mapper and part of runs.pipeline.run, for the relaxation.
    """
    batch = items.batch
    unknown, compared = _unknown(batch, scale), None
    if protocol.compared == "made":
        usable = np.array([not reason for reason in unusable(batch)], dtype=bool)
        compared = _compare(batch, usable, reference, protocol, processes)
    chosen = np.array([not reason for reason in unknown], dtype=bool)
    if protocol.relaxed == "valid":
        chosen &= structural_validity(batch, protocol.structure).valid
    elif protocol.relaxed == "unique-novel" and compared is not None:
        chosen &= compared.new
    relaxed = _relax(batch, chosen, scale, out, workers=processes, **shared)
    if compared is None:
        usable = relaxed.sound
        compared = _compare(relaxed.batch, usable, reference, protocol, processes)
    ordered = None
    if protocol.disordered:
        subject = batch if protocol.compared == "made" else relaxed.batch
        ordered = _compare(subject, usable, reference, replace(protocol, disordered=False), processes)
    rows, sound = relaxed.sound.nonzero()[0].tolist(), relaxed.sound
    weighed, start, own = _weigh(relaxed.batch[rows], relaxed.energies[rows], relaxed.initial[rows], protocol, scale)
    match = RelaxedMatch(np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool), [""] * len(rows))
    if protocol.rmsd:
        match = match_relaxed(batch[rows], relaxed.batch[rows], processes=processes)
    return Findings(
        n=len(items),
        relaxed=relaxed,
        compared=compared,
        ordered=ordered,
        unknown=unknown,
        elements=np.array([len(counts) for counts in batch_counts(batch)], dtype=np.int64),
        above=_filled(sound, weighed.e_above_hull, np.nan),
        initial=_filled(sound, start.e_above_hull, np.nan),
        own=_filled(sound, own.e_above_hull, np.nan),
        mixtures=_spread(sound, weighed.mixtures, {}),
        rmsd=_filled(sound, match.rmsd, np.nan),
        aligned=_filled(sound, match.matched, False),
        space_groups=_filled(sound, symmetry(relaxed.batch[rows], protocol.symprec).space_groups, 0),
    )


def _unknown(batch: CrystalBatch, scale: Scale) -> list[str]:
    """Why each crystal (B) cannot be judged whatever its structure, empty where it can."""
    numbers, known = batch["atomic_numbers"].cpu().numpy(), np.ones(len(batch), dtype=bool)
    known[batch["batch"].cpu().numpy()[(numbers < 1) | (numbers > 118)]] = False
    return _spread(known, scale.unknown(batch[known.nonzero()[0].tolist()]), "an atomic number is not in 1..118")


def _compare(
    batch: CrystalBatch, wanted: NDArray[np.bool_], reference: Items, protocol: SunProtocol, processes: int | None
) -> Compared:
    """Which of the wanted crystals (B,) are new; the others are not."""
    sameness, rows = Sameness(protocol.tolerances, protocol.disordered), wanted.nonzero()[0]
    part = batch[rows.tolist()]
    groups = uniqueness(part, sameness, protocol.grouping, processes)
    seen = novelty(part, reference.batch, reference.name, sameness, processes)
    leaders = rows[groups.unique]  # of the groups, in their order
    first = np.append(leaders, -1)[groups.group]
    return Compared(
        unique=_filled(wanted, groups.unique, False),
        novel=_filled(wanted, seen.novel, False),
        first=_filled(wanted, first, -1),
        known=_filled(wanted, seen.known, -1),
        unclear=groups.unclear + seen.unclear,
    )


def _relax(
    batch: CrystalBatch, tried: NDArray[np.bool_], scale: Scale, out: str | Path | None, **options: Any
) -> Relaxed:
    """The crystals that are tried (B,), relaxed."""
    import torch

    from chem.crystals import CrystalBatch

    fields = {name: batch[name] for name in ("atomic_numbers", "frac_coords", "lattice")}
    made = CrystalBatch(batch["num_atoms"], **fields).to(torch.float64)
    done = relax_samples(made[tried.nonzero()[0].tolist()], scale.relaxer, scale.request, out, **options)
    fine = ~done.failed.numpy()
    sound = _filled(tried, fine, False)
    here, relaxed = torch.from_numpy(sound), done.batch[fine.nonzero()[0].tolist()]
    frac, lattice = made["frac_coords"].clone(), made["lattice"].clone()
    frac[here[made["batch"]]], lattice[here] = relaxed["frac_coords"], relaxed["lattice"]
    return Relaxed(
        batch=made.replace(frac_coords=frac, lattice=lattice),
        tried=tried,
        sound=sound,
        converged=_filled(tried, done.converged.numpy(), False),
        steps=_filled(tried, done.steps.numpy(), 0),
        energies=_filled(sound, done.energies.numpy()[fine], np.nan),
        initial=_filled(sound, done.initial_energies.numpy()[fine], np.nan),
        reasons=_spread(tried, done.reasons, ""),
    )


def _weigh(
    batch: CrystalBatch,
    energies: NDArray[np.float64],
    initial: NDArray[np.float64],
    protocol: SunProtocol,
    scale: Scale,
) -> tuple[HullDistances, HullDistances, HullDistances]:
    """Distances to the hull of relaxed crystals and of their first energies, and to the hull with them in it."""
    weighed, start = (scale.weigh(batch, totals) for totals in (energies, initial))
    if not protocol.self_consistent:
        return weighed, start, weighed
    formation = scale.references.formation_energies(batch, energies)
    known = np.isfinite(formation).nonzero()[0]
    names = formulas(batch[known.tolist()])
    return weighed, start, scale.weigh(batch, energies, scale.hull.with_phases("with samples", names, formation[known]))


def _spread(wanted: NDArray[np.bool_], values: Sequence[Any], missing: Any) -> list[Any]:
    """The values in the places that are wanted (B,), `missing` in the others."""
    found = iter(values)
    return [next(found) if want else missing for want in wanted]


def _filled(wanted: NDArray[np.bool_], values: NDArray[Any], missing: Any) -> NDArray[Any]:
    """As `_spread`, of an array."""
    filled = np.full(len(wanted), missing, dtype=np.asarray(values).dtype)
    filled[wanted] = values
    return filled
