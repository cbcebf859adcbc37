"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import plant


@pytest.fixture(scope="module")
def sae(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a planted SAE of four features."""
    folder = tmp_path_factory.mktemp("planted")
    plant(stories15m, folder, count=4)
    return folder
