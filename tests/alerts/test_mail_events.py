"""Providers tell what became of mails; addresses that bounce or complain get none any more; readers unsubscribe."""

import base64
import hmac
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.alerts.adapters.laid_out import LaidOut
from services.alerts.domain.channels import lane_of
from services.alerts.domain.links import Link, LinkRefused
from services.alerts.domain.mail_events import (
    AddressSuppressed,
    BadMailEvent,
    BadSignature,
    SignatureExpired,
    of_resend,
    of_sendgrid,
    public_key,
    secret_key,
)
from services.alerts.domain.routing import Wishes
from services.alerts.domain.unsubscribing import LIFETIME, UNSUBSCRIBED, Unsubscribe, UnsubscribeLinks
from services.alerts.service import Preferences
from services.alerts.service.audit import Actor
from services.alerts.service.layout import Layout
from services.alerts.service.mail import Mail, WebhookKeys
from services.alerts.service.preferences import Said
from services.alerts.service.templates import Templates
from services.alerts.store.mail import MailStore
from services.alerts.store.preferences import PreferenceStore, wishes_of
from services.alerts.store.templates import TemplateStore
from shared.clock import new_id
from shared.db import Database
from shared.errors import NotFound, RateLimited
from shared.settings import SharedSettings
from tests.alerts.conftest import ACTOR, NOW, Bench, FakeSender, activity
from tests.alerts.test_notices import receipt
from tests.alerts.test_preferences import wish
from tests.alerts.test_routes import Client, client
from tests.alerts.venues import message
from tests.conftest import ManualClock

__all__ = ["client"]

