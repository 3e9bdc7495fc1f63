"""The tokenizer as the rest of the frontend sees it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pagemill.errors import InvalidParams
from pagemill.frontend.token_bytes import TokenBytes, token_bytes_reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend


class Tokenizer:
    """Text to token ids and back, over a `tokenizers.Tokenizer`. Safe to use from any thread.

    `vocab_size` counts the added tokens; the model's own vocabulary may be padded beyond it.
    """

    def __init__(
        self, backend: Backend, bos_token_id: int | None = None, eos_token_id: int | None = None
    ) -> None:
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> list[int]:
        """Raises InvalidParams naming `param` for text that is not valid Unicode."""
        check_text(text, param)
        # The batch call is the one that lets go of the interpreter lock.
        encoding = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        return encoding.ids

    def encode_texts(
        self, texts: Sequence[str | tuple[str, str]], *, add_special_tokens: bool, param: str
    ) -> list[Encoding]:
        """Texts and pairs, all at once. Raises InvalidParams as `encode` does."""
        for text in texts:
            for part in (text,) if isinstance(text, str) else text:
                check_text(part, param)
        return self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The token alone, as text; incomplete characters become U+FFFD."""
        return self.token_bytes[token_id].decode(errors="replace")

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of every token, special ones included."""
        return self._table(frozenset())

    @cached_property
    def visible_bytes(self) -> TokenBytes:
        """The bytes of every token, empty for special ones."""
        return self._table(self.special_ids)

    @cached_property
    def decodes_by_token(self) -> bool:
        """Whether a text's bytes are its tokens' bytes, one after the other."""
        return token_bytes_reader(self.backend) is not None

    def _table(self, hidden: frozenset[int]) -> TokenBytes:
        read = token_bytes_reader(self.backend) or self._decode_alone
        return TokenBytes(read, hidden)

    def _decode_alone(self, token_id: int) -> bytes:
        return self.backend.decode([token_id], skip_special_tokens=False).encode()


def check_text(text: str, param: str) -> None:
    """Refuse lone surrogates, which JSON can spell but UTF-8 cannot. Raises InvalidParams."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidParams(
            f"{param} has a lone surrogate at character {error.start}, which is not valid Unicode",
            param=param,
        ) from None
