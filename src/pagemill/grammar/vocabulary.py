"""What a grammar must know of a model's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pagemill.checkpoint.hf_config import merge_eos_ids
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.tokenizer_spec import load_tokenizer_info


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`size` is the model's, which padding may make larger than the tokenizer's.

    `special_tokens` are the texts that the tokenizer reads as one control token.
    """

    tokenizer_json: str
    size: int
    eos_token_ids: tuple[int, ...]
    special_tokens: frozenset[str] = frozenset()


def read_vocabulary(model: str | Path) -> Vocabulary:
    """The vocabulary of a model folder or GGUF file. Raises ModelLoadError."""
    checkpoint = open_checkpoint(model)
    config = checkpoint.model_config()
    info = load_tokenizer_info(checkpoint)
    eos = merge_eos_ids(config, checkpoint.generation_config(), info.eos_token_id)
    added = info.tokenizer.get_added_tokens_decoder().values()
    special = frozenset(token.content for token in added if token.special)
    return Vocabulary(info.tokenizer.to_str(), config.vocab_size, eos, special)
