"""What the rest of PageMill asks of a model's files, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pagemill.config.model import ModelConfig

ChatTemplates = str | dict[str, str] | None


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Where the tokenizer comes from: a tokenizer.json, or the vocabulary inside a GGUF file.

    `config` holds the keys of tokenizer_config.json (with special_tokens_map.json beneath);
    `gguf` the metadata of a GGUF file, in which case `json_path` is None.
    """

    origin: Path
    json_path: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    gguf: Mapping[str, Any] | None = None


class Checkpoint(Protocol):
    """A model on disk. Every method raises ModelLoadError with one line when a file is unusable."""

    @property
    def path(self) -> Path: ...

    def model_config(self) -> ModelConfig: ...

    def generation_config(self) -> dict[str, Any]:
        """The keys of generation_config.json; empty where the model has none."""
        ...

    def tokenizer(self) -> TokenizerFiles: ...

    def chat_template(self) -> ChatTemplates:
        """One template, several by name, or None for a model without a chat format."""
        ...

    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored, read from headers only."""
        ...

    def weight_files(self) -> list[Path]:
        """The files that hold the weights, in loading order; all of them exist."""
        ...
