"""Puts an engine together: the one place that knows which executor and which helpers it gets."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pagemill.config.engine import EngineConfig
from pagemill.executor.kernels.build import KernelBuild

if TYPE_CHECKING:
    from pagemill.engine.engine import Engine

# OpenMP threads that wait for each other spin for milliseconds by default. With a busy neighbour
# on the core (the HTTP side is one) the thread they wait for cannot run meanwhile, and a product
# of 0.1 ms takes two ticks of the system's scheduler. This many turns are some microseconds.
_OPENMP_SPINS = "2000"


def build_engine(config: EngineConfig, report: Callable[[str], None]) -> Engine:
    """Load the model and make its engine; `report` gets the phases of loading, for people.

    Raises ModelLoadError or ConfigError with one readable line.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _OPENMP_SPINS)  # read when torch is imported
    kernels = KernelBuild.start(config)  # first of all: it imports torch at the same time
    try:
        return _build(config, report, kernels)
    except BaseException:
        if kernels is not None:
            kernels.close()
        raise


def _build(
    config: EngineConfig, report: Callable[[str], None], kernels: KernelBuild | None
) -> Engine:
    from pagemill.engine.engine import Engine
    from pagemill.executor.local import build_local_executor
    from pagemill.grammar.compiler import GrammarCompiler
    from pagemill.grammar.manager import GrammarManager
    from pagemill.grammar.vocabulary import read_vocabulary

    executor = build_local_executor(config, report, kernels)
    return Engine(
        config,
        executor,
        grammar=GrammarManager(GrammarCompiler(partial(read_vocabulary, config.model))),
    )
