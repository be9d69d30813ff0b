"""Cards, payment intents, charges, refunds, disputes, and the balance transactions that follow from each."""

from typing import Any, Final, Literal

from tests.fakes.stripe.books import DAY, Books, Obj, invalid, listed, number

Behaviour = Literal["pays", "declines", "asks", "delays"]

TEST_CARDS: Final[dict[str, Behaviour]] = {
    "pm_card_visa": "pays",
    "pm_card_chargeDeclined": "declines",
    "pm_card_chargeCustomerFail": "declines",
    "pm_card_authenticationRequired": "asks",
}
DISPUTE_FEE: Final = 1_500


class Money:
    """Moves money between customers and the account's balance."""

    def __init__(self, books: Books) -> None:
        self.books = books

    def card(self, behaviour: Behaviour = "pays", *, exp: tuple[int, int] = (12, 2034), last4: str = "4242") -> Obj:
        """Make a payment method."""
        details: Obj = {
            "brand": "visa",
            "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
            "country": "US",
            "display_brand": "visa",
            "exp_month": exp[0],
            "exp_year": exp[1],
            "fingerprint": "AOB934RVNwzk6xtn",
            "funding": "credit",
            "last4": last4,
        }
        card: Obj = {
            "id": self.books.new_id("pm"),
            "object": "payment_method",
            "billing_details": {"email": None, "name": None, "phone": None},
            "card": details,
            "created": self.books.now,
            "customer": None,
            "livemode": False,
            "metadata": {},
            "type": "card",
        }
        self.books.hidden[card["id"]] = {"behaviour": behaviour}
        return self.books.add("payment_method", card)

    def attach(self, card_id: str, customer_id: str) -> Obj:
        """Give a card to a customer; Stripe's test ids make a new card each time."""
        self.books.get("customer", customer_id, "customer")
        if card_id in TEST_CARDS:
            card_id = self.card(TEST_CARDS[card_id])["id"]
        card = self.books.get("payment_method", card_id, "payment_method", "PaymentMethod")
        card["customer"] = customer_id
        self.books.emit("payment_method.attached", card)
        return card

    def card_of(self, customer: Obj, subscription: Obj | None = None) -> str | None:
        """Return the card that pays for a customer."""
        chosen: str | None = subscription["default_payment_method"] if subscription else None
        return chosen or customer["invoice_settings"]["default_payment_method"]

    def behaviour(self, card_id: str | None) -> Behaviour | None:
        """Return what the card does when it is charged; None without a card."""
        return self.books.hidden[card_id]["behaviour"] if card_id else None

    def intent(self, amount: int, currency: str, customer: str | None, metadata: Obj | None = None) -> Obj:
        """Make a payment intent."""
        intent_id = self.books.new_id("pi")
        intent: Obj = {
            "id": intent_id,
            "object": "payment_intent",
            "amount": amount,
            "amount_capturable": 0,
            "amount_received": 0,
            "canceled_at": None,
            "cancellation_reason": None,
            "capture_method": "automatic",
            "client_secret": f"{intent_id}_secret_Fake",
            "created": self.books.now,
            "currency": currency,
            "customer": customer,
            "description": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": False,
            "metadata": metadata or {},
            "next_action": None,
            "payment_method": None,
            "payment_method_types": ["card"],
            "status": "requires_payment_method",
        }
        self.books.add("payment_intent", intent)
        self.books.emit("payment_intent.created", intent)
        return intent

    def confirm(self, intent: Obj, card_id: str | None, *, authenticated: bool = False) -> str:
        """Try to pay; returns the intent's status: succeeded, processing, requires_action, requires_payment_method."""
        behaviour = self.behaviour(card_id)
        intent["payment_method"] = card_id
        if behaviour is None:
            return intent["status"]
        if behaviour == "asks" and not authenticated:
            intent.update(status="requires_action", next_action={"type": "use_stripe_sdk"})
            self.books.emit("payment_intent.requires_action", intent)
        elif behaviour == "delays":
            intent["status"] = "processing"
            self.books.emit("payment_intent.processing", intent)
        elif behaviour == "declines":
            self.decline(intent)
        else:
            self.succeed(intent)
        return intent["status"]

    def decline(self, intent: Obj) -> None:
        """Fail a payment for lack of money."""
        charge = self._charge(intent, "failed")
        error: Obj = {
            "type": "card_error",
            "code": "card_declined",
            "decline_code": "insufficient_funds",
            "message": "Your card has insufficient funds.",
            "charge": charge["id"],
        }
        intent.update(status="requires_payment_method", latest_charge=charge["id"], next_action=None)
        intent.update(last_payment_error=error, payment_method=None)
        self.books.emit("charge.failed", charge)
        self.books.emit("payment_intent.payment_failed", intent)

    def succeed(self, intent: Obj) -> Obj:
        """Take the money; return the charge."""
        charge = self._charge(intent, "succeeded")
        fee = (intent["amount"] * 29 + 500) // 1_000 + 30
        moved = self.move("charge", charge["id"], intent["amount"], fee, intent["currency"])
        charge["balance_transaction"] = moved["id"]
        intent.update(status="succeeded", latest_charge=charge["id"], amount_received=intent["amount"])
        intent.update(next_action=None, last_payment_error=None)
        self.books.emit("charge.succeeded", charge)
        self.books.emit("payment_intent.succeeded", intent)
        return charge

    def move(self, kind: str, source: str, amount: int, fee: int, currency: str) -> Obj:
        """Change the account's balance. Amounts are minor units, negative for money that leaves."""
        fees = [{"amount": fee, "currency": currency, "type": "stripe_fee", "application": None, "description": "fees"}]
        transaction: Obj = {
            "id": self.books.new_id("txn"),
            "object": "balance_transaction",
            "amount": amount,
            "available_on": self.books.now + 2 * DAY,
            "balance_type": "payments",
            "created": self.books.now,
            "currency": currency,
            "description": None,
            "exchange_rate": None,
            "fee": fee,
            "fee_details": fees if fee else [],
            "net": amount - fee,
            "reporting_category": "dispute" if kind == "adjustment" else kind,
            "source": source,
            "status": "pending",
            "type": kind,
        }
        return self.books.add("balance_transaction", transaction)

    def refund(
        self, charge: Obj, given: int | None = None, reason: str | None = None, metadata: Obj | None = None
    ) -> Obj:
        """Give money back: all that is left, unless less is said."""
        left: int = charge["amount"] - charge["amount_refunded"]
        amount = left if given is None else given
        if charge["status"] != "succeeded" or left == 0:
            raise invalid(f"Charge {charge['id']} has already been refunded.", "charge", "charge_already_refunded")
        if charge["disputed"]:
            raise invalid(f"Charge {charge['id']} has been charged back.", "charge", "charge_disputed")
        if not 0 < amount <= left:
            raise invalid(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", "amount")
        refund: Obj = {
            "id": self.books.new_id("re"),
            "object": "refund",
            "amount": amount,
            "balance_transaction": None,
            "charge": charge["id"],
            "created": self.books.now,
            "currency": charge["currency"],
            "customer": charge["customer"],
            "metadata": metadata or {},
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "receipt_number": None,
            "status": "succeeded",
        }
        self.books.add("refund", refund)
        refund["balance_transaction"] = self.move("refund", refund["id"], -amount, 0, charge["currency"])["id"]
        self.books.emit("refund.created", refund)
        refunded = charge["amount_refunded"] + amount
        self.books.change("charge.refunded", charge, amount_refunded=refunded, refunded=refunded == charge["amount"])
        return refund

    def fail_refund(self, refund: Obj) -> None:
        """The bank does not take a refund: the money comes back to the balance."""
        charge = self.books.get("charge", refund["charge"])
        returned = self.move("refund_failure", refund["id"], refund["amount"], 0, refund["currency"])
        refund.update(failure_balance_transaction=returned["id"], failure_reason="lost_or_stolen_card")
        self.books.change("refund.failed", refund, status="failed")
        charge.update(amount_refunded=charge["amount_refunded"] - refund["amount"], refunded=False)
        self.books.emit("charge.refund.updated", refund)

    def dispute(self, charge: Obj, reason: str = "fraudulent") -> Obj:
        """A bank takes the money back while it looks."""
        dispute: Obj = {
            "id": self.books.new_id("du"),
            "object": "dispute",
            "amount": charge["amount"] - charge["amount_refunded"],
            "balance_transactions": [],
            "charge": charge["id"],
            "created": self.books.now,
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence_details": {"due_by": self.books.now + 7 * DAY, "has_evidence": False, "past_due": False},
            "is_charge_refundable": False,
            "livemode": False,
            "metadata": {},
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "status": "needs_response",
        }
        self.books.add("dispute", dispute)
        charge["disputed"] = True
        taken = self.move("adjustment", dispute["id"], -dispute["amount"], DISPUTE_FEE, charge["currency"])
        dispute["balance_transactions"] = [dict(taken)]
        self.books.emit("charge.dispute.created", dispute)
        self.books.emit("charge.dispute.funds_withdrawn", dispute)
        return dispute

    def decide(self, dispute: Obj, *, won: bool) -> None:
        """The bank decides; a won dispute brings the money back, not the fee."""
        dispute["status"] = "won" if won else "lost"
        if won:
            back = self.move("adjustment", dispute["id"], dispute["amount"], 0, dispute["currency"])
            dispute["balance_transactions"].append(dict(back))
            self.books.emit("charge.dispute.funds_reinstated", dispute)
        self.books.emit("charge.dispute.closed", dispute)

    def _charge(self, intent: Obj, status: str) -> Obj:
        card_id = intent["payment_method"]
        card = self.books.kinds["payment_method"][card_id]["card"] if card_id else {}
        shown = {name: card[name] for name in ("brand", "country", "exp_month", "exp_year", "last4") if name in card}
        good = status == "succeeded"
        charge_id = self.books.new_id("ch")
        charge: Obj = {
            "id": charge_id,
            "object": "charge",
            "amount": intent["amount"],
            "amount_captured": intent["amount"] if good else 0,
            "amount_refunded": 0,
            "balance_transaction": None,
            "billing_details": {"email": None, "name": None, "phone": None},
            "captured": good,
            "created": self.books.now,
            "currency": intent["currency"],
            "customer": intent["customer"],
            "description": intent["description"],
            "disputed": False,
            "failure_code": None if good else "card_declined",
            "failure_message": None if good else "Your card has insufficient funds.",
            "livemode": False,
            "metadata": dict(intent["metadata"]),
            "paid": good,
            "payment_intent": intent["id"],
            "payment_method": card_id,
            "payment_method_details": {"type": "card", "card": shown},
            "receipt_url": f"https://pay.stripe.com/receipts/{charge_id}" if good else None,
            "refunded": False,
            "status": status,
        }
        return self.books.add("charge", charge)


def price_of(books: Books, params: Obj) -> Obj:
    """Make a price as the request says."""
    amount = number(params.get("unit_amount", 0), "unit_amount")
    recurring = params.get("recurring")
    if recurring is not None:
        recurring = {
            "interval": recurring["interval"],
            "interval_count": int(recurring.get("interval_count", 1)),
            "meter": None,
            "trial_period_days": None,
            "usage_type": "licensed",
        }
    price: Obj = {
        "id": books.new_id("price"),
        "object": "price",
        "active": True,
        "billing_scheme": "per_unit",
        "created": books.now,
        "currency": params["currency"],
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": params.get("lookup_key"),
        "metadata": params.get("metadata", {}),
        "nickname": params.get("nickname"),
        "product": params["product"],
        "recurring": recurring,
        "tax_behavior": "unspecified",
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        "unit_amount": amount,
        "unit_amount_decimal": str(amount),
    }
    return books.add("price", price)


def refunds_of(books: Books, charge: Obj) -> Any:
    """Return a charge's refunds in their envelope."""
    found = list(books.of("refund", charge=charge["id"]))
    return listed(found[::-1], f"/v1/charges/{charge['id']}/refunds")
