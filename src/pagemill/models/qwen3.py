"""Qwen3: Llama's layers with RMSNorm of every query and key head before rotation."""

from __future__ import annotations

from functools import partial

from pagemill.config.model import ModelConfig
from pagemill.layers.base import BuildContext
from pagemill.models.causal_lm import CausalLM
from pagemill.models.llama import LlamaLayer


def build(config: ModelConfig, ctx: BuildContext) -> CausalLM:
    return CausalLM(config, ctx, partial(LlamaLayer, qk_norm=True))
