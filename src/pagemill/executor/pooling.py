"""What the executor puts together differently for a model that pools."""

from __future__ import annotations

from dataclasses import replace

from pagemill.attention.base import AttentionBackend, LayerCache, PackedAttention
from pagemill.attention.packed import GroupedAttention
from pagemill.config.engine import EngineConfig
from pagemill.config.model import ModelConfig
from pagemill.device.base import Device
from pagemill.layers.base import BuildContext
from pagemill.models.base import PooledModel
from pagemill.models.loader import Builder
from pagemill.models.registry import build_model, build_pooled_model
from pagemill.runner.pooling_runner import PoolingRunner


def select_builder(config: EngineConfig) -> Builder:
    """What makes the empty model."""
    return build_model if config.pooling is None else _build_without_vocabulary


def build_pooling_runner(
    config: EngineConfig,
    model: PooledModel,
    device: Device,
    attention: AttentionBackend,
    cache: list[LayerCache],
) -> PoolingRunner:
    """With attention over the pages of `cache`, or without a cache for an encoder."""
    return PoolingRunner(config, model, device, attention, _packed(config), cache)


def attention_name(config: EngineConfig, attention: AttentionBackend) -> str:
    """The backend that the model will use."""
    packed = _packed(config)
    return attention.name if packed is None else packed.name


def _build_without_vocabulary(config: ModelConfig, ctx: BuildContext) -> PooledModel:
    head = "none" if config.head == "vocabulary" else config.head
    return build_pooled_model(replace(config, head=head), ctx)


def _packed(config: EngineConfig) -> PackedAttention | None:
    """For models that keep no cache."""
    if config.pooling is None or config.pooling.cached:
        return None
    return GroupedAttention()
