"""The two interfaces that the API is written against. Tests give it fakes of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from pagemill.engine.messages import EngineInfo, EngineStats, EngineStatus
from pagemill.frontend.mailbox import Tap
from pagemill.frontend.outputs import ChoiceUpdate, PooledOutput, Prompt
from pagemill.params import PoolingParams, SamplingParams


class EngineClient(Protocol):
    """The engine as the API sees it."""

    @property
    def status(self) -> EngineStatus:
        """The last status; "failed" also when the engine process died or its loop is stuck."""
        ...

    @property
    def info(self) -> EngineInfo:
        """Raises EngineDeadError before the engine is ready."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str | None = None,
        lora: str | None = None,
        tap: Tap | None = None,
    ) -> AsyncGenerator[ChoiceUpdate, None]:
        """All `params.n` choices of one prompt, merged. Closing the generator aborts them.

        A `tap`, for one choice only, is offered each update while the caller waits for the next,
        and those that it takes are not yielded.

        Raises RequestError (bad for this model), OverloadedError (queue full) or
        EngineDeadError before the first update; an engine that dies later ends every choice with
        finish_reason "error".
        """
        ...

    async def pool(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams,
        *,
        request_id: str,
        priority: int = 0,
    ) -> list[PooledOutput]:
        """The vectors of all prompts, in their order; cancelling the call aborts them.

        Raises as `generate` does, and PageMillError when the engine fails one of them.
        """
        ...

    async def abort(self, request_ids: list[str]) -> int:
        """Abort requests by the id given to `generate`; returns how many were found."""
        ...

    async def control(self, method: str, *args: Any) -> Any:
        """Run one of the engine's control methods. Raises PageMillError with its message."""
        ...


class Renderer(Protocol):
    """Text to tokens and back. Methods that may take long run in a thread pool."""

    max_model_len: int  # set when the engine is ready
    vocab_size: int
    has_chat_template: bool
    template_text: str  # the source of the chat templates, which shows how the model writes calls

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
        """Apply the model's chat template and tokenise. Raises RequestError."""
        ...

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> Prompt: ...

    async def encode_texts(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        keep: int | None = None,
        add_special_tokens: bool = True,
        param: str = "input",
    ) -> list[Prompt]:
        """Texts, or pairs of them, for pooling; `keep` cuts each to so many tokens.

        Special tokens stay, and of a pair the longer text is cut. Raises InvalidParams.
        """
        ...

    async def encode_infill(self, prefix: str, suffix: str) -> Prompt:
        """A prompt whose completion belongs between the two. Raises InvalidParams.

        Only for models that have learned it, which their vocabulary shows.
        """
        ...

    def check_token_ids(self, token_ids: list[int], param: str = "prompt") -> Prompt:
        """Refuse ids outside the vocabulary. Raises InvalidParams."""
        ...

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...

    def token_text(self, token_id: int) -> str:
        """The text of one token as the vocabulary has it, for logprobs and /tokenize."""
        ...
