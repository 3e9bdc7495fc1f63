"""The command line, built from the fields of `ServeArgs`. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagemill.cli.bench_parser import add_bench
from pagemill.config.args import SERVING_GROUPS, Flag, ServeArgs, flags
from pagemill.version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"


class _Help(argparse.HelpFormatter):
    """Wider columns, so that a flag and its help stand on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def build_parser() -> argparse.ArgumentParser:
    """`pagemill` with its commands; the chosen one is in `command`."""
    parser = argparse.ArgumentParser(
        prog="pagemill",
        description="Serve a large language model with an OpenAI-compatible API.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"pagemill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_run_batch(commands)
    _add_chat(commands)
    add_bench(commands, _Help)
    _add_doctor(commands)
    return parser


@dataclass(frozen=True, slots=True)
class BatchArgs:
    """What `run-batch` takes besides the settings of the model; `max_inflight` 0: chosen."""

    input: Path
    output: Path
    max_inflight: int = 0
    strict: bool = False

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> BatchArgs:
        return cls(parsed.input, parsed.output, parsed.max_inflight, parsed.strict)


def serve_args(parsed: argparse.Namespace) -> ServeArgs:
    """The `ServeArgs` of a parsed command; what it has no flag for keeps its default."""
    values: dict[str, Any] = {}
    for item, info, _ in flags():
        value: Any = getattr(parsed, item.name, item.default)
        values[item.name] = tuple(value) if info.repeat else value
    return ServeArgs(**values)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="load a model and answer requests",
        description="Load a model and serve it with an OpenAI-compatible API.",
        formatter_class=_Help,
    )
    _add_flags(serve)


def _add_run_batch(commands: Any) -> None:
    batch = commands.add_parser(
        "run-batch",
        help="answer a file of requests without a server",
        description="Answer a file of requests in OpenAI's batch format. A run that was "
        "interrupted goes on where it stopped when it is started again.",
        formatter_class=_Help,
    )
    required = {"type": Path, "required": True, "metavar": "FILE"}
    batch.add_argument("-i", "--input", help="requests, one JSON object a line", **required)
    batch.add_argument("-o", "--output", help="answers, one a line as they come", **required)
    batch.add_argument(
        "--max-inflight",
        type=_positive,
        default=0,
        metavar="N",
        help="requests given to the engine at once; default: a few more than it computes at once",
    )
    batch.add_argument(
        "--strict", action="store_true", help="refuse an input with a malformed line"
    )
    _add_flags(batch, without=SERVING_GROUPS)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _add_flags(parser: Any, without: Collection[str] = ()) -> None:
    """The fields of `ServeArgs` as flags, except those of the groups `without`."""
    groups: dict[str, Any] = {}
    for item, info, name in flags():
        if item.name == "model":
            parser.add_argument("model", nargs="?", metavar=info.metavar, help=info.help)
            continue
        if info.group in without:
            continue
        if info.group not in groups:
            groups[info.group] = parser.add_argument_group(info.group)
        options = _options(info, item.default)
        names = [name, info.alias] if info.alias else [name]
        groups[info.group].add_argument(*names, dest=item.name, help=_help(info, item), **options)


def _options(info: Flag, default: Any) -> dict[str, Any]:
    """The argparse options of a flag."""
    if info.kind is bool:
        return {"action": "store_false" if default else "store_true"}
    options: dict[str, Any] = {"type": info.kind, "default": default}
    if info.repeat:
        options |= {"action": "append", "default": list(default)}
    if info.choices:
        options["choices"] = info.choices
    else:
        options["metavar"] = info.metavar or None
    return options


def _help(info: Flag, item: Any) -> str:
    """The help text, with the default where there is one to show."""
    shown = info.kind is not bool and item.default not in (None, ())
    return f"{info.help} ({item.default})" if shown else info.help


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser(
        "chat",
        help="talk to a running server in the terminal",
        description="Talk to a running server. /reset forgets the conversation, /exit ends it.",
        formatter_class=_Help,
    )
    chat.add_argument("--url", default=DEFAULT_URL, help=f"address of the server ({DEFAULT_URL})")
    chat.add_argument("--model", help="name of the model; default: the server's first")
    chat.add_argument("--api-key", metavar="KEY", help="key to send; also $PAGEMILL_API_KEY")
    chat.add_argument("--system", metavar="TEXT", help="system prompt")
    chat.add_argument("--temperature", type=float, help="default: the server's")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    chat.add_argument("-q", "--quick", metavar="TEXT", help="send one message, print, and exit")


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="show what this machine has, what fits on it, and what would be slow",
        description="Look at this machine. Ends with 1 when something keeps PageMill from working.",
        formatter_class=_Help,
    )
    doctor.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model to fit instead of the usual sizes"
    )
    doctor.add_argument("--host", default="127.0.0.1", help="address to try (127.0.0.1)")
    doctor.add_argument("--port", type=int, help="port that must be free; else 8000 is looked at")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with a usage line when it is wrong."""
    return build_parser().parse_args(argv)
