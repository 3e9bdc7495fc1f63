"""Random prompts of wanted lengths, as texts or as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pagemill.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FIRST_ID = 10  # below stand the special tokens of most vocabularies
_MAX_ID = 32_000  # inside every vocabulary of today's models
_ATTEMPTS = 10  # to find a text that has exactly the wanted number of tokens


@dataclass(frozen=True, slots=True)
class RandomShape:
    """Lengths in tokens. Each is drawn evenly from `length * (1 - ratio)` to `* (1 + ratio)`.

    All prompts begin with the same `prefix_len` tokens, which come on top of `input_len`.
    """

    input_len: int
    output_len: int
    range_ratio: float = 0.0
    prefix_len: int = 0

    def check(self) -> None:
        """Raises ConfigError, naming the flag."""
        if self.input_len < 1 or self.output_len < 1 or self.prefix_len < 0:
            raise ConfigError("--random-input-len and --random-output-len must be at least 1")
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(
                f"--random-range-ratio must be from 0 to below 1, got {self.range_ratio}"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: its prompt, the prompt's length, and how many tokens to ask for."""

    prompt: str | list[int]
    input_len: int
    output_len: int


def random_samples(
    shape: RandomShape, count: int, rng: np.random.Generator, tokenizer: Tokenizer | None = None
) -> list[Sample]:
    """`count` samples; texts with a tokenizer, token ids without. Raises ConfigError."""
    shape.check()
    vocab = _MAX_ID if tokenizer is None else tokenizer.get_vocab_size()
    prefix = rng.integers(_FIRST_ID, vocab, shape.prefix_len).tolist()
    inputs = _lengths(shape.input_len, shape.range_ratio, count, rng)
    outputs = _lengths(shape.output_len, shape.range_ratio, count, rng)
    prompts = [prefix + rng.integers(_FIRST_ID, vocab, n).tolist() for n in inputs]
    if tokenizer is None:
        made: list[tuple[str | list[int], int]] = [(ids, len(ids)) for ids in prompts]
    else:
        made = _texts_of(prompts, tokenizer, rng)
    return [Sample(*own, output_len) for own, output_len in zip(made, outputs, strict=True)]


def load_tokenizer(folder: str | None) -> Tokenizer | None:
    """The `tokenizer.json` in a folder; None without a folder or without the file."""
    path = Path(folder or "") / "tokenizer.json"
    if not folder or not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _lengths(mean: int, ratio: float, count: int, rng: np.random.Generator) -> list[int]:
    low, high = int(mean * (1 - ratio)), -int(-mean * (1 + ratio) // 1)
    return [int(n) for n in rng.integers(max(1, low), max(1, high), count, endpoint=True)]


def _texts_of(
    prompts: list[list[int]], tokenizer: Tokenizer, rng: np.random.Generator
) -> list[tuple[str | list[int], int]]:
    """Texts that have as many tokens as the prompts, or nearly, and how many they have.

    Decoding random tokens and encoding the text again gives other tokens, often more or fewer.
    """
    wanted, ids = [len(own) for own in prompts], list(prompts)
    vocab = tokenizer.get_vocab_size()
    for _ in range(_ATTEMPTS):
        texts = tokenizer.decode_batch(ids, skip_special_tokens=False)
        ids = [own.ids for own in tokenizer.encode_batch(texts, add_special_tokens=False)]
        lengths = [len(own) for own in ids]
        if lengths == wanted:
            break
        for place, length in enumerate(wanted):
            missing = max(0, length - len(ids[place]))
            ids[place] = ids[place][:length] + rng.integers(_FIRST_ID, vocab, missing).tolist()
    return list(zip(texts, lengths, strict=True))
