"""Everything that is decided before the engine starts: the model's files and all settings."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.sentence_transformers import limit_length, read_pooling_files
from pagemill.checkpoint.source import resolve_model
from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts
from pagemill.config.generation import default_params
from pagemill.config.model import ModelConfig
from pagemill.config.pooling import resolve_pooling
from pagemill.config.resolve import remarks, resolve
from pagemill.errors import ConfigError

HASH_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run, and how. `chat_template` replaces the model's own unless None."""

    checkpoint: Checkpoint
    model: ModelConfig
    config: EngineConfig
    chat_template: str | None
    default_params: dict[str, Any]
    summary: str
    remarks: list[str]


def prepare(args: ServeArgs, device: DeviceFacts) -> Plan:
    """Find the model (downloading it if it must be) and resolve the settings for `device`.

    Every call draws a new key for the prefix cache's hashes. Raises ModelLoadError or ConfigError.
    """
    source = resolve_model(
        args.model,
        revision=args.revision,
        offline=args.offline,
        cache_dir=Path(args.cache_dir) if args.cache_dir else None,
    )
    checkpoint = open_checkpoint(source.path)
    files = read_pooling_files(checkpoint.path)
    model = limit_length(checkpoint.model_config(), files)
    path, key = str(checkpoint.path), secrets.token_hex(HASH_KEY_BYTES)
    pooling = resolve_pooling(args.runner, model, files)
    config = resolve(
        args, model, device, path=path, name=source.name, hash_key=key, pooling=pooling
    )
    summary = (
        f"{config.served_model_names[0]}: {model.architecture}, {config.dtype}, on {device.name}"
    )
    own_defaults = args.generation_config == "auto"
    return Plan(
        checkpoint=checkpoint,
        model=model,
        config=config,
        chat_template=_read_template(args.chat_template),
        default_params=default_params(checkpoint.generation_config()) if own_defaults else {},
        summary=summary,
        remarks=remarks(config, device, model),
    )


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path} cannot be read: {error}") from None
