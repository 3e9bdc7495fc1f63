"""From what the user asked for to what the engine runs: a pure function.

Every choice that depends on the model or the device is made here and nowhere else.
"""

from __future__ import annotations

import math
import sys

from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts
from pagemill.config.model import ModelConfig, has_even_keys, num_weights
from pagemill.config.pooling import PoolingConfig
from pagemill.config.quantization import checkpoint_scheme
from pagemill.config.resolve_pooling import with_pooling
from pagemill.errors import ConfigError

GIB = 2**30
CPU_KV_CACHE_BYTES = 4 * GIB
CUDA_MEMORY_UTILIZATION = 0.9
MAX_SPECULATIVE_TOKENS = 16
MAX_FRONTENDS = 64
MAX_KEEP_ALIVE = 3600
MAX_AUTO_FRONTENDS = 8
PREFILL_SHARE = 0.5  # for long prompts while others wait, so that these start soon
# Tokens times weights of a GPU's step. Each pair costs 2 FLOP, so at the 700 TFLOP/s that products
# of an H100 or H200 reach in bfloat16 a full step takes about 0.2 s. All rows of a step wait for
# it: with more, a large model's first tokens come late, and no more of them a second.
CUDA_STEP_WORK = 6.4e13
CUDA_MIN_STEP_TOKENS = 2048  # fewer leave products too small to keep a GPU busy
FP8_CAPABILITY = (8, 9)
DTYPES = ("bfloat16", "float16", "float32")


def resolve(
    args: ServeArgs,
    model: ModelConfig,
    device: DeviceFacts,
    *,
    path: str = "",
    name: str = "",
    hash_key: str = "",
    pooling: PoolingConfig | None = None,
) -> EngineConfig:
    """The engine's settings for this model on this device.

    `path` is where the model's files are and `name` what it is called, both `args.model` when
    empty; `hash_key` keys the prefix cache's hashes. `pooling` is None for generation. Raises
    ConfigError, naming the flag and what to change.
    """
    _check(args)
    max_num_seqs, max_num_batched_tokens = _batch_size(args, model, device)
    quantization = _quantization(args, model, device, generates=pooling is None)
    config = EngineConfig(
        model=path or args.model or "",
        served_model_names=args.served_model_name or (name or args.model or "model",),
        device=device.type,
        dtype=_dtype(args.dtype, model.dtype, quantization, device),
        max_model_len=_max_model_len(args.max_model_len, model),
        max_model_len_fixed=args.max_model_len is not None,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        memory_utilization=args.memory_utilization or CUDA_MEMORY_UTILIZATION,
        kv_cache_bytes=_kv_cache_bytes(args, device),
        kv_cache_dtype=_kv_cache_dtype(args, model, device, quantization),
        quantization=quantization,
        load_format=args.load_format,
        prefix_caching=args.prefix_cache,
        overlap=args.overlap,
        scheduling_policy=args.scheduling_policy,
        max_num_queued_reqs=args.max_num_queued_reqs,
        max_num_queued_tokens=args.max_num_queued_tokens or 0,
        prefill_share=PREFILL_SHARE,
        speculative=args.speculative,
        num_speculative_tokens=0 if args.speculative == "none" else args.num_speculative_tokens,
        deterministic=args.deterministic,
        seed=args.seed,
        num_threads=args.threads or device.num_threads,
        hash_key=hash_key,
    )
    return config if pooling is None else with_pooling(config, args, model, pooling)


