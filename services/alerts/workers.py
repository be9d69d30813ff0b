"""Door 3, claimed rows and the clock: deliveries go out, old months are dropped.

A delivery tells the alert as it is when it goes out, so one that waited tells the latest. When its alert has rung
again meanwhile, the later delivery tells it, and this one ends without a message: after an outage one comes, not two.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid5

from services.alerts.domain.charts import Picture
from services.alerts.domain.clicks import Clicks
from services.alerts.domain.links import Link, Links
from services.alerts.domain.states import end_of
from services.alerts.domain.text import REPEAT_NOTE, Message, body, confirmation, fields, notes
from services.alerts.domain.words import LOCALE, TIMEZONE, Words
from services.alerts.ports import ChannelGone, Sender
from services.alerts.service import Alerts
from services.alerts.service.pictures import Pictures
from services.alerts.store.alerts import AlertsStore, lines_of
from services.alerts.store.confirmations import ConfirmationStore
from services.alerts.store.fanouts import FanOutStore
from services.alerts.store.notices import NoticeStore
from shared import months
from shared.clock import Clock
from shared.contracts.alerts import Channel, DeliverySettled, NoticeDeliverySettled
from shared.contracts.base import Event
from shared.db import Row, Tx, is_rerun
from shared.errors import Permanent, Transient
from shared.messaging.door import Door
from shared.work import Performed, Policy, Settled, Work, explain


def _since(row: Row) -> datetime:
    """Return when a delivery's age begins: what was planned for later is not old when its time comes."""
    at: datetime = row["planned_at"] or row["created_at"]
    return at


