"""Invoices paid on a chain: made, shown, and the transactions that customers tell of.

What would surprise you: telling of a transaction gives nobody anything. It is looked for at once, and pays the invoice
that its address and amount belong to, whoever told of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from services.payment.domain.chains import Asset, Chain
from services.payment.domain.crypto import HOLD, LOCK, base_units, free_amount
from services.payment.domain.plans import Plan, Plans
from services.payment.ports import NotConfigured, Rate, Rates, RateUnavailable
from services.payment.service.audit import Actor, Audit
from services.payment.service.settlement import Settlement
from services.payment.service.subscriptions import AlreadySubscribed
from services.payment.store.crypto import CryptoStore
from services.payment.store.receipts import ReceiptStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock, NewId
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound, RateLimited, Transient
from shared.messaging.door import Done

MOST_OPEN: Final = 3
MOST_HELD: Final = 5
"""Of one user's invoices that gave nothing: each keeps an address, or an amount, from everybody else for a week."""
MOST_TOLD: Final = 20
"""For one invoice."""
MOST_WAITING: Final = 5
"""Transactions that one user has looked for at a time."""
STALE: Final = timedelta(minutes=5)
LEAST_RATE: Final = Decimal("1e-9")
HIGHEST_RATE: Final = Decimal("1e9")


class UnknownChain(Invalid):
    """This chain is not offered."""

    code = "UNKNOWN_CHAIN"


class UnknownCurrency(Invalid):
    """This chain is not offered with this currency."""

    code = "UNKNOWN_CURRENCY"


class AmountRefused(Invalid):
    """The amount is not the price of the plan."""

    code = "AMOUNT_REFUSED"


class AddressRefused(Invalid):
    """This is not an address of the chain."""

    code = "ADDRESS_REFUSED"


class TransactionRefused(Invalid):
    """This is not the id of a transaction of the chain."""

    code = "TRANSACTION_REFUSED"


class TooManyInvoices(Conflict):
    """You have several open invoices: pay one of them, or wait until they expire."""

    code = "TOO_MANY_INVOICES"


class ChainUnavailable(Transient):
    """This chain cannot be read at the moment; try again in a minute."""

    code = "CHAIN_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Order:
    """What a customer asks for. `amount_usd` is the price they believe in, `refund_address` is theirs."""

    plan: str
    chain: str
    asset: str
    amount_usd: Decimal | None = None
    refund_address: str | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """An order that can be carried out, at a rate."""

    plan: Plan
    chain: Chain
    asset: Asset
    rate: Rate
    refund_address: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """An invoice with all that is known of it."""

    row: Row
    receipts: list[Row]
    told: list[Row]
    history: list[Row]
    head: int


