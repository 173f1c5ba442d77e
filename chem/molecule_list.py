"""What sampling molecules returns: a list of RDKit molecules that knows which of them have no bonds, and why."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms
    from rdkit.Chem import Mol

NO_BONDS = "no_bonds"  # property of a molecule in which no bonds could be perceived: the reason, in a line


class Molecules(list["Mol"]):
    """RDKit molecules with a conformer, in order; one without bonds has the property `no_bonds` that says why."""

    @property
    def failures(self) -> list[Atoms]:
        """Those in which no bonds could be perceived, as ASE atoms; `info` has their index in the list and `reason`."""
        from chem.convert_molecules import from_rdkit, to_ase

        found = []
        for index, reason in self._without_bonds().items():
            atoms = to_ase(from_rdkit([self[index]]))[0]
            atoms.info = {"index": index, "reason": reason}
            found.append(atoms)
        return found

    @property
    def reasons(self) -> dict[str, int]:
        """How many have no bonds for each reason, whose numbers are replaced by #, as they differ by molecule."""
        return dict(Counter(re.sub(r"-?\d+", "#", reason) for reason in self._without_bonds().values()))

    def _without_bonds(self) -> dict[int, str]:
        return {i: mol.GetProp(NO_BONDS) for i, mol in enumerate(self) if mol.HasProp(NO_BONDS)}
