"""One server for all tests that do not need their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.serving import RunningServer, serve


@pytest.fixture(scope="session")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def server(log_folder: Path) -> Iterator[RunningServer]:
    """The demo model in float32 with the default settings."""
    with serve(log_folder, "--dtype", "float32") as running:
        running.wait_ready()
        yield running
