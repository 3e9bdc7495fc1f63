"""The command line, built from the fields of `ServeArgs`. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pagemill.cli.bench_parser import add_bench
from pagemill.config.args import Flag, ServeArgs, flags
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
    _add_chat(commands)
    add_bench(commands, _Help)
    return parser


def serve_args(parsed: argparse.Namespace) -> ServeArgs:
    """The `ServeArgs` of a parsed `serve` command."""
    values: dict[str, Any] = {}
    for item, info, _ in flags():
        value = getattr(parsed, item.name)
        values[item.name] = tuple(value) if info.repeat else value
    return ServeArgs(**values)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="load a model and answer requests",
        description="Load a model and serve it with an OpenAI-compatible API.",
        formatter_class=_Help,
    )
    groups: dict[str, Any] = {}
    for item, info, name in flags():
        if item.name == "model":
            serve.add_argument("model", nargs="?", metavar=info.metavar, help=info.help)
            continue
        if info.group not in groups:
            groups[info.group] = serve.add_argument_group(info.group)
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


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with a usage line when it is wrong."""
    return build_parser().parse_args(argv)
