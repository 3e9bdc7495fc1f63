"""Chat templates render as Hugging Face renders them, and cannot take the server down."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import jinja2
import pytest

from pagemill.checkpoint.chat_template import ChatTemplate, load_chat_template
from pagemill.errors import InvalidParams, ModelLoadError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if tools is not none %}
    {{- "Tools: " }}
    {%- for t in tools %}
        {{- t | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim %}
    {%- if message.role not in ['user', 'assistant', 'system'] %}
        {{- raise_exception('unknown role ' ~ message.role) }}
    {%- endif %}
    {{- content + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\n\n' }}
{%- endif %}
"""
FEATURES = """
{%- macro item(m, depth=0) %}{{ '  ' * depth }}{{ m.role | upper }}: {{ m.content | trim }}
{%- endmacro %}
{%- set ns = namespace(count=0, seen=[]) %}
{%- for m in messages if m.content %}
  {%- set ns.count = ns.count + 1 %}
  {%- set ns.seen = ns.seen + [m.role] %}
  {%- if loop.index0 > 3 %}{% break %}{% endif %}
  {{- item(m, loop.index0) }}|{{ loop.length }}|{{ loop.last }}
{% endfor -%}
{{ ns.count }} {{ ns.seen | join(', ') }} {{ ns.seen[::-1] }} {{ {'a': [1, "é<&>"]} | tojson }}
{% generation %}{{ messages[-1].content.split('l') | list }}{% endgeneration %}
{% filter upper %}done {{ 7 // 2 }} {{ 2 ** 10 }}{% endfilter %}
{{ '%s-%05.1f' % ('x', 2.5) }} {{ '{:>6}|{}'.format('ab', 3) }} {{ '%d' | format(7) }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}
{{ 'a\nb' | indent(4) }}|{{ 'abc' | replace('b', 'xx') }}|{{ ['b', 'a'] | sort | join('~') }}
{{ "x" if messages is defined and unknown is not defined else "y" }} {{ [1, 2] | sum }}
{%- set text %}{{ messages[0].role }}!{% endset %}{{ text ~ 1 ~ none }}
{{ dict(a=1) | items | list }} {{ ' pad ' | center(11) }} {{ 3.14159 | round(2) }}
"""
MESSAGES = [
    {"role": "user", "content": " Hello <there> "},
    {"role": "assistant", "content": "World"},
    {"role": "user", "content": "all well?"},
]
TOOLS = [{"type": "function", "function": {"name": "f<>", "parameters": {"é": 1}}}]


def hugging_face(template: str, **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    continuing = options.get("continue_final_message", False)
    texts, _ = render_jinja_template(
        [[dict(m) for m in MESSAGES]], chat_template=template, **options, bos_token="<s>"
    )
    assert continuing or texts
    return texts[0]


@pytest.mark.parametrize("template", [CHATML, LLAMA3, FEATURES], ids=["chatml", "llama3", "all"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_renders_as_hugging_face_does(template: str, tools: Any) -> None:
    ours = ChatTemplate(template, {"bos_token": "<s>"})
    for prompt in (True, False):
        rendered = ours.render(MESSAGES, tools=tools, add_generation_prompt=prompt)
        assert rendered == hugging_face(template, tools=tools, add_generation_prompt=prompt)


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["keeps spaces", "strips"])
def test_continues_the_final_message_as_hugging_face_does(template: str) -> None:
    ours = ChatTemplate(template, {"bos_token": "<s>"})
    text = ours.render(MESSAGES, add_generation_prompt=False, continue_final_message=True)
    assert text == hugging_face(template, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("all well?")
    assert MESSAGES[-1]["content"] == "all well?"


def test_continues_a_message_made_of_parts() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content[0].text }}<end>{% endfor %}")
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "so "}]}]
    text = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "so "


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [([], False), ([{"role": "user"}], False), (MESSAGES, True)],
    ids=["none", "no content", "both options"],
)
def test_refuses_to_continue_what_has_no_end(messages: Any, prompt: bool) -> None:
    template = ChatTemplate(CHATML)
    with pytest.raises(InvalidParams):
        template.render(messages, add_generation_prompt=prompt, continue_final_message=True)


def test_raise_exception_becomes_the_message_of_an_invalid_request() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidParams, match=r"^roles must alternate$") as caught:
        template.render(MESSAGES)
    assert caught.value.param == "messages"


def test_kwargs_reach_the_template_but_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ messages | length }}")
    assert template.render(MESSAGES, enable_thinking=False) == "False 3"


def test_named_templates_are_chosen_by_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert template.render(MESSAGES) == "plain"
    assert template.render(MESSAGES, tools=TOOLS) == "tools"
    with pytest.raises(InvalidParams, match="no default chat template, only rag"):
        ChatTemplate({"rag": "x"}).render(MESSAGES)
    assert load_chat_template(None, {}) is None


