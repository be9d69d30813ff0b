"""An address receives alerts only after its reader opened the link in the mail that asks."""

import re
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import httpx
import pytest

from services.alerts.domain.channels import UNCONFIRMED, lane_of
from services.alerts.domain.links import Link, LinkRefused, Links
from services.alerts.domain.mail_events import AddressSuppressed, address_hash
from services.alerts.main import build
from services.alerts.ports import ChannelGone
from shared.db import Row
from shared.errors import Conflict, NotFound, RateLimited, Transient
from shared.identity import Signer
from shared.service import Environment
from shared.settings import SharedSettings
from tests.alerts.conftest import ACTOR, NOW, Bench, activity
from tests.alerts.test_routes import Client

ADA = "ada@example.com"


async def put(bench: Bench, user_id: UUID, target: str | None = ADA) -> Row:
    return (await bench.door.run(lambda tx: bench.channels.set(ACTOR, user_id, "email", target, tx))).row


async def ask_again(bench: Bench, user_id: UUID) -> Row:
    return await bench.door.run(lambda tx: bench.channels.ask_again(user_id, "email", tx))


async def confirm(bench: Bench, token: str) -> None:
    await bench.door.run(lambda tx: bench.channels.confirm(token, tx))


def token_of(bench: Bench) -> str:
    """The token in the newest mail."""
    (line,) = bench.email.sent[-1].lines
    assert line.startswith("https://openbell.example/links/confirm-email?token=")
    return line.partition("token=")[2]


async def test_an_address_gets_no_alerts_before_it_is_confirmed_and_all_after(bench: Bench) -> None:
    user_id = await bench.user("AAPL", "MSFT")
    row = await put(bench, user_id)
    assert (row["enabled"], row["confirmed_at"], row["reason"]) == (False, None, UNCONFIRMED)
    await bench.tell(activity())
    assert await bench.rows("deliveries") == []
    await bench.ask()
    (mail,) = bench.email.sent
    assert mail.target == ADA
    token = token_of(bench)
    await confirm(bench, token)
    (channel,) = await bench.rows("channels")
    assert (channel["enabled"], channel["confirmed_at"], channel["reason"]) == (True, NOW, None)
    await bench.tell(activity(symbol="MSFT"))
    await bench.deliver()
    assert [message.target for message in bench.email.sent[1:]] == [ADA]
    await confirm(bench, token)
    told = [row for row in await bench.rows("outbox") if b"confirm.channel" in row["value"]]
    assert len(told) == 1


async def test_a_confirmed_address_stays_so_when_it_is_set_again_and_another_does_not(bench: Bench) -> None:
    user_id = await bench.user()
    await bench.channel(user_id, "email", ADA)
    assert (await put(bench, user_id))["enabled"]
    bench.clock.advance(60)
    assert not (await put(bench, user_id, "bob@example.com"))["enabled"]
    bench.clock.advance(60)
    assert not (await put(bench, user_id, ADA))["enabled"]


async def test_a_link_is_worth_nothing_for_another_address_user_or_time(bench: Bench) -> None:
    user_id, other = await bench.user(), await bench.user()
    await put(bench, user_id)
    await bench.ask()
    token = token_of(bench)
    await put(bench, other, "eve@example.com")
    stolen = bench.links.sign(Link(other, lane_of("email", ADA)), NOW)
    bench.clock.advance(60)
    await put(bench, user_id, "new@example.com")
    for bad in (token, stolen, token[:-4] + "AAAA", "x", Links("y" * 32).sign(Link(user_id, "l"), NOW)):
        with pytest.raises(LinkRefused):
            await confirm(bench, bad)
    bench.clock.advance(61)
    await ask_again(bench, user_id)
    await bench.ask()
    fresh = token_of(bench)
    bench.clock.advance(86_400)
    with pytest.raises(LinkRefused):
        await confirm(bench, fresh)
    assert {row["enabled"] for row in await bench.rows("channels")} == {False}


