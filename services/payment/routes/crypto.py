"""Invoices paid on a chain. Users reach only their own.

What would surprise you: an order's amount and addresses are plain text here and judged by the service, so that what is
refused is audited as well.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.payment.domain.chains import Chain
from services.payment.domain.crypto import LOCK, in_units, next_for
from services.payment.service.audit import Actor, Audit
from services.payment.service.crypto import CryptoInvoices, Order, Shown
from shared.db import Row, Tx
from shared.http import Caller, Who, exchange_of
from shared.http.cursors import cursor_after, parse_cursor
from shared.idempotency import answer_once
from shared.identity import Identity
from shared.messaging.door import Done, Door

HttpRequest = Request[Any, Any, Any]

MOST_WRITTEN: Final = 40


class NewInvoice(BaseModel):
    """What to pay for, and with what. `amount_usd` guards against a changed price; `refund_address` is yours."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(max_length=64)
    chain: str = Field(max_length=64)
    asset: str = Field(max_length=64)
    amount_usd: Decimal | None = Field(default=None, allow_inf_nan=True)
    refund_address: str | None = Field(default=None, max_length=200)

    @field_validator("amount_usd", mode="before")
    @classmethod
    def _short(cls, number: object) -> object:
        if len(str(number)) > MOST_WRITTEN:
            raise ValueError(f"a number has at most {MOST_WRITTEN} characters")
        return number


class Told(BaseModel):
    """A transaction that pays the invoice."""

    model_config = ConfigDict(extra="forbid")

    transaction: str = Field(max_length=200)


class Assignment(BaseModel):
    """Whose a receipt is."""

    model_config = ConfigDict(extra="forbid")

    chain: str = Field(max_length=64)
    transaction: str = Field(max_length=200)
    index: int = Field(ge=-2, le=2**31 - 1)
    invoice_id: UUID


class AssetView(msgspec.Struct, frozen=True):
    """What can be paid with."""

    chain: str
    asset: str
    contract: str | None
    stable: bool
    lock_s: float


class ReceiptView(msgspec.Struct, frozen=True):
    """Something that came in. `index` is the log's or the output's; -1 the transaction's own value, -2 by balance."""

    transaction: str
    index: int
    amount: str
    status: str
    confirmations: int
    at: datetime


class ToldView(msgspec.Struct, frozen=True):
    """A transaction that you told of: waiting, found, not_ours (it pays us nothing) or not_found."""

    transaction: str
    result: str
    told_at: datetime


class StateView(msgspec.Struct, frozen=True):
    """A state that the invoice came into."""

    state: str
    at: datetime
    received: str


class InvoiceView(msgspec.Struct, frozen=True):
    """An invoice. Amounts are in units of the asset, exact; `actions` and `message` say what you may do now."""

    id: UUID
    plan: str
    state: str
    actions: tuple[str, ...]
    message: str
    price_usd: str
    chain: str
    asset: str
    contract: str | None
    address: str
    amount: str
    exact: bool
    pay_uri: str | None
    rate_usd: str
    rate_source: str
    received: str
    missing: str
    confirmations_needed: int
    refund_address: str | None
    renews: UUID | None
    paid_until: datetime | None
    problem: str | None
    created_at: datetime
    expires_at: datetime
    receipts: list[ReceiptView]
    told: list[ToldView]
    history: list[StateView]


class InvoicesPage(msgspec.Struct, frozen=True):
    """Some of your invoices, newest first, without their details. `next` is the `before` of the next page."""

    invoices: list[InvoiceView]
    next: str | None


class StrayView(msgspec.Struct, frozen=True):
    """Something that came in and pays no invoice."""

    chain: str
    transaction: str
    index: int
    asset: str
    address: str
    base_units: str
    sender: str | None
    status: str
    at: datetime


