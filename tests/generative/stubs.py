"""Stub processes and networks: the contract tried on flows, Bayesian flows and discrete diffusion.

Small, exact, and written like generative/processes, so that the real ones can start from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from chem.periodic import torus_log, wrap
from chem.ragged import RaggedBatch, Rows
from generative.generator import Network
from generative.noise import Random, normal, uniform
from generative.process import Fixed, Process
from generative.processes.wrapped import torus_prior


class LinearFlow(Process):
    """Flow matching on Euclidean space, straight paths, velocity prediction: x_t = (1 - t) x_0 + t x, target x - x_0.

    mean_free: velocities, predicted ones too, lose their mean over each structure.
    """

    def __init__(self, shape: Sequence[int], mean_free: bool = False):
        super().__init__(shape)
        self.mean_free = mean_free

    def _free(self, v: Tensor, rows: Rows) -> Tensor:
        return rows.project(rows.center(v) if self.mean_free else v)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return rows.move(like, normal(rows, self.shape, like.dtype, generator))

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        start = self.prior(x, rows, generator)
        return torch.lerp(start, x, rows.spread(t, x).expand_as(x)), self._free(x - start, rows)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return self._free((x - x_t) / rows.spread(1 - t, x), rows)

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return x_t + rows.spread(s - t, x_t) * self._free(prediction, rows)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return (self._free(prediction, rows) - target).square().flatten(1).mean(1)


class TorusFlow(Process):
    """Flow matching on [0, 1)^D along geodesics: x_t = exp(x_0, t log(x_0, x)), target log(x_0, x).

    mean_free: translations of a structure are a symmetry, so velocities lose their mean (FlowMM); points do not.
    """

    def __init__(self, shape: Sequence[int] = (3,), mean_free: bool = True):
        super().__init__(shape)
        self.mean_free = mean_free

    def _free(self, v: Tensor, rows: Rows) -> Tensor:
        return rows.project(rows.center(v) if self.mean_free else v)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return torus_prior(like, rows, self.shape, generator)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        start = self.prior(x, rows, generator)
        path = rows.project(torus_log(start, x))
        return wrap(x - rows.spread(1 - t, x) * path), self._free(path, rows)

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return self._free(torus_log(x_t, x) / rows.spread(1 - t, x), rows)

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return wrap(x_t + rows.spread(s - t, x_t) * self._free(prediction, rows))

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return (self._free(prediction, rows) - target).square().flatten(1).mean(1)


class BayesianFlow(Process):
    """Bayesian flow of continuous data, prediction of the clean sample. The state is the mean of a belief.

        mu_s = (rho_t mu_t + (rho_s - rho_t) y) / rho_s,   y ~ N(x_hat, 1 / (rho_s - rho_t)),   rho_t = sigma_1^(-2 t)

    Composed from mu = 0 it gives the training marginal N(gamma x, gamma (1 - gamma)), gamma = 1 - 1 / rho_t.
    """

    clamps = False
    reads_prediction = True

    def __init__(self, shape: Sequence[int], sigma_1: float = 0.02):
        super().__init__(shape)
        self.sigma_1 = sigma_1

    def _precision(self, t: Tensor) -> Tensor:
        return self.sigma_1 ** (-2 * t)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return rows.move(like, torch.zeros_like(like))

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        gamma = rows.spread(1 - 1 / self._precision(t), x)
        eps = normal(rows, self.shape, x.dtype, generator)
        return rows.move(x, gamma * x + (gamma * (1 - gamma)).sqrt() * eps), x

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return x

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        rho_t, rho_s = rows.spread(self._precision(t), x_t), rows.spread(self._precision(s), x_t)
        message = prediction + normal(rows, self.shape, x_t.dtype, generator) / (rho_s - rho_t).sqrt()
        return rows.move(x_t, (rho_t * x_t + (rho_s - rho_t) * message) / rho_s)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return rows.project(prediction - target).square().flatten(1).mean(1)

    def readout(self, x: Tensor, prediction: Tensor | None, rows: Rows) -> Tensor:
        assert prediction is not None
        return rows.move(x, prediction)


def one_hot(x: Tensor, classes: int) -> Tensor:
    """(R, K) booleans; torch's own one_hot reads the range of x on the host, which stalls a sampling loop."""
    return x.unsqueeze(1) == torch.arange(classes, device=x.device)


