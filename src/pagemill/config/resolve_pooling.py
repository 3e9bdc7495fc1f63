"""What pooling changes in the engine's settings."""

from __future__ import annotations

import msgspec

from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig
from pagemill.config.model import ModelConfig
from pagemill.config.pooling import PoolingConfig
from pagemill.errors import ConfigError

# A step of short texts must be large to keep a device busy; nobody waits for single tokens.
_MIN_STEP_TOKENS = 2048
_MIN_STEP_TEXTS = 256


def with_pooling(
    config: EngineConfig, args: ServeArgs, model: ModelConfig, pooling: PoolingConfig
) -> EngineConfig:
    """The settings for an engine that pools. Raises ConfigError for what only generation has."""
    if config.speculative != "none":
        raise ConfigError("--speculative is for models that generate text")
    if config.deterministic and model.encoder is not None:
        raise ConfigError("--deterministic is for decoders; this model is an encoder")
    seqs = args.max_num_seqs or max(config.max_num_seqs, _MIN_STEP_TEXTS)
    tokens = _step_tokens(config, args, seqs, pooling)
    config = msgspec.structs.replace(
        config,
        pooling=pooling,
        dtype=_dtype(config, args, model),
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        cuda_graphs=False,
        # A vector of all hidden states, or of the first, needs those that a cache would leave out.
        prefix_caching=config.prefix_caching and not pooling.whole_prompts,
        prefill_share=1.0 if pooling.whole_prompts else config.prefill_share,
    )
    if pooling.cached:
        return config
    # Nothing is kept between steps: one block of no bytes stands for a whole request.
    return msgspec.structs.replace(config, block_size=config.max_model_len)


def _step_tokens(config: EngineConfig, args: ServeArgs, seqs: int, pooling: PoolingConfig) -> int:
    asked = args.max_num_batched_tokens
    if asked is None:
        least = max(_MIN_STEP_TOKENS, seqs)
        least = max(least, config.max_model_len) if pooling.whole_prompts else least
        return max(config.max_num_batched_tokens, least)
    if pooling.whole_prompts and asked < config.max_model_len:
        raise ConfigError(
            f"--max-num-batched-tokens {asked} is less than the context of {config.max_model_len} "
            "tokens, but this model computes a text in one step; raise it, or lower --max-model-len"
        )
    return asked


def _dtype(config: EngineConfig, args: ServeArgs, model: ModelConfig) -> str:
    """Embeddings of float32 checkpoints lose less in float16 than in bfloat16."""
    if args.dtype == "auto" and config.device == "cuda" and model.dtype == "float32":
        return "float16"
    return config.dtype
