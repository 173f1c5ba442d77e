"""A set of crystals and what can be measured of each: computed when it is first asked for, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.descriptors.cache import remembered
from evaluation.descriptors.fingerprints import Fingerprints, structure_fingerprints
from evaluation.descriptors.symmetry import Backend, Symmetry, symmetry
from evaluation.validity import unusable

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

REVISION = 1  # raised whenever a fingerprint changes, so that older files are not read


class Described:
    """N crystals; nothing is computed before it is asked for.

    batch: those that could be read; n: how many there are with those that could not, which stay in denominators;
    default all of the batch. cache: folder of results, default ~/.cache/atomsmith. device: of the computations.
    """

    def __init__(
        self,
        batch: CrystalBatch,
        n: int | None = None,
        cache: str | Path | None = None,
        device: torch.device | str | None = None,
    ):
        self.batch, self.n, self.cache, self.device = batch, len(batch) if n is None else n, cache, device
        if self.n < len(batch):
            raise ValueError(f"n = {n}, allowed: at least the {len(batch)} crystals of the batch")
        self._symmetry: dict[tuple[float, str], Symmetry] = {}

    def __len__(self) -> int:
        return self.n

    @cached_property
    def reasons(self) -> list[str]:
        """Why each crystal cannot be measured, empty where it can."""
        return unusable(self.batch)

    @cached_property
    def measurable(self) -> CrystalBatch:
        """The crystals that can be measured."""
        return self.batch[[i for i, reason in enumerate(self.reasons) if not reason]]

    @cached_property
    def structure(self) -> Fingerprints:
        """Structure fingerprints (B, 61), see evaluation.descriptors.fingerprints."""
        return self._fingerprints("crystalnn", lambda: structure_fingerprints(self.batch, self.device), "pymatgen")

    @cached_property
    def composition(self) -> Fingerprints:
        """Standardised Magpie fingerprints (B, 132), see evaluation.compositions.magpie."""
        return self._fingerprints("magpie", lambda: composition_fingerprints(self.batch, self.device))

    @property
    def fingerprinted(self) -> NDArray[np.bool_]:
        """Which crystals (B,) have both fingerprints: the third clause of `valid` since CDVAE."""
        return self.structure.valid & self.composition.valid

    @cached_property
    def amounts(self) -> NDArray[np.float64]:
        """Atoms (B', 119) of each element in each measurable crystal."""
        from evaluation.compositions.amounts import amounts

        return amounts(self.measurable, "cpu").numpy()

    @cached_property
    def amd(self) -> NDArray[np.float64]:
        """Average minimum distances (B', 100) in ångström of the measurable crystals, see descriptors.isometry."""
        from evaluation.descriptors.isometry import amd

        return amd(self.measurable, device=self.device).cpu().numpy()

    def symmetry(self, symprec: float = 0.1, backend: Backend = "spglib") -> Symmetry:
        """Space groups and templates at a tolerance in ångström, see evaluation.descriptors.symmetry."""
        if (symprec, backend) not in self._symmetry:
            settings = {"symprec": symprec, "backend": version(backend), "revision": REVISION}

            def compute() -> dict[str, NDArray[Any]]:
                found = symmetry(self.batch, symprec, backend)
                texts = {"templates": np.array(found.templates, str), "reasons": np.array(found.reasons, str)}
                return {"space_groups": found.space_groups, **texts}

            kept = remembered(f"symmetry-{backend}", self.batch, settings, compute, self.cache)
            texts = kept["templates"].tolist(), kept["reasons"].tolist()
            self._symmetry[symprec, backend] = Symmetry(kept["space_groups"], *texts, symprec, backend)
        return self._symmetry[symprec, backend]

    def _fingerprints(self, name: str, measure: Callable[[], Fingerprints], *packages: str) -> Fingerprints:
        settings = {"revision": REVISION, **{package: version(package) for package in packages}}

        def compute() -> dict[str, NDArray[Any]]:
            found = measure()
            return {"values": found.values, "reasons": np.array(found.reasons, str)}

        kept = remembered(name, self.batch, settings, compute, self.cache)
        return Fingerprints(kept["values"], kept["reasons"].tolist())


def composition_fingerprints(batch: CrystalBatch, device: torch.device | str | None = None) -> Fingerprints:
    """Standardised Magpie fingerprints (B, 132); a crystal without atoms or with an unknown element has none."""
    import torch

    from evaluation.compositions.magpie import feature_names, magpie, standardise

    z, index = batch["atomic_numbers"].cpu(), batch["batch"].cpu()
    reasons = ["" if count else "no atoms" for count in batch["num_atoms"].tolist()]
    for i in index[(z < 1) | (z > 118)].unique().tolist():
        reasons[i] = "an atomic number is not in 1..118"
    usable = [i for i, reason in enumerate(reasons) if not reason]
    values = np.full((len(batch), len(feature_names())), np.nan)
    with torch.no_grad():
        values[usable] = standardise(magpie(batch[usable], device)).cpu().numpy()
    return Fingerprints(values, reasons)


def fingerprint_clause(batch: CrystalBatch, device: torch.device | str | None = None) -> NDArray[np.bool_]:
    """Which crystals (B,) have both fingerprints: what `valid` asks for since CDVAE besides the two validities."""
    return structure_fingerprints(batch, device).valid & composition_fingerprints(batch, device).valid
