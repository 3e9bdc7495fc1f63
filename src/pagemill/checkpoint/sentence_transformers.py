"""The files that sentence-transformers puts beside a model: how its hidden states are pooled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pagemill.checkpoint.json_file import read_json_object, read_json_object_if_present
from pagemill.config.model import ModelConfig
from pagemill.config.pooling import Method, PoolingFiles
from pagemill.errors import ModelLoadError

_METHODS: dict[str, Method] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_SHORT_METHODS: dict[str, Method] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def read_pooling_files(path: Path) -> PoolingFiles | None:
    """What modules.json of a model folder says; None where there is none, or no pooling in it.

    Raises ModelLoadError for modules and methods that are not supported.
    """
    listing = path / "modules.json"
    if not listing.is_file():
        return None
    modules = _modules(listing)
    if "Pooling" not in modules:
        return None
    unknown = next((name for name in modules if name not in _KNOWN_MODULES), None)
    if unknown is not None:
        raise ModelLoadError(
            f"{listing}: the module {unknown} is not supported; "
            f"supported are {', '.join(_KNOWN_MODULES)}"
        )
    lengths = read_json_object_if_present(path / "sentence_bert_config.json")
    length = lengths.get("max_seq_length")
    return PoolingFiles(
        method=_method(path / modules["Pooling"] / "config.json"),
        normalize="Normalize" in modules,
        max_length=length if type(length) is int and length > 0 else 0,
    )


def limit_length(model: ModelConfig, files: PoolingFiles | None) -> ModelConfig:
    """The model with the context length that its files allow, which may be below its own."""
    if files is None or not files.max_length:
        return model
    return dataclasses.replace(model, max_position=min(model.max_position, files.max_length))


def _modules(listing: Path) -> dict[str, str]:
    """Folders of the modules by their class names."""
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
        found = {str(e["type"]).rpartition(".")[2]: str(e["path"]) for e in entries}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{listing}: cannot be read as a list of modules ({error})") from None
    if any(Path(folder).is_absolute() or ".." in folder for folder in found.values()):
        raise ModelLoadError(f"{listing}: modules must lie in the model's folder")
    return found


def _method(path: Path) -> Method:
    config = read_json_object(path)
    chosen = [name for name in config if name.startswith("pooling_mode_") and config[name] is True]
    if len(chosen) == 1 and chosen[0] in _METHODS:
        return _METHODS[chosen[0]]
    short: Any = config.get("pooling_mode")
    if not chosen and short in _SHORT_METHODS:
        return _SHORT_METHODS[short]
    raise ModelLoadError(
        f"{path}: pooling by {', '.join(chosen) or short} is not supported; "
        "supported are cls, mean and last token"
    )
