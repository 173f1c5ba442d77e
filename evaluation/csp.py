"""Structure prediction: match rate and RMSE at k candidates per target, in three variants that are never mixed.

`all` counts every match. `legacy` is what DiffCSP's tables give: for k = 1 a match counts only where prediction and
truth are both valid, for k > 1 where the prediction is; valid means both validities and, by the protocol's switch, that
both fingerprints can be made. `strict` counts matches under the tight tolerances. Every rate is
over all targets: a missing, unreadable, too slow or invalid candidate is a miss.

RMSE is the mean of the smallest rms over the matched targets alone, so it can be traded against matches; cRMSE counts
stol for the unmatched. Matching rescales to one volume, so the volume error stands beside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.compositions.smact import batch_counts, compositional_validity
from evaluation.inputs import Items
from evaluation.matching.pairs import Match, match_pairs
from evaluation.protocols import Protocol
from evaluation.report import Number, mean, median, rate
from evaluation.validity import Validity, joint_validity, structural_validity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

LEGACY = "legacy"
Candidates = Sequence[Sequence[int | None]]


@dataclass(frozen=True)
class Scores:
    """T targets with k candidates each, all (T, k): rms and strict NaN where unmatched; volume error NaN where unknown.

    valid: of the candidate; true (T,): of the target.
    """

    rms: NDArray[np.float64]
    strict: NDArray[np.float64]
    volume_error: NDArray[np.float64]
    valid: NDArray[np.bool_]
    true: NDArray[np.bool_]


def score(
    items: Items, reference: Items, candidates: Candidates, protocol: Protocol, processes: int | None, seed: int
) -> tuple[list[Number], list[dict[str, Any]], Counter[str]]:
    """Numbers, one row per candidate, and the reasons why candidates could not be judged."""
    slots = [(j, c, i) for j, row in enumerate(candidates) for c, i in enumerate(row)]
    places = [(j, c, None if i is None else items.place[i]) for j, c, i in slots]
    tried = [(j, c, place) for j, c, place in places if place is not None]
    matches = match_pairs(items.batch, reference.batch, [(p, j) for j, _, p in tried], protocol, processes)
    of = {(j, c): match for (j, c, _), match in zip(tried, matches, strict=True)}
    structural = structural_validity(items.batch, protocol.structure)
    composition = compositional_validity(items.batch, protocol.composition)
    valid = joint_validity(items.batch, structural.valid, composition, protocol.fingerprints)
    true_structure = structural_validity(reference.batch, protocol.structure).valid
    true_composition = compositional_validity(reference.batch, protocol.composition)
    true = joint_validity(reference.batch, true_structure, true_composition, protocol.fingerprints)
    scores = _scores(items, reference, tried, of, valid, true, candidates)
    judged = _Judged(items, reference, of, structural, composition, scores, formulas(reference.batch))
    rows = [judged.row(*slot) for slot in slots]
    failures: Counter[str] = Counter(row["failure"] for row in rows if row["failure"])
    k = len(candidates[0])
    numbers = [n for at in ((1,) if k == 1 else (1, k)) for n in _numbers(scores, at, protocol, seed)]
    share = int(structural.valid.sum())
    numbers += [
        rate("structural_validity", share, len(slots), f"all {len(slots)} candidates asked for", protocol),
        rate("target_validity", int(true.sum()), len(true), f"all {len(true)} targets", protocol, "bounds legacy"),
    ]
    return numbers, rows, failures


def _scores(
    items: Items,
    reference: Items,
    tried: Sequence[tuple[int, int, int]],
    of: dict[tuple[int, int], Match],
    valid: NDArray[np.bool_],
    true: NDArray[np.bool_],
    candidates: Candidates,
) -> Scores:
    shape = (len(candidates), len(candidates[0]))
    rms, strict, error = (np.full(shape, np.nan) for _ in range(3))
    passed = np.zeros(shape, dtype=bool)
    ours, theirs = _volume_per_atom(items.batch), _volume_per_atom(reference.batch)
    for j, c, p in tried:
        match = of[j, c]
        rms[j, c] = np.nan if match.rms is None else match.rms
        strict[j, c] = np.nan if match.strict_rms is None else match.strict_rms
        passed[j, c] = valid[p]
        if not match.failed:
            error[j, c] = abs(ours[p] / theirs[j] - 1)
    return Scores(rms, strict, error, passed, true)


def _numbers(scores: Scores, k: int, protocol: Protocol, seed: int) -> list[Number]:
    """The numbers over the first k candidates of each target."""
    targets = len(scores.rms)
    legacy = scores.valid[:, :k] & (scores.true[:, None] if k == 1 else True)
    clause = "" if protocol.fingerprints else "without fingerprint clause"
    variants = {
        "all": scores.rms[:, :k],
        LEGACY: np.where(legacy, scores.rms[:, :k], np.nan),
        "strict": scores.strict[:, :k],
    }
    numbers = []
    for name, rms in variants.items():
        best = np.where(np.isnan(rms), np.inf, rms).min(1)
        hit = np.isfinite(best)
        hits = int(hit.sum())
        note = clause if name == LEGACY else ""
        numbers.append(rate(f"match_rate_{name}@{k}", hits, targets, f"all {targets} targets", protocol, note))
        numbers.append(mean(f"rmse_{name}@{k}", best[hit], f"{hits} matched targets", protocol, seed))
        numbers.append(median(f"rmse_median_{name}@{k}", best[hit], f"{hits} matched targets", protocol, seed))
        if name == "all":
            stol = protocol.matcher.stol
            note = f"unmatched count {stol}"
            numbers.append(
                mean(f"crmse_{name}@{k}", np.where(hit, best, stol), f"all {targets} targets", protocol, seed, note)
            )
    error = _volume_error(scores, k)
    numbers.append(
        mean(f"volume_error@{k}", error, f"{len(error)} targets with a comparable candidate", protocol, seed, "|dV|/V")
    )
    return numbers


def _volume_error(scores: Scores, k: int) -> NDArray[np.float64]:
    """|dV|/V of each target's best-matching candidate, else its first comparable one; targets with neither left out."""
    known = ~np.isnan(scores.volume_error[:, :k])
    order = np.where(np.isnan(scores.rms[:, :k]), 1e3, scores.rms[:, :k])
    pick = np.where(known, order, np.inf).argmin(1)
    return scores.volume_error[np.arange(len(pick)), pick][known.any(1)]


