"""Everything that is decided before the engine starts: the model's files and all settings."""

from __future__ import annotations

from dataclasses import dataclass

from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.source import resolve_model
from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import detect
from pagemill.config.model import ModelConfig
from pagemill.config.resolve import remarks, resolve


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be served, and how."""

    checkpoint: Checkpoint
    model: ModelConfig
    config: EngineConfig
    summary: str
    remarks: list[str]


def prepare(args: ServeArgs, *, hash_key: str) -> Plan:
    """Find the model (downloading it if it must be) and resolve the settings.

    Raises ModelLoadError or ConfigError.
    """
    device = detect(args.device)
    checkpoint = open_checkpoint(
        resolve_model(
            args.model, revision=args.revision, offline=args.offline, cache_dir=args.cache_dir
        )
    )
    model = checkpoint.model_config()
    config = resolve(args, model, device, path=str(checkpoint.path), hash_key=hash_key)
    summary = (
        f"{config.served_model_names[0]}: {model.architecture}, {config.dtype}, on {device.name}"
    )
    return Plan(checkpoint, model, config, summary, remarks(config, device))
