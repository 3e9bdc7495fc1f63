"""The names that dashboards rely on, and that the numbers follow the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from api.fakes import FakeClient, FakeRenderer, http_client, make_context, metric, overloaded
from pagemill.api.context import ServerContext
from pagemill.engine.messages import STEP_SIZES, EngineStats, EngineStatus
from pagemill.frontend.outputs import ChoiceUpdate
from pagemill.metrics.metrics import Metrics
from pagemill.params import SamplingParams

# fmt: off
DASHBOARD_NAMES = (
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
    "generation_tokens_total", "request_success_total", "num_preemptions_total",
    "prefix_cache_queries_total", "prefix_cache_hits_total",
    "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket", "request_queue_time_seconds_bucket",
    "request_inference_time_seconds_bucket", "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_bucket", "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket", "request_params_n_bucket",
    "request_params_max_tokens_bucket", "cache_config_info",
    "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
    "request_num_preemptions_bucket", "request_max_num_generation_tokens_bucket",
    "request_prefill_kv_computed_tokens_bucket", "iteration_tokens_total_bucket",
    "num_requests_waiting_by_reason", "prompt_tokens_by_source_total",
    "prompt_tokens_cached_total", "spec_decode_num_drafts_total",
    "e2e_request_latency_seconds_bucket",
)
# fmt: on


def scrape(context: ServerContext) -> str:
    async def run() -> str:
        async with http_client(context) as http:
            body = {"prompt": "abc", "max_tokens": 4}
            await http.post("/v1/completions", json=body)
            response = await http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        return response.text

    return asyncio.run(run())


def test_dashboard_names_and_labels() -> None:
    context = make_context(FakeClient(stats=EngineStats(num_running=3, prefix_cache_hits=9)))
    samples = {
        sample.name: sample
        for family in text_string_to_metric_families(scrape(context))
        for sample in family.samples
    }
    missing = {f"vllm:{name}" for name in DASHBOARD_NAMES} - samples.keys()
    assert not missing
    running = samples["vllm:num_requests_running"]
    assert running.value == 3
    assert running.labels == {"model_name": "fake-model", "engine": "0"}
    assert samples["vllm:prefix_cache_hits_total"].value == 9
    assert "process_resident_memory_bytes" in samples


def test_openmetrics_on_request() -> None:
    metrics = make_context().metrics
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_scrape_while_loading_has_no_engine_info() -> None:
    client = FakeClient(status=EngineStatus("loading"))
    body, _ = make_context(client).metrics.render("")
    assert b"cache_config_info" not in body


def test_counts_follow_a_request() -> None:
    context = make_context()
    scrape(context)
    assert metric(context, "vllm:prompt_tokens_total") == 3
    assert metric(context, "vllm:prompt_tokens_cached_total") == 2
    assert metric(context, "vllm:generation_tokens_total") == 4
    assert metric(context, "vllm:request_success_total", finished_reason="length") == 1
    assert metric(context, "vllm:time_to_first_token_seconds_count") == 1
    assert metric(context, "vllm:inter_token_latency_seconds_count") == 3
    http = context.metrics.registry.get_sample_value(
        "http_requests_total", {"method": "POST", "handler": "/v1/completions", "status": "200"}
    )
    assert http == 1


def test_tokens_by_source_and_sizes_of_requests() -> None:
    context = make_context()
    scrape(context)
    by_source = "vllm:prompt_tokens_by_source_total"
    assert metric(context, by_source, source="local_compute") == 1
    assert metric(context, by_source, source="local_cache_hit") == 2
    assert metric(context, "vllm:request_prefill_kv_computed_tokens_sum") == 1
    assert metric(context, "vllm:request_max_num_generation_tokens_sum") == 4


def test_numbers_of_the_engine() -> None:
    sizes = [0] * (len(STEP_SIZES) + 1)
    sizes[0], sizes[2], sizes[-1] = 5, 2, 1
    stats = EngineStats(
        num_waiting=5,
        num_deferred=2,
        sleep_level=1,
        num_drafts=7,
        accepted_by_position=[4, 1],
        step_sizes=sizes,
        tokens_computed=20_021,
    )
    context = make_context(FakeClient(stats=stats))
    waiting = "vllm:num_requests_waiting_by_reason"
    assert metric(context, waiting, reason="capacity") == 3
    assert metric(context, waiting, reason="deferred") == 2
    states = ("awake", "weights_offloaded", "discard_all")
    asleep = [metric(context, "vllm:engine_sleep_state", sleep_state=s) for s in states]
    assert asleep == [0, 1, 0]
    assert metric(context, "vllm:spec_decode_num_drafts_total") == 7
    accepted = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [metric(context, accepted, position=str(i)) for i in range(2)] == [4, 1]
    steps = "vllm:iteration_tokens_total"
    assert metric(context, f"{steps}_bucket", le="1.0") == 5
    assert metric(context, f"{steps}_bucket", le="16.0") == 7
    assert metric(context, f"{steps}_count") == 8
    assert metric(context, f"{steps}_sum") == 20_021


def test_tool_parses_are_counted_by_outcome() -> None:
    calls = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "f"}}]

    async def ask(context: ServerContext, **options: object) -> None:
        async with http_client(context) as http:
            messages = [{"role": "user", "content": "x"}]
            await http.post("/v1/chat/completions", json={"messages": messages, **options})

    context = make_context(FakeClient(calls), renderer=FakeRenderer("<tool_call>"))
    asyncio.run(ask(context, tools=tools))
    asyncio.run(ask(context, tools=tools, stream=True, max_tokens=3))
    asyncio.run(ask(context))
    name, kind = "vllm:tool_call_parser_invocations_total", {"request_type": "chat_completion"}
    called = metric(context, name, mode="non_streaming", outcome="tool_call", **kind)
    plain = metric(context, name, mode="streaming", outcome="no_tool_call", **kind)
    assert (called, plain) == (1, 1)
    assert metric(context, name, mode="non_streaming", outcome="no_tool_call", **kind) == 0


def test_refusals_for_load_are_counted() -> None:
    context = make_context(FakeClient(raises=overloaded()))
    scrape(context)
    assert metric(context, "vllm:admission_rejections_total", reason="overloaded") == 1


def test_raw_paths_are_no_labels() -> None:
    async def run(context: ServerContext) -> None:
        async with http_client(context) as http:
            for i in range(5):
                await http.get(f"/nothing/{i}")
                await http.get(f"/v1/models/{i}")

    context = make_context()
    asyncio.run(run(context))
    body = context.metrics.render("")[0].decode()
    assert "nothing" not in body
    assert 'handler="/v1/models/{model_id:path}",method="GET",status="404"} 5.0' in body


@pytest.fixture
def ticks() -> Iterator[float]:
    return iter([10.0, 10.5, 11.0, 12.0, 12.0])


def test_latencies_of_one_request(ticks: Iterator[float]) -> None:
    metrics = Metrics("fake-model", FakeClient())
    with metrics.request(5, SamplingParams(), ticks.__next__) as observation:
        observation.update(ChoiceUpdate(0, token_ids=[1], scheduled_time=10.2))
        observation.update(ChoiceUpdate(0, token_ids=[2]))
        observation.update(ChoiceUpdate(0, token_ids=[3, 4], finish_reason="stop"))

    def total(name: str) -> float:
        labels = {"model_name": "fake-model", "engine": "0"}
        return metrics.registry.get_sample_value(f"vllm:{name}_seconds_sum", labels) or 0.0

    assert total("time_to_first_token") == pytest.approx(0.5)
    assert total("request_queue_time") == pytest.approx(0.2)
    assert total("request_prefill_time") == pytest.approx(0.3)
    assert total("inter_token_latency") == pytest.approx(1.5)
    assert total("request_decode_time") == pytest.approx(1.5)
    assert total("request_time_per_output_token") == pytest.approx(0.5)
    assert total("e2e_request_latency") == pytest.approx(2.0)
    assert total("request_inference_time") == pytest.approx(1.8)


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = make_context(), make_context()
    scrape(first)
    assert metric(second, "vllm:prompt_tokens_total") == 0
    assert not any("vllm" in family.name for family in REGISTRY.collect())
