"""gpt-oss's format: every message has a channel, and calls are messages to a function.

`<|start|>assistant<|channel|>analysis<|message|>…<|end|>` is reasoning, the channel "final" the
answer, and "commentary to=functions.f" a call of f with the message as its arguments (OpenAI's
harmony response format).
"""

from __future__ import annotations

import re

from pagemill.api.tools.calls import MAX_HEAD, Calls
from pagemill.api.tools.source import Emit, Reading

_STARTS = ("<|start|>", "<|channel|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>", *_STARTS)
_RECIPIENT = re.compile(r"\bto=functions\.([\w.:/-]{1,256})")


def read_harmony(calls: Calls) -> Reading[None]:
    """Read messages until the text ends; text outside of them is content."""
    source, output = calls.source, calls.output
    marker = yield from source.literal(*_STARTS)
    while True:
        if marker in _STARTS:
            done = yield from calls.attempt(_message(calls, marker))
            if not done:
                output.content(marker)
            marker = yield from source.literal(*_STARTS)
        else:
            marker = yield from source.stream_until(_STARTS, output.content)
            if marker is None:
                return


def _message(calls: Calls, marker: str) -> Reading[bool]:
    """One message after its first marker; False when its head is not one."""
    source = calls.source
    head, found = yield from source.until("<|message|>", limit=MAX_HEAD)
    if found is None:
        return False
    source.hold = False
    end = yield from source.stream_until(_ENDS, _destination(calls, marker + head))
    if end in _STARTS:
        source.position -= len(end)
    return True


def _destination(calls: Calls, head: str) -> Emit:
    recipient = _RECIPIENT.search(head)
    if recipient:
        calls.begin(recipient.group(1))
        return calls.output.arguments
    if head.rpartition("<|channel|>")[2].strip().startswith("analysis"):
        return calls.output.reasoning
    return calls.output.content
