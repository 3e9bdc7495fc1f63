"""`resolve`: what is chosen for a model on a device, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import msgspec
import pytest

from pagemill.cli.doctor.fits import SIZES
from pagemill.config.args import MAX_FLAGS, ServeArgs, flags
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts, cpu_facts
from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.config.resolve import GIB, remarks, resolve
from pagemill.errors import ConfigError, ModelLoadError

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=512,
    norm_eps=1e-5,
    rope=RopeConfig(),
)
CPU = DeviceFacts("cpu", "a CPU", 32 * GIB, 8, bfloat16=False)
CPU_BF16 = dataclasses.replace(CPU, bfloat16=True)
H100 = DeviceFacts("cuda", "H100", 80 * GIB, 16, bfloat16=True, capability=(9, 0))
H200 = dataclasses.replace(H100, total_memory=141 * GIB)
T4 = DeviceFacts("cuda", "T4", 16 * GIB, 4, bfloat16=False, capability=(7, 5))


def run(device: DeviceFacts = CPU, model: ModelConfig = MODEL, **given: object) -> EngineConfig:
    return resolve(ServeArgs(**given), model, device, path="/models/tiny.gguf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "checkpoint", "expected"),
    [
        (CPU, "bfloat16", "float32"),
        (CPU, "float16", "float32"),
        (CPU_BF16, "bfloat16", "bfloat16"),
        (CPU_BF16, "float32", "float32"),
        (H100, "bfloat16", "bfloat16"),
        (H100, "float16", "float16"),
        (H100, "float32", "bfloat16"),
        (T4, "bfloat16", "float16"),
    ],
)
def test_auto_dtype_is_the_fast_one(device: DeviceFacts, checkpoint: str, expected: str) -> None:
    assert run(device, dataclasses.replace(MODEL, dtype=checkpoint)).dtype == expected


def test_cpus_with_kernels_take_int8_unless_a_type_is_named() -> None:
    fast = dataclasses.replace(CPU, bfloat16=True, native_kernels=True)
    found = run(fast)
    assert (found.quantization, found.dtype) == ("int8", "float32")
    named = run(fast, dtype="bfloat16")
    assert (named.quantization, named.dtype) == ("none", "bfloat16")
    assert run(fast, quantization="none").dtype == "bfloat16"
    assert run(CPU).quantization == run(H100).quantization == "none"
    with pytest.raises(ConfigError, match="for CPUs only"):
        run(H100, quantization="int4")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_asked_dtype_is_kept(dtype: str) -> None:
    assert run(CPU, dtype=dtype).dtype == dtype


def test_slow_types_are_remarked_on() -> None:
    assert "float16 is slow" in remarks(run(CPU, dtype="float16"), CPU, MODEL)[0]
    assert "no bfloat16" in remarks(run(CPU, dtype="bfloat16"), CPU, MODEL)[0]
    own = dataclasses.replace(CPU, native_kernels=True)  # widen the weights themselves
    assert remarks(run(own, dtype="bfloat16"), own, MODEL) == []
    assert remarks(run(CPU), CPU, MODEL) == []


@pytest.mark.parametrize(
    ("device", "seqs", "tokens"),
    [(CPU, 64, 512), (T4, 256, 2048), (H100, 1024, 8192), (H200, 1024, 16384)],
)
def test_batch_size_follows_the_device(device: DeviceFacts, seqs: int, tokens: int) -> None:
    config = run(device)
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (seqs, tokens)


@pytest.mark.parametrize(
    ("name", "on_h100", "on_h200"),
    [
        ("SmolLM2-135M", 8192, 16384),
        ("Qwen3-0.6B", 8192, 16384),
        ("Qwen3-4B", 8192, 16384),
        ("Llama-3.1-8B", 8192, 8192),
        ("Qwen3-14B", 4096, 4096),
        ("Qwen3-32B", 2048, 2048),
        ("Llama-3.3-70B", 2048, 2048),
    ],
)
def test_steps_of_large_models_have_fewer_tokens_on_a_gpu(
    name: str, on_h100: int, on_h200: int
) -> None:
    model = dict(SIZES)[name]
    assert run(H100, model).max_num_batched_tokens == on_h100
    assert run(H200, model).max_num_batched_tokens == on_h200
    assert run(T4, model).max_num_batched_tokens == 2048
    assert run(CPU, model).max_num_batched_tokens == 512
    assert run(H200, model, max_num_batched_tokens=10_000).max_num_batched_tokens == 10_000


def test_batch_sizes_stay_consistent() -> None:
    assert run(max_num_batched_tokens=16).max_num_seqs == 16
    assert run(max_num_seqs=700).max_num_batched_tokens == 700


def test_context_length() -> None:
    assert (run().max_model_len, run().max_model_len_fixed) == (512, False)
    config = run(max_model_len=100)
    assert (config.max_model_len, config.max_model_len_fixed) == (100, True)


def test_cache_size_is_bounded_on_a_cpu_only() -> None:
    assert run(CPU).kv_cache_bytes == 4 * GIB
    assert run(dataclasses.replace(CPU, total_memory=8 * GIB)).kv_cache_bytes == 2 * GIB
    assert run(CPU, memory_utilization=0.5).kv_cache_bytes == 0
    assert run(H100).kv_cache_bytes == 0
    assert run(H100, kv_cache_bytes=7).kv_cache_bytes == 7


def test_names() -> None:
    assert resolve(ServeArgs(), MODEL, CPU, path="x", name="Tiny").served_model_names == ("Tiny",)
    assert resolve(ServeArgs(model="a/b"), MODEL, CPU).served_model_names == ("a/b",)
    assert resolve(ServeArgs(model="a/b"), MODEL, CPU).model == "a/b"
    assert run(served_model_name=("x", "y")).served_model_names == ("x", "y")


@pytest.mark.parametrize(
    "given",
    [
        {"max_model_len": 513},
        {"max_model_len": 0},
        {"max_num_seqs": -1},
        {"kv_cache_bytes": 0},
        {"threads": 0},
        {"memory_utilization": 1.5},
        {"memory_utilization": 0.0},
    ],
)
def test_impossible_numbers_name_their_flag(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(given)).replace("_", "-")):
        run(**given)


def test_bfloat16_is_refused_where_the_gpu_has_none() -> None:
    with pytest.raises(ConfigError, match="float16"):
        run(T4, dtype="bfloat16")


def test_nothing_is_left_open_after_resolving() -> None:
    config = run()
    values = msgspec.structs.asdict(config)
    assert [name for name, value in values.items() if value is None] == ["pooling"]  # none is one
    assert "auto" not in [v for k, v in values.items() if k != "load_format"]
    assert config.num_threads == 8
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config


def test_cpu_facts_from_cpuinfo() -> None:
    core = "model name\t: Fast CPU\nphysical id\t: 0\ncore id\t: {}\nflags\t: fpu avx512_bf16\n\n"
    facts = cpu_facts("".join(core.format(i) for i in (0, 0)))
    assert (facts.type, facts.name, facts.bfloat16) == ("cpu", "Fast CPU", True)
    assert facts.num_threads == 1  # two hyper-threads of one core
    assert facts.total_memory > 0
    assert not cpu_facts("").bfloat16


def test_number_of_flags_is_bounded() -> None:
    assert len(list(flags())) <= MAX_FLAGS
    assert all(info.help for _, info, _ in flags())


def test_config_needs_no_torch() -> None:
    code = "import sys, pagemill.config.resolve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FP8_BLOCKS = FP8 | {"weight_block_size": [128, 128]}


def _compressed(**weights: object) -> dict[str, object]:
    group = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"} | weights}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("quantization", "on_h100"),
    [
        (FP8, "fp8"),
        (FP8_BLOCKS, "fp8-block"),
        (_compressed(), "fp8"),
        (_compressed(strategy="tensor"), "fp8"),
        (_compressed(strategy="block", block_structure=[128, 128]), "fp8-block"),
    ],
)
def test_float8_checkpoints_stay_so_where_the_device_has_it(
    quantization: dict[str, object], on_h100: str
) -> None:
    model = dataclasses.replace(MODEL, quantization=quantization)
    assert run(H100, model).quantization == on_h100
    assert remarks(run(H100, model), H100, model) == []
    for device in (CPU, T4):
        config = run(device, model)
        assert config.quantization == "none"
        assert f"become {config.dtype} at load" in remarks(config, device, model)[0]


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        (FP8 | {"weight_block_size": [64, 64]}, "blocks of \\[64, 64\\]"),
        (_compressed(num_bits=4, type="int"), "4-bit"),
        (_compressed(strategy="group"), "strategy group"),
        ({"quant_method": "compressed-tensors"}, "without config_groups"),
    ],
)
def test_other_quantised_checkpoints_are_refused(
    quantization: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelLoadError, match=named):
        run(H100, dataclasses.replace(MODEL, quantization=quantization))


def test_a_float8_checkpoint_becomes_what_is_asked_for() -> None:
    model = dataclasses.replace(MODEL, quantization=FP8_BLOCKS)
    config = run(H100, model, quantization="none")
    assert config.quantization == "none" and remarks(config, H100, model) == []
    assert run(H100, model, quantization="fp8").quantization == "fp8-block"
    with pytest.raises(ConfigError, match="--quantization int8 has kernels for CPUs only"):
        run(H100, model, quantization="int8")


def test_deterministic_mode_has_no_float8_products() -> None:
    model = dataclasses.replace(MODEL, quantization=FP8)
    config = run(H100, model, deterministic=True)
    assert config.quantization == "none"
    assert "--deterministic has no float8" in remarks(config, H100, model)[0]
    with pytest.raises(ConfigError, match="--quantization fp8 has no kernels for --deterministic"):
        run(H100, quantization="fp8", deterministic=True)


def test_rounded_weights_have_a_rounded_cache_where_keys_are_even() -> None:
    kernels = dataclasses.replace(CPU, native_kernels=True)
    plain = dataclasses.replace(
        MODEL, architecture="LlamaForCausalLM", head_dim=64, attention_bias=False
    )
    assert run(kernels, plain).kv_cache_dtype == "int8"
    assert run(kernels, plain, kv_cache_dtype="model").kv_cache_dtype == "model"
    assert run(kernels, plain, quantization="none").kv_cache_dtype == "model"
    assert run(H100, plain).kv_cache_dtype == "model"
    for changes in (
        {"attention_bias": True},
        {"head_dim": 256},
        {"architecture": "Qwen3ForCausalLM"},
    ):
        assert run(kernels, dataclasses.replace(plain, **changes)).kv_cache_dtype == "model"


def test_a_cache_in_int8_is_for_cpus() -> None:
    assert run(CPU, kv_cache_dtype="int8").kv_cache_dtype == "int8"
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8 has kernels for CPUs only"):
        run(H100, kv_cache_dtype="int8")


def test_float8_needs_a_device_that_has_it() -> None:
    assert run(H100, quantization="fp8", kv_cache_dtype="fp8").kv_cache_dtype == "fp8"
    for device in (CPU, T4):
        with pytest.raises(ConfigError, match=r"--quantization fp8 needs a GPU of .* 8\.9"):
            run(device, quantization="fp8")
        with pytest.raises(ConfigError, match=r"--kv-cache-dtype fp8 needs a GPU of .* 8\.9"):
            run(device, kv_cache_dtype="fp8")
