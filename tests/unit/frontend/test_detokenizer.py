"""Text that arrives token by token equals the tokenizer's own decoding of all tokens."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagemill.errors import InvalidParams
from pagemill.frontend.detokenizer import ByteDetokenizer, StreamDetokenizer, make_detokenizer
from pagemill.frontend.tokenizer import Tokenizer
from unit.frontend.vocabularies import byte_level, sentencepiece, word_piece

BYTE_LEVEL = byte_level()
SENTENCEPIECE = sentencepiece()
WORD_PIECE = word_piece()
TEXT = "hello wörld 😀 stop\n\té"


def stream(tokenizer: Tokenizer, token_ids: list[int], *, skip: bool = False) -> list[str]:
    detokenizer = make_detokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.add([token_id]) for token_id in token_ids), detokenizer.flush()]


@settings(max_examples=300, deadline=None)
@given(
    token_ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=20), skip=st.booleans()
)
def test_any_byte_level_tokens(token_ids: list[int], skip: bool) -> None:
    text = "".join(stream(BYTE_LEVEL, token_ids, skip=skip))
    assert text == BYTE_LEVEL.decode(token_ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=12))
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_streams_whole_characters(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = {byte_level: BYTE_LEVEL, sentencepiece: SENTENCEPIECE}[make]
    pieces = stream(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    whole = "".join(pieces)
    expected = text if make is byte_level or not text else " " + text.replace("▁", " ")
    assert whole == expected
    assert pieces[-1] == ""
    assert "�" not in whole or "�" in text


def test_a_character_comes_with_its_last_byte() -> None:
    token_ids = SENTENCEPIECE.encode("😀", add_special_tokens=False)
    assert stream(SENTENCEPIECE, token_ids) == [" ", "", "", "", "😀", ""]


def test_an_unfinished_character_comes_at_the_end() -> None:
    token_ids = BYTE_LEVEL.encode("a😀", add_special_tokens=False)[:-1]
    *pieces, last = stream(BYTE_LEVEL, token_ids)
    assert "".join(pieces) == "a"
    assert last == "�"


def test_added_tokens_are_their_content() -> None:
    token_ids = BYTE_LEVEL.encode("a<|start of turn|><tool call>é")
    assert "".join(stream(BYTE_LEVEL, token_ids)) == "a<|start of turn|><tool call>é"
    assert "".join(stream(BYTE_LEVEL, token_ids, skip=True)) == "a<tool call>é"


def test_many_tokens_at_once_are_the_same() -> None:
    token_ids = BYTE_LEVEL.encode(TEXT)
    detokenizer = make_detokenizer(BYTE_LEVEL, skip_special_tokens=True)
    assert detokenizer.add(token_ids) + detokenizer.flush() == TEXT


def test_other_decoders_are_streamed_too() -> None:
    token_ids = WORD_PIECE.encode("hello worlds stop", add_special_tokens=False)
    assert isinstance(make_detokenizer(WORD_PIECE, skip_special_tokens=True), StreamDetokenizer)
    assert isinstance(make_detokenizer(BYTE_LEVEL, skip_special_tokens=True), ByteDetokenizer)
    assert "".join(stream(WORD_PIECE, token_ids, skip=True)) == "hello worlds stop"


def test_token_text_and_bytes() -> None:
    emoji = BYTE_LEVEL.encode("😀")
    assert b"".join(BYTE_LEVEL.token_bytes[i] for i in emoji) == "😀".encode()
    assert BYTE_LEVEL.token_text(emoji[0]) == "�"
    assert SENTENCEPIECE.token_text(SENTENCEPIECE.backend.token_to_id("▁h")) == " h"
    assert BYTE_LEVEL.token_bytes[10**6] == b""


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidParams, match="lone surrogate at character 1") as caught:
        BYTE_LEVEL.encode("a\ud800", param="messages")
    assert caught.value.param == "messages"
