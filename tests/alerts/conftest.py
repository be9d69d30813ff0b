"""The alerts service's parts on a real database, with what detector and gateway would tell it."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.alerts.domain.channels import lane_of
from services.alerts.domain.clicks import Clicks
from services.alerts.domain.links import Link, Links
from services.alerts.domain.text import Message
from services.alerts.ports import Sent
from services.alerts.service import Actor, Alerts, Channels, Engagement, NewRule, Notices, Options, Router, Rules
from services.alerts.service.bundling import Bundling
from services.alerts.service.escalating import Escalating
from services.alerts.service.targets import Targets
from services.alerts.settings import DEVELOPMENT_KEYS
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.audience import AudienceStore, Defaults
from services.alerts.store.confirmations import ConfirmationStore
from services.alerts.store.deliveries import DeliveryStore
from services.alerts.store.engagement import EngagementStore
from services.alerts.store.fanouts import FanOutStore
from services.alerts.store.kept import KeptEvents
from services.alerts.store.notices import NoticeStore
from services.alerts.store.preferences import PreferenceStore
from services.alerts.store.rules import RuleStore
from services.alerts.store.targets import TargetStore
from services.alerts.workers import Confirmation, Delivery, NoticeDelivery
from shared.clock import Clock, new_id
from shared.contracts.api import StockAdded, UserSettingsChanged, UserSignedUp
from shared.contracts.base import Event
from shared.contracts.detector import ActivityDetected, ScoreParts, UnusualContract
from shared.db import Database, Row
from shared.envelope import Envelope, Keys, RandomBytes
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.work import Worker
from tests.conftest import ManualClock

NOW = datetime(2025, 6, 2, 14, 30, tzinfo=UTC)
ACTOR = Actor("tester")
SESSION = date(2025, 6, 2)
WEBHOOK = "https://discord.com/api/webhooks/123456789012345678/" + "s3cret-" * 9


def contract(name: str = "AAPL250620C00200000", score: float = 80.0, premium: int = 100_000) -> UnusualContract:
    return UnusualContract(
        contract=name,
        right="C",
        expiration=date(2025, 6, 20),
        strike=Decimal("200.00"),
        bid=Decimal("1.90"),
        ask=Decimal("2.10"),
        last=Decimal("2.05"),
        volume=5_000,
        open_interest=400,
        volume_oi_ratio=12.5,
        volume_change=5_000,
        premium_usd=Decimal(premium),
        dte=18,
        otm_pct=3.2,
        iv=0.31,
        side="ask",
        score=score,
        parts=ScoreParts(volume_oi=30, premium=20, otm=10, dte=10, side=5, change=5),
    )


def activity(
    *contracts: UnusualContract,
    symbol: str = "AAPL",
    session: date = SESSION,
    as_of: datetime = NOW,
    simulated: bool = False,
) -> ActivityDetected:
    return ActivityDetected(
        id=uuid4(),
        time=as_of,
        symbol=symbol,
        session=session,
        as_of=as_of,
        source="cboe",
        simulated=simulated,
        delay_s=900,
        underlying_usd=Decimal("195.10"),
        contracts=contracts or (contract(),),
    )


@dataclass
class FakeSender:
    """A sender that does what it is told."""

    sent: list[Message] = field(default_factory=list[Message])
    errors: list[Exception | None] = field(default_factory=list[Exception | None])
    templates: list[str] = field(default_factory=list[str])

    async def send(self, message: Message) -> Sent:
        self.sent.append(message)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return Sent(f"id-{len(self.sent)}", template=self.templates.pop(0) if self.templates else None)

    async def close(self) -> None:
        pass


class Bench:
    """Alerts, wired as main does, with fake senders and a clock that moves when told."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.database = database
        self.clock = clock
        self.door = Door(database, Outbox("alerts", lambda: None))
        self.store = AlertsStore()
        self.audience = AudienceStore(Defaults(60.0, Decimal(25_000)))
        self.discord, self.email, self.webhook = FakeSender(), FakeSender(), FakeSender()
        self.wakes = 0
        self.confirmations, self.links = ConfirmationStore(), Links("x" * 32)
        self._secrets = itertools.count(1)
        self.targets = self.keyed(DEVELOPMENT_KEYS)
        self.offer(Options(offered=("discord", "email", "webhook"), best_few=3))
        self.notices = NoticeStore()
        self.telling = Notices(self.notices, PreferenceStore(), router=self.router, clock=clock)
        self.rules = Rules(RuleStore(), KeptEvents(), self.telling, max_rules=3, clock=clock, new_id=new_id)
        self.clicks = Clicks("x" * 32, "https://openbell.example/", "/app/alerts/{id}")
        self.engagement = Engagement(EngagementStore(), self.clicks, clock)
        common: dict[str, Any] = {"router": self.router, "targets": self.targets, "clicks": self.clicks, "clock": clock}
        deliveries = [
            Delivery("discord", self.discord, self.store, self.notices, self.door, **common),
            Delivery("email", self.email, self.store, self.notices, self.door, **common),
            Delivery("webhook", self.webhook, self.store, self.notices, self.door, **common),
        ]
        asking = Confirmation(
            self.email,
            self.confirmations,
            self.door,
            links=self.links,
            public_url="https://openbell.example/",
            clock=clock,
        )
        self.asking = Worker(asking.work(), self.door, clock, draw=lambda: 0.5)
        notices = [
            NoticeDelivery("discord", self.discord, self.notices, self.store, self.door, **common),
            NoticeDelivery("email", self.email, self.notices, self.store, self.door, **common),
            NoticeDelivery("webhook", self.webhook, self.notices, self.store, self.door, **common),
        ]
        later = Bundling(self.router, self.notices).work(), Escalating(self.router).work()
        works = [*later, *(one.work(8) for one in deliveries), *(one.work() for one in notices)]
        self.workers = [Worker(work, self.door, clock, draw=lambda: 0.5) for work in works]

    def offer(self, options: Options, clock: Clock | None = None, wake: Callable[[], None] | None = None) -> None:
        """Begin anew with other options."""
        told, wake = clock or self.clock, wake or self._woken
        self.router = Router(DeliveryStore(), options.offered, wake=wake)
        self.alerts = Alerts(
            self.store,
            self.audience,
            options,
            router=self.router,
            kept=KeptEvents(),
            fans=FanOutStore(),
            clock=told,
            wake=wake,
        )
        self.channels = Channels(
            self.audience,
            self.confirmations,
            options,
            self.targets,
            links=self.links,
            clock=told,
            new_id=new_id,
            new_secret=lambda: f"whsec_{next(self._secrets)}",
            checks={},
            wake=wake,
        )

    def keyed(self, keys: str, slice_rows: int = 500, random_bytes: RandomBytes = os.urandom) -> Targets:
        """Return what seals and opens with other keys."""
        return Targets(
            TargetStore(slice_rows),
            Envelope(Keys(keys), random_bytes),
            self.door,
            clock=self.clock,
            new_id=new_id,
            random_bytes=random_bytes,
        )

    def _woken(self) -> None:
        self.wakes += 1

    async def handle(self, use_case: Callable[..., Any], event: Any) -> Sequence[Event]:
        async with self.database.transaction() as tx:
            return await use_case(event, tx)

    async def tell(self, *events: ActivityDetected) -> Sequence[Event]:
        return await self.handle(self.alerts.raise_alerts, events)

    async def user(self, *symbols: str, settings: dict[str, Any] | None = None) -> UUID:
        user_id = uuid4()
        about: dict[str, Any] = {"id": uuid4(), "time": NOW, "user_id": user_id}
        signed_up = UserSignedUp(**about, email=f"{user_id.hex[:8]}@example.org", role="user")
        await self.handle(self.alerts.note_user, signed_up)
        if settings is not None:
            chosen: dict[str, Any] = {
                "alerts_enabled": True,
                "min_score": 60.0,
                "min_premium_usd": Decimal(0),
                "timezone": "UTC",
                **settings,
            }
            await self.handle(self.alerts.note_settings, UserSettingsChanged(**about, **chosen))
        for symbol in symbols:
            await self.handle(self.alerts.watch, StockAdded(**about, symbol=symbol))
        return user_id

    async def rule(self, user_id: UUID, rule: NewRule) -> Row:
        return await self.door.run(lambda tx: self.rules.add(ACTOR, user_id, rule, tx))

    async def channel(self, user_id: UUID, channel: Any = "discord", target: str | None = WEBHOOK) -> Row:
        """Set a channel; an address is confirmed at once, without its mail."""
        row = (await self.door.run(lambda tx: self.channels.set(ACTOR, user_id, channel, target, tx))).row
        if channel == "email":
            token = self.links.sign(Link(user_id, lane_of("email", row["target"])), self.clock())
            await self.door.run(lambda tx: self.channels.confirm(token, tx))
        return row

    async def ask(self) -> None:
        """Send the confirmation mails that are due."""
        await self.asking.turn()
        await self.asking.idle()

    async def deliver(self) -> None:
        for worker in self.workers:
            await worker.turn()
            await worker.idle()

    async def execute(self, statement: str) -> None:
        async with self.database.transaction() as tx:
            await tx.execute(text(statement))

    async def rows(self, table: str) -> list[Row]:
        async with self.database.read() as tx:
            return await tx.fetch(text(f"select * from {table}"))


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("alerts"), ManualClock(NOW))
