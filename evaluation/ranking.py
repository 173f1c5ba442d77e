"""Which of several candidates for one formula is the best answer.

By cluster: the candidate that most others match, under the tolerances of a protocol, and among equals the one they
match most closely. A generator repeats what it is sure of, so the middle of the largest cluster is right more often
than a sample is (Jiao et al., NeurIPS 2023). By a callable: what it says, such as a log-likelihood or minus an energy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chem.io import Record, read
from evaluation.csp import formulas
from evaluation.inputs import Items, gather
from evaluation.matching.pairs import match_pairs
from evaluation.protocols import Protocol
from evaluation.protocols import protocol as find_protocol
from evaluation.validity import unusable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from chem.crystals import CrystalBatch

Scorer = Callable[[Sequence["Structure"]], Sequence[float]]


@dataclass(frozen=True)
class Ranking:
    """order: the K candidates, best first; those without a score come last. scores (K): NaN where there is none, and
    reasons (K), one line each, say why. Scores and reasons are in the order of the candidates, as they were given.
    """

    order: list[int]
    scores: list[float]
    reasons: list[str]

    @classmethod
    def of(cls, scores: Sequence[float], reasons: Sequence[str]) -> Ranking:
        """The order of falling scores; equals stay in the order in which they were given."""
        values = [float(score) for score in scores]
        order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i], i))
        return cls(order, values, list(reasons))


def rank(
    structures: Sequence[Structure] | CrystalBatch | Items,
    by: Literal["cluster"] | Scorer = "cluster",
    protocol: str | Protocol = "diffcsp-csp",
    processes: int | None = None,
) -> Ranking:
    """Rank candidates for one formula.

    by: "cluster", or a callable that takes the list of usable structures and returns one number each, the higher the
    better (NaN: no score). A score by cluster is the number of other candidates that match, less the mean rms to them
    over twice the tolerance. protocol: whose loose tolerances hold. processes: of the matcher, default all cores.

    Raises ValueError where there is nothing to rank, for candidates of several formulas, for a protocol that matches
    nothing, and for a callable that does not return one number for each.
    """
    rules = find_protocol(protocol)
    if not isinstance(rules, Protocol) or rules.task != "csp":
        raise ValueError(f"protocol = '{rules.name}' matches no crystals, allowed: one of structure prediction")
    if not (callable(by) or by == "cluster"):
        raise ValueError(f"by = '{by}', allowed: cluster, or a callable of the list of structures")
    items = structures if isinstance(structures, Items) else gather(structures, "structures")
    reasons = why_unusable(items)
    usable = [i for i, reason in enumerate(reasons) if not reason]
    if not usable:
        raise ValueError(f"structures: none of {len(items)} can be ranked; the first: {reasons[0]}")
    places = [items.place[i] for i in usable]
    batch = items.batch[[p for p in places if p is not None]]
    if len(found := sorted(set(formulas(batch)))) > 1:
        raise ValueError(f"structures are of {len(found)} formulas ({', '.join(found[:4])}), allowed: one formula")
    scores = np.full(len(items), np.nan)
    if callable(by):
        scores[usable] = _called(by, batch)
        reasons = [reason or ("no score" if math.isnan(s) else "") for reason, s in zip(reasons, scores, strict=True)]
    else:
        scores[usable] = centrality(batch, [list(range(len(batch)))], rules, processes)[0]
    return Ranking.of(scores.tolist(), reasons)


def best_first(
    structures_or_files: Any,
    by: Literal["cluster"] | Scorer = "cluster",
    protocol: str | Protocol = "diffcsp-csp",
    processes: int | None = None,
    name: str | None = None,
) -> list[Structure]:
    """Copies of the candidates, best first, with `rank` (from 1), `score` and `rank_by` among their properties.

    structures_or_files: pymatgen structures, files or folders. What has no score comes last with the property
    `not_ranked`, the reason, in place of `score`; what cannot be read is left out with a warning. name: of the way, for
    `rank_by`. Raises what `rank` raises.
    """
    if isinstance(structures_or_files, (str, Path)) or not isinstance(structures_or_files, Iterable):
        structures_or_files = [structures_or_files]
    candidates: list[Any] = []
    for one in structures_or_files:
        candidates += list(read(one)) if isinstance(one, (str, Path)) else [one]
    items = gather(candidates, "structures_or_files")
    found = rank(items, by, protocol, processes)
    ordered: list[Structure] = []
    unread: list[str] = []
    for i in found.order:
        structure, properties = _opened(candidates[i])
        if structure is None:
            unread.append(found.reasons[i])
            continue
        score = {"not_ranked": found.reasons[i]} if found.reasons[i] else {"score": found.scores[i]}
        structure.properties = {**properties, "rank": len(ordered) + 1, "rank_by": name or str(by), **score}
        ordered.append(structure)
    if unread:
        warnings.warn(f"{len(unread)} of {len(items)} candidates left out; the first: {unread[0]}", stacklevel=3)
    return ordered


def _opened(candidate: Any) -> tuple[Structure | None, dict[str, Any]]:
    """A copy of the structure of a candidate, and its properties without those of an earlier ranking."""
    structure = getattr(candidate, "structure", candidate)
    if structure is None:
        return None, {}
    extra = {"id": candidate.id} if isinstance(candidate, Record) and candidate.id is not None else {}
    known = {**(structure.properties or {}), **getattr(candidate, "properties", {}), **extra}
    return structure.copy(), {k: v for k, v in known.items() if k not in ("score", "not_ranked")}


def why_unusable(items: Items) -> list[str]:
    """Why each structure cannot be ranked, empty where it can."""
    broken = unusable(items.batch)
    return [e or ("" if p is None else broken[p]) for p, e in zip(items.place, items.errors, strict=True)]


def centrality(
    batch: CrystalBatch, groups: Sequence[Sequence[int]], protocol: Protocol, processes: int | None = None
) -> list[NDArray[np.float64]]:
    """Scores by cluster of the candidates in each group, which are indices into the batch; NaN for unusable ones.

    All groups share one set of processes. A pair that fails or takes too long does not match.
    """
    broken = unusable(batch)
    pairs = [pair for group in groups for pair in combinations([i for i in group if not broken[i]], 2)]
    sound = np.flatnonzero([not reason for reason in broken])
    place = {int(i): p for p, i in enumerate(sound)}
    only = batch[sound.tolist()]
    found = match_pairs(only, only, [(place[i], place[j]) for i, j in pairs], protocol, processes)
    count, total = np.zeros(len(batch)), np.zeros(len(batch))
    for pair, match in zip(pairs, found, strict=True):
        if match.rms is not None:
            count[list(pair)] += 1
            total[list(pair)] += match.rms
    # rms is at most stol, so that it never outweighs a match
    scores = count - total / np.maximum(count, 1) / (2 * protocol.matcher.stol)
    scores[[bool(reason) for reason in broken]] = np.nan
    return [scores[list(group)] for group in groups]


def _called(by: Scorer, batch: CrystalBatch) -> NDArray[np.float64]:
    from chem.convert import to_structures

    structures = to_structures(batch)
    returned = by(structures)
    try:
        scores = np.array([float(score) for score in returned])
    except (TypeError, ValueError) as error:
        raise ValueError(f"by: the callable returned {type(returned).__name__}, allowed: a list of numbers") from error
    if len(scores) != len(structures):
        raise ValueError(f"by: the callable returned {len(scores)} numbers, allowed: one for each of {len(structures)}")
    return scores
