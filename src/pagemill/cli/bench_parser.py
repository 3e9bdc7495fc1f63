"""The command line of `pagemill bench`. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from pagemill.config.args import flags

_LLM_GROUPS = ("model", "computing", "memory", "scheduling")
_LLM_NAMES = {"prefix_cache": "enable_prefix_caching"}


def add_bench(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """`bench` with its three kinds; the chosen one is in `kind`."""
    bench = commands.add_parser(
        "bench",
        help="measure throughput and latency",
        description="Measure a server, or a model in this process. Names are those of vllm bench.",
        formatter_class=formatter,
    )
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    texts = {
        "serve": "load on a running server over HTTP",
        "throughput": "many prompts at once, in this process",
        "latency": "one batch again and again, in this process",
    }
    made = {
        kind: kinds.add_parser(kind, help=text, description=text, formatter_class=formatter)
        for kind, text in texts.items()
    }
    _add_serve(made["serve"])
    _add_random(made["serve"])
    _add_throughput(made["throughput"])
    _add_random(made["throughput"])
    _add_latency(made["latency"])


def llm_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options for `LLM` that were given."""
    options = {}
    for item, info, _ in flags():
        if info.group in _LLM_GROUPS and not info.repeat:
            value = getattr(parsed, item.name)
            if value != item.default or item.name == "model":
                options[_LLM_NAMES.get(item.name, item.name)] = value
    return options


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backend", choices=("openai", "openai-chat"), default="openai", help="API to speak")
    add("--base-url", metavar="URL", help="of the server, instead of host and port")
    add("--host", default="127.0.0.1", help="(127.0.0.1)")
    add("--port", type=int, default=8000, help="(8000)")
    add("--endpoint", metavar="PATH", help="default: the backend's")
    add("--header", action="append", default=[], metavar="NAME=VALUE", help="several allowed")
    add("--model", help="name to ask for, or a folder with its tokenizer; default: the first")
    add("--served-model-name", metavar="NAME", help="name to ask for when --model is a folder")
    add("--tokenizer", metavar="DIR", help="with tokenizer.json; else prompts are token ids")
    add("--dataset-name", choices=("random",), default="random", help="what to send")
    add("--num-prompts", type=int, default=1000, metavar="N", help="requests (1000)")
    add("--max-concurrency", type=int, metavar="N", help="most requests open at once")
    add("--request-rate", type=float, default=float("inf"), metavar="RPS", help="(inf: at once)")
    add("--burstiness", type=float, default=1.0, metavar="X", help="of arrivals; 1 is Poisson")
    add("--temperature", type=float, default=0.0, help="(0)")
    add("--ignore-eos", action="store_true", help="always generate the full length")
    add("--extra-body", default="{}", metavar="JSON", help="more fields for every request")
    add("--num-warmups", type=int, default=0, metavar="N", help="requests that do not count")
    add("--ready-check-timeout-sec", type=float, default=0.0, metavar="S", help="wait so long")
    add("--percentile-metrics", default="ttft,tpot,itl", metavar="LIST", help="also e2el")
    add("--metric-percentiles", default="99", metavar="LIST", help="(99)")
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help="bounds, as ttft:100 tpot:20")
    add("--save-result", action="store_true", help="write a JSON file")
    add("--save-detailed", action="store_true", help="with every request in it")
    add("--result-dir", default=".", metavar="DIR", help="where to write it")
    add("--result-filename", metavar="NAME", help="its name")
    add("--processes", type=int, default=0, metavar="N", help="of the client (0: as needed)")
    add("--seed", type=int, default=0, help="of prompts and arrivals (0)")


def _add_random(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--random-input-len", "--input-len", type=int, default=1024, metavar="N", help="(1024)")
    add("--random-output-len", "--output-len", type=int, default=128, metavar="N", help="(128)")
    add("--random-range-ratio", type=float, default=0.0, metavar="X", help="spread of lengths")
    add("--random-prefix-len", type=int, default=0, metavar="N", help="shared, on top")


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-prompts", type=int, default=1000, metavar="N", help="(1000)")
    _add_offline(parser)


def _add_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input-len", type=int, default=32, metavar="N", help="tokens of a prompt (32)")
    add("--output-len", type=int, default=128, metavar="N", help="tokens of an output (128)")
    add("--batch-size", type=int, default=8, metavar="N", help="prompts at once (8)")
    add("--num-iters-warmup", type=int, default=10, metavar="N", help="not counted (10)")
    add("--num-iters", type=int, default=30, metavar="N", help="counted (30)")
    _add_offline(parser)


def _add_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, default=1, help="choices of each prompt (1)")
    parser.add_argument("--output-json", metavar="FILE", help="write the figures here")
    for item, info, name in flags():
        if info.group not in _LLM_GROUPS or info.repeat:
            continue
        names = [name, info.alias] if info.alias else [name]
        if item.name == "model":
            names = ["--model"]
        if info.kind is bool:
            action = "store_false" if item.default else "store_true"
            parser.add_argument(*names, dest=item.name, help=info.help, action=action)
            continue
        parser.add_argument(
            *names,
            dest=item.name,
            help=info.help,
            type=info.kind,
            default=item.default,
            choices=info.choices or None,
            metavar=None if info.choices else info.metavar or None,
        )
