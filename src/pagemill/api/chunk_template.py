"""Stream chunks whose only change is a text: the JSON around it is encoded once."""

from __future__ import annotations

import msgspec

from pagemill.api.direct import Encode
from pagemill.api.sse import event
from pagemill.frontend.outputs import ChoiceUpdate

MARK = "\x1ftext\x1f"  # control characters, which no name or id in a chunk can have
_encode_text = msgspec.json.Encoder().encode


def text_events(chunk: msgspec.Struct, without_text: Encode) -> Encode:
    """Makes the event that `chunk` would be with an update's text in the place of `MARK`.

    Updates without text, of tokens that end within a character, go to `without_text`.
    """
    before, after = event(chunk).split(_encode_text(MARK))

    def encode(update: ChoiceUpdate) -> bytes:
        if not update.text:
            return without_text(update)
        return before + _encode_text(update.text) + after

    return encode
