"""Webhooks come in: who signed them, what is kept, what is told. The service as main builds it, without Kafka."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, cast

import httpx
import pytest
import stripe
from pydantic import SecretStr
from sqlalchemy import text

from services.payment.adapters.stripe_api import StripeWebhooks, UnsafeKey, check_key
from services.payment.main import build
from shared import months
from shared.contracts.payment import WebhookReceived
from shared.messaging.record import unpack_headers
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import ManualClock, recorded

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
OLD, NEW = "whsec_the_old_one", "whsec_the_new_one"


class Door:
    """The webhook route, and what lies behind it."""

    def __init__(self, service: Service, http: httpx.AsyncClient, clock: ManualClock) -> None:
        self.service, self._http, self.clock = service, http, clock

    async def post(self, body: bytes, *, header: str | None = "", secret: str = NEW, at: float = 0) -> httpx.Response:
        """Post a body, signed `at` seconds from now; a header of one's own, or None for none."""
        if header == "":
            header = signature(body, secret, self.clock().timestamp() + at)
        headers = {"content-type": "application/json"} | ({} if header is None else {"stripe-signature": header})
        return await self._http.post("/pay/webhooks/stripe", content=body, headers=headers)

    async def stream(self, signed: bytes, chunks: Sequence[bytes], *, leaves: bool = False) -> int:
        """Send chunks as a server hands them on, with a body's signature; `leaves` before the end is said."""
        header = signature(signed, NEW, self.clock().timestamp()).encode()
        came = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        if leaves:
            came.append({"type": "http.disconnect"})
        else:
            came[-1]["more_body"] = False
        came.reverse()
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return came.pop()

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        path = "/pay/webhooks/stripe"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [(b"stripe-signature", header)], "client": ("127.0.0.1", 1), "http_version": "1.1"}
        await cast("Any", self.service.app)(scope, receive, send)
        (status,) = statuses
        return status

    async def kept(self) -> list[Any]:
        async with self.service.db.read() as tx:
            return await tx.fetch(text("select * from webhooks order by event_id"))

    async def told(self) -> list[WebhookReceived]:
        async with self.service.db.read() as tx:
            rows = await tx.fetch(text("select * from outbox order by id"))
        told: list[WebhookReceived] = []
        for row in rows:
            headers = {name: value or b"" for name, value in unpack_headers(row["headers"])}
            about = {"id": headers[b"ce_id"].decode(), "time": headers[b"ce_time"].decode()}
            told.append(WebhookReceived.model_validate(json.loads(row["value"]) | about))
        return told


def signature(body: bytes, secret: str, at: float) -> str:
    return stripe.WebhookSignature.generate_signature_header(body.decode(), secret, int(at))


def event(event_id: str = "evt_1", *, about: dict[str, Any] | None = None, **more: Any) -> bytes:
    thing = about or {"object": "subscription", "id": "sub_1", "customer": "cus_1"}
    whole = {"id": event_id, "object": "event", "type": "customer.subscription.updated", "livemode": False}
    return json.dumps(whole | {"created": int(NOW.timestamp()) - 5, "data": {"object": thing}} | more).encode()


