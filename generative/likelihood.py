"""The flow of a Denoiser as an ordinary differential equation: exact likelihoods, and sampling of adaptive step size.

    dx/dt = v(x, t),   log p_1(x_1) = log p_0(x_0) - integral of div v dt over [0, 1]     (Chen et al. 2018)

Every noisy field must have a `Flow`; `Fixed` fields are conditions. Densities are those of the flow itself: the gains
of the processes, which change what is sampled, play no part in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from chem.ragged import RaggedBatch, Rows
from generative.generator import Denoiser
from generative.noise import Random, uniform
from generative.processes.bases import per_structure
from generative.processes.flow import Flow

MAX_STEPS = 1000  # of dopri5; smooth fields take some dozens

State = tuple[Tensor, ...]
RightHandSide = Callable[[Tensor, State], State]


class VelocityField:
    """Velocities of the flow fields of a denoiser around one batch, in its own (encoded) fields.

    Raises ValueError for a noisy field that is no flow.
    """

    def __init__(self, denoiser: Denoiser, batch: RaggedBatch):
        self.flows: dict[str, Flow] = {}
        for name, process in denoiser.noisy.items():
            if not isinstance(process, Flow):
                raise ValueError(f"field '{name}' has a {type(process).__name__}; only flows follow an ODE")
            self.flows[name] = process
        self.network, self.batch = denoiser.network, batch
        self.network.prepare(batch)

    def __call__(self, t: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Velocities of the fields x at one time t; points of a torus may be unwrapped."""
        state = self.at(x)
        prediction = self.network(state, t.to(self.batch["num_atoms"].device).expand(len(state)))
        return {f: p.velocity(prediction[f], state.rows(f)) for f, p in self.flows.items()}

    def at(self, x: Mapping[str, Tensor]) -> RaggedBatch:
        """The batch with the fields x, points of a torus wrapped."""
        return self.batch.replace(**{f: p.exp(x[f], torch.zeros_like(x[f])) for f, p in self.flows.items()})


def log_prob(
    denoiser: Denoiser,
    batch: RaggedBatch,
    method: Literal["dopri5", "heun"] = "dopri5",
    exact: bool = True,
    probes: int = 1,
    steps: int = 100,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: Random = None,
) -> Tensor:
    """log p (B,) of each structure in nats, given its fixed fields and its number of atoms.

    The density is that of the model's fields, of labelled atoms, against this measure: ångström for lengths and for
    entries of matrices, logits for angles, plain units for log-strain vectors and analog bits; for fractional
    coordinates the uniform measure of total volume 1, on the torus (R, D) or, where velocities are mean-free, on the
    torus modulo a common translation of the structure, which has (R - 1) D dimensions (a lone atom contributes 0). That
    needs a network to which translations make no difference; the divergence on the torus is then that of the quotient.
    -inf where the flow, run back, leaves the support of the base: a length that is not positive.

    method: dopri5 of adaptive steps with rtol and atol, which hold for every entry, or heun with `steps` steps. A
    trained field is stiff near the data: 25 steps are a nat or more off, for crystals on special positions many.
    exact: the whole trace of the Jacobian, one backward pass for every coordinate of the largest structure, or
    Hutchinson's unbiased estimate from `probes` random sign vectors, the same at all times, drawn with `generator`.
    Raises RuntimeError where dopri5 fails (a network whose time embedding jumps is one cause), and ValueError for given
    rows, subspaces, fields that are no flows, and settings out of range.
    """
    if method not in ("dopri5", "heun"):
        raise ValueError(f"method = '{method}', allowed: dopri5, heun")
    for name, value in (("probes", probes), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} = {value}, allowed: >= 1")
    batch = denoiser.encode(batch.to(denoiser.dtype))
    field = VelocityField(denoiser, batch)
    names = list(field.flows)
    if restricted := [k for k in batch.fields if k in {f"{f}_{c}" for f in names for c in ("given", "subspace")}]:
        raise ValueError(f"log_prob knows no density of restricted rows: remove field '{restricted[0]}'")
    rows = {f: batch.rows(f) for f in names}
    signs = [] if exact else [_signs(batch, names, generator) for _ in range(probes)]

    @torch.enable_grad()
    def slope(t: Tensor, state: State) -> State:
        x = {f: value.detach().requires_grad_() for f, value in zip(names, state[:-1], strict=True)}
        v = field(t, x)
        if exact:
            divergence = torch.stack([trace(v[f], x[f], rows[f]) for f in names]).sum(0)
        else:
            divergence = torch.stack([_estimate(v, x, rows, sign) for sign in signs]).mean(0)
        return (*(v[f].detach() for f in names), divergence)

    end = tuple(batch[f] for f in names)
    start = (*end, end[0].new_zeros(len(batch)))
    *x, change = _integrate(slope, start, 1.0, 0.0, method, steps, rtol, atol)
    base = [field.flows[f].log_base(value, rows[f]) for f, value in zip(names, x, strict=True)]
    return torch.stack(base).sum(0) + change


