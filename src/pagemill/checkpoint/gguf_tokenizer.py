"""A tokenizer rebuilt from the vocabulary inside a GGUF file.

Two kinds are known: `gpt2`, byte-level BPE with a list of merges and a named way of splitting
words, and `llama`, a SentencePiece vocabulary with scores, served as BPE with byte fallback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from pagemill.checkpoint.tokenizer_spec import surround
from pagemill.checkpoint.word_splitting import configure_splitting, splitting
from pagemill.errors import ModelLoadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # token types
_SPACE = "\u2581"  # SentencePiece's visible space
_PREFIX = "tokenizer.ggml."
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def build_tokenizer(metadata: Mapping[str, Any], origin: Path) -> Tokenizer:
    """Raises ModelLoadError for an unknown kind of tokenizer or an inconsistent vocabulary."""
    vocabulary = _Vocabulary.read(metadata, origin)
    kind = metadata.get(f"{_PREFIX}model")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(vocabulary)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(vocabulary), True
    else:
        vocabulary.fail(f"tokenizer model {kind!r} is not supported; supported are gpt2 and llama")
    _add_whole_tokens(tokenizer, vocabulary)
    roles = gguf_special_tokens(metadata, origin)
    add_bos = vocabulary.flag("add_bos_token", add_bos)
    add_eos = vocabulary.flag("add_eos_token", False)
    surround(
        tokenizer,
        roles["bos_token"] if add_bos else None,
        roles["eos_token"] if add_eos else None,
    )
    return tokenizer


def gguf_special_tokens(metadata: Mapping[str, Any], origin: Path) -> dict[str, str | None]:
    """bos_token, eos_token, unk_token and pad_token as text."""
    tokens = _Vocabulary.read(metadata, origin).tokens
    ids = {role: metadata.get(_PREFIX + key) for role, key in _SPECIAL.items()}
    return {
        role: tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else None
        for role, i in ids.items()
    }


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The vocabulary's lists, all of one length; `ids` maps a token to its id."""

    metadata: Mapping[str, Any]
    origin: Path
    tokens: list[str]
    types: list[int]

    @classmethod
    def read(cls, metadata: Mapping[str, Any], origin: Path) -> _Vocabulary:
        tokens = metadata.get(f"{_PREFIX}tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ModelLoadError(f"{origin}: it carries no tokenizer vocabulary")
        types = metadata.get(f"{_PREFIX}token_type")
        listed = types.tolist() if isinstance(types, np.ndarray) else [_NORMAL] * len(tokens)
        vocabulary = cls(metadata, origin, tokens, listed)
        if len(listed) != len(tokens):
            vocabulary.fail(f"{len(tokens)} tokens but {len(listed)} token types")
        return vocabulary

    def fail(self, message: str) -> NoReturn:
        raise ModelLoadError(f"{self.origin}: {message}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(_PREFIX + key)
        return value if isinstance(value, bool) else default

    def of_type(self, kind: int) -> list[str]:
        return [
            token for token, found in zip(self.tokens, self.types, strict=True) if found == kind
        ]

    def merges(self, ids: Mapping[str, int]) -> list[tuple[str, str]]:
        """The listed merges; both parts and their union must be tokens."""
        listed = self.metadata.get(f"{_PREFIX}merges")
        if not isinstance(listed, list):
            self.fail("its tokenizer has no merges")
        pairs = []
        for merge in listed:
            left, _, right = merge.partition(" ")  # byte-level tokens hold no space
            if left not in ids or right not in ids or left + right not in ids:
                self.fail(f"merge {merge!r} is not in the vocabulary")
            pairs.append((left, right))
        return pairs


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether such models begin a text with BOS unless told otherwise."""
    from tokenizers import Tokenizer, decoders, models

    name = vocabulary.metadata.get(f"{_PREFIX}pre", "default")
    rules = splitting(name)
    if rules is None:
        vocabulary.fail(
            f"pre-tokenizer {name!r} is not supported; guessing would split text wrongly"
        )
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    model = models.BPE(vocab=ids, merges=vocabulary.merges(ids), ignore_merges=rules.ignore_merges)
    tokenizer = Tokenizer(model)
    configure_splitting(tokenizer, rules)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rules.add_bos


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = [_visible_spaces(token) for token in vocabulary.tokens]
    ids = {token: i for i, token in enumerate(tokens)}
    unknown = gguf_special_tokens(vocabulary.metadata, vocabulary.origin)["unk_token"]
    model = models.BPE(
        vocab=ids,
        merges=_implied_merges(vocabulary, tokens, ids),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    parts: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.flag("add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(_SPACE))
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _visible_spaces(token: str) -> str:
    """Converters write runs of spaces as they are; the model sees them as SentencePiece does."""
    return _SPACE * len(token) if token.isspace() and token.strip(" ") == "" else token


def _implied_merges(
    vocabulary: _Vocabulary, tokens: list[str], ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best result first, longest left part first.

    SentencePiece joins the pair whose result scores best; BPE the pair that comes first in its
    list, so the list in order of the results' scores does the same. Gemma's user-defined tokens
    have no true scores, but its vocabulary is in order of merging.
    """
    mergeable = [
        (token, i)
        for i, (token, kind) in enumerate(zip(tokens, vocabulary.types, strict=True))
        if kind in (_NORMAL, _USER_DEFINED)
    ]
    scores = vocabulary.metadata.get(f"{_PREFIX}scores")
    if vocabulary.metadata.get("general.architecture") != "gemma3":
        if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
            vocabulary.fail("its tokenizer has no scores")
        ranking: list[float] = scores.tolist()
        mergeable.sort(key=lambda entry: -ranking[entry[1]])
    return [
        (left, right)
        for token, _ in mergeable
        for cut in range(len(token) - 1, 0, -1)
        if (left := token[:cut]) in ids and (right := token[cut:]) in ids
    ]


def _add_whole_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control and user-defined tokens are never cut into pieces; only the former are special."""
    from tokenizers import AddedToken

    control = vocabulary.of_type(_CONTROL)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    # Tokens outside the model's vocabulary would get new ids: the runs of spaces respelled above.
    user = [t for t in vocabulary.of_type(_USER_DEFINED) if tokenizer.token_to_id(t) is not None]
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in user])
