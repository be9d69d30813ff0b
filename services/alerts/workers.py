"""Door 3, claimed rows and the clock: deliveries go out, old months are dropped.

A delivery tells the alert as it is when it goes out, so one that waited tells the latest. When its alert has rung
again meanwhile, the later delivery tells it, and this one ends without a message: after an outage one comes, not two.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, cast
from uuid import UUID

from services.alerts.domain.charts import Picture
from services.alerts.domain.clicks import Clicks
from services.alerts.domain.links import Link, Links
from services.alerts.domain.routing import ACTIVITY
from services.alerts.domain.text import confirmation
from services.alerts.ports import ChannelGone, Sender
from services.alerts.service import Alerts
from services.alerts.service.messages import of_alert, of_notice
from services.alerts.service.outcomes import failed_with
from services.alerts.service.pictures import Pictures
from services.alerts.service.routing import Router, still_wanted
from services.alerts.service.targets import Targets
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.confirmations import ConfirmationStore
from services.alerts.store.fanouts import FanOutStore
from services.alerts.store.notices import NoticeStore
from shared import months
from shared.clock import Clock
from shared.contracts.alerts import Channel
from shared.contracts.base import Event
from shared.db import Row, Tx, is_rerun
from shared.errors import Permanent, Transient
from shared.messaging.door import Door
from shared.work import Performed, Policy, Precedence, Settled, Together, Work, explain, never, one_by_one

AHEAD: Final = 3
"""So many rows are claimed and read before their turn, for each that is sent at once."""
TOGETHER: Final = 200
PAGES_FIRST_S: Final = 10.0
"""So long at a time deliveries of fan-outs stand back for pages."""
UNHEARD: Final = 3
UNHEARD_REASON: Final = (
    f"{UNHEARD} messages in a row failed, each tried for hours: check the URL and set this channel again"
)
"""Apprise says only that it failed. So many in a row are no outage."""


def _since(row: Row) -> datetime:
    """Return when a delivery's age begins: what was planned for later is not old when its time comes."""
    at: datetime = row["planned_at"] or row["created_at"]
    return at


