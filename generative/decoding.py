"""What models share in `encode` and `decode`: what is given moves to their own fields, scores become elements.

A model picks elements from one score for each atom and element (entries of a noisy one-hot vector, logits, minus the
distance to a code). The choice obeys the fields of the batch that say what is asked for; see `choose_elements`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chem.ragged import Batch, RaggedBatch
from chem.statistics import Statistics
from generative.backbone.cspnet import ELEMENTS


def carry_given(batch: Batch, source: str, target: str) -> Batch:
    """The batch with `<target>_given` where it has `<source>_given`: for an `encode` that makes target of source."""
    given = batch.fields.get(f"{source}_given")
    return batch if given is None else batch.replace(**{f"{target}_given": given})


def element_mask(numbers: Statistics | set[int]) -> Tensor:
    """(100,) bool, True at Z - 1 for the elements of a training set or of a set of atomic numbers."""
    present = numbers.elements if isinstance(numbers, Statistics) else numbers
    mask = torch.zeros(ELEMENTS, dtype=torch.bool)
    mask[torch.tensor([z - 1 for z in sorted(present) if z <= ELEMENTS], dtype=torch.long)] = True
    return mask


def one_hot_elements(batch: Batch) -> Batch:
    """An `encode`: elements as one-hot vectors (M, 100) under `types`, where the batch has elements."""
    if "atomic_numbers" not in batch.fields:
        return batch
    types = F.one_hot(batch["atomic_numbers"] - 1, ELEMENTS)
    batch = batch.replace(types=types.to(batch.fields.get("frac_coords", torch.zeros(())).dtype))
    return carry_given(batch, "atomic_numbers", "types")


def elements_from(seen: Tensor) -> Callable[[Batch], Batch]:
    """A `decode` that reads elements off the scores `types`: the largest that `choose_elements` admits."""

    def decode(batch: Batch) -> Batch:
        return batch.replace(atomic_numbers=choose_elements(batch["types"], batch, seen)).without("types")

    return decode


def choose_elements(scores: Tensor, batch: RaggedBatch, seen: Tensor) -> Tensor:
    """Atomic numbers (M,) of scores (M, 100): the largest among the elements `seen` (100,) bool.

    Fields of the batch narrow it: `allowed_elements` (B, 100) bool; `required_elements` (B, 100) bool, each of which
    occurs in its structure at least once, at the least loss in the sum of scores; `atomic_numbers` where
    `atomic_numbers_given` (M,) bool. Raises ValueError where a structure has fewer free atoms than it must hold.
    """
    fields = batch.fields
    allowed = seen.to(scores.device).expand(batch.num_structures, -1)
    if "allowed_elements" in fields:
        allowed = allowed & fields["allowed_elements"]
    scores = scores.masked_fill(~allowed[batch["batch"]], -torch.inf)
    numbers = scores.argmax(1) + 1
    given = fields.get("atomic_numbers_given")
    if given is not None:
        numbers = torch.where(given, fields["atomic_numbers"], numbers)
    if "required_elements" not in fields:
        return numbers
    free = torch.ones_like(numbers, dtype=torch.bool) if given is None else ~given
    return _require(numbers, scores, free, batch)


def _require(numbers: Tensor, scores: Tensor, free: Tensor, batch: RaggedBatch) -> Tensor:
    """Elements chosen again in the structures that lack a required one."""
    required = batch["required_elements"]
    have = torch.zeros_like(required)
    have[batch["batch"], numbers - 1] = True
    lacking = (required & ~have).any(1).nonzero().flatten().tolist()
    if not lacking:
        return numbers
    chosen, values = numbers.cpu(), scores.cpu().double()
    needed, free, ptr = required.cpu(), free.cpu(), batch["ptr"].tolist()
    for i in lacking:
        atoms = slice(ptr[i], ptr[i + 1])
        chosen[atoms] = assign_elements(values[atoms], chosen[atoms], needed[i], free[atoms])
    return chosen.to(numbers.device)


def assign_elements(scores: Tensor, numbers: Tensor, required: Tensor, free: Tensor) -> Tensor:
    """Elements (N,) of one structure with each of `required` (100,) bool once at least, the sum of scores as large as
    can be; atoms that are not `free` (N,) keep `numbers` (N,), whose free entries are the best of each row.

    Exact: some choice of one atom for each missing element is optimal, and given it every other atom takes its best.
    """
    from scipy.optimize import linear_sum_assignment

    held = set(numbers[~free].tolist())
    missing = [z for z in (required.nonzero().flatten() + 1).tolist() if z not in held]
    places = free.nonzero().flatten()
    if len(missing) > len(places):
        raise ValueError(f"{len(places)} free atoms cannot hold {len(missing)} required elements")
    columns = scores[places].nan_to_num(0.0, 1e30, -1e30)  # a network that diverged still gets the elements asked for
    loss = columns.max(1).values.unsqueeze(1) - columns[:, torch.tensor(missing) - 1]
    rows, kinds = linear_sum_assignment(loss.numpy())
    out = numbers.clone()
    out[places[torch.from_numpy(rows)]] = torch.tensor([missing[k] for k in kinds])
    return out
