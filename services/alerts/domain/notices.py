"""How what payment and the brokerage tell reads. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import singledispatch
from typing import Any, Final, cast, get_args
from uuid import UUID

from services.alerts.domain.words import DEFAULT, Words
from shared.contracts.base import Event, derived_id
from shared.contracts.broker import OrderFilled, OrderFlagged, OrderRejected, PositionsDrifted
from shared.contracts.payment import (
    CardExpiring,
    PaymentDisputed,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    RenewalDue,
    TrialEnding,
)

Paid = PaymentReceived | PaymentFailed | PaymentRefunded | PaymentDisputed | TrialEnding | CardExpiring | RenewalDue
Traded = OrderFilled | OrderRejected | OrderFlagged | PositionsDrifted
Told = Paid | Traded
"""What becomes a notice."""
PAID: Final[tuple[type[Paid], ...]] = get_args(Paid)
TRADED: Final[tuple[type[Traded], ...]] = get_args(Traded)


@dataclass(frozen=True, slots=True)
class Notice:
    """What a user is told once: a title, and a few lines."""

    kind: str
    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Saying:
    """A notice for a user, what it follows from, and the rule that asked for it (None: everybody is told)."""

    notice_id: UUID
    user_id: UUID
    notice: Notice
    cause: Event
    rule_id: UUID | None = None


@singledispatch
def notice_of(event: Event, _words: Words = DEFAULT) -> Notice:
    """Return what an event tells its user. Raises TypeError for one that tells nothing."""
    raise TypeError(f"{event.type} is no notice")


@notice_of.register
def _(event: PaymentReceived, words: Words = DEFAULT) -> Notice:
    what = "renewed" if event.renewal else "paid"
    title = f"Your Openbell subscription is {what}: {words.money(event.amount, event.currency)}"
    return Notice("renewed" if event.renewal else "receipt", title, _some(event.plan, receipt=event.receipt_url))


@notice_of.register
def _(event: PaymentFailed, words: Words = DEFAULT) -> Notice:
    amount = words.money(event.amount, event.currency)
    if event.action_required:
        return Notice(
            "payment_action_required",
            f"Your payment of {amount} needs you to confirm it",
            _some(event.plan, pay=event.pay_url),
        )
    again = f"It is tried again on {words.day(event.next_attempt_at)}." if event.next_attempt_at else None
    return Notice(
        "payment_failed",
        f"Your payment of {amount} did not work",
        _some(event.plan, event.reason, again, pay=event.pay_url),
    )


@notice_of.register
def _(event: PaymentRefunded, words: Words = DEFAULT) -> Notice:
    return Notice("refunded", f"You have been refunded {words.money(event.amount, event.currency)}", _some(event.plan))


@notice_of.register
def _(event: PaymentDisputed, words: Words = DEFAULT) -> Notice:
    amount = words.money(event.amount, event.currency)
    titles = {
        "opened": f"Your bank disputes a payment of {amount}",
        "won": f"The dispute over {amount} is closed: the payment stands",
        "lost": f"The dispute over {amount} is closed: the money went back to you",
    }
    return Notice(f"dispute_{event.status}", titles[event.status], _some(event.plan))


@notice_of.register
def _(event: TrialEnding, words: Words = DEFAULT) -> Notice:
    return Notice("trial_ending", f"Your trial ends on {words.day(event.ends_at)}", _some(event.plan))


@notice_of.register
def _(event: CardExpiring, _words: Words = DEFAULT) -> Notice:
    title = f"Your card ({event.brand}, ending in {event.last4}) expires in {event.expires}"
    return Notice("card_expiring", title, ("Update it so that your subscription goes on.",))


@notice_of.register
def _(event: RenewalDue, words: Words = DEFAULT) -> Notice:
    amount = words.money(event.amount, event.currency)
    if event.days_left > 0:
        days = "1 day" if event.days_left == 1 else f"{event.days_left} days"
        title = f"Your subscription ends in {days}: {amount} renews it"
    else:
        title = f"Your subscription is not paid: {amount} keeps it"
    next_step = None
    if event.next_step_at is not None and event.days_left <= 0:
        next_step = f"{'It ends' if event.last else 'The next reminder comes'} on {words.day(event.next_step_at)}."
    lines = _some(event.plan, f"Due on {words.day(event.due_at)}.", next_step, pay=event.pay_url)
    return Notice("renewal_due", title, lines)


@notice_of.register
def _(event: OrderFilled, words: Words = DEFAULT) -> Notice:
    verb = "Bought" if event.side == "buy" else "Sold"
    quantity, price = event.quantity, event.price
    if event.whole and event.filled is not None and event.average_price is not None:
        quantity, price = event.filled, event.average_price  # of the whole order, not of the part that was its last
    title = f"{verb} {words.number(quantity)} {event.symbol} at {words.number(price)} ({event.mode})"
    kind, line = (
        ("order_filled", "Nothing of the order is left.")
        if event.whole
        else ("order_part_filled", "More of the order is left.")
    )
    return Notice(kind, title, (line,))


@notice_of.register
def _(event: OrderRejected, _words: Words = DEFAULT) -> Notice:
    return Notice("order_rejected", f"Your order was refused at {event.venue} ({event.mode})", event.reasons)


@notice_of.register
def _(event: OrderFlagged, _words: Words = DEFAULT) -> Notice:
    return Notice("order_flagged", f"Look at your order at {event.venue} ({event.mode})", (event.message,))


@notice_of.register
def _(event: PositionsDrifted, words: Words = DEFAULT) -> Notice:
    lines = (f"{one.symbol}: {words.number(one.venue)}, not {words.number(one.ours)}." for one in event.drifts)
    return Notice("positions_drifted", f"Your positions were put right: {event.venue} holds others", tuple(lines))


def id_of(event: Told) -> UUID:
    """Return a notice's id. By leg, an order's parts share one, and the fills of a whole order."""
    if isinstance(event, OrderFilled):
        return derived_id(event.order_id, f"{'whole' if event.whole else 'part'}/{event.symbol}")
    return event.id


def symbol_of(event: Event) -> str | None:
    """Return the one symbol that an event is about."""
    match event:
        case OrderFilled():
            return event.symbol
        case PositionsDrifted() if len({one.symbol for one in event.drifts}) == 1:
            return event.drifts[0].symbol
        case _:
            return None


def account_of(event: Event) -> UUID | None:
    """Return the account at a venue that an event is about."""
    return event.account_id if isinstance(event, Traded) else None


def rule_notice(rule_name: str, event: Event, fields: Mapping[str, Any], words: Words = DEFAULT) -> Notice:
    """Return what a user's rule tells of an event: what everybody is told of it, else its fields."""
    if notice_of.dispatch(type(event)) is notice_of.dispatch(object):
        what, lines = event.type.partition(".")[2].rpartition(".")[0].replace(".", " "), _fields(fields, words)
    else:
        told = notice_of(event, words)
        what, lines = told.title, told.lines
    return Notice("rule", f"{rule_name}: {what}", (*lines, f"Your rule {rule_name} asked for this."))


def _fields(fields: Mapping[str, Any], words: Words) -> tuple[str, ...]:
    return tuple(
        f"{name.replace('_', ' ')}: {_shown(value, words)}" for name, value in fields.items() if name != "event"
    )


def _shown(value: Any, words: Words) -> str:
    """Return a field's value as a reader writes it."""
    match value:
        case list() | tuple():
            return ", ".join(_shown(one, words) for one in cast("Sequence[Any]", value))
        case datetime():
            return f"{words.day(value)}, {words.clock(value)}"
        case date():
            return words.day(value)
        case Decimal():
            return words.number(value)
        case _:
            return str(value)


def _some(plan: str | None, *lines: str | None, receipt: str | None = None, pay: str | None = None) -> tuple[str, ...]:
    told = [f"Plan: {plan}" if plan else None, *lines]
    told += [f"Receipt: {receipt}" if receipt else None, f"Pay here: {pay}" if pay else None]
    return tuple(line for line in told if line)
