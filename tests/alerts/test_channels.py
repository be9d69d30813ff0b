"""Channels with several targets, and what is kept of each."""

import base64
import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.alerts.domain.channels import checked_target, lane_of, masked, target_id
from services.alerts.domain.targets import webhook_of
from services.alerts.ports import ChannelGone
from services.alerts.service import Options
from shared.errors import Conflict, Invalid, NotFound
from tests.alerts.conftest import ACTOR, NOW, Bench, activity

URL = "https://hooks.example.com/s3cret?key=s3cret"


def packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def subscription(**changed: Any) -> str:
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys = {
        "p256dh": packed(point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)),
        "auth": packed(b"s" * 16),
        **changed.pop("keys", {}),
    }
    endpoint = "https://updates.push.services.mozilla.com/wpush/v2/s3cret"
    return json.dumps({"endpoint": endpoint, "expirationTime": None, "keys": keys, "more": 1, **changed})


async def test_every_target_of_a_channel_gets_its_own_delivery(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    for n in range(3):
        await bench.channel(user_id, "webhook", f"{URL}{n}")
    await bench.tell(activity())
    await bench.deliver()
    assert {webhook_of(one.target).url for one in bench.webhook.sent} == {f"{URL}{n}" for n in range(3)}
    assert len(bench.webhook.sent) == 3
    rows = await bench.rows("deliveries")
    assert {row["status"] for row in rows} == {"done"}
    assert {row["lane"] for row in rows} == {row["lane"] for row in await bench.rows("channels")}


async def test_one_target_too_many_is_refused_and_the_same_one_again_is_not(bench: Bench) -> None:
    user_id = await bench.user()
    for n in range(3):
        await bench.channel(user_id, "webhook", f"{URL}{n}")
    with pytest.raises(Conflict):
        await bench.channel(user_id, "webhook", f"{URL}3")
    await bench.channel(user_id, "webhook", f"{URL}2")
    assert len(await bench.rows("channels")) == 3


async def test_a_channel_of_one_target_moves(bench: Bench) -> None:
    user_id = await bench.user()
    for name in ("one", "two"):
        await bench.channel(user_id, "email", f"{name}@example.org")
        bench.clock.advance(60)
    assert [row["target"] for row in await bench.rows("channels")] == ["two@example.org"]


async def test_a_target_that_is_gone_leaves_the_others_alone(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    for n in range(2):
        await bench.channel(user_id, "webhook", f"{URL}{n}")
    bench.webhook.errors = [ChannelGone("gone")]
    await bench.tell(activity())
    await bench.deliver()
    assert sorted(row["enabled"] for row in await bench.rows("channels")) == [False, True]
    assert sorted(row["status"] for row in await bench.rows("deliveries")) == ["done", "failed"]


async def test_one_target_is_removed_by_its_id_and_the_channel_with_all_of_them(bench: Bench) -> None:
    user_id = await bench.user()
    for n in range(3):
        await bench.channel(user_id, "webhook", f"{URL}{n}")
    first, *_ = await bench.rows("channels")
    await bench.door.run(lambda tx: bench.channels.remove(ACTOR, user_id, "webhook", target_id(first["lane"]), tx))
    assert first["lane"] not in {row["lane"] for row in await bench.rows("channels")}
    assert len(await bench.rows("channels")) == 2
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: bench.channels.remove(ACTOR, user_id, "webhook", target_id(first["lane"]), tx))
    await bench.door.run(lambda tx: bench.channels.remove(ACTOR, user_id, "webhook", None, tx))
    assert await bench.rows("channels") == []


async def test_a_webhooks_secret_is_shown_once_and_the_newest_two_sign(bench: Bench) -> None:
    user_id = await bench.user()
    made = await bench.door.run(lambda tx: bench.channels.set(ACTOR, user_id, "webhook", URL, tx))
    again = await bench.door.run(lambda tx: bench.channels.set(ACTOR, user_id, "webhook", URL, tx))
    assert (made.secret, again.secret) == ("whsec_1", None)
    assert "whsec_1" not in repr(made)
    for n in (2, 3):
        newer = await bench.door.run(
            lambda tx: bench.channels.new_secret(ACTOR, user_id, target_id(made.row["lane"]), tx)
        )
        assert newer.secret == f"whsec_{n}"
    (row,) = await bench.rows("channels")
    assert webhook_of(bench.targets.open(row)).secrets == ("whsec_3", "whsec_2")
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: bench.channels.new_secret(ACTOR, uuid4(), target_id(made.row["lane"]), tx))
    assert all(b"whsec" not in row["value"] and b"s3cret" not in row["value"] for row in await bench.rows("outbox"))


