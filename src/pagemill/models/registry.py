"""From a checkpoint's architecture to the module that builds it, imported when it is needed."""

from __future__ import annotations

from importlib import import_module

from pagemill.config.model import ModelConfig
from pagemill.errors import ModelLoadError
from pagemill.layers.base import BuildContext
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
