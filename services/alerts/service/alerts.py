"""The use cases: what the gateway and the detector tell, and what users ask for.

What would surprise you: a batch of activity makes at most one event an alert, caused by the newest event of its
symbol; a batch that is cut differently tells the same end in other steps. What more than `fan_out_above` rules look at
is left to a worker, page by page (`raise_page`): it takes seconds, and other symbols wait behind it here.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from msgspec.structs import asdict

from services.alerts.domain.kinds import ACTIVITY
from services.alerts.domain.matching import (
    Cause,
    Change,
    Known,
    Line,
    Rule,
    Stock,
    better,
    by_alert,
    changes,
    newest,
    sightings,
)
from services.alerts.domain.text import title
from services.alerts.service.routing import Router
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.audience import AudienceStore
from services.alerts.store.fanouts import FanOutStore
from services.alerts.store.kept import KeptEvents
from shared.clock import Clock
from shared.contracts.alerts import AlertRaised, AlertUpdated, Channel
from shared.contracts.api import (
    StockAdded,
    StockRemoved,
    StockSettingsChanged,
    UserSettingsChanged,
    UserSignedUp,
)
from shared.contracts.base import Event, derived_id
from shared.contracts.detector import ActivityDetected
from shared.db import Row, Tx
from shared.messaging.door import Done
from shared.work import Quiet


@dataclass(frozen=True, slots=True)
class Options:
    """What the settings decide."""

    best_few: int = 5
    notify_step: float = 10.0
    fan_out_above: int = 1_000
    fan_out_users: int = 500
    fan_out_parts: int = 4
    offered: tuple[Channel, ...] = ("discord",)
    discord_base: str | None = None
    outward_base: str | None = None
    push_key: str | None = None


class Alerts:
    """Alerts, and what decides about them."""

    def __init__(
        self,
        store: AlertsStore,
        audience: AudienceStore,
        options: Options,
        *,
        router: Router,
        kept: KeptEvents,
        fans: FanOutStore,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._audience = audience
        self._router = router
        self._options = options
        self._kept = kept
        self._fans = fans
        self._wake = wake
        self._clock = clock
        self.quiet = Quiet()  # of alerts that do not wait for a fan-out

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
        crowded = await self._fans.crowded(tx, stocks, self._options.fan_out_above)
        if crowded:
            causes = [(stock, newest(by_stock[stock])) for stock in sorted(crowded)]
            await self._fans.add(tx, causes, self._options.fan_out_parts, self._clock())
            tx.after_commit(self._wake)
            stocks = [stock for stock in stocks if stock not in crowded]
        rules = await self._audience.rules_for(tx, (symbol for symbol, _ in stocks))
        if not rules:
            return ()
        self.quiet.came()
        known = await self._store.alerts_of(tx, stocks)
        changed = [
            change
            for stock in stocks
            for change in self._changes(
                stock, list(lines[stock].values()), by_stock[stock], by_alert(rules.get(stock[0], ()), stock), known
            )
        ]
        return await self._write(changed, tx)

    async def raise_page(self, fan_out: Row, tx: Tx) -> Done[bool]:
        """Do the same for the next users of a fan-out, by the newest of what was seen; False when there are none left.

        What is there already is no change: a page that is done twice tells nothing the second time.
        """
        page = await self._fans.next_page(tx, fan_out, self._options.fan_out_users)
        if page is None:
            return Done(False)
        rules = by_alert(await self._audience.rules_of(tx, page), page.stock)
        known = await self._store.alerts_by_id(tx, page.stock[1], list(rules))
        changed = self._changes(page.stock, page.lines, [page.cause], rules, known)
        return Done(True, await self._write(changed, tx, fan_out["id"]))

    def _changes(
        self,
        stock: Stock,
        lines: Sequence[Line],
        causes: Sequence[Cause],
        rules: Mapping[UUID, Rule],
        known: Mapping[UUID, Known],
    ) -> list[Change]:
        few, step = self._options.best_few, self._options.notify_step
        return changes(stock, lines, causes, rules, known, best_few=few, step=step)

    async def _write(self, changed: Sequence[Change], tx: Tx, fan_out: UUID | None = None) -> Sequence[Event]:
        if not changed:
            return ()
        now = self._clock()
        await self._store.save_alerts(tx, changed, now)
        ringing = [change for change in changed if change.notify]
        settled = await self._router.ring_alerts(ringing, now, tx, bulk=fan_out is not None)
        return [*(_told(change, fan_out) for change in changed), *settled]

    async def _merge(
        self, by_stock: dict[Stock, list[ActivityDetected]], stocks: Sequence[Stock], tx: Tx
    ) -> dict[Stock, dict[str, Line]]:
        lines = await self._store.contracts(tx, stocks)
        changed = {
            stock: better(lines[stock], (line for event in by_stock[stock] for line in sightings(event)))
            for stock in stocks
        }
        await self._store.keep_contracts(tx, changed)
        await self._kept.keep(
            tx, [_kept(newest(by_stock[stock]), changed[stock]) for stock in stocks if changed[stock]]
        )
        return {stock: {**lines[stock], **changed[stock]} for stock in stocks}

    # What users ask for


def _kept(event: ActivityDetected, changed: Mapping[str, Line]) -> dict[str, Any]:
    lines = [{name: value for name, value in asdict(line).items() if value is not None} for line in changed.values()]
    return {
        "id": event.id,
        "kind": ACTIVITY,
        "symbol": event.symbol,
        "session": event.session,
        "at": event.as_of,
        "fields": {"lines": lines},
    }


def _told(change: Change, fan_out: UUID | None) -> Event:
    """Two fan-outs may find a change each by the same newest event, where the rule has changed between them."""
    kind = AlertRaised if change.new else AlertUpdated
    return kind(
        id=derived_id(change.cause.id, f"{kind.type}/{change.alert_id}{'' if fan_out is None else f'/{fan_out}'}"),
        time=change.cause.time,
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