def handlers(invoices: CryptoInvoices, audit: Audit, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""
    return [*_invoice_routes(invoices, audit, door), *_admin_routes(invoices, audit, door)]


def _invoice_routes(invoices: CryptoInvoices, audit: Audit, door: Door) -> list[HTTPRouteHandler]:
    @get("/pay/crypto/assets", caller=Caller.USER)
    async def list_assets() -> list[AssetView]:
        """Return what can be paid with; nothing when crypto is not offered."""
        return [
            AssetView(chain.name, asset.symbol, asset.contract, asset.stable, LOCK.total_seconds())
            for chain in invoices.chains.values()
            for asset in chain.assets
        ]

    @post("/pay/crypto/invoices", caller=Caller.USER)
    async def create_invoice(request: HttpRequest, identity: Who, data: JSONBody[NewInvoice]) -> Response[bytes]:
        """Make an invoice for a plan, at a rate that holds for 15 minutes. An Idempotency-Key makes it once."""
        actor = _actor(request, identity)
        asked = {"plan": data.plan, "chain": data.chain, "asset": data.asset, "amount_usd": str(data.amount_usd)}
        async with audit.refusals(actor, "create.crypto_invoice", **asked):
            order = Order(data.plan, data.chain, data.asset, data.amount_usd, data.refund_address)
            quote = await invoices.quote(order)
            use_case = _showing(invoices, lambda tx: invoices.create(actor, quote, tx))
            return await answer_once(request, door, use_case)

    @get("/pay/crypto/invoices", caller=Caller.USER)
    async def list_invoices(
        identity: Who,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        before: Annotated[str | None, QueryParameter(max_length=100)] = None,
    ) -> InvoicesPage:
        """Return your invoices, newest first."""
        cursor = parse_cursor(before)
        async with door.read() as tx:
            rows = await invoices.page(tx, identity.user_id, limit + 1, cursor)
        page = rows[:limit]
        more = cursor_after(page[-1]["created_at"], page[-1]["id"]) if len(rows) > limit else None
        now = invoices.now()
        return InvoicesPage([_view(Shown(row, [], [], [], 0), invoices.chains, now) for row in page], more)

    @get("/pay/crypto/invoices/{invoice_id:uuid}", caller=Caller.USER)
    async def show_invoice(identity: Who, invoice_id: FromPath[UUID]) -> InvoiceView:
        """Return one of your invoices, what came in for it, and what you may do now."""
        async with door.read() as tx:
            shown = await invoices.shown(tx, await invoices.of(tx, identity.user_id, invoice_id))
        return _view(shown, invoices.chains, invoices.now())

    @post("/pay/crypto/invoices/{invoice_id:uuid}/transaction", caller=Caller.USER, status_code=202)
    async def tell_transaction(
        request: HttpRequest, identity: Who, invoice_id: FromPath[UUID], data: JSONBody[Told]
    ) -> Response[bytes]:
        """Tell of a transaction that pays the invoice. It is looked for within a minute; payments are found without."""
        actor = _actor(request, identity)

        async def tell(tx: Tx) -> Done[Row]:
            row = await invoices.of(tx, identity.user_id, invoice_id)
            return Done(row, (await invoices.tell(actor, row, data.transaction, tx)).events)

        details = {"invoice_id": str(invoice_id), "transaction": data.transaction}
        async with audit.refusals(actor, "tell.crypto_transaction", **details):
            return await answer_once(request, door, _showing(invoices, tell), status_code=202)

    return [list_assets, create_invoice, list_invoices, show_invoice, tell_transaction]


def _admin_routes(invoices: CryptoInvoices, audit: Audit, door: Door) -> list[HTTPRouteHandler]:
    @get("/pay/crypto/unmatched", caller=Caller.ADMIN)
    async def list_unmatched(limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100) -> list[StrayView]:
        """Return what came in and pays no invoice, newest first."""
        async with door.read() as tx:
            return [_stray(row) for row in await invoices.unmatched(tx, limit)]

    @post("/pay/crypto/unmatched/assign", caller=Caller.ADMIN, status_code=200)
    async def assign(request: HttpRequest, identity: Who, data: JSONBody[Assignment]) -> Response[bytes]:
        """Make something that came in an invoice's; within a minute the invoice is what it is then."""
        actor = _actor(request, identity)
        key = (data.chain, data.transaction, data.index)
        async with audit.refusals(actor, "assign.crypto_receipt", invoice_id=str(data.invoice_id)):
            use_case = _showing(invoices, lambda tx: invoices.assign(actor, key, data.invoice_id, tx))
            return await answer_once(request, door, use_case, status_code=200)

    return [list_unmatched, assign]


def _showing(
    invoices: CryptoInvoices, use_case: Callable[[Tx], Awaitable[Done[Row]]]
) -> Callable[[Tx], Awaitable[Done[InvoiceView]]]:
    """Return the use case with the invoice as people see it for an answer."""

    async def shown(tx: Tx) -> Done[InvoiceView]:
        done = await use_case(tx)
        view = _view(await invoices.shown(tx, done.value), invoices.chains, invoices.now())
        return Done(view, done.events)

    return shown


def _actor(request: HttpRequest, identity: Identity) -> Actor:
    return Actor(identity.user_id, exchange_of(request.scope).request_id)


def _view(shown: Shown, chains: Mapping[str, Chain], now: datetime) -> InvoiceView:
    row = shown.row
    decimals: int = row["decimals"]
    state = "expired" if row["state"] == "new" and now >= row["expires_at"] else row["state"]
    granted = row["granted_until"] is not None
    expired = now >= row["expires_at"]
    following = next_for(state, granted=granted, expired=expired, shared=row["shared"], held=row["held"])

    def units(amount: int | Decimal) -> str:
        return f"{in_units(int(amount), decimals):f}"

    missing = max(int(row["amount"]) - int(row["received"]), 0)
    chain = chains.get(row["chain"])
    asset = chain.asset(row["asset"]) if chain else None
    return InvoiceView(
        id=row["id"],
        plan=row["plan"],
        state=state,
        actions=following.actions,
        message=following.message,
        price_usd=str(row["price_usd"]),
        chain=row["chain"],
        asset=row["asset"],
        contract=asset.contract if asset else None,
        address=row["address"],
        amount=units(row["amount"]),
        exact=row["shared"],
        pay_uri=chain.pay_uri(row["asset"], row["address"], missing) if chain and missing else None,
        rate_usd=str(row["rate_usd"]),
        rate_source=row["rate_source"],
        received=units(row["received"]),
        missing=units(missing),
        confirmations_needed=row["confirmations"],
        refund_address=row["refund_address"],
        renews=row["renews"],
        paid_until=row["granted_until"],
        problem=row["problem"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        receipts=[
            ReceiptView(
                transaction=one["tx"],
                index=one["idx"],
                amount=units(one["amount"]),
                status=one["status"],
                confirmations=max(shown.head - one["block_number"] + 1, 0) if one["status"] == "mined" else 0,
                at=one["at"],
            )
            for one in shown.receipts
        ],
        told=[ToldView(one["tx"], one["result"], one["told_at"]) for one in shown.told],
        history=[StateView(one["state"], one["at"], units(one["received"])) for one in shown.history],
    )


def _stray(row: Row) -> StrayView:
    return StrayView(
        chain=row["chain"],
        transaction=row["tx"],
        index=row["idx"],
        asset=row["asset"],
        address=row["address"],
        base_units=str(int(row["amount"])),
        sender=row["sender"],
        status=row["status"],
        at=row["at"],
    )
