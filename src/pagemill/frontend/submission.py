"""From a validated prompt to the engine requests of its choices."""

from __future__ import annotations

import asyncio

import msgspec

from pagemill.config.engine import EngineConfig
from pagemill.engine.messages import AddRequest
from pagemill.frontend.outputs import Prompt
from pagemill.frontend.tokenizer import check_text
from pagemill.params import MAX_SEED, SamplingParams

_LONG_PROMPT = 4096  # tokens; hashing fewer takes less time than a thread hand-off is worth


class PromptHasher:
    """Hashes the full blocks of prompts for the prefix cache."""

    def __init__(self, config: EngineConfig) -> None:
        self._enabled = config.prefix_caching
        self._key = bytes.fromhex(config.hash_key)

    async def hash(
        self, prompt: Prompt, block_size: int, cache_salt: str | None, lora: str | None
    ) -> bytes:
        """Chained hashes; the same blocks under another salt or adapter hash differently."""
        if len(prompt.token_ids) < _LONG_PROMPT:
            return self.hash_now(prompt, block_size, cache_salt, lora)
        return await asyncio.to_thread(self.hash_now, prompt, block_size, cache_salt, lora)

    def hash_now(
        self,
        prompt: Prompt,
        block_size: int,
        cache_salt: str | None = None,
        lora: str | None = None,
    ) -> bytes:
        """The same without leaving the thread. Raises InvalidParams for a salt that is no text."""
        if not self._enabled:
            return b""
        from pagemill.kvcache.hashing import hash_blocks

        salt = ""
        if cache_salt or lora:
            check_text(cache_salt or "", "cache_salt")
            salt = f"{lora or ''}\0{cache_salt or ''}"
        return hash_blocks(prompt.packed_ids(), block_size, self._key, salt)


def engine_request_id(client_id: int, request_id: str, index: int) -> str:
    """The id of part `index` of a request in the engine: `<request_id>-<index>`.

    Frontends beyond the first put their number and a tilde, which no id has, in front: clients
    choose ids, and two frontends may be given the same one.
    """
    stem = f"{client_id}~{request_id}" if client_id else request_id
    return f"{stem}-{index}"


def engine_requests(
    request_id: str, client_id: int, prompt: Prompt, hashes: bytes, params: SamplingParams
) -> list[AddRequest]:
    """One engine request for each of the `params.n` choices.

    With a seed, choice `i` gets `seed + i`. A prompt-only request (`max_tokens` 0) still samples
    one token, because the engine answers with tokens; the output processor drops it.
    """
    return [
        AddRequest(
            request_id=engine_request_id(client_id, request_id, index),
            client_id=client_id,
            token_ids=prompt.packed_ids(),
            block_hashes=hashes,
            params=_choice_params(params, index),
        )
        for index in range(params.n)
    ]


def _choice_params(params: SamplingParams, index: int) -> SamplingParams:
    seed = params.seed
    if seed is not None:
        span = 2 * (MAX_SEED + 1)
        seed = (seed + index + MAX_SEED + 1) % span - MAX_SEED - 1
    if params.n == 1 and params.max_tokens:
        return params
    return msgspec.structs.replace(params, n=1, seed=seed, max_tokens=params.max_tokens or 1)
