"""Crypto exchanges through ccxt, spot only: a venue for each of them, `ccxt-kraken`, `ccxt-binance` and so on.

Everything that is told comes from REST, the stream's news (ccxt_stream.py) as well.

An account's money is in one currency (`currency`), and only pairs quoted in it are traded: a cross such as ETH/BTC
would move a second position that no order of ours names.

What would surprise you: ccxt (90 MB, some seconds) is imported when an account is opened or capabilities are asked for.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Final
from uuid import UUID, uuid5

from services.broker.adapters import ccxt_exchanges as exchanges
from services.broker.adapters.ccxt_line import Line
from services.broker.adapters.ccxt_stream import Stream
from services.broker.adapters.ccxt_wire import (
    Declined,
    Form,
    Missing,
    Raw,
    answered,
    client,
    execution,
    fees_of,
    number,
    read_id,
    report,
    rules_of,
    time_of,
    written,
)
from services.broker.adapters.guard import OPEN_S, Guard
from services.broker.domain.checks import Capabilities, TradeRules
from services.broker.domain.instruments import Crypto, Instrument
from services.broker.domain.orders import Fill, Order, Report
from services.broker.domain.positions import PositionFact
from services.broker.domain.risk import Quote
from services.broker.ports import Account, Balance, Changes, Held, Update, VenueRefused
from shared.errors import Transient

_OVERLAP: Final = timedelta(seconds=60)
_AGE: Final = timedelta(days=7)
"""How far back an order is looked for whose id does not tell its age."""
_TIME_ORDERED: Final = 7


class Ccxt:
    """A kind of venue: an exchange of ccxt's by its id. `config` is merged into ccxt's own (proxies, addresses)."""

    def __init__(
        self,
        exchange_id: str,
        *,
        config: Mapping[str, Any] | None = None,
        currency: str | None = None,
        poll_s: float = 5.0,
        open_s: float = OPEN_S,
    ) -> None:
        self.name = f"ccxt-{exchange_id}"
        self._exchange_id = exchange_id
        self._config = dict(config or {})
        self._currency = currency
        self._poll_s = poll_s
        modes, answers = ("paper", "live"), (Declined, Missing)
        self._guards = {mode: Guard(f"{self.name}-{mode}", open_s=open_s, answers=answers) for mode in modes}

    @property
    def capabilities(self) -> Capabilities:
        """What the exchange takes. Raises VenueRefused for one that cannot be traded through ccxt without doubt."""
        return self._capabilities

    @property
    def secrets(self) -> frozenset[str]:
        """What the exchange wants, by ccxt's names: apiKey and secret nearly everywhere, password at some."""
        return self._secrets

    @cached_property
    def _capabilities(self) -> Capabilities:
        return exchanges.capabilities(self.name, client(self._exchange_id, self._config))

    @cached_property
    def _secrets(self) -> frozenset[str]:
        wanted: Mapping[str, bool] = client(self._exchange_id, self._config).requiredCredentials
        return frozenset(name for name, needed in wanted.items() if needed)

    def open(self, account: Account, secrets: Mapping[str, str]) -> "CcxtVenue":
        """Return an account's venue. Paper is the exchange's own sandbox; where it has none, VenueRefused."""
        if set(secrets) != set(self.secrets) or not all(secrets.values()):
            raise VenueRefused(f"{self.name} wants exactly {', '.join(sorted(self.secrets))}")
        capabilities = self.capabilities
        exchange = client(self._exchange_id, {**self._config, **secrets})
        if account.mode != "live":
            exchanges.sandbox(exchange)
        exchanges.prepare(exchange)
        guard = self._guards["live" if account.mode == "live" else "paper"]
        return CcxtVenue(exchange, account, capabilities, guard, currency=self._currency, poll_s=self._poll_s)


