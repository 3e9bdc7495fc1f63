"""The engine's side of structured output: which tokens may come next, request by request."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pagemill.errors import GrammarError
from pagemill.grammar.compiler import GrammarCompiler
from pagemill.params import StructuredOutputs

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


_MASK_THREADS = 1  # besides the one that asks


class GrammarState:
    """The matcher of one request. It has consumed exactly the tokens that the host has seen."""

    def __init__(self, future: Future[LLMatcher]) -> None:
        self._future = future

    @property
    def ready(self) -> bool:
        return self._future.done()

    @property
    def matcher(self) -> LLMatcher:
        """Raises GrammarError when the compile failed."""
        return self._future.result()

    def accept(self, token_ids: Sequence[int]) -> bool:
        """Consume sampled tokens; True when nothing may follow.

        Raises GrammarError when a token was not allowed or a limit was hit on the way.
        """
        matcher = self.matcher
        if not matcher.consume_tokens(list(token_ids)):
            reason = " ".join(matcher.get_error().split())[:200]
            raise GrammarError(
                f"the grammar could not be followed: {reason}", param="structured_outputs"
            )
        return matcher.is_stopped()


class HasMatcher(Protocol):
    """A state, as far as masks need it; `GrammarState` is one."""

    @property
    def matcher(self) -> object: ...


class GrammarManager:
    """Compiles on threads of its own, so that a hard grammar delays neither steps nor others."""

    def __init__(self, compiler: GrammarCompiler, num_threads: int = 2) -> None:
        self._compiler = compiler
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar")
        self._masks: LLExecutor | None = None

    def start(self, spec: StructuredOutputs) -> GrammarState:
        """Begin compiling; the state becomes `ready` later."""
        return GrammarState(self._pool.submit(self._compiler.compile, spec))

    def bitmask(self, states: Sequence[HasMatcher]) -> NDArray[np.int32]:
        """Allowed next tokens of each state, [len(states), ceil(vocab / 32)], bit set = allowed."""
        from llguidance.numpy import fill_next_token_bitmask_par

        width = -(-self._compiler.vocabulary.size // 32)
        mask = np.zeros((len(states), width), np.int32)
        pairs: list[tuple[Any, int]] = [(state.matcher, row) for row, state in enumerate(states)]
        fill_next_token_bitmask_par(self._executor(), pairs, mask)
        return mask

    def shutdown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        if self._masks is None:
            self._masks = LLExecutor(_MASK_THREADS)
        return self._masks
