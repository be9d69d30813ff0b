"""Invoices: drafted, finalized, paid or not, tried again."""

from collections.abc import Callable, Iterable
from typing import Any

from tests.fakes.stripe.books import DAY, HOUR, Books, Obj, listed
from tests.fakes.stripe.money import Money


class Invoices:
    """Bills subscriptions. `settled(invoice, how)` hears how a payment went: paid, failed, gave_up, processing."""

    def __init__(self, books: Books, money: Money, retry_days: tuple[int, ...]) -> None:
        self.books = books
        self.money = money
        self.retry_days = retry_days
        self.settled: Callable[[Obj, str], None] = lambda invoice, how: None

    def draft(self, sub: Obj, lines: Iterable[Obj], reason: str, *, preview: bool = False) -> Obj:
        """Write an invoice of these lines and of what the customer is owed; a preview is kept nowhere."""
        books, customer = self.books, self.books.get("customer", sub["customer"])
        invoice_id = books.new_id("upcoming_in" if preview else "in")
        items: list[Obj] = [line | {"invoice": invoice_id} for line in lines]
        subtotal = sum(line["amount"] for line in items)
        off = self._discount(sub, sum(line["amount"] for line in items if line["discountable"]))
        total = subtotal - off
        due = max(0, total + customer["balance"])
        details = {"subscription": sub["id"], "metadata": dict(sub["metadata"])}
        item = sub["items"]["data"][0]
        discount_amounts = [{"amount": off, "discount": sub["discounts"][0]}] if off else []
        invoice: Obj = {
            "id": invoice_id,
            "object": "invoice",
            "amount_due": due,
            "amount_overpaid": 0,
            "amount_paid": 0,
            "amount_remaining": due,
            "attempt_count": 0,
            "attempted": False,
            "auto_advance": True,
            "automatically_finalizes_at": None,
            "billing_reason": reason,
            "collection_method": sub["collection_method"],
            "created": books.now,
            "currency": sub["currency"],
            "customer": sub["customer"],
            "customer_email": customer["email"],
            "customer_name": customer["name"],
            "default_payment_method": None,
            "description": None,
            "discounts": list(sub["discounts"]),
            "due_date": None,
            "effective_at": None,
            "ending_balance": None,
            "hosted_invoice_url": None,
            "invoice_pdf": None,
            "lines": listed(items, f"/v1/invoices/{invoice_id}/lines"),
            "livemode": False,
            "metadata": {},
            "next_payment_attempt": None,
            "number": None,
            "parent": {
                "type": "subscription_details",
                "quote_details": None,
                "subscription_details": details,
            },
            "period_end": item["current_period_end"] if preview else books.now,
            "period_start": item["current_period_start"],
            "post_payment_credit_notes_amount": 0,
            "pre_payment_credit_notes_amount": 0,
            "receipt_number": None,
            "starting_balance": customer["balance"],
            "status": "draft",
            "status_transitions": {
                "finalized_at": None,
                "marked_uncollectible_at": None,
                "paid_at": None,
                "voided_at": None,
            },
            "subtotal": subtotal,
            "subtotal_excluding_tax": subtotal,
            "total": total,
            "total_discount_amounts": discount_amounts,
            "total_excluding_tax": total,
            "total_taxes": [],
        }
        if preview:
            return invoice
        if off and self.books.hidden[sub["id"]]["coupon"]["duration"] == "once":
            sub["discounts"] = []
        books.add("invoice", invoice)
        books.emit("invoice.created", invoice)
        return invoice

    def soon(self, invoice: Obj) -> None:
        """Finalize in an hour, as Stripe does with invoices of a period."""
        at = self.books.now + HOUR
        invoice.update(automatically_finalizes_at=at, next_payment_attempt=at)
        self.books.later(at, lambda: self.finalize(invoice) if invoice["auto_advance"] else None)

    def finalize(self, invoice: Obj, *, authenticated: bool = False) -> None:
        """Make it final, and try to collect."""
        if invoice["status"] != "draft":
            return
        customer = self.books.get("customer", invoice["customer"])
        ends = min(0, invoice["total"] + customer["balance"]) if invoice["total"] else customer["balance"]
        customer["balance"] = ends
        customer["next_invoice_sequence"] += 1
        invoice.update(status="open", ending_balance=ends, effective_at=self.books.now)
        invoice.update(number=f"{customer['invoice_prefix']}-{customer['next_invoice_sequence'] - 1:04d}")
        invoice["hosted_invoice_url"] = f"https://invoice.stripe.com/i/acct_fake/{invoice['id']}"
        invoice["invoice_pdf"] = f"https://pay.stripe.com/invoice/acct_fake/{invoice['id']}/pdf"
        invoice["automatically_finalizes_at"] = None
        invoice["status_transitions"]["finalized_at"] = self.books.now
        self.books.emit("invoice.finalized", invoice)
        sub = self.subscription_of(invoice)
        paused = sub["pause_collection"] if sub else None
        if paused and paused["behavior"] == "void":
            self.end(invoice, "void")
        elif paused and paused["behavior"] == "mark_uncollectible":
            self.end(invoice, "uncollectible")
        else:
            self.pay(invoice, authenticated=authenticated)

    def pay(self, invoice: Obj, card_id: str | None = None, *, authenticated: bool = False) -> str:
        """Try to collect; returns how it went."""
        if invoice["status"] != "open":
            return invoice["status"]
        if invoice["amount_due"] == 0:
            return self._paid(invoice)
        sub = self.subscription_of(invoice)
        customer = self.books.get("customer", invoice["customer"])
        card_id = card_id or invoice["default_payment_method"] or self.money.card_of(customer, sub)
        invoice.update(attempted=True, attempt_count=invoice["attempt_count"] + 1)
        how = self.money.confirm(self.intent_of(invoice), card_id, authenticated=authenticated)
        if how == "succeeded":
            return self._paid(invoice)
        if how == "processing":
            invoice["next_payment_attempt"] = None
            self.settled(invoice, "processing")
            return how
        return self.failed(invoice, how)

    def failed(self, invoice: Obj, how: str = "requires_payment_method") -> str:
        """Note a payment that did not work, and when it is tried again."""
        tries = invoice["attempt_count"]
        again = None
        if invoice["billing_reason"] != "subscription_create" and tries <= len(self.retry_days):
            again = self.books.now + self.retry_days[tries - 1] * DAY
            self.books.later(again, lambda: self._retry(invoice, tries))
        invoice["next_payment_attempt"] = again
        self.books.emit("invoice.payment_failed", invoice)
        if how == "requires_action":
            self.books.emit("invoice.payment_action_required", invoice)
        last = again is None and invoice["billing_reason"] != "subscription_create"
        self.settled(invoice, "gave_up" if last else "failed")
        return how

    def end(self, invoice: Obj, status: str) -> None:
        """Void it, or mark it uncollectible."""
        name = {"void": "voided", "uncollectible": "marked_uncollectible"}[status]
        invoice["status_transitions"][f"{name}_at"] = self.books.now
        invoice.update(status=status, auto_advance=False, next_payment_attempt=None)
        self.books.emit(f"invoice.{name}", invoice)

    def payments(self, invoice: Obj) -> list[Obj]:
        """Return what pays an invoice (`invoice_payment`)."""
        return list(self.books.of("invoice_payment", invoice=invoice["id"]))

    def intent_of(self, invoice: Obj) -> Obj:
        """Return the invoice's payment intent, making it at the first try."""
        for payment in self.payments(invoice):
            return self.books.get("payment_intent", payment["payment"]["payment_intent"])
        intent = self.money.intent(invoice["amount_due"], invoice["currency"], invoice["customer"])
        payment: Obj = {
            "id": self.books.new_id("inpay"),
            "object": "invoice_payment",
            "amount_paid": None,
            "amount_requested": invoice["amount_due"],
            "created": self.books.now,
            "currency": invoice["currency"],
            "invoice": invoice["id"],
            "is_default": True,
            "livemode": False,
            "payment": {"type": "payment_intent", "payment_intent": intent["id"]},
            "status": "open",
            "status_transitions": {"canceled_at": None, "paid_at": None},
        }
        self.books.add("invoice_payment", payment)
        return intent

    def subscription_of(self, invoice: Obj) -> Obj | None:
        """Return the subscription that an invoice bills."""
        parent: Any = invoice["parent"]
        return self.books.kinds["subscription"].get(parent["subscription_details"]["subscription"])

    def _retry(self, invoice: Obj, tries: int) -> None:
        if invoice["status"] == "open" and invoice["attempt_count"] == tries and invoice["auto_advance"]:
            self.pay(invoice)

    def _paid(self, invoice: Obj) -> str:
        paid = invoice["amount_due"]
        invoice["status_transitions"]["paid_at"] = self.books.now
        invoice.update(status="paid", amount_paid=paid, amount_remaining=0, attempted=True, auto_advance=False)
        invoice["next_payment_attempt"] = None
        for payment in self.payments(invoice):
            payment.update(status="paid", amount_paid=paid)
            payment["status_transitions"]["paid_at"] = self.books.now
            self.books.emit("invoice_payment.paid", payment)
        self.books.emit("invoice.paid", invoice)
        self.books.emit("invoice.payment_succeeded", invoice)
        self.settled(invoice, "paid")
        return "succeeded"

    def settle(self, invoice: Obj, *, good: bool) -> None:
        """End a payment that was on its way (a bank debit)."""
        intent = self.intent_of(invoice)
        if good:
            self.money.succeed(intent)
            self._paid(invoice)
        else:
            self.money.decline(intent)
            self.failed(invoice)

    def _discount(self, sub: Obj, amount: int) -> int:
        coupon = self.books.hidden[sub["id"]].get("coupon") if sub["discounts"] else None
        if coupon is None or amount <= 0:
            return 0
        if coupon["amount_off"] is not None:
            return min(amount, coupon["amount_off"])
        return round(amount * coupon["percent_off"] / 100)
