"""Requests to prompts: chat template and tokeniser, off the event loop where they take long."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pagemill.errors import InvalidParams
from pagemill.frontend.chat_messages import normalise_messages
from pagemill.frontend.infill import Infill
from pagemill.frontend.outputs import Prompt
from pagemill.frontend.pair_encoding import checked_keep, prompt_of
from pagemill.frontend.tokenizer import Tokenizer
from pagemill.frontend.validate import check_prompt_ids

if TYPE_CHECKING:
    from pagemill.checkpoint.chat_template import ChatTemplate

_NUM_THREADS = 2
_SHORT_TEXT = 2000  # characters; a millisecond of work, less than it is worth a thread hand-off
_SHORT_TOKENS = 2000

T = TypeVar("T")


class ModelRenderer:
    """A `Renderer` for one model. `vocab_size` is the model's, which bounds every token id.

    `template_text` is the source of `template`. `developer_role` says whether the template knows
    that role; otherwise it reads "system".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        vocab_size: int,
        max_model_len: int = 0,
        template_text: str = "",
        developer_role: bool = False,
    ) -> None:
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.has_chat_template = template is not None
        self.template_text = template_text
        self._tokenizer = tokenizer
        self._template = template
        self._developer_role = developer_role
        self._infill = Infill(tokenizer)
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="render")

    async def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: dict[str, Any] | None = None,
    ) -> Prompt:
        """See `Renderer.render_chat`."""

        def render() -> Prompt:
            return self.render_chat_now(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                add_special_tokens=add_special_tokens,
                template_kwargs=template_kwargs,
            )

        size = sum(len(str(m.get("content"))) for m in messages if isinstance(m, dict))
        return await self._run(render, short=size < _SHORT_TEXT and not tools)

    def render_chat_now(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: dict[str, Any] | None = None,
    ) -> Prompt:
        """The same, on the calling thread."""
        if self._template is None:
            raise InvalidParams(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        text = self._template.render(
            normalise_messages(messages, developer_role=self._developer_role),
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(template_kwargs or {}),
        )
        return self.encode_now(text, add_special_tokens=add_special_tokens, param="messages")

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> Prompt:
        """See `Renderer.encode`. Raises InvalidParams for text that is not valid Unicode."""
        return await self._run(
            lambda: self.encode_now(text, add_special_tokens=add_special_tokens),
            short=len(text) < _SHORT_TEXT,
        )

    def encode_now(
        self, text: str, *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> Prompt:
        """The same, on the calling thread."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens, param=param)
        return Prompt(token_ids, text, max(token_ids, default=self.vocab_size) < self.vocab_size)

    async def encode_texts(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        keep: int | None = None,
        add_special_tokens: bool = True,
        param: str = "input",
    ) -> list[Prompt]:
        """See `Renderer.encode_texts`."""
        size = sum(map(_size, itertools.islice(texts, _SHORT_TEXT)))
        return await self._run(
            lambda: self.encode_texts_now(
                texts, keep=keep, add_special_tokens=add_special_tokens, param=param
            ),
            short=size < _SHORT_TEXT,
        )

    def encode_texts_now(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        keep: int | None = None,
        add_special_tokens: bool = True,
        param: str = "input",
    ) -> list[Prompt]:
        """The same, on the calling thread."""
        keep = checked_keep(keep, self.max_model_len)
        encodings = self._tokenizer.encode_texts(
            texts, add_special_tokens=add_special_tokens, param=param
        )
        return [
            prompt_of(encoding, text if isinstance(text, str) else None, keep, self.vocab_size)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    async def encode_infill(self, prefix: str, suffix: str) -> Prompt:
        """See `Renderer.encode_infill`."""
        return await self._run(
            lambda: Prompt(self._infill.encode(prefix, suffix)),
            short=len(prefix) + len(suffix) < _SHORT_TEXT,
        )

    def check_token_ids(self, token_ids: list[int], param: str = "prompt") -> Prompt:
        """See `Renderer.check_token_ids`."""
        check_prompt_ids(token_ids, self.vocab_size, param)
        return Prompt(token_ids, is_checked=True)

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """See `Renderer.decode`."""
        return await self._run(
            lambda: self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens),
            short=len(token_ids) < _SHORT_TOKENS,
        )

    def token_text(self, token_id: int) -> str:
        """See `Renderer.token_text`."""
        return self._tokenizer.token_text(token_id)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T], *, short: bool) -> T:
        if short:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _size(text: str | tuple[str, str]) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