ADA = "Ada@example.com"
SECRET = base64.b64encode(b"s" * 32).decode()
PRIVATE = generate_private_key(SECP256R1())
PUBLIC = base64.b64encode(PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
STAMP = str(int(NOW.timestamp()))


class Provider:
    """Signs as SendGrid and Resend do."""

    def __init__(self, bench: Bench) -> None:
        self.links = UnsubscribeLinks("x" * 32, "https://openbell.example/")
        self.store = MailStore()
        keys = WebhookKeys(public_key(PUBLIC), (secret_key("whsec_b2xk"), secret_key(f"whsec_{SECRET}")))
        self.mail = Mail(
            *(self.store, PreferenceStore(), keys, self.links, bench.door),
            router=bench.router,
            clock=bench.clock,
            new_id=new_id,
        )

    async def sendgrid(self, *events: dict[str, Any]) -> int:
        usual = {"sg_event_id": "e1", "timestamp": int(NOW.timestamp()), "email": ADA}
        body = json.dumps([usual | event for event in events]).encode()
        return await self.mail.sendgrid(body, sign(body), STAMP)

    async def resend(self, kind: str, event_id: str = "msg_1", **data: Any) -> int:
        told = {"type": kind, "created_at": "2025-06-02T14:30:00.000Z", "data": {"to": [ADA], **data}}
        body = json.dumps(told).encode()
        return await self.mail.resend(body, event_id, STAMP, svix(event_id, body))


def sign(body: bytes, stamp: str = STAMP) -> str:
    return base64.b64encode(PRIVATE.sign(stamp.encode() + body, ECDSA(SHA256()))).decode()


def svix(event_id: str, body: bytes, stamp: str = STAMP) -> str:
    digest = hmac.digest(b"s" * 32, f"{event_id}.{stamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(b'0' * 32).decode()} v1,{base64.b64encode(digest).decode()}"


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("alerts"), ManualClock(NOW))


@pytest.fixture
def provider(bench: Bench) -> Provider:
    return Provider(bench)


async def mailed(bench: Bench) -> tuple[UUID, UUID]:
    """A user whose alert went out by mail; return them and the delivery."""
    user = await bench.user("AAPL")
    await bench.channel(user, "email", ADA)
    await bench.tell(activity())
    await bench.deliver()
    (row,) = await bench.rows("deliveries")
    return user, row["id"]


async def test_a_hard_bounce_ends_mail_to_the_address_whosever_it_is_and_the_user_sees_why(
    bench: Bench, provider: Provider
) -> None:
    _, delivery = await mailed(bench)
    other = await bench.user()
    with pytest.raises(RateLimited):  # it is the same address, however it is written
        await bench.channel(other, "email", ADA.lower())
    bench.clock.advance(61)
    await bench.channel(other, "email", ADA.lower())
    bounce = {"event": "bounce", "type": "bounce", "reason": "550 no such user", "delivery_id": str(delivery)}
    assert await provider.sendgrid(bounce) == 1
    assert await provider.sendgrid(bounce) == 0
    for row in await bench.rows("channels"):
        assert (row["enabled"], row["reason"]) == (False, "mail to this address does not arrive: it bounced")
    (row,) = await bench.rows("deliveries")
    assert (row["status"], row["last_error"]) == (
        "failed",
        "mail to this address does not arrive: it bounced: 550 no such user",
    )
    (kept,) = await bench.rows("suppressions")
    assert "example" not in json.dumps({key: str(value) for key, value in kept.items()})
    with pytest.raises(AddressSuppressed, match="bounced"):
        await bench.channel(await bench.user(), "email", ADA)
    await bench.channel(await bench.user(), "email", "bob@example.com")


async def test_a_mail_that_came_back_goes_to_the_next_in_turn_once(bench: Bench, provider: Provider) -> None:
    user = await bench.user()
    await bench.channel(user, "email", "bob@example.com")
    await bench.channel(user)
    await wish(bench, user, Wishes(turns=("email", "discord")))
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    (mail,) = await bench.rows("notice_deliveries")
    bounce = {"event": "bounce", "type": "bounce", "delivery_id": str(mail["id"]), "email": "bob@example.com"}
    for event_id in ("e1", "e1", "e2"):
        await provider.sendgrid(bounce | {"sg_event_id": event_id})
    await bench.deliver()
    rows = {row["channel"]: (row["status"], row["because"]) for row in await bench.rows("notice_deliveries")}
    because = "email did not take it: mail to this address does not arrive: it bounced"
    assert rows == {"email": ("failed", None), "discord": ("done", because)}
    assert len(bench.discord.sent) == 1


@pytest.mark.parametrize(
    ("event", "kind", "ended"),
    [
        ({"event": "bounce", "type": "blocked"}, "blocked", False),
        ({"event": "deferred"}, "deferred", False),
        ({"event": "dropped", "reason": "Bounced Address"}, "bounced", True),
        ({"event": "dropped", "reason": "Invalid"}, "bounced", True),
        ({"event": "dropped", "reason": "Spam Reporting Address"}, "complained", True),
        ({"event": "dropped", "reason": "Unsubscribed Address"}, "unsubscribed", True),
        ({"event": "dropped", "reason": "Recipient List over Package Quota"}, "blocked", False),
        ({"event": "dropped", "reason": "Spam Content"}, "blocked", False),
        ({"event": "dropped"}, "blocked", False),
        ({"event": "spamreport"}, "complained", True),
        ({"event": "group_unsubscribe"}, "unsubscribed", True),
    ],
)
async def test_of_sendgrids_events_only_the_final_ones_end_a_channel(
    bench: Bench, provider: Provider, event: dict[str, Any], kind: str, ended: bool
) -> None:
    user = await bench.user()
    await bench.channel(user, "email", ADA)
    assert await provider.sendgrid(event) == 1
    assert [row["kind"] for row in await bench.rows("mail_events")] == [kind]
    assert [row["enabled"] for row in await bench.rows("channels")] == [not ended]
    assert len(await bench.rows("suppressions")) == ended


@pytest.mark.parametrize(
    ("kind", "data", "ended"),
    [
        ("email.bounced", {"bounce": {"type": "Permanent", "subType": "General", "message": "no"}}, True),
        ("email.bounced", {"bounce": {"type": "Transient", "subType": "MailboxFull", "message": "full"}}, False),
        ("email.complained", {}, True),
        ("email.suppressed", {}, True),
        ("email.failed", {}, False),
        ("email.delivery_delayed", {}, False),
    ],
)
async def test_of_resends_events_only_the_final_ones_end_a_channel(
    bench: Bench, provider: Provider, kind: str, data: dict[str, Any], ended: bool
) -> None:
    user = await bench.user()
    await bench.channel(user, "email", ADA)
    assert await provider.resend(kind, **data) == 1
    assert await provider.resend(kind, **data) == 0
    assert [row["enabled"] for row in await bench.rows("channels")] == [not ended]


async def test_what_was_delivered_opened_and_clicked_is_noted_on_the_delivery(bench: Bench, provider: Provider) -> None:
    _, delivery = await mailed(bench)
    tags = {"tags": {"delivery_id": str(delivery)}}
    for number, kind in enumerate(("delivered", "opened", "clicked")):
        assert await provider.resend(f"email.{kind}", f"msg_{number}", **tags) == 1
    (row,) = await bench.rows("deliveries")
    assert (row["status"], row["delivered_at"], row["opened_at"], row["clicked_at"]) == ("done", NOW, NOW, NOW)
    assert await provider.resend("email.sent", "msg_9", **tags) == 0


async def test_what_nobody_signed_changes_nothing(bench: Bench, provider: Provider) -> None:
    body = json.dumps([{"event": "bounce", "sg_event_id": "e", "email": ADA, "timestamp": 1}]).encode()
    old = str(int(NOW.timestamp()) - 26 * 3600)
    late = str(int(NOW.timestamp()) + 301)
    for signature, stamp in ((None, STAMP), (sign(body), None), ("AAAA", STAMP), ("ä", STAMP), (sign(body), "1x")):
        with pytest.raises(BadSignature):
            await provider.mail.sendgrid(body, signature, stamp)
    with pytest.raises(BadSignature):
        await provider.mail.sendgrid(body + b" ", sign(body), STAMP)
    with pytest.raises(SignatureExpired):
        await provider.mail.sendgrid(body, sign(body, old), old)
    for event_id, stamp, signature in (("m", STAMP, svix("n", body)), (None, STAMP, svix("m", body)), ("m", STAMP, "")):
        with pytest.raises(BadSignature):
            await provider.mail.resend(body, event_id, stamp, signature)
    with pytest.raises(SignatureExpired):
        await provider.mail.resend(body, "m", late, svix("m", body, late))
    assert await bench.rows("mail_events") == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"event": "open"}]', b"[" * 10_000, b"\xff"])
