"""Molecules that were asked for a property, judged by a regressor: EDM's conditional protocol (Hoogeboom et al. 2022).

The number is the mean absolute error of the regressor's prediction for each sample against the value that was asked
for. Three numbers of the reference, real molecules that neither model was trained on, stand beside it:

    mae_real         of its predictions against the true values: no generator can be seen to be better
    mae_shuffled     of its predictions against values of other molecules: a generator that ignores what it is asked
    mae_num_atoms    of guesses from the number of atoms alone: the median of the value among molecules of that size (of
                     all where there is none), found on one half of the reference and tried on the other, and vice versa

A sample that cannot be judged is counted with its reason, and `judged` says how many could be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evaluation.inputs import Items
from evaluation.protocols import ConditionalProtocol
from evaluation.report import Number, mean, rate

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.molecules import MoleculeBatch

    Values = NDArray[np.float64]


class Judge(NamedTuple):
    """What predicts a property: its name and a function from a batch of molecules to values (B,); name of the model."""

    property: str
    predict: Callable[[MoleculeBatch], Tensor]
    name: str = "a callable"


def score(
    items: Items, reference: Items | None, judge: Judge, protocol: ConditionalProtocol, seed: int
) -> tuple[list[Number], list[dict[str, Any]], Counter[str]]:
    """Numbers, one row per molecule, and the reasons why molecules could not be judged.

    Raises ValueError where no sample says what it was asked for, or the reference lacks the property.
    """
    asked = asked_values(items, judge.property)
    predicted = judge.predict(items.batch).double().numpy()
    rows = [_row(items, i, asked[i], predicted) for i in range(len(items))]
    errors = np.array([row["error"] for row in rows], dtype=np.float64)
    good = errors[np.isfinite(errors)]
    of, by = f"{len(good)} of {len(items)} molecules", f"{judge.property} by {judge.name}"
    numbers = [
        mean("mae", good, of, protocol, seed, by),
        rate("judged", len(good), len(items), f"all {len(items)} molecules", protocol),
    ]
    if reference is not None:
        numbers += _beside(reference, judge, protocol, seed)
    return numbers, rows, Counter(row["failure"] for row in rows if row["failure"])


def asked_values(items: Items, name: str) -> Values:
    """What each molecule (N,) was asked for, NaN where it does not say; ValueError where none does."""
    if name in items.batch.fields:  # a batch that carries it
        column = items.batch[name].double().numpy()
        asked = np.array([np.nan if place is None else column[place] for place in items.place])
    else:
        asked = np.array([said.get(name, np.nan) for said in items.conditions or [{}]], dtype=np.float64)
    if not np.isfinite(asked).any():
        where = f"molecules with the property conditions, as {{'{name}': 0.2}}, or a batch with the field {name}"
        raise ValueError(f"structures_or_files: no molecule says which {name} it was asked for; allowed: {where}")
    return asked


def _row(items: Items, i: int, asked: float, predicted: Values) -> dict[str, Any]:
    place, failure = items.place[i], items.errors[i]
    found = np.nan if place is None else float(predicted[place])
    if not failure and not np.isfinite(asked):
        failure = "does not say what it was asked for"
    if not failure and not np.isfinite(found):
        failure = "the regressor's prediction is not finite"
    error = np.nan if failure else abs(found - asked)
    row: dict[str, Any] = {"id": items.ids[i], "source": items.sources[i], "asked": asked}
    return {**row, "predicted": found, "error": error, "failure": failure}


def _beside(reference: Items, judge: Judge, protocol: ConditionalProtocol, seed: int) -> list[Number]:
    """The regressor's own error and the two errors of generators that know nothing."""
    if judge.property not in reference.batch.fields:
        raise ValueError(f"reference = '{reference.name}' has no property {judge.property}; allowed: data that have it")
    batch = reference.batch
    known = (~batch[judge.property].isnan()).nonzero().squeeze(1)
    batch = batch.select(known)
    true, sizes = batch[judge.property].double().numpy(), batch["num_atoms"].numpy()
    if len(true) < 2:
        raise ValueError(f"reference = '{reference.name}' has {len(true)} values of {judge.property}; allowed: from 2")
    predicted = judge.predict(batch).double().numpy()
    of, order = f"{len(true)} molecules of the reference", np.random.default_rng(seed)
    errors = {
        "mae_real": predicted - true,
        "mae_shuffled": predicted - order.permutation(true),
        "mae_num_atoms": guesses(true, sizes, order.permutation(len(true)) % 2) - true,
    }
    return [mean(name, np.abs(values), of, protocol, seed) for name, values in errors.items()]


def guesses(values: Values, sizes: NDArray[np.int64], half: NDArray[np.int64]) -> Values:
    """The median (N,) of the values of as many atoms in the other half, or of all of the other half."""
    out = np.empty_like(values)
    for one in (0, 1):
        learn, try_on = half != one, half == one
        medians = {n: np.median(values[learn & (sizes == n)]) for n in np.unique(sizes[learn])}
        everywhere = np.median(values[learn])
        out[try_on] = [medians.get(n, everywhere) for n in sizes[try_on]]
    return out
