"""The second step of a campaign: crystals relaxed, and weighed against a hull.

Anything that relaxes a batch will do; `chgnet_against` is what the package has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.campaigns.screening import with_keys
from evaluation.campaigns.structure_tables import read_rows, to_batch, to_table
from evaluation.runs.pipeline import Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import ArrayLike

    from chem.crystals import CrystalBatch
    from evaluation.relaxation.relax import Relaxation, RelaxationSettings
    from evaluation.stability.hull import Hull, HullDistances
    from evaluation.stability.references import ElementalReferences

# Picklable factories, called once in each worker.
Relax = Callable[[], Callable[["CrystalBatch"], "Relaxation"]]
Weigh = Callable[[], Callable[["CrystalBatch", "ArrayLike"], "HullDistances"]]


@dataclass(frozen=True)
class Relaxing:
    """What relaxes the crystals of a campaign.

    relax() gives a function batch -> relaxation.relax.Relaxation; weigh() one of the relaxed crystals and their
    total energies (B,) in eV to stability.hull.HullDistances, None where no hull is known. Both are picklable and
    called once in each worker. label: names potential, settings and hull; another one is refused in a folder.
    """

    relax: Relax
    label: str
    weigh: Weigh | None = None


@dataclass(frozen=True)
class RelaxStep:
    """Relaxes the crystals of a file made by evaluation.campaigns.duplicates.keep.

    sample: the number each had; energy: total, in eV; converged, steps; e_above_hull: eV/atom, null without hull or
    reference; what failed is `refused`.
    """

    source: str
    relaxing: Relaxing

    def __call__(self) -> Rows:
        relax = self.relaxing.relax()
        weigh = None if self.relaxing.weigh is None else self.relaxing.weigh()

        def rows(start: int, stop: int) -> pa.Table:
            import pyarrow as pa

            given = read_rows(self.source, start, stop)
            done = relax(to_batch(given))
            energies = done.energies.cpu().numpy()
            failed = done.failed.cpu().tolist()
            refused = [f"relaxation: {why}" if bad else None for bad, why in zip(failed, done.reasons, strict=True)]
            table = with_keys(to_table(done.batch), done.batch, refused)
            columns: dict[str, Any] = {"sample": given["row"], "copies": given["copies"]}
            columns |= {"energy": _known(energies), "steps": done.steps.tolist(), "converged": done.converged.tolist()}
            if weigh is not None:
                columns["e_above_hull"] = _known(weigh(done.batch, energies).e_above_hull)
            for name, values in columns.items():
                table = table.append_column(name, values if name in given.column_names else pa.array(values))
            return table

        return rows


@dataclass(frozen=True)
class Chgnet:
    """Relaxes with CHGNet, of the extra `stability`, in float32. settings: None for the defaults."""

    settings: RelaxationSettings | None = None
    device: str = "cpu"

    def __call__(self) -> Callable[[CrystalBatch], Relaxation]:
        from evaluation.relaxation.chgnet_potential import CHGNetPotential
        from evaluation.relaxation.relax import relax

        return partial(relax, potential=CHGNetPotential(device=self.device), settings=self.settings)


@dataclass(frozen=True)
class AgainstHull:
    """Distances to a hull of evaluation.stability.phase_tables from total energies on the scale `references`.

    A table of total energies brings a scale of its own, which must be that of the potential.
    """

    hull: str = "mp20"
    references: str = "chgnet"

    def __call__(self) -> Callable[[CrystalBatch, ArrayLike], HullDistances]:
        hull, references = self._found()

        def weigh(batch: CrystalBatch, energies: ArrayLike) -> HullDistances:
            return hull.distances(batch, references.formation_energies(batch, energies))

        return weigh

    @property
    def label(self) -> str:
        """The hull by name and content, and the scale."""
        hull, references = self._found()
        return f"{hull.metric} {hull.hash}, references {references.name}"

    def _found(self) -> tuple[Hull, ElementalReferences]:
        from evaluation.stability.phase_tables import load_hull
        from evaluation.stability.references import load_references

        hull = load_hull(self.hull)
        return hull, hull.references or load_references(self.references)  # a table of total energies has its own


def chgnet_against(hull: str | Path = "mp20", device: str = "cpu") -> Relaxing:
    """Relaxation by CHGNet and distances to a hull: both are looked at here, before hours are spent on samples.

    Raises ValueError for a hull that cannot be read, and ImportError, naming the extra, without chgnet.
    """
    from evaluation.relaxation.chgnet_potential import CHGNetPotential
    from evaluation.relaxation.potentials import label
    from evaluation.stability.phase_tables import PACKAGED

    said = AgainstHull(str(hull)).label  # first, as it is the cheaper of the two
    weigh = AgainstHull(str(hull) if str(hull) in PACKAGED else str(Path(hull).absolute()))
    return Relaxing(Chgnet(device=device), f"{label(CHGNetPotential(device=device))}, {said}", weigh)


def _known(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
