"""Texts and pairs of texts as encoders take them, cut to a length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagemill.errors import InvalidParams
from pagemill.frontend.outputs import Prompt

if TYPE_CHECKING:
    from tokenizers import Encoding


def checked_keep(keep: int | None, max_model_len: int) -> int | None:
    """`truncate_prompt_tokens` as a length; -1 is what the model takes. Raises InvalidParams."""
    if keep is None or 1 <= keep <= max_model_len:
        return keep
    if keep == -1:
        return max_model_len
    raise InvalidParams(
        f"truncate_prompt_tokens must be -1 or from 1 to {max_model_len}, got {keep}",
        param="truncate_prompt_tokens",
    )


def prompt_of(encoding: Encoding, text: str | None, keep: int | None, vocab_size: int) -> Prompt:
    """The tokens of one text or of a pair, at most `keep` of them."""
    ids, types = encoding.ids, encoding.type_ids
    if keep is not None and len(ids) > keep:
        kept = _kept(encoding.sequence_ids, keep)
        ids, types = [ids[i] for i in kept], [types[i] for i in kept]
    return Prompt(
        token_ids=ids,
        text=text,
        is_checked=max(ids, default=vocab_size) < vocab_size,
        second_text=types.index(1) if 1 in types else 0,
    )


def _kept(sequences: list[int | None], keep: int) -> list[int]:
    """The places of the tokens to keep: all special ones, and the beginning of each text."""
    room = max(0, keep - sequences.count(None))
    left = dict(enumerate(_shares(sequences.count(0), sequences.count(1), room)))
    kept = []
    for place, sequence in enumerate(sequences):
        if sequence is not None:
            if not left[sequence]:
                continue
            left[sequence] -= 1
        kept.append(place)
    return kept[:keep]


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Cut the longer text until both fit, as transformers' "longest first" does."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return (half, room - half) if first <= second else (room - half, half)
