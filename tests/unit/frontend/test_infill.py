"""Prompts for filling in the middle, by the marks in a vocabulary."""

from __future__ import annotations

import pytest

from pagemill.errors import WrongModel
from pagemill.frontend.infill import FORMATS, Infill, InfillFormat
from unit.frontend.vocabularies import byte_level


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.prefix)
def test_every_form_puts_the_parts_in_its_order(form: InfillFormat) -> None:
    tokenizer = byte_level()
    marks = [mark for mark in (form.prefix, form.suffix, form.middle) if mark]
    tokenizer.backend.add_special_tokens(marks)
    prompt = Infill(tokenizer).encode("head", "tail")
    expected = f"{form.prefix}head{form.suffix}tail{form.middle}"
    if form.suffix_first:
        expected = f"{form.suffix}tail{form.prefix}head"
    assert tokenizer.decode(prompt) == expected


def test_qwen_coder_and_codestral_read_as_their_authors_write_them() -> None:
    qwen = byte_level()
    qwen.backend.add_special_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    text = qwen.decode(Infill(qwen).encode("a", "b"))
    assert text == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    codestral = byte_level()
    codestral.backend.add_special_tokens(["[PREFIX]", "[SUFFIX]"])
    assert codestral.decode(Infill(codestral).encode("a", "b")) == "[SUFFIX]b[PREFIX]a"


def test_a_model_without_the_marks_says_why() -> None:
    with pytest.raises(WrongModel, match="no tokens for filling in the middle"):
        Infill(byte_level()).encode("a", "b")
