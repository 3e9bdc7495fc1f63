"""The engine's settings after `resolve`: nothing is None, "auto" or mutable."""

from __future__ import annotations

import msgspec

from pagemill.config.pooling import PoolingConfig


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the engine process needs; travels to it as JSON.

    `max_model_len` is what was asked for or trained; the memory fit may lower it unless
    `max_model_len_fixed`. `kv_cache_bytes` 0 means: what `memory_utilization` leaves free.
    """

    model: str  # resolved path: a folder or a .gguf file
    served_model_names: tuple[str, ...]
    device: str  # "cpu" | "cuda"
    dtype: str  # "bfloat16" | "float16" | "float32"
    max_model_len: int
    max_model_len_fixed: bool = False
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    memory_utilization: float = 0.9
    kv_cache_bytes: int = 0
    kv_cache_dtype: str = "model"  # "model": as `dtype` | "int8" | "fp8"
    quantization: str = "none"  # "none" | "int8" | "fp8" | "fp8-block"
    load_format: str = "auto"  # "auto" | "dummy"
    attention_backend: str = "default"
    ops: str = "default"  # "default" | "reference"
    prefix_caching: bool = True
    overlap: bool = True
    scheduling_policy: str = "fcfs"
    max_num_queued_reqs: int = 1024
    max_num_queued_tokens: int = 0  # 0: any number
    prefill_share: float = 1.0  # of the token budget that one prompt may take in a step
    speculative: str = "none"  # "none" | "ngram"
    num_speculative_tokens: int = 0
    deterministic: bool = False
    cuda_graphs: bool = True
    seed: int = 0
    num_threads: int = 0  # 0 only until resolved
    hash_key: str = ""  # hex; keys the prefix cache's block hashes
    max_logprobs: int = 20
    pooling: PoolingConfig | None = None  # None: the model generates text
