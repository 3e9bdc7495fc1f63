"""Compiles grammars against a tokenizer, within limits, and keeps the last ones by content."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagemill.errors import GrammarError
from pagemill.grammar.source import to_grammar
from pagemill.grammar.vocabulary import Vocabulary
from pagemill.params import StructuredOutputs

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

CACHE_ENTRIES = 128


class GrammarCompiler:
    """One per process and tokenizer. `compile` may be called from any thread.

    Nothing is built before the first use: reading the vocabulary takes about a third of a second
    for 50,000 tokens.
    """

    def __init__(self, read_vocabulary: Callable[[], Vocabulary]) -> None:
        self._read_vocabulary = read_vocabulary
        self._vocabulary: Vocabulary | None = None
        self._tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()  # of the cache
        self._building = threading.Lock()  # of vocabulary and tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = self._read_vocabulary()
            return self._vocabulary

    def compile(self, spec: StructuredOutputs) -> LLMatcher:
        """A fresh matcher at the start of the grammar. Raises GrammarError with the reason."""
        grammar = to_grammar(spec, self.vocabulary.special_tokens)
        matcher = self._look_up(grammar)
        if matcher is None:
            matcher = self._build(grammar)
            self._remember(grammar, matcher)
        return matcher.deep_copy()

    def _look_up(self, grammar: str) -> LLMatcher | None:
        with self._lock:
            if grammar in self._cache:
                self._cache.move_to_end(grammar)
            return self._cache.get(grammar)

    def _remember(self, grammar: str, matcher: LLMatcher) -> None:
        with self._lock:
            self._cache[grammar] = matcher
            if len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)

    def _build(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._get_tokenizer(), grammar, limits=_limits(), log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:400]
            raise GrammarError(
                f"the grammar cannot be enforced: {reason}", param="structured_outputs"
            )
        return matcher

    def _get_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        vocabulary = self.vocabulary
        with self._building:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    vocabulary.tokenizer_json,
                    n_vocab=vocabulary.size,
                    eos_token=list(vocabulary.eos_token_ids) or None,
                )
            return self._tokenizer


def _limits() -> LLParserLimits:
    """About a second of work at most for a compile, tens of milliseconds for one mask."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=10_000_000,
        step_lexer_fuel=500_000,
        max_lexer_states=100_000,
        max_grammar_size=500_000,
        max_items_in_row=20_000,
        verbose_errors=False,
    )
