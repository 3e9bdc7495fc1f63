"""Puts an engine together: the one place that knows which executor and which helpers it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pagemill.config.engine import EngineConfig

if TYPE_CHECKING:
    from pagemill.engine.engine import Engine


def build_engine(config: EngineConfig, report: Callable[[str], None]) -> Engine:
    """Load the model and make its engine; `report` gets the phases of loading, for people.

    Raises ModelLoadError or ConfigError with one readable line.
    """
    from pagemill.engine.engine import Engine
    from pagemill.executor.local import build_local_executor

    executor = build_local_executor(config, report)
    return Engine(config, executor)
