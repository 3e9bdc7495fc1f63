"""From the name of a speculation method to the object."""

from __future__ import annotations

from pagemill.config.engine import EngineConfig
from pagemill.errors import ConfigError
from pagemill.speculative.base import Speculator


def select_speculator(config: EngineConfig) -> Speculator | None:
    """The configured method, or None. Raises ConfigError."""
    if config.speculative == "none" or config.num_speculative_tokens == 0:
        return None
    if config.speculative == "ngram":
        from pagemill.speculative.ngram import NgramSpeculator

        return NgramSpeculator(config.num_speculative_tokens)
    raise ConfigError(f"unknown speculation {config.speculative!r}; there are none, ngram")
