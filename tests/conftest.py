"""Tests marked `gpu` are deselected where there is no CUDA device; `-m gpu` runs them alone.

Those in `clients` need environments of their own: `make test-clients`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

collect_ignore = ["clients"]
_CUDA_DRIVER = Path("/proc/driver/nvidia/version")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _CUDA_DRIVER.exists():
        return
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]
