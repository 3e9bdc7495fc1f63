"""Writes docs/settings.md from the program itself:  python docs/generate.py  (a test compares)."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from pagemill.config.args import Flag, flags

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

All flags of `pagemill serve`, made by `docs/generate.py`. `run-batch`, `bench` and `LLM(...)` take
those of the model, of computing, of memory and of scheduling, too. The only variables of the
environment are `PAGEMILL_API_KEY` and `PAGEMILL_ADMIN_KEY`, for tests `PAGEMILL_CPU_ISA`, and those
of libraries: `HF_HOME`, `HF_TOKEN` and their like, `OTEL_SERVICE_NAME` and its like,
`TRITON_CACHE_DIR`, where GPU kernels are kept.
"""


def settings_page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for group, rows in groupby(flags(), key=lambda row: row[1].group):
        parts.append(f"\n## {group.capitalize()}\n\n| flag | default | |\n|---|---|---|\n")
        parts += [_row(item.default, info, name) for item, info, name in rows]
    return "".join(parts)


def _row(default: Any, info: Flag, name: str) -> str:
    shown = name if name != "--model" else "MODEL"
    names = f"`{shown}`" + (f", `{info.alias}`" if info.alias else "")
    value = "" if info.kind is bool or default in (None, ()) else f"`{default}`"
    choices = f" ({', '.join(f'`{choice}`' for choice in info.choices)})" if info.choices else ""
    return f"| {names} | {value} | {info.help}{choices} |\n"


if __name__ == "__main__":
    PAGE.write_text(settings_page())
    sys.stdout.write(f"{PAGE}\n")
