"""Relaxation of many crystals at once, atoms and cell, under any potential.

A number of crystals, bounded by the edges of their graphs, is on the way at a time; those that arrive make room for the
next. A crystal has arrived when its largest force is below fmax, where the cell counts as the rows of its virial
divided by the number of atoms: the criterion of ASE's cell filters. A crystal whose steps are spent keeps its last
energy; it is not `converged`, and the reason says so. One that breaks a guard rail has *failed*: it has no energy, and
whoever counts stable crystals counts it as unstable.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.lattice import volume
from chem.periodic import wrap
from chem.ragged import concatenate
from evaluation.relaxation.fire import advance, at_rest
from evaluation.relaxation.guards import Guards, broken_rail, cramped, rails_of, refused
from evaluation.relaxation.potentials import Potential, Prediction, label
from evaluation.relaxation.symmetry_constraint import Averages, Operations, averages, constrain, symmetrise

IDLE = 1 / 8  # share of the crystals on the way that may have arrived before the others close ranks
ON_THE_WAY, CONVERGED, SPENT, REFUSED = 0, 1, 2, 3  # verdicts; 3 + k: broke the k-th rail of relaxation.guards


@dataclass(frozen=True)
class RelaxationSettings:
    """How crystals are relaxed.

    fmax: eV/Å. steps: of each crystal. cell: whether the cell relaxes too. symprec: None, or the distance in ångström
    within which space groups are found, and then kept. max_edges: bounds the memory, as directed edges within the
    potential's cutoff; 16,000 suit the cache of a CPU, a GPU takes about 100,000 per GiB.
    """

    fmax: float = 0.1
    steps: int = 500
    cell: bool = True
    symprec: float | None = None
    max_edges: int = 16_000
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        for name in ("fmax", "max_edges", "symprec"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value}, allowed: a positive number")
        if self.steps < 0:
            raise ValueError(f"steps = {self.steps}, allowed: 0 or more")


@dataclass(frozen=True)
class Relaxation:
    """What became of B crystals, in their order.

    batch: float64, coordinates wrapped; failed crystals as they were when they failed. energies, initial_energies (B,):
    totals in eV, NaN where a crystal failed or was refused. steps (B,) int64. converged, failed (B,) bool. reasons (B):
    one line, empty where converged. potential: its label.
    """

    batch: CrystalBatch
    energies: Tensor
    initial_energies: Tensor
    steps: Tensor
    converged: Tensor
    failed: Tensor
    reasons: list[str]
    potential: str


def relax(batch: CrystalBatch, potential: Potential, settings: RelaxationSettings | None = None) -> Relaxation:
    """Relax every crystal of a batch, on its device; none stops the others, whatever is wrong with it."""
    run = _Run(batch, potential, settings or RelaxationSettings())
    while run.proceed():
        run.step()
    return run.result()


class _Run:
    """Crystals that wait, those on the way (`state`, a batch that carries all there is to know), and those booked."""

    def __init__(self, batch: CrystalBatch, potential: Potential, settings: RelaxationSettings):
        self.potential, self.settings = potential, settings
        fields = {name: batch[name] for name in ("atomic_numbers", "frac_coords", "lattice")}
        self.batch = CrystalBatch(batch["num_atoms"], **fields).to(torch.float64)
        self.reasons = refused(self.batch, potential, settings.guards)
        self.cost = _edges(self.batch, potential.cutoff)
        atom, structure = (torch.arange(n, device=self.cost.device) for n in (len(batch["batch"]), len(batch)))
        self.crystals = self.batch.attach("atom", row=atom).attach("structure", origin=structure)
        largest_first = torch.argsort(self.cost, descending=True, stable=True).tolist()
        self.waiting = deque(i for i in largest_first if not self.reasons[i])
        self.operations: dict[int, Operations] = {}
        self.group: Averages | None = None
        self.frac, self.lattice = self.batch["frac_coords"].clone(), self.batch["lattice"].clone()
        self.energies = self.lattice.new_full((len(batch),), torch.nan)
        self.initial, self.steps = self.energies.clone(), torch.zeros_like(batch["num_atoms"])
        self.verdict = torch.full_like(batch["num_atoms"], REFUSED)
        self.state = _starting(self.crystals[[]])

    def proceed(self) -> bool:
        """Book those that have arrived and let others follow; whether anybody is on the way."""
        moving = self.state["verdict"] == ON_THE_WAY
        if int(moving.sum()) > (1 - IDLE) * len(self.state):
            return True
        self._book(self.state[~moving])
        self.state = self.state[moving]
        while self.waiting and (newcomers := self._admitted()) is not None:
            self.state = concatenate([self.state, newcomers])
        if self.settings.symprec is not None and len(self.state):
            self.group = averages(self.state, [self.operations[i] for i in self.state["origin"].tolist()])
        return len(self.state) > 0

    def step(self) -> None:
        """One prediction for all, a verdict on each, and one step for those still on the way."""
        state, settings = self.state, self.settings
        prediction = self.potential(state)
        if self.group is not None:
            prediction = constrain(state, prediction, self.group)
        virial = -prediction.stress * volume(state["lattice"]).reshape(-1, 1, 1)
        virial = (virial + virial.mT) / 2 * settings.cell
        first = state["taken"] == 0
        state = state.replace(start_energy=torch.where(first, prediction.energies, state["start_energy"]))
        before = state["verdict"] == ON_THE_WAY
        verdict = torch.where(before, self._verdict(state, prediction, virial), state["verdict"])
        energy = torch.where(before, prediction.energies, state["energy"])
        moving = verdict == ON_THE_WAY
        state = state.replace(verdict=verdict, energy=energy, taken=state["taken"] + moving)
        # zero where nothing moves: a prediction that is not finite must not reach the coordinates
        forces = torch.where(moving[state["batch"]].unsqueeze(1), prediction.forces, 0.0)
        self.state = advance(state, forces, torch.where(moving.reshape(-1, 1, 1), virial, 0.0), moving)

    def result(self) -> Relaxation:
        """Everything booked, in the order given."""
        failed = self.verdict >= REFUSED
        return Relaxation(
            batch=self.batch.replace(frac_coords=wrap(self.frac), lattice=self.lattice),
            energies=torch.where(failed, torch.nan, self.energies),
            initial_energies=self.initial,
            steps=self.steps,
            converged=self.verdict == CONVERGED,
            failed=failed,
            reasons=self.reasons,
            potential=label(self.potential),
        )

    def _verdict(self, state: CrystalBatch, prediction: Prediction, virial: Tensor) -> Tensor:
        """Verdict (B,) on every crystal; a broken rail outweighs small forces."""
        verdict = torch.where(state["taken"] >= self.settings.steps, SPENT, ON_THE_WAY)
        largest = torch.linalg.vector_norm(virial, dim=-1).amax(-1) / state["num_atoms"]
        forces = torch.linalg.vector_norm(prediction.forces, dim=-1)
        largest = largest.scatter_reduce(0, state["batch"], forces, "amax")
        verdict = torch.where(largest < self.settings.fmax, CONVERGED, verdict)
        rail = broken_rail(state, prediction, self.settings.guards)
        return torch.where(rail > 0, REFUSED + rail, verdict)

    def _admitted(self) -> CrystalBatch | None:
        """The crystals first in the queue that fit beside those on the way; None where not even one does."""
        room = self.settings.max_edges - int(self.cost[self.state["origin"]].sum())
        chosen: list[int] = []
        while self.waiting and (int(self.cost[self.waiting[0]]) <= room or not (len(self.state) or chosen)):
            chosen.append(self.waiting.popleft())
            room -= int(self.cost[chosen[-1]])
        if not chosen:
            return None
        reasons = cramped(self.batch[chosen], self.settings.guards, self.potential.cutoff)
        for i, reason in zip(chosen, reasons, strict=True):
            self.reasons[i] = reason
        sound = [i for i, reason in zip(chosen, reasons, strict=True) if not reason]
        batch = self.crystals[sound]
        if self.settings.symprec is not None and sound:
            parts = [symmetrise(one, self.settings.symprec) for one in batch]
            self.operations |= {i: operations for i, (_, operations) in zip(sound, parts, strict=True)}
            batch = concatenate([one for one, _ in parts])
        return _starting(batch)

    def _book(self, arrived: CrystalBatch) -> None:
        """Write the crystals that have arrived to their places in the result."""
        settings, origin, verdicts = self.settings, arrived["origin"], arrived["verdict"].tolist()
        rails = rails_of(settings.guards)
        close = cramped(arrived, settings.guards)
        for k, i in enumerate(origin.tolist()):
            if verdicts[k] > REFUSED:
                self.reasons[i] = rails[verdicts[k] - REFUSED - 1]
            elif close[k]:
                verdicts[k], self.reasons[i] = REFUSED, f"{close[k]}, when relaxed"
            elif verdicts[k] == SPENT:
                self.reasons[i] = f"forces above {settings.fmax:g} eV/Å after {settings.steps} steps"
        self.verdict[origin] = torch.tensor(verdicts, dtype=torch.long, device=origin.device)
        self.steps[origin] = arrived["taken"]
        self.energies[origin], self.initial[origin] = arrived["energy"], arrived["start_energy"]
        self.frac[arrived["row"]], self.lattice[origin] = arrived["frac_coords"], arrived["lattice"]


def _starting(batch: CrystalBatch) -> CrystalBatch:
    """The batch with everything that a crystal carries on its way."""
    unknown = batch["lattice"].new_full((len(batch),), torch.nan)
    return at_rest(batch).attach(
        "structure",
        taken=torch.zeros_like(batch["num_atoms"]),
        verdict=torch.full_like(batch["num_atoms"], ON_THE_WAY),
        energy=unknown,
        start_energy=unknown,
        start_volume=volume(batch["lattice"]),
    )


def _edges(batch: CrystalBatch, cutoff: float | None) -> Tensor:
    """Expected number (B,) of directed edges of each crystal; all pairs where nothing bounds them."""
    atoms = batch["num_atoms"].double()
    reached = atoms / volume(batch["lattice"]) * 4 / 3 * math.pi * cutoff**3 if cutoff is not None else atoms
    return (atoms * reached).nan_to_num(0.0, 0.0).clamp(1, 1e15).long()
