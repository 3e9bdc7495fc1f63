"""Token ids to text while they arrive: whole characters only, each exactly once."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from pagemill.frontend.tokenizer import Tokenizer


class Detokenizer(Protocol):
    """The text of one growing sequence of tokens."""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; bytes of an incomplete character wait."""
        ...

    def flush(self) -> str:
        """What still waits, as U+FFFD. Nothing may be added afterwards."""
        ...


def make_detokenizer(tokenizer: Tokenizer, *, skip_special_tokens: bool) -> Detokenizer:
    """Tokens that follow each other are never separated by added spaces, special or not."""
    if tokenizer.decodes_by_token:
        return ByteDetokenizer(tokenizer, skip_special_tokens)
    return StreamDetokenizer(tokenizer, skip_special_tokens)


class ByteDetokenizer:
    """For vocabularies of bytes: a table look-up for each token and one UTF-8 decoding."""

    __slots__ = ("_pending", "_table")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._table = tokenizer.visible_bytes if skip_special_tokens else tokenizer.token_bytes
        self._pending = b""

    def add(self, token_ids: Sequence[int]) -> str:
        table = self._table
        if len(token_ids) == 1:
            data = self._pending + table[token_ids[0]]
        else:
            data = self._pending + b"".join([table[token_id] for token_id in token_ids])
        text, consumed = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[consumed:]
        return text

    def flush(self) -> str:
        data, self._pending = self._pending, b""
        return data.decode(errors="replace")


class StreamDetokenizer:
    """For decoders in which a token's text depends on its neighbours, such as WordPiece."""

    __slots__ = ("_skip_special_tokens", "_stream", "_tokenizer", "_waiting")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._skip_special_tokens = skip_special_tokens
        self._waiting: list[int] = []

    def add(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token_id in token_ids:
            self._waiting.append(token_id)
            piece = self._stream.step(self._tokenizer.backend, token_id)
            if piece is not None:
                text += piece
                self._waiting.clear()
        return text

    def flush(self) -> str:
        return self._tokenizer.decode(self._waiting, skip_special_tokens=self._skip_special_tokens)
