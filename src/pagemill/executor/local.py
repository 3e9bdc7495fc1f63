"""The executor of one process and one device, and how it is put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pagemill.attention.base import AttentionBackend, FusedAttention
from pagemill.attention.deterministic import make_deterministic
from pagemill.attention.select import select_attention
from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.read_ahead import Allocate
from pagemill.checkpoint.weights import iterate_weights
from pagemill.config.engine import EngineConfig
from pagemill.config.model import ModelConfig
from pagemill.config.quantization import checkpoint_scheme
from pagemill.device.base import Device
from pagemill.device.select import select_device
from pagemill.engine.messages import EngineInfo
from pagemill.errors import ModelLoadError, PageMillError
from pagemill.executor.base import PendingResult, Runner
from pagemill.executor.cache import CachePlan
from pagemill.executor.phases import Phases
from pagemill.executor.pooling import attention_name, build_pooling_runner, select_builder
from pagemill.executor.sleeping import Recipe, Resident
from pagemill.layers.base import BuildContext
from pagemill.models.base import AnyModel, PooledModel
from pagemill.models.loader import load_model
from pagemill.models.weights import weight_slots
from pagemill.ops.base import Ops
from pagemill.ops.decode import DecodeOps
from pagemill.ops.deterministic import DeterministicOps
from pagemill.ops.sampling import SamplingOps
from pagemill.ops.select import has_native_kernels, select_ops
from pagemill.quant.select import select_quant
from pagemill.runner.memory import CacheFit, cache_budget, largest_batch
from pagemill.runner.runner import ModelRunner
from pagemill.scheduler.batch import Batch
from pagemill.speculative.select import select_speculator

Report = Callable[[str], None]

_GIB = 2**30
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_GROUPED_BYTES = {"int8": 17 / 16, "int4": 5 / 8}  # per weight, with scales


class LocalExecutor:
    """Implements `Executor` with a runner in this process."""

    def __init__(self, resident: Resident, info: EngineInfo) -> None:
        self._resident = resident
        self._info = info

    @property
    def info(self) -> EngineInfo:
        return self._info

    def forward(self, batch: Batch) -> None:
        runner = self._resident.runner
        assert runner is not None, "the executor sleeps or was shut down"
        runner.forward(batch)

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> PendingResult:
        runner = self._resident.runner
        assert runner is not None, "the executor sleeps or was shut down"
        return runner.sample(batch, bitmask)

    def use_idle_time(self) -> bool:
        runner = self._resident.runner
        return runner is not None and runner.capture_another()

    def control(self, method: str, args: list[Any]) -> Any:
        """`sleep` with a level, or `wake_up`. Raises PageMillError for others."""
        match method, args:
            case "sleep", [int(level)]:
                return self._resident.sleep(level)
            case "wake_up", []:
                return self._resident.wake_up()
        raise PageMillError(f"this engine has no operation {method!r} with {len(args)} arguments")

    def shutdown(self) -> None:
        """Finish what was submitted and let go of weights and cache."""
        self._resident.close()


def build_local_executor(config: EngineConfig, report: Report) -> LocalExecutor:
    """Load the model that `config` names and give it a KV cache that fits.

    `report` is told the phases. Raises ModelLoadError or ConfigError with one readable line.
    """
    phases = Phases("device")
    device = select_device(config.device, config.num_threads)
    checkpoint = open_checkpoint(config.model)
    # The rotary tables need no more places than the context that is served.
    model_config = replace(checkpoint.model_config(), max_position=config.max_model_len)
    config = _with_kernels(config, device, report)
    attention = _select_attention(config, device)
    context = _build_context(config, model_config, device)
    num_bytes = _check_weights_fit(config, model_config, context, device)
    phases.begin("weights")
    model = _load(config, model_config, context, checkpoint, device, report)
    phases.begin("memory and first kernels")
    plan = CachePlan(config, model, _cache_type(config, device))
    fit = _fit_memory(config, model, device, attention, plan, context.ops, report)
    if fit.remark:
        report(fit.remark)
    fitted = msgspec.structs.replace(config, max_model_len=fit.max_model_len)
    decode_ops = _decode_ops(config, context.ops, attention)
    if decode_ops is not None and config.pooling is None:
        report("capturing graphs of decode steps")
    phases.begin("cache and graphs")
    recipe = Recipe(
        load=partial(_reload, config, model_config, context, checkpoint, device),
        start=partial(
            _start_runner,
            fitted,
            device=device,
            attention=attention,
            plan=plan,
            num_blocks=fit.num_blocks,
            ops=context.ops,
            decode_ops=decode_ops,
        ),
    )
    resident = Resident(model, recipe.start(model), device, recipe)
    report(phases.summary())
    info = EngineInfo(
        max_model_len=fit.max_model_len,
        num_blocks=fit.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        device=device.info().name,
        dtype=config.dtype,
        attention=attention_name(config, attention),
        quantization=config.quantization,
        weight_bytes=num_bytes,
        cache_bytes=fit.num_bytes,
        cache_groups=plan.tables.groups,
        cache_tokens=plan.layout(fit.num_blocks).num_tokens(fit.max_model_len),
        pooling=config.pooling,
    )
    return LocalExecutor(resident, info)


def _reload(
    config: EngineConfig,
    model_config: ModelConfig,
    context: BuildContext,
    checkpoint: Checkpoint,
    device: Device,
) -> AnyModel:
    """The model again, after its weights were dropped. Raises ModelLoadError."""
    _check_weights_fit(config, model_config, context, device)
    return _load(config, model_config, context, checkpoint, device, _say_nothing)


def _say_nothing(phase: str) -> None:
    """Phases are of a start."""


def _start_runner(
    config: EngineConfig,
    model: AnyModel,
    *,
    device: Device,
    attention: AttentionBackend,
    plan: CachePlan,
    num_blocks: int,
    ops: Ops,
    decode_ops: DecodeOps | None,
) -> Runner:
    """A runner with its graphs. Raises ModelLoadError when the cache does not fit."""
    runner = _build_runner(config, model, device, attention, plan, num_blocks, ops, decode_ops)
    if isinstance(runner, ModelRunner) and decode_ops is not None:
        runner.capture_graphs()
    return runner


def _with_kernels(config: EngineConfig, device: Device, report: Report) -> EngineConfig:
    """Torch's kernels instead of the C++ ones where these do not exist; says so once."""
    if device.type != "cpu" or config.ops != "default":
        return config
    if has_native_kernels() and config.dtype != "float16":
        return config
    why = "they have no float16" if has_native_kernels() else "installed without a C++ compiler"
    report(f"torch's kernels stand in for the C++ ones ({why}): slower")
    return msgspec.structs.replace(config, ops="reference", attention_backend="torch")


