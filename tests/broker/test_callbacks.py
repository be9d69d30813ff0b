"""Callbacks come in: who signed them, what is kept, which order is looked up."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from services.broker.domain.callbacks import secret_key
from services.broker.routes.callbacks import MAX_BYTES, handlers
from services.broker.service.callbacks import Callbacks
from services.broker.store.callbacks import CallbackStore
from shared.db import Tx
from shared.service import Service
from tests.broker.credentials import NOW, Caller, a_service, calling
from tests.conftest import ManualClock

OLD: Final = "the-old-secret"
NEW: Final = "whsec_" + base64.b64encode(b"the new secret").decode()
ORDER: Final = UUID("01980000-0000-7000-8000-000000000001")
OTHER: Final = UUID("01980000-0000-7000-8000-000000000002")


def signed(
    body: bytes, secret: str, at: float, event_id: str | None = "evt_1", **changed: str | None
) -> dict[str, str]:
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    about = str(int(at)) if event_id is None else f"{event_id}.{int(at)}"
    mac = base64.b64encode(hmac.new(key, about.encode() + b"." + body, hashlib.sha256).digest()).decode()
    headers = {"webhook-id": event_id, "webhook-timestamp": str(int(at)), "webhook-signature": f"v1,{mac}"}
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    return {name: value for name, value in headers.items() if value is not None}


def told(order_id: object = str(ORDER), **more: Any) -> bytes:
    return json.dumps({"event": "fill", "client_order_id": order_id, **more}).encode()


class Venue:
    """The callback route, and what lies behind it."""

    def __init__(self, service: Service, clock: ManualClock) -> None:
        self.service, self.clock = service, clock
        self.wanted: list[tuple[str, UUID | None, str | None]] = []
        self.known: set[object] = {ORDER, "v-1"}
        self.breaks = False
        self.callbacks = Callbacks(
            {"alpaca": (NEW, OLD), "tastytrade": ("another-secret",), "ccxt": ()},
            CallbackStore(),
            self.want_look_up,
            service.door,
            clock,
        )
        self.caller: Caller

    async def want_look_up(self, tx: Tx, venue: str, order_id: UUID | None, venue_order_id: str | None) -> bool:
        if self.breaks:
            raise LookupError
        self.wanted.append((venue, order_id, venue_order_id))
        return bool({order_id, venue_order_id} & self.known)

    async def post(
        self, body: bytes, headers: dict[str, str] | None = None, venue: str = "alpaca", **how: Any
    ) -> httpx.Response:
        if headers is None:
            headers = signed(body, how.pop("secret", NEW), self.clock().timestamp() + how.pop("at", 0), **how)
        return await self.caller.ask("POST", f"/broker/callbacks/{venue}", content=body, headers=headers)

    async def kept(self) -> list[Any]:
        async with self.service.db.read() as tx:
            return await tx.fetch(text("select * from callbacks order by received_at, event_id"))


@pytest.fixture
async def venue(database_url: str) -> AsyncIterator[Venue]:
    clock = ManualClock(NOW)
    service = a_service(database_url, clock)
    venue = Venue(service, clock)
    service.serve([*handlers(venue.callbacks)])
    async with calling(service, clock) as venue.caller:
        yield venue


async def test_a_callback_is_kept_as_it_came_and_its_order_looked_up(venue: Venue):
    body = told().replace(b", ", b",  ")
    answer = await venue.post(body)
    assert (answer.status_code, answer.json()) == (200, {"new": True})
    (row,) = await venue.kept()
    assert (row["body"], row["venue"], row["event_id"], row["order_id"]) == (body, "alpaca", "evt_1", ORDER)
    assert (row["signed_at"], row["open"]) == (NOW, False)
    assert venue.wanted == [("alpaca", ORDER, None)]


async def test_a_known_event_is_answered_200_and_asks_nothing(venue: Venue):
    await venue.post(told())
    again = await venue.post(told(), at=1)
    assert (again.status_code, again.json()) == (200, {"new": False})
    assert len(await venue.kept()) == len(venue.wanted) == 1


async def test_doubles_that_come_at_the_same_time_are_kept_once(venue: Venue):
    answers = await asyncio.gather(*(venue.post(told(), event_id=f"evt_{n % 4}") for n in range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(answer.json()["new"] for answer in answers) == 4
    assert len(await venue.kept()) == len(venue.wanted) == 4


async def test_events_of_one_name_at_two_venues_are_two(venue: Venue):
    await venue.post(told())
    assert (await venue.post(told(), venue="tastytrade", secret="another-secret")).json() == {"new": True}
    assert {row["venue"] for row in await venue.kept()} == {"alpaca", "tastytrade"}


async def test_without_an_id_a_callback_is_known_by_what_was_signed(venue: Venue):
    first = await venue.post(told(), event_id=None)
    again = await venue.post(told(), event_id=None)
    later = await venue.post(told(), event_id=None, at=1)
    assert [one.json()["new"] for one in (first, again, later)] == [True, False, True]


GOOD = signed(told(), NEW, NOW.timestamp())


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (told(), {}, "BAD_SIGNATURE"),
        (told(), signed(told(), NEW, NOW.timestamp(), webhook_signature=None), "BAD_SIGNATURE"),
        (told(), signed(told(), NEW, NOW.timestamp(), webhook_timestamp=None), "BAD_SIGNATURE"),
        (told(), signed(told(), NEW, NOW.timestamp(), webhook_timestamp="now"), "BAD_SIGNATURE"),
        (told(), signed(told(), NEW, NOW.timestamp(), webhook_timestamp="9" * 5000), "BAD_SIGNATURE"),
        (told(), signed(told(), "whsec_" + base64.b64encode(b"x").decode(), NOW.timestamp()), "BAD_SIGNATURE"),
        (told(), signed(told(), "another-secret", NOW.timestamp()), "BAD_SIGNATURE"),
        (told(), signed(told(), "", NOW.timestamp()), "BAD_SIGNATURE"),
        (told(str(OTHER)), GOOD, "BAD_SIGNATURE"),
        (told()[:-1], GOOD, "BAD_SIGNATURE"),
        (told(), GOOD | {"webhook-id": "evt_2"}, "BAD_SIGNATURE"),
        (told(), {name: value for name, value in GOOD.items() if name != "webhook-id"}, "BAD_SIGNATURE"),
        (told(), GOOD | {"webhook-timestamp": str(int(NOW.timestamp()) + 1)}, "BAD_SIGNATURE"),
        (told(), GOOD | {"webhook-signature": GOOD["webhook-signature"].replace("v1,", "v2,")}, "BAD_SIGNATURE"),
        (told(), GOOD | {"webhook-signature": "v1,"}, "BAD_SIGNATURE"),
        (told(), signed(told(), NEW, NOW.timestamp() - 301), "SIGNATURE_EXPIRED"),
        (told(), signed(told(), NEW, NOW.timestamp() + 301), "SIGNATURE_EXPIRED"),
    ],
)
async def test_what_the_venue_did_not_sign_just_now_is_refused_and_leaves_nothing(
    venue: Venue, body: bytes, headers: dict[str, str], code: str
):
    answer = await venue.post(body, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
    assert await venue.kept() == []
    assert venue.wanted == []


@pytest.mark.parametrize("off_s", [-300, 300])
async def test_five_minutes_off_is_still_good_in_both_directions(venue: Venue, off_s: int):
    assert (await venue.post(told(), at=off_s)).status_code == 200


@pytest.mark.parametrize("secret", [OLD, NEW])
async def test_while_a_secret_is_changed_both_count(venue: Venue, secret: str):
    assert (await venue.post(told(), secret=secret)).status_code == 200


async def test_one_of_several_signatures_is_enough(venue: Venue):
    other = signed(told(), "somebody", NOW.timestamp())["webhook-signature"]
    headers = GOOD | {"webhook-signature": f"v1a,xyz {other} {GOOD['webhook-signature']}"}
    assert (await venue.post(told(), headers)).status_code == 200


@pytest.mark.parametrize("name", ["nobody", "ccxt"])
async def test_a_venue_without_secrets_is_unknown(venue: Venue, name: str):
    answer = await venue.post(told(), venue=name, secret="")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UNKNOWN_VENUE")


async def test_a_callback_that_is_too_large_is_refused(venue: Venue):
    largest = told().ljust(MAX_BYTES)
    assert (await venue.post(largest)).status_code == 200
    answer = await venue.post(largest + b" ", event_id="evt_2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "TOO_LARGE")
    assert len(await venue.kept()) == 1


@pytest.mark.parametrize(
    ("body", "order"),
    [
        (told(), (ORDER, None)),
        (b'{"order_id": "v-1"}', (None, "v-1")),
        (b'{"order": {"id": "v-1", "client_order_id": "%s"}}' % str(ORDER).encode(), (ORDER, "v-1")),
        (b'{"data": {"event": "fill", "order": {"id": "v-1"}}}', (None, "v-1")),
        (b'{"data": {"external-identifier": "%s", "id": 5}}' % str(ORDER).encode(), (ORDER, None)),
        (b'{"data": {"order_id": 17}}', (None, "17")),
    ],
)
async def test_an_order_is_named_by_our_id_or_the_venues(venue: Venue, body: bytes, order: tuple[Any, Any]):
    await venue.post(body)
    assert venue.wanted == [("alpaca", *order)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"\xff\x00",
        b"[]",
        b"null",
        b"{}",
        b"[" * 50_000,
        told("not a uuid"),
        told(None),
        told(order_id=True),
        b'{"client_order_id": 5, "order_id": ""}',
        b'{"order_id": "a\\u0000b"}',
        b'{"order_id": "%s"}' % (b"x" * 300),
        b'{"data": []}',
    ],
)
async def test_what_names_no_order_is_kept_and_asks_nothing(venue: Venue, body: bytes):
    assert (await venue.post(body)).status_code == 200
    assert [row["body"] for row in await venue.kept()] == [body]
    assert venue.wanted == []


async def test_nothing_is_answered_200_that_is_not_kept(venue: Venue):
    venue.breaks = True
    assert (await venue.post(told())).status_code == 500
    assert await venue.kept() == []
    venue.breaks = False
    assert (await venue.post(told())).json() == {"new": True}
    assert len(venue.wanted) == 1


async def test_when_the_database_is_away_the_venue_is_told_to_come_again(venue: Venue):
    await venue.service.db.close()
    answer = await venue.post(told())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_callback_before_its_order_is_tried_again_until_the_order_is_known(venue: Venue):
    await venue.post(b'{"order_id": "v-2"}')
    await venue.callbacks.again(NOW + timedelta(minutes=1))
    assert [row["open"] for row in await venue.kept()] == [True]
    venue.known.add("v-2")
    await venue.callbacks.again(NOW + timedelta(minutes=2))
    assert [row["open"] for row in await venue.kept()] == [False]
    await venue.callbacks.again(NOW + timedelta(minutes=3))
    assert venue.wanted == [("alpaca", None, "v-2")] * 3


async def test_an_order_that_never_comes_is_given_up_after_an_hour(venue: Venue):
    await venue.post(b'{"order_id": "v-2"}')
    await venue.callbacks.again(NOW + timedelta(hours=1))
    assert len(venue.wanted) == 1


async def test_old_callbacks_are_forgotten(venue: Venue):
    await venue.post(told())
    venue.clock.advance(86_400)
    await venue.post(told(), event_id="evt_2")
    await venue.callbacks.forget(NOW + timedelta(days=90, hours=1))
    assert [row["event_id"] for row in await venue.kept()] == ["evt_2"]


def test_a_secret_of_the_wrong_form_is_refused_without_being_shown():
    with pytest.raises(ValueError) as refused:
        secret_key("whsec_not base64!")
    assert "not base64!" not in str(refused.value)
    for empty in ("", "whsec_"):
        with pytest.raises(ValueError, match="empty"):
            secret_key(empty)
