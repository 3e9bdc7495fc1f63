"""`/v1/files` with OpenAI's client and with what it would never send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.batch.server import KEYS, Server, requests, run, server, start, upload
from api.fakes import http_client, make_context
from api.live import serve, wait_until
from pagemill.api.app import BATCH_URLS
from pagemill.api.batch.storage import BatchLimits, BatchStorage
from pagemill.api.batch.uploads import AT_ONCE, AT_ONCE_EACH, UploadQueue
from pagemill.api.context import Clock
from pagemill.cli.http import StreamingProtocol

FORM = {"purpose": "batch"}


def test_life_of_a_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        content = requests(3)
        async with server(tmp_path) as running:
            api = running.openai()
            made = await api.files.create(file=("dir/in.jsonl", content), purpose="batch")
            assert (made.bytes, made.filename, made.purpose) == (len(content), "in.jsonl", "batch")
            assert (await api.files.retrieve(made.id)) == made
            assert (await api.files.content(made.id)).content == content
            assert [f.id async for f in api.files.list()] == [made.id]
        async with server(tmp_path) as running:  # after a restart
            api = running.openai()
            assert (await api.files.content(made.id)).content == content
            assert (await api.files.delete(made.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await api.files.retrieve(made.id)
            assert [f async for f in api.files.list()] == []
        assert list((tmp_path / "files").iterdir()) == []

    run(scenario)


def test_keys_do_not_see_each_others_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running:
            own, other = (running.openai(key) for key in KEYS)
            file_id = await upload(own, requests(1))
            assert [f async for f in other.files.list()] == []
            for call in (other.files.retrieve, other.files.content, other.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(file_id)
            with pytest.raises(openai.NotFoundError, match="no file"):
                await other.batches.create(
                    input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
                )
            assert (await own.files.retrieve(file_id)).id == file_id

    run(scenario)


def test_lists_have_pages(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, works=False) as running:
            api = running.openai()
            ids = [await upload(api, requests(1)) for _ in range(5)]
            page = await api.files.list(limit=2)
            assert [f.id for f in page.data] == ids[:2:-1]
            assert page.has_more
            assert [f.id async for f in api.files.list(limit=2)] == ids[::-1]
            assert [f.id async for f in api.files.list(limit=2, order="asc")] == ids
            assert [f.id async for f in api.files.list(purpose="batch_output")] == []

    run(scenario)


@pytest.mark.parametrize(
    ("form", "files", "status", "param"),
    [
        ({}, {"file": ("a", b"x")}, 400, "purpose"),
        ({"purpose": "assistants"}, {"file": ("a", b"x")}, 400, "purpose"),
        (FORM, {"other": ("a", b"x")}, 400, "other"),
        ({**FORM, "file": "text"}, {}, 415, None),
        (FORM, {"file": ("a", b"")}, 400, "file"),
        ({**FORM, "extra": "1"}, {"file": ("a", b"x")}, 400, "extra"),
        (FORM, {"file": ("a", b"x" * 2000)}, 413, "file"),
        (FORM, {"file": ("a", b"x" * 200_000)}, 413, None),
        (FORM | {"expires_after[seconds]": "7200"}, {"file": ("a", b"x")}, 400, "anchor"),
        (
            FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            {"file": ("a", b"x")},
            400,
            "seconds",
        ),
    ],
)
def test_bad_uploads_are_refused_and_leave_nothing(
    tmp_path: Path, form: dict[str, str], files: dict[str, Any], status: int, param: str | None
) -> None:
    async def scenario() -> None:
        limits = BatchLimits(max_file_bytes=1000)
        async with server(tmp_path, limits=limits) as running, running.http() as http:
            response = await http.post("/v1/files", data=form, files=files)
            error = response.json()["error"]
            assert response.status_code == status, error
            assert (error["param"] or "").endswith(param or "")
            garbage = {"content-type": "multipart/form-data; boundary=x"}
            broken = await http.post("/v1/files", content=b"no form", headers=garbage)
            assert broken.status_code == 400
        assert list((tmp_path / "files").iterdir()) == []

    run(scenario)


def test_number_and_size_of_files_are_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = BatchLimits(max_files=2, max_total_bytes=30)
        async with server(tmp_path, limits=limits, works=False) as running:
            own, other = (running.openai(key) for key in KEYS)
            for _ in range(2):
                await upload(own, b"x" * 10)
            with pytest.raises(openai.BadRequestError, match="2 files"):
                await upload(own, b"x")
            with pytest.raises(openai.InternalServerError, match="no room"):
                await upload(other, b"x" * 11)
            await upload(other, b"x" * 10)
        assert len(list((tmp_path / "files").iterdir())) == 3

    run(scenario)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=x", "limit=10001", "order=up", "after=file-1", "x=1", "after=" + "a" * 300],
)
def test_wrong_queries_are_refused(tmp_path: Path, query: str) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as running, running.http() as http:
            response = await http.get(f"/v1/files?{query}")
            assert response.status_code == (404 if query == "after=file-1" else 400)
            assert response.json()["error"]["param"] == query.partition("=")[0]

    run(scenario)


def test_files_expire_unless_a_batch_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagemill.api.batch.worker.SWEEP_SECONDS", 0.0)
    wall = [1000.0]

    async def scenario() -> None:
        async with server(tmp_path, works=False, clock=Clock(wall=lambda: wall[0])) as running:
            api = running.openai()
            expires = {"anchor": "created_at", "seconds": 3600}
            file = await api.files.create(
                file=("a", requests(1)),
                purpose="batch",
                expires_after=expires,  # type: ignore[arg-type]
            )
            assert file.expires_at == 1000 + 3600
            kept = await upload(api, b"x")
        wall[0] += 3601
        async with server(tmp_path, clock=Clock(wall=lambda: wall[0])) as running:
            await until_gone(tmp_path, file.id)
            api = running.openai()
            assert [f.id async for f in api.files.list()] == [kept]

    run(scenario)


_HEAD = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
_TAIL = b"\r\n--x--\r\n"
_MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


async def trickle(seconds: float) -> AsyncIterator[bytes]:
    """A form that never ends: a byte each time."""
    yield _HEAD
    while True:
        await asyncio.sleep(seconds)
        yield b"x"


@pytest.mark.parametrize("pause", [0.005, 60.0])
def test_slow_uploads_are_given_up_and_others_get_their_turn(tmp_path: Path, pause: float) -> None:
    """Whether a client sends a little now and then, or nothing."""

    async def scenario() -> None:
        limits = BatchLimits(pace_bytes=1000, pace_seconds=0.2)
        async with server(tmp_path, limits=limits) as running, running.http() as http:
            slow = [asyncio.create_task(post_slowly(http, pause)) for _ in range(4)]
            await asyncio.sleep(0.05)
            file_id = await upload(running.openai(), requests(1))  # waits for the first to end
            answers = await asyncio.gather(*slow)
            assert {answer.status_code for answer in answers} == {408}
            assert "less than 1000 bytes in 0.2 s" in answers[0].json()["error"]["message"]
        assert [path.name for path in (tmp_path / "files").iterdir()] == [file_id]

    run(scenario)


def test_an_upload_at_the_least_pace_is_taken(tmp_path: Path) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield _HEAD
        for _ in range(10):
            await asyncio.sleep(0.05)
            yield b"x" * 1000
        yield _TAIL

    async def scenario() -> None:
        limits = BatchLimits(pace_bytes=1000, pace_seconds=5.0)
        async with server(tmp_path, limits=limits) as running, running.http() as http:
            made = await http.post("/v1/files", content=content(), headers=_MULTIPART)
            assert (made.status_code, made.json()["bytes"]) == (200, 10_000)

    run(scenario)


def test_uploads_queue_with_a_bound(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = BatchLimits(max_waiting_uploads=1)
        async with server(tmp_path, limits=limits) as running, holding(running) as tasks:
            waiting = asyncio.create_task(upload(running.openai(), requests(1)))
            while not running.storage.uploads.num_waiting:
                await asyncio.sleep(0.001)
            async with running.http(KEYS[1]) as http:
                refused = await post_slowly(http)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert not waiting.done()
            tasks[0].cancel()
            assert (await waiting).startswith("file-")

    run(scenario)


def test_a_key_does_not_take_all_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = BatchLimits(max_waiting_uploads=4)
        async with server(tmp_path, limits=limits) as running, running.http() as http:
            uploads = running.storage.uploads
            own = [asyncio.create_task(post_slowly(http)) for _ in range(4)]
            while uploads.num_waiting < 2:  # two have their turn
                await asyncio.sleep(0.001)
            refused = await post_slowly(http)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert (await upload(running.openai(KEYS[1]), requests(1))).startswith("file-")
            own[0].cancel()
            while uploads.num_waiting > 1:
                await asyncio.sleep(0.001)
            await end(own)
            assert not uploads.num_waiting

    run(scenario)


def test_uploads_do_not_wait_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = BatchLimits(waiting_timeout=0.05)
        async with (
            server(tmp_path, limits=limits) as running,
            holding(running),
            running.http() as http,
        ):
            assert (await post_slowly(http)).status_code == 503

    run(scenario)


def test_a_turn_for_who_leaves_in_the_same_moment_goes_to_the_next() -> None:
    async def hold(queue: UploadQueue, owner: str) -> None:
        async with queue.turn(owner, {}):
            pass

    async def scenario() -> None:
        queue = UploadQueue(4, 60.0)
        async with queue.turn("a", {}), queue.turn("b", {}), queue.turn("b", {}):
            async with queue.turn("a", {}):
                leaving = asyncio.create_task(hold(queue, "c"))
                behind = asyncio.create_task(hold(queue, "d"))
                while queue.num_waiting < 2:
                    await asyncio.sleep(0)
            leaving.cancel()  # it has its turn, and has not heard of it
            await asyncio.gather(leaving, return_exceptions=True)
            await behind

    run(scenario)


@pytest.mark.parametrize("num_bytes", [1000, 100_000])
def test_a_client_that_leaves_the_queue_is_not_waited_for(tmp_path: Path, num_bytes: int) -> None:
    """Whether the server has taken in all it sent, or has stopped reading."""
    storage = BatchStorage(tmp_path, BATCH_URLS)
    context = make_context(None, batches=storage)
    with serve(context, StreamingProtocol) as url, ExitStack() as clients:
        host, port = url.removeprefix("http://").split(":")

        def begin() -> socket.socket:
            connection = socket.create_connection((host, int(port)))
            clients.enter_context(connection)
            connection.sendall(_UPLOAD + _HEAD)
            return connection

        for _ in range(AT_ONCE_EACH):
            begin()
        assert wait_until(lambda: storage.uploads._open.total() == AT_ONCE_EACH)
        leaving = begin()
        assert wait_until(lambda: storage.uploads.num_waiting == 1)
        leaving.sendall(b"x" * num_bytes)
        leaving.close()
        assert wait_until(lambda: storage.uploads.num_waiting == 0, 5.0)
    storage.close()


_UPLOAD = (
    b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
)


async def end(tasks: list[asyncio.Task[httpx.Response]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def holding(running: Server) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """All turns are taken, the first by the first key."""
    async with running.http(KEYS[0]) as own, running.http(KEYS[1]) as other:
        clients = [own, own, other, other]
        tasks = [asyncio.create_task(post_slowly(http)) for http in clients]
        while running.storage.uploads._open.total() < AT_ONCE:
            await asyncio.sleep(0.001)
        yield tasks
        await end(tasks)


async def post_slowly(http: httpx.AsyncClient, pause: float = 60.0) -> httpx.Response:
    return await http.post("/v1/files", content=trickle(pause), headers=_MULTIPART)


async def until_gone(folder: Path, file_id: str) -> None:
    while (folder / "files" / file_id).exists():
        await asyncio.sleep(0.01)


def test_input_of_an_open_batch_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, works=False) as running:
            api = running.openai()
            batch = await start(api, requests(1))
            with pytest.raises(openai.BadRequestError, match=batch.id):
                await api.files.delete(batch.input_file_id)

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/batches/x")]
)
def test_without_a_folder_the_answer_says_how_to_turn_it_on(method: str, path: str) -> None:
    async def scenario() -> None:
        async with http_client(make_context()) as http:
            response = await http.request(method, path)
            assert response.status_code == 404
            assert "--data-dir" in response.json()["error"]["message"]

    run(scenario)