class Discrete(Process):
    """D3PM with rank-one transitions, prediction of class probabilities (R, K). The state is the class (R,), int64.

        x_k ~ Cat(A_k e_x + (1 - A_k) m),   from k to j < k:  a = A_k / A_j,
        p(v) ~ (a [v = x_k] + (1 - a) m_{x_k}) (A_j r_v + (1 - A_j) m_v sum_u r_u),   r_u = p_hat(u) / Q_k[u, x_k]

    marginal: m, (K,). A is WyckoffDiff's cosine (not squared), k = T (1 - t), A_0 = 1.
    """

    kept: Tensor
    marginal: Tensor

    def __init__(self, marginal: Tensor, steps: int = 1000):
        super().__init__(())
        self.steps = steps
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        ideal = torch.cos((u + 0.008) / 1.008 * torch.pi / 2)
        beta = (1 - ideal[1:] / ideal[:-1]).clamp(max=0.999)
        self.register_buffer("kept", torch.cat([u[:1] + 1, (1 - beta).cumprod(0)]), persistent=False)
        self.register_buffer("marginal", marginal.to(torch.float64), persistent=False)

    def _kept(self, t: Tensor, rows: Rows) -> Tensor:
        kept = self.kept[((1 - t) * self.steps).round().long()]
        return kept if rows.level == "structure" else kept[rows.index]

    def _pick(self, weights: Tensor, rows: Rows, generator: Random) -> Tensor:
        cumulative = weights.cumsum(1)
        height = uniform(rows, (), weights.dtype, generator) * cumulative[:, -1]
        return (height.unsqueeze(1) >= cumulative[:, :-1]).sum(1)

    def prior(self, like: Tensor, rows: Rows, generator: Random) -> Tensor:
        return self._pick(self.marginal.expand(len(rows.index), -1), rows, generator)

    def corrupt(self, x: Tensor, t: Tensor, rows: Rows, generator: Random) -> tuple[Tensor, Tensor]:
        kept = self._kept(t, rows).unsqueeze(1)
        return self._pick(kept * one_hot(x, len(self.marginal)) + (1 - kept) * self.marginal, rows, generator), x

    def oracle(self, x: Tensor, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return one_hot(x, len(self.marginal)).to(t.dtype)

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows, generator: Random) -> Tensor:
        return self._pick(self.posterior(x_t, prediction, t, s, rows), rows, generator)

    def posterior(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, rows: Rows) -> Tensor:
        """Weights of the classes at s, (R, K), not normalised."""
        kept_t, kept_s = self._kept(t, rows).unsqueeze(1), self._kept(s, rows).unsqueeze(1)
        here, chance = one_hot(x_t, len(self.marginal)), self.marginal[x_t].unsqueeze(1)
        jump = kept_t / kept_s
        reach = kept_t * here + (1 - kept_t) * chance
        # a class from which x_t cannot be reached is impossible, whatever the network says
        r = torch.where(reach > 0, prediction / reach, 0.0)
        return (jump * here + (1 - jump) * chance) * (kept_s * r + (1 - kept_s) * self.marginal * r.sum(1, True))

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, rows: Rows) -> Tensor:
        chosen = prediction.gather(1, target.unsqueeze(1)).squeeze(1)
        return -chosen.clamp(min=1e-12).log()


class OracleNetwork(Network):
    """Knows the clean (encoded) batch; counts its calls."""

    def __init__(self, processes: Mapping[str, Process], clean: RaggedBatch):
        super().__init__()
        self.known = {f: p for f, p in processes.items() if not isinstance(p, Fixed)}
        self.clean, self.calls, self.prepared = clean, 0, 0

    def prepare(self, batch: RaggedBatch) -> None:
        self.prepared += 1

    def forward(self, batch: RaggedBatch, t: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        clean = self.clean.to(t.dtype)
        return {f: p.oracle(clean[f], batch[f], t, batch.rows(f)) for f, p in self.known.items()}


class LinearNetwork(Network):
    """A linear function of each row of each field by itself; class probabilities for the fields of `classes`."""

    def __init__(self, sizes: Mapping[str, int], classes: Mapping[str, int] | None = None, seed: int = 0):
        super().__init__()
        self.classes, self.calls = dict(classes or {}), 0
        widths = {**sizes, **self.classes}
        generator = torch.Generator().manual_seed(seed)
        start = {f: 0.3 * torch.randn(n, n, generator=generator) for f, n in widths.items()}
        self.weight = nn.ParameterDict({f: nn.Parameter(w) for f, w in start.items()})

    def forward(self, batch: RaggedBatch, t: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {f: self._row(f, batch[f], w) for f, w in self.weight.items()}

    def _row(self, field: str, x: Tensor, weight: Tensor) -> Tensor:
        if field in self.classes:
            return torch.softmax(one_hot(x, len(weight)).to(weight.dtype) @ weight, 1)
        return (x.flatten(1) @ weight).reshape(x.shape)


class Guided(Network):
    """A network plus a multiple of the gradient of an energy, per field: the shape of every guidance wrapper."""

    def __init__(self, network: Network, energy: Callable[[RaggedBatch], Tensor], field: str, scale: float):
        super().__init__()
        self.network, self.energy, self.field, self.scale = network, energy, field, scale

    def forward(self, batch: RaggedBatch, t: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = batch[self.field].detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(batch.replace(**{self.field: x})).sum(), x)
        prediction = self.network(batch, t)
        return prediction | {self.field: prediction[self.field] + self.scale * slope}
