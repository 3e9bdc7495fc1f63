"""The bytes that each token of a vocabulary stands for.

Byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece with byte fallback (Llama 2, Gemma) decode
token by token into bytes whose concatenation is the text, so a table of them is all that
detokenising needs: no token's text depends on its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_TOKEN_LENGTH = len("<0x00>")


class TokenBytes(dict[int, bytes]):
    """Token id -> bytes, filled as ids are first seen; unknown and hidden ids are empty."""

    def __init__(self, to_bytes: Callable[[int], bytes], hidden: frozenset[int]) -> None:
        super().__init__(dict.fromkeys(hidden, b""))
        self._to_bytes = to_bytes

    def __missing__(self, token_id: int) -> bytes:
        value = self[token_id] = self._to_bytes(token_id)
        return value


def token_bytes_reader(backend: Backend) -> Callable[[int], bytes] | None:
    """How to read one token's bytes, or None for a decoder that looks at neighbours."""
    to_bytes = _vocabulary_reader(_decoder_steps(backend))
    if to_bytes is None:
        return None
    added = {i: token.content.encode() for i, token in backend.get_added_tokens_decoder().items()}

    def read(token_id: int) -> bytes:
        if token_id in added:
            return added[token_id]
        token = backend.id_to_token(token_id)
        return b"" if token is None else to_bytes(token)

    return read


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    spec = json.loads(backend.decoder.__getstate__())
    steps = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    return list(steps)


def _vocabulary_reader(steps: list[dict[str, Any]]) -> Callable[[str], bytes] | None:
    """Handles ByteLevel alone, and any order of the steps that SentencePiece models use.

    `Strip` takes the space off the first token of a text. Generated text continues a prompt, so
    its first token is not the first of a text and keeps the space.
    """
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return _byte_level_reader()
    if not kinds or kinds - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return None
    replaces = [step for step in steps if step["type"] == "Replace"]
    if any(step["pattern"] != {"String": _SPACE_MARK} for step in replaces):
        return None
    return _byte_fallback_bytes if "ByteFallback" in kinds else _sentencepiece_bytes


def _byte_level_reader() -> Callable[[str], bytes]:
    table = _byte_level_alphabet()

    def read(token: str) -> bytes:
        try:
            return bytes([table[character] for character in token])
        except KeyError:
            return token.encode()

    return read


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's bijection: printable Latin-1 stands for itself, other bytes move to U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = sorted(set(range(256)) - set(printable))
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(moved)}


def _byte_fallback_bytes(token: str) -> bytes:
    if len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return _sentencepiece_bytes(token)


def _sentencepiece_bytes(token: str) -> bytes:
    return token.replace(_SPACE_MARK, " ").encode()
