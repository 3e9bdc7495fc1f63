"""The offline API on the demo model and on random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from e2e.serving import golden_cases
from pagemill import LLM, SamplingParams
from pagemill.errors import (
    ConfigError,
    ContextTooLong,
    InvalidParams,
    PageMillError,
    RequestError,
)
from pagemill.frontend.request_output import RequestOutput

CASES = [case for case in golden_cases("smollm2") if len(case["prompt"]) < 100][::3]
GREEDY = SamplingParams(temperature=0, max_tokens=8)
SMALL: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "kv_cache_bytes": 2**28}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    model = LLM(**SMALL)
    yield model
    model.shutdown()


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_greedy_tokens_are_the_golden_ones(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=len(case["output"])) for case in CASES]
    outputs = llm.generate([{"prompt_token_ids": c["prompt"]} for c in CASES], params)
    assert [o.outputs[0].token_ids for o in outputs] == [case["output"] for case in CASES]
    assert [o.prompt_token_ids for o in outputs] == [case["prompt"] for case in CASES]


def test_text_and_tokens_are_the_same_prompt(llm: LLM) -> None:
    text = "The three primary colours are"
    token_ids = llm.get_tokenizer().encode(text)
    forms: list[Any] = [text, token_ids, {"prompt": text}, {"prompt_token_ids": token_ids}]
    outputs = llm.generate(forms, GREEDY, use_tqdm=False)
    assert len(set(texts(outputs))) == 1
    assert [o.prompt for o in outputs] == [text, None, text, None]
    [single] = llm.generate(text, GREEDY, use_tqdm=False)
    assert single.outputs[0].text == outputs[0].outputs[0].text
    assert single.request_id != outputs[0].request_id


def test_chat(llm: LLM) -> None:
    question = [{"role": "user", "content": "Who wrote Romeo and Juliet?"}]
    params = SamplingParams(temperature=0, max_tokens=12)
    [answer] = llm.chat(question, params, use_tqdm=False)
    assert "Shakespeare" in answer.outputs[0].text
    assert answer.outputs[0].finish_reason == "length"
    many = llm.chat([question, question], params, use_tqdm=False)
    assert texts(many) == [answer.outputs[0].text] * 2
    assert many[1].num_cached_tokens > 0


def test_choices_logprobs_and_stop(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=12, logprobs=2, prompt_logprobs=1)
    [output] = llm.generate("Once upon a time", params, use_tqdm=False)
    assert [c.index for c in output.outputs] == [0, 1, 2]
    assert len({c.text for c in output.outputs}) > 1
    for choice in output.outputs:
        assert choice.logprobs is not None and choice.cumulative_logprob is not None
        assert len(choice.logprobs) == len(choice.token_ids)
        assert all(i in at for i, at in zip(choice.token_ids, choice.logprobs, strict=True))
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    stop = SamplingParams(temperature=0, max_tokens=30, stop=[" red"])
    [stopped] = llm.generate("The three primary colours are", stop, use_tqdm=False)
    whole = SamplingParams(temperature=0, max_tokens=30)
    [full] = llm.generate("The three primary colours are", whole, use_tqdm=False)
    assert stopped.outputs[0].text == full.outputs[0].text.split(" red")[0]
    assert stopped.outputs[0].stop_reason == " red"


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert "Processed prompts: 100%" in capsys.readouterr().err
    llm.generate("a", GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_bad_requests_leave_the_engine_as_it_was(llm: LLM) -> None:
    with pytest.raises(ContextTooLong):
        llm.generate(["fine", {"prompt_token_ids": [1] * 600}], GREEDY)
    with pytest.raises(InvalidParams, match="2 prompts but 1"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(InvalidParams, match="a prompt is a text"):
        llm.generate({"prompt": 7}, GREEDY)
    with pytest.raises(InvalidParams, match="not in the vocabulary"):
        llm.generate([10**6], GREEDY)
    assert llm.generate("a", GREEDY, use_tqdm=False)[0].finished


def test_sleep_gives_the_memory_back(llm: LLM) -> None:
    resident = psutil.Process().memory_info
    prompt = "The three primary colours are"
    [before] = llm.generate(prompt, GREEDY, use_tqdm=False)
    awake = resident().rss
    llm.sleep(level=2)
    assert llm.is_sleeping
    # 0.5 GiB of weights, and the pages of the cache that were used.
    assert resident().rss < awake - 450 * 2**20
    with pytest.raises(PageMillError, match="sleeps"):
        llm.generate(prompt, GREEDY, use_tqdm=False)
    llm.wake_up()
    assert not llm.is_sleeping
    [after] = llm.generate(prompt, GREEDY, use_tqdm=False)
    assert after.outputs[0].token_ids == before.outputs[0].token_ids
    assert after.num_cached_tokens == 0


def test_random_weights_without_tokenizer() -> None:
    model = LLM(load_format="dummy", skip_tokenizer_init=True, gpu_memory_utilization=0.88, **SMALL)
    params = SamplingParams(ignore_eos=True, max_tokens=5, detokenize=False)
    outputs = model.generate([[5, 6, 7], [8]], params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [5, 5]
    assert texts(outputs) == ["", ""]
    for refused in (lambda: model.generate("text"), lambda: model.chat([]), model.get_tokenizer):
        with pytest.raises(RequestError, match="tokenizer was not loaded"):
            refused()
    model.shutdown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "never runs a model's code"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"swap_space": 4}, "'swap_space'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(**options)