class Delivery:
    """Performs the deliveries of one channel."""

    def __init__(
        self,
        channel: Channel,
        sender: Sender,
        store: AlertsStore,
        notices: NoticeStore,
        door: Door,
        *,
        clicks: Clicks,
        pictures: Pictures | None = None,
    ) -> None:
        """Prepare. `pictures` makes those of a channel that can show them."""
        self._clicks = clicks
        self._channel: Channel = channel
        self._sender = sender
        self._store = store
        self._notices = notices
        self._door = door
        self._pictures = pictures

    def work(self, concurrency: int) -> Work:
        """Return the work: what is unknown is sent again (each adapter says why)."""
        return Work(
            kind=self._channel,
            table="deliveries",
            only=f"channel = '{self._channel}'",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="resend",
            settled=self.settled,
            order="bulk, due_at, id",
            policy=Policy(concurrency=concurrency, max_attempts=10, max_age_s=6 * 3600.0),
            since=_since,
        )

    async def prepare(self, row: Row) -> Row:
        """Read what a delivery says and where it goes. Raises Permanent for one that must not go out."""
        async with self._door.read() as tx:
            found = await self._store.delivery(tx, row["id"], row["session"])
        if found is None or found["target"] is None:
            raise Permanent("the channel was removed or changed")
        if not found["enabled"]:
            raise Permanent("the channel was disabled")
        if found["superseded"]:
            raise Permanent("a later notification of the same alert took its place")
        return found if self._pictures is None else _with(found, await self._pictures.of_alert(found))

    async def perform(self, found: Row) -> Performed:
        """Send one delivery."""
        link = self._clicks.link(found["user_id"], found["alert_id"])
        sent = await self._sender.send(_message(found, link, repeat=found["uncertain"]))
        return Performed({"provider_id": sent.provider_id}, pause_s=sent.pause_s)

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Tell how a delivery ended; a channel that is gone is disabled, and what waits for it fails with it."""
        row = settled.row
        if settled.status == "done" and settled.result:
            provider_id: str = settled.result["provider_id"]
            await self._store.delivered(tx, row["id"], row["session"], provider_id)
        events: list[Event] = [_settled(row, settled)]
        if isinstance(settled.error, ChannelGone):
            events += await fail_with_channel(self._store, self._notices, settled, tx)
        return events


class NoticeDelivery:
    """Performs the deliveries of one channel's notices."""

    def __init__(
        self,
        channel: Channel,
        sender: Sender,
        notices: NoticeStore,
        alerts: AlertsStore,
        door: Door,
        *,
        clicks: Clicks,
        pictures: Pictures | None = None,
    ) -> None:
        """Prepare. `pictures` makes those of a channel that can show them."""
        self._clicks = clicks
        self._channel: Channel = channel
        self._sender = sender
        self._notices = notices
        self._alerts = alerts
        self._door = door
        self._pictures = pictures

    def work(self) -> Work:
        """Return the work: what is unknown is sent again, and says that it may repeat itself."""
        return Work(
            kind=f"{self._channel}.notices",
            table="notice_deliveries",
            only=f"channel = '{self._channel}'",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="resend",
            settled=self.settled,
            policy=Policy(concurrency=4, max_attempts=10, max_age_s=24 * 3600.0),
            since=_since,
        )

    async def prepare(self, row: Row) -> Row:
        """Read what a delivery says and where it goes. Raises Permanent for one that must not go out."""
        async with self._door.read() as tx:
            found = await self._notices.delivery(tx, row["id"])
        if found is None or found["target"] is None or not found["enabled"]:
            raise Permanent("the channel was removed, disabled or changed")
        shown = next((one["shows"] for one in found["sections"] or () if one["shows"]), None)
        if self._pictures is None or shown is None:
            return found
        async with self._door.read() as tx:
            alert = await self._alerts.alert(tx, found["user_id"], UUID(shown))
        return found if alert is None else _with(found, await self._pictures.of_alert(alert))

    async def perform(self, found: Row) -> Performed:
        """Send one delivery."""
        link = self._clicks.link(found["user_id"], found["notice_id"])
        sent = await self._sender.send(_notice(found, link))
        return Performed({"provider_id": sent.provider_id}, pause_s=sent.pause_s)

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Keep how it ended; a channel that is gone is disabled, and what waits for it fails with it."""
        row = settled.row
        if settled.status == "done" and settled.result:
            await self._notices.delivered(tx, row["id"], settled.result["provider_id"])
        events: list[Event] = [_notice_settled(row, settled)]
        if isinstance(settled.error, ChannelGone):
            events += await fail_with_channel(self._alerts, self._notices, settled, tx)
        return events


async def fail_with_channel(alerts: AlertsStore, notices: NoticeStore, settled: Settled, tx: Tx) -> list[Event]:
    """Disable the channel that a delivery went to; alerts and notices that wait for it fail with it."""
    row, reason = settled.row, settled.detail
    with_it = await notices.fail_pending(tx, row, reason, settled.at)
    told: list[Event] = [_notice_settled(other, _failed(other, settled)) for other in with_it]
    others = await alerts.disable_channel(tx, row, reason, settled.at)
    return told + [_settled(other, _failed(other, settled)) for other in others]


class FanOuts:
    """Raises the alerts of what very many rules look at, page by page, each in a transaction of its own.

    One at a time, and what its pages write is delivered after what few rules look at (`deliveries.bulk`).
    """

    def __init__(self, alerts: Alerts, fans: FanOutStore, door: Door) -> None:
        self._alerts = alerts
        self._fans = fans
        self._door = door

    def work(self) -> Work:
        """Return the work: after a crash it goes on behind the last page that was committed."""
        return Work(
            kind="fan-out",
            table="fan_outs",
            perform=self.perform,
            on_unknown="resend",
            policy=Policy(concurrency=1, lease_s=15.0, base_s=0.2, cap_s=30.0, max_attempts=1000),
        )

    async def perform(self, row: Row) -> Performed:
        """Do the pages that are left; none when a later fan-out of the same stock waits and this has not begun."""
        try:
            async with self._door.read() as tx:
                needless = await self._fans.needless(tx, row["id"])
            while not needless and await self._door.run(lambda tx: self._alerts.raise_page(row, tx)):
                pass
        except Exception as error:
            if is_rerun(error):
                raise Transient(explain(error)) from error
            raise
        return Performed()


class Confirmation:
    """Sends the mails that ask whether an address is its user's."""

    def __init__(
        self, sender: Sender, store: ConfirmationStore, door: Door, *, links: Links, public_url: str, clock: Clock
    ) -> None:
        self._sender = sender
        self._store = store
        self._door = door
        self._links = links
        self._address = f"{public_url.rstrip('/')}/links/confirm-email?token="
        self._clock = clock

    def work(self) -> Work:
        """Return the work: what is unknown is sent again, with the same Message-ID."""
        return Work(
            kind="confirmation",
            table="confirmations",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="resend",
            settled=self.settled,
            policy=Policy(concurrency=4, max_attempts=10, max_age_s=6 * 3600.0),
        )

    async def prepare(self, row: Row) -> Row:
        """Read where the mail goes. Raises Permanent when it is not needed any more."""
        async with self._door.read() as tx:
            found = await self._store.needed(tx, row["id"])
        if found is None:
            raise Permanent("the address was confirmed, changed or removed")
        return found

    async def perform(self, found: Row) -> Performed:
        """Send the mail."""
        now = self._clock()
        token = self._links.sign(Link(found["user_id"], found["lane"]), now)
        await self._sender.send(confirmation(found["id"], found["target"], self._address + token, now))
        return Performed()

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Show the user why no mail comes."""
        if settled.status != "done":
            link = Link(settled.row["user_id"], settled.row["lane"])
            reason = f"not confirmed: the mail could not be sent: {settled.detail}"
            await self._store.not_sent(tx, link, reason, settled.at)
        return ()


class Retention:
    """Makes the months to come and drops those that are over."""

    def __init__(
        self,
        store: AlertsStore,
        confirmations: ConfirmationStore,
        notices: NoticeStore,
        door: Door,
        *,
        alerts_months: int,
        deliveries_months: int,
        contracts_days: int,
    ) -> None:
        self._store = store
        self._confirmations = confirmations
        self._notices = notices
        self._door = door
        self._months = {"alerts": alerts_months, "deliveries": deliveries_months}
        self._contracts_days = contracts_days

    async def run(self, at: datetime) -> None:
        """Run once; running again changes nothing."""
        today = at.date()
        for table, keep in self._months.items():
            async with self._door.transaction() as tx:
                await months.roll(tx, table, "session", today, keep)
            await months.forget(self._door.transaction, table, "session", today, keep)
        await self._store.forget_contracts(self._door.transaction, today - timedelta(days=self._contracts_days))
        await self._confirmations.forget(self._door.transaction, at)
        await self._notices.forget(self._door.transaction, at - timedelta(days=31 * self._months["alerts"]))


def _with(found: Row, picture: Picture | None) -> Row:
    """Return a delivery with its picture; it is read by its names as a row is."""
    return cast("Row", {**found, "picture": picture})


def _notice(found: Row, link: str | None) -> Message:
    """Return a notice's message; a digest is laid out by its sections."""
    picture: Picture | None = found.get("picture")
    sections = found["sections"]
    fields = {} if sections is None else {"sections": sections}
    return Message(
        delivery_id=found["id"],
        target=found["target"],
        title=found["title"],
        lines=tuple(found["lines"]),
        notes=(REPEAT_NOTE,) if found["uncertain"] else (),
        simulated=any(one["simulated"] for one in sections or ()),
        at=found["at"],
        user_id=found["user_id"],
        kind=found["kind"] if sections is None else "digest",
        fields=fields | ({"image_alt": picture.alt} if picture else {}),
        link=link,
        image=picture.png if picture else None,
    )