def test_what_is_signed_and_no_event_is_refused(body: bytes) -> None:
    for read in (lambda: of_sendgrid(body), lambda: of_resend(body, "m")):
        try:
            assert read() == []
        except BadMailEvent:
            continue


def test_a_mail_that_was_not_ours_has_no_delivery() -> None:
    (event,) = of_sendgrid(json.dumps([{"event": "open", "sg_event_id": "e", "email": ADA, "timestamp": 1}]).encode())
    assert event.delivery_id is None


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA"])
def test_keys_that_are_none_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        public_key(text)


async def test_an_administrator_lifts_a_suppression_and_it_is_audited(bench: Bench, provider: Provider) -> None:
    await provider.resend("email.complained")
    await bench.door.run(lambda tx: provider.mail.lift(Actor("admin"), ADA, tx))
    assert await bench.rows("suppressions") == []
    assert [b"lift.suppression" in row["value"] for row in await bench.rows("outbox")] == [True]
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: provider.mail.lift(Actor("admin"), ADA, tx))


def token_of(link: str) -> str:
    return link.partition("token=")[2]


async def test_the_link_in_a_mail_ends_mails_of_its_kind_to_its_address_and_nothing_else(
    bench: Bench, provider: Provider
) -> None:
    user, other = await bench.user("AAPL"), await bench.user("AAPL")
    for one in (user, other):
        await bench.channel(one, "email", ADA)
        await bench.channel(one)
        bench.clock.advance(60)
    before = Said(Wishes(choices={("receipt", "email"): "digest", ("activity", "discord"): "digest"}))
    preferences = Preferences(PreferenceStore(), clock=bench.clock, new_id=new_id)
    await bench.door.run(lambda tx: preferences.put(ACTOR, user, before, tx))
    link = provider.links.link(Unsubscribe(user, lane_of("email", ADA), "alert"), NOW)
    for _ in range(2):
        await bench.door.run(lambda tx: provider.mail.unsubscribe(token_of(link), tx))
    assert sum(b"unsubscribe.kind" in row["value"] for row in await bench.rows("outbox")) == 1
    (kept,) = await bench.rows("preferences")
    wishes = wishes_of(kept)
    assert wishes.choices == {**before.wishes.choices, ("activity", "email"): "off"}
    await bench.tell(activity())
    told = {(row["user_id"], row["channel"]): row["status"] for row in await bench.rows("deliveries")}
    mine = {(user, "email"): "suppressed", (user, "discord"): "digested"}
    assert told == {**mine, (other, "email"): "pending", (other, "discord"): "pending"}