class CcxtVenue:
    """One account at one exchange."""

    def __init__(
        self,
        exchange: Any,
        account: Account,
        capabilities: Capabilities,
        guard: Guard,
        *,
        currency: str | None,
        poll_s: float,
    ) -> None:
        self.capabilities = capabilities
        self.knows_ids = exchange.id in exchanges.KNOWS_IDS
        self.exchange = exchange
        self._account = account
        self._line = Line(exchange, currency, guard)
        self._stream = Stream(exchange, self._orders, poll_s)
        self._form: Form = exchanges.FORMS.get(exchange.id, "canonical")
        self._working: dict[str, str] = {}  # orders that worked when they were last told of: their symbols by venue id
        self._symbols: set[str] = set()  # what was traded or held, for exchanges that answer by symbol only

    # What is asked of the exchange

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        """Return the steps of pairs in our currency."""
        await self._line.ready()
        found: dict[str, TradeRules] = {}
        for one in instruments:
            market = self._line.market(one)
            if market is not None and (rules := rules_of(market, self.exchange.precisionMode)) is not None:
                found[one.key] = rules
        return found

    async def quotes(self, instruments: Collection[Instrument]) -> Mapping[str, Quote]:
        """Return bid and ask of pairs in our currency, as of the moment when they were asked for."""
        await self._line.ready()
        found: dict[str, Quote] = {}
        for one in instruments:
            if (market := self._line.market(one)) is not None:
                asked = datetime.now(UTC)
                ticker: Raw = await self._line.read("fetch_ticker", market["symbol"])
                bid, ask = number(ticker.get("bid")), number(ticker.get("ask"))
                if bid is not None and ask is not None and 0 < bid <= ask:
                    found[one.key] = Quote(bid, ask, asked)
        return found

    async def submit(self, order: Order) -> Report:
        """Place an order. That a repetition is refused proves nothing of the first: OutcomeUnknown."""
        await self._line.ready()
        leg = order.terms.legs[0]
        market = self._line.market(leg.instrument)
        if market is None:
            return Report("rejected", reason=f"{self.exchange.id} does not trade {leg.instrument.key} for us")
        try:
            method, arguments = exchanges.request(self.exchange, order.terms, written(order.id, self._form))
            raw = await self._line.write(method, *arguments)
        except Declined as error:
            if order.submits > 1:
                raise exchanges.in_doubt(self.exchange) from None
            return Report("rejected", reason=str(error))
        except Missing:
            raise exchanges.in_doubt(self.exchange) from None
        if raw.get("id") is None:  # of an answer that is none, ccxt makes an order in which nothing is
            raise exchanges.in_doubt(self.exchange)
        self._note(raw, market["symbol"])
        self._stream.wake()
        return answered(raw, market)

    async def cancel(self, order: Order) -> Report | None:
        """Ask for the end of an order; None, for its end comes by the stream or a look-up."""
        await self._line.ready()
        symbol = order.terms.legs[0].instrument.key
        try:
            venue_id, params = await self._name_of(order)
            await self._line.write("cancel_order", venue_id, symbol, params)
        except (Declined, Missing) as error:
            found = await self.look_up(order)
            return replace(found, kind="cancel_rejected", reason=str(error)) if found.kind == "accepted" else found
        self._stream.wake()
        return None

    async def replace(self, order: Order, by: Order) -> Report | None:
        """Refuse: exchanges change orders in ways that differ, and few of them under a new id of ours."""
        del order, by
        return Report("replace_rejected", reason="an exchange's order is not replaced: cancel it and place another")

    async def look_up(self, order: Order) -> Report:
        """Return how the order stands."""
        await self._line.ready()
        symbol = order.terms.legs[0].instrument.key
        raw = await self._find(order, symbol)
        if raw is None:
            return Report("not_found", looked_up=True)
        return replace(await self._told(raw), looked_up=True)

    async def changes(self, since: datetime) -> Changes:
        """Return what happened, orders that somebody placed elsewhere included, as fills."""
        await self._line.ready()
        start = self._line.milliseconds(since - _OVERLAP)
        orders = {str(one["id"]): one for one in await self._listed(start)}
        trades: dict[str, list[Raw]] = {}
        for one in await self._all("fetch_my_trades", "fetchMyTrades", start):
            if one.get("order"):
                trades.setdefault(str(one["order"]), []).append(one)
        named = {venue_id: found[0]["symbol"] for venue_id, found in trades.items()} | self._working
        for venue_id, symbol in named.items():
            if venue_id not in orders:
                with suppress(Missing):
                    orders[venue_id] = await self._line.read("fetch_order", venue_id, symbol)
        updates: list[Update] = []
        facts: list[PositionFact] = []
        for venue_id, raw in orders.items():
            self._note(raw, raw["symbol"])
            known = trades.get(venue_id, [])
            if self._line.market(raw["symbol"]) is None:
                continue
            if (order_id := read_id(raw.get("clientOrderId"))) is not None:
                updates.append(Update(order_id, replace(await self._told(raw, known), looked_up=True)))
            else:
                facts += [self._elsewhere(one, venue_id) for one in known]
            facts += [fact for one in known for fact in self._other_fees(one, venue_id)]
        return Changes(updates, facts)

    async def positions(self) -> Sequence[Held]:
        """Return every coin that is held but our currency, as a pair with it."""
        await self._line.ready()
        total: Raw = (await self._line.read("fetch_balance")).get("total") or {}
        held = {coin: number(amount) for coin, amount in total.items() if coin != self._line.currency}
        return [Held(Crypto(coin, self._line.currency), quantity) for coin, quantity in held.items() if quantity]

    async def balance(self) -> Balance:
        """Return the money; what open orders hold is cash, and no buying power."""
        await self._line.ready()
        told: Raw = await self._line.read("fetch_balance")
        of: Raw = told.get(self._line.currency) or {}
        free, total = number(of.get("free")) or Decimal(0), number(of.get("total")) or Decimal(0)
        return Balance(total, free, self._line.currency)

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[Update]]:
        """Listen. What is as it was when the block began is not told."""
        return self._stream.open()

    async def close(self) -> None:
        """Close the connections; another question opens new ones."""
        await self.exchange.close()

    async def _orders(self, since: datetime) -> Sequence[Update]:
        return (await self.changes(since)).orders

    # Orders

    async def _find(self, order: Order, symbol: str) -> Raw | None:
        """Return an order as the exchange knows it; None only where it is certain that it does not."""
        if order.venue_order_id is not None:
            with suppress(Missing):
                return await self._line.read("fetch_order", order.venue_order_id, symbol)
        if self.exchange.id in exchanges.BY_OUR_ID:
            try:
                return await self._line.read(
                    "fetch_order", "", symbol, {"clientOrderId": written(order.id, self._form)}
                )
            except Missing:
                return None
        for raw in await self._listed(self._line.milliseconds(_age(order.id)), symbol):
            if read_id(raw.get("clientOrderId")) == order.id:
                return raw
        if not exchanges.lists_all(self.exchange):
            raise exchanges.in_doubt(self.exchange)
        return None

    async def _name_of(self, order: Order) -> tuple[str, dict[str, str]]:
        """Return how to name an order to the exchange. Raises Missing where it knows none."""
        if order.venue_order_id is not None:
            return order.venue_order_id, {}
        if self.exchange.id in exchanges.BY_OUR_ID:
            return "", {"clientOrderId": written(order.id, self._form)}
        raw = await self._find(order, order.terms.legs[0].instrument.key)
        if raw is None:
            raise Missing(f"{self.exchange.id} knows no such order")
        return str(raw["id"]), {}

    async def _told(self, raw: Raw, known: Sequence[Raw] = ()) -> Report:
        """Return a report with all executions; `known` are trades that were read already."""
        filled = number(raw.get("filled"))
        if filled and sum(number(one.get("amount")) or 0 for one in known) < filled:
            known = await self._trades_of(raw)
        market = self._line.market(raw["symbol"])
        if market is None:
            raise Transient(f"{self.exchange.id} told of an order in a market that it does not list")
        self._note(raw, raw["symbol"])
        return report(raw, known, market)

    async def _trades_of(self, raw: Raw) -> Sequence[Raw]:
        venue_id, symbol = str(raw["id"]), raw["symbol"]
        if self.exchange.has.get("fetchOrderTrades") is True:
            return await self._line.read("fetch_order_trades", venue_id, symbol)
        since = raw.get("timestamp")
        found = await self._line.pages(
            "fetch_my_trades", "fetchMyTrades", symbol, None if since is None else since - 1000
        )
        return [one for one in found if str(one.get("order")) == venue_id]

    async def _listed(self, start: int, symbol: str | None = None) -> list[Raw]:
        """Return the orders that work, and those created since then that have ended."""
        only = None if symbol is None else {symbol}
        found = await self._all("fetch_open_orders", "fetchOpenOrders", None, only)
        self._symbols |= {one["symbol"] for one in found}
        for method, name in exchanges.listings(self.exchange):
            found += await self._all(method, name, start, only)
        return list({str(one["id"]): one for one in found}.values())

    async def _all(self, method: str, name: str, start: int | None, only: set[str] | None = None) -> list[Raw]:
        """Return all of a listing, symbol by symbol where the exchange wants one."""
        if not exchanges.wants_symbol(self.exchange, name):
            return await self._line.pages(method, name, None, start)
        symbols = only or self._symbols | {one.instrument.key for one in await self.positions()}
        found: list[Raw] = []
        for symbol in sorted(symbols):
            if self._line.market(symbol) is not None:
                found += await self._line.pages(method, name, symbol, start)
        return found

    def _note(self, raw: Raw, symbol: str) -> None:
        self._symbols.add(symbol)
        if raw.get("status") in {"closed", "canceled", "expired", "rejected"}:
            self._working.pop(str(raw["id"]), None)
        else:
            self._working[str(raw["id"])] = symbol

    def _elsewhere(self, trade: Raw, venue_id: str) -> Fill:
        market: Raw = self.exchange.market(trade["symbol"])
        one = execution(trade, market)
        order_id = uuid5(self._account.id, f"{self.exchange.id}/{venue_id}")
        return Fill(
            f"{order_id}/0/{one.id}",
            order_id,
            Crypto(market["base"], market["quote"]),
            "buy" if trade["side"] == "buy" else "sell",
            one.quantity,
            one.price,
            one.at,
            one.fee,
            one.fee_quantity,
        )

    def _other_fees(self, trade: Raw, venue_id: str) -> list[Fill]:
        """Return fees in a third coin as what they are to its position: so much of it gone, for nothing."""
        market: Raw = self.exchange.market(trade["symbol"])
        at = time_of(trade.get("timestamp"))
        order_id = uuid5(self._account.id, f"{self.exchange.id}/{venue_id}/fees")
        return [
            Fill(
                f"{order_id}/{coin}/{trade['id']}",
                order_id,
                Crypto(coin, self._line.currency),
                "sell" if fee > 0 else "buy",
                abs(fee),
                Decimal(0),
                at,
            )
            for coin, fee in fees_of(trade).items()
            if coin not in {market["base"], market["quote"]} and at is not None
        ]


def _age(order_id: UUID) -> datetime:
    """Return the earliest moment at which an order of this id can have been placed."""
    if order_id.version == _TIME_ORDERED:
        return datetime.fromtimestamp((order_id.int >> 80) / 1000, UTC) - _OVERLAP
    return datetime.now(UTC) - _AGE
