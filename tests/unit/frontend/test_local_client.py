"""Offline batches over a fake engine: complete outputs, in order, and an empty engine after."""

from collections.abc import Sequence

import numpy as np
import pytest

from engine.fake_engine import EchoEngine
from pagemill.config.engine import EngineConfig
from pagemill.engine.messages import AddRequest, LogprobsChunk, RequestDelta
from pagemill.errors import ContextTooLong, GrammarError, PageMillError
from pagemill.frontend.local_client import LocalClient
from pagemill.frontend.outputs import Prompt
from pagemill.frontend.request_output import request_output
from pagemill.frontend.submission import PromptHasher
from pagemill.frontend.validate import RequestValidator
from pagemill.params import SamplingParams, StructuredOutputs
from unit.frontend.vocabularies import byte_level

TOKENIZER = byte_level()


class LogprobEngine(EchoEngine):
    """Gives every token the log-probability -1 and rank 2, behind token 0 with -0.5."""

    def step(self) -> list[RequestDelta]:
        deltas = super().step()
        for delta in deltas:
            if delta.token_ids:
                token_id = int(np.frombuffer(delta.token_ids, "<i4")[0])
                delta.logprobs = LogprobsChunk(
                    num_positions=1,
                    width=2,
                    token_ids=np.asarray([token_id, 0], "<i4").tobytes(),
                    logprobs=np.asarray([-1.0, -0.5], "<f4").tobytes(),
                    ranks=np.asarray([2], "<i4").tobytes(),
                )
        return deltas


class FailingEngine(EchoEngine):
    """The second request fails in its first step."""

    error_param: str | None = None

    def add_request(self, message: AddRequest) -> None:
        super().add_request(message)
        if message.request_id == "0-1-0":
            self.abort([message.request_id])
            self._unsent[-1].finish_reason = "error"
            self._unsent[-1].error = "no mask could be made"
            self._unsent[-1].error_param = self.error_param


def make_client(engine: EchoEngine) -> LocalClient:
    config = EngineConfig(
        model="",
        served_model_names=(),
        device="cpu",
        dtype="float32",
        max_model_len=4096,
        prefix_caching=False,
    )
    validator = RequestValidator(
        vocab_size=TOKENIZER.vocab_size, max_logprobs=20, tokenizer=TOKENIZER
    )
    return LocalClient(engine, validator, PromptHasher(config), TOKENIZER)


def ignore(num_finished: int, num_tokens: int) -> None:
    return


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(TOKENIZER.encode(text), text) for text in texts]


def same(params: SamplingParams, count: int) -> Sequence[SamplingParams]:
    return [params] * count


def test_outputs_are_whole_and_in_order() -> None:
    seen = []
    client = make_client(EchoEngine(""))
    params = [SamplingParams(max_tokens=4), SamplingParams(max_tokens=2, n=2), SamplingParams()]
    choices = client.run(prompts("ab", "cde", "f"), params, lambda *done: seen.append(done))
    assert [[c.text for c in own] for own in choices] == [["abab"], ["cd", "cd"], ["f" * 16]]
    assert [c.index for c in choices[1]] == [0, 1]
    assert sum(n for n, _ in seen) == 4
    assert sum(tokens for _, tokens in seen) == 4 + 2 + 2 + 16


def test_stop_strings_end_a_choice_and_its_request() -> None:
    engine = EchoEngine("")
    params = SamplingParams(stop=["stop"], max_tokens=4000)
    [[choice]] = make_client(engine).run(prompts("go stop "), [params], ignore)
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("go ", "stop", "stop")
    assert not engine.has_work()


def test_a_second_run_follows_the_first() -> None:
    client = make_client(EchoEngine(""))
    for text in ("ab", "cd"):
        [[choice]] = client.run(prompts(text), [SamplingParams(max_tokens=3)], ignore)
        assert choice.text == (text * 2)[:3]


def test_nothing_runs_when_one_prompt_is_too_long() -> None:
    engine = EchoEngine("")
    with pytest.raises(ContextTooLong):
        make_client(engine).run(
            [Prompt([1]), Prompt([1] * 5000)], same(SamplingParams(), 2), ignore
        )
    assert not engine.has_work()


def test_nothing_runs_when_a_grammar_is_bad() -> None:
    engine = EchoEngine("")
    bad = SamplingParams(structured_outputs=StructuredOutputs(regex="(a"))
    with pytest.raises(GrammarError, match="regex"):
        make_client(engine).run(prompts("a", "b"), [SamplingParams(), bad], ignore)
    assert not engine.has_work()


def test_a_grammar_that_fails_in_the_engine_is_the_requests_fault() -> None:
    engine = FailingEngine("")
    engine.error_param = "structured_outputs"
    with pytest.raises(GrammarError, match="no mask could be made"):
        make_client(engine).run(prompts("a", "b"), same(SamplingParams(), 2), ignore)


def test_an_error_of_the_engine_is_raised_and_the_rest_unsent() -> None:
    engine = FailingEngine("")
    with pytest.raises(PageMillError, match="no mask could be made"):
        make_client(engine).run(prompts("a", "b", "c"), same(SamplingParams(), 3), ignore)
    assert not engine.has_work()


@pytest.mark.parametrize("stop", [None, ["never"]])
def test_logprobs_in_the_shape_of_vllm(stop: list[str] | None) -> None:
    params = SamplingParams(max_tokens=3, logprobs=1, stop=stop)
    [prompt] = prompts("ab")
    [choices] = make_client(LogprobEngine("")).run([prompt], [params], ignore)
    [completion] = request_output("0", prompt, choices).outputs
    assert completion.cumulative_logprob == -3.0
    assert completion.logprobs is not None and len(completion.logprobs) == 3
    chosen, top = completion.logprobs[0].items()
    assert chosen[0] == prompt.token_ids[0]
    assert (chosen[1].logprob, chosen[1].rank, chosen[1].decoded_token) == (-1.0, 2, "a")
    assert (top[0], top[1].rank) == (0, 1)
