"""Calls as models write them, for every format."""

# ruff: noqa: RUF001 (the bars in DeepSeek's tokens are full-width on purpose)

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Call = tuple[str, dict[str, Any]]


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_json(call: Call, key: str = "arguments") -> str:
    return dump({"name": call[0], key: call[1]})


def hermes(calls: list[Call]) -> str:
    return "\n".join(f"<tool_call>\n{as_json(call)}\n</tool_call>" for call in calls)


def hermes_list(calls: list[Call]) -> str:
    return f"<tool_call>[{', '.join(map(as_json, calls))}]</tool_call>"


def hermes_arguments_first(calls: list[Call]) -> str:
    texts = [dump({"id": "x", "arguments": a, "name": name}) for name, a in calls]
    return "\n".join(f"<tool_call>{text}</tool_call>" for text in texts)


def hermes_arguments_as_text(calls: list[Call]) -> str:
    texts = [dump({"name": name, "arguments": dump(a)}) for name, a in calls]
    return "\n".join(f"<tool_call>{text}</tool_call>" for text in texts)


def phi4(calls: list[Call]) -> str:
    return f"<|tool_call|>[{','.join(map(as_json, calls))}]<|/tool_call|>"


def llama3(calls: list[Call]) -> str:
    return "; ".join(as_json(call, "parameters") for call in calls)


def llama3_with_tag(calls: list[Call]) -> str:
    return "<|python_tag|>" + llama3(calls)


def llama3_with_type(calls: list[Call]) -> str:
    return ";".join(dump({"type": "function", "name": n, "parameters": a}) for n, a in calls)


def mistral_list(calls: list[Call]) -> str:
    return f"[TOOL_CALLS] [{', '.join(map(as_json, calls))}]"


def mistral_named(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(a)}" for name, a in calls)


def mistral_with_ids(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[CALL_ID]abc123xyz[ARGS]{dump(a)}" for name, a in calls)


def mistral_without_mark(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}{dump(a)}" for name, a in calls)


def deepseek_v3(calls: list[Call]) -> str:
    body = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dump(a)}\n```<｜tool▁call▁end｜>"
        for name, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{body}<｜tool▁calls▁end｜>"


def deepseek_v31(calls: list[Call]) -> str:
    body = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dump(a)}<｜tool▁call▁end｜>"
        for name, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{body}<｜tool▁calls▁end｜>"


def kimi(calls: list[Call]) -> str:
    body = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{dump(a)}"
        "<|tool_call_end|>"
        for i, (name, a) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{body}<|tool_calls_section_end|>"


def glm(calls: list[Call]) -> str:
    def one(call: Call) -> str:
        pairs = [
            f"<arg_key>{key}</arg_key>\n<arg_value>{_bare(value)}</arg_value>\n"
            for key, value in call[1].items()
        ]
        return f"<tool_call>{call[0]}\n{''.join(pairs)}</tool_call>"

    return "\n".join(map(one, calls))


def qwen3_coder(calls: list[Call], wrapped: bool = True) -> str:
    def one(call: Call) -> str:
        pairs = [
            f"<parameter={key}>\n{_bare(value)}\n</parameter>\n" for key, value in call[1].items()
        ]
        text = f"<function={call[0]}>\n{''.join(pairs)}</function>"
        return f"<tool_call>\n{text}\n</tool_call>" if wrapped else text

    return "\n".join(map(one, calls))


def qwen3_coder_unwrapped(calls: list[Call]) -> str:
    return qwen3_coder(calls, wrapped=False)


def minimax(calls: list[Call]) -> str:
    def one(call: Call) -> str:
        pairs = [
            f'<parameter name="{key}">{_bare(value)}</parameter>\n'
            for key, value in call[1].items()
        ]
        return f'<invoke name="{call[0]}">\n{"".join(pairs)}</invoke>'

    return "<minimax:tool_call>\n" + "\n".join(map(one, calls)) + "\n</minimax:tool_call>"


def seed_oss(calls: list[Call]) -> str:
    text = qwen3_coder(calls)
    return text.replace("tool_call>", "seed:tool_call>")


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else dump(value)


def pythonic(calls: list[Call]) -> str:
    def one(call: Call) -> str:
        return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"

    return f"[{', '.join(map(one, calls))}]"


def pythonic_with_tags(calls: list[Call]) -> str:
    return f"<|python_start|>{pythonic(calls)}<|python_end|>"


def lfm2(calls: list[Call]) -> str:
    return f"<|tool_call_start|>{pythonic(calls)}<|tool_call_end|>"


def harmony(calls: list[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dump(a)}<|call|>"
        for name, a in calls
    )


def harmony_other_order(calls: list[Call]) -> str:
    return "".join(
        f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>"
        f"{dump(a)}<|call|>"
        for name, a in calls
    )


def plain_list(calls: list[Call]) -> str:
    return f"[{', '.join(map(as_json, calls))}]"


WRITERS: list[tuple[str, Callable[[list[Call]], str]]] = [
    ("hermes", hermes),
    ("hermes", hermes_list),
    ("hermes", hermes_arguments_first),
    ("hermes", hermes_arguments_as_text),
    ("phi4", phi4),
    ("llama3_json", llama3),
    ("llama3_json", llama3_with_tag),
    ("llama3_json", llama3_with_type),
    ("mistral", mistral_list),
    ("mistral", mistral_named),
    ("mistral", mistral_with_ids),
    ("mistral", mistral_without_mark),
    ("deepseek", deepseek_v3),
    ("deepseek", deepseek_v31),
    ("kimi", kimi),
    ("glm", glm),
    ("qwen3_coder", qwen3_coder),
    ("qwen3_coder", qwen3_coder_unwrapped),
    ("minimax", minimax),
    ("seed_oss", seed_oss),
    ("pythonic", pythonic),
    ("pythonic", pythonic_with_tags),
    ("lfm2", lfm2),
    ("lfm2", pythonic),
    ("harmony", harmony),
    ("harmony", harmony_other_order),
    ("json", plain_list),
]
