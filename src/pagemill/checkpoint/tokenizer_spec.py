"""The tokenizer of a checkpoint: from tokenizer.json, or rebuilt from a GGUF file's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagemill.checkpoint.base import Checkpoint, TokenizerFiles
from pagemill.errors import ModelLoadError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A tokenizer and what its configuration says about it.

    `add_bos` and `add_eos` tell what encoding with special tokens does; the tokenizer does it by
    itself. Tokens the model does not have are None.
    """

    tokenizer: Tokenizer
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    special_ids: frozenset[int]
    add_bos: bool
    add_eos: bool

    @property
    def bos_token_id(self) -> int | None:
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self._id(self.eos_token)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The tokens by role, as chat templates name them; roles without a token are left out."""
        return {role: token for role in _ROLES if (token := getattr(self, role)) is not None}

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.tokenizer.token_to_id(token)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The bare tokenizer. Raises ModelLoadError."""
    return load_tokenizer_info(checkpoint).tokenizer


def load_tokenizer_info(checkpoint: Checkpoint) -> TokenizerInfo:
    """The tokenizer with its special tokens. Raises ModelLoadError."""
    files = checkpoint.tokenizer()
    if files.gguf is not None:
        from pagemill.checkpoint.gguf_tokenizer import build_tokenizer, gguf_special_tokens

        tokenizer = build_tokenizer(files.gguf, files.origin)
        return _describe(tokenizer, gguf_special_tokens(files.gguf, files.origin))
    return _from_json(files)


def _describe(tokenizer: Tokenizer, roles: Mapping[str, str | None]) -> TokenizerInfo:
    added = tokenizer.get_added_tokens_decoder()
    around = tokenizer.encode("", add_special_tokens=True).tokens
    return TokenizerInfo(
        tokenizer=tokenizer,
        bos_token=roles.get("bos_token"),
        eos_token=roles.get("eos_token"),
        unk_token=roles.get("unk_token"),
        pad_token=roles.get("pad_token"),
        special_ids=frozenset(i for i, token in added.items() if token.special),
        add_bos=bool(around) and around[0] == roles.get("bos_token"),
        add_eos=bool(around) and around[-1] == roles.get("eos_token"),
    )


def _from_json(files: TokenizerFiles) -> TokenizerInfo:
    tokenizer = _read_tokenizer(files.json_path or files.origin)
    # A length limit or padding saved with the file must not change prompts behind a caller's back.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    roles = {role: _token_text(files.config.get(role)) for role in _ROLES}
    _add_configured_tokens(tokenizer, files.config, roles)
    if tokenizer.post_processor is None:
        add_bos = files.config.get("add_bos_token") is True
        add_eos = files.config.get("add_eos_token") is True
        surround(
            tokenizer,
            roles["bos_token"] if add_bos else None,
            roles["eos_token"] if add_eos else None,
        )
    return _describe(tokenizer, roles)


def surround(tokenizer: Tokenizer, before: str | None, after: str | None) -> None:
    """Make encoding with special tokens put `before` and `after` around a text."""
    from tokenizers.processors import TemplateProcessing

    known = [(token, tokenizer.token_to_id(token)) for token in (before, after) if token]
    if not known or any(token_id is None for _, token_id in known):
        return
    single = [*([before] if before else []), "$A", *([after] if after else [])]
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=known)


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ModelLoadError(f"{path}: not a usable tokenizer ({error})") from None


def _add_configured_tokens(
    tokenizer: Tokenizer, config: Mapping[str, Any], roles: Mapping[str, str | None]
) -> None:
    """Add what tokenizer_config.json lists and tokenizer.json does not know as added tokens."""
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    entries = listed.values() if isinstance(listed, dict) else ()
    wanted = [token for entry in entries if (token := _added_token(entry)) is not None]
    in_vocabulary = [t for t in roles.values() if t and tokenizer.token_to_id(t) is not None]
    wanted += [AddedToken(text, normalized=False, special=True) for text in in_vocabulary]
    for token in wanted:
        if token.content not in known:
            known.add(token.content)
            add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            add([token])


def _added_token(entry: Any) -> AddedToken | None:
    from tokenizers import AddedToken

    content = _token_text(entry)
    if content is None or not isinstance(entry, dict):
        return None
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(content, **{flag: bool(entry.get(flag, False)) for flag in flags})


def _token_text(value: Any) -> str | None:
    """A token as configuration files write it: text, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
