"""What schemathesis makes of the document is answered as the document says, in bounded time."""

from __future__ import annotations

from typing import Any

import schemathesis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fuzz.openapi import POOLINGS, VECTORS, fake_schema, fuzz

EXAMPLES = 5  # of valid and of invalid cases for every endpoint


def test_no_case_gets_an_undocumented_answer() -> None:
    tally = fuzz(fake_schema(), examples=EXAMPLES, seed_number=1, seconds=20)
    for pooling in POOLINGS:
        some = {"paths": VECTORS, "tally": tally}
        fuzz(fake_schema(pooling), examples=EXAMPLES, seed_number=1, seconds=5, **some)
    assert not tally.wrong
    answers = tally.statuses()
    assert answers[200] > 10
    assert answers[400] > 10
    assert len(tally.labels) == len(list(fake_schema().get_all_operations()))


def test_undocumented_answers_are_found() -> None:
    async def document(request: Request) -> JSONResponse:
        ok: dict[str, Any] = {"responses": {"200": {"description": "OK"}}}
        paths = {"/teapot": {"get": ok}, "/broken": {"get": ok}, "/fine": {"get": ok}}
        return JSONResponse(
            {"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": paths}
        )

    def answers(status: int) -> Any:
        async def endpoint(request: Request) -> JSONResponse:
            return JSONResponse({}, status)

        return endpoint

    statuses = {"/teapot": 418, "/broken": 500, "/fine": 200}
    app = Starlette(
        routes=[
            Route("/openapi.json", document),
            *(Route(path, answers(status)) for path, status in statuses.items()),
        ]
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    tally = fuzz(schema, examples=1, seed_number=1)
    assert {line.split()[1] for line in tally.wrong} == {"/teapot", "/broken"}
