"""Ragged, immutable batches: flat atoms plus counts, as PyTorch Geometric objects.

A batch of B structures with M atoms in all holds *fields*. A field is per atom (its first dimension is M)
or per structure (B); which of the two is declared, never inferred from sizes, so that a batch of single-atom
crystals is as safe as any other. `num_atoms` (B,), `ptr` (B + 1,) and `batch` (M,) are derived once and shared
by every copy that `replace` makes, and so is whatever a network remembers about the counts (`memo`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Data

Level = Literal["atom", "structure"]
Batch = TypeVar("Batch", bound="RaggedBatch")
DERIVED = ("num_atoms", "ptr", "batch")


@dataclass(frozen=True)
class Rows:
    """Which structure each row of a field belongs to, and where the row may move.

    index: (R,) structure of each row. subspace: None, or (R, D, D) orthogonal projectors onto the directions in
    which a row is free (a Wyckoff position, a mirror plane); noise and steps are projected by them.
    """

    level: Level
    index: Tensor
    num_structures: int
    subspace: Tensor | None = None

    def spread(self, per_structure: Tensor, like: Tensor) -> Tensor:
        """(B,) values as (R, 1, ..., 1), ready to multiply the field `like` (R, ...)."""
        values = per_structure if self.level == "structure" else per_structure[self.index]
        return values.reshape(-1, *[1] * (like.dim() - 1))

    def mean(self, x: Tensor) -> Tensor:
        """Mean of the rows (R, ...) of each structure, (B, ...); zero for a structure without rows."""
        total = x.new_zeros(self.num_structures, *x.shape[1:]).index_add(0, self.index, x)
        count = x.new_zeros(self.num_structures).index_add(0, self.index, x.new_ones(len(x)))
        return total / count.clamp(min=1).reshape(-1, *[1] * (x.dim() - 1))

    def center(self, x: Tensor) -> Tensor:
        """x minus the mean of its structure."""
        return x - self.mean(x)[self.index]

    def project(self, v: Tensor) -> Tensor:
        """The part of a displacement v (R, ...) along the free directions; v itself where nothing is restricted.

        The trailing dimensions of v are flattened to D.
        """
        if self.subspace is None:
            return v
        return torch.einsum("rij,rj->ri", self.subspace.to(v.dtype), v.flatten(1)).reshape(v.shape)

    def move(self, x: Tensor, y: Tensor) -> Tensor:
        """Where a row at x may go when it wants to go to y: y itself, or x plus the free part of y - x."""
        return y if self.subspace is None else x + self.project(y - x)


class RaggedBatch(Data):
    """Immutable batch of structures; abstract: subclasses declare their fields in `LEVELS`.

    Assigning or deleting an attribute or item raises TypeError; `replace`, `attach`, `to`, slicing and
    `concatenate` return new objects. `batch["name"]` is a field, `batch[3]`, `batch[2:5]`, `batch[mask]` and
    `batch[[4, 1]]` are batches of those structures, and iteration runs over structures.
    """

    LEVELS: ClassVar[Mapping[str, Level]] = {}
    COMPANIONS: ClassVar[tuple[str, ...]] = ("given", "subspace")

    def __init__(self, num_atoms: Tensor | Sequence[int], extra: Mapping[str, Level] | None = None, **fields: Tensor):
        super().__init__()
        counts = torch.as_tensor(num_atoms, dtype=torch.long)
        if counts.dim() != 1 or bool((counts < 0).any()):
            raise ValueError(f"num_atoms must be a vector of counts >= 0, got shape {tuple(counts.shape)}")
        ptr = torch.zeros(len(counts) + 1, dtype=torch.long, device=counts.device)
        torch.cumsum(counts, 0, out=ptr[1:])
        index = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        self._fill(extra or {}, {}, dict(num_atoms=counts, ptr=ptr, batch=index), fields)

    def _fill(self, extra: Mapping[str, Level], memo: dict, derived: Mapping[str, Tensor], fields: Mapping) -> None:
        self.__dict__.update(_extra=dict(extra), _memo=memo)
        for name, value in derived.items():
            self._store[name] = value
        levels = self.levels
        for name, value in fields.items():
            if name in DERIVED:
                raise ValueError(f"field '{name}' is derived from the counts; build a new batch to change it")
            if name not in levels:
                raise ValueError(f"unknown field '{name}'; known: {', '.join(self._declared)} (attach() adds others)")
            rows = self.num_rows(name)
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != rows:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"field '{name}' is per {levels[name]} and needs {rows} rows, got {got}")
            self._store[name] = value

    @property
    def levels(self) -> dict[str, Level]:
        """Level of every field this batch may carry: those of its class and the attached ones.

        Any field may have two companions at its own level: `<field>_given` (R,) bool, the rows whose value is known
        when sampling, and `<field>_subspace` (R, D, D), see `Rows`.
        """
        levels = {**self.LEVELS, **self._extra}
        return levels | {f"{name}_{c}": level for name, level in levels.items() for c in self.COMPANIONS}

    @property
    def _declared(self) -> list[str]:
        return [*self.LEVELS, *self._extra]

    @property
    def fields(self) -> dict[str, Tensor]:
        """The fields that are present, by name, without `num_atoms`, `ptr` and `batch`."""
        return {name: value for name, value in self._store.items() if name not in DERIVED}

    @property
    def num_structures(self) -> int:
        """B."""
        return len(self._store["num_atoms"])

    @property
    def num_graphs(self) -> int:
        """B, under the name PyG uses."""
        return self.num_structures

    def num_rows(self, field: str) -> int:
        """Number of rows of a field: M or B, by its level."""
        return len(self._store["batch"]) if self.levels[field] == "atom" else self.num_structures

    @property
    def structures(self) -> Rows:
        """The rows of a per-structure field: one each."""
        return Rows("structure", self.memo("structures", self._structure_index), self.num_structures)

    def rows(self, field: str) -> Rows:
        """Rows of a field; its subspace is the attached field `<field>_subspace`, if there is one."""
        level = self.levels.get(field)
        if level is None:
            raise ValueError(f"unknown field '{field}'; known: {', '.join(self._declared)}")
        index = self._store["batch"] if level == "atom" else self.structures.index
        return Rows(level, index, self.num_structures, self._store._mapping.get(f"{field}_subspace"))

    def _structure_index(self) -> Tensor:
        return torch.arange(self.num_structures, device=self._store["num_atoms"].device)

    def memo(self, key: Any, build: Callable[[], Any]) -> Any:
        """What `build()` returned the first time `key` was asked of this batch or of a copy with equal counts.

        For things that depend on the counts alone, such as a network's pair layout.
        """
        memo = self._memo
        if key not in memo:
            memo[key] = build()
        return memo[key]

    def _copy(self, extra: Mapping[str, Level], fields: Mapping[str, Tensor]) -> Self:
        out = self.__class__.__new__(self.__class__)
        Data.__init__(out)
        out._fill(extra, self._memo, {name: self._store[name] for name in DERIVED}, fields)
        return out

    def replace(self, **fields: Tensor) -> Self:
        """A copy with some fields changed or added; raises ValueError for an unknown name or a wrong length."""
        return self._copy(self._extra, {**self.fields, **fields})

    def attach(self, level: Level, **fields: Tensor) -> Self:
        """A copy with fields that the class does not declare, such as a property, at the given level.

        Raises ValueError for the name of a field that has another level already.
        """
        for name in fields:
            if self.levels.get(name, level) != level:
                raise ValueError(f"field '{name}' is per {self.levels[name]}; it cannot be attached per {level}")
        extra = {**self._extra, **dict.fromkeys(fields, level)}
        return self._copy(extra, {**self.fields, **fields})

    def without(self, *names: str) -> Self:
        """A copy that lacks the named fields."""
        return self._copy(self._extra, {k: v for k, v in self.fields.items() if k not in names})

    def apply(self, func: Callable[[Tensor], Tensor], *args: str) -> Self:
        """A new batch with `func` applied to every tensor (or to the named ones); `to`, `cpu`, `cuda` call this."""
        changed = {k: func(v) if not args or k in args else v for k, v in self._store.items()}
        out = self.__class__.__new__(self.__class__)
        Data.__init__(out)
        fields = {k: v for k, v in changed.items() if k not in DERIVED}
        out._fill(self._extra, {}, {k: changed[k] for k in DERIVED}, fields)
        return out

    def to(self, target: Any, *args: str, non_blocking: bool = False) -> Self:
        """A copy on another device, or, for a floating dtype, with every floating-point field cast to it."""
        if isinstance(target, torch.dtype):
            return self.apply(lambda x: x.to(target) if x.is_floating_point() else x, *args)
        return self.apply(lambda x: x.to(device=target, non_blocking=non_blocking), *args)

    def apply_(self, func: Callable, *args: str) -> Self:
        """Refused: a batch is immutable."""
        raise TypeError(f"{type(self).__name__} is immutable; use apply(), which returns a new batch")

    def select(self, index: Tensor) -> Self:
        """The structures at `index` (K,), in that order, as a new batch; vectorised."""
        counts, ptr = self._store["num_atoms"][index], self._store["ptr"]
        start = torch.cumsum(counts, 0) - counts
        atoms = torch.arange(int(counts.sum()), device=counts.device)
        atoms = atoms + torch.repeat_interleave(ptr[index] - start, counts)
        levels = self.levels
        fields = {k: v[atoms] if levels[k] == "atom" else v[index] for k, v in self.fields.items()}
        out = self.__class__.__new__(self.__class__)
        RaggedBatch.__init__(out, counts, self._extra, **fields)
        return out

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._store[key]
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"structure {key} of a batch of {len(self)}")
            key = [key % len(self)]
        everything = torch.arange(self.num_structures, device=self._store["num_atoms"].device)
        if isinstance(key, (list, tuple)):
            key = torch.as_tensor(key) if key else slice(0, 0)
        return self.select(everything[key].reshape(-1))

    def __len__(self) -> int:
        return self.num_structures

    def __iter__(self) -> Iterator[Self]:  # type: ignore[override]
        return (self[i] for i in range(len(self)))

    def _refuse(self, *_: Any) -> None:
        raise TypeError(f"{type(self).__name__} is immutable; replace(**fields) returns a changed copy")

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = _refuse


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of all structures, in order; every part must carry the same fields.

    Raises ValueError naming the first part whose fields differ.
    """
    if not batches:
        raise ValueError("concatenate needs at least one batch")
    first = batches[0]
    for i, other in enumerate(batches):
        if type(other) is not type(first) or other.fields.keys() != first.fields.keys():
            raise ValueError(f"batch {i} has fields {sorted(other.fields)}, batch 0 has {sorted(first.fields)}")
        if differ := [name for name in first.fields if other.levels[name] != first.levels[name]]:
            raise ValueError(f"field '{differ[0]}' is per {other.levels[differ[0]]} in batch {i} and not in batch 0")
    out = first.__class__.__new__(first.__class__)
    fields = {name: torch.cat([b[name] for b in batches]) for name in first.fields}
    counts = torch.cat([b["num_atoms"] for b in batches])
    RaggedBatch.__init__(out, counts, first._extra, **fields)
    return out
