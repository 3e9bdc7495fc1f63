"""How byte-level BPE tokenizers cut text into words, by the name GGUF files give it.

A wrong choice changes few texts and is hard to notice, so names are mapped one by one and unknown
ones refused. The patterns are those of the models' published tokenizer.json files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """`pattern` None is GPT-2's own; `digits` cuts single digits first; `nfc` normalises first.

    `ignore_merges` takes a word that is a token as it is; `add_bos` is the default of the models
    that split so.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = Splitting()
_SINGLE_DIGITS = Splitting(digits=True)
_LLAMA = Splitting(_LLAMA3, ignore_merges=True, add_bos=True)
_QWEN = Splitting(_QWEN2, nfc=True)

_BY_NAME = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA,
    "llama3": _LLAMA,
    "llama-v3": _LLAMA,
    "falcon3": _LLAMA,
    "smaug-bpe": Splitting(_LLAMA3),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "tekken": Splitting(_TEKKEN, ignore_merges=True, add_bos=True),
}


def splitting(name: Any) -> Splitting | None:
    """The rules of that name, None for an unknown one."""
    return _BY_NAME.get(name) if isinstance(name, str) else None


def configure_splitting(tokenizer: Tokenizer, rules: Splitting) -> None:
    """Set the tokenizer's normaliser and pre-tokenizer."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps: list[Any] = []
    if rules.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.pattern), behavior="isolated"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
