"""What the tests of all clients share; it imports nothing but the standard library."""

from __future__ import annotations

import os
from typing import Any

URL = os.environ["PAGEMILL_TEST_URL"]
BASE = f"{URL}/v1"
VECTORS = os.environ["PAGEMILL_TEST_VECTORS_URL"] + "/v1"
EMBEDDER = "all-MiniLM-L6-v2"
KEY = "test-key"
MODEL = "SmolLM2-135M-Instruct"
QUESTION = "Name one animal that lives in the sea."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
