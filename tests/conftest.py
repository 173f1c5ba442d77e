"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The directory ATOMSMITH_DATA names; the test is skipped where it is not set."""
    root = os.environ.get("ATOMSMITH_DATA")
    if not root:
        pytest.skip("no data: ATOMSMITH_DATA is not set")
    return Path(root).resolve()
