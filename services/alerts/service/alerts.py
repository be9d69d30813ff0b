"""The use cases: what the gateway and the detector tell, and what users ask for.

What would surprise you: a batch of activity makes at most one event an alert, caused by the newest event of its
symbol; a batch that is cut differently tells the same end in other steps.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from services.alerts.domain.matching import Change, Line, Stock, better, changes, sightings
from services.alerts.domain.text import title
from services.alerts.service.audit import Actor, audited
from services.alerts.service.routing import Router
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.audience import AudienceStore
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
from shared.errors import Conflict, NotFound
from shared.messaging.door import Done


@dataclass(frozen=True, slots=True)
class Options:
    """What the settings decide."""

    best_few: int = 5
    notify_step: float = 10.0
    max_rules: int = 50
    offered: tuple[Channel, ...] = ("discord",)
    discord_base: str | None = None
    outward_base: str | None = None
    push_key: str | None = None


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
        options: Options,
        *,
        router: Router,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._audience = audience
        self._router = router
        self._options = options
        self._clock = clock
        self._new_id = new_id

    # What the gateway tells

    async def note_user(self, event: UserSignedUp, tx: Tx) -> Sequence[Event]:
        """Keep the address of a new user."""
        await self._audience.put_user(tx, event.user_id, event.email)
        return ()

    async def note_settings(self, event: UserSettingsChanged, tx: Tx) -> Sequence[Event]:
        """Keep a user's thresholds and time zone, and whether they want alerts."""
        await self._audience.put_settings(
            tx,
            event.user_id,
            enabled=event.alerts_enabled,
            min_score=event.min_score,
            min_premium_usd=event.min_premium_usd,
            timezone=event.timezone,
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
        settled = await self._router.ring_alerts([change for change in changed if change.notify], now, tx)
        return [*(_told(change) for change in changed), *settled]

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
        return audited(actor, action, subject, id=self._new_id(), at=self._clock(), **details)


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
