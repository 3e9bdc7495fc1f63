"""Everything a user can set when serving. The command line is built from these fields.

A field's default is what `resolve` starts from: None means "choose for the model and the device".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_FLAGS = 60


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field of `ServeArgs` looks on the command line."""

    group: str
    help: str
    name: str = ""  # "" : from the field's name
    alias: str = ""  # what other servers call it
    choices: tuple[str, ...] = ()
    metavar: str = ""
    kind: type = str  # of one value: str, int, float or bool
    repeat: bool = False  # may be given several times


def flag(default: Any, group: str, text: str, **options: Any) -> Any:
    """A dataclass field with a `Flag`; a tuple default makes it repeatable."""
    metadata = {"flag": Flag(group, text, repeat=isinstance(default, tuple), **options)}
    return field(default=default, metadata=metadata)


_MODEL = "model"
_SERVER = "server"
_ACCESS = "access"
_COMPUTE = "computing"
_MEMORY = "memory"
_SCHEDULE = "scheduling"
SERVING_GROUPS = (_SERVER, _ACCESS)  # of no use without a server


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArgs:
    """Settings as the user gave them."""

    model: str | None = flag(
        None,
        _MODEL,
        "folder, .gguf file, hub id or built-in name; without it, the demo model",
        metavar="MODEL",
    )
    revision: str | None = flag(None, _MODEL, "branch, tag or commit of a hub model")
    offline: bool = flag(False, _MODEL, "never download; use what is cached", kind=bool)
    cache_dir: str | None = flag(None, _MODEL, "where hub downloads are kept", metavar="DIR")
    load_format: str = flag(
        "auto", _MODEL, "'dummy' fills random weights", choices=("auto", "dummy")
    )
    served_model_name: tuple[str, ...] = flag(
        (), _MODEL, "name the API answers to, several allowed; default: its own", metavar="NAME"
    )
    chat_template: str | None = flag(
        None, _MODEL, "Jinja file to use instead of the model's own template", metavar="FILE"
    )
    runner: str = flag(
        "auto",
        _MODEL,
        "'pooling' makes embeddings or scores instead of text; auto: as the model's files say",
        choices=("auto", "generate", "pooling"),
    )
    tool_call_parser: str = flag(
        "auto", _MODEL, "format of tool calls; auto: as the chat template says", metavar="NAME"
    )
    reasoning_parser: str = flag(
        "auto", _MODEL, "format of reasoning; auto: as the chat template says", metavar="NAME"
    )
    generation_config: str = flag(
        "auto",
        _MODEL,
        "sampling defaults: the model's own, or 'vendor-neutral' for OpenAI's",
        choices=("auto", "vendor-neutral"),
    )

    host: str = flag("127.0.0.1", _SERVER, "address to listen on")
    port: int = flag(8000, _SERVER, "port to listen on; 0 takes a free one", kind=int)
    ssl_certfile: str | None = flag(None, _SERVER, "TLS certificate chain", metavar="FILE")
    ssl_keyfile: str | None = flag(None, _SERVER, "TLS private key", metavar="FILE")
    max_body_bytes: int = flag(8 * 2**20, _SERVER, "largest request body", kind=int, metavar="N")
    data_dir: str | None = flag(
        None, _SERVER, "folder for files and batches, which are off without", metavar="DIR"
    )
    batch_retention: int = flag(
        30,
        _SERVER,
        "days for which ended batches and their results are kept; 0: no end",
        kind=int,
        metavar="DAYS",
    )
    drain_timeout: float = flag(
        30.0, _SERVER, "seconds that open requests get at Ctrl-C", kind=float, metavar="SECONDS"
    )
    sse_keep_alive: float = flag(
        15.0,
        _SERVER,
        "seconds of silence in a stream before a comment is sent; 0: none",
        kind=float,
        metavar="SECONDS",
    )
    frontend_workers: str = flag(
        "auto", _SERVER, "processes that answer HTTP; auto: more beside a GPU", metavar="N"
    )
    log_level: str = flag(
        "info", _SERVER, "how much to log", choices=("debug", "info", "warning", "error")
    )
    otlp_endpoint: str | None = flag(
        None, _SERVER, "send traces to an OTLP collector; needs pagemill[otel]", metavar="URL"
    )
    json_logs: bool = flag(False, _SERVER, "log one JSON object a line", kind=bool)

    api_key: tuple[str, ...] = flag(
        (), _ACCESS, "key for clients, several allowed; also $PAGEMILL_API_KEY", metavar="KEY"
    )
    api_key_file: str | None = flag(None, _ACCESS, "file with one key a line", metavar="FILE")
    admin_key: str | None = flag(
        None, _ACCESS, "key for the administrative endpoints, which are off without", metavar="KEY"
    )
    allowed_host: tuple[str, ...] = flag(
        (), _ACCESS, "Host header to answer, several allowed; default: by --host", metavar="NAME"
    )
    max_requests_per_key: int = flag(
        4096, _ACCESS, "most requests of one key at once; more get 429", kind=int, metavar="N"
    )
    rate_limit_requests: int = flag(
        0, _ACCESS, "requests a minute for each key; 0: any number", kind=int, metavar="N"
    )
    rate_limit_tokens: int = flag(
        0, _ACCESS, "tokens a minute for each key; 0: any number", kind=int, metavar="N"
    )
    no_auth: bool = flag(
        False, _ACCESS, "listen beyond this machine without a key", kind=bool, name="--no-auth"
    )

    device: str = flag("auto", _COMPUTE, "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = flag(
        "auto",
        _COMPUTE,
        "type of weights and activations",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    quantization: str = flag(
        "auto",
        _COMPUTE,
        "bits of weights: int8, int4 on CPUs, fp8 on GPUs; auto: int8 on CPUs without --dtype",
        choices=("auto", "none", "int8", "int4", "fp8"),
    )
    speculative: str = flag(
        "none", _COMPUTE, "guess tokens ahead, from the text so far", choices=("none", "ngram")
    )
    num_speculative_tokens: int = flag(
        4, _COMPUTE, "tokens guessed per step with --speculative", kind=int, metavar="N"
    )
    threads: int | None = flag(None, _COMPUTE, "CPU threads; default: cores", kind=int, metavar="N")
    seed: int = flag(0, _COMPUTE, "seed for requests that bring none", kind=int)
    deterministic: bool = flag(
        False, _COMPUTE, "a request's output never depends on its batch", kind=bool
    )
    overlap: bool = flag(
        True, _COMPUTE, "wait for each step before the next (debugging)", kind=bool
    )

    max_model_len: int | None = flag(
        None,
        _MEMORY,
        "longest prompt plus output; default: what the model allows and memory holds",
        kind=int,
        metavar="TOKENS",
    )
    memory_utilization: float | None = flag(
        None,
        _MEMORY,
        "share of the device's memory to use",
        kind=float,
        metavar="SHARE",
        alias="--gpu-memory-utilization",
    )
    kv_cache_dtype: str = flag(
        "auto",
        _MEMORY,
        "type of cached keys and values: int8 on CPUs, fp8 on GPUs; model: 16 bits or the model's",
        choices=("auto", "model", "int8", "fp8"),
    )
    kv_cache_bytes: int | None = flag(
        None, _MEMORY, "size of the KV cache instead of the share", kind=int, metavar="N"
    )
    prefix_cache: bool = flag(True, _MEMORY, "never reuse the KV of equal prompts", kind=bool)

    max_num_seqs: int | None = flag(
        None, _SCHEDULE, "most requests computed at once", kind=int, metavar="N"
    )
    max_num_batched_tokens: int | None = flag(
        None,
        _SCHEDULE,
        "most tokens computed in one step; default: by device, on GPUs also by the model's size",
        kind=int,
        metavar="N",
    )
    max_num_queued_reqs: int = flag(
        1024, _SCHEDULE, "most requests waiting; more get 503", kind=int, metavar="N"
    )
    max_num_queued_tokens: int | None = flag(
        None, _SCHEDULE, "most prompt tokens waiting; more get 503", kind=int, metavar="N"
    )
    scheduling_policy: str = flag(
        "fcfs", _SCHEDULE, "order of waiting requests", choices=("fcfs", "priority")
    )


def flags() -> Iterator[tuple[dataclasses.Field[Any], Flag, str]]:
    """Every field with its flag and its name on the command line, `model` being positional.

    A bool that is on by default is turned off by `--no-…`.
    """
    for item in dataclasses.fields(ServeArgs):
        info: Flag = item.metadata["flag"]
        prefix = "--no-" if info.kind is bool and item.default is True else "--"
        yield item, info, info.name or prefix + item.name.replace("_", "-")
