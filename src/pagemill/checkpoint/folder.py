"""A model folder in the Hugging Face layout: config.json, tokenizer.json, safetensors files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from pagemill.checkpoint.base import ChatTemplates, TokenizerFiles
from pagemill.checkpoint.hf_config import model_config_from_hf
from pagemill.checkpoint.json_file import read_json_object, read_json_object_if_present
from pagemill.checkpoint.safetensors_header import tensor_sizes
from pagemill.config.model import ModelConfig
from pagemill.errors import ModelLoadError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class FolderCheckpoint:
    """Implements `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    def model_config(self) -> ModelConfig:
        config = self._path / "config.json"
        return model_config_from_hf(read_json_object(config), str(config))

    def generation_config(self) -> dict[str, Any]:
        return read_json_object_if_present(self._path / "generation_config.json")

    def tokenizer(self) -> TokenizerFiles:
        json_path = self._path / "tokenizer.json"
        if not json_path.is_file():
            raise ModelLoadError(
                f"{self._path} has no tokenizer.json; convert its tokenizer with transformers "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        special = read_json_object_if_present(self._path / "special_tokens_map.json")
        return TokenizerFiles(self._path, json_path, special | self._tokenizer_config)

    def chat_template(self) -> ChatTemplates:
        """From the .jinja files of newer models, else from tokenizer_config.json."""
        named = {
            file.stem: _read_text(file)
            for file in sorted((self._path / "additional_chat_templates").glob("*.jinja"))
        }
        single = self._path / "chat_template.jinja"
        if single.is_file():
            named["default"] = _read_text(single)
        if not named:
            return self._configured_template()
        return named["default"] if list(named) == ["default"] else named

    def weight_bytes(self) -> int:
        return sum(sum(tensor_sizes(file).values()) for file in self.weight_files())

    def weight_files(self) -> list[Path]:
        index = self._path / _INDEX
        if index.is_file():
            return self._shards(index)
        if (self._path / _SINGLE).is_file():
            return [self._path / _SINGLE]
        files = sorted(self._path.glob("*.safetensors"))
        if not files:
            raise self._no_weights()
        return files

    def expected_tensors(self) -> frozenset[str]:
        """The names that the index of a sharded model lists; empty where there is no index."""
        index = self._path / _INDEX
        return frozenset(self._weight_map(index)) if index.is_file() else frozenset()

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        return read_json_object_if_present(self._path / "tokenizer_config.json")

    def _configured_template(self) -> ChatTemplates:
        value = self._tokenizer_config.get("chat_template")
        if value is None or isinstance(value, str):
            return value
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in value}
        except (TypeError, KeyError):
            raise ModelLoadError(
                f"{self._path / 'tokenizer_config.json'}: chat_template must be text or a list of "
                "{name, template}"
            ) from None

    def _shards(self, index: Path) -> list[Path]:
        names = sorted(set(self._weight_map(index).values()))
        if any(Path(name).name != name for name in names):
            raise ModelLoadError(f"{index}: weight files must lie in the same folder")
        missing = [name for name in names if not (self._path / name).is_file()]
        if missing:
            shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
            raise ModelLoadError(
                f"{self._path} lacks {len(missing)} of {len(names)} weight files: {shown}; "
                "download the model again"
            )
        return [self._path / name for name in names]

    def _weight_map(self, index: Path) -> dict[str, str]:
        found = read_json_object(index).get("weight_map")
        if isinstance(found, dict) and found and all(isinstance(v, str) for v in found.values()):
            return found
        raise ModelLoadError(f"{index}: it has no usable weight_map")

    def _no_weights(self) -> ModelLoadError:
        if any(self._path.glob("*.bin")) or any(self._path.glob("*.pth")):
            return ModelLoadError(
                f"{self._path} has only pickled weights, which are not loaded because they can run "
                "code; convert them to safetensors first"
            )
        return ModelLoadError(f"{self._path} has no .safetensors files; is the download complete?")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: cannot be read ({error})") from None
