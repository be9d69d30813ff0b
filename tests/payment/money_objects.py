"""Stripe's objects about one payment of one customer (cus_1), of the official shapes, for tests of money."""

from collections.abc import Sequence
from typing import Any

from shared.contracts.base import Event
from tests.payment.ledger_bench import DAY, NOW, PRICE, moved, official

START = int(NOW.timestamp())
END = int((NOW + 30 * DAY).timestamp())


def intent(**changes: Any) -> dict[str, Any]:
    return official("payment_intent", id="pi_1", customer="cus_1", last_payment_error=None) | changes


def invoice(status: str = "paid", paying: Any = "pi_1", **changes: Any) -> dict[str, Any]:
    """An invoice for a month of the plan, with its payment."""
    line = {"period": {"start": START, "end": END}, "pricing": {"price_details": {"price": PRICE}}}
    payment = official("invoice_payment", payment={"type": "payment_intent", "payment_intent": paying})
    amounts = {"amount_due": 2900, "amount_paid": 2900 if status == "paid" else 0, "currency": "usd"}
    about: dict[str, Any] = {
        "id": "in_1",
        "customer": "cus_1",
        "status": status,
        "amount_remaining": 2900 - amounts["amount_paid"],  # pyright: ignore[reportOperatorIssue]
        "billing_reason": "subscription_cycle",
        "hosted_invoice_url": "https://invoice.stripe.com/i/1",
        "lines": {"data": [line]},
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}},
        "payments": {"object": "list", "data": [payment] if paying else []},
    }
    return official("invoice", **amounts) | about | changes


def charge(status: str = "succeeded", **changes: Any) -> dict[str, Any]:
    booked = moved(2900, 114, id="txn_1", source="ch_1") if status == "succeeded" else None
    about = {"id": "ch_1", "customer": "cus_1", "amount": 2900, "payment_intent": "pi_1", "created": START}
    return official("charge", status=status, balance_transaction=booked) | about | changes


def refund(amount: int = 2900, **changes: Any) -> dict[str, Any]:
    booked = moved(-amount, 0, "refund", id="txn_2", source="re_1")
    about = {"id": "re_1", "amount": amount, "charge": charge(), "payment_intent": "pi_1"}
    return official("refund", balance_transaction=booked) | about | changes


def dispute(status: str = "needs_response", **changes: Any) -> dict[str, Any]:
    found = [moved(-2900, 1500, "dispute", id="txn_3", source="dp_1")]
    if status == "won":
        found.append(moved(2900, 0, "dispute_reversal", id="txn_4", source="dp_1"))
    about = {"id": "dp_1", "amount": 2900, "charge": charge(), "payment_intent": "pi_1"}
    return official("dispute", status=status, balance_transactions=found) | about | changes


def of(kind: type[Event], events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
