"""FIRE (Bitzek et al. 2006) for many crystals at once, each with its own time step, over atoms and cell together.

The state is a batch: velocities and time steps are fields of it, so that selecting and joining crystals needs no code
here. The cell moves by the exponential map, lattice @ exp(S) with symmetric S, which turns nothing, keeps every
volume positive and has the virial as its gradient wherever it stands. The cell's coordinate is S times `CELL` * sqrt(N)
ångström: its stiffness then is that of an atom in a crystal of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.images import rows_times

# Bolder than the paper and ASE (0.1, 1.1, 0.5, 0.1, 5): less than half the steps on perturbed MP-20 crystals
DT_START, GROW, SHRINK, ALPHA, PATIENCE = 0.2, 1.2, 0.7, 0.3, 3
DT_MAX, ALPHA_FALL = 1.0, 0.99  # time steps in Å sqrt(amu / eV)
CELL = 2.0  # ångström
MAX_MOVE = 0.2  # ångström, of any atom in one step
MAX_STRAIN = 0.05  # of any component of S in one step


def at_rest(batch: CrystalBatch) -> CrystalBatch:
    """The batch with the fields that FIRE keeps: velocity, strain_rate, time_step, mixing, downhill."""
    rest = batch["lattice"].new_zeros(len(batch))
    batch = batch.attach("atom", velocity=torch.zeros_like(batch["frac_coords"]))
    return batch.attach(
        "structure",
        strain_rate=torch.zeros_like(batch["lattice"]),
        time_step=rest + DT_START,
        mixing=rest + ALPHA,
        downhill=rest,
    )


def advance(batch: CrystalBatch, forces: Tensor, virial: Tensor, moving: Tensor) -> CrystalBatch:
    """One step of the crystals `moving` (B,); the others stay.

    forces (M, 3) in eV/Å; virial (B, 3, 3) in eV, symmetric, minus the derivative of the energy by strain, zero where
    the cell is held.
    """
    scale = (CELL * batch["num_atoms"].to(virial.dtype).sqrt()).reshape(-1, 1, 1)
    force, pull = forces, virial / scale
    velocity, rate = batch["velocity"], batch["strain_rate"]
    power = _dot(batch, force, velocity, pull, rate)
    downhill = power > 0
    norm = (_dot(batch, force, force, pull, pull)).sqrt().clamp(min=1e-30)
    speed = _dot(batch, velocity, velocity, rate, rate).sqrt()
    keep = torch.where(downhill, 1 - batch["mixing"], 0.0)
    turn = torch.where(downhill, batch["mixing"] * speed / norm, 0.0)
    late = downhill & (batch["downhill"] >= PATIENCE)
    dt = torch.where(late, (batch["time_step"] * GROW).clamp(max=DT_MAX), batch["time_step"])
    started = speed > 0
    dt = torch.where(~downhill & started, dt * SHRINK, dt)
    mixing = torch.where(late, batch["mixing"] * ALPHA_FALL, batch["mixing"])
    mixing = torch.where(downhill, mixing, ALPHA)
    index = batch["batch"]
    velocity = (keep[index].unsqueeze(1)) * velocity + (turn + dt)[index].unsqueeze(1) * force
    rate = keep.reshape(-1, 1, 1) * rate + (turn + dt).reshape(-1, 1, 1) * pull
    step, strain = dt[index].unsqueeze(1) * velocity, dt.reshape(-1, 1, 1) * rate / scale
    # one factor for atoms and cell, so that a clamped step keeps its direction
    largest = torch.zeros_like(dt).scatter_reduce(0, index, torch.linalg.vector_norm(step, dim=-1), "amax") / MAX_MOVE
    largest = torch.maximum(largest, strain.abs().flatten(1).amax(1) / MAX_STRAIN).clamp(min=1)
    factor = torch.where(moving, 1 / largest, 0.0)
    step, strain = step * factor[index].unsqueeze(1), strain * factor.reshape(-1, 1, 1)
    lattice = batch["lattice"]
    frac = batch["frac_coords"] + rows_times(step, torch.linalg.inv(lattice)[index])
    return batch.replace(
        frac_coords=frac,
        lattice=lattice @ torch.linalg.matrix_exp(strain),
        velocity=velocity,
        strain_rate=rate,
        time_step=dt,
        mixing=mixing,
        downhill=torch.where(downhill, batch["downhill"] + 1, 0.0),
    )


def _dot(batch: CrystalBatch, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Inner product (B,) of two directions, atoms (M, 3) and cell (B, 3, 3) each."""
    return (c * d).sum((-2, -1)).index_add(0, batch["batch"], (a * b).sum(-1))