def _decode_ops(config: EngineConfig, ops: Ops, attention: AttentionBackend) -> DecodeOps | None:
    """The kernels around captured decode steps; None where these cannot be captured.

    Deterministic mode goes without: a row's kernels would depend on the padded number of rows.
    """
    if config.deterministic or not config.cuda_graphs or not isinstance(attention, FusedAttention):
        return None
    return ops if isinstance(ops, DecodeOps) else None


def _select_attention(config: EngineConfig, device: Device) -> AttentionBackend:
    attention = select_attention(device.type, config.attention_backend)
    return make_deterministic(attention) if config.deterministic else attention


def _build_context(config: EngineConfig, model: ModelConfig, device: Device) -> BuildContext:
    ops = select_ops(device.type, config.ops)
    if config.deterministic:
        ops = DeterministicOps(ops, device.type)
    stored_fp8 = bool(checkpoint_scheme(model.quantization))
    quant = select_quant(config.quantization, device.type, ops, stored_fp8=stored_fp8)
    return BuildContext(device.torch_device, _DTYPES[config.dtype], ops, quant)


def _check_weights_fit(
    config: EngineConfig, model_config: ModelConfig, context: BuildContext, device: Device
) -> int:
    """The bytes of the weights in memory, found without allocating them."""
    meta = select_builder(config)(model_config, replace(context, device=torch.device("meta")))
    assert isinstance(meta, torch.nn.Module)
    needed, free = _weight_bytes(meta, config.quantization), device.free_memory()
    if needed > free:
        form = config.dtype if config.quantization == "none" else config.quantization
        raise ModelLoadError(
            f"the weights of {config.model} need {needed / _GIB:.1f} GiB as {form}, but "
            f"only {free / _GIB:.1f} GiB of memory are free on {device.info().name}: free some, "
            "take a smaller type with --dtype or --quantization, or a smaller model"
        )
    return needed


