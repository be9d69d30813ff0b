"""The use cases: what the gateway and the detector tell, and what users ask for.

What would surprise you: a batch of activity makes at most one event an alert, caused by the newest event of its
symbol; a batch that is cut differently tells the same end in other steps.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from services.alerts.domain.channels import MAILS_A_DAY, UNCONFIRMED, checked_target, lane_of, masked, next_mail_in_s
from services.alerts.domain.links import Link, LinkRefused, Links
from services.alerts.domain.matching import Change, Line, Stock, better, changes, sightings
from services.alerts.domain.text import title
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.audience import AudienceStore
from services.alerts.store.confirmations import ConfirmationStore
from shared.clock import Clock, NewId
from shared.contracts.alerts import AlertRaised, AlertUpdated, Channel
from shared.contracts.api import (
    ActionAudited,
    StockAdded,
    StockRemoved,
    StockSettingsChanged,
    UserSettingsChanged,
    UserSignedUp,
)
from shared.contracts.base import Event
from shared.contracts.detector import ActivityDetected
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound, RateLimited
from shared.messaging.door import Done


class ChannelNotOffered(Invalid):
    """This channel is not set up on this installation."""

    code = "CHANNEL_NOT_OFFERED"


@dataclass(frozen=True, slots=True)
class Options:
    """What the settings decide."""

    best_few: int = 5
    notify_step: float = 10.0
    max_rules: int = 50
    offered: tuple[Channel, ...] = ("discord",)
    discord_base: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, in which request."""

    name: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule as a user states it. No symbols means every symbol."""

    name: str
    symbols: tuple[str, ...]
    min_score: float
    min_premium_usd: Decimal


class Alerts:
    """Alerts, and what decides about them."""

    def __init__(
        self,
        store: AlertsStore,
        audience: AudienceStore,
        confirmations: ConfirmationStore,
        options: Options,
        *,
        links: Links,
        clock: Clock,
        new_id: NewId,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._audience = audience
        self._confirmations = confirmations
        self._links = links
        self._options = options
        self._clock = clock
        self._new_id = new_id
        self._wake = wake

    # What the gateway tells

    async def note_user(self, event: UserSignedUp, tx: Tx) -> Sequence[Event]:
        """Keep the address of a new user."""
        await self._audience.put_user(tx, event.user_id, event.email)
        return ()

    async def note_settings(self, event: UserSettingsChanged, tx: Tx) -> Sequence[Event]:
        """Keep a user's thresholds, and whether they want alerts."""
        await self._audience.put_settings(
            tx,
            event.user_id,
            enabled=event.alerts_enabled,
            min_score=event.min_score,
            min_premium_usd=event.min_premium_usd,
        )
        return ()

    async def watch(self, event: StockAdded | StockSettingsChanged, tx: Tx) -> Sequence[Event]:
        """Keep that a user watches a symbol, unless they muted it; the user's own event may still be on its way."""
        if event.alerts_enabled:
            await self._audience.watch(tx, event.user_id, event.symbol)
        else:
            await self._audience.unwatch(tx, event.user_id, event.symbol)
        return ()

    async def unwatch(self, event: StockRemoved, tx: Tx) -> Sequence[Event]:
        """Keep that a user no longer watches a symbol."""
        await self._audience.unwatch(tx, event.user_id, event.symbol)
        return ()

    # What the detector tells

    async def raise_alerts(self, events: Sequence[ActivityDetected], tx: Tx) -> Sequence[Event]:
        """Raise and update the alerts that follow, and write the deliveries of those that ring.

        A symbol's rows are touched by its key's lane only, so no rows are shared with other keys.
        """
        by_stock: dict[Stock, list[ActivityDetected]] = defaultdict(list)
        for event in events:
            by_stock[event.symbol, event.session].append(event)
        stocks = sorted(by_stock)
        lines = await self._merge(by_stock, stocks, tx)
        rules = await self._audience.rules_for(tx, (symbol for symbol, _ in stocks))
        if not rules:
            return ()
        known = await self._store.alerts_of(tx, stocks)
        changed = [
            change
            for stock in stocks
            for change in changes(
                stock,
                list(lines[stock].values()),
                by_stock[stock],
                rules.get(stock[0], ()),
                known,
                best_few=self._options.best_few,
                step=self._options.notify_step,
            )
        ]
        if not changed:
            return ()
        now = self._clock()
        await self._store.save_alerts(tx, changed, now)
        ringing = [change for change in changed if change.notify]
        if ringing and await self._store.add_deliveries(tx, ringing, self._options.offered, now):
            tx.after_commit(self._wake)
        return [_told(change) for change in changed]

    async def _merge(
        self, by_stock: dict[Stock, list[ActivityDetected]], stocks: Sequence[Stock], tx: Tx
    ) -> dict[Stock, dict[str, Line]]:
        lines = await self._store.contracts(tx, stocks)
        changed = {
            stock: better(lines[stock], (line for event in by_stock[stock] for line in sightings(event)))
            for stock in stocks
        }
        await self._store.keep_contracts(tx, changed)
        return {stock: {**lines[stock], **changed[stock]} for stock in stocks}

    # What users ask for

    async def open_alert(self, user_id: UUID, alert_id: UUID, tx: Tx) -> Done[datetime]:
        """Keep that a user opened an alert; answer when they first did. Raises NotFound."""
        at = await self._store.opened(tx, user_id, alert_id, self._clock())
        if at is None:
            raise NotFound("there is no such alert")
        return Done(at)

    async def set_channel(self, actor: Actor, user_id: UUID, channel: Channel, target: str | None, tx: Tx) -> Done[Row]:
        """Set where a channel goes. Without a target, e-mail goes to the address of sign-up.

        A webhook is enabled at once; an address when its reader opens the link of the mail that goes there now. Raises
        Invalid for a target that is not acceptable, ChannelNotOffered without a mail server, RateLimited for too many
        mails.
        """
        if channel not in self._options.offered:
            raise ChannelNotOffered(f"{channel} is not set up here: its server is not configured")
        if target is None and channel == "email":
            target = await self._audience.email(tx, user_id)
        if target is None:
            raise Invalid("a target is needed")
        target = checked_target(channel, target, extra_base=self._options.discord_base)
        now, known = self._clock(), await self._known_channel(user_id, channel, tx)
        same = known is not None and known["target"] == target
        confirmed_at = now if channel != "email" else known["confirmed_at"] if known is not None and same else None
        reason = None if confirmed_at else known["reason"] if known is not None and same else UNCONFIRMED
        row = await self._audience.set_channel(
            tx, user_id, channel, target, confirmed_at=confirmed_at, reason=reason, now=now
        )
        if row is None:
            raise Conflict
        if confirmed_at is None and not same:
            await self._ask_to_confirm(Link(user_id, lane_of(channel, target)), tx)
        shown = {"target": masked(channel, target)} if channel == "discord" else {}
        return Done(row, [self._audited(actor, "set.channel", f"{user_id}/{channel}", **shown)])

    async def ask_again(self, user_id: UUID, channel: Channel, tx: Tx) -> Done[Row]:
        """Send the confirmation mail once more. Raises NotFound, Conflict for a confirmed address, RateLimited."""
        known = await self._known_channel(user_id, channel, tx)
        if known is None:
            raise NotFound("there is no such channel")
        if known["confirmed_at"] is not None:
            raise Conflict("there is nothing to confirm any more")
        row = await self._audience.set_channel(
            tx, user_id, channel, known["target"], confirmed_at=None, reason=UNCONFIRMED, now=self._clock()
        )
        await self._ask_to_confirm(Link(user_id, known["lane"]), tx)
        return Done(row or known)

    def check_link(self, token: str) -> Link:
        """Return what a signed link stands for; raises LinkRefused."""
        return self._links.read(token, self._clock())

    async def confirm(self, token: str, tx: Tx) -> Done[None]:
        """Enable the channel whose mail was read; again changes nothing. Raises LinkRefused."""
        link = self.check_link(token)
        if await self._confirmations.confirm(tx, link, self._clock()):
            actor = Actor(str(link.user_id))
            return Done(None, [self._audited(actor, "confirm.channel", f"{link.user_id}/email")])
        if not await self._confirmations.confirmed(tx, link):
            raise LinkRefused
        return Done(None)

    async def _known_channel(self, user_id: UUID, channel: Channel, tx: Tx) -> Row | None:
        return next((row for row in await self._audience.channels(tx, user_id) if row["channel"] == channel), None)

    async def _ask_to_confirm(self, link: Link, tx: Tx) -> None:
        now = self._clock()
        sent = await self._confirmations.lately(tx, link, now - timedelta(days=1), MAILS_A_DAY)
        if (wait_s := next_mail_in_s(sent, now)) > 0:
            raise RateLimited("too many confirmation mails to this user or this address", retry_after_s=wait_s)
        await self._confirmations.add(tx, self._new_id(), link, now)
        tx.after_commit(self._wake)

    async def remove_channel(self, actor: Actor, user_id: UUID, channel: Channel, tx: Tx) -> Done[None]:
        """Remove a channel. Raises NotFound."""
        if not await self._audience.remove_channel(tx, user_id, channel):
            raise NotFound("there is no such channel")
        return Done(None, [self._audited(actor, "remove.channel", f"{user_id}/{channel}")])

    async def add_rule(self, actor: Actor, user_id: UUID, rule: NewRule, tx: Tx) -> Done[Row]:
        """Add a rule. Raises Conflict when the user has too many."""
        await self._audience.lock_rules(tx, user_id)
        if len(await self._audience.rules(tx, user_id)) >= self._options.max_rules:
            raise Conflict(f"{self._options.max_rules} rules are the most a user may have")
        fields = {
            "rule_id": self._new_id(),
            "user_id": user_id,
            "name": rule.name,
            "symbols": sorted(set(rule.symbols)),
            "min_score": rule.min_score,
            "min_premium_usd": rule.min_premium_usd,
            "now": self._clock(),
        }
        row = await self._audience.add_rule(tx, fields)
        if row is None:
            raise Conflict
        return Done(row, [self._audited(actor, "add.rule", f"{user_id}/{row['rule_id']}", name=rule.name)])

    async def remove_rule(self, actor: Actor, user_id: UUID, rule_id: UUID, tx: Tx) -> Done[None]:
        """Remove a rule; its alerts stay. Raises NotFound."""
        if not await self._audience.remove_rule(tx, user_id, rule_id):
            raise NotFound("there is no such rule")
        return Done(None, [self._audited(actor, "remove.rule", f"{user_id}/{rule_id}")])

    def _audited(self, actor: Actor, action: str, subject: str, **details: str) -> ActionAudited:
        now = self._clock()
        return ActionAudited(
            id=self._new_id(),
            time=now,
            service="alerts",
            actor=actor.name,
            request_id=actor.request_id,
            action=action,
            subject=subject,
            at=now,
            details=details,
        )


def _told(change: Change) -> Event:
    kind = AlertRaised if change.new else AlertUpdated
    return kind.caused_by(
        change.cause,
        change.alert_id,
        alert_id=change.alert_id,
        user_id=change.rule.user_id,
        rule_id=change.rule.rule_id,
        symbol=change.symbol,
        session=change.session,
        as_of=change.as_of,
        title=title(change.symbol, change.summary),
        top_score=change.summary.top_score,
        contract_count=change.summary.contract_count,
        premium_usd=change.summary.premium_usd,
        simulated=change.summary.simulated,
        notified=change.notify,
    )