@pytest.mark.parametrize(
    ("kind", "off"),
    [("digest", {"digest.daily", "digest.weekly"}), ("order_filled", {"order_filled"}), ("rule", {"rule"})],
)
async def test_each_kind_of_mail_is_switched_off_by_the_kinds_of_preferences(
    bench: Bench, provider: Provider, kind: str, off: set[str]
) -> None:
    user = await bench.user()
    await bench.channel(user, "email", ADA)
    token = token_of(provider.links.link(Unsubscribe(user, lane_of("email", ADA), kind), NOW))
    await bench.door.run(lambda tx: provider.mail.unsubscribe(token, tx))
    (kept,) = await bench.rows("preferences")
    assert wishes_of(kept).choices == {(one, "email"): "off" for one in off}


async def test_an_old_addresss_link_and_that_of_a_test_switch_no_kind_off(bench: Bench, provider: Provider) -> None:
    user = await bench.user()
    await bench.channel(user, "email", ADA)
    old = token_of(provider.links.link(Unsubscribe(user, lane_of("email", "old@example.com"), "alert"), NOW))
    await bench.door.run(lambda tx: provider.mail.unsubscribe(old, tx))
    test = token_of(provider.links.link(Unsubscribe(user, lane_of("email", ADA), "test"), NOW))
    await bench.door.run(lambda tx: provider.mail.unsubscribe(test, tx))
    assert await bench.rows("preferences") == []
    assert [row["reason"] for row in await bench.rows("channels")] == [UNSUBSCRIBED]


async def test_the_link_in_a_mail_can_end_all_mail_to_its_address_and_no_other(
    bench: Bench, provider: Provider
) -> None:
    user, other = await bench.user(), await bench.user()
    for one in (user, other):
        await bench.channel(one, "email", ADA)
        bench.clock.advance(60)
    link = provider.links.link(Unsubscribe(user, lane_of("email", ADA), "alert"), NOW)
    assert re.fullmatch(r"https://openbell\.example/links/unsubscribe\?token=[\w.-]+", link)
    for _ in range(2):
        await bench.door.run(lambda tx: provider.mail.unsubscribe(token_of(link), tx, everything=True))
    states = {row["user_id"]: (row["enabled"], row["reason"]) for row in await bench.rows("channels")}
    assert states == {user: (False, UNSUBSCRIBED), other: (True, None)}
    bench.clock.advance(60)
    await bench.channel(user, "email", "new@example.com")
    await bench.door.run(lambda tx: provider.mail.unsubscribe(token_of(link), tx, everything=True))
    assert [row["enabled"] for row in await bench.rows("channels") if row["target"] == "new@example.com"] == [True]


