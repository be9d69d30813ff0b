"""Mails that a provider took and that do not arrive: the next channel tells it once, whenever the provider says so."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from services.alerts.domain.routing import ANY, Wishes
from services.alerts.domain.text import Message
from services.alerts.ports import Sent
from services.alerts.store.mail import MailStore
from shared.contracts.alerts import DeliverySettled
from shared.db import Database, Tx
from shared.work import Settled
from tests.alerts.conftest import NOW, Bench, FakeSender, activity
from tests.alerts.test_fail_over import ends
from tests.alerts.test_mail_events import Provider, provider
from tests.alerts.test_notices import receipt
from tests.alerts.test_preferences import wish
from tests.conftest import ManualClock, eventually

__all__ = ["provider"]

BOB = "bob@example.com"
BOUNCED = "email did not take it: mail to this address does not arrive: it bounced"
QUOTA = {"event": "dropped", "reason": "Recipient List over Package Quota"}
NOT_DELIVERED = f"email did not take it: the provider of our mail could not deliver it: {QUOTA['reason']}"
TOLD = [("discord", "done", BOUNCED), ("email", "failed", None)]


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("alerts"), ManualClock(NOW))


async def by_mail_first(bench: Bench) -> UUID:
    """A user whose mail comes before Discord."""
    user = await bench.user("AAPL")
    await bench.channel(user, "email", BOB)
    await bench.channel(user)
    await wish(bench, user, Wishes(turns=("email", "discord")))
    return user


def back(delivery: object, **changed: object) -> dict[str, Any]:
    """What SendGrid tells of a mail that came back."""
    return {"event": "bounce", "type": "bounce", "delivery_id": str(delivery), "email": BOB, **changed}


class TellsAtOnce(FakeSender):
    """Its provider tells what became of a mail before it answers that it took it."""

    def __init__(self, provider: Provider, **changed: object) -> None:
        super().__init__()
        self._provider, self._changed = provider, changed

    async def send(self, message: Message) -> Sent:
        event_id = str(message.delivery_id)
        assert await self._provider.sendgrid(back(event_id, sg_event_id=event_id, **self._changed)) == 1
        return await super().send(message)


def through(bench: Bench, sender: FakeSender) -> None:
    """Let mails go out another way."""
    for worker in bench.workers:
        one: Any = getattr(worker._work.perform, "__self__", None)
        if getattr(one, "_channel", None) == "email":
            one._sender = sender


@pytest.mark.parametrize(
    ("changed", "because", "enabled"), [({}, BOUNCED, False), (QUOTA, NOT_DELIVERED, True)], ids=["bounced", "dropped"]
)
async def test_what_is_lost_before_its_taking_is_recorded_goes_to_the_next(
    bench: Bench, provider: Provider, changed: dict[str, object], because: str, enabled: bool
) -> None:
    user = await by_mail_first(bench)
    sender = TellsAtOnce(provider, **changed)
    through(bench, sender)
    await bench.tell(activity())
    await bench.deliver()
    bench.clock.advance(1)
    await bench.handle(bench.telling.tell, [receipt(user)])
    for _ in range(2):
        await bench.deliver()
    assert await ends(bench) == [("discord", "done", because), ("email", "failed", None)]
    assert [row["enabled"] for row in await bench.rows("channels where channel = 'email'")] == [enabled]
    if enabled:
        assert await ends(bench, "notice_deliveries") == await ends(bench)
    assert len(sender.sent) == 1 + enabled
    events = [json.loads(row["value"]) for row in await bench.rows("outbox where topic = 'alerts.deliveries'")]
    told = [one["status"] for one in events if one.get("alert_id") and one["channel"] == "email"]
    assert told == ["failed"]


async def test_a_mail_that_is_told_twice_as_lost_at_once_is_handed_on_once(bench: Bench, provider: Provider) -> None:
    await by_mail_first(bench)
    await bench.tell(activity())
    await bench.deliver()
    (mail,) = await bench.rows("deliveries")
    both = [back(mail["id"], sg_event_id=one) for one in ("e1", "e2")]
    assert await asyncio.gather(*map(provider.sendgrid, both)) == [1, 1]
    await bench.deliver()
    assert await ends(bench) == TOLD
    assert len(bench.discord.sent) == 1


async def waiting_for_a_row(bench: Bench) -> bool:
    async with bench.database.read() as tx:
        return bool(await tx.fetchval(text("select exists (select from pg_locks where not granted)")))


async def test_an_event_that_meets_the_end_of_its_mail_waits_for_it(
    bench: Bench, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await by_mail_first(bench)
    await bench.tell(activity())
    looked, go_on = asyncio.Event(), asyncio.Event()
    look = MailStore.lost

    async def slow(self: MailStore, tx: Tx, deliveries: Sequence[UUID]) -> dict[UUID, str]:
        found = await look(self, tx, deliveries)
        if deliveries:
            looked.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(MailStore, "lost", slow)
    delivering = asyncio.create_task(bench.deliver())
    await looked.wait()
    (mail,) = await bench.rows("deliveries")
    telling = asyncio.create_task(provider.sendgrid(back(mail["id"])))
    await eventually(lambda: waiting_for_a_row(bench))
    go_on.set()
    await asyncio.gather(delivering, telling)
    await bench.deliver()
    assert await ends(bench) == TOLD


async def test_the_end_of_a_mail_that_meets_its_event_waits_for_it(
    bench: Bench, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await by_mail_first(bench)
    await bench.tell(activity())
    held, go_on = asyncio.Event(), asyncio.Event()
    fail = MailStore.fail

    async def slow(self: MailStore, tx: Tx, delivery_id: UUID, detail: str) -> Any:
        found = await fail(self, tx, delivery_id, detail)
        held.set()
        await go_on.wait()
        return found

    class Meeting(FakeSender):
        async def send(self, message: Message) -> Sent:
            self.telling = asyncio.create_task(provider.sendgrid(back(message.delivery_id)))
            await held.wait()
            return await super().send(message)

    sender = Meeting()
    through(bench, sender)
    monkeypatch.setattr(MailStore, "fail", slow)
    delivering = asyncio.create_task(bench.deliver())
    await eventually(lambda: waiting_for_a_row(bench))
    go_on.set()
    await asyncio.gather(delivering, sender.telling)
    await bench.deliver()
    assert await ends(bench) == TOLD


async def test_what_ends_without_its_record_is_lost_once_when_it_is_recorded(bench: Bench, provider: Provider) -> None:
    await by_mail_first(bench)
    sender = TellsAtOnce(provider)
    through(bench, sender)
    await bench.tell(activity())
    await bench.execute("alter table deliveries add constraint only_mail check (channel = 'email')")
    with pytest.raises(Exception, match="only_mail"):
        await bench.deliver()
    assert await ends(bench) == [("email", "started", None)]
    await bench.execute("alter table deliveries drop constraint only_mail")
    for _ in range(4):
        bench.clock.advance(31)
        await bench.deliver()
    assert [(channel, status) for channel, status, _ in await ends(bench)] == [("discord", "done"), ("email", "failed")]
    assert (len(sender.sent), len(bench.discord.sent)) == (1, 1)


async def test_what_was_handed_on_already_is_told_of_once(bench: Bench) -> None:
    user = await by_mail_first(bench)
    await wish(bench, user, Wishes(turns=("email", "discord"), choices={(ANY, "discord"): "off"}))
    await bench.tell(activity())
    await bench.deliver()
    (mail,) = await bench.rows("deliveries")
    end = Settled(mail, "failed", 1, None, "refused", {}, NOW)
    first = await bench.handle(bench.router.hand_on, [end])
    assert [event.channel for event in first if isinstance(event, DeliverySettled)] == ["discord"]
    assert await bench.handle(bench.router.hand_on, [replace(end, detail="again")]) == []
