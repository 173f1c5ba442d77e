"""Protocols: every choice that changes a number, under one name and one hash.

Two numbers may be compared when their protocol hashes are equal. A protocol is looked up by name, or built by
`dataclasses.replace` from a known one under a name of its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from evaluation.compositions.smact import CompositionRule


@dataclass(frozen=True)
class Tolerances:
    """Arguments of pymatgen's StructureMatcher: ltol, stol without unit, angle_tol in degrees."""

    ltol: float
    stol: float
    angle_tol: float
    scale: bool = True
    primitive_cell: bool = True
    attempt_supercell: bool = False

    def __post_init__(self) -> None:
        for name in ("ltol", "stol", "angle_tol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed: a positive number")

    def contains(self, other: Tolerances) -> bool:
        """Whether whatever `other` matches is matched by these tolerances too."""
        switches = ("scale", "primitive_cell", "attempt_supercell")
        same = all(getattr(self, name) == getattr(other, name) for name in switches)
        return same and self.ltol >= other.ltol and self.stol >= other.stol and self.angle_tol >= other.angle_tol


LOOSE, DEFAULT = Tolerances(0.3, 0.5, 10.0), Tolerances(0.2, 0.3, 5.0)


@dataclass(frozen=True)
class Choices:
    """What every protocol has; abstract. resamples: of the bootstrap. level: of the intervals."""

    name: str
    task: str
    resamples: int = field(default=200, kw_only=True)
    level: float = field(default=0.95, kw_only=True)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the sha256 of every choice; the name is left out."""
        content = {name: value for name, value in asdict(self).items() if name != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """Name, hash and every choice, as plain data."""
        content = asdict(self)
        return {"name": content.pop("name"), "hash": self.hash, **content}


@dataclass(frozen=True)
class Protocol(Choices):
    """One way to judge crystals.

    task: "csp" (a candidate for each target) or "ab-initio" (samples against a distribution). matcher, strict: the
    two tolerance sets of csp. pair_seconds: time limit of one pair, after which it counts as unmatched. structure: rule
    of evaluation.validity. fingerprints: whether `valid` asks that both fingerprints can be made too. samples: how
    many valid samples the distances are measured on.
    """

    task: Literal["csp", "ab-initio"]
    composition: CompositionRule = CompositionRule()
    structure: Literal["cdvae", "strict"] = "cdvae"
    fingerprints: bool = True
    matcher: Tolerances = LOOSE
    strict: Tolerances = DEFAULT
    pair_seconds: float = 60.0
    samples: int = 1000


@dataclass(frozen=True)
class MoleculeProtocol(Choices):
    """One way to judge molecules.

    bonds: "lookup" in EDM's distance tables, with margins in pm for single, double and triple bonds, or "perceived" by
    RDKit's rdDetermineBonds: atoms nearer than `reach` times the sum of their covalent radii are bonded, the orders are
    those of the total charge that the molecule comes with (else 0), within `seconds` and `memory` bytes. valences:
    "edm" (sums of orders) or "corrected" (aromatic bonds counted apart, by formal charge). validity: "largest-fragment"
    or "whole-molecule", see evaluation.molecules.graphs. posebusters, gfn2: how many random samples the slow tiers are
    measured on, 0 for none; tier_seconds: their limit per molecule.
    """

    task: Literal["molecules"] = "molecules"
    bonds: Literal["lookup", "perceived"] = "lookup"
    margins: tuple[float, float, float] = (10.0, 5.0, 3.0)
    valences: Literal["edm", "corrected"] = "edm"
    validity: Literal["largest-fragment", "whole-molecule"] = "largest-fragment"
    reach: float = 1.15
    seconds: float = 5.0
    memory: int = 2 * 1024**3
    posebusters: int = 0
    gfn2: int = 0
    tier_seconds: float = 60.0


@dataclass(frozen=True)
class ConditionalProtocol(Choices):
    """One way to judge molecules that were asked for a property, see evaluation.molecules.asked."""

    task: Literal["conditional"] = "conditional"


@dataclass(frozen=True)
class SunProtocol(Choices):
    """One way to judge crystals by whether they are stable, unique and novel, see evaluation.sun.

    structure, composition, fingerprints, samples: as in `Protocol`. potential, hull: names; references: a scale of
    stability.references, unless the hull has energies of the elements of its own. fmax (eV/Å), steps: of a relaxation.
    relaxed: which crystals are: "all", those "valid" by `structure`, or "unique-novel", which costs least and gives the
    same S.U.N. as "all"; what is not relaxed is not stable. compared: whether crystals are unique and novel as they
    were "made" or "relaxed", by tolerances, disordered (matching.sameness) and grouping (matching.uniqueness).
    stable: eV/atom above the hull, what `sun` stands for; thresholds: those that are shown as well. least_elements:
    crystals of fewer are not stable. symprec: ångström. rmsd: to the relaxed crystals. self_consistent: whether
    S.U.N. by the hull of table and samples is shown beside. The other switches add numbers of the crystals as they were
    made. published: potential, hull and reference behind the numbers that the name is known for.
    """

    task: Literal["sun"] = "sun"
    structure: Literal["cdvae", "strict"] = "cdvae"
    composition: CompositionRule = CompositionRule()
    fingerprints: bool = False
    samples: int = 1000
    potential: str = "chgnet"
    hull: str = "mp20"
    references: str = "chgnet"
    fmax: float = 0.1
    steps: int = 500
    relaxed: Literal["all", "valid", "unique-novel"] = "all"
    compared: Literal["made", "relaxed"] = "relaxed"
    tolerances: Tolerances = DEFAULT
    disordered: bool = False
    grouping: Literal["first-come", "components"] = "first-come"
    stable: float = 0.0
    thresholds: tuple[float, ...] = (0.0, 0.05, 0.1)
    least_elements: int = 1
    symprec: float = 0.1
    rmsd: bool = False
    self_consistent: bool = False
    distributions: bool = False
    coverage: bool = False
    diversity: bool = False
    symmetry: bool = False
    supply_risk: bool = False
    published: tuple[str, str, str] = ("", "", "")

    def __post_init__(self) -> None:
        for name, allowed in (
            ("structure", ("cdvae", "strict")),
            ("relaxed", ("all", "valid", "unique-novel")),
            ("compared", ("made", "relaxed")),
            ("grouping", ("first-come", "components")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = '{getattr(self, name)}', allowed: {', '.join(allowed)}")
        if self.relaxed == "unique-novel" and self.compared != "made":
            raise ValueError(f"relaxed = 'unique-novel' with compared = '{self.compared}', allowed: compared = 'made'")

    def label(self, metric: str, reference: str) -> str:
        """The bare name only where potential, hull and reference are the published ones; metric: of the hull."""
        same = (self.potential, self.hull, reference.split(", all ")[0]) == self.published
        return self.name if same else f"{self.name} [{self.potential}, {metric}]"


DIFFCSP, CDVAE = Protocol("diffcsp-csp", "csp"), Protocol("cdvae-2022", "ab-initio")
EDM = MoleculeProtocol("edm-qm9")
STRICT = replace(EDM, name="edm-qm9-strict", bonds="perceived", valences="corrected", validity="whole-molecule")
# Published with DFT after CHGNet, and against the whole hull of the Materials Project.
FLOWMM_SUN = SunProtocol(
    "flowmm-sun", least_elements=2, published=("CHGNet, then DFT", "Materials Project 2023-02-07", "mp20 train")
)
# Published with MatterSim and DFT, 846,000 crystals as hull and reference, and supercells in the matcher.
MATTERGEN_SUN = SunProtocol(
    "mattergen-sun",
    fmax=0.05,
    disordered=True,
    stable=0.1,
    rmsd=True,
    published=("MatterSim-v1-1M, then DFT", "Alex-MP-ICSD", "Alex-MP-ICSD"),
)
# Published with three potentials that vote, 5.3 million crystals as hull and reference, hashes in place of the matcher,
# and a charge balance by bond valences, which sorts crystals out as the rule of structures does here.
LEMAT_2025 = SunProtocol(
    "lemat-2025",
    structure="strict",
    composition=CompositionRule(table="icsd24", missing="invalid"),
    fmax=0.02,
    steps=50,
    relaxed="valid",
    compared="made",
    distributions=True,
    diversity=True,
    supply_risk=True,
    published=("MACE-MP, ORB-v3 and UMA", "LeMat-Bulk", "LeMat-Bulk"),
)
# Nobody's but ours: nothing of a paper is there to be matched.
STRICT_SUN = SunProtocol(
    "strict",
    structure="strict",
    composition=CompositionRule(table="icsd24", missing="invalid"),
    fmax=0.05,
    disordered=True,
    grouping="components",
    rmsd=True,
    self_consistent=True,
    distributions=True,
    coverage=True,
    diversity=True,
    symmetry=True,
    supply_risk=True,
    published=("chgnet", "mp20", "mp20 train"),
)

PROTOCOLS: dict[str, Choices] = {
    p.name: p
    for p in (
        DIFFCSP,
        CDVAE,
        EDM,
        STRICT,
        replace(STRICT, name="edm-qm9-physics", posebusters=1000, gfn2=200),
        ConditionalProtocol("edm-conditional"),
        FLOWMM_SUN,
        MATTERGEN_SUN,
        LEMAT_2025,
        STRICT_SUN,
    )
}


def protocol(name: str | Choices) -> Choices:
    """The protocol of that name, or the one given; raises ValueError with the known names."""
    if isinstance(name, Choices):
        return name
    if name not in PROTOCOLS:
        raise ValueError(f"protocol = '{name}', allowed: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