async def test_a_link_that_was_changed_or_is_too_old_ends_nothing(bench: Bench, provider: Provider) -> None:
    user = await bench.user()
    await bench.channel(user, "email", ADA)
    about = Unsubscribe(user, lane_of("email", ADA), "alert")
    token = token_of(provider.links.link(about, NOW))
    confirming = bench.links.sign(Link(user, about.lane), NOW)
    stranger = token_of(UnsubscribeLinks("y" * 32, "https://openbell.example").link(about, NOW))
    for bad in (token[:-4] + "AAAA", "", "a.b.c", confirming, stranger):
        with pytest.raises(LinkRefused):
            await bench.door.run(lambda tx, bad=bad: provider.mail.unsubscribe(bad, tx))
    bench.clock.advance(LIFETIME.total_seconds())
    with pytest.raises(LinkRefused):
        await bench.door.run(lambda tx: provider.mail.unsubscribe(token, tx))
    assert [row["enabled"] for row in await bench.rows("channels")] == [True]


async def test_the_page_unsubscribes_by_its_button_and_mail_programs_by_a_post(client: Client) -> None:
    bench = client.bench
    user = await bench.user()
    await bench.channel(user, "email", ADA)
    links = UnsubscribeLinks(SharedSettings().identity_secret.get_secret_value(), "")
    path = links.link(Unsubscribe(user, lane_of("email", ADA), "alert"), NOW)
    page = await client("GET", path, user)
    assert (page.status_code, page.headers["referrer-policy"]) == (200, "no-referrer")
    assert re.findall(r"<button>(.*?)</button>", page.text) == [
        "No more mails about unusual activity",
        "No more mail at all",
    ]
    assert [row["enabled"] for row in await bench.rows("channels")] == [True]
    form = {"content-type": "application/x-www-form-urlencoded"}
    pressed = await client("POST", path, user, content=b"List-Unsubscribe=One-Click", headers=form)
    assert (pressed.status_code, "No more mails about unusual activity come" in pressed.text) == (200, True)
    wishes = (await client("GET", f"/api/alerts/{user}/preferences", user)).json()
    assert wishes["choices"] == [{"kind": "activity", "channel": "email", "choice": "off"}]
    assert [row["enabled"] for row in await bench.rows("channels")] == [True]
    ended = await client("POST", f"{path}&of=all", user, content=b"List-Unsubscribe=One-Click", headers=form)
    assert (ended.status_code, "No more mail comes" in ended.text) == (200, True)
    (channel,) = (await client("GET", f"/api/alerts/{user}/channels", user)).json()
    assert (channel["enabled"], channel["reason"]) == (False, UNSUBSCRIBED)
    for method in ("GET", "POST"):
        refused = await client(method, "/links/unsubscribe?token=%22%3E%3Cscript%3E", user)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "text/html; charset=utf-8")
        assert "not valid any more" in refused.text
        assert "script" not in refused.text


async def test_the_routes_of_webhooks_and_suppressions_ask_who_calls(client: Client) -> None:
    user = UUID(int=1)
    for provider in ("sendgrid", "resend"):
        assert (await client("POST", f"/alerts/webhooks/{provider}", user, content=b"[]")).status_code == 404
    assert (await client("GET", "/api/alerts/suppressions", user)).status_code == 403
    assert (await client("GET", "/api/alerts/suppressions", user, role="admin")).json() == []
    lifted = await client("POST", "/api/alerts/suppressions/lift", user, role="admin", json={"address": ADA})
    assert lifted.status_code == 404


async def test_an_alerts_mail_carries_a_link_that_ends_it_and_a_confirmation_does_not(bench: Bench) -> None:
    links = UnsubscribeLinks("x" * 32, "https://openbell.example")
    templates = Templates(TemplateStore(), bench.door, clock=bench.clock, new_id=new_id)
    layout, inner = Layout(links, templates, bench.clock), FakeSender()
    sender = LaidOut(inner, partial(layout.dress, "email"))
    user = UUID(int=5)
    await sender.send(message(ADA, user_id=user, kind="alert"))
    await sender.send(message(ADA, kind="confirmation"))
    named, unnamed = inner.sent
    assert named.unsubscribe is not None
    assert links.read(token_of(named.unsubscribe), NOW) == Unsubscribe(user, lane_of("email", ADA), "alert")
    assert unnamed.unsubscribe is None
