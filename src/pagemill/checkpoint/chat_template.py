"""Chat templates: messages to the text a model was trained on.

Templates come from model files and are not trusted: they run in a sandbox that bounds their time
and output. What they may use is what Hugging Face's `apply_chat_template` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any

from pagemill.checkpoint.base import ChatTemplates
from pagemill.checkpoint.template_budget import Budget
from pagemill.errors import InvalidParams, ModelLoadError

if TYPE_CHECKING:
    from pagemill.checkpoint.template_sandbox import MeteredEnvironment

_MAX_SOURCE = 1 << 18
_MAX_OUTPUT = 4 << 20  # characters
_WORK_PER_OUTPUT = 32  # characters made on the way, for each that may be put out
_MAX_SECONDS = 1.0
_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """A model's chat template, compiled once; `render` may be called from any thread.

    `templates` is one template, or several by name, of which "tool_use" is taken when tools are
    given and "default" otherwise. `special_tokens` (bos_token, eos_token, ...) are visible to it.
    Raises ModelLoadError when a template does not compile.
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        max_output: int = _MAX_OUTPUT,
        max_seconds: float = _MAX_SECONDS,
    ) -> None:
        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        self._max_output = max_output
        self._max_seconds = max_seconds
        self._special_tokens = dict(special_tokens or {})
        self._code = {name: self._compile(name, source) for name, source in named.items()}
        self._environments: list[MeteredEnvironment] = []  # that no rendering uses now

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text. `kwargs` are further variables of the template.

        With `continue_final_message` the text ends where the last message's content ends, so that
        the model goes on with it. Raises InvalidParams for messages that the template refuses or
        cannot render, and when it exceeds its limits.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidParams(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        if continue_final_message:
            messages = _with_mark(messages)
        variables = {
            "documents": None,
            **self._special_tokens,
            **{name: value for name, value in kwargs.items() if name not in _RESERVED},
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(self._choose(tools), variables)
        return _cut_at_mark(text) if continue_final_message else text

    def _choose(self, tools: list[dict[str, Any]] | None) -> CodeType:
        name = "tool_use" if tools and "tool_use" in self._code else "default"
        if name not in self._code:
            raise InvalidParams(
                f"the model has no default chat template, only {', '.join(sorted(self._code))}",
                param="messages",
            )
        return self._code[name]

    def _budget(self) -> Budget:
        total = self._max_output * _WORK_PER_OUTPUT
        return Budget(self._max_seconds, self._max_output, total)

    def _compile(self, name: str, source: str) -> CodeType:
        from jinja2 import TemplateError

        from pagemill.checkpoint.template_sandbox import MeteredEnvironment

        if len(source) > _MAX_SOURCE:
            raise ModelLoadError(f"chat template {name!r} is longer than {_MAX_SOURCE} characters")
        try:
            return MeteredEnvironment(self._budget()).compile(source)
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise ModelLoadError(f"chat template {name!r} does not compile: {error}") from None

    def _run(self, code: CodeType, variables: dict[str, Any]) -> str:
        from jinja2 import Template, TemplateError

        from pagemill.checkpoint.template_sandbox import TemplateRaised

        environment = self._take_environment()
        template = Template.from_code(environment, code, environment.globals)
        context = template.new_context(variables)
        try:
            return environment.concat(template.root_render_func(context))
        except TemplateRaised as error:
            raise InvalidParams(str(error), param="messages") from None
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error) or type(error).__name__
            raise InvalidParams(
                f"the chat template cannot render these messages: {reason}", param="messages"
            ) from None
        finally:
            self._environments.append(environment)

    def _take_environment(self) -> MeteredEnvironment:
        """One with a budget of its own. Making it costs more than most renderings."""
        from pagemill.checkpoint.template_sandbox import MeteredEnvironment

        budget = self._budget()
        try:
            environment = self._environments.pop()
        except IndexError:
            return MeteredEnvironment(budget)
        environment.budget = budget
        return environment


def load_chat_template(
    templates: ChatTemplates, special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """Compile what `Checkpoint.chat_template` found; None for a model without a chat format."""
    return None if templates is None else ChatTemplate(templates, special_tokens)


def _with_mark(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a mark after the last one's text, to find its end in the rendering."""
    if not messages:
        raise InvalidParams("there is no final message to continue", param="messages")
    final = dict(messages[-1])
    content = final.get("content")
    if isinstance(content, list):
        final["content"] = _mark_last_text(content)
    elif isinstance(content, str):
        final["content"] = content + _CONTINUE_MARK
    else:
        raise InvalidParams("the final message has no content to continue", param="messages")
    return [*messages[:-1], final]


def _mark_last_text(parts: list[Any]) -> list[Any]:
    for i in range(len(parts) - 1, -1, -1):
        if isinstance(parts[i], dict) and isinstance(parts[i].get("text"), str):
            marked = {**parts[i], "text": parts[i]["text"] + _CONTINUE_MARK}
            return [*parts[:i], marked, *parts[i + 1 :]]
    raise InvalidParams("the final message has no text to continue", param="messages")


def _cut_at_mark(text: str) -> str:
    """Templates that strip messages have lost the mark's last space, and then spaces before it."""
    at = text.rfind(_CONTINUE_MARK.strip())
    if at < 0:
        raise InvalidParams(
            "the chat template leaves out the final message, so it cannot be continued",
            param="continue_final_message",
        )
    kept_spaces = text.startswith(_CONTINUE_MARK, at)
    return text[:at] if kept_spaces else text[:at].rstrip()
