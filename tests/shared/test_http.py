"""The app that every service serves: errors, request ids, callers, identity, what must not come in, metrics."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody
from prometheus_client import REGISTRY
from pydantic import BaseModel, SecretStr

from shared.clock import new_id
from shared.errors import Conflict, Forbidden, Invalid, RateLimited, Transient, Unauthenticated
from shared.http import Caller, Who, build_app, routes
from shared.http.callers import UndeclaredRoute
from shared.identity import Identity, Signer, UnsafeSecret, Verifier, identity_secret, own
from shared.settings import SharedSettings

SECRET = "development-only-identity-secret-0000"


class Item(BaseModel):
    name: str
    count: int = 0


ERRORS = {
    "conflict": Conflict("taken", name="x"),
    "invalid": Invalid("no", problems=[{"path": "a", "message": "b"}]),
    "transient": Transient("later", retry_after_s=7.2),
    "limited": RateLimited(retry_after_s=3),
    "crash": RuntimeError("the secret is hunter2"),
    "deadlock": asyncpg.DeadlockDetectedError("deadlock detected"),
    "gone": asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
}


@get("/errors/{name:str}", caller=Caller.PUBLIC)
async def raise_error(name: FromPath[str]) -> None:
    raise ERRORS[name]


@post("/items", caller=Caller.PUBLIC)
async def add_item(data: JSONBody[Item]) -> Item:
    return data


@get("/echo/{text:str}", caller=Caller.PUBLIC)
async def echo(text: FromPath[str], q: FromQuery[str] = "") -> dict[str, str]:
    return {"text": text, "q": q}


@get("/mine/{user_id:uuid}", caller=Caller.USER)
async def mine(identity: Who, user_id: FromPath[UUID]) -> dict[str, str]:
    own(identity, user_id)
    return {"role": identity.role}


@get("/all", caller=Caller.ADMIN)
async def everything(identity: Who) -> dict[str, str]:
    return {"role": identity.role}


class FakeService:
    """What `build_app` needs, without a database."""

    def __init__(self, *handlers: Any, settings: SharedSettings | None = None) -> None:
        self.name = "demo"
        self.settings = settings or SharedSettings()
        self.now = datetime(2026, 7, 1, tzinfo=UTC)
        self.handlers = list(handlers)
        self.checks: dict[str, tuple[bool, str]] = {"database": (True, "fine")}
        self.door: Any = None
        self.operations: Any = None
        self.scheduler: Any = None

    def clock(self) -> datetime:
        return self.now

    async def readiness(self) -> Mapping[str, tuple[bool, str]]:
        return self.checks


@pytest.fixture
def service() -> FakeService:
    return FakeService(raise_error, add_item, echo, mine, everything)


@pytest.fixture
async def client(service: FakeService) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)  # pyright: ignore[reportArgumentType]
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "details", "timestamp", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    assert error["timestamp"] == "2026-07-01T00:00:00Z"
    return error


async def test_each_error_has_its_status_code_and_shape(client: httpx.AsyncClient):
    for path, status, code in [
        ("/errors/conflict", 409, "CONFLICT"),
        ("/errors/invalid", 422, "VALIDATION_ERROR"),
        ("/errors/transient", 503, "TEMPORARILY_UNAVAILABLE"),
        ("/errors/limited", 429, "RATE_LIMITED"),
        ("/errors/crash", 500, "INTERNAL_ERROR"),
        ("/errors/deadlock", 503, "DATABASE_UNAVAILABLE"),
        ("/errors/gone", 503, "DATABASE_UNAVAILABLE"),
        ("/nowhere", 404, "NOT_FOUND"),
        ("/mine/not-a-uuid", 404, "NOT_FOUND"),
        ("/items", 405, "METHOD_NOT_ALLOWED"),
    ]:
        answer = await client.get(path)
        assert answer.status_code == status, path
        assert error_of(answer)["code"] == code


async def test_details_are_what_the_error_says(client: httpx.AsyncClient):
    assert error_of(await client.get("/errors/conflict"))["details"] == {"name": "x"}
    assert error_of(await client.get("/errors/invalid"))["details"] == [{"path": "a", "message": "b"}]


async def test_errors_that_pass_say_when_to_come_back(client: httpx.AsyncClient):
    assert (await client.get("/errors/transient")).headers["retry-after"] == "8"
    assert (await client.get("/errors/limited")).headers["retry-after"] == "3"
    assert (await client.get("/errors/deadlock")).headers["retry-after"] == "1"


async def test_an_unexpected_error_is_in_the_log_and_not_in_the_answer(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/errors/crash", headers={"x-request-id": "find-me"})
    assert "hunter2" not in answer.text
    (record,) = [one for one in caplog.records if one.message == "http_failed"]
    assert vars(record)["request_id"] == "find-me"
    assert record.exc_info
    assert "hunter2" in str(record.exc_info[1])


async def test_expected_errors_are_not_logged(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture):
    for name in ("conflict", "transient", "limited"):
        await client.get(f"/errors/{name}")
    assert not [one for one in caplog.records if one.name.startswith("shared.http")]


async def test_bodies_of_a_wrong_shape_are_told_apart_from_no_json(client: httpx.AsyncClient):
    wrong = await client.post("/items", json={"name": 1, "count": "x"})
    assert wrong.status_code == 422
    assert {one["path"] for one in error_of(wrong)["details"]} == {"name", "count"}
    for body in (b"{", b"{'a': 1}", b"\xff\xfe", b'{"name": "\xff"}', b'{"name": "\\ud800"}', b"nan"):
        answer = await client.post("/items", content=body)
        assert answer.status_code == 400, body
        assert error_of(answer)["code"] == "INVALID_JSON"
    for body in (b"", b"null", b"[]", b'"x"', b"1"):
        answer = await client.post("/items", content=body)
        assert answer.status_code == 422, body


async def test_a_body_over_a_megabyte_is_refused_announced_or_not(client: httpx.AsyncClient):
    body = json.dumps({"name": "x" * 1_000_001}).encode()

    async def pieces() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    for content in (body, pieces()):
        answer = await client.post("/items", content=content)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "TOO_LARGE"


async def test_nul_is_refused_everywhere_and_its_lookalikes_are_not(client: httpx.AsyncClient):
    refused = [
        await client.get("/echo/a%00b"),
        await client.get("/echo/a?q=%00"),
        await client.get("/echo/a?%00=q"),
        await client.get("/nowhere%00"),
        await client.post("/items", content=b'{"name": "a\\u0000b"}'),
        await client.post("/items", content=b'{"name": "a\\\\\\u0000b"}'),
        await client.post("/items", content=b'{"a\\u0000": 1}'),
        await client.post("/items", content=b'{"name": "a\x00b"}'),
        await client.post("/items", content=b"name=%00", headers={"content-type": "application/x-www-form-urlencoded"}),
    ]
    for answer in refused:
        assert answer.status_code == 422, answer.request.url
        assert "NUL" in error_of(answer)["message"]
    assert (await client.get("/echo/a%2500b?q=%2500")).json() == {"text": "a%00b", "q": "%00"}
    kept = await client.post("/items", content=b'{"name": "a\\\\u0000b %00"}')
    assert kept.json()["name"] == "a\\u0000b %00"


async def test_a_sane_request_id_is_kept_and_another_is_replaced(client: httpx.AsyncClient):
    sane = await client.get("/echo/a", headers={"x-request-id": "abc-123_XYZ.7"})
    assert sane.headers["x-request-id"] == "abc-123_XYZ.7"
    for odd in ("", "a b", "x" * 129, "a\tb", "<script>"):
        answer = await client.get("/echo/a", headers={"x-request-id": odd})
        assert answer.headers["x-request-id"] not in {odd, ""}
    first, second = [(await client.get("/echo/a")).headers["x-request-id"] for _ in range(2)]
    assert first != second


async def test_readiness_is_red_when_one_thing_is(client: httpx.AsyncClient, service: FakeService):
    assert (await client.get("/readyz")).status_code == 200
    service.checks["kafka"] = (False, "away")
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["kafka"] == {"ok": False, "detail": "away"}
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("address", "headers", "theirs"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("10.1.2.3", {}, True),
        ("10.2.0.1", {}, False),
        ("203.0.113.7", {}, False),
        ("203.0.113.7", {"x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {"x-forwarded-for": "203.0.113.7"}, False),
        ("127.0.0.1", {"forwarded": "for=203.0.113.7"}, False),
        ("127.0.0.1", {"via": "1.1 somebody"}, False),
        ("not an address", {}, False),
    ],
)
async def test_figures_and_reasons_are_for_operators_and_the_verdict_for_everybody(
    service: FakeService, address: str, headers: dict[str, str], *, theirs: bool
):
    service.settings = SharedSettings(operator_networks="127.0.0.0/8, ::1/128, 10.1.0.0/16")  # pyright: ignore[reportArgumentType]
    service.checks["kafka"] = (False, "away")
    transport = httpx.ASGITransport(build_app(service), client=(address, 4711))  # pyright: ignore[reportArgumentType]
    async with httpx.AsyncClient(transport=transport, base_url="http://demo", headers=headers) as client:
        metrics, readiness = await client.get("/metrics"), await client.get("/readyz")
    assert metrics.status_code == (200 if theirs else 403)
    assert ("openbell_" in metrics.text) is theirs
    assert readiness.status_code == 503
    assert readiness.json()["status"] == "not ready"
    assert ("checks" in readiness.json()) is theirs
    assert ("away" in readiness.text) is theirs


async def test_probes_that_meet_share_one_look(service: FakeService):
    looks = 0
    looking, seen = asyncio.Event(), asyncio.Event()

    async def readiness() -> Mapping[str, tuple[bool, str]]:
        nonlocal looks
        looks += 1
        looking.set()
        await seen.wait()
        return service.checks

    service.readiness = readiness
    transport = httpx.ASGITransport(build_app(service))  # pyright: ignore[reportArgumentType]
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        first, impatient, last = [asyncio.create_task(client.get("/readyz")) for _ in range(3)]
        await looking.wait()
        impatient.cancel()
        await asyncio.wait((impatient,))
        seen.set()
        assert [(await one).status_code for one in (first, last)] == [200, 200]
        assert looks == 1
        await client.get("/readyz")
    assert looks == 2


async def test_requests_are_counted_by_route_and_never_by_address(client: httpx.AsyncClient):
    def count(route: str, status: str, method: str = "GET") -> float:
        labels = {"service": "demo", "method": method, "route": route, "status": status}
        return REGISTRY.get_sample_value("openbell_http_requests_total", labels) or 0

    before = count("/echo/{text}", "200"), count("unmatched", "404"), count("unmatched", "405", "OTHER")
    await client.get("/echo/one")
    await client.get("/echo/two")
    await client.get("/nowhere/else")
    await client.request("BREW", "/echo/one")
    after = count("/echo/{text}", "200"), count("unmatched", "404"), count("unmatched", "405", "OTHER")
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 1]
    scraped = (await client.get("/metrics")).text
    assert "openbell_http_request_duration_seconds_bucket" in scraped
    assert "/nowhere/else" not in scraped


async def test_a_signing_secret_is_changed_while_both_are_accepted_and_the_first_signs(service: FakeService):
    user, old, new = Identity(new_id(), "user"), "o" * 32, "n" * 32

    def signed(setting: str) -> str:
        return Signer(setting, service.clock).sign(user, audience="demo", request_id="r")

    def accepted(setting: str, token: str) -> bool:
        try:
            return Verifier(setting, "demo", service.clock).verify(token) == user
        except Unauthenticated:
            return False

    steps = [old, f"{old},{new}", f" {new}, {old} ,", new]  # docs/secrets.md
    for before, after in itertools.pairwise(steps):
        assert accepted(after, signed(before))
        assert accepted(before, signed(after))
    assert not accepted(new, signed(old))
    assert not accepted(new, signed(steps[1])), "the first one signs"


@pytest.mark.parametrize("setting", [f"{'n' * 32},short", f"short,{'n' * 32}", " , "])
def test_each_of_several_secrets_has_to_be_safe(setting: str):
    settings = SharedSettings(environment="production", identity_secret=SecretStr(setting))
    with pytest.raises(UnsafeSecret, match="OPENBELL_IDENTITY_SECRET"):
        identity_secret(settings)


async def test_a_service_believes_only_what_the_gateway_signed_for_it(client: httpx.AsyncClient, service: FakeService):
    user = Identity(new_id(), "user")
    signer = Signer(SECRET, service.clock)

    async def status(token: str | None, path: str = f"/mine/{user.user_id}") -> int:
        headers = {"x-openbell-identity": token} if token is not None else {}
        return (await client.get(path, headers=headers)).status_code

    good = signer.sign(user, audience="demo", request_id="r")
    assert await status(good) == 200
    assert await status(good, f"/mine/{new_id()}") == 403
    assert await status(good, "/all") == 403
    admin = signer.sign(Identity(new_id(), "admin"), audience="demo", request_id="r")
    assert await status(admin, "/all") == 200
    assert await status(admin) == 200
    assert await status(None) == 401
    assert await status("") == 401
    assert await status(good + "x") == 401
    assert await status(signer.sign(user, audience="other", request_id="r")) == 401
    assert await status(Signer("x" * 32, service.clock).sign(user, audience="demo", request_id="r")) == 401
    twice = [("x-openbell-identity", good), ("x-openbell-identity", admin)]
    assert (await client.get("/all", headers=twice)).status_code == 401

    now = int(service.now.timestamp())
    claims = {
        "iss": "openbell-gateway",
        "aud": "demo",
        "sub": str(user.user_id),
        "role": "user",
        "iat": now,
        "exp": now + 60,
    }

    def forged(changes: dict[str, Any] | None = None, alg: str = "HS256") -> str:
        key = OctKey.import_key(SECRET)
        return jwt.encode({"alg": alg}, {**claims, **(changes or {})}, key, algorithms=[alg])

    assert await status(forged()) == 200
    for changes in (
        {"role": "root"},
        {"role": None},
        {"exp": now + 61},
        {"exp": now + 3600, "iat": now + 3590},
        {"exp": None},
        {"iss": "me"},
        {"aud": ["demo"]},
        {"sub": "nobody"},
    ):
        assert await status(forged(changes)) == 401, changes
    assert await status(forged(alg="HS512")) == 401

    service.now += timedelta(seconds=66)
    assert await status(good) == 401


def test_a_route_without_its_kind_of_caller_stops_the_start():
    @get("/open")
    async def forgotten() -> None: ...

    with pytest.raises(UndeclaredRoute, match="GET /open"):
        build_app(FakeService(forgotten))


def test_every_route_of_every_service_states_its_kind_of_caller(service: FakeService):
    found = {(method, path): handler.opt["caller"] for method, path, handler in routes(build_app(service))}
    assert all(isinstance(caller, Caller) for caller in found.values())
    assert found["POST", "/ops/failed-jobs/{job_id}/discard"] is Caller.ADMIN
    assert found["GET", "/healthz"] is Caller.PUBLIC


@pytest.mark.parametrize("secret", [SECRET, "short", ""])
def test_production_does_not_start_with_a_secret_that_anybody_knows(secret: str):
    settings = SharedSettings(environment="production", identity_secret=secret)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsafeSecret, match="OPENBELL_IDENTITY_SECRET"):
        build_app(FakeService(settings=settings))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "openbell.example", ""])  # noqa: S104 - refused
def test_who_listens_beyond_loopback_does_not_start_with_a_development_secret(host: str):
    with pytest.raises(UnsafeSecret, match=r"^set OPENBELL_IDENTITY_SECRET .* OPENBELL_HTTP_HOST"):
        build_app(FakeService(settings=SharedSettings(http_host=host)))
    secret = "a-secret-of-our-own-00000000000000"
    build_app(FakeService(settings=SharedSettings(http_host=host, identity_secret=secret)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_a_development_secret_will_do(host: str):
    build_app(FakeService(settings=SharedSettings(http_host=host)))


def test_own_is_the_callers_own_or_an_admins():
    user, admin = Identity(new_id(), "user"), Identity(new_id(), "admin")
    own(user, user.user_id)
    own(admin, user.user_id)
    with pytest.raises(Forbidden):
        own(user, admin.user_id)


async def test_the_document_says_who_may_call_and_how_errors_look(client: httpx.AsyncClient):
    document = (await client.get("/ops/schema/openapi.json")).json()
    assert document["paths"]["/all"]["get"]["x-caller"] == "admin"
    assert document["paths"]["/all"]["get"]["security"] == [{"bearer": []}, {"key": []}]
    assert document["paths"]["/items"]["post"]["security"] == []
    assert document["paths"]["/items"]["post"]["responses"]["default"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Error"
    }
