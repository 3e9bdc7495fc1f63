"""Prompts for filling in the middle (Bavarian et al., 2022), in the form a model has learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pagemill.errors import InvalidParams, WrongModel
from pagemill.frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class InfillFormat:
    """The marks of a family of models, and whether the suffix comes first."""

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False


# In the order in which a vocabulary is searched: each family's marks are its own.
FORMATS = (
    InfillFormat("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen-coder, CodeGemma
    InfillFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    InfillFormat("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    InfillFormat(
        "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"
    ),  # DeepSeek
    InfillFormat("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
    InfillFormat("[PREFIX]", "[SUFFIX]", suffix_first=True),  # Codestral
    InfillFormat("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)


class Infill:
    """Finds the model's form by its vocabulary, when first asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, prefix: str, suffix: str) -> list[int]:
        """The prompt's tokens. Raises WrongModel, and InvalidParams for invalid Unicode."""
        found = self._format
        if found is None:
            raise WrongModel(
                "suffix: this model's vocabulary has no tokens for filling in the middle, so it "
                "cannot use a suffix; leave it out, or serve a model that was trained for it",
                param="suffix",
            )
        before = self._encode(prefix, "prompt")
        after = self._encode(suffix, "suffix")
        if found.suffix_first:
            body = [self._id(found.suffix), *after, self._id(found.prefix), *before]
        else:
            body = [self._id(found.prefix), *before, self._id(found.suffix), *after]
        middle = [self._id(found.middle)] if found.middle else []
        return [*self._begin, *body, *middle]

    @cached_property
    def _format(self) -> InfillFormat | None:
        def has(mark: str) -> bool:
            return not mark or self._tokenizer.backend.token_to_id(mark) is not None

        known = (f for f in FORMATS if has(f.prefix) and has(f.suffix) and has(f.middle))
        return next(known, None)

    @cached_property
    def _begin(self) -> list[int]:
        """What the tokenizer puts before any text."""
        bos = self._tokenizer.bos_token_id
        around = self._tokenizer.encode("")
        return around[:1] if bos is not None and around[:1] == [bos] else []

    def _encode(self, text: str, param: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, param=param)

    def _id(self, mark: str) -> int:
        token_id = self._tokenizer.backend.token_to_id(mark)
        if token_id is None:
            raise InvalidParams(f"the vocabulary lacks {mark}", param="suffix")
        return token_id