@pytest.fixture
async def door(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setenv("OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS", f"{OLD}, {NEW}")
    clock = ManualClock(NOW)
    service = build(Environment(SharedSettings(database_url=database_url), clock))
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:
        yield Door(service, http, clock)
    await service.db.close()


async def test_a_webhook_is_kept_as_it_came_and_told_in_one_go(door: Door):
    body = event().replace(b", ", b",  ")
    answer = await door.post(body)
    assert (answer.status_code, answer.json()) == (200, {"new": True})
    (row,), (told,) = await door.kept(), await door.told()
    assert (row["body"], row["type"], row["swept"]) == (body, "customer.subscription.updated", False)
    assert (told.event_id, told.object_kind, told.object_id, told.customer) == (
        "evt_1",
        "subscription",
        "sub_1",
        "cus_1",
    )
    assert (told.key, told.created) == ("cus_1", NOW - timedelta(seconds=5))


async def test_a_known_event_is_answered_200_and_changes_nothing(door: Door):
    await door.post(event())
    door.clock.advance(3 * 86_400)
    again = await door.post(event())
    assert (again.status_code, again.json()) == (200, {"new": False})
    assert len(await door.kept()) == len(await door.told()) == 1


async def test_doubles_that_come_at_the_same_time_are_kept_once(door: Door):
    answers = await asyncio.gather(*(door.post(event(f"evt_{n % 7}")) for n in range(70)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(answer.json()["new"] for answer in answers) == 7
    assert len(await door.kept()) == len({one.id for one in await door.told()}) == 7


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("no header", "BAD_SIGNATURE"),
        ("nonsense", "BAD_SIGNATURE"),
        ("no time", "BAD_SIGNATURE"),
        ("wrong secret", "BAD_SIGNATURE"),
        ("forged", "BAD_SIGNATURE"),
        ("truncated", "BAD_SIGNATURE"),
        ("not UTF-8", "BAD_SIGNATURE"),
        ("another scheme", "BAD_SIGNATURE"),
        ("newer time written over", "BAD_SIGNATURE"),
        ("expired", "SIGNATURE_EXPIRED"),
        ("replayed", "SIGNATURE_EXPIRED"),
        ("future", "SIGNATURE_EXPIRED"),
    ],
)
async def test_what_stripe_did_not_sign_just_now_is_refused_and_leaves_nothing(door: Door, how: str, code: str):
    body = event()
    good = signature(body, NEW, NOW.timestamp())
    sent: dict[str, tuple[bytes, str | None]] = {
        "no header": (body, None),
        "nonsense": (body, "nonsense"),
        "no time": (body, good.partition(",")[2]),
        "wrong secret": (body, signature(body, "whsec_of_somebody", NOW.timestamp())),
        "forged": (body.replace(b"sub_1", b"sub_2"), good),
        "truncated": (body[:-1], good),
        "not UTF-8": (body + b"\xff", good),
        "another scheme": (body, good.replace("v1=", "v0=")),
        "newer time written over": (body, f"t={int(NOW.timestamp()) + 1},{good.partition(',')[2]}"),
        "expired": (body, signature(body, NEW, NOW.timestamp() - 301)),
        "replayed": (body, signature(body, NEW, NOW.timestamp() - 86_400)),
        "future": (body, signature(body, NEW, NOW.timestamp() + 301)),
    }
    answer = await door.post(sent[how][0], header=sent[how][1])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert await door.kept() == await door.told() == []


async def test_a_webhook_that_was_taken_cannot_be_replayed_when_its_time_is_over(door: Door):
    body = event()
    header = signature(body, NEW, NOW.timestamp())
    assert (await door.post(body, header=header)).status_code == 200
    door.clock.advance(301)
    assert (await door.post(body, header=header)).json()["error"]["code"] == "SIGNATURE_EXPIRED"


@pytest.mark.parametrize("off_s", [-300, 300])
async def test_five_minutes_off_is_still_good_in_both_directions(door: Door, off_s: int):
    assert (await door.post(event(), at=off_s)).status_code == 200


@pytest.mark.parametrize("secret", [OLD, NEW])
async def test_while_a_secret_is_changed_both_count(door: Door, secret: str):
    assert (await door.post(event(), secret=secret)).status_code == 200


async def test_one_of_several_signatures_is_enough(door: Door):
    """So Stripe signs while a secret is rolled on its side."""
    body, now = event(), NOW.timestamp()
    both = f"{signature(body, 'whsec_of_somebody', now)},{signature(body, NEW, now).partition(',')[2]}"
    assert (await door.post(body, header=both)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b"{}",
        b'{"object":"event"}',
        event(created="today"),
        event(created=True),
        event(created=10**18),
        event(event_id=""),
        event(event_id="evt_\x00"),
        event(event_id="evt_" + "x" * 252),
        event(type="x" * 256),
        event(object="charge"),
        b'{"id":"evt_1","object":"v2.core.event","type":"v1.customer.created","created":"2026-11-22"}',
        b'{"id":"evt_1","object":"v2.core.event","type":"v1.customer.created"}',
    ],
)
async def test_what_is_signed_and_no_event_is_refused_with_a_code(door: Door, body: bytes):
    answer = await door.post(body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BAD_WEBHOOK")
    assert await door.kept() == []


async def test_a_webhook_has_at_most_a_million_bytes(door: Door):
    largest = event(padding="").replace(
        b'"padding": ""', b'"padding": "%s"' % (b"x" * (1_000_000 - len(event(padding=""))))
    )
    assert len(largest) == 1_000_000
    assert (await door.post(largest)).status_code == 200
    answer = await door.post(largest + b" ")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "TOO_LARGE")
    assert [len(row["body"]) for row in await door.kept()] == [1_000_000]


async def test_a_body_that_comes_in_pieces_is_taken_and_counted_as_a_whole(door: Door):
    body = event(padding="x" * 600_000)
    assert await door.stream(body, [body[:7], b"", body[7:]]) == 200
    assert [row["body"] for row in await door.kept()] == [body]
    assert await door.stream(body, [body, body]) == 413
    assert len(await door.kept()) == 1


async def test_a_body_whose_sender_leaves_before_its_end_is_not_kept(door: Door):
    body = event()
    assert await door.stream(body, [body], leaves=True) == 422
    assert await door.kept() == []


