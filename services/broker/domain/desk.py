"""The paper venue itself: accounts, their orders and what is held, moved by orders, quotes and the clock.

A desk holds what one transaction has loaded and locked, and notes what it changed. It does no I/O and has no clock: the
store loads a desk and writes it back. Orders meet a quote in the order in which they came.

What would surprise you: a stop that is jumped over by the market is filled where the market is, as anywhere, even if
that costs more than was held for it; cash may then be below zero, and nothing more is bought until it is not.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_UP, Decimal, localcontext
from random import Random
from typing import Final, Literal
from uuid import UUID

from services.broker.domain.checks import asset_class
from services.broker.domain.instruments import Crypto, Instrument, Option
from services.broker.domain.margin import Stock, collateral
from services.broker.domain.matching import EXACT, Book, Take, Working, fee, match, multiplier, net, net_limit
from services.broker.domain.orders import ZERO, Execution, Kind, Leg, Order, Report, Terms
from services.broker.domain.tickets import CAPABILITIES, TIMES, Frame, Holding, Purse, Rules, State, Ticket, venue_id

_HELD: Final = Decimal("1e-8")  # what is held for an order is rounded up to it


@dataclass(slots=True)
class Desk:
    """What is loaded of the venue. What was touched is written back; executions and frames are new ones."""

    rules: Rules
    books: dict[str, Book] = field(default_factory=dict[str, Book])
    purses: dict[UUID, Purse] = field(default_factory=dict[UUID, Purse])
    holdings: dict[tuple[UUID, str], dict[str, Holding]] = field(
        default_factory=dict[tuple[UUID, str], dict[str, Holding]]
    )  # by account and underlying, then by the instrument's key
    tickets: dict[UUID, Ticket] = field(default_factory=dict[UUID, Ticket])
    touched: set[UUID] = field(default_factory=set[UUID])  # tickets
    moved: set[tuple[UUID, str]] = field(default_factory=set[tuple[UUID, str]])  # holdings
    taken: set[str] = field(default_factory=set[str])  # books
    executions: list[tuple[UUID, Execution]] = field(default_factory=list[tuple[UUID, Execution]])
    frames: list[Frame] = field(default_factory=list[Frame])

    # Orders

    def submit(self, order: Order, now: datetime) -> Report | None:
        """Take an order, and return what the venue answers; None when it has seen the id."""
        if order.id in self.tickets:
            return None
        ticket = self._take(order, now)
        before = len(self.executions)
        if ticket.state == "accepted":
            self._tell(ticket, Report("accepted", venue_order_id=venue_id(ticket.id)))
            self._meet(ticket, now)
        done = tuple(execution for _, execution in self.executions[before:])
        kind: Kind = "filled" if ticket.state == "filled" else "rejected" if ticket.state == "rejected" else "accepted"
        return Report(kind, done, venue_order_id=venue_id(ticket.id), reason=ticket.reason)

    def cancel(self, order_id: UUID, now: datetime) -> Report | None:
        """Cancel an order that works; None when that takes effect later. One that is over is told by a look-up."""
        ticket = self.tickets[order_id]
        if self.rules.model.latency:
            ticket.ends_at = ticket.ends_at or now + self.rules.model.latency
            self._touch(ticket, now)
            return None
        return self.end(ticket, "canceled", now)

    def replace(self, order_id: UUID, by: Order, now: datetime) -> Report | None:
        """Put another order in the place of one that works; None when that takes effect later.

        `by` fills its own quantity, whatever the old one has filled by now; where more of that is filled meanwhile, it
        is not put in its place. The id of `by` is a new one.
        """
        latency, old = self.rules.model.latency, self.tickets[order_id]
        if latency:
            self.tickets[by.id] = ticket = self._ticket(by, now, state="pending", replaces=order_id)
            ticket.count = old.count
            self._touch(ticket, now)
            return None
        return self._swap(old, by, now)

    def quoted(self, symbols: Collection[str], now: datetime) -> None:
        """Let the loaded orders that name one of these instruments meet the books."""
        for ticket in sorted(self.tickets.values(), key=lambda one: (one.came_at, one.id)):
            if any(leg.instrument.key in symbols for leg in ticket.working.terms.legs):
                self._run(ticket, now)

    def tick(self, ticket: Ticket, now: datetime) -> None:
        """Do with an order what its time has come for."""
        self._touch(ticket, now)
        self._run(ticket, now)

    def _run(self, ticket: Ticket, now: datetime) -> None:
        if ticket.state == "pending" and ticket.works_at <= now:
            self._replace_late(ticket, now)
        elif ticket.state == "accepted":
            if ticket.ends_at is not None and ticket.ends_at <= now:
                self.end(ticket, "canceled", now)
            elif ticket.expires_at is not None and ticket.expires_at <= now:
                self.end(ticket, "expired", now)
            elif ticket.works_at <= now:
                self._meet(ticket, now)

    def end(
        self,
        ticket: Ticket,
        kind: Literal["canceled", "expired", "rejected", "replaced"],
        now: datetime,
        reason: str | None = None,
        replaced_by: UUID | None = None,
    ) -> Report:
        """End an order that works, give back what is held for it, and tell."""
        with localcontext(EXACT):
            self._hold(ticket, None)
        ticket.state, ticket.reason, ticket.replaced_by = kind, reason, replaced_by
        self._touch(ticket, now)
        report = Report(kind, reason=reason, replaced_by=replaced_by, venue_order_id=venue_id(ticket.id))
        self._tell(ticket, report)
        return report

    def move(self, account_id: UUID, of: Instrument, signed: Decimal, price: Decimal, charge: Decimal = ZERO) -> None:
        """Trade so much at a price: money, what is held, and what the shorts of the underlying tie up."""
        with localcontext(EXACT):
            purse, family = self.purses[account_id], self._family(account_id, of)
            before = collateral(one.stock for one in family.values())
            holding = self._holding(account_id, of)
            holding.stock = holding.stock.traded(signed, price)
            purse.cash -= signed * price * of.multiplier + charge
            purse.tied += collateral(one.stock for one in family.values()) - before

    # Inside

    def _take(self, order: Order, now: datetime, replaces: UUID | None = None) -> Ticket:
        ticket = self._ticket(order, now, replaces=replaces)
        self.tickets[order.id] = ticket
        self._touch(ticket, now)
        with localcontext(EXACT):
            ticket.reason = self._refusal(ticket, now)
            if ticket.reason is None:
                self._hold(ticket, ticket.working)
                return ticket
        ticket.state = "rejected"
        self._tell(ticket, Report("rejected", reason=ticket.reason, venue_order_id=venue_id(ticket.id)))
        return ticket

    def _ticket(self, order: Order, now: datetime, state: State = "accepted", replaces: UUID | None = None) -> Ticket:
        works_at = now + self.rules.model.latency
        expires_at = self.rules.hours(now)[1] if order.terms.time_in_force == "day" else None
        return Ticket(
            order.id,
            order.account_id,
            Working(order.terms),
            now,
            works_at,
            now,
            state,
            expires_at,
            replaces=replaces,
        )

    def _swap(self, old: Ticket, by: Order, now: datetime) -> Report:
        with localcontext(EXACT):
            self._hold(old, None)
            reason = self._refusal(self._ticket(by, now), now)
            self._hold(old, old.working)
        if reason is not None:
            report = Report("replace_rejected", reason=reason)
            self._tell(old, report)
            return report
        report = self.end(old, "replaced", now, replaced_by=by.id)
        ticket = self._take(by, now, old.id)
        ticket.works_at = now
        self._tell(ticket, Report("accepted", venue_order_id=venue_id(ticket.id)))
        self._meet(ticket, now)
        return report

    def _replace_late(self, ticket: Ticket, now: datetime) -> None:
        """Put a pending order in the place of the one that it replaces, if that still works."""
        old = self.tickets.get(ticket.replaces) if ticket.replaces is not None else None
        report = None
        if old is not None and old.state == "accepted" and old.count != ticket.count:
            report = Report("replace_rejected", reason="FILLED_MEANWHILE: more of it is filled: ask again")
            self._tell(old, report)
        elif old is not None and old.state == "accepted":
            order = Order(ticket.id, ticket.account_id, "paper", ticket.working.terms)
            report = self._swap(old, order, now)
        if report is None or report.kind != "replaced":
            ticket.state = "void"
            self._touch(ticket, now)
        if old is not None and report is None:
            self._tell(old, Report("replace_rejected", reason=f"ORDER_OVER: it is {old.state}"))

    def _meet(self, ticket: Ticket, now: datetime) -> None:
        """Let an order meet the books as they are, if it works by now."""
        terms, rules = ticket.working.terms, self.rules
        if ticket.works_at > now:
            return
        keys = [leg.instrument.key for leg in terms.legs]
        fresh = {key: self.books[key] for key in keys if now - self.books[key].at <= rules.model.stale_after}
        opens, closes = rules.hours(now)
        done, crypto = False, all(isinstance(leg.instrument, Crypto) for leg in terms.legs)
        if not any(key in rules.halted for key in keys) and (crypto or opens <= now < closes):
            random = Random(f"{rules.seed}/{ticket.id}/{ticket.count}")  # noqa: S311 - to be repeatable, not secret
            met = match(ticket.working, fresh, rules.model, random)
            done = met.whole
            with localcontext(EXACT):
                self._hold(ticket, None if done else met.order)
                self._book(ticket, met.takes, now, whole=done)
            if met.order != ticket.working or done:
                ticket.working = met.order
                self._touch(ticket, now)
        if not done and terms.time_in_force in {"ioc", "fok"}:
            self.end(ticket, "canceled", now, f"{terms.time_in_force.upper()}_UNFILLED: the market had no more")

    def _book(self, ticket: Ticket, takes: tuple[Take, ...], now: datetime, *, whole: bool) -> None:
        made: list[Execution] = []
        for take in takes:
            leg = ticket.working.terms.legs[take.leg]
            ticket.count += 1
            made.append(Execution(f"{ticket.id}/{ticket.count}", take.quantity, take.price, now, take.leg, take.fee))
            signed = take.quantity if leg.side == "buy" else -take.quantity
            self.move(ticket.account_id, leg.instrument, signed, take.price, take.fee)
            key = leg.instrument.key
            self.books[key] = self.books[key].less(take.quantity, buys=leg.side == "buy")
            self.taken.add(key)
        self.executions += [(ticket.id, one) for one in made]
        if whole:
            ticket.state = "filled"
        if made or whole:
            self._tell(ticket, Report("filled" if whole else "fill", tuple(made), venue_order_id=venue_id(ticket.id)))

    # What is held for orders

    def _refusal(self, ticket: Ticket, now: datetime) -> str | None:
        """Return why an order is not taken; else set what it needs at worst."""
        terms, purse = ticket.working.terms, self.purses[ticket.account_id]
        if forbidden := self._forbidden(terms, now):
            return forbidden
        worst = self._worst(terms)
        if worst is None:
            return "NO_QUOTE: there is no price to reckon with, give a limit"
        unit = abs(worst) * multiplier(terms.legs)
        ticket.expected = terms.quantity if terms.quantity is not None else (terms.notional or ZERO) / unit
        if short := [leg.instrument.key for leg in terms.legs if self._sells_too_much(ticket, leg)]:
            return f"BUYING_POWER: {', '.join(short)} is not held, and cannot be sold short"
        ticket.needs = self._needed(ticket, worst).quantize(_HELD, ROUND_UP)
        if ticket.needs > max(purse.buying_power, ZERO):
            return f"BUYING_POWER: the order needs {ticket.needs:f}, {purse.buying_power:f} is there"
        return None

    def _forbidden(self, terms: Terms, now: datetime) -> str | None:
        """Return why such orders are not taken, whoever sends them."""
        traded = [leg.instrument for leg in terms.legs]
        if unknown := [of.key for of in traded if of.key not in self.books]:
            return f"UNKNOWN_SYMBOL: nothing is known of {', '.join(unknown)}"
        if halted := [why for of in traded if (why := self._halted(of, now))]:
            return f"NOT_TRADABLE: {'; '.join(halted)}"
        if terms.order_class not in CAPABILITIES.classes or terms.type not in CAPABILITIES.types:
            return f"NOT_SUPPORTED: {terms.order_class} {terms.type}"
        if len({of.underlying for of in traded}) > 1:
            return "NOT_SUPPORTED: the legs lie under different underlyings"
        if not all(terms.time_in_force in TIMES[asset_class(of)] for of in traded):
            return f"NOT_SUPPORTED: {terms.time_in_force}"
        return None

    def _halted(self, of: Instrument, now: datetime) -> str | None:
        """Return why an instrument is not traded now."""
        if isinstance(of, Option) and of.expires_on < now.date():
            return f"{of.key} has expired"
        if isinstance(of, Crypto) and of.quote != "USD":
            return f"{of.key} is not paid in USD"
        return f"{of.key}: {self.rules.halted[of.key]}" if of.key in self.rules.halted else None

    def _worst(self, terms: Terms) -> Decimal | None:
        """Return the net price that a unit may cost: the limit, or where the order would be triggered or filled now."""
        if terms.limit is not None:
            return net_limit(terms, terms.limit)
        sign = 1 if terms.legs[0].side == "buy" else -1
        if terms.stop is not None:
            return sign * terms.stop
        offers: list[Decimal] = []
        for leg in terms.legs:
            book, buys = self.books[leg.instrument.key], leg.side == "buy"
            offer = book.offer(buys=buys) or book.offer(buys=not buys)
            if offer is None:
                return None
            slip = offer * self.rules.model.slippage_bps / 10_000
            offers.append(offer + slip if buys else offer - slip)
        trail = terms.trail_amount or offers[0] * (terms.trail_percent or ZERO) / 100
        return net(terms.legs, offers) + (trail if sign > 0 else ZERO)

    def _sells_too_much(self, ticket: Ticket, leg: Leg) -> bool:
        if leg.side == "buy" or not isinstance(leg.instrument, Crypto):
            return False
        holding = self._holding(ticket.account_id, leg.instrument)
        return ticket.expected * leg.ratio > holding.stock.quantity - holding.selling

    def _needed(self, ticket: Ticket, worst: Decimal) -> Decimal:
        """Return by how much the buying power would fall, were the whole order filled at worst."""
        terms, units = ticket.working.terms, ticket.expected
        family = self._family(ticket.account_id, terms.legs[0].instrument)
        before = {key: one.stock for key, one in family.items()}
        after = dict(before)
        charge = ZERO
        for leg in terms.legs:
            of, sign = leg.instrument, 1 if leg.side == "buy" else -1
            holding = self._holding(ticket.account_id, of)
            price = abs(worst)
            if len(terms.legs) > 1:
                price = self.books[of.key].offer(buys=sign > 0) or self.books[of.key].offer(buys=sign < 0) or ZERO
            # Working orders of the same side come first: what is left to be closed is what they leave.
            busy = holding.stock.traded(sign * (holding.buying if sign > 0 else holding.selling), price)
            before[of.key], after[of.key] = busy, busy.traded(sign * units * leg.ratio, price)
            charge += fee(of, units * leg.ratio, abs(worst), self.rules.model)
        paid = terms.notional if terms.notional is not None and worst > 0 else worst * units * multiplier(terms.legs)
        return max(paid + charge + collateral(after.values()) - collateral(before.values()), ZERO)

    def _hold(self, ticket: Ticket, left: Working | None) -> None:
        """Count an order as one that still may fill the rest of `left`; None gives back all that is held for it."""
        terms, units = ticket.working.terms, ZERO
        if left is not None:
            units = max(ticket.expected - left.filled, ZERO)
        hold = (ticket.needs * units / ticket.expected).quantize(_HELD, ROUND_UP) if units else ZERO
        self.purses[ticket.account_id].on_hold += hold - ticket.hold
        for leg in terms.legs:
            holding, more = self._holding(ticket.account_id, leg.instrument), (units - ticket.open) * leg.ratio
            if leg.side == "buy":
                holding.buying += more
            else:
                holding.selling += more
        ticket.open, ticket.hold = units, hold

    def _family(self, account_id: UUID, of: Instrument) -> dict[str, Holding]:
        return self.holdings.setdefault((account_id, of.underlying), {})

    def _holding(self, account_id: UUID, of: Instrument) -> Holding:
        self.moved.add((account_id, of.underlying))
        return self._family(account_id, of).setdefault(of.key, Holding(Stock(of)))

    def _touch(self, ticket: Ticket, now: datetime) -> None:
        ticket.updated_at = now
        self.touched.add(ticket.id)

    def _tell(self, ticket: Ticket, report: Report) -> None:
        purse = self.purses[ticket.account_id]
        purse.frames += 1
        self.frames.append(Frame(ticket.account_id, purse.frames, ticket.id, report))