async def test_an_address_that_bounced_since_it_was_asked_is_not_enabled_by_its_link(bench: Bench) -> None:
    user_id = await bench.user()
    await put(bench, user_id)
    await bench.ask()
    await bench.execute(f"insert into suppressions values ('{address_hash(ADA)}', 'complained', '', 'sendgrid', now())")
    with pytest.raises(AddressSuppressed):
        await confirm(bench, token_of(bench))
    assert [row["enabled"] for row in await bench.rows("channels")] == [False]


async def test_mails_are_few_for_a_user_and_for_an_address(bench: Bench) -> None:
    user_id = await bench.user()
    await put(bench, user_id)
    await put(bench, user_id)  # nothing new to ask
    with pytest.raises(RateLimited) as caught:
        await ask_again(bench, user_id)
    assert caught.value.retry_after_s == 60
    for _ in range(4):
        bench.clock.advance(60)
        await ask_again(bench, user_id)
    bench.clock.advance(60)
    for stranger in (user_id, await bench.user()):
        with pytest.raises(RateLimited) as caught:
            await put(bench, stranger, "other@example.com" if stranger == user_id else ADA)
        assert caught.value.retry_after_s == 86_400 - 5 * 60
    assert len(await bench.rows("confirmations")) == 5
    bench.clock.advance(86_400)
    await ask_again(bench, user_id)


async def test_there_must_be_something_to_confirm(bench: Bench) -> None:
    user_id = await bench.user()
    with pytest.raises(NotFound):
        await ask_again(bench, user_id)
    await bench.channel(user_id, "email", ADA)
    with pytest.raises(Conflict):
        await ask_again(bench, user_id)
    await bench.ask()
    assert bench.email.sent == []
    (row,) = await bench.rows("confirmations")
    assert row["last_error"] == "the address was confirmed, changed or removed"


async def test_a_mail_that_cannot_be_sent_is_tried_again_and_its_end_is_shown(bench: Bench) -> None:
    user_id = await bench.user()
    await put(bench, user_id)
    bench.email.errors = [Transient("busy"), ChannelGone("the mail server knows no such mailbox (550)")]
    await bench.ask()
    bench.clock.advance(10)
    await bench.ask()
    assert len(bench.email.sent) == 2
    (channel,) = await bench.rows("channels")
    assert channel["reason"] == (
        "not confirmed: the mail could not be sent: the mail server knows no such mailbox (550)"
    )


@pytest.fixture
async def client(bench: Bench, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("OPENBELL_ALERTS_SMTP_HOST", "127.0.0.1")
    settings = SharedSettings(database_url=database_url)
    secret = settings.identity_secret.get_secret_value()
    bench.links = Links(secret)
    service = build(Environment(settings, bench.clock))
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://alerts") as http:
        yield Client(bench, http, Signer(secret, bench.clock))
    await service.db.close()


async def test_the_links_page_confirms_by_its_button_not_by_being_opened(client: Client) -> None:
    user = await client.bench.user()
    set_up = await client("PUT", f"/api/alerts/{user}/channels/email", user, json={"target": ADA})
    assert (set_up.json()["confirmed"], set_up.json()["reason"]) == (False, UNCONFIRMED)
    token = client.bench.links.sign(Link(user, lane_of("email", ADA)), NOW)
    page = await client("GET", f"/links/confirm-email?token={token}", user)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["referrer-policy"] == "no-referrer"
    (channel,) = (await client("GET", f"/api/alerts/{user}/channels", user)).json()
    assert not channel["enabled"]
    action = re.search(r'method="post" action="([^"]+)"', page.text)
    assert action is not None
    pressed = await client("POST", f"/links/confirm-email{action[1]}", user)
    assert pressed.status_code == 200
    (channel,) = (await client("GET", f"/api/alerts/{user}/channels", user)).json()
    assert (channel["enabled"], channel["confirmed"], channel["reason"]) == (True, True, None)


async def test_a_bad_link_is_refused_with_a_code_and_shows_nothing_of_itself(client: Client) -> None:
    user = await client.bench.user()
    for method in ("GET", "POST"):
        answer = await client(method, '/links/confirm-email?token="><script>', user)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "LINK_REFUSED")
        assert "script" not in answer.text
        assert (await client(method, "/links/confirm-email", user)).status_code == 422
    assert (await client("POST", f"/api/alerts/{user}/channels/email/confirmation", user)).status_code == 404
