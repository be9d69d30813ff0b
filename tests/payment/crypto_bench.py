"""Payment by crypto on a real database, wired as main does, with a ledger that remembers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from services.payment.adapters.rates import FixedRates
from services.payment.domain.chains import Chain
from services.payment.domain.plans import Plan, Plans
from services.payment.ports import ChainReader
from services.payment.service.audit import Actor, Audit
from services.payment.service.catalogue import Catalogue
from services.payment.service.crypto import CryptoInvoices, Order
from services.payment.service.crypto_watch import CryptoWatch
from services.payment.service.settlement import CryptoMovement, Settlement
from services.payment.service.subscriptions import Subscriptions
from services.payment.store.crypto import CryptoStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.receipts import ReceiptStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import new_id
from shared.contracts.base import Event
from shared.db import Database, Row, Tx
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from tests.conftest import ManualClock

PRO = Plan(name="pro", title="Pro", price_usd=Decimal(29), entitlements=("pro",))
TEAM = Plan(name="team", title="Team", price_usd=Decimal(99), entitlements=("pro", "team"), period="year")


@dataclass
class Bench:
    """Invoices over some chains, and a watch for each."""

    database: Database
    clock: ManualClock
    chains: Sequence[tuple[Chain, ChainReader]]
    usd: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    depeg_limit: Decimal | None = None
    booked: list[CryptoMovement] = field(default_factory=list[CryptoMovement])

    def __post_init__(self) -> None:
        self.door = Door(self.database, Outbox("payment", lambda: None))
        store, receipts, self.subscription_store = CryptoStore(), ReceiptStore(), SubscriptionStore()
        self.plans = plans = Plans([PRO, TEAM])
        self.subscriptions = Subscriptions(
            self.subscription_store, Catalogue(plans, MirrorStore()), clock=self.clock, new_id=new_id
        )
        settlement = Settlement(
            store,
            receipts,
            self.subscription_store,
            subscriptions=self.subscriptions,
            plans=plans,
            clock=self.clock,
            receipt=self._book,
        )
        self.rates = FixedRates(self.usd, self.clock)
        self.invoices = CryptoInvoices(
            {chain.name: chain for chain, _ in self.chains},
            store,
            receipts,
            self.subscription_store,
            plans=plans,
            rates=self.rates,
            depeg_limit=self.depeg_limit,
            settlement=settlement,
            audit=Audit(self.door, clock=self.clock, new_id=new_id),
            clock=self.clock,
            new_id=new_id,
        )
        self.watches = [
            CryptoWatch(
                chain,
                reader,
                store,
                receipts,
                invoices=self.invoices,
                settlement=settlement,
                door=self.door,
                clock=self.clock,
            )
            for chain, reader in self.chains
        ]

    async def _book(self, tx: Tx, movement: CryptoMovement) -> Sequence[Event]:
        del tx
        self.booked.append(movement)
        return ()

    async def round(self) -> None:
        for watch in self.watches:
            await watch.round()

    async def close(self) -> None:
        for watch in self.watches:
            await watch.close()

    async def invoice(self, asset: str, *, user: UUID | None = None, plan: str = "pro", chain: str = "") -> Row:
        order = Order(plan, chain or self.chains[0][0].name, asset)
        quote = await self.invoices.quote(order)
        actor = Actor(user or uuid4())
        return await self.door.run(lambda tx: self.invoices.create(actor, quote, tx))

    async def tell(self, invoice: Row, transaction: str) -> None:
        actor = Actor(invoice["user_id"])
        await self.door.run(lambda tx: self.invoices.tell(actor, invoice, transaction, tx))

    async def state(self, invoice: Row) -> str:
        return (await self.get(invoice))["state"]

    async def get(self, invoice: Row) -> Row:
        return (await self.rows("select * from crypto_invoices where id = $1", invoice["id"]))[0]

    async def subscription(self, user: UUID) -> Row | None:
        async with self.database.read() as tx:
            return await self.subscription_store.latest(tx, user)

    async def history(self, invoice: Row) -> list[str]:
        rows = await self.rows("select state from crypto_history where invoice_id = $1 order by id", invoice["id"])
        return [row["state"] for row in rows]

    async def told(self, topic: str) -> list[dict[str, Any]]:
        rows = await self.rows("select value from outbox where topic = $1 order by id", topic)
        return [json.loads(row["value"]) for row in rows]

    async def rows(self, statement: str, *args: Any) -> list[Row]:
        async with self.database.read() as tx:
            return await tx.connection.fetch(statement, *args)

    async def execute(self, statement: str) -> None:
        async with self.database.transaction() as tx:
            await tx.execute(text(statement))

    def books(self) -> dict[str, Decimal]:
        """What the ledger holds of each asset."""
        held: dict[str, Decimal] = {}
        for one in self.booked:
            sign = 1 if one.kind == "received" else -1
            held[one.asset] = held.get(one.asset, Decimal(0)) + sign * one.amount
        return held