def _message(found: Row, link: str | None, *, repeat: bool) -> Message:
    best = lines_of(found)
    words = Words(found["locale"] or LOCALE, found["timezone"] or TIMEZONE)
    picture: Picture | None = found.get("picture")
    return Message(
        delivery_id=found["id"],
        target=found["target"],
        title=found["title"],
        lines=body(found["symbol"], best, found["contract_count"], words),
        notes=notes(
            rule_name=found["rule_name"],
            session=found["session"],
            as_of=found["as_of"],
            delay_s=found["delay_s"],
            source=found["source"],
            premium_usd=found["premium_usd"],
            simulated=found["simulated"],
            repeat=repeat,
            words=words,
        ),
        simulated=found["simulated"],
        at=found["as_of"],
        user_id=found["user_id"],
        kind="alert",
        words=words,
        fields=fields(found["symbol"], best, found["contract_count"]) | ({"image_alt": picture.alt} if picture else {}),
        link=link,
        image=picture.png if picture else None,
    )


def _failed(other: Row, settled: Settled) -> Settled:
    return Settled(other, "failed", other["attempts"], settled.error, settled.detail, {}, settled.at)


def _settled(row: Row, settled: Settled) -> DeliverySettled:
    return DeliverySettled(**_outcome(row, settled), alert_id=row["alert_id"])


def _notice_settled(row: Row, settled: Settled) -> NoticeDeliverySettled:
    return NoticeDeliverySettled(**_outcome(row, settled), notice_id=row["notice_id"])


def _outcome(row: Row, settled: Settled) -> dict[str, Any]:
    return {
        "id": uuid5(row["id"], "settled"),
        "time": settled.at,
        "delivery_id": row["id"],
        "user_id": row["user_id"],
        "channel": row["channel"],
        "status": end_of(settled.status),
        "attempts": settled.attempts,
        "detail": settled.detail,
    }