def _volume_per_atom(batch: CrystalBatch) -> NDArray[np.float64]:
    from chem.lattice import volume

    return (volume(batch["lattice"].double()) / batch["num_atoms"]).cpu().numpy()


@dataclass(frozen=True)
class _Judged:
    """Everything known of every candidate, to make rows from."""

    items: Items
    reference: Items
    of: dict[tuple[int, int], Match]
    structural: Validity
    composition: NDArray[np.bool_]
    scores: Scores
    formulas: list[str]

    def row(self, target: int, candidate: int, item: int | None) -> dict[str, Any]:
        """One row of structures.csv."""
        place = None if item is None else self.items.place[item]
        match = self.of.get((target, candidate), Match())
        failure = "no candidate" if item is None else self.items.errors[item] or (match.reason if match.failed else "")
        if place is None and not failure:
            failure = "unreadable"
        return {
            "target": self.reference.ids[target],
            "candidate": candidate,
            "id": "" if item is None else self.items.ids[item],
            "source": "" if item is None else self.items.sources[item],
            "target_formula": self.formulas[target],
            "target_atoms": int(self.reference.batch["num_atoms"][target]),
            "target_valid": bool(self.scores.true[target]),
            "structure_valid": None if place is None else bool(self.structural.valid[place]),
            "composition_valid": None if place is None else bool(self.composition[place]),
            "valid": None if place is None else bool(self.scores.valid[target, candidate]),
            "rms": match.rms,
            "strict_rms": match.strict_rms,
            "volume_error": float(self.scores.volume_error[target, candidate]),
            "reason": failure or match.reason or ("" if place is None else self.structural.reasons[place]),
            "failure": failure,
        }


def formulas(batch: CrystalBatch) -> list[str]:
    """Reduced formula of each crystal of a batch, elements in the order of atomic number."""
    from ase.data import chemical_symbols

    def symbol(z: int) -> str:
        return chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"?{z}"

    return ["".join(symbol(z) + (str(n) if n > 1 else "") for z, n in counts) for counts in batch_counts(batch)]