def frontend_workers(asked: str, device: DeviceFacts) -> int:
    """How many processes answer HTTP. Raises ConfigError.

    On a CPU every core is the model's; beside a GPU a quarter of the cores keeps up with it.
    """
    if asked == "auto":
        if device.type == "cpu" or not sys.platform.startswith("linux"):
            return 1
        return max(1, min(device.num_threads // 4, MAX_AUTO_FRONTENDS))
    if not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= MAX_FRONTENDS):
        raise ConfigError(
            f"--frontend-workers must be auto or from 1 to {MAX_FRONTENDS}, got {asked!r}"
        )
    if int(asked) > 1 and not sys.platform.startswith("linux"):
        raise ConfigError("--frontend-workers above 1 needs Linux, which shares out connections")
    return int(asked)


def remarks(config: EngineConfig, device: DeviceFacts, model: ModelConfig) -> list[str]:
    """What the user should know about the resolved settings, one line each."""
    return _fp8_remarks(config, device, model) + _dtype_remarks(config, device)


def _fp8_remarks(config: EngineConfig, device: DeviceFacts, model: ModelConfig) -> list[str]:
    if not checkpoint_scheme(model.quantization) or config.quantization.startswith("fp8"):
        return []
    if has_fp8(device) and not config.deterministic:
        return []  # asked for
    form = config.dtype if config.quantization == "none" else config.quantization
    why = "--deterministic has" if config.deterministic else "this device has"
    return [f"the model's float8 weights become {form} at load: {why} no float8 products"]


def _dtype_remarks(config: EngineConfig, device: DeviceFacts) -> list[str]:
    if config.device == "cpu" and config.dtype == "float16":
        return ["float16 is slow on CPUs; float32 or bfloat16 is faster"]
    computes = device.bfloat16 or (device.native_kernels and not config.deterministic)
    if config.device == "cpu" and config.dtype == "bfloat16" and not computes:
        return ["this CPU has no bfloat16 instructions; float32 is faster"]
    return []


def _check(args: ServeArgs) -> None:
    """Refuse numbers that can never work."""
    positive = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes")
    for name in (*positive, "threads", "max_num_queued_reqs", "max_num_queued_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 1 <= args.num_speculative_tokens <= MAX_SPECULATIVE_TOKENS:
        raise ConfigError(
            f"--num-speculative-tokens must be from 1 to {MAX_SPECULATIVE_TOKENS}, "
            f"got {args.num_speculative_tokens}"
        )
    if not 0 <= args.sse_keep_alive <= MAX_KEEP_ALIVE:
        raise ConfigError(
            f"--sse-keep-alive must be from 0 to {MAX_KEEP_ALIVE} seconds, "
            f"got {args.sse_keep_alive:g}"
        )
    share = args.memory_utilization
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"--memory-utilization must be above 0 and at most 1, got {share:g}")


def _dtype(asked: str, checkpoint: str, quantization: str, device: DeviceFacts) -> str:
    """CPUs compute in bfloat16 only where it is fast, and never beside rounded weights, whose
    kernels sum in float32; CUDA in the checkpoint's type.
    """
    if asked != "auto":
        if asked == "bfloat16" and device.type == "cuda" and not device.bfloat16:
            raise ConfigError(f"{device.name} has no bfloat16; use --dtype float16")
        return asked
    if device.type == "cpu":
        fast = device.bfloat16 and quantization == "none"
        return "bfloat16" if fast and checkpoint != "float32" else "float32"
    if not device.bfloat16:
        return "float16"
    return checkpoint if checkpoint in ("bfloat16", "float16") else "bfloat16"


def _quantization(
    args: ServeArgs, model: ModelConfig, device: DeviceFacts, *, generates: bool
) -> str:
    """On CPUs int8 is the fastest that keeps perplexity within 1 %; who names a type wants that,
    and vectors are compared with others that were made elsewhere. A float8 checkpoint is computed
    as it is where the device can and nothing else is asked for, else it becomes that at load.
    """
    asked = args.quantization
    stored = checkpoint_scheme(model.quantization)
    computes = has_fp8(device) and not args.deterministic
    if stored and computes and asked in ("auto", "fp8"):
        return stored
    if asked == "fp8":
        _require_fp8("--quantization", device)
        if args.deterministic:
            raise ConfigError("--quantization fp8 has no kernels for --deterministic")
        return asked
    if asked == "auto":
        rounds = device.type == "cpu" and device.native_kernels and args.dtype == "auto"
        return "int8" if rounds and generates else "none"
    if asked != "none" and device.type != "cpu":
        raise ConfigError(f"--quantization {asked} has kernels for CPUs only")
    return asked


def _kv_cache_dtype(
    args: ServeArgs, model: ModelConfig, device: DeviceFacts, quantization: str
) -> str:
    """On a CPU a step of many rows reads little else, so rounded weights have a rounded cache."""
    if args.kv_cache_dtype == "auto":
        rounds = device.type == "cpu" and device.native_kernels and quantization in ("int8", "int4")
        return "int8" if rounds and has_even_keys(model) else "model"
    if args.kv_cache_dtype == "model":
        return "model"
    if args.kv_cache_dtype == "int8":
        if device.type != "cpu":
            raise ConfigError("--kv-cache-dtype int8 has kernels for CPUs only; GPUs have fp8")
        return args.kv_cache_dtype
    _require_fp8("--kv-cache-dtype", device)
    return args.kv_cache_dtype


def _require_fp8(flag: str, device: DeviceFacts) -> None:
    if not has_fp8(device):
        raise ConfigError(
            f"{flag} fp8 needs a GPU of compute capability 8.9 or later; {device.name} is none"
        )


def has_fp8(device: DeviceFacts) -> bool:
    """Whether the device multiplies float8 numbers."""
    return device.type == "cuda" and device.capability >= FP8_CAPABILITY


def _max_model_len(asked: int | None, model: ModelConfig) -> int:
    if asked is not None and asked > model.max_position:
        raise ConfigError(
            f"--max-model-len {asked} is more than the {model.max_position} tokens the model was "
            "trained for; lower it, or leave it out"
        )
    return asked or model.max_position


def _batch_size(args: ServeArgs, model: ModelConfig, device: DeviceFacts) -> tuple[int, int]:
    """Most requests and most tokens of a step: what keeps the device busy without long steps."""
    if device.type == "cpu":
        seqs, tokens = 64, 512
    elif device.total_memory < 70 * GIB:
        seqs, tokens = 256, CUDA_MIN_STEP_TOKENS
    elif device.total_memory < 130 * GIB:
        seqs, tokens = 1024, min(8192, _cuda_step_tokens(model))
    else:
        seqs, tokens = 1024, min(16384, _cuda_step_tokens(model))
    tokens = args.max_num_batched_tokens or max(tokens, args.max_num_seqs or 0)
    return args.max_num_seqs or min(seqs, tokens), tokens


def _cuda_step_tokens(model: ModelConfig) -> int:
    """The power of two next to `CUDA_STEP_WORK`'s tokens; looking up an embedding is no work."""
    linear, embedding = num_weights(model)
    tokens = CUDA_STEP_WORK / (linear + embedding * model.tie_embeddings)
    return 1 << round(math.log2(max(CUDA_MIN_STEP_TOKENS, tokens)))


def _kv_cache_bytes(args: ServeArgs, device: DeviceFacts) -> int:
    """On a CPU a share of all memory would starve other programs, so the default is a size."""
    if args.kv_cache_bytes is not None:
        return args.kv_cache_bytes
    if device.type == "cpu" and args.memory_utilization is None:
        return min(CPU_KV_CACHE_BYTES, device.total_memory // 4)
    return 0