class CryptoInvoices:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        chains: Mapping[str, Chain],
        store: CryptoStore,
        receipts: ReceiptStore,
        subscriptions: SubscriptionStore,
        *,
        plans: Plans,
        rates: Rates,
        depeg_limit: Decimal | None,
        settlement: Settlement,
        audit: Audit,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self.chains = chains
        self._store = store
        self._receipts = receipts
        self._subscriptions = subscriptions
        self._plans = plans
        self._rates = rates
        self._depeg_limit = depeg_limit
        self._settlement = settlement
        self._audit = audit
        self._clock = clock
        self._new_id = new_id

    def now(self) -> datetime:
        """Return the time."""
        return self._clock()

    async def quote(self, order: Order) -> Quote:
        """Check an order and ask for the rate; outside any transaction. Raises what is wrong with the order."""
        if not self.chains:
            raise NotConfigured("nothing can be paid for by crypto here")
        plan = self._plans.named(order.plan)
        chain = self.chains.get(order.chain)
        if chain is None:
            raise UnknownChain(chain=order.chain, chains=sorted(self.chains))
        asset = chain.asset(order.asset)
        if asset is None:
            known = sorted(asset.symbol for asset in chain.assets)
            raise UnknownCurrency(asset=order.asset, chain=chain.name, assets=known)
        asked = order.amount_usd
        if asked is not None and (
            not asked.is_finite() or asked != plan.price_usd
        ):  # a signalling NaN cannot be compared
            raise AmountRefused(price_usd=str(plan.price_usd), plan=plan.name)
        if order.refund_address is not None and (problem := chain.address_problem(order.refund_address)):
            raise AddressRefused(problem, chain=chain.name)
        rate = await self.rate(asset)
        return Quote(plan, chain, asset, rate, order.refund_address)

    async def rate(self, asset: Asset) -> Rate:
        """Return what an asset is worth: a stablecoin one USD, unless it has lost its peg. Raises RateUnavailable."""
        if asset.stable and self._depeg_limit is None:
            return Rate(Decimal(1), "stable", self._clock())
        rate = await self._rates.rate(asset.symbol)
        if not LEAST_RATE <= rate.usd <= HIGHEST_RATE:
            raise RateUnavailable(asset=asset.symbol)
        if not asset.stable:
            return rate
        if self._depeg_limit is not None and abs(rate.usd - 1) > self._depeg_limit:
            raise RateUnavailable("this stablecoin is not worth one USD at the moment", asset=asset.symbol)
        return Rate(Decimal(1), "stable", rate.at)

    async def create(self, actor: Actor, quote: Quote, tx: Tx) -> Done[Row]:
        """Make an invoice. Raises AlreadySubscribed, TooManyInvoices, RateLimited, ChainUnavailable."""
        now = self._clock()
        user_id, chain, asset = actor.user_id, quote.chain, quote.asset
        await self._subscriptions.lock_user(tx, user_id)
        renews = await self._renews(tx, user_id, quote.plan)
        await self._bounded(tx, user_id, now)
        position = await self._store.position(tx, chain.name)
        if position is None or position["problem"] is not None or position["read_at"] < now - STALE:
            raise ChainUnavailable(retry_after_s=30.0, chain=chain.name)
        await self._store.lock_chain(tx, chain.name)
        amount = base_units(quote.plan.price_usd, quote.rate.usd, asset)
        address, amount = await self._place(tx, chain, asset, amount)
        invoice: dict[str, Any] = {
            "id": self._new_id(),
            "user_id": user_id,
            "plan": quote.plan.name,
            "renews": renews,
            "price_usd": quote.plan.price_usd,
            "chain": chain.name,
            "asset": asset.symbol,
            "decimals": asset.decimals,
            "address": address,
            "shared": address == chain.shared_address,
            "amount": amount,
            "rate_usd": quote.rate.usd,
            "rate_source": quote.rate.source,
            "rate_at": quote.rate.at,
            "confirmations": chain.confirmations_for(quote.plan.price_usd),
            "refund_address": quote.refund_address,
            "held_until": now + LOCK + HOLD,
            "expires_at": now + LOCK,
            "now": now,
        }
        row = await self._store.add(tx, invoice)
        told = {"plan": quote.plan.name, "chain": chain.name, "asset": asset.symbol, "amount": str(amount)}
        return Done(row, [self._audit.of(actor, "create.crypto_invoice", str(row["id"]), **told)])

    async def tell(self, actor: Actor, invoice: Row, transaction: str, tx: Tx) -> Done[None]:
        """Note a transaction to be looked for. Raises TransactionRefused, NotConfigured, Conflict."""
        chain = self.chains.get(invoice["chain"])
        if chain is None:
            raise NotConfigured("this chain is not offered any more", chain=invoice["chain"])
        written = chain.transaction(transaction)
        if written is None:
            raise TransactionRefused(chain=chain.name)
        if not invoice["held"]:
            raise Conflict("this invoice is too old to look for its payment; write to support")
        if await self._store.waiting_of(tx, invoice["user_id"], written) >= MOST_WAITING:
            raise Conflict("several transactions of yours are being looked for; wait until that has ended")
        if len(await self._store.told_of(tx, invoice["id"])) >= MOST_TOLD:
            raise Conflict("you have told of too many transactions for this invoice; write to support")
        await self._store.tell(tx, chain.name, written, invoice["id"], self._clock())
        return Done(None, [self._audit.of(actor, "tell.crypto_transaction", str(invoice["id"]), transaction=written)])

    async def of(self, tx: Tx, user_id: UUID, invoice_id: UUID) -> Row:
        """Return a user's own invoice; raises NotFound also for somebody else's."""
        row = await self._store.get(tx, invoice_id)
        if row is None or row["user_id"] != user_id:
            raise NotFound("you have no such invoice")
        return row

    async def shown(self, tx: Tx, row: Row) -> Shown:
        """Return an invoice with its receipts, what was told and the states it was in."""
        position = await self._store.position(tx, row["chain"])
        return Shown(
            row,
            await self._receipts.shown(tx, row["id"]),
            await self._store.told_of(tx, row["id"]),
            await self._store.history(tx, row["id"]),
            position["head"] if position else 0,
        )

    async def page(self, tx: Tx, user_id: UUID, most: int, before: tuple[datetime, UUID] | None) -> list[Row]:
        """Return a user's invoices, newest first."""
        return await self._store.page(tx, user_id, most, before)

    async def unmatched(self, tx: Tx, most: int) -> list[Row]:
        """Return receipts that pay no invoice, newest first."""
        return await self._receipts.unmatched(tx, most)

    async def assign(self, actor: Actor, key: tuple[str, str, int], invoice_id: UUID, tx: Tx) -> Done[Row]:
        """Make an unmatched receipt an invoice's, for a person has found out whose it is. Raises NotFound, Conflict."""
        receipt = await self._receipts.one(tx, *key)
        invoice = await self._store.get(tx, invoice_id)
        if receipt is None or invoice is None:
            raise NotFound("there is no such receipt" if receipt is None else "there is no such invoice")
        if receipt["invoice_id"] is not None:
            raise Conflict("this receipt is an invoice's already", invoice_id=receipt["invoice_id"])
        if (receipt["chain"], receipt["asset"]) != (invoice["chain"], invoice["asset"]):
            raise Conflict("the invoice asks for another asset or chain")
        events = await self._settlement.unbook(tx, receipt, invoice["decimals"])
        await self._receipts.assign(tx, receipt, invoice_id)
        details = {"chain": key[0], "transaction": key[1], "index": key[2]}
        return Done(invoice, [*events, self._audit.of(actor, "assign.crypto_receipt", str(invoice_id), **details)])

    async def _renews(self, tx: Tx, user_id: UUID, plan: Plan) -> UUID | None:
        """Return the subscription that an invoice would extend; raises AlreadySubscribed for any other one."""
        row = await self._subscriptions.open(tx, user_id)
        if row is None:
            return None
        if (row["provider"], row["plan"]) != ("crypto", plan.name):
            raise AlreadySubscribed(provider=row["provider"], plan=row["plan"])
        return row["id"]

    async def _bounded(self, tx: Tx, user_id: UUID, now: datetime) -> None:
        counts = await self._store.counts(tx, user_id, now)
        if counts["open"] >= MOST_OPEN:
            raise TooManyInvoices
        if counts["held"] >= MOST_HELD:
            wait = max((counts["free_at"] - now).total_seconds(), 1.0)
            raise RateLimited("several of your invoices were not paid and still hold an address", retry_after_s=wait)

    async def _place(self, tx: Tx, chain: Chain, asset: Asset, amount: int) -> tuple[str, int]:
        """Return an address of the invoice's own, or the shared one with an amount of its own."""
        held = await self._store.held_addresses(tx, chain.name)
        for address in chain.addresses:
            if address not in held:
                return address, amount
        if chain.shared_address is not None:
            taken = await self._store.taken_amounts(tx, chain.name, chain.shared_address, asset.symbol)
            exact = free_amount(amount, asset.step, taken)
            if exact is not None:
                return chain.shared_address, exact
        raise ChainUnavailable("all addresses of this chain are in use", retry_after_s=900.0, chain=chain.name)
