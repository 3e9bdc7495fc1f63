"""The offline API: a model in this process, whole batches of prompts at once.

Names and shapes are vLLM's, so that scripts written for it run unchanged.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from pagemill.config.args import ServeArgs
from pagemill.config.facts import detect
from pagemill.engine.messages import EngineInfo
from pagemill.errors import ConfigError, InvalidParams, WrongModel
from pagemill.frontend.local_client import LocalClient
from pagemill.frontend.outputs import PooledOutput, Prompt
from pagemill.frontend.pair_encoding import checked_keep
from pagemill.frontend.pooling import check_scores_pairs, cosine, pair_up
from pagemill.frontend.pooling_output import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    request_outputs,
)
from pagemill.frontend.request_output import RequestOutput, request_output
from pagemill.frontend.submission import PromptHasher
from pagemill.frontend.text_side import TextSide, eos_ids, load_text_side
from pagemill.frontend.validate import RequestValidator
from pagemill.params import PoolingParams, SamplingParams
from pagemill.prepare import prepare

if TYPE_CHECKING:
    from pagemill.checkpoint.base import Checkpoint
    from pagemill.config.engine import EngineConfig
    from pagemill.config.model import ModelConfig
    from pagemill.frontend.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TextOrTokens = str | list[int] | dict[str, Any]
Messages = list[dict[str, Any]]
ParamsLike = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model. Not for several threads at once.

    `model` is a folder, a .gguf file, a hub id or a built-in name; without one, the demo model.
    `gpu_memory_utilization` counts on GPUs only, `memory_utilization` everywhere. `options` are
    further fields of `config.args.ServeArgs`. Raises ModelLoadError or ConfigError.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        dtype: str = "auto",
        seed: int = 0,
        load_format: str = "auto",
        revision: str | None = None,
        quantization: str | None = None,
        skip_tokenizer_init: bool = False,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        gpu_memory_utilization: float | None = None,
        memory_utilization: float | None = None,
        enable_prefix_caching: bool = True,
        enforce_eager: bool = False,
        max_logprobs: int = 20,
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        _refuse(tensor_parallel_size, trust_remote_code, options)
        args = ServeArgs(
            model=model,
            dtype=dtype,
            seed=seed,
            load_format=load_format,
            quantization=quantization or "auto",
            revision=revision,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            memory_utilization=memory_utilization,
            prefix_cache=enable_prefix_caching,
            **options,
        )
        device = detect(args.device)
        if device.type == "cuda" and memory_utilization is None:
            args = dataclasses.replace(args, memory_utilization=gpu_memory_utilization)
        plan = prepare(args, device)
        for remark in plan.remarks:
            logger.warning(remark)
        config = msgspec.structs.replace(
            plan.config,
            cuda_graphs=plan.config.cuda_graphs and not enforce_eager,
            max_logprobs=max_logprobs,
            max_num_queued_reqs=0,  # all prompts of a call wait at once
        )
        self._defaults = plan.default_params
        self._text: TextSide | None = None
        if not skip_tokenizer_init:
            self._text = load_text_side(
                plan.checkpoint,
                plan.model,
                max_logprobs=max_logprobs,
                chat_template=plan.chat_template,
            )
        self._start(config, self._validator(plan.checkpoint, plan.model, max_logprobs))

    def generate(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        sampling_params: ParamsLike = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete each prompt; the outputs are in the prompts' order.

        A prompt is a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}.
        One `sampling_params` serves all prompts, a list has one for each. Raises RequestError
        before anything runs.
        """
        parsed = [self._parse(prompt) for prompt in _as_list(prompts)]
        return self._run(parsed, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: ParamsLike = None,
        use_tqdm: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several. Raises RequestError before anything runs."""
        renderer = self._need_text().renderer
        single = bool(messages) and isinstance(messages[0], dict)
        conversations: Any = [messages] if single else messages
        prompts = [
            renderer.render_chat_now(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, use_tqdm)

    def encode(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The vectors of each prompt, as numpy arrays. Raises RequestError before anything runs."""
        parsed, pooled = self._pool(prompts, pooling_params, use_tqdm)
        outputs = [PoolingOutput(own.values) for own in pooled]
        return request_outputs(self._take_ids(len(parsed)), parsed, pooled, outputs)

    def embed(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """An embedding for each prompt. Raises RequestError before anything runs."""
        params = msgspec.structs.replace(pooling_params or PoolingParams(), task="embed")
        parsed, pooled = self._pool(prompts, params, use_tqdm)
        outputs = [EmbeddingOutput(own.values.tolist()) for own in pooled]
        return request_outputs(self._take_ids(len(parsed)), parsed, pooled, outputs)

    def classify(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """A number for each label and prompt. Raises RequestError before anything runs."""
        params = msgspec.structs.replace(pooling_params or PoolingParams(), task="classify")
        parsed, pooled = self._pool(prompts, params, use_tqdm)
        outputs = [ClassificationOutput(own.values.tolist()) for own in pooled]
        return request_outputs(self._take_ids(len(parsed)), parsed, pooled, outputs)

    def score(
        self,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well texts fit: one with each of many, or the first with the first and so on.

        A cross-encoder reads each pair; of an embedding model's vectors it is the cosine.
        """
        pairs = pair_up(_texts(text_1), _texts(text_2))
        params = pooling_params or PoolingParams()
        if self.info.pooling is not None and self.info.pooling.task == "embed":
            return self._score_by_cosine(pairs, params, use_tqdm)
        check_scores_pairs(self.info.pooling)
        prompts = self._encode_texts(pairs, params)
        pooled = self._run_pooling(prompts, params, use_tqdm)
        outputs = [ScoringOutput(float(own.values[0])) for own in pooled]
        return request_outputs(self._take_ids(len(prompts)), prompts, pooled, outputs)

    def get_tokenizer(self) -> Tokenizer:
        """Raises InvalidParams when the tokenizer was not loaded."""
        return self._need_text().tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's own generation_config.json recommends."""
        return SamplingParams(**self._defaults)

    @property
    def info(self) -> EngineInfo:
        """The engine's sizes after the memory fit."""
        return self._engine.info

    def reset_prefix_cache(self) -> None:
        """Forget all cached prompts."""
        self._engine.control("reset_prefix_cache", [])

    def sleep(self, level: int = 1) -> None:
        """Give up the device's memory until `wake_up`; nothing can be generated meanwhile.

        Level 1 keeps the weights in the host's memory, 2 drops them. Raises PageMillError.
        """
        self._engine.control("sleep", [level])

    def wake_up(self) -> None:
        """Be as before `sleep`, with an empty prefix cache. Raises ModelLoadError."""
        self._engine.control("wake_up", [])

    @property
    def is_sleeping(self) -> bool:
        return self._engine.stats().sleep_level > 0

    def shutdown(self) -> None:
        """Give the model's memory back; nothing can be generated afterwards."""
        self._engine.shutdown()

    def _start(self, config: EngineConfig, validator: RequestValidator) -> None:
        from pagemill.engine.build import build_engine

        self._engine = build_engine(config, logger.info)
        tokenizer = None if self._text is None else self._text.tokenizer
        self._client = LocalClient(self._engine, validator, PromptHasher(config), tokenizer)
        self._num_requests = 0

    def _validator(
        self, checkpoint: Checkpoint, model: ModelConfig, max_logprobs: int
    ) -> RequestValidator:
        if self._text is not None:
            return self._text.validator
        return RequestValidator(
            vocab_size=model.vocab_size,
            max_logprobs=max_logprobs,
            eos_token_ids=eos_ids(checkpoint, model, None),
        )

    def _need_text(self) -> TextSide:
        if self._text is None:
            raise InvalidParams(
                "the tokenizer was not loaded (skip_tokenizer_init), so prompts must be token ids",
                param="prompt",
            )
        return self._text

    def _parse(self, prompt: TextOrTokens) -> Prompt:
        given = _given(prompt)
        if isinstance(given, str):
            return self._need_text().renderer.encode_now(given)
        return Prompt(list(given))

    def _pool(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        params: PoolingParams | None,
        use_tqdm: bool,
    ) -> tuple[list[Prompt], list[PooledOutput]]:
        params = params or PoolingParams()
        given = [_given(prompt) for prompt in _as_list(prompts)]
        texts = iter(self._encode_texts([text for text in given if isinstance(text, str)], params))
        keep = checked_keep(params.truncate_prompt_tokens, self.info.max_model_len)
        parsed = [
            next(texts) if isinstance(own, str) else Prompt(list(own)[:keep]) for own in given
        ]
        return parsed, self._run_pooling(parsed, params, use_tqdm)

    def _encode_texts(
        self, texts: Sequence[str | tuple[str, str]], params: PoolingParams
    ) -> list[Prompt]:
        if not texts:
            return []
        renderer = self._need_text().renderer
        renderer.max_model_len = self.info.max_model_len
        return renderer.encode_texts_now(texts, keep=params.truncate_prompt_tokens)

    def _run_pooling(
        self, prompts: list[Prompt], params: PoolingParams, use_tqdm: bool
    ) -> list[PooledOutput]:
        with _progress(len(prompts), enabled=use_tqdm) as advance:
            return self._client.pool(prompts, params, advance)

    def _score_by_cosine(
        self, pairs: list[tuple[str, str]], params: PoolingParams, use_tqdm: bool
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        prompts = dict(zip(texts, self._encode_texts(texts, params), strict=True))
        pooled = self._run_pooling(list(prompts.values()), params, use_tqdm)
        found = dict(zip(texts, pooled, strict=True))
        first_id = self._take_ids(len(pairs))
        return [
            PoolingRequestOutput(
                str(first_id + i),
                ScoringOutput(cosine(found[a], found[b])),
                prompts[a].token_ids + prompts[b].token_ids,
                found[a].num_cached_tokens + found[b].num_cached_tokens,
            )
            for i, (a, b) in enumerate(pairs)
        ]

    def _take_ids(self, count: int) -> int:
        """Numbers for `count` prompts; the first of them."""
        first = self._num_requests
        self._num_requests += count
        return first

    def _run(
        self, prompts: list[Prompt], sampling_params: ParamsLike, use_tqdm: bool
    ) -> list[RequestOutput]:
        if self.info.pooling is not None:
            raise WrongModel("this model makes vectors, no text; use embed, encode or score")
        params = self._params_of(sampling_params, len(prompts))
        num_choices = sum(own.n for own in params)
        with _progress(num_choices, enabled=use_tqdm) as advance:
            choices = self._client.run(prompts, params, advance)
        first = self._take_ids(len(prompts))
        return [
            request_output(str(first + i), prompt, own)
            for i, (prompt, own) in enumerate(zip(prompts, choices, strict=True))
        ]

    def _params_of(self, given: ParamsLike, count: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * count
        if len(given) != count:
            raise InvalidParams(
                f"there are {count} prompts but {len(given)} sampling_params", "sampling_params"
            )
        return list(given)


def _refuse(tensor_parallel_size: int, trust_remote_code: bool, options: dict[str, Any]) -> None:
    if tensor_parallel_size != 1:
        raise ConfigError(f"tensor_parallel_size must be 1, got {tensor_parallel_size}")
    if trust_remote_code:
        raise ConfigError("trust_remote_code is not supported: PageMill never runs a model's code")
    known = {item.name for item in dataclasses.fields(ServeArgs)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ConfigError(f"LLM has no option {unknown[0]!r}")


def _given(prompt: TextOrTokens) -> str | Sequence[int]:
    """The text or the token ids of a prompt. Raises InvalidParams."""
    if isinstance(prompt, dict):
        given = prompt.get("prompt_token_ids", prompt.get("prompt"))
    else:
        given = prompt
    if isinstance(given, str | Sequence):
        return given
    raise InvalidParams(
        'a prompt is a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; '
        f"got {type(given).__name__}",
        param="prompt",
    )


def _texts(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _as_list(prompts: TextOrTokens | Sequence[TextOrTokens]) -> Sequence[Any]:
    """One prompt as a list of one; a list of whole numbers is one prompt."""
    if isinstance(prompts, str | dict):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]
    return prompts


@contextmanager
def _progress(total: int, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts finished choices and tokens per second."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=total, desc="Processed prompts", unit="req", disable=not enabled) as bar:
        num_tokens = 0

        def advance(num_finished: int, new_tokens: int) -> None:
            nonlocal num_tokens
            num_tokens += new_tokens
            if enabled:
                seconds = bar.format_dict["elapsed"] or 1e-9
                bar.set_postfix_str(f"{num_tokens / seconds:.1f} tok/s", refresh=False)
            bar.update(num_finished)

        yield advance
