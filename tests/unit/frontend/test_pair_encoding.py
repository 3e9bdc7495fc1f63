"""Texts and pairs cut to a length as transformers cuts them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from pagemill.errors import InvalidParams
from pagemill.frontend.renderer import ModelRenderer
from pagemill.frontend.tokenizer import Tokenizer


def backend() -> Backend:
    """Letters as words, in BERT's frame."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return made


RENDERER = ModelRenderer(Tokenizer(backend()), None, vocab_size=11, max_model_len=16)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(4, 16))
def test_pairs_are_cut_as_the_library_cuts_them(first: int, second: int, keep: int) -> None:
    pair = ("a " * first, "b " * second)
    reference = backend()
    reference.enable_truncation(keep, strategy="longest_first")
    expected = reference.encode(*pair)
    [prompt] = RENDERER.encode_texts_now([pair], keep=keep)
    assert prompt.token_ids == expected.ids
    assert prompt.second_text == expected.type_ids.index(1)


@given(st.integers(0, 20), st.integers(3, 16))
def test_texts_keep_their_frame(length: int, keep: int) -> None:
    [prompt] = RENDERER.encode_texts_now(["a " * length], keep=keep)
    assert (prompt.token_ids[0], prompt.token_ids[-1]) == (1, 2)
    assert len(prompt.token_ids) == min(length + 2, keep)
    assert prompt.second_text == 0 and prompt.is_checked


def test_minus_one_is_all_that_fits_and_without_it_nothing_is_cut() -> None:
    text = "a " * 40
    [cut] = asyncio.run(RENDERER.encode_texts([text], keep=-1))
    [whole] = asyncio.run(RENDERER.encode_texts([text]))
    assert (len(cut.token_ids), len(whole.token_ids)) == (16, 42)


@pytest.mark.parametrize("keep", [0, 17, -2])
def test_lengths_that_make_no_sense(keep: int) -> None:
    with pytest.raises(InvalidParams, match="from 1 to 16"):
        RENDERER.encode_texts_now(["a"], keep=keep)


def test_invalid_unicode_is_named() -> None:
    with pytest.raises(InvalidParams, match="documents has a lone surrogate"):
        RENDERER.encode_texts_now([("a", "\ud800")], param="documents")
