"""Guard rails of a relaxation: what is refused at the start, and how a fooled potential shows on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.images import reduce_cells, shortest_vector
from chem.lattice import volume
from chem.periodic import pair_distances
from evaluation.relaxation.potentials import Potential, Prediction
from evaluation.validity import unusable


@dataclass(frozen=True)
class Guards:
    """Limits that a crystal must keep, else it has failed.

    min_distance: ångström, before and after, an atom's own images included. volume_factor: by how much the volume may
    grow or shrink. energy_drop: eV/atom that relaxation may gain; a chemical bond yields a tenth of this, a hole in a
    potential more. max_atoms: larger cells are refused, for the neighbour search looks at all pairs.
    """

    min_distance: float = 0.3
    volume_factor: float = 5.0
    energy_drop: float = 50.0
    max_atoms: int = 1000

    def __post_init__(self) -> None:
        for name in ("min_distance", "energy_drop", "max_atoms"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: a positive number")
        if not self.volume_factor > 1:
            raise ValueError(f"volume_factor = {self.volume_factor}, allowed: a number above 1")


def refused(batch: CrystalBatch, potential: Potential, guards: Guards) -> list[str]:
    """Why the potential cannot be asked about each crystal, empty where it can; looks at no distances."""
    from ase.data import chemical_symbols

    reasons = unusable(batch)
    known = torch.zeros(256, dtype=torch.bool)
    known[sorted(potential.elements)] = True
    numbers = batch["atomic_numbers"].cpu()
    strange = ~known[numbers.clamp(0, 255)]
    for i, z in zip(batch["batch"].cpu()[strange].tolist(), numbers[strange].tolist(), strict=True):
        reasons[i] = reasons[i] or f"{potential.name} does not know {chemical_symbols[z]}"
    for i, atoms in enumerate(batch["num_atoms"].tolist()):
        if atoms > guards.max_atoms:
            reasons[i] = reasons[i] or f"{atoms} atoms, more than {guards.max_atoms}"
    return reasons


def cramped(batch: CrystalBatch, guards: Guards, cutoff: float | None = None) -> list[str]:
    """Which crystals have atoms too close or, with a cutoff, an atom without a neighbour; empty where neither."""
    pairs, distances = pair_distances(batch)
    nearest = shortest_vector(reduce_cells(batch["lattice"])).to(distances)[batch["batch"]]
    for end in pairs:
        nearest = nearest.scatter_reduce(0, end, distances, "amin")
    infinite = nearest.new_full((len(batch),), torch.inf)
    closest = infinite.scatter_reduce(0, batch["batch"], nearest, "amin").tolist()
    loneliest = (-infinite).scatter_reduce(0, batch["batch"], nearest, "amax").tolist()
    reasons = []
    for close, lonely in zip(closest, loneliest, strict=True):
        reason = "" if close >= guards.min_distance else f"two atoms at {close:.3f} Å, below {guards.min_distance} Å"
        if not reason and cutoff is not None and lonely > cutoff:
            reason = f"an atom without a neighbour within {cutoff} Å"
        reasons.append(reason)
    return reasons


def rails_of(guards: Guards) -> list[str]:
    """The rails that a crystal may break on its way, as reasons, in the order of `broken_rail`."""
    return [
        "the potential returned a number that is not finite",
        f"the volume changed by more than a factor of {guards.volume_factor:g}",
        f"the energy fell by more than {guards.energy_drop:g} eV/atom",
    ]


def broken_rail(batch: CrystalBatch, prediction: Prediction, guards: Guards) -> Tensor:
    """Number (B,) of the first rail that each crystal has broken, counted from 1 in `rails_of`; 0 for none.

    The batch carries `start_energy` and `start_volume` of its crystals.
    """
    infinite = (~torch.isfinite(prediction.forces).all(-1)).to(torch.int64)
    sound = torch.zeros_like(batch["num_atoms"]).index_add(0, batch["batch"], infinite) == 0
    sound &= torch.isfinite(prediction.energies) & torch.isfinite(prediction.stress).flatten(1).all(1)
    change = (volume(batch["lattice"]) / batch["start_volume"]).log().abs().exp()
    drop = (batch["start_energy"] - prediction.energies) / batch["num_atoms"]
    number = torch.where(drop <= guards.energy_drop, 0, 3)
    number = torch.where(change <= guards.volume_factor, number, 2)
    return torch.where(sound, number, 1)
