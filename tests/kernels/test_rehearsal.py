"""What an engine launches has been found by its rehearsal, variant for variant.

Both run in Triton's interpreter here. A launch is noted as Triton itself would specialise it for a
GPU: types, alignment, constants and options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.triton_harness import DEVICES
from pagemill.checkpoint.open import open_checkpoint
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts
from pagemill.config.pooling import Method, PoolingConfig
from pagemill.device.shape_rules import ShapeRules
from pagemill.executor.base import Runner
from pagemill.executor.cache import CachePlan
from pagemill.executor.kernels.rehearsal import Rehearsal
from pagemill.executor.parts import (
    build_context,
    build_runner,
    cache_type,
    choose_attention,
    find_decode_ops,
)
from pagemill.executor.pooling import select_builder
from pagemill.models.loader import load_model
from pagemill.ops.triton import launch
from pagemill.ops.triton.collect import GpuModel, collecting, use_compile_only
from pagemill.params import SamplingParams
from pagemill.runner.memory import dummy_batch
from pagemill.runner.runner import ModelRunner
from pagemill.scheduler.batch import Batch
from unit.runner.graph_harness import GraphDevice

pytestmark = pytest.mark.skipif(DEVICES != ["cpu"], reason="needs the interpreter")

SHARED = 227 * 1024
# As the interpreter launches: no early starts, few multiprocessors.
GPU = GpuModel((8, 0), launch.INTERPRETED_SMS, SHARED)
FACTS = DeviceFacts(
    "cuda", "a GPU", 2**30, 2, True, (8, 0), num_sms=GPU.num_sms, shared_memory=SHARED
)
GREEDY = SamplingParams(temperature=0.0)
RANDOM = SamplingParams(temperature=0.7)
FILTERED = SamplingParams(temperature=0.7, top_k=5, top_p=0.8, min_p=0.05)
NUM_ROWS = 18

ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "bert": "BertModel",
}

Variants = set[tuple[str, str]]
Noting = Callable[[], AbstractContextManager[Variants]]


def make_config(folder: Path, kind: str, dtype: str, **other: Any) -> EngineConfig:
    files = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
        "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "tie_word_embeddings": kind == "qwen3",
    }
    (folder / "config.json").write_text(json.dumps(files))
    return EngineConfig(
        model=str(folder),
        served_model_names=("m",),
        device="cuda",
        dtype=dtype,
        max_model_len=128,
        max_num_seqs=NUM_ROWS,
        max_num_batched_tokens=128,
        load_format="dummy",
        ops="triton",
        attention_backend="triton",
        **other,
    )


@pytest.fixture
def compile_only() -> Iterator[None]:
    from triton.runtime.driver import driver

    caches = (launch._num_sms, launch._supports_pdl, launch._has_small_shared)
    before = driver._active
    use_compile_only(GPU)
    for cache in caches:
        cache.cache_clear()
    yield
    driver.set_active(before)
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def note_launches(monkeypatch: pytest.MonkeyPatch, compile_only: None) -> Noting:
    """Notes every launch; tensors without memory are not computed with."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    twins: dict[Any, Any] = {}
    interpret = InterpretedFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if self.fn not in twins:
            twins[self.fn] = JITFunction(self.fn, **self.kwargs)
        twins[self.fn].run(*args, grid=grid, warmup=True, **kwargs)
        if not any(isinstance(arg, torch.Tensor) and arg.is_meta for arg in args):
            interpret(self, *args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", run)

    @contextmanager
    def noting() -> Iterator[Variants]:
        found: Variants = set()
        twins.clear()  # they tell of each variant once
        with collecting(lambda variant: found.add((variant.name, variant.data))):
            yield found

    return noting


def rehearse(config: EngineConfig) -> Iterator[None]:
    with ShapeRules():
        rehearsal = Rehearsal(config, FACTS)
        yield from rehearsal.start()
        yield from rehearsal.serving()


def real_runner(config: EngineConfig) -> Runner:
    """On the CPU, with the GPU's kernels in the interpreter."""
    device = GraphDevice(1)
    model_config = open_checkpoint(config.model).model_config()
    context = build_context(config, model_config, device)
    attention = choose_attention(config, device)
    model = load_model(model_config, context, None, build=select_builder(config))
    plan = CachePlan(config, model, cache_type(config, device, context))
    decode_ops = find_decode_ops(config, context.ops, attention)
    return build_runner(
        config, model, device, attention, plan, 40, context.ops, decode_ops=decode_ops
    )


def serve(runner: Runner) -> None:
    """Prompts alone and beside generating rows, then decode steps of several sizes."""
    steps = [
        dummy_batch(np.array(lengths, np.int32), params)
        for lengths, params in [
            ([1], GREEDY),
            ([5], RANDOM),
            ([16], FILTERED),
            ([61], GREEDY),
            ([30, 1, 1], FILTERED),
            ([3, 2, 1], RANDOM),
            ([1] * 7, GREEDY),
            ([2] * NUM_ROWS, RANDOM),
        ]
    ]
    if isinstance(runner, ModelRunner):
        steps += decode_steps()
    for batch in steps:
        runner.forward(batch)
        runner.sample(batch).wait()


def decode_steps() -> list[Batch]:
    return [
        dummy_batch(np.ones(rows, np.int32), params, resident=True)
        for rows in (1, 3, 9, NUM_ROWS)
        for params in (GREEDY, RANDOM, FILTERED)
    ]


def embedder(method: Method, *, cached: bool) -> dict[str, Any]:
    pooling = PoolingConfig(task="embed", method=method, width=64, cached=cached)
    return {"pooling": pooling, "cuda_graphs": False, "block_size": 16 if cached else 128}


@pytest.mark.parametrize(
    ("kind", "dtype", "other"),
    [
        ("bert", "float16", embedder("mean", cached=False)),
        ("bert", "bfloat16", embedder("cls", cached=False)),
        ("qwen3", "bfloat16", embedder("last", cached=True)),
        ("qwen3", "bfloat16", {}),
        ("llama", "float16", {"kv_cache_dtype": "fp8"}),
        ("qwen3", "float32", {"cuda_graphs": False}),
    ],
)
def test_no_variant_is_left_out(
    tmp_path: Path,
    note_launches: Noting,
    kind: str,
    dtype: str,
    other: dict[str, Any],
) -> None:
    config = make_config(tmp_path, kind, dtype, **other)
    with note_launches() as found:
        for _ in rehearse(config):
            pass
    with note_launches() as launched:
        serve(real_runner(config))
    assert len(launched) > (2 if "pooling" in other else 10)
    missing = [f"{name}: {data}" for name, data in launched - found]
    assert not missing, "\n".join(missing)
