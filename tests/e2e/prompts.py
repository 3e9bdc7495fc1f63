"""The prompts of the golden tests: plain and chat text, short and long, several scripts."""

from __future__ import annotations

_CHAT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

_PASSAGE = (
    "The water mill stood at the bend of the river, where the stream ran fast even in August. "
    "Farmers brought their grain in the morning and took their flour home at night. The miller "
    "weighed each sack twice, wrote the number on a slate, and hung the slate by the door. "
)

PLAIN = (
    "Once upon a time",
    "The three primary colours are",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius, which is",
    "La capitale de la France est",
    "1 2 3 4 5 6 7 8",
    "In 1969, the first human walked on",
    "Q: What is 12 + 30?\nA:",
    "import numpy as np\n\nx = np.",
    "The quick brown fox 🦊 jumps over",
    _PASSAGE * 6 + "At the end of the day, the miller",
    _PASSAGE * 2 + "The slate by the door said:",
)

CHAT = (
    "Name three animals that live in the sea.",
    "Write one sentence about the moon.",
    "What is photosynthesis?",
    "Translate 'good morning' to Spanish.",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Explain gravity to a child.",
    "List the days of the week.",
)


def chat_text(question: str) -> str:
    """A question in the ChatML form of SmolLM2's own template, with its default system prompt."""
    return (
        f"<|im_start|>system\n{_CHAT_SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
