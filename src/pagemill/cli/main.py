"""The `pagemill` command. A command's module is imported when the command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pagemill.cli.parser import BatchArgs, parse, serve_args
from pagemill.errors import PageMillError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error of ours is one line on stderr and 1."""
    parsed = parse(argv)
    try:
        if parsed.command == "chat":
            from pagemill.cli.chat import chat

            return chat(parsed)
        if parsed.command == "bench":
            from pagemill.cli.bench import bench

            return bench(parsed)
        if parsed.command == "run-batch":
            from pagemill.cli.run_batch import run_batch

            return run_batch(serve_args(parsed), BatchArgs.of(parsed))
        if parsed.command == "doctor":
            from pagemill.cli.doctor.command import doctor

            return doctor(parsed)
        from pagemill.cli.serve import serve

        return serve(serve_args(parsed))
    except PageMillError as error:
        print(f"pagemill: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
