"""The offline client on the real engine, with a device that has no model."""

from __future__ import annotations

import pytest

from engine.fake_device import VOCAB_SIZE, FakeExecutor, next_token
from pagemill.config.engine import EngineConfig
from pagemill.engine.engine import Engine
from pagemill.errors import PageMillError
from pagemill.frontend.local_client import LocalClient
from pagemill.frontend.outputs import ChoiceUpdate, Prompt
from pagemill.frontend.submission import PromptHasher
from pagemill.frontend.validate import RequestValidator
from pagemill.params import SamplingParams

CONFIG = EngineConfig(
    model="",
    served_model_names=(),
    device="cpu",
    dtype="float32",
    max_model_len=256,
    hash_key="00ff",
)


def make_client(**sizes: int) -> tuple[LocalClient, Engine]:
    engine = Engine(CONFIG, FakeExecutor(**sizes))
    validator = RequestValidator(vocab_size=VOCAB_SIZE, max_logprobs=5)
    return LocalClient(engine, validator, PromptHasher(CONFIG), None), engine


def expected(prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return text[len(prompt) :]


def run(
    client: LocalClient, prompts: list[list[int]], params: SamplingParams
) -> list[ChoiceUpdate]:
    inputs = [Prompt(prompt) for prompt in prompts]
    choices = client.run(inputs, [params] * len(prompts), lambda *_: None)
    return [choice for own in choices for choice in own]


def test_many_prompts_in_a_small_cache() -> None:
    client, engine = make_client(num_blocks=40, num_drafts=2)
    prompts = [[i % VOCAB_SIZE, *range(i % 40)] for i in range(50)]
    choices = run(client, prompts, SamplingParams(max_tokens=20, ignore_eos=True))
    assert [c.token_ids for c in choices] == [expected(prompt, 20) for prompt in prompts]
    assert {c.finish_reason for c in choices} == {"length"}
    assert engine.stats().num_running == 0


def test_equal_prompts_share_their_blocks() -> None:
    client, _ = make_client()
    prompt = list(range(40))
    run(client, [prompt], SamplingParams(max_tokens=1))
    first, second = run(client, [prompt], SamplingParams(max_tokens=3, n=2))
    assert first.num_cached_tokens >= 36
    assert first.token_ids == second.token_ids == expected(prompt, 3)


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_prompt_logprobs_arrive_whole_from_chunks(max_tokens: int) -> None:
    client, _ = make_client(max_num_batched_tokens=8)
    prompt = list(range(30))
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=1, logprobs=0)
    [choice] = run(client, [prompt], params)
    assert choice.prompt_logprobs is not None
    assert [p and p.chosen.token_id for p in choice.prompt_logprobs] == [None, *prompt[1:]]
    assert len(choice.token_ids) == max_tokens
    assert choice.finish_reason == "length"


def test_a_refused_request_is_an_error_and_leaves_nothing() -> None:
    client, engine = make_client(num_blocks=8)  # 28 tokens
    with pytest.raises(PageMillError, match="the KV cache holds"):
        run(client, [[1], [1] * 100], SamplingParams(max_tokens=2))
    assert not engine.has_work()


def test_a_timeout_ends_a_request_in_time() -> None:
    client, _ = make_client(step_seconds=0.01)
    [choice] = run(client, [[1]], SamplingParams(max_tokens=200, timeout=0.1, ignore_eos=True))
    assert len(choice.token_ids) < 200
    assert choice.finish_reason == "abort"
