"""From a checkpoint's architecture to the module that builds it, imported when it is needed."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from pagemill.checkpoint.hf_heads import decoder_name
from pagemill.config.model import ModelConfig
from pagemill.errors import ModelLoadError
from pagemill.layers.base import BuildContext
from pagemill.models.base import PooledModel
from pagemill.models.causal_lm import CausalLM

_MODULES = {
    "LlamaForCausalLM": "pagemill.models.llama",
    "MistralForCausalLM": "pagemill.models.llama",
    "Qwen2ForCausalLM": "pagemill.models.qwen2",
    "Qwen3ForCausalLM": "pagemill.models.qwen3",
    "Gemma3ForCausalLM": "pagemill.models.gemma3",
}
SUPPORTED_ARCHITECTURES = tuple(_MODULES)


def build_model(config: ModelConfig, ctx: BuildContext) -> CausalLM:
    """The model with empty weights. Raises ModelLoadError for an unknown architecture."""
    if config.architecture not in _MODULES:
        raise ModelLoadError(
            f"architecture {config.architecture!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    model: CausalLM = import_module(_MODULES[config.architecture]).build(config, ctx)
    return model


def build_pooled_model(config: ModelConfig, ctx: BuildContext) -> PooledModel:
    """The same for a model that pools: an encoder, or a decoder without its vocabulary."""
    if config.encoder is not None:
        from pagemill.models.encoder import build

        return build(config, ctx)
    from pagemill.models.pooled_decoder import PooledDecoder

    # A tied head has no tensors of its own, so dropping it costs nothing.
    name = decoder_name(config.architecture)
    generating = build_model(replace(config, architecture=name, tie_embeddings=True), ctx)
    return PooledDecoder(generating, config, ctx)
