"""The executor of one process and one device, and how it is put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pagemill.attention.base import AttentionBackend
from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.read_ahead import Allocate
from pagemill.checkpoint.weights import iterate_weights
from pagemill.config.engine import EngineConfig
from pagemill.config.model import ModelConfig
from pagemill.device.base import CapturesGraphs, Device
from pagemill.device.select import select_device
from pagemill.engine.messages import EngineInfo
from pagemill.errors import ModelLoadError, PageMillError
from pagemill.executor.base import PendingResult, Runner
from pagemill.executor.cache import CachePlan
from pagemill.executor.kernels.build import KernelBuild
from pagemill.executor.kernels.messages import Progress
from pagemill.executor.parts import (
    build_context,
    build_runner,
    cache_type,
    choose_attention,
    find_decode_ops,
)
from pagemill.executor.phases import Phases
from pagemill.executor.pooling import attention_name, select_builder
from pagemill.executor.sleeping import Recipe, Resident
from pagemill.layers.base import BuildContext
from pagemill.models.base import AnyModel
from pagemill.models.loader import load_model
from pagemill.models.weights import weight_slots
from pagemill.ops.base import Ops
from pagemill.ops.decode import DecodeOps
from pagemill.ops.select import has_native_kernels
from pagemill.runner.memory import CacheFit, cache_budget, largest_batch
from pagemill.runner.runner import ModelRunner
from pagemill.scheduler.batch import Batch

if TYPE_CHECKING:
    from pagemill.ops.triton.compile_log import CompileLog

Report = Callable[[str], None]

_GIB = 2**30
_PACKED_BYTES = {"int8": 17 / 16, "int4": 5 / 8, "bfloat16": 2}  # per weight, with scales


class LocalExecutor:
    """Implements `Executor` with a runner in this process."""

    def __init__(
        self, resident: Resident, info: EngineInfo, kernels: KernelBuild | None = None
    ) -> None:
        self._resident = resident
        self._info = info
        self._kernels = kernels  # some may be compiled in the background still

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
        if self._kernels is not None:
            self._kernels.close()


def build_local_executor(
    config: EngineConfig, report: Report, kernels: KernelBuild | None = None
) -> LocalExecutor:
    """Load the model that `config` names and give it a KV cache that fits.

    `report` is told the phases; `kernels` is what compiles them meanwhile, if anything does. Raises
    ModelLoadError or ConfigError with one readable line.
    """
    phases = Phases("device")
    device = select_device(config.device, config.num_threads)
    compile_log = _watch_compiler(device)
    checkpoint = open_checkpoint(config.model)
    # The rotary tables need no more places than the context that is served.
    model_config = replace(checkpoint.model_config(), max_position=config.max_model_len)
    config = _with_kernels(config, device, report)
    attention = choose_attention(config, device)
    context = build_context(config, model_config, device)
    num_bytes = _check_weights_fit(config, model_config, context, device)
    phases.begin("weights")
    model = _load(config, model_config, context, checkpoint, device, report)
    ahead = None
    if kernels is not None:
        phases.begin("waiting for kernels")
        ahead = kernels.wait(report)
    phases.begin("memory and first kernels")
    plan = CachePlan(config, model, cache_type(config, device, context))
    fit = _fit_memory(config, model, device, attention, plan, context.ops, report)
    if fit.remark:
        report(fit.remark)
    fitted = msgspec.structs.replace(config, max_model_len=fit.max_model_len)
    decode_ops = find_decode_ops(config, context.ops, attention)
    if decode_ops is not None and config.pooling is None and isinstance(device, CapturesGraphs):
        report("capturing graphs of steps")
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
    report(phases.summary() + _say_kernels(ahead, compile_log))
    if kernels is not None:
        kernels.compile_rest()
    info = _describe(config, device, attention, plan, fit, num_bytes)
    return LocalExecutor(resident, info, kernels)


def _describe(
    config: EngineConfig,
    device: Device,
    attention: AttentionBackend,
    plan: CachePlan,
    fit: CacheFit,
    weight_bytes: int,
) -> EngineInfo:
    """What the frontends are told of an engine."""
    return EngineInfo(
        max_model_len=fit.max_model_len,
        num_blocks=fit.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        device=device.info().name,
        dtype=config.dtype,
        attention=attention_name(config, attention),
        quantization=config.quantization,
        weight_bytes=weight_bytes,
        cache_bytes=fit.num_bytes,
        cache_groups=plan.tables.groups,
        cache_tokens=plan.layout(fit.num_blocks).num_tokens(fit.max_model_len),
        pooling=config.pooling,
    )


def _watch_compiler(device: Device) -> CompileLog | None:
    """Notes each kernel that this process has to compile itself."""
    if device.type != "cuda" or not find_spec("triton"):
        return None
    from pagemill.ops.triton.compile_log import CompileLog

    return CompileLog()


def _say_kernels(ahead: Progress | None, log: CompileLog | None) -> str:
    """The end of the line about the start."""
    if log is None:
        return ""
    log.serving = True
    compiled, found = (ahead.compiled, ahead.found) if ahead is not None else (0, 0)
    return f"; kernels compiled ahead {compiled}, found {found}, compiled late {log.compiled}"


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
    runner = build_runner(config, model, device, attention, plan, num_blocks, ops, decode_ops)
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


def _check_weights_fit(
    config: EngineConfig, model_config: ModelConfig, context: BuildContext, device: Device
) -> int:
    """The bytes of the weights in memory, found without allocating them."""
    meta = select_builder(config)(model_config, replace(context, device=torch.device("meta")))
    assert isinstance(meta, torch.nn.Module)
    needed, free = _weight_bytes(meta, context.quant.name), device.free_memory()
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
    if quantization in _PACKED_BYTES:
        num_weights = sum(int(np.prod(slot.shape)) for slot in weight_slots(meta).values())
        return int(num_weights * _PACKED_BYTES[quantization])
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
        made = device.submit(
            lambda: load_model(model_config, context, None, seed=config.seed, build=build)
        )
        return made.result()
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
    # On the thread that computes: another would get a pool of OpenMP threads of its own, and with
    # more of these than cores all of them stop waiting actively at barriers.
    loading = device.submit(lambda: load_model(model_config, context, weights, build=build))
    model = loading.result()
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
        runner = build_runner(config, model, device, attention, plan, 1, ops)
        batch = largest_batch(config)
        runner.forward(batch)
        runner.sample(batch).wait()

    return plan.fit(cache_budget(config, device, device.peak_memory(run_largest_batch)))