async def test_a_subscription_that_has_expired_is_refused(bench: Bench) -> None:
    bench.offer(Options(offered=("webpush",)))
    user_id = await bench.user()
    ends = int((NOW + timedelta(hours=1)).timestamp() * 1000)
    await bench.channel(user_id, "webpush", subscription(expirationTime=ends))
    bench.clock.advance(3600)
    with pytest.raises(Invalid, match="expired"):
        await bench.channel(user_id, "webpush", subscription(expirationTime=ends))


async def test_a_browser_that_subscribes_anew_at_the_same_endpoint_is_one_target(bench: Bench) -> None:
    bench.offer(Options(offered=("webpush",)))
    user_id = await bench.user()
    await bench.channel(user_id, "webpush", subscription())
    row = await bench.channel(user_id, "webpush", newer := subscription())
    assert [bench.targets.open(one) for one in await bench.rows("channels")] == [bench.targets.open(row)]
    assert json.loads(bench.targets.open(row))["keys"] == json.loads(newer)["keys"]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        json.dumps({"endpoint": "https://e.example/x", "keys": {}}),
        subscription(keys={"auth": "short"}),
        subscription(keys={"auth": "****************"}),
        subscription(keys={"p256dh": packed(b"\4" + b"\0" * 64)}),
        subscription(keys={"p256dh": packed(b"\2" + b"\0" * 32)}),
        subscription(keys={"p256dh": 5}),
        subscription(endpoint="http://updates.push.services.mozilla.com/x"),
        subscription(expirationTime="soon"),
    ],
)
def test_what_is_no_push_subscription_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        checked_target("webpush", text, extra_base=None)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",
        "https://user:s3cret@hooks.example.com/x",
        "https://user@hooks.example.com/x",
        "https:///x",
        "https://hooks.example.com/x#s3cret",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/a\nHost: s3cret",
        "https://hooks.example.com\\@evil.example/s3cret",
        "https://hooks.example.com:0/x",
        "https://hooks.example.com:99999/x",
        "https://[::1/x",
        "https://höoks.example.com/x",
        "file:///etc/passwd",
        "gopher://hooks.example.com/x",
        "https://hooks.example.com/" + "x" * 2000,
        "",
    ],
)
def test_what_may_not_be_a_webhook_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        checked_target("webhook", url, extra_base="http://127.0.0.1:9")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("channel", "target"), [("fcm", "x y" * 20), ("fcm", "short"), ("apprise", "no-url"), ("apprise", "JSON://x")]
)
def test_what_has_not_the_form_of_a_target_is_refused(channel: Any, target: str) -> None:
    with pytest.raises(Invalid):
        checked_target(channel, target, extra_base=None)


@pytest.mark.parametrize(
    ("channel", "target", "shown"),
    [
        ("webhook", URL, "https://hooks.example.com/…"),
        ("webpush", subscription(), "https://updates.push.services.mozilla.com/…"),
        ("fcm", "s3cret" * 10 + ":tail", "…tail"),
        ("apprise", "tgram://123:s3cret/chat", "tgram://…"),
    ],
)
def test_a_masked_target_and_its_lane_give_no_secret_away(channel: Any, target: str, shown: str) -> None:
    stored = checked_target(channel, target, extra_base=None)
    assert masked(channel, stored) == shown
    assert "s3cret" not in lane_of(channel, stored)
