"""A grammar compiler that costs nothing until a request asks for structured output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagemill.grammar.compiler import GrammarCompiler
from pagemill.params import StructuredOutputs

if TYPE_CHECKING:
    from llguidance import LLMatcher


class DeferredCompiler:
    """Makes the real compiler, which needs the tokenizer, on the thread of the first compile."""

    def __init__(self, vocab_size: int, make: Callable[[], GrammarCompiler]) -> None:
        self.vocab_size = vocab_size
        self._make = make
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def compile(self, spec: StructuredOutputs) -> LLMatcher:
        """See `GrammarCompiler.compile`; also raises what making the compiler raises."""
        with self._lock:
            if self._compiler is None:
                self._compiler = self._make()
        return self._compiler.compile(spec)
