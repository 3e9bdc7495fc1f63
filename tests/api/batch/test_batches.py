"""`/v1/batches` with OpenAI's client: from creation to results, through restarts."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from api.batch.server import KEYS, ended, requests, results, run, server, start, upload
from api.fakes import FakeClient
from pagemill.api.batch.journal import Journal, JournalError
from pagemill.api.batch.storage import BatchLimits
from pagemill.api.batch.store import BatchStore
from pagemill.api.batch.worker import MAX_JOBS, MAX_JOBS_EACH
from pagemill.api.context import Clock
from pagemill.engine.messages import EngineStats

BAD = {"custom_id": "bad", "method": "POST", "url": "/v1/completions", "body": {"prompt": 7}}


def test_life_of_a_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running:
            api = running.openai()
            content = requests(10) + json.dumps(BAD).encode()
            batch = await start(api, content, metadata={"job": "nightly"})
            assert (batch.object, batch.status) == ("batch", "validating")
            assert batch.expires_at == batch.created_at + 24 * 3600
            done = await ended(api, batch.id)
            assert (done.status, done.metadata) == ("completed", {"job": "nightly"})
            counts = done.request_counts
            assert (counts.total, counts.completed, counts.failed) == (11, 10, 1)
            assert done.in_progress_at and done.finalizing_at and done.completed_at
            good = await results(api, done.output_file_id)
            assert good.keys() == {f"c{i}" for i in range(10)}
            assert good["c3"]["response"]["body"]["choices"][0]["text"] == "Hel"
            bad = await results(api, done.error_file_id)
            assert bad["bad"]["response"]["status_code"] == 400
            output = await api.files.retrieve(done.output_file_id)
            assert output.purpose == "batch_output"
            assert output.expires_at == output.created_at + 30 * 24 * 3600
            with pytest.raises(openai.BadRequestError, match="completed"):
                await api.batches.cancel(batch.id)

    run(scenario)


def test_a_batch_goes_on_after_restarts_and_does_nothing_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        lives = 0
        async with server(tmp_path, works=False) as running:
            batch = await start(running.openai(), requests(40))
        output = tmp_path / f"files/file-{batch.id.removeprefix('batch_')}o"
        status, answered = "validating", set[str]()
        while status in ("validating", "in_progress"):
            lives += 1
            client = FakeClient(delay=0.002)
            async with server(tmp_path, client) as running:
                while len(client.calls) < 11 and status in ("validating", "in_progress"):
                    await asyncio.sleep(0.001)
                    status = (await running.openai().batches.retrieve(batch.id)).status
            assert not answered & {prompt.text for prompt, *_ in client.calls}
            ids = [json.loads(line)["custom_id"] for line in output.read_text().splitlines()]
            answered = {custom_id.replace("c", "p") for custom_id in ids}
            assert len(ids) == len(answered)
        assert lives > 2
        async with server(tmp_path) as running:
            done = await ended(running.openai(), batch.id)
            assert (done.status, done.error_file_id) == ("completed", None)
            good = await results(running.openai(), done.output_file_id)
            assert good.keys() == {f"c{i}" for i in range(40)}

    run(scenario)


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (requests(1) + b"{\n", "invalid_line", 2),
        (requests(2) + requests(1), "duplicate_custom_id", 3),
        (requests(1).replace(b"/v1/completions", b"/v1/messages"), "invalid_line", 1),
        (b"\n\n", "empty_file", None),
        (requests(6), "too_many_requests", None),
    ],
)
def test_files_that_cannot_be_run_fail_the_batch(
    tmp_path: Path, content: bytes, code: str, line: int | None
) -> None:
    async def scenario() -> None:
        client = FakeClient()
        async with server(tmp_path, client, limits=BatchLimits(max_requests=5)) as running:
            api = running.openai()
            done = await ended(api, (await start(api, content)).id)
            assert done.status == "failed"
            assert done.errors is not None and done.errors.data is not None
            assert [(e.code, e.line) for e in done.errors.data] == [(code, line)]
            assert client.calls == []

    run(scenario)


def test_cancelled_batches_keep_what_is_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = FakeClient(delay=0.003)
        async with server(tmp_path, client) as running:
            api = running.openai()
            batch = await start(api, requests(200))
            while len(client.calls) < 12:
                await asyncio.sleep(0.001)
            assert (await api.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
            done = await ended(api, batch.id)
            assert done.status == "cancelled"
            assert done.cancelling_at and done.cancelled_at
            good = await results(api, done.output_file_id)
            assert 0 < len(good) < 200
            assert done.request_counts.completed == len(good)
            assert not client.open_ids
            assert (await api.batches.cancel(batch.id)).status == "cancelled"

    run(scenario)


def test_a_batch_cancelled_before_it_began_runs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = FakeClient()
        async with server(tmp_path, client, works=False) as running:
            api = running.openai()
            batch = await start(api, requests(3))
            assert (await api.batches.cancel(batch.id)).status == "cancelling"
        async with server(tmp_path, client) as running:
            done = await ended(running.openai(), batch.id)
            assert (done.status, done.output_file_id) == ("cancelled", None)
        assert client.calls == []

    run(scenario)


def test_expired_batches_say_so_of_every_request_left(tmp_path: Path) -> None:
    wall = [1000.0]

    async def scenario() -> None:
        clock = Clock(wall=lambda: wall[0])
        async with server(tmp_path, works=False, clock=clock) as running:
            expiry = {"anchor": "created_at", "seconds": 3600}
            batch = await start(running.openai(), requests(3), output_expires_after=expiry)
        wall[0] += 24 * 3600 + 1
        async with server(tmp_path, FakeClient(delay=0.1), clock=clock) as running:
            api = running.openai()
            done = await ended(api, batch.id)
            assert (done.status, done.request_counts.failed) == ("expired", 3)
            lines = await results(api, done.error_file_id)
            assert {line["error"]["code"] for line in lines.values()} == {"batch_expired"}
            error_file = await api.files.retrieve(done.error_file_id)
            assert error_file.expires_at == int(wall[0]) + 3600

    run(scenario)


def test_keys_do_not_see_each_others_batches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running:
            own, other = (running.openai(key) for key in KEYS)
            ids = [(await start(own, requests(1))).id for _ in range(3)]
            assert [b.id async for b in own.batches.list(limit=2)] == ids[::-1]
            assert [b async for b in other.batches.list()] == []
            for call in (other.batches.retrieve, other.batches.cancel):
                with pytest.raises(openai.NotFoundError, match="no batch"):
                    await call(ids[0])
            for batch_id in ids:
                await ended(own, batch_id)

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {f"k{i}": "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "seconds"),
        ({"input_file_id": "file-1"}, "input_file_id"),
        ({"input_file_id": None}, "input_file_id"),
        ({"other": 1}, "other"),
    ],
)
def test_bad_bodies_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], param: str
) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running, running.http() as http:
            body = {
                "input_file_id": await upload(running.openai(), requests(1)),
                "endpoint": "/v1/completions",
                "completion_window": "24h",
            }
            response = await http.post("/v1/batches", json=body | changes)
            assert response.status_code in (400, 404)
            assert param in response.json()["error"]["param"]

    run(scenario)


def test_number_of_open_batches_is_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, limits=BatchLimits(max_open=2), works=False) as running:
            own, other = (running.openai(key) for key in KEYS)
            for _ in range(2):
                await start(own, requests(1))
            with pytest.raises(openai.BadRequestError, match="2 batches"):
                await start(own, requests(1))
            await start(other, requests(1))

    run(scenario)


@pytest.mark.parametrize(
    ("num_others", "num_waiting", "most"),
    [(0, 0, 4), (6, 0, 2), (20, 0, 1), (0, 9, 1)],  # of the fake's 8 places half, or what is left
)
def test_batches_leave_places_to_others(
    tmp_path: Path, num_others: int, num_waiting: int, most: int
) -> None:
    class Counting(FakeClient):
        seen = 0

        async def generate(self, *args: Any, **options: Any) -> Any:
            self.seen = max(self.seen, len(self.open_ids) + 1)
            async for update in super().generate(*args, **options):
                yield update

    async def scenario() -> None:
        client = Counting(delay=0.001, stats=EngineStats(num_waiting=num_waiting))
        async with server(tmp_path, client) as running:
            api = running.openai()
            with ExitStack() as others:
                for _ in range(num_others):
                    others.enter_context(running.context.admission.admit("-", 100))
                batch = await start(api, requests(12))
                assert (await ended(api, batch.id)).status == "completed"
        assert client.seen == most

    run(scenario)


def test_a_key_with_many_batches_leaves_room_for_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = FakeClient(first_delay=60.0)
        async with server(tmp_path, client) as running:
            own, other = (running.openai(key) for key in KEYS)
            many = [await start(own, requests(1)) for _ in range(MAX_JOBS)]
            last = await start(other, requests(1))
            while (await other.batches.retrieve(last.id)).status != "in_progress":
                await asyncio.sleep(0.01)
            waiting = many[MAX_JOBS_EACH:]
            states = {(await own.batches.retrieve(batch.id)).status for batch in waiting}
            assert states == {"validating"}

    run(scenario)


def test_batches_wait_while_the_model_sleeps(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = FakeClient(stats=EngineStats(sleep_level=1))
        async with server(tmp_path, client) as running:
            api = running.openai()
            batch = await start(api, requests(3))
            while (await api.batches.retrieve(batch.id)).status != "in_progress":
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            assert client.calls == []
            client.stats.sleep_level = 0
            assert (await ended(api, batch.id)).request_counts.completed == 3

    run(scenario)


def test_full_disk_delays_a_batch_and_does_not_fail_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    append = Journal.append

    def failing(self: Journal, line: bytes) -> None:
        if full[0]:
            raise JournalError("no space left on device")
        append(self, line)

    monkeypatch.setattr(Journal, "append", failing)

    async def scenario() -> None:
        client = FakeClient()
        async with server(tmp_path, client) as running:
            api = running.openai()
            batch = await start(api, requests(3))
            while len(client.calls) < 4:  # it tries again and again
                await asyncio.sleep(0.005)
            assert (await api.batches.retrieve(batch.id)).status == "in_progress"
            full[0] = False
            done = await ended(api, batch.id)
            assert done.request_counts.completed == 3

    run(scenario)


def test_a_fault_of_the_server_fails_one_batch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running:
            api = running.openai()
            with monkeypatch.context() as patched:
                patched.setattr(Journal, "append", lambda self, line: 1 / 0)
                done = await ended(api, (await start(api, requests(1))).id)
            assert done.status == "failed"
            assert done.errors is not None and done.errors.data is not None
            assert done.errors.data[0].code == "server_error"
            assert (await ended(api, (await start(api, requests(1))).id)).status == "completed"

    run(scenario)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("num_answered", [0, 2])
def test_a_batch_whose_input_is_gone_fails_and_keeps_what_is_done(
    tmp_path: Path, num_answered: int
) -> None:
    async def scenario() -> None:
        client = FakeClient(delay=0.005)
        async with server(tmp_path, client, works=num_answered > 0) as running:
            api = running.openai()
            batch = await start(api, requests(50))
            output = tmp_path / f"files/file-{batch.id.removeprefix('batch_')}o"
            while num_answered and num_lines(output) < num_answered:
                await asyncio.sleep(0.001)
        (tmp_path / "files" / batch.input_file_id).unlink()
        async with server(tmp_path) as running:
            api = running.openai()
            done = await ended(api, batch.id)
            assert (done.status, done.failed_at is not None) == ("failed", True)
            assert done.errors is not None and done.errors.data is not None
            [issue] = done.errors.data
            assert (issue.code, issue.param) == ("missing_input_file", "input_file_id")
            assert batch.input_file_id in (issue.message or "")
            if num_answered:
                kept = await results(api, done.output_file_id)
                assert len(kept) == done.request_counts.completed >= num_answered
            else:
                assert done.output_file_id is None

    run(scenario)


def test_a_disk_that_is_not_there_delays_a_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running:
            api = running.openai()
            file_id = await upload(api, requests(1))
            (tmp_path / "files").rename(tmp_path / "elsewhere")
            batch = await api.batches.create(
                input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
            )
            while f"{batch.id} waits" not in caplog.text:
                await asyncio.sleep(0.005)
            assert (await api.batches.retrieve(batch.id)).status == "validating"
            (tmp_path / "elsewhere").rename(tmp_path / "files")
            assert (await ended(api, batch.id)).status == "completed"

    run(scenario)


def test_ended_batches_are_deleted_with_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagemill.api.batch.worker.SWEEP_SECONDS", 0.0)
    wall = [1000.0]

    async def scenario() -> None:
        async with server(tmp_path, clock=Clock(wall=lambda: wall[0])) as running:
            api = running.openai()
            first = await ended(api, (await start(api, requests(1))).id)
            wall[0] += 1000
            second = await ended(api, (await start(api, requests(1))).id)
            wall[0] = (first.completed_at or 0) + 30 * 24 * 3600 + 1
            while (tmp_path / "files" / (first.output_file_id or "")).exists():
                await asyncio.sleep(0.01)
            while [b.id async for b in api.batches.list()] != [second.id]:
                await asyncio.sleep(0.01)
            assert {f.id async for f in api.files.list()} == {
                first.input_file_id,  # a client deletes what it has uploaded
                second.input_file_id,
                second.output_file_id,
            }
            with pytest.raises(openai.NotFoundError):
                await api.batches.retrieve(first.id)

    run(scenario)


def test_of_each_key_the_first_to_end_are_deleted_beyond_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagemill.api.batch.worker.SWEEP_SECONDS", 0.0)

    async def scenario() -> None:
        async with server(tmp_path, limits=BatchLimits(max_ended=2, keep_seconds=0)) as running:
            own, other = (running.openai(key) for key in KEYS)
            kept = await ended(other, (await start(other, requests(1))).id)
            own_batches = [await ended(own, (await start(own, requests(1))).id) for _ in range(3)]
            while (tmp_path / "files" / (own_batches[0].output_file_id or "")).exists():
                await asyncio.sleep(0.01)
            ids = [batch.id for batch in own_batches]
            assert [b.id async for b in own.batches.list()] == ids[:0:-1]
            assert [b.id async for b in other.batches.list()] == [kept.id]
            output = await own.files.retrieve(own_batches[-1].output_file_id or "")
            assert output.expires_at is None

    run(scenario)


def test_a_folder_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running:
            api = running.openai()
            batch = await ended(api, (await start(api, requests(1))).id)
        with sqlite3.connect(tmp_path / "batches.db") as database:
            database.execute("DROP INDEX batches_by_end")
            database.execute("ALTER TABLE batches DROP COLUMN ended_at")
            database.execute("PRAGMA user_version = 1")
        database.close()
        async with server(tmp_path, works=False) as running:
            assert (await running.openai().batches.retrieve(batch.id)).status == "completed"
            dropped = await running.storage.run(BatchStore.drop_ended, batch.completed_at + 1, 9)
            assert dropped == [batch.output_file_id]

    run(scenario)


def test_two_processes_share_a_folder_and_one_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        second_client = FakeClient()
        async with server(tmp_path) as first:
            async with server(tmp_path, second_client) as second:
                api = second.openai()
                batch = await start(api, requests(2))
                assert (await ended(api, batch.id)).status == "completed"
                assert second_client.calls == []
            assert first.worker is not None and not first.worker.done()

    run(scenario)


@pytest.mark.parametrize("method", ["open_batches", "change", "drop_expired"])
def test_trouble_with_the_database_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real, num_failed = getattr(BatchStore, method), 0

    def fail_twice(*args: Any) -> Any:
        nonlocal num_failed
        num_failed += 1
        if num_failed <= 2:
            raise sqlite3.OperationalError("database or disk is full")
        return real(*args)

    monkeypatch.setattr(BatchStore, method, fail_twice)

    async def scenario() -> None:
        async with server(tmp_path) as running:
            done = await ended(running.openai(), (await start(running.openai(), requests(3))).id)
            assert (done.status, done.request_counts.completed) == ("completed", 3)
            assert num_failed > 2 or method == "drop_expired"

    run(scenario)
