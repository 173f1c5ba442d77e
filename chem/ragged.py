"""Ragged, immutable batches: flat atoms plus counts, as PyTorch Geometric objects.

A batch of B structures with M atoms in all holds *fields*. A field is per atom (its first dimension is M),
per structure (B) or, in a batch that was given `num_bonds`, per bond (E); which of them is declared, never inferred
from sizes, so that a batch of single-atom crystals is as safe as any other. `num_atoms` (B,), `ptr` (B + 1,) and
`batch` (M,), and for bonds `num_bonds`, `bond_ptr` and `bond_batch` (E,), are derived once and shared by every copy
that `replace` makes, and so is whatever a network remembers about the counts (`memo`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Data

Level = Literal["atom", "structure", "bond"]
Batch = TypeVar("Batch", bound="RaggedBatch")
ATOM_LAYOUT, BOND_LAYOUT = ("num_atoms", "ptr", "batch"), ("num_bonds", "bond_ptr", "bond_batch")  # counts, ptr, index
DERIVED = (*ATOM_LAYOUT, *BOND_LAYOUT)
INDEX = {"atom": "batch", "bond": "bond_batch"}


@dataclass(frozen=True)
class Rows:
    """Which structure each row of a field belongs to, and where the row may move.

    index: (R,) structure of each row. subspace: None, or (R, D, D) orthogonal projectors onto the directions in
    which a row is free (a Wyckoff position, a mirror plane); noise and steps are projected by them. given: None, or
    (R,) bool, the rows that are known when sampling. label: None, or (R,) integers, equal for rows of a structure
    that may be exchanged (atoms of one element).
    """

    level: Level
    index: Tensor
    num_structures: int
    subspace: Tensor | None = None
    given: Tensor | None = None
    label: Tensor | None = None

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

    def anchor(self, v: Tensor) -> Tensor:
        """Displacements (R, ...) as seen from the given rows of the structure: less their mean over these.

        In a structure without given rows, less the mean over all rows: nothing but a common translation is lost.
        """
        if self.given is None:
            return self.center(v)
        weight = self.given.to(v.dtype)
        anchored = weight.new_zeros(self.num_structures).index_add(0, self.index, weight) > 0
        weight = torch.where(anchored[self.index], weight, 1.0)
        frame = self.mean(v * weight.reshape(-1, *[1] * (v.dim() - 1)))
        share = self.mean(weight).clamp(min=torch.finfo(v.dtype).tiny)
        return v - (frame / share.reshape(-1, *[1] * (v.dim() - 1)))[self.index]

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
    COMPANIONS: ClassVar[tuple[str, ...]] = ("given", "subspace", "label")

    def __init__(
        self,
        num_atoms: Tensor | Sequence[int],
        extra: Mapping[str, Level] | None = None,
        num_bonds: Tensor | Sequence[int] | None = None,
        **fields: Tensor,
    ):
        super().__init__()
        derived = _layout(num_atoms, ATOM_LAYOUT)
        if num_bonds is not None:
            derived |= _layout(num_bonds, BOND_LAYOUT)
            if len(derived["num_bonds"]) != len(derived["num_atoms"]):
                got, needed = len(derived["num_bonds"]), len(derived["num_atoms"])
                raise ValueError(f"num_bonds must have one count for each of {needed} structures, got {got}")
        self._fill(extra or {}, {}, derived, fields)

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

        Any field may have companions at its own level, see `Rows`: `<field>_given` (R,) bool, the rows whose value is
        known when sampling, `<field>_subspace` (R, D, D) and `<field>_label` (R,).
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
        """Number of rows of a field: M, B or E, by its level; ValueError for bonds in a batch without `num_bonds`."""
        level = self.levels[field]
        return self.num_structures if level == "structure" else len(self._index(field, level))

    def _index(self, field: str, level: Level) -> Tensor:
        """The structure of every row at a level."""
        if level == "structure":
            return self.structures.index
        if INDEX[level] not in self._store:
            raise ValueError(f"field '{field}' is per {level}, and this batch was made without num_{level}s")
        return self._store[INDEX[level]]

    @property
    def structures(self) -> Rows:
        """The rows of a per-structure field: one each."""
        return Rows("structure", self.memo("structures", self._structure_index), self.num_structures)

    def rows(self, field: str) -> Rows:
        """Rows of a field, with those of its companions that are present."""
        level = self.levels.get(field)
        if level is None:
            raise ValueError(f"unknown field '{field}'; known: {', '.join(self._declared)}")
        index = self._index(field, level)
        companion = {c: self._store._mapping.get(f"{field}_{c}") for c in ("subspace", "given", "label")}
        return Rows(level, index, self.num_structures, **companion)

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
        out._fill(extra, self._memo, {name: self._store[name] for name in DERIVED if name in self._store}, fields)
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
        out._fill(self._extra, {}, {k: changed[k] for k in DERIVED if k in changed}, fields)
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
        counts, atoms = self._rows_of(index, ATOM_LAYOUT)
        rows, num_bonds = {"atom": atoms, "structure": index}, None
        if "num_bonds" in self._store:
            num_bonds, rows["bond"] = self._rows_of(index, BOND_LAYOUT)
        levels = self.levels
        fields = {k: v[rows[levels[k]]] for k, v in self.fields.items()}
        out = self.__class__.__new__(self.__class__)
        RaggedBatch.__init__(out, counts, self._extra, num_bonds, **fields)
        return out

    def _rows_of(self, index: Tensor, layout: tuple[str, str, str]) -> tuple[Tensor, Tensor]:
        """Counts and row numbers, at the level of a layout, of the structures at `index`."""
        counts, ptr = self._store[layout[0]][index], self._store[layout[1]]
        start = torch.cumsum(counts, 0) - counts
        rows = torch.arange(int(counts.sum()), device=counts.device)
        return counts, rows + torch.repeat_interleave(ptr[index] - start, counts)

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


def _layout(given: Tensor | Sequence[int], names: tuple[str, str, str]) -> dict[str, Tensor]:
    """Counts (B,), their running sum (B + 1,) and the structure of every row, by name."""
    counts = torch.as_tensor(given, dtype=torch.long)
    if counts.dim() != 1 or bool((counts < 0).any()):
        raise ValueError(f"{names[0]} must be a vector of counts >= 0, got shape {tuple(counts.shape)}")
    ptr = torch.zeros(len(counts) + 1, dtype=torch.long, device=counts.device)
    torch.cumsum(counts, 0, out=ptr[1:])
    index = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return dict(zip(names, (counts, ptr, index), strict=True))


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
        if ("num_bonds" in other) != ("num_bonds" in first):
            raise ValueError(f"batch {i} and batch 0: only one of them has num_bonds")
    out = first.__class__.__new__(first.__class__)
    fields = {name: torch.cat([b[name] for b in batches]) for name in first.fields}
    counts = torch.cat([b["num_atoms"] for b in batches])
    num_bonds = torch.cat([b["num_bonds"] for b in batches]) if "num_bonds" in first else None
    RaggedBatch.__init__(out, counts, first._extra, num_bonds, **fields)
    return out
