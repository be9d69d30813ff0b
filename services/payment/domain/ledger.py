"""Double entry: what moved, from where to where, so that each currency of an entry adds up to zero.

    assets:stripe          what Stripe holds for us
    assets:bank            what Stripe paid out, and what came by other ways
    assets:crypto          coins received
    income:subscriptions   what customers paid
    income:refunds         what went back to them
    expenses:fees          what Stripe takes for its work
    expenses:dispute_fees  what it takes for a dispute
    expenses:disputes      what a customer's bank took back
    equity:conversion      between two currencies of one entry
    equity:unclassified    what Stripe moved for a reason that we do not know; a person looks at it

A posting above zero is a debit, one below it a credit. What Stripe says about its balance is the source: one entry for
each balance transaction, in the currency of that balance, so that ledger and Stripe can be compared one by one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from services.payment.domain.money import Money, fiat
from services.payment.domain.stripe import reference
from shared.errors import Invalid

Account = Literal[
    "assets:stripe",
    "assets:bank",
    "assets:crypto",
    "income:subscriptions",
    "income:refunds",
    "expenses:fees",
    "expenses:dispute_fees",
    "expenses:disputes",
    "equity:conversion",
    "equity:unclassified",
]
Kind = Literal["charge", "refund", "dispute", "fee", "payout", "receipt", "other"]

FEES: Final[tuple[Account, ...]] = ("expenses:fees", "expenses:dispute_fees")

_WHERE: Final[Mapping[Kind, Account]] = {
    "charge": "income:subscriptions",
    "refund": "income:refunds",
    "dispute": "expenses:disputes",
    "fee": "expenses:fees",
    "payout": "assets:bank",
    "receipt": "income:subscriptions",
    "other": "equity:unclassified",
}
_KINDS: Final[Mapping[str, Kind]] = {
    "charge": "charge",
    "payment": "charge",
    "charge_failure": "charge",  # a bank debit that came back
    "payment_failure_refund": "charge",
    "partial_capture_reversal": "charge",
    "refund": "refund",
    "payment_refund": "refund",
    "refund_failure": "refund",
    "dispute": "dispute",
    "dispute_reversal": "dispute",
    "fee": "fee",
    "stripe_fee": "fee",
    "tax_fee": "fee",
    "network_cost": "fee",
    "payout": "payout",
    "payout_reversal": "payout",
    "payout_failure": "payout",
    "payout_cancel": "payout",
    "transfer": "payout",  # what payouts were called
    "topup": "payout",
    "topup_reversal": "payout",
}
_DISPUTE_SOURCE: Final = ("dp_", "du_")


class Unbalanced(Invalid):
    """The postings of an entry do not add up to zero."""

    code = "UNBALANCED_ENTRY"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of an entry."""

    account: Account
    money: Money


@dataclass(frozen=True, slots=True)
class Entry:
    """One movement. `key` and `about` are `<provider>/<object id>`: what moved, and what it was for."""

    key: str
    kind: Kind
    at: datetime  # when it happened, by its provider
    about: str
    postings: tuple[Posting, ...]
    user_id: UUID | None = None

    def __post_init__(self) -> None:
        sums: Counter[tuple[str, int]] = Counter()
        for posting in self.postings:
            sums[posting.money.currency, posting.money.exponent] += posting.money.minor
        if not self.postings or any(sums.values()):
            raise Unbalanced(key=self.key)


def of_balance_transaction(found: Mapping[str, Any], user_id: UUID | None = None) -> Entry | None:
    """Return the entry of a balance transaction of Stripe; None for one that moved nothing.

    Raises UnknownCurrency, and Unbalanced for one whose net is not its amount less its fee.
    """
    source = reference(found.get("source"))
    kind = _kind(found, source)
    currency = found["currency"]
    amount, fee, net = (fiat(found[name], currency) for name in ("amount", "fee", "net"))
    fees: Account = "expenses:dispute_fees" if kind == "dispute" else "expenses:fees"
    lines = (Posting("assets:stripe", net), Posting(fees, fee), Posting(_WHERE[kind], -amount))
    postings = tuple(line for line in lines if line.money.minor)
    if not postings:
        return None
    at = datetime.fromtimestamp(found["created"], UTC)
    return Entry(f"stripe/{found['id']}", kind, at, f"stripe/{source or found['id']}", postings, user_id)


def of_receipt(
    key: str, coins: Money, value: Money | None, *, at: datetime, about: str, user_id: UUID | None = None
) -> Entry:
    """Return the entry of coins received, at the value that they were taken for; below zero of coins taken back.

    Two currencies, each adding up to zero: the conversion account stands between them. Coins without a value are
    nobody's yet: a person looks at them. Raises Unbalanced when nothing moved, or value and coins go different ways.
    """
    if not coins.minor or (value is not None and (value.minor > 0) != (coins.minor > 0) and value.minor):
        raise Unbalanced("coins and their value move together", key=key)
    if value is None:
        lines = [Posting("assets:crypto", coins), Posting("equity:unclassified", -coins)]
    else:
        lines = [Posting("assets:crypto", coins), Posting("equity:conversion", -coins)]
        if value.minor:
            lines += [Posting("equity:conversion", value), Posting("income:subscriptions", -value)]
    return Entry(key, "receipt", at, about, tuple(lines), user_id)


def of_hand(key: str, paid: Money, *, at: datetime, about: str, user_id: UUID | None = None) -> Entry:
    """Return the entry of money that a person says came by another way."""
    postings = (Posting("assets:bank", paid), Posting("income:subscriptions", -paid))
    return Entry(key, "receipt", at, about, postings, user_id)


def _kind(found: Mapping[str, Any], source: str | None) -> Kind:
    if source is not None and source.startswith(_DISPUTE_SOURCE):
        return "dispute"
    category = found.get("reporting_category")
    return _KINDS.get(category if category in _KINDS else found.get("type", ""), "other")
