"""Offline throughput and single-caller speed of random models, through `pagemill.LLM`.

    PYTHONPATH=src python3 benchmarks/offline.py qwen3-0.6b [single nano256 ...] [--json FILE]

`single`: 1 request, 128 tokens in, 256 out, greedy. `nano256`: 256 requests of 100-1024 tokens in
and 100-1024 out at temperature 0.6. `big1000`: 1000 requests, 512 in, 256 out, greedy. `single-top`
and `nano256-top`: as many tokens at temperature 0.6 with top-p 0.95 and top-k 20, as Qwen3 asks
for. Prompts are random tokens and every request ignores the end of text. Each case runs `--repeats`
times; the first run includes what is captured or compiled when it is first needed.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pagemill import LLM, SamplingParams

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
COMMON = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "head_dim": 128,
    "num_key_value_heads": 8,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 128256,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "qwen3-0.6b": QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}
MAX_PROMPT_TOKEN = 40_000


@dataclass(frozen=True)
class Case:
    """Requests of random lengths, both ends included."""

    name: str
    requests: int
    tokens_in: tuple[int, int]
    tokens_out: tuple[int, int]
    temperature: float
    top_p: float = 1.0
    top_k: int = 0


WARMUP = Case("warmup", 4, (50, 60), (16, 16), 0.6)
CASES = (
    Case("single", 1, (128, 128), (256, 256), 0.0),
    Case("nano256", 256, (100, 1024), (100, 1024), 0.6),
    Case("big1000", 1000, (512, 512), (256, 256), 0.0),
    Case("single-top", 1, (128, 128), (256, 256), 0.6, top_p=0.95, top_k=20),
    Case("nano256-top", 256, (100, 1024), (100, 1024), 0.6, top_p=0.95, top_k=20),
)


@dataclass(frozen=True)
class Timing:
    """One run of a case."""

    model: str
    case: str
    seconds: float
    output_tok_s: float
    total_tok_s: float

    def line(self) -> str:
        return (
            f"{self.model} {self.case:11s} {self.seconds:8.3f} s "
            f"{self.output_tok_s:9.1f} output tok/s {self.total_tok_s:9.1f} total tok/s"
        )


def run(llm: LLM, model: str, case: Case, rng: random.Random) -> Timing:
    """Complete the case's prompts; raises RuntimeError when the engine stopped one early."""
    lengths = [rng.randint(*case.tokens_in) for _ in range(case.requests)]
    tokens = range(10, MAX_PROMPT_TOKEN)
    prompts = [{"prompt_token_ids": rng.choices(tokens, k=length)} for length in lengths]
    params = [
        SamplingParams(
            temperature=case.temperature,
            top_p=case.top_p,
            top_k=case.top_k,
            max_tokens=rng.randint(*case.tokens_out),
            ignore_eos=True,
            detokenize=False,
        )
        for _ in range(case.requests)
    ]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    tokens_out = sum(len(output.outputs[0].token_ids) for output in outputs)
    if tokens_out != sum(p.max_tokens or 0 for p in params):
        raise RuntimeError("the engine stopped a request early")
    total = sum(lengths) + tokens_out
    return Timing(model, case.name, seconds, tokens_out / seconds, total / seconds)


def write_model(name: str, folder: Path) -> Path:
    """A folder with nothing but the configuration of a known shape."""
    (folder / "config.json").write_text(json.dumps(COMMON | SHAPES[name], indent=1))
    return folder


def measure(name: str, cases: list[Case], repeats: int, eager: bool) -> list[Timing]:
    """Start an engine and run the cases, each `repeats` times."""
    timings = []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        llm = LLM(
            str(write_model(name, Path(folder))),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=4096,
            gpu_memory_utilization=0.88,
            enforce_eager=eager,
        )
        print(f"{name} ready after {time.perf_counter() - begin:.1f} s", flush=True)
        rng = random.Random(0)
        run(llm, name, WARMUP, rng)
        for case in cases:
            for _ in range(repeats):
                timing = run(llm, name, case, rng)
                timings.append(timing)
                print(timing.line(), flush=True)
        llm.shutdown()
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("cases", nargs="*", help="all of them without this")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--verbose", action="store_true", help="show the phases of the start")
    parser.add_argument("--json", type=Path, help="append a line for each run to this file")
    args = parser.parse_args()
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(relativeCreated)6d ms %(message)s")
    cases = [case for case in CASES if not args.cases or case.name in args.cases]
    timings = measure(args.model, cases, args.repeats, args.eager)
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(asdict(timing)) + "\n" for timing in timings)


if __name__ == "__main__":
    main()
