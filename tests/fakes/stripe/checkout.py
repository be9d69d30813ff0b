"""Checkout sessions: opened by the shop, completed by the customer, or let expire."""

from typing import Final

from tests.fakes.stripe.books import DAY, HOUR, Books, Obj, Refused, invalid, listed, number
from tests.fakes.stripe.invoices import Invoices
from tests.fakes.stripe.money import Money
from tests.fakes.stripe.subscriptions import Subscriptions

MODES: Final = frozenset({"payment", "subscription", "setup"})


class Checkout:
    """The hosted page, with the customer's hands on it."""

    def __init__(self, books: Books, money: Money, invoices: Invoices, subscriptions: Subscriptions) -> None:
        self.books = books
        self.money = money
        self.invoices = invoices
        self.subscriptions = subscriptions

    def create(self, params: Obj) -> Obj:
        """Open a session, as POST /v1/checkout/sessions says."""
        books = self.books
        mode = params.get("mode")
        if mode not in MODES:
            raise invalid("You must specify a valid mode.", "mode", "parameter_missing")
        if params.get("customer") and books.get("customer", params["customer"], "customer").get("deleted"):
            raise invalid(f"No such customer: '{params['customer']}'", "customer", "resource_missing")
        if not params.get("success_url"):
            raise invalid("You must provide success_url.", "success_url", "parameter_missing")
        lines = [self._line(item, mode) for item in params.get("line_items", [])]
        if mode != "setup" and not lines:
            raise invalid("You must specify line_items.", "line_items", "parameter_missing")
        for wanted in params.get("discounts") or []:
            if "promotion_code" in wanted:
                promotion = books.get("promotion_code", wanted.pop("promotion_code"), "discounts[0][promotion_code]")
                wanted["coupon"] = promotion["promotion"]["coupon"]
            books.get("coupon", wanted.get("coupon"), "discounts[0][coupon]")
        ends = number(params.get("expires_at", books.now + DAY), "expires_at", 0, 2**40)
        if not books.now + HOUR // 2 <= ends <= books.now + DAY:
            raise invalid("expires_at must be between 30 minutes and 24 hours from now.", "expires_at")
        total = sum(line["amount_total"] for line in lines)
        session_id = books.new_id("cs_test")
        session: Obj = {
            "id": session_id,
            "object": "checkout.session",
            "allow_promotion_codes": None,
            "amount_subtotal": total,
            "amount_total": total,
            "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
            "cancel_url": params.get("cancel_url"),
            "client_reference_id": params.get("client_reference_id"),
            "created": books.now,
            "currency": lines[0]["currency"] if lines else None,
            "customer": params.get("customer"),
            "customer_details": None,
            "customer_email": params.get("customer_email"),
            "discounts": [],
            "expires_at": ends,
            "invoice": None,
            "livemode": False,
            "metadata": params.get("metadata", {}),
            "mode": mode,
            "payment_intent": None,
            "payment_method_collection": params.get("payment_method_collection", "always"),
            "payment_method_types": ["card"],
            "payment_status": "unpaid",
            "setup_intent": None,
            "status": "open",
            "subscription": None,
            "success_url": params["success_url"],
            "url": f"https://checkout.stripe.com/c/pay/{session_id}",
        }
        books.hidden[session_id] = {"params": params, "lines": lines}
        books.add("checkout.session", session)
        books.later(ends, lambda: self.expire(session) if session["status"] == "open" else None)
        return session

    def complete(self, session: Obj, card: Obj) -> bool:
        """The customer pays; returns whether that worked. A card that is declined leaves the session open."""
        if session["status"] != "open":
            raise invalid("This Checkout Session is not open.", "session")
        behaviour = self.money.behaviour(card["id"])
        params = self.books.hidden[session["id"]]["params"]
        if behaviour == "declines":
            return False
        if session["customer"] is None:
            email = session["customer_email"] or "buyer@example.com"
            session["customer"] = new_customer(self.books, {"email": email, "metadata": {}})["id"]
        customer = self.books.get("customer", session["customer"])
        self.money.attach(card["id"], customer["id"])
        session["customer_details"] = {"email": customer["email"], "name": customer["name"], "phone": None}
        if session["mode"] == "subscription":
            self._subscribe(session, params, card)
        elif session["mode"] == "payment":
            intent = self.money.intent(session["amount_total"], session["currency"], customer["id"])
            session["payment_intent"] = intent["id"]
            intent["metadata"] = (params.get("payment_intent_data") or {}).get("metadata", {})
            how = self.money.confirm(intent, card["id"], authenticated=True)
            session["payment_status"] = "paid" if how == "succeeded" else "unpaid"
        else:
            session["payment_status"] = "no_payment_required"
        session.update(status="complete", url=None)
        self.books.emit("checkout.session.completed", session)
        return True

    def settle(self, session: Obj, *, good: bool) -> None:
        """A debit that was on its way arrives, or does not."""
        if session["payment_status"] != "unpaid" or session["status"] != "complete":
            raise invalid("Nothing is on its way for this session.", "session")
        if session["invoice"]:
            self.invoices.settle(self.books.get("invoice", session["invoice"]), good=good)
        else:
            intent = self.books.get("payment_intent", session["payment_intent"])
            (self.money.succeed if good else self.money.decline)(intent)
        if good:
            session["payment_status"] = "paid"
        name = "succeeded" if good else "failed"
        self.books.emit(f"checkout.session.async_payment_{name}", session)

    def expire(self, session: Obj) -> Obj:
        """End a session that nobody completed."""
        if session["status"] != "open":
            raise invalid('Only Checkout Sessions with a status in ["open"] can be expired.', "session")
        session.update(status="expired", url=None)
        self.books.emit("checkout.session.expired", session)
        return session

    def lines_of(self, session: Obj) -> Obj:
        """Return what a session sells."""
        return listed(self.books.hidden[session["id"]]["lines"], f"/v1/checkout/sessions/{session['id']}/line_items")

    def _subscribe(self, session: Obj, params: Obj, card: Obj) -> None:
        data = params.get("subscription_data") or {}
        wanted: Obj = {
            "customer": session["customer"],
            "items": params["line_items"],
            "default_payment_method": card["id"],
            "discounts": params.get("discounts"),
            **{
                name: data[name]
                for name in ("metadata", "trial_period_days", "trial_end", "trial_settings", "description")
                if name in data
            },
        }
        sub = self.subscriptions.create(wanted, authenticated=True)
        invoice = self.books.get("invoice", sub["latest_invoice"])
        session.update(subscription=sub["id"], invoice=invoice["id"], amount_total=invoice["total"])
        paid = "paid" if invoice["status"] == "paid" else "unpaid"
        session["payment_status"] = paid if invoice["amount_due"] else "no_payment_required"

    def _line(self, item: Obj, mode: str) -> Obj:
        price = self.books.get("price", item.get("price"), "line_items[0][price]")
        if not price["active"] or (mode == "subscription") != (price["type"] == "recurring"):
            raise invalid(f"The price {price['id']} cannot be used in `{mode}` mode.", "line_items[0][price]")
        quantity = number(item.get("quantity", 1), "line_items[0][quantity]", 1)
        amount = price["unit_amount"] * quantity
        return {
            "id": self.books.new_id("li"),
            "object": "item",
            "amount_discount": 0,
            "amount_subtotal": amount,
            "amount_tax": 0,
            "amount_total": amount,
            "currency": price["currency"],
            "description": None,
            "price": price,
            "quantity": quantity,
        }


def new_customer(books: Books, params: Obj) -> Obj:
    """Make a customer, as POST /v1/customers says."""
    customer_id = books.new_id("cus")
    chosen = (params.get("invoice_settings") or {}).get("default_payment_method")
    customer: Obj = {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": books.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": params.get("description"),
        "email": params.get("email"),
        "invoice_prefix": f"F{int(customer_id[-7:]):07d}",
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": chosen,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": params.get("metadata") or {},
        "name": params.get("name"),
        "next_invoice_sequence": 1,
        "phone": params.get("phone"),
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    if params.get("email") is not None and "@" not in params["email"]:
        raise Refused(400, "invalid_request_error", f"Invalid email address: {params['email']}", param="email")
    books.add("customer", customer)
    books.emit("customer.created", customer)
    return customer
