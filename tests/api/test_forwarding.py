"""Requests on their way to the services that own them: in memory and over HTTP, healthy and not."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from litestar import Request, Response, get, post

from services.api.main import Gateway
from shared.http import Caller, Who, build_app
from shared.process import http_server
from tests.api.conftest import Person, client_of, problem
from tests.shared.test_http import FakeService


class Neighbour:
    """A service that tells what it got."""

    def __init__(self, gateway: Gateway, name: str = "detector") -> None:
        self.seen: list[dict[str, Any]] = []
        self.sick = False
        service = FakeService(*self._routes())
        service.name = name
        service.clock = gateway.clock
        self.app = build_app(service)

    def _routes(self) -> list[Any]:
        async def tell(request: Request[Any, Any, Any], identity: Who) -> Response[bytes]:
            if self.sick:
                return Response(b"{}", status_code=503)
            self.seen.append(
                {
                    "method": request.method,
                    "path": request.scope["path"],
                    "query": request.scope["query_string"].decode(),
                    "headers": dict(request.headers.items()),
                    "body": await request.body(),
                    "identity": identity,
                }
            )
            headers = {"x-kept": "yes", "connection": "x-dropped", "x-dropped": "1", "server": "secret/1.0"}
            return Response(b'{"n": %d}' % len(self.seen), headers=headers, media_type="application/json")

        async def keep(request: Request[Any, Any, Any]) -> Response[bytes]:
            self.seen.append({"body": b"".join([chunk async for chunk in request.stream()])})
            return Response(b"{}", media_type="application/json")

        return [
            get("/leaderboard", caller=Caller.USER, operation_id="a")(tell),
            get("/activity/{symbol:str}", caller=Caller.USER, operation_id="b")(tell),
            post("/pay/webhooks/stripe", caller=Caller.PROVIDER, status_code=200, operation_id="d")(keep),
            post("/api/alerts/{rest:path}", caller=Caller.USER, status_code=201, operation_id="c")(tell),
        ]


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    server = http_server(app, "127.0.0.1", 0)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
        await asyncio.sleep(0)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture(params=["memory", "http"])
async def pair(request, make_gateway, gateway: Gateway) -> AsyncGenerator[tuple[Gateway, Neighbour]]:
    detector = Neighbour(gateway)
    if request.param == "memory":
        there = make_gateway()
        there.neighbours["detector"] = detector.app
        yield there, detector
        return
    async with served(detector.app) as url:
        there = make_gateway(upstreams={"detector": url})
        yield there, detector
        await there.http.aclose()


async def test_a_webhook_arrives_as_it_was_signed_a_nul_included(make_gateway, gateway: Gateway):
    payment = Neighbour(gateway, "payment")
    there = make_gateway()
    there.neighbours["payment"] = payment.app
    body = b'{"id": "evt_1", "data": {"object": {"name": "a\\u0000b"}}}'
    about = {"content-type": "application/json", "stripe-signature": "t=1,v1=aa"}
    async with client_of(there.app) as client:
        answer = await client.post("/pay/webhooks/stripe", content=body, headers=about)
        large = await client.post("/pay/webhooks/stripe", content=b"a" * 1_000_001, headers=about)
    assert answer.status_code == 200, answer.text
    assert payment.seen == [{"body": body}]
    assert (large.status_code, problem(large)["code"]) == (413, "TOO_LARGE")


async def test_a_request_reaches_its_owner_with_who_calls(pair: tuple[Gateway, Neighbour], ada: Person):
    gateway, detector = pair
    async with client_of(gateway.app) as client:
        answer = await client.get("/activity/BRK.B?min=3&q=%C3%A4%20b", headers=ada.headers)
    assert answer.status_code == 200, answer.text
    (seen,) = detector.seen
    assert (seen["path"], seen["query"]) == ("/activity/BRK.B", "min=3&q=%C3%A4%20b")
    assert (seen["identity"].user_id, seen["identity"].role) == (ada.id, "user")
    assert seen["headers"]["x-request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-kept"] == "yes"
    assert answer.headers["ratelimit-policy"]


async def test_what_a_client_must_not_say_and_an_upstream_must_not_show_stays_here(
    pair: tuple[Gateway, Neighbour], ada: Person
):
    gateway, detector = pair
    headers = {
        **ada.headers,
        "x-openbell-identity": "forged",
        "x-openbell-anything": "1",
        "x-forwarded-for": "6.6.6.6",
        "forwarded": "for=6.6.6.6",
        "cookie": "a=b",
        "connection": "x-mine, keep-alive",
        "x-mine": "1",
        "te": "trailers",
        "proxy-authorization": "x",
        "accept-language": "de",
    }
    async with client_of(gateway.app) as client:
        answer = await client.get("/leaderboard", headers=headers)
    assert answer.status_code == 200, answer.text
    got = detector.seen[0]["headers"]
    assert got["accept-language"] == "de"
    assert got["x-openbell-identity"] != "forged"
    unwanted = {"authorization", "x-openbell-anything", "x-forwarded-for", "forwarded", "cookie", "x-mine", "te"}
    assert not unwanted & got.keys()
    assert ada.key not in str(got)
    assert not {"x-dropped", "server"} & answer.headers.keys()


async def test_errors_of_the_owner_arrive_as_they_are(pair: tuple[Gateway, Neighbour], ada: Person):
    gateway, _ = pair
    async with client_of(gateway.app) as client:
        answer = await client.get("/activity/AAPL/nothing/here", headers=ada.headers)
    assert answer.status_code == 404
    assert problem(answer)["code"] == "NOT_FOUND"


async def test_no_path_leads_past_its_rule(pair: tuple[Gateway, Neighbour], ada: Person, admin: Person):
    gateway, detector = pair
    async with client_of(gateway.app) as client:
        for path in ("/activity/../metrics", "/activity/x/../../metrics", "/activity/./x", "/activity/a\\b"):
            assert await bare_get(gateway.app, path, admin) == 404, path  # httpx would tidy the path up
        assert (await client.post("/leaderboard", headers=ada.headers)).status_code == 405
        assert (await client.get("/leaderboard")).status_code == 401
    assert not detector.seen


async def bare_get(app: Any, path: str, person: Person) -> int:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"x-api-key", person.key.encode())],
        "client": ("203.0.113.7", 1),
        "server": None,
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


async def test_the_idempotency_key_and_the_body_go_along(make_gateway, gateway: Gateway, ada: Person):
    alerts = Neighbour(gateway, "alerts")
    there = make_gateway()
    there.neighbours["alerts"] = alerts.app
    async with client_of(there.app) as client:
        answer = await client.post(
            "/api/alerts/1/opened", headers={**ada.headers, "idempotency-key": "k"}, content=b'{"a": "\xc3\xa4"}'
        )
    assert answer.status_code == 201, answer.text
    assert alerts.seen[0]["headers"]["idempotency-key"] == "k"
    assert alerts.seen[0]["body"] == b'{"a": "\xc3\xa4"}'


async def test_a_silent_owner_is_503_and_the_leaderboard_is_stale_for_a_while(
    make_gateway, gateway: Gateway, ada: Person, clock
):
    detector = Neighbour(gateway)
    async with served(detector.app) as url:
        there = make_gateway(upstreams={"detector": url})
        async with client_of(there.app) as client:
            fresh = await client.get("/leaderboard?limit=5", headers=ada.headers)
            assert "x-openbell-stale" not in fresh.headers
            detector.sick = True
            sick = await client.get("/leaderboard?limit=5", headers=ada.headers)
            assert (sick.status_code, sick.headers["x-openbell-stale"]) == (200, "true")
            await there.http.aclose()
    there = make_gateway(upstreams={"detector": url})
    detector.sick = False
    async with client_of(there.app) as client:
        gone = await client.get("/leaderboard", headers=ada.headers)
        assert gone.status_code == 503
        assert problem(gone)["code"] == "UPSTREAM_UNAVAILABLE"
        assert gone.headers["retry-after"]


async def test_a_stale_answer_has_an_end_and_an_age(make_gateway, gateway: Gateway, ada: Person, clock):
    detector = Neighbour(gateway)
    there = make_gateway()
    there.neighbours["detector"] = detector.app
    async with client_of(there.app) as client:
        fresh = await client.get("/leaderboard", headers=ada.headers)
        await client.get("/activity/AAPL", headers=ada.headers)
        del there.neighbours["detector"]
        clock.advance(60)
        stale = await client.get("/leaderboard", headers=ada.headers)
        assert stale.content == fresh.content
        assert (stale.headers["x-openbell-stale"], stale.headers["age"]) == ("true", "60")
        assert (await client.get("/leaderboard?limit=1", headers=ada.headers)).status_code == 503
        assert (await client.get("/activity/AAPL", headers=ada.headers)).status_code == 503
        clock.advance(900)
        assert (await client.get("/leaderboard", headers=ada.headers)).status_code == 503


async def test_an_open_breaker_sends_nothing(make_gateway, gateway: Gateway, ada: Person):
    detector = Neighbour(gateway)
    asked = 0

    async def sick(scope, receive, send):
        nonlocal asked
        asked += 1
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async with served(sick) as url:
        there = make_gateway(upstreams={"detector": url})
        async with client_of(there.app) as client:
            answers = [await client.get("/activity/AAPL", headers=ada.headers) for _ in range(9)]
        await there.http.aclose()
    assert asked == 5
    assert {answer.status_code for answer in answers} == {503}
    assert not detector.seen


async def test_operations_of_all_services_are_one_list(make_gateway, gateway: Gateway, admin: Person, clock):
    there = make_gateway()
    async with there.db.transaction() as tx:
        await tx.connection.execute(
            """insert into failed_jobs
                   (consumer, topic, partition, record_offset, headers, status, job_type, error_code)
               values ('api.audit', 'api.audit', 0, 7, '\\x90', 'dead', 'x.v1', 'X')"""
        )
    await there.scheduler.turn()
    async with client_of(there.app) as client:
        listed = (await client.get("/ops/failed-jobs", headers=admin.headers)).json()
        (row,) = listed["failed_jobs"]
        assert row["service"] == "api"
        assert listed["unavailable"] == dict.fromkeys(
            ("alerts", "broker", "data", "detector", "payment"), "UPSTREAM_UNAVAILABLE"
        )
        path = f"/ops/failed-jobs/api/{row['id']}"
        shown = await client.get(path, headers=admin.headers)
        assert shown.status_code == 200, shown.text
        assert (await client.post(f"{path}/discard", json={}, headers=admin.headers)).status_code == 422
        discarded = await client.post(f"{path}/discard", json={"reason": "a test"}, headers=admin.headers)
        assert discarded.json()["status"] == "discarded", discarded.text
        assert (await client.post(f"{path}/retry", headers=admin.headers)).status_code == 409
        jobs = (await client.get("/ops/jobs", headers=admin.headers)).json()["jobs"]
        assert "idempotency-retention" in {job["name"] for job in jobs}
        asked = await client.post("/ops/jobs/api/idempotency-retention/run", headers=admin.headers)
        assert asked.status_code == 202, asked.text
        assert (await client.get("/ops/jobs/api/idempotency-retention/runs", headers=admin.headers)).status_code == 200
        assert (await client.post("/ops/jobs/api/nothing/run", headers=admin.headers)).status_code == 404
        assert (await client.get("/ops/failed-jobs/nobody", headers=admin.headers)).status_code == 404
        assert (await client.get("/ops/failed-jobs/groups", headers=admin.headers)).status_code == 200
    async with there.door.read() as tx:
        told = await tx.connection.fetch("select convert_from(value, 'UTF8') from outbox where topic = 'api.audit'")
    assert {"discard.failed_job", "run.job"} <= {word for row in told for word in row[0].split('"')}


async def test_the_documentation_is_one_and_needs_nobody_else(make_gateway, gateway: Gateway):
    there = make_gateway()
    there.neighbours["detector"] = Neighbour(gateway).app
    async with client_of(there.app) as client:
        document = (await client.get("/docs/openapi.json")).json()
        for path in ("/docs", "/docs/docs.js", "/docs/docs.css"):
            asset = await client.get(path)
            assert asset.status_code == 200
            assert "http://" not in asset.text
            assert "https://" not in asset.text
            assert "default-src 'none'" in asset.headers["content-security-policy"]
    assert {"/leaderboard", "/activity/{symbol}", "/api/users", "/ops/failed-jobs"} <= document["paths"].keys()
    assert "/ops/jobs/{job}/run" not in document["paths"]
    references = set(find(document, "$ref"))
    assert all(reference.rpartition("/")[2] in document["components"]["schemas"] for reference in references)
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def find(part: Any, name: str) -> list[str]:
    if isinstance(part, dict):
        here = [str(part[name])] if name in part else []
        return here + [one for value in part.values() for one in find(value, name)]
    return [one for value in part for one in find(value, name)] if isinstance(part, list) else []
