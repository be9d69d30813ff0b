"""An invoice paid on a chain: what it asks for, and what its receipts make of it. Pure.

A state is never moved by an event; it follows from the receipts as they are known, so whatever the order in which
they were found, lost in a reorganisation and found again, the same receipts give the same state.

    new            nothing has come
    seen           something was told or waits in the mempool, or has dropped out of the chain and may come back
    confirming     it lies in a block, not deep enough yet
    paid           all of it, in time
    paid_partial   less than asked for, all of it confirmed
    paid_over      more than asked for
    paid_late      all of it, but some of it after the rate's lock had ended
    expired        nothing came in time
    invalid        what had come was taken back by the chain
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Context, Decimal, Inexact, InvalidOperation, localcontext
from typing import Final, Literal

from services.payment.domain.chains import Asset
from shared.errors import Invalid

State = Literal["new", "seen", "confirming", "paid", "paid_partial", "paid_over", "paid_late", "expired", "invalid"]
ReceiptStatus = Literal["seen", "mined", "lost", "dropped"]

WHOLE: Final[frozenset[State]] = frozenset({"paid", "paid_over", "paid_late"})
IN_DOUBT: Final[frozenset[State]] = frozenset({"seen", "confirming"})

LOCK: Final = timedelta(minutes=15)
"""How long the rate holds."""
HOLD: Final = timedelta(days=7)
"""How long after that an invoice keeps its address, or its exact amount on a shared one: late payments find it."""
LOST: Final = timedelta(hours=1)
"""How long a transaction that dropped out of the chain may take to come back."""
LOOK_FOR: Final = timedelta(hours=24)
"""How long a transaction that a customer tells of is looked for."""
SIGHTING: Final = timedelta(hours=24)
"""How long after the rate's lock a transaction that was seen in time may come into a block."""
LATE_WORTH: Final = Decimal("0.99")
"""A late payment counts when it is worth this share of the price at the rate of when it was confirmed."""
MOST_DIGITS: Final = 30
CENT: Final = Decimal("0.01")
_EXACT: Final = Context(prec=120, traps=[Inexact, InvalidOperation])

PLAIN: Final = -1
"""The index of a transaction's own value."""
BY_BALANCE: Final = -2
"""The index of what a block added to our balance by a contract: no log and no value tells of it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a chain."""

    number: int
    hash: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Transfer:
    """What came to one of our addresses, in base units; in no block yet when `block` is None."""

    tx: str
    index: int
    asset: str
    address: str
    amount: int
    sender: str | None = None
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is known now of something that came: when its block was made, and how deep that lies."""

    amount: int
    status: ReceiptStatus
    at: datetime
    confirmations: int = 0
    mined_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an invoice is now; sums in base units."""

    state: State
    received: int
    confirmed: int


def judge(*, amount: int, expires_at: datetime, needed: int, receipts: Sequence[Receipt], now: datetime) -> Verdict:
    """Say what the receipts make of an invoice over `amount` base units that needs `needed` confirmations."""
    live = [one for one in receipts if one.status in {"seen", "mined"}]
    deep = [one for one in live if one.status == "mined" and one.confirmations >= needed]
    received, confirmed = sum(one.amount for one in live), sum(one.amount for one in deep)

    state: State
    if confirmed >= amount:
        in_time = sum(one.amount for one in deep if _in_time(one, expires_at))
        state = "paid_late" if in_time < amount else "paid_over" if confirmed > amount else "paid"
    elif len(deep) < len(live):
        mined = [one.amount for one in live if one.status == "mined"]
        state = "confirming" if len(mined) == len(live) or sum(mined) >= amount else "seen"
    elif any(one.status == "lost" for one in receipts):
        state = "seen"
    elif receipts:
        state = "paid_partial" if deep else "invalid"
    else:
        state = "new" if now < expires_at else "expired"
    return Verdict(state, received, confirmed)


def _in_time(one: Receipt, expires_at: datetime) -> bool:
    """Whoever lets a transaction wait for days would choose the better of two rates."""
    return one.at <= expires_at and (one.mined_at is None or one.mined_at <= expires_at + SIGHTING)


def base_units(price_usd: Decimal, rate_usd: Decimal, asset: Asset) -> int:
    """Return what a price costs, rounded up to a step of the asset. Raises Invalid for what is no price or no rate."""
    for number in (price_usd, rate_usd):
        if not number.is_finite() or number <= 0 or abs(number.adjusted()) > MOST_DIGITS:
            raise Invalid("a price and a rate are positive numbers of a sensible size")
    with localcontext(prec=100):
        steps = (price_usd / rate_usd * 10**asset.decimals / asset.step).to_integral_value(ROUND_CEILING)
    return int(steps) * asset.step


def free_amount(amount: int, step: int, taken: Collection[int]) -> int | None:
    """Return the least amount from `amount` on that nobody else was asked for; None when that costs over 1% more."""
    for steps in range(min(10_000, amount // 100 // step + 1)):
        if amount + steps * step not in taken:
            return amount + steps * step
    return None


def in_units(amount: int, decimals: int) -> Decimal:
    """Return base units as units: 29000000 with 6 decimals is 29.000000."""
    return Decimal(amount).scaleb(-decimals, _EXACT)


def usd_worth(units: Decimal, rate_usd: Decimal) -> Decimal:
    """Return what units of an asset are worth, in USD and whole cents."""
    with localcontext(prec=120):
        return (units * rate_usd).quantize(CENT)


@dataclass(frozen=True, slots=True)
class Next:
    """What the customer may do, for programs and in words."""

    actions: tuple[str, ...]
    message: str


NEXT: Final[Mapping[State, Next]] = {
    "new": Next(
        ("pay", "tell_transaction"),
        "Send exactly this amount of this asset on this chain to this address before the invoice expires.",
    ),
    "seen": Next(("wait", "tell_transaction"), "Your payment is on its way into a block. Do not pay again."),
    "confirming": Next(("wait",), "Your payment is in a block and is being confirmed. Do not pay again."),
    "paid": Next((), "Paid. There is nothing more to do."),
    "paid_partial": Next(
        ("pay_rest", "ask_refund"),
        "Less than the amount has arrived. Send the rest before the invoice expires, or ask for a refund.",
    ),
    "paid_over": Next(("ask_refund",), "Paid, with more than the amount. You may ask for the difference."),
    "paid_late": Next(
        ("wait", "ask_refund"),
        "The payment came after the invoice had expired. It counts if it is worth the price when it is confirmed; "
        "else ask for a refund.",
    ),
    "expired": Next(
        ("new_invoice", "tell_transaction"),
        "Nothing arrived in time. Make a new invoice; if you have paid, tell us the transaction.",
    ),
    "invalid": Next(
        ("new_invoice", "tell_transaction"),
        "The chain has taken your payment back. Make a new invoice, or tell us the transaction that took its place.",
    ),
}
"""For each state."""


def next_for(state: State, *, granted: bool, expired: bool, shared: bool, held: bool) -> Next:
    """Return what the customer may do in a state; a rest cannot be paid once the rate's lock is over."""
    if state in {"expired", "invalid"} and not held:
        return Next(("new_invoice",), "This invoice is over. Make a new one; if you have paid, write to support.")
    if state == "paid_late" and granted:
        return Next((), "Paid, late. There is nothing more to do.")
    if state in {"paid", "paid_over"} and not granted:
        return Next(("ask_refund",), "Paid, but you have another subscription by now. Ask for a refund.")
    if state == "paid_partial" and (expired or shared):
        return Next(("ask_refund",), "Less than the amount has arrived. Ask for a refund and make a new invoice.")
    return NEXT[state]
