"""Web Push and FCM: what only they have."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.adapters import fcm, webpush
from services.alerts.adapters.fcm import Fcm, ServiceAccount
from services.alerts.adapters.webpush import PAYLOAD_MAX, Vapid, WebPush
from services.alerts.ports import ChannelGone
from shared.clock import utc_now
from shared.errors import OpenbellError, Permanent, Transient
from shared.work import Busy, OutcomeUnknown
from tests.alerts.venues import VAPID, FcmVenue, WebPushVenue, account_of, message
from tests.conftest import ManualClock
from tests.fakes.fcm import FakeFcm, problem
from tests.fakes.posts import Answer
from tests.fakes.webpush import FakePushService

short = st.text(max_size=100)
texts = short | st.tuples(short, st.sampled_from(["🚀", '"', "x"]), st.integers(1, 9_000)).map(
    lambda made: made[0] + made[1] * made[2]
)


@given(texts, st.lists(texts, max_size=20))
def test_whatever_is_pushed_fits_and_is_json_with_its_id(title: str, lines: list[str]) -> None:
    told = message("t", title=title, lines=tuple(lines))
    made = webpush.payload(told)
    assert len(made) <= PAYLOAD_MAX
    assert json.loads(made)["tag"] == str(told.delivery_id)
    sent = fcm.payload(told)
    size = sum(len(json.dumps(sent[part], ensure_ascii=False).encode("utf-8", "replace")) for part in ("data",))
    assert size + sum(len(text.encode()) for text in sent["notification"].values()) <= fcm.PAYLOAD_MAX


def test_a_push_that_is_too_long_keeps_its_title_and_its_first_lines() -> None:
    told = message("t", title="AAPL", lines=tuple(f"line {n} " + "x" * 100 for n in range(100)))
    body = json.loads(webpush.payload(told))
    assert body["title"] == "AAPL"
    assert body["body"].startswith("line 0 ")
    assert body["body"].endswith("…")
    assert len(webpush.payload(told)) > PAYLOAD_MAX - 300


async def test_the_longest_payload_is_taken_by_the_push_service() -> None:
    with FakePushService() as server:
        venue = WebPushVenue(server)
        await venue.sender.send(message(venue.target, lines=("x" * 100,) * 100))
        assert len(venue.browser.shown) == 1
        assert len(server.requests[0].body) > 3_900
        await venue.sender.close()


async def test_a_repeat_after_an_unknown_outcome_takes_the_place_of_the_first() -> None:
    with FakePushService() as push, FakeFcm() as google:
        delivery_id = uuid4()
        for venue in (WebPushVenue(push), FcmVenue(google)):
            await venue.sender.send(message(venue.target, delivery_id=delivery_id))
            venue.fall_silent()
            with pytest.raises(OutcomeUnknown):
                await venue.sender.send(message(venue.target, delivery_id=delivery_id))
            await venue.sender.send(message(venue.target, delivery_id=delivery_id))
            assert len(venue.received()) == 1
            await venue.sender.close()


async def test_each_push_service_gets_a_token_for_its_own_origin() -> None:
    with FakePushService() as one, FakePushService() as other:
        for server in (one, other, one):
            venue = WebPushVenue(server)
            await venue.sender.send(message(venue.target))
            assert len(venue.received()) == 1
            await venue.sender.close()


async def test_a_subscription_of_another_key_is_refused_but_not_given_up() -> None:
    with FakePushService() as server:
        venue = WebPushVenue(server)
        stranger = WebPush(Vapid("A" * 42 + "E", "mailto:x@example.org"), venue.outward)
        with pytest.raises(Permanent) as caught:
            await stranger.send(message(venue.target))
        assert not isinstance(caught.value, ChannelGone)
        await venue.sender.close()


async def test_a_subscription_whose_end_has_come_is_gone_without_being_called() -> None:
    with FakePushService() as server:
        venue = WebPushVenue(server)
        ended = json.loads(venue.target) | {"expirationTime": (utc_now() - timedelta(seconds=1)).timestamp() * 1000}
        with pytest.raises(ChannelGone):
            await venue.sender.send(message(json.dumps(ended)))
        assert server.requests == []
        await venue.sender.close()


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, Permanent), (403, Permanent), (404, ChannelGone), (410, ChannelGone), (413, Permanent), (500, Transient)],
)
async def test_a_push_service_is_judged_by_its_status(status: int, error: type[OpenbellError]) -> None:
    with FakePushService() as server:
        venue = WebPushVenue(server)
        server.answer(venue.path, Answer(status))
        with pytest.raises(error) as caught:
            await venue.sender.send(message(venue.target))
        assert type(caught.value) is error
        await venue.sender.close()


@pytest.mark.parametrize("key", ["", "short", "!" * 43, "A" * 43])
def test_what_is_no_vapid_key_stops_the_start(key: str) -> None:
    with pytest.raises(ValueError, match="VAPID"):
        Vapid(key, "mailto:x@example.org")


async def test_many_messages_at_once_ask_for_one_access_token() -> None:
    with FakeFcm() as server:
        venue = FcmVenue(server)
        await asyncio.gather(*(venue.sender.send(message(venue.target)) for _ in range(8)))
        assert (server.granted, len(venue.received())) == (1, 8)
        await venue.sender.close()


async def test_an_access_token_is_asked_for_again_before_it_ends_and_when_it_is_refused() -> None:
    with FakeFcm() as server:
        venue = FcmVenue(server)
        clock = ManualClock(utc_now() - timedelta(seconds=3_475))
        sender = Fcm(account_of(server), base=server.base, clock=clock)
        await sender.send(message(venue.target))
        clock.advance(3_470)
        await sender.send(message(venue.target))
        assert server.granted == 1
        clock.advance(10)  # less than two minutes before its end
        await sender.send(message(venue.target))
        assert server.granted == 2
        server.revoke()
        with pytest.raises(Transient):
            await sender.send(message(venue.target))
        await sender.send(message(venue.target))
        assert server.granted == 3
        await sender.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(404, "NOT_FOUND", "UNREGISTERED"), ChannelGone),
        (problem(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), ChannelGone),
        (problem(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.token"), ChannelGone),
        (problem(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.data"), Permanent),
        (problem(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"), Permanent),
        (problem(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), Permanent),
        (problem(403, "PERMISSION_DENIED"), Transient),
        (problem(404, "NOT_FOUND"), Permanent),
        (problem(500, "INTERNAL", "INTERNAL"), Transient),
        (problem(503, "UNAVAILABLE", "UNAVAILABLE"), Transient),
        (Answer(502, "<html>"), Transient),
        (problem(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), Busy),
    ],
)
async def test_fcm_is_judged_by_its_codes(answer: Answer, error: type[OpenbellError]) -> None:
    with FakeFcm() as server:
        venue = FcmVenue(server)
        server.answer(server.send_path, replace(answer, headers={"retry-after": "7"}))
        with pytest.raises(error) as caught:
            await venue.sender.send(message(venue.target))
        assert type(caught.value) is error
        if isinstance(caught.value, Transient):
            assert caught.value.retry_after_s == 7
        await venue.sender.close()


async def test_a_token_endpoint_that_refuses_or_fails_is_tried_again_and_nothing_was_sent() -> None:
    with FakeFcm() as server:
        venue = FcmVenue(server)
        for answer in (Answer(400, {"error": "invalid_grant"}), Answer(503), Answer(200, "?"), Answer(hang=True)):
            server.answer("/token", answer)
            with pytest.raises(Transient) as caught:
                await venue.sender.send(message(venue.target))
            assert not isinstance(caught.value, OutcomeUnknown)
        await venue.sender.send(message(venue.target))
        assert len(venue.received()) == 1
        await venue.sender.close()


def test_a_key_file_is_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    path.write_text(FakeFcm().account_file())
    account = ServiceAccount.read(path)
    assert account.project_id == "project-1"
    assert "PRIVATE" not in repr(account)
    for text in ("{}", "[]", "?"):
        path.write_text(text)
        with pytest.raises(ValueError, match="service account"):
            ServiceAccount.read(path)


def test_the_public_key_is_the_point_that_browsers_take() -> None:
    assert len(VAPID.public_key) == 87
    assert VAPID.public_key.startswith("B")


def test_a_push_leads_to_the_page_about_it() -> None:
    linked, bare = message("token", link="https://openbell.example/links/click?token=x"), message("token", link=None)
    assert json.loads(webpush.payload(linked))["url"] == linked.link
    told = fcm.payload(linked)
    assert (told["data"]["url"], told["webpush"]["fcm_options"]) == (linked.link, {"link": linked.link})
    assert "url" not in json.loads(webpush.payload(bare)) | fcm.payload(bare)["data"]
    plain = fcm.payload(replace(linked, link="http://127.0.0.1/links/click?token=x"))
    assert "fcm_options" not in plain["webpush"]  # FCM takes https alone
