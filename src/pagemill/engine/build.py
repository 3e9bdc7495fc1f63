"""Puts an engine together: the one place that knows which executor and which helpers it gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pagemill.config.engine import EngineConfig

if TYPE_CHECKING:
    from pagemill.engine.engine import Engine


def build_engine(config: EngineConfig, report: Callable[[str], None]) -> Engine:
    """Load the model and make its engine; `report` gets the phases of loading, for people.

    Raises ModelLoadError or ConfigError with one readable line.
    """
    from pagemill.checkpoint.open import open_checkpoint
    from pagemill.engine.engine import Engine
    from pagemill.executor.local import build_local_executor
    from pagemill.grammar.compiler import GrammarCompiler
    from pagemill.grammar.manager import GrammarManager
    from pagemill.grammar.vocabulary import read_vocabulary
    from pagemill.kvcache.spec import shared_window

    executor = build_local_executor(config, report)
    model = open_checkpoint(config.model).model_config()
    return Engine(
        config,
        executor,
        window=shared_window([model.layer_window(i) for i in range(model.num_layers)]),
        grammar=GrammarManager(GrammarCompiler(partial(read_vocabulary, config.model))),
    )
