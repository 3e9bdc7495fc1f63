"""A model in one GGUF file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from pagemill.checkpoint.base import ChatTemplates, TokenizerFiles
from pagemill.checkpoint.gguf import GGUFFile
from pagemill.checkpoint.gguf_config import gguf_architecture, hf_config_from_gguf
from pagemill.checkpoint.hf_config import model_config_from_hf
from pagemill.config.model import ModelConfig

_TEMPLATE = "tokenizer.chat_template"


class GGUFCheckpoint:
    """Implements `Checkpoint`. The file is mapped when something is first asked of it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    @cached_property
    def file(self) -> GGUFFile:
        file = GGUFFile(self._path)
        gguf_architecture(file)
        return file

    def model_config(self) -> ModelConfig:
        return model_config_from_hf(hf_config_from_gguf(self.file), str(self._path))

    def generation_config(self) -> dict[str, Any]:
        return {}

    def tokenizer(self) -> TokenizerFiles:
        return TokenizerFiles(origin=self._path, gguf=self.file.metadata)

    def chat_template(self) -> ChatTemplates:
        metadata = self.file.metadata
        default = metadata.get(_TEMPLATE)
        named = {
            key.removeprefix(f"{_TEMPLATE}."): value
            for key, value in metadata.items()
            if key.startswith(f"{_TEMPLATE}.") and isinstance(value, str)
        }
        if not isinstance(default, str):
            return named or None
        return {"default": default, **named} if named else default

    def weight_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.file.tensors.values())

    def weight_files(self) -> list[Path]:
        return [self._path]