async def test_a_thin_event_names_its_object(door: Door):
    thin = {
        "id": "evt_thin",
        "object": "v2.core.event",
        "type": "v1.customer.subscription.updated",
        "created": "2026-11-22T07:59:00.000Z",
        "livemode": False,
        "context": None,
        "reason": None,
        "related_object": {"id": "sub_9", "type": "subscription", "url": "/v1/subscriptions/sub_9"},
    }
    assert (await door.post(json.dumps(thin).encode())).status_code == 200
    (told,) = await door.told()
    assert (told.object_kind, told.object_id, told.customer) == ("subscription", "sub_9", None)
    assert told.created == NOW - timedelta(minutes=1)


async def test_a_webhook_that_names_what_no_index_can_hold_keeps_no_other_out(door: Door):
    """Those that meet share a transaction."""
    endless = "".join(Random(1).choices("0123456789abcdef", k=9_000))
    bodies = [event("evt_1"), event(f"evt_{endless}"), event("evt_2", about={"object": "charge", "id": endless})]
    answers = await asyncio.gather(*(door.post(body) for body in (*bodies, event("evt_3"))))
    assert [answer.status_code for answer in answers] == [200, 400, 200, 200]
    assert [row["event_id"] for row in await door.kept()] == ["evt_1", "evt_2", "evt_3"]
    assert [one.object_id for one in await door.told()].count(None) == 1


async def test_what_a_person_typed_into_stripe_is_kept_even_with_a_nul(door: Door):
    assert (await door.post(event(about={"object": "customer", "id": "cus_1", "name": "a\x00b"}))).status_code == 200
    assert len(await door.kept()) == 1


async def test_an_unknown_type_that_names_nothing_is_kept(door: Door):
    odd = {"object": "balance", "available": []}
    assert (await door.post(event(about=odd, type="balance.available"))).status_code == 200
    (told,) = await door.told()
    assert (told.object_kind, told.object_id, told.key) == ("balance", None, "evt_1")


async def test_every_recorded_envelope_is_taken(door: Door):
    files = [*recorded("data", "stripe", "recorded-2020").glob("*.json")]
    files += recorded("data", "stripe", "current", "events").glob("*.json")
    answers = await asyncio.gather(*(door.post(file.read_bytes()) for file in files))
    assert {answer.status_code for answer in answers} == {200}
    assert len(files) > 80


async def test_without_secrets_webhooks_are_not_taken(database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS", raising=False)
    service = build(Environment(SharedSettings(database_url=database_url), ManualClock(NOW)))
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:
        answer = await http.post("/pay/webhooks/stripe", content=event())
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "PAYMENT_WAY_NOT_CONFIGURED")
    await service.db.close()


async def test_when_the_database_is_away_stripe_is_told_to_come_again(door: Door):
    await door.service.db.close()
    answer = await door.post(event())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_an_event_of_any_month_finds_its_place_and_months_past_their_time_go(door: Door):
    for months_ago in (0, 1, 2, 5, 40):
        created = int((NOW - timedelta(days=30 * months_ago)).timestamp())
        assert (await door.post(event(f"evt_{months_ago:02}", created=created))).status_code == 200
    for _ in range(2):
        async with door.service.db.transaction() as tx:
            await months.roll(tx, "webhooks", "created", NOW.date(), 3)
        await months.forget(door.service.db.transaction, "webhooks", "created", NOW.date(), 3)
        assert [row["event_id"] for row in await door.kept()] == ["evt_00", "evt_01", "evt_02"]


def test_a_live_key_is_for_production_only():
    for key in ("sk_live_1", "rk_live_1"):
        with pytest.raises(UnsafeKey):
            check_key(key, "development")
        check_key(key, "production")
    check_key("sk_test_1", "development")


def test_a_test_key_is_refused_in_production():
    for key in ("sk_test_1", "rk_test_1"):
        with pytest.raises(UnsafeKey, match="test key, and this is production"):
            check_key(key, "production")


def test_a_test_key_in_production_stops_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBELL_PAYMENT_STRIPE_KEY", "sk_test_secret")
    settings = SharedSettings(environment="production", identity_secret=SecretStr("s" * 40))
    with pytest.raises(UnsafeKey) as refused:
        build(Environment(settings))
    assert "sk_test_secret" not in str(refused.value)


def test_a_live_key_in_development_stops_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBELL_PAYMENT_STRIPE_KEY", "sk_live_secret")
    with pytest.raises(UnsafeKey) as refused:
        build(Environment())
    assert "sk_live_secret" not in str(refused.value)


def test_without_a_secret_nobody_is_stripe():
    body = event()
    with pytest.raises(Exception, match="signature is missing"):
        StripeWebhooks([]).read(body, signature(body, NEW, NOW.timestamp()), NOW)