def test_date_is_available() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]) == time.strftime("%Y")


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | wordwrap(1) }}", "{{ " + "(" * 5000])
def test_a_broken_template_is_a_load_error(source: str) -> None:
    with pytest.raises(ModelLoadError, match="does not compile"):
        ChatTemplate(source).render([])


LONG = "{% set a = 'x' * 4000000 %}"
DOUBLING = "{% set a = 'xy' %}" + "{% set a = a ~ a %}" * 60
BOMBS = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "nested loops with loop": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% if loop.last %}x{% endif %}"
        "{% endfor %}{% endfor %}"
    ),
    "filtered loop": "{% for i in range(99999) if i in (range(99999) | list) %}{% endfor %}",
    "multiplication": "{{ 'a' * 10**10 }}",
    "list multiplication": "{{ ([0] * 10**10) | length }}",
    "reversed multiplication": "{{ 10**10 * 'a' }}",
    "power": "{{ 10**(10**8) }}",
    "repeated squaring": "{% set n = 3 %}" + "{% set n = n * n %}" * 60,
    "concatenation": DOUBLING,
    "addition": DOUBLING.replace("~", "+"),
    "set blocks": "{% set a = 'xy' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "macros": "{% macro m0() %}xxxxxxxx{% endmacro %}"
    + "".join(
        f"{{% macro m{i} () %}}{{{{ m{i - 1}() }}}}{{{{ m{i - 1}() }}}}{{% endmacro %}}"
        for i in range(1, 50)
    )
    + "{{ m49() }}",
    "macro recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": (
        "{% for i in [[1,2],[3,4]] recursive %}{{ loop([[1,2],[3,4]]) }}{% endfor %}"
    ),
    "output": LONG + "{{ a }}{{ a }}",
    "looped output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "mapped center": "{{ ['a'] | map('center', 10**9) | list }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "nested format width": "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "format repetition": LONG + "{{ '" + "{0}" * 2000 + "'.format(a) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent precision": "{{ '%.1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "percent name": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "percent filter": "{{ '%1000000000d' | format(1) }}",
    "join filter": LONG + "{{ range(99999) | join(a) }}",
    "join method": LONG + "{{ a.join(['x'] * 100000) }}",
    "join repetition": LONG + "{{ [a, a, a] | join }}",
    "replace filter": LONG + "{{ a | replace('x', 'y' * 4000000) }}",
    "replace method": LONG + "{{ a.replace('', a) }}",
    "indent": "{{ ('\n' * 1000000) | indent(99999) }}",
    "tojson indent": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "tojson deep": "{% set a = [1] * 100000 %}"
    + "{% set a = [a] %}" * 300
    + "{{ a | tojson(indent=16) }}",
    "shared lists": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "shared dicts": "{% set a = {} %}" + "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a | tojson }}",
    "shared views": "{% set a = {'k': 'x' * 1000000}.items() %}{{ [a] * 100000 }}",
    "shared comparison": "{% set a = [1] %}{% set b = [1] %}"
    + "{% set a = [a, a] %}{% set b = [b, b] %}" * 60
    + "{{ a == b }}",
    "namespace text": "{% set n = namespace(x='x' * 1000000) %}{{ n.x * 5 }}",
    "sum of lists": "{{ ([[1]] * 100000) | sum(start=[]) }}",
    "striptags": "{% set a = ('<!--' * 500000) | escape %}" + "{{ a.striptags() | length }}" * 60,
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "slices": LONG + "{{ a[1:] | length }}" * 5000,
    "comparisons": "{% set a = 'x' * 4000000 %}{% set b = 'x' * 3999999 ~ 'y' %}"
    + "{% if a == b %}{% endif %}" * 8000,
    "lipsum": "{{ lipsum(n=10**9) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "cycler": "{% set c = cycler(*range(10**9)) %}",
    "strftime": "{{ strftime_now('%Y' * 1000000) }}",
    "dict": "{% set a = dict(x='x' * 1000000) %}" + "{% set a = dict(x=a, y=a) %}" * 40,
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_fails_soon_and_small(source: str) -> None:
    template = ChatTemplate(source, max_seconds=0.3)
    started = time.thread_time()
    with pytest.raises(InvalidParams) as caught:
        template.render(MESSAGES)
    assert time.thread_time() - started < 10.0  # its budget, and the longest single operation
    assert caught.value.param == "messages"
    tracemalloc.start()  # not before, for it takes several times as long
    try:
        with pytest.raises(InvalidParams):
            template.render(MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 600e6
    finally:
        tracemalloc.stop()


ESCAPES = [
    "{{ ''.__class__.__mro__ }}{{ ''.__class__.x }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages.__class__('x').y }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__init__=1) }}",
    "{{ range.__globals__.x }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ ('' | attr('__class__')).x }}",
    "{{ '{0.__class__.x}'.format(1) }}",
    "{{ cycler.__init__.__globals__.x }}",
    "{{ self.__init__.__globals__.x }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ dict.mro() }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    messages = [dict(m) for m in MESSAGES]
    with pytest.raises(InvalidParams):
        ChatTemplate(source).render(messages)
    assert messages == MESSAGES


def test_an_honest_long_chat_is_fast() -> None:
    """The sandbox costs a few times what the template itself does, not a hundred times."""
    template = ChatTemplate(LLAMA3, {"bos_token": "<s>"})
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(LLAMA3)
    chat = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "x"}] * 500
    assert len(template.render(chat)) > 500_000
    honest = fastest(lambda: template.render(chat))
    assert honest < 40 * fastest(lambda: plain.render(messages=chat, bos_token="<s>"))


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the processor for the best of some runs."""
    times = []
    for _ in range(5):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return min(times)
