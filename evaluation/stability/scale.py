"""What the stability of crystals is measured with: a potential, energies of the elements on its scale, and a hull."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.campaigns.relaxing import Chgnet
from evaluation.compositions.amounts import COLUMNS, amounts, parse, symbols
from evaluation.protocols import SunProtocol
from evaluation.relaxation.potentials import Potential, label
from evaluation.relaxation.relax import Relaxation, RelaxationSettings, relax
from evaluation.stability.hull import Hull, HullDistances
from evaluation.stability.phase_tables import PACKAGED, load_hull
from evaluation.stability.references import ElementalReferences, load_references

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

# the correction that energies on these scales hold; all others are raw energies
CORRECTED = {"mp2020": "MP2020", "chgnet": "MP2020"}
NEEDED = ("name", "version", "correction", "elements", "cutoff")


@dataclass(frozen=True)
class Relaxer:
    """Relaxes with a potential that there is; what campaigns.relaxing.Chgnet is to one by name."""

    potential: Potential
    settings: RelaxationSettings

    def __call__(self) -> Callable[[CrystalBatch], Relaxation]:
        return partial(relax, potential=self.potential, settings=self.settings)


@dataclass(frozen=True)
class Scale:
    """potential: whose energies are weighed; references: of the elements, on its scale; hull: in formation energies.

    relaxer: makes what relaxes a batch, in this process or another.
    """

    potential: Potential
    references: ElementalReferences
    hull: Hull
    relaxer: Chgnet | Relaxer
    settings: RelaxationSettings

    def unknown(self, batch: CrystalBatch) -> list[str]:
        """Why crystals cannot be judged whatever their structure, empty where they can; of elements in 1..118."""
        held = amounts(batch, "cpu").numpy() > 0
        reasons = [""] * len(batch)
        referenced = {z for symbol in self.references.energies for z in parse(symbol)}
        for known, said, where in (
            (self.potential.elements, f"{self.potential.name} does not know", ""),
            (self.hull.phases.elements, "no reference energy of", f" in {self.hull.metric}"),
            (referenced, "no reference energy of", f" on the scale {self.references.name}"),
        ):
            foreign = np.ones(COLUMNS, dtype=bool)
            foreign[sorted(known)] = False
            for i in np.flatnonzero(held[:, foreign].any(1)):
                missing = symbols(np.flatnonzero(held[i] & foreign).tolist())
                reasons[i] = reasons[i] or f"{said} {', '.join(missing)}{where}"
        return reasons

    def weigh(self, batch: CrystalBatch, energies: NDArray[np.float64], hull: Hull | None = None) -> HullDistances:
        """Distances to the hull, or to another one, from total energies (B,) in eV."""
        return (hull or self.hull).distances(batch, self.references.formation_energies(batch, energies))

    @property
    def error_bar(self) -> str:
        """What is known of the error of a distance to the hull."""
        name, residual = self.references.name, self.references.residual
        known = "error not known" if residual is None else f"residual {1000 * residual:.0f} meV/atom"
        return f"{label(self.potential)}, {self.hull.metric}, references {name}: {known}"

    @property
    def request(self) -> Mapping[str, Any]:
        """All that decides how crystals relax, as plain data."""
        return {"label": label(self.potential), "settings": asdict(self.settings), "versions": self._packages()}

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of everything an energy above the hull depends on."""
        found = {"potential": label(self.potential), "references": self.references.name}
        return {**found, self.hull.metric: self.hull.hash, **self._packages()}

    def _packages(self) -> Mapping[str, str]:
        return {"chgnet": version("chgnet")} if isinstance(self.relaxer, Chgnet) else {}


def find_scale(
    protocol: SunProtocol,
    potential: str | Potential | None = None,
    hull: str | Path | None = None,
    device: str | None = None,
) -> tuple[SunProtocol, Scale]:
    """What a protocol asks for, or a potential and hull in place of its own, and the protocol with their names.

    potential: "chgnet", or an object of evaluation.relaxation.potentials. hull: "mp20", or a table of phases; with
    total energies, which must be those of the potential, it brings the energies of the elements. device: of CHGNet,
    default the CPU; an object of a potential has its own. Raises ValueError for others and for references on another
    scale than the potential, and ImportError, naming the extra, without chgnet.
    """
    settings = RelaxationSettings(fmax=protocol.fmax, steps=protocol.steps)
    found, relaxer, name = _potential(potential or protocol.potential, settings, device)
    table = load_hull(protocol.hull if hull is None else hull)
    references = table.references or load_references(_references(protocol, name))
    needed = CORRECTED.get(references.name, "none")
    if table.references is None and found.correction != needed:
        have = f"potential = '{name}' has energies with correction '{found.correction}'"
        allowed = "a potential of that scale, or a hull of total energies computed with it"
        raise ValueError(f"{have}, the references '{references.name}' need '{needed}'; allowed: {allowed}")
    called = protocol.hull if hull is None else str(hull)
    if called not in PACKAGED:
        called = f"{Path(called).stem} {table.hash}"
    scale = Scale(found, references, table, relaxer, settings)
    return replace(protocol, potential=name, hull=called, references=references.name), scale


def _references(protocol: SunProtocol, potential: str) -> str:
    """The protocol's scale; energies that were fitted to another potential's are not of this one's elements."""
    own = protocol.references == protocol.potential != potential
    return "mp2020" if own else protocol.references


def _potential(
    potential: Any, settings: RelaxationSettings, device: str | None
) -> tuple[Potential, Chgnet | Relaxer, str]:
    """A potential by name or as it is given, what relaxes with it, and the name in a protocol."""
    if potential == "chgnet":
        from evaluation.relaxation.chgnet_potential import CHGNetPotential

        where = device or "cpu"
        return CHGNetPotential(device=where), Chgnet(settings, where), "chgnet"
    if isinstance(potential, str) or not (callable(potential) and all(hasattr(potential, one) for one in NEEDED)):
        kind = f"'{potential}'" if isinstance(potential, str) else f"a {type(potential).__name__}"
        raise ValueError(f"potential = {kind}, allowed: chgnet, or an object of evaluation.relaxation.potentials")
    if device is not None:
        raise ValueError(f"device = '{device}' is for potential = 'chgnet'; allowed with an object of one: None")
    return potential, Relaxer(potential, settings), label(potential)
