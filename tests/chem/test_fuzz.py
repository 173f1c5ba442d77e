"""Every reader on damaged files: a record with its reason or one clear refusal, no crash, no hang, no made-up data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from chem.io import read, write

FORMATS = ["cif", "vasp", "extxyz", "jsonl", "csv", "parquet"]
TOKENS = [b"", b"nan", b"inf", b"1e999", b"-0", b"?", b"loop_", b"data_", b"{", b"}", b",", b"\n", b"\x00", b"9" * 9]
EDITS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 60), st.one_of(st.sampled_from(TOKENS), st.binary(max_size=12))),
    min_size=1,
    max_size=6,
)
BOUNDED = settings(
    max_examples=150,
    deadline=10_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    """A valid file of two triclinic crystals in every format."""
    folder = tmp_path_factory.mktemp("originals")
    crystals = [
        Structure(Lattice.from_parameters(3, 4, 5, 80, 100, 110), ["Na", "Cl"], [[0, 0, 0], [0.4, 0.5, 0.6]]),
        Structure(Lattice.from_parameters(4, 4.5, 6, 95, 85, 70), ["Ti", "O", "O"], np.arange(9).reshape(3, 3) / 10),
    ]
    out = {}
    for name in FORMATS:
        path = folder / f"two.{name}"
        write(crystals[:1] if name == "vasp" else crystals, path)
        out[name] = path.read_bytes()
    return out


@pytest.mark.parametrize("name", FORMATS)
@BOUNDED
@given(edits=EDITS)
def test_damaged_files(name, originals, tmp_path, edits):
    data = originals[name]
    for place, length, new in edits:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + length :]
    path = tmp_path / f"damaged.{name}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            records = list(read(path))
        except ValueError as error:
            assert "\n" not in str(error) and path.name in str(error)
            return
    for record in records:
        assert (record.structure is None) != (record.error is None)
        if record.structure is None:
            assert record.error.strip() and "\n" not in record.error
        else:
            assert len(record.structure) > 0 and record.structure.volume > 0
            assert np.isfinite(record.structure.lattice.matrix).all()
            assert np.isfinite(record.structure.frac_coords).all()


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_files_are_read_whole(name, originals, tmp_path):
    path = tmp_path / f"whole.{name}"
    path.write_bytes(originals[name])
    assert [r.error for r in read(path)] == [None] * (1 if name == "vasp" else 2)
