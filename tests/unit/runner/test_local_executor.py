from __future__ import annotations

import json
import weakref
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pagemill.checkpoint.open import open_checkpoint
from pagemill.config.engine import EngineConfig
from pagemill.device.cpu import CpuDevice
from pagemill.errors import ModelLoadError, PageMillError
from pagemill.executor.local import LocalExecutor, _check_weights_fit, build_local_executor
from pagemill.executor.sleeping import held_tensors
from pagemill.layers.base import BuildContext
from pagemill.ops.reference import ReferenceOps
from pagemill.ops.select import select_ops
from pagemill.quant.select import select_quant
from pagemill.runner.memory import largest_batch

MIB = 2**20


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    files = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(files))
    return EngineConfig(
        model=str(tmp_path),
        served_model_names=("m",),
        device="cpu",
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        kv_cache_bytes=MIB,
        load_format="dummy",
        num_threads=1,
    )


def build(config: EngineConfig) -> tuple[LocalExecutor, list[str]]:
    phases: list[str] = []
    return build_local_executor(config, phases.append), phases


def test_an_executor_says_what_it_has_and_runs(config: EngineConfig) -> None:
    executor, phases = build(config)
    info = executor.info
    assert (info.max_model_len, info.block_size, info.max_num_seqs) == (512, 16, 4)
    per_block = 2 * 2 * 2 * 8 * 16 * 4
    assert info.num_blocks == MIB // per_block and info.cache_bytes == info.num_blocks * per_block
    attention, mlp = 32 * 32 * 2 + 32 * 16 * 2, 3 * 32 * 64
    assert info.weight_bytes == 4 * (2 * 96 * 32 + 2 * (attention + mlp + 2 * 32) + 32)
    assert any("weights" in phase for phase in phases)
    batch = largest_batch(config)
    executor.forward(batch)
    result = executor.sample(batch).wait()
    assert result.num_tokens.tolist() == [1] * 4
    assert ((result.token_ids >= 0) & (result.token_ids < 96)).all()
    for method, args in (("sleep", []), ("sleep", [3]), ("other", [])):
        with pytest.raises(PageMillError, match=method):
            executor.control(method, args)
    executor.shutdown()


@pytest.mark.parametrize(
    ("dtype", "ops", "quantization", "deterministic"),
    [
        ("float32", "default", "int8", False),
        ("float32", "default", "none", True),
        ("bfloat16", "default", "none", False),
        ("bfloat16", "default", "none", True),
        ("float32", "reference", "none", False),
        ("float16", "default", "none", False),
    ],
)
def test_a_cache_in_int8(
    config: EngineConfig, dtype: str, ops: str, quantization: str, deterministic: bool
) -> None:
    config = msgspec.structs.replace(
        config,
        dtype=dtype,
        ops=ops,
        quantization=quantization,
        deterministic=deterministic,
        kv_cache_dtype="int8",
    )
    executor, _ = build(config)
    info, per_block = executor.info, 2 * 2 * 2 * (8 + 4) * 16
    assert info.num_blocks == MIB // per_block and info.cache_bytes == info.num_blocks * per_block
    batch = largest_batch(config)
    executor.forward(batch)
    assert executor.sample(batch).wait().num_tokens.tolist() == [1] * 4
    executor.shutdown()


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_seed_makes_the_same_model(config: EngineConfig, deterministic: bool) -> None:
    config = msgspec.structs.replace(config, deterministic=deterministic)
    tokens = []
    for _ in range(2):
        executor, _ = build(config)
        batch = largest_batch(config)
        executor.forward(batch)
        tokens.append(executor.sample(batch).wait().token_ids)
        executor.shutdown()
    assert np.array_equal(*tokens)


def test_the_context_shrinks_to_the_cache_and_the_user_is_told(config: EngineConfig) -> None:
    small = msgspec.structs.replace(config, kv_cache_bytes=MIB // 8)
    executor, phases = build(small)
    assert executor.info.max_model_len < 512
    assert any(str(executor.info.max_model_len) in phase for phase in phases)
    executor.shutdown()


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuDevice, "free_memory", lambda self: 50_000)
    with pytest.raises(ModelLoadError, match="smaller model") as error:
        build(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantization", ["none", "packed", "fp8", "int8"])
def test_the_room_that_weights_need_is_that_of_their_type(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    matrices, table = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64), 96 * 32
    rows = 2 * (32 * 2 + 16 * 2 + 64 * 2 + 32)
    exact = 2 * 2 * table + 4 * 5 * 32  # embedding and head as they are, norms in float32
    expected = {
        "none": exact + 2 * matrices,
        "packed": 2 * (matrices + 2 * table + 5 * 32),
        "fp8": exact + matrices + 4 * rows,
        "int8": (matrices + 2 * table + 5 * 32) * 17 / 16,
    }
    name = "none" if quantization == "packed" else quantization
    ops = select_ops("cpu") if quantization == "packed" else ReferenceOps()
    device_type = "cuda" if quantization == "fp8" else "cpu"
    quant = select_quant(name, device_type, ops, torch.bfloat16, stored_fp8=True)
    context = BuildContext(torch.device("cpu"), torch.bfloat16, ops, quant)
    config = msgspec.structs.replace(config, quantization=name, dtype="bfloat16")
    model = open_checkpoint(config.model).model_config()
    device = CpuDevice()
    assert _check_weights_fit(config, model, context, device) == expected[quantization]
    monkeypatch.setattr(CpuDevice, "free_memory", lambda self: 1)
    form = "bfloat16" if name == "none" else quantization
    with pytest.raises(ModelLoadError, match=f"GiB as {form}"):
        _check_weights_fit(config, model, context, device)


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("none", "float32"), ("none", "bfloat16"), ("int8", "float32")]
)
@pytest.mark.parametrize("level", [1, 2])
def test_sleep_gives_memory_up_and_waking_brings_the_same_model_back(
    config: EngineConfig, level: int, quantization: str, dtype: str
) -> None:
    config = msgspec.structs.replace(config, quantization=quantization, dtype=dtype)
    executor, _ = build(config)
    batch = largest_batch(config)

    def tokens() -> list[list[int]]:
        executor.forward(batch)
        return executor.sample(batch).wait().token_ids.tolist()  # type: ignore[no-any-return]

    resident = executor._resident
    tensors = [weakref.ref(tensor) for tensor in held_tensors(resident._model)]  # type: ignore[arg-type]
    cache = weakref.ref(resident.runner._kv_cache[0].k)  # type: ignore[union-attr]
    first = tokens()
    executor.control("sleep", [level])
    assert cache() is None
    assert all((tensor() is None) == (level == 2) for tensor in tensors)
    with pytest.raises(AssertionError, match="sleeps"):
        executor.forward(batch)
    executor.control("wake_up", [])
    executor.control("wake_up", [])  # does nothing
    assert tokens() == first
    executor.shutdown()


def test_sleep_deepens_and_a_failed_waking_can_be_repeated(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _ = build(config)
    executor.control("sleep", [1])
    executor.control("sleep", [2])
    monkeypatch.setattr(CpuDevice, "free_memory", lambda self: 1000)
    with pytest.raises(ModelLoadError, match="free some"):
        executor.control("wake_up", [])
    monkeypatch.undo()
    executor.control("wake_up", [])
    batch = largest_batch(config)
    executor.forward(batch)
    assert executor.sample(batch).wait().num_tokens.tolist() == [1] * 4
    executor.shutdown()