def _weight_bytes(meta: torch.nn.Module, quantization: str) -> int:
    """Of a model on the meta device; packed matrices have no tensors there and are estimated."""
    if quantization in _GROUPED_BYTES:
        num_weights = sum(int(np.prod(slot.shape)) for slot in weight_slots(meta).values())
        return int(num_weights * _GROUPED_BYTES[quantization])
    return sum(tensor.nbytes for tensor in (*meta.parameters(), *meta.buffers()))


def _load(
    config: EngineConfig,
    model_config: ModelConfig,
    context: BuildContext,
    checkpoint: Checkpoint,
    device: Device,
    report: Report,
) -> AnyModel:
    build = select_builder(config)
    if config.load_format == "dummy":
        report("making random weights")
        return load_model(model_config, context, None, seed=config.seed, build=build)
    percent = -1

    def progress(done: int, total: int) -> None:
        nonlocal percent
        if (now := 100 * done // max(total, 1)) != percent:
            percent = now
            report(f"loading weights: {percent} % of {total / _GIB:.2f} GiB")

    progress(0, checkpoint.weight_bytes())
    weights = iterate_weights(
        checkpoint,
        progress=progress,
        keep_groups=context.quant.keeps_groups,
        allocate=_staging(device),
    )
    model = load_model(model_config, context, weights, build=build)
    device.release_memory()  # what reading and repacking took
    return model


def _staging(device: Device) -> Allocate | None:
    """Host memory to read weights into; a CPU takes them from the mapped file itself."""
    if device.type == "cpu":
        return None
    return lambda num_bytes: device.staging((num_bytes,), torch.uint8)


def _fit_memory(
    config: EngineConfig,
    model: AnyModel,
    device: Device,
    attention: AttentionBackend,
    plan: CachePlan,
    ops: Ops,
    report: Report,
) -> CacheFit:
    report("measuring memory")

    def run_largest_batch() -> None:
        runner = _build_runner(config, model, device, attention, plan, 1, ops)
        batch = largest_batch(config)
        runner.forward(batch)
        runner.sample(batch).wait()

    return plan.fit(cache_budget(config, device, device.peak_memory(run_largest_batch)))


def _cache_type(config: EngineConfig, device: Device) -> torch.dtype:
    """float8 if asked for; on CPUs, half the bytes of float32 where weights are rounded as well."""
    if config.kv_cache_dtype == "fp8":
        return torch.float8_e4m3fn
    if device.type == "cpu" and config.dtype == "float32" and config.quantization != "none":
        return torch.float16
    return _DTYPES[config.dtype]


def _build_runner(
    config: EngineConfig,
    model: AnyModel,
    device: Device,
    attention: AttentionBackend,
    plan: CachePlan,
    num_blocks: int,
    ops: Ops,
    decode_ops: DecodeOps | None = None,
) -> Runner:
    cache = plan.allocate(device, num_blocks)
    if isinstance(model, PooledModel):
        return build_pooling_runner(config, model, device, attention, cache)
    speculator, tables = select_speculator(config), plan.layer_tables
    sampling_ops = ops if isinstance(ops, SamplingOps) else None
    return ModelRunner(
        config, model, device, attention, cache, speculator, decode_ops, tables, sampling_ops
    )