def _rank(row: Row) -> int:
    """Return what goes first of what was claimed ahead: not a fan-out's."""
    return int(row["bulk"])


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
        router: Router,
        targets: Targets,
        clicks: Clicks,
        clock: Clock,
        pictures: Pictures | None = None,
    ) -> None:
        """Prepare. `pictures` makes those of a channel that can show them."""
        self._clock = clock
        self._router = router
        self._targets = targets
        self._clicks = clicks
        self._channel: Channel = channel
        self._sender = sender
        self._store = store
        self._notices = notices
        self._door = door
        self._pictures = pictures
        self._read: Together[Row, Row | None] = Together(self._read_rows, most=TOGETHER)

    def work(self, concurrency: int, stands_back: Callable[[], bool] = never) -> Work:
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
            rank=_rank,
            stands_back=stands_back,
            policy=Policy(
                concurrency=concurrency,
                ahead=AHEAD * concurrency,
                together=TOGETHER,
                max_attempts=10,
                max_age_s=6 * 3600.0,
            ),
            since=_since,
        )

    async def prepare(self, row: Row) -> Row:
        """Read what a delivery says and where it goes. Raises Permanent where it must not go out, TargetUnreadable."""
        found = await self._read(row)
        if found is None or found["target"] is None:
            raise Permanent("the channel was removed or changed")
        if not found["enabled"]:
            raise Permanent("the channel was disabled")
        if found["superseded"]:
            raise Permanent("a later notification of the same alert took its place")
        still_wanted(found, ACTIVITY, self._clock())
        target = self._targets.open(found)
        return _with(found, target, None if self._pictures is None else await self._pictures.of_alert(found))

    async def perform(self, found: Row) -> Performed:
        """Send one delivery."""
        link = self._clicks.link(found["user_id"], found["alert_id"])
        sent = await self._sender.send(of_alert(found, link, repeat=found["uncertain"]))
        return Performed({"provider_id": sent.provider_id, "template": sent.template}, pause_s=sent.pause_s)

    async def settled(self, ends: Sequence[Settled], tx: Tx) -> Sequence[Event]:
        """Tell how deliveries ended; a channel that is gone is disabled, and what waits for it fails with it."""
        sent = [(end.row, end.result) for end in ends if end.status == "done" and end.result]
        if sent:
            await self._store.delivered(tx, sent)
        lost = list(ends)
        for end in ends:
            if (gone := await as_gone(self._store, end, tx)) is not None:
                lost += await fail_with_channel(self._store, self._notices, gone, tx)
        return await self._router.ended(lost, tx)

    async def _read_rows(self, rows: Sequence[Row]) -> list[Row | None]:
        async with self._door.read() as tx:
            found = await self._store.deliveries(tx, [(row["id"], row["session"]) for row in rows], self._clock())
        return [found.get(row["id"]) for row in rows]


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
        router: Router,
        targets: Targets,
        clicks: Clicks,
        clock: Clock,
        pictures: Pictures | None = None,
    ) -> None:
        """Prepare. `pictures` makes those of a channel that can show them."""
        self._clock = clock
        self._router = router
        self._targets = targets
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
            pauses_with=self._channel,
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="resend",
            settled=one_by_one(self.settled),
            policy=Policy(concurrency=4, max_attempts=10, max_age_s=24 * 3600.0),
            since=_since,
        )

    async def prepare(self, row: Row) -> Row:
        """Read what a delivery says and where it goes. Raises Permanent where it must not go out, TargetUnreadable."""
        async with self._door.read() as tx:
            found = await self._notices.delivery(tx, row["id"], self._clock())
        if found is None or found["target"] is None or not found["enabled"]:
            raise Permanent("the channel was removed, disabled or changed")
        still_wanted(found, found["kind"], self._clock())
        target = self._targets.open(found)
        shown = next((one["shows"] for one in found["sections"] or () if one["shows"]), None)
        if self._pictures is None or shown is None:
            return _with(found, target)
        async with self._door.read() as tx:
            alert = await self._alerts.alert(tx, found["user_id"], UUID(shown))
        return _with(found, target, None if alert is None else await self._pictures.of_alert(alert))

    async def perform(self, found: Row) -> Performed:
        """Send one delivery."""
        link = self._clicks.link(found["user_id"], found["notice_id"])
        sent = await self._sender.send(of_notice(found, link))
        return Performed({"provider_id": sent.provider_id, "template": sent.template}, pause_s=sent.pause_s)

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Keep how it ended; a channel that is gone is disabled, and what waits for it fails with it."""
        row = settled.row
        if settled.status == "done" and settled.result:
            await self._notices.delivered(tx, row["id"], settled.result)
        lost = [settled]
        if (gone := await as_gone(self._alerts, settled, tx)) is not None:
            lost += await fail_with_channel(self._alerts, self._notices, gone, tx)
        return await self._router.ended(lost, tx)


async def as_gone(alerts: AlertsStore, settled: Settled, tx: Tx) -> Settled | None:
    """Return an end with the reason why nothing will arrive where it went; None where something may."""
    if isinstance(settled.error, ChannelGone):
        return settled
    if settled.row["channel"] != "apprise" or settled.status != "unknown":
        return None
    before = await alerts.last_ends(tx, settled.row, UNHEARD - 1)
    return replace(settled, detail=UNHEARD_REASON) if before == ["unknown"] * (UNHEARD - 1) else None


async def fail_with_channel(alerts: AlertsStore, notices: NoticeStore, settled: Settled, tx: Tx) -> list[Settled]:
    """Disable the channel that a delivery went to; return the ends of alerts and notices that waited for it, too."""
    row, reason = settled.row, settled.detail
    with_it = await notices.fail_pending(tx, row, reason, settled.at)
    others = await alerts.disable_channel(tx, row, reason, settled.at)
    return [failed_with(other, settled) for other in (*with_it, *others)]


class FanOuts:
    """Raises the alerts of what very many rules look at, page by page, each in a transaction of its own.

    Two at a time, for one computes while Postgres writes for the other; one beside alerts that cannot wait. What their
    pages write is delivered after what few rules look at (`deliveries.bulk`), and after the pages: whoever looks into
    the app sees an alert when it is raised.
    """

    def __init__(
        self, alerts: Alerts, fans: FanOutStore, door: Door, *, first: Precedence, wake: Callable[[], None]
    ) -> None:
        self._alerts = alerts
        self._fans = fans
        self._door = door
        self._first = first
        self._wake = wake
        self._beside = asyncio.Lock()

    def work(self) -> Work:
        """Return the work: after a crash it goes on behind the last page that was committed."""
        return Work(
            kind="fan-out",
            table="fan_outs",
            perform=self.perform,
            on_unknown="resend",
            policy=Policy(concurrency=2, lease_s=15.0, base_s=0.2, cap_s=30.0, max_attempts=1000),
        )

    async def perform(self, row: Row) -> Performed:
        """Do the pages that are left; none when a later fan-out of the same stock waits and this has not begun."""
        try:
            async with self._door.read() as tx:
                needless = await self._fans.needless(tx, row["id"])
            with self._first.taken():
                while not needless and await self._page(row):
                    if not self._first():
                        self._wake()
        except Exception as error:
            if is_rerun(error):
                raise Transient(explain(error)) from error
            raise
        finally:
            self._wake()
        return Performed()

    async def _page(self, row: Row) -> bool:
        async with nullcontext() if self._alerts.quiet() else self._beside:
            return await self._door.run(lambda tx: self._alerts.raise_page(row, tx))


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
            pauses_with="email",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="resend",
            settled=one_by_one(self.settled),
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


def _with(found: Row, target: str, picture: Picture | None = None) -> Row:
    """Return a delivery with its target, opened, and its picture; it is read by its names as a row is."""
    return cast("Row", {**found, "target": target, "picture": picture})