@torch.no_grad()
def sample_adaptive(
    denoiser: Denoiser, template: RaggedBatch, generator: Random = None, rtol: float = 1e-4, atol: float = 1e-4
) -> RaggedBatch:
    """Samples for a template by dopri5 from t = 0 to 1, decoded; the gains of the processes apply.

    The tolerances hold for every entry. The steps are common to all structures of the batch. Raises ValueError for
    fields that are no flows.
    """
    state, clean = denoiser._start(template, generator, None)
    field = VelocityField(denoiser, state)
    names = list(field.flows)

    def slope(t: Tensor, x: State) -> State:
        v = field(t, dict(zip(names, x, strict=True)))
        return tuple(field.flows[f].gain(t) * _freeze(v[f], f, state, clean) for f in names)

    start = tuple(state[f] for f in names)
    x = dict(zip(names, _integrate(slope, start, 0.0, 1.0, "dopri5", 1, rtol, atol), strict=True))
    end = field.at(x)
    return denoiser.decode(end.replace(**{f: denoiser._clamp(f, end[f], end, clean) for f in names}))


def trace(v: Tensor, x: Tensor, rows: Rows) -> Tensor:
    """Sum (B,) over the rows and entries of each structure of d v / d x, for v (R, ...) computed from x (R, ...).

    Structures do not see each other, so one backward pass takes one coordinate of all of them.
    """
    out = v.new_zeros(rows.num_structures)
    if not v.requires_grad or not len(v):
        return out
    counts = torch.bincount(rows.index, minlength=rows.num_structures)
    place = torch.arange(len(v), device=v.device) - (torch.cumsum(counts, 0) - counts)[rows.index]
    flat = v.flatten(1)
    for k in range(int(counts.max())):
        chosen = (place == k).to(v.dtype)
        for c in range(flat.shape[1]):
            (slope,) = torch.autograd.grad(flat[:, c] @ chosen, x, retain_graph=True, allow_unused=True)
            if slope is not None:
                out = out.index_add(0, rows.index, slope.flatten(1)[:, c] * chosen)
    return out


def _estimate(
    v: Mapping[str, Tensor], x: Mapping[str, Tensor], rows: Mapping[str, Rows], sign: Mapping[str, Tensor]
) -> Tensor:
    """Hutchinson's estimate (B,) of the trace over all fields from one vector of signs."""
    total = torch.stack([(v[f] * sign[f]).sum() for f in v]).sum()
    if not total.requires_grad:
        return total.new_zeros(next(iter(rows.values())).num_structures)
    slopes = torch.autograd.grad(total, list(x.values()), retain_graph=True, allow_unused=True)
    parts = [per_structure(g * sign[f], rows[f]) for f, g in zip(x, slopes, strict=True) if g is not None]
    return torch.stack(parts).sum(0)


def _signs(batch: RaggedBatch, names: list[str], generator: Random) -> dict[str, Tensor]:
    """-1 and +1 at random, shaped like the named fields."""
    drawn = {f: uniform(batch.rows(f), batch[f].shape[1:], batch[f].dtype, generator) for f in names}
    return {f: torch.where(u < 0.5, -1.0, 1.0).to(u.dtype) for f, u in drawn.items()}


def _freeze(v: Tensor, field: str, state: RaggedBatch, clean: Mapping[str, Tensor]) -> Tensor:
    """No velocity where rows are given."""
    if field not in clean:
        return v
    return torch.where(state[f"{field}_given"].reshape(-1, *[1] * (v.dim() - 1)), 0.0, v)


def _integrate(
    slope: RightHandSide, x: State, t: float, end: float, method: str, steps: int, rtol: float, atol: float
) -> State:
    """The state at time `end` of the solution that is x at time t."""
    if method == "dopri5":
        from torchdiffeq import odeint

        times = torch.tensor([t, end], dtype=x[0].dtype, device=x[0].device)
        worst = lambda error: torch.stack([e.abs().max() for e in error if e.numel()]).max()  # noqa: E731
        options = {"norm": worst, "max_num_steps": MAX_STEPS}
        try:
            path = odeint(slope, x, times, rtol=rtol, atol=atol, method="dopri5", options=options)
        except AssertionError as error:
            advice = "loosen rtol and atol, or take fixed steps (method = 'heun', or the sampler's own)"
            raise RuntimeError(f"dopri5 did not reach t = {end:g}: {error}; {advice}") from error
        return tuple(values[-1] for values in path)
    grid = torch.linspace(t, end, steps + 1, dtype=x[0].dtype, device=x[0].device)
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        h = then - now
        first = slope(now, x)
        second = slope(then, tuple(a + h * b for a, b in zip(x, first, strict=True)))
        x = tuple(a + h / 2 * (b + c) for a, b, c in zip(x, first, second, strict=True))
    return x
