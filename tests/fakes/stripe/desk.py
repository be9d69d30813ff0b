"""What the endpoints do that is no more than writing into the books."""

import re

from tests.fakes.stripe.books import DAY, Books, Obj, invalid, number, true
from tests.fakes.stripe.checkout import new_customer
from tests.fakes.stripe.invoices import Invoices
from tests.fakes.stripe.money import Money, price_of
from tests.fakes.stripe.paging import page
from tests.fakes.stripe.subscriptions import Subscriptions


class Desk:
    """Customers, products, prices, coupons, features, events, the portal, refunds; methods take a request's form."""

    def __init__(
        self, books: Books, money: Money, invoices: Invoices, subscriptions: Subscriptions, search_lag_s: int
    ) -> None:
        self.books = books
        self.money = money
        self.invoices = invoices
        self.subscriptions = subscriptions
        self.search_lag_s = search_lag_s

    def balance(self) -> Obj:
        net: dict[str, int] = {}
        for moved in self.books.kinds["balance_transaction"].values():
            net[moved["currency"]] = net.get(moved["currency"], 0) + moved["net"]
        available = [{"amount": amount, "currency": currency} for currency, amount in net.items()]
        return {"object": "balance", "available": available, "pending": [], "livemode": False}

    def events(self, params: Obj) -> Obj:
        oldest = self.books.now - 30 * DAY
        found = [event for event in self.books.events.values() if event["created"] >= oldest]
        if "delivery_success" in params:
            wanted = true(params["delivery_success"])
            found = [event for event in found if (event["id"] not in self.books.undelivered) is wanted]
        kinds = [params["type"]] if "type" in params else params.get("types")
        if kinds is not None:
            found = [event for event in found if any(_named(event["type"], kind) for kind in kinds)]
        return page(found, params, "/v1/events")

    def event(self, event_id: str) -> Obj:
        event = self.books.events.get(event_id)
        if event is None or event["created"] < self.books.now - 30 * DAY:
            raise invalid(f"No such event: '{event_id}'", "id", "resource_missing", 404)
        return event

    def create_customer(self, params: Obj) -> Obj:
        customer = new_customer(self.books, params)
        if params.get("payment_method"):
            customer["invoice_settings"]["default_payment_method"] = self.money.attach(
                params["payment_method"], customer["id"]
            )["id"]
        return customer

    def search_customers(self, params: Obj) -> Obj:
        terms = re.findall(r"""(?:metadata\[["'](\w+)["']\]|(\w+))\s*:\s*["']([^"']*)["']""", params["query"])
        if not terms:
            raise invalid("We were unable to parse your search query.", "query")
        found = [
            one
            for one in self.books.of("customer")
            if not one.get("deleted")
            and one["created"] + self.search_lag_s <= self.books.now
            and all((one["metadata"].get(key) if key else one.get(field)) == value for key, field, value in terms)
        ]
        found.reverse()
        limit = int(params.get("limit", 10))
        start = int(params.get("page", 0))
        rest = found[start + limit :]
        return {
            "object": "search_result",
            "data": found[start : start + limit],
            "has_more": bool(rest),
            "next_page": str(start + limit) if rest else None,
            "url": "/v1/customers/search",
        }

    def update_customer(self, params: Obj, customer_id: str) -> Obj:
        customer = self._living(customer_id)
        fields = {name: params[name] or None for name in ("email", "name", "phone", "description") if name in params}
        if "metadata" in params:
            merged = customer["metadata"] | params["metadata"]
            fields["metadata"] = {name: value for name, value in merged.items() if value != ""}
        if "invoice_settings" in params:
            fields["invoice_settings"] = customer["invoice_settings"] | params["invoice_settings"]
        self.books.change("customer.updated", customer, **fields)
        return customer

    def _living(self, customer_id: str) -> Obj:
        customer = self.books.get("customer", customer_id)
        if customer.get("deleted"):
            raise invalid(f"No such customer: '{customer_id}'", "id", "resource_missing", 404)
        return customer

    def delete_customer(self, customer_id: str) -> Obj:
        customer = self._living(customer_id)
        for sub in self.books.of("subscription", customer=customer_id):
            if sub["status"] not in {"canceled", "incomplete_expired"}:
                self.subscriptions.cancel(sub)
        self.books.emit("customer.deleted", customer)
        return self.books.add("customer", {"id": customer_id, "object": "customer", "deleted": True})

    def cards_of(self, params: Obj, customer_id: str) -> Obj:
        found = list(self.books.of("payment_method", customer=customer_id))
        return page(found, params, f"/v1/customers/{customer_id}/payment_methods")

    def detach(self, card_id: str) -> Obj:
        card = self.books.get("payment_method", card_id, "payment_method", "PaymentMethod")
        self.books.change("payment_method.detached", card, customer=None)
        for customer in self.books.of("customer"):
            settings = customer.get("invoice_settings") or {}
            if settings.get("default_payment_method") == card_id:
                settings["default_payment_method"] = None
        return card

    def create_product(self, params: Obj) -> Obj:
        product: Obj = {
            "id": params.get("id") or self.books.new_id("prod"),
            "object": "product",
            "active": True,
            "created": self.books.now,
            "default_price": None,
            "description": params.get("description"),
            "images": [],
            "livemode": False,
            "marketing_features": [],
            "metadata": params.get("metadata", {}),
            "name": params["name"],
            "type": "service",
            "updated": self.books.now,
        }
        self.books.add("product", product)
        self.books.emit("product.created", product)
        return product

    def create_price(self, params: Obj) -> Obj:
        self.books.get("product", params.get("product"), "product")
        price = price_of(self.books, params)
        self.books.emit("price.created", price)
        return price

    def create_coupon(self, params: Obj) -> Obj:
        coupon: Obj = {
            "id": params.get("id") or self.books.new_id("co"),
            "object": "coupon",
            "amount_off": number(params["amount_off"], "amount_off", 1) if "amount_off" in params else None,
            "created": self.books.now,
            "currency": params.get("currency"),
            "duration": params.get("duration", "once"),
            "duration_in_months": None,
            "livemode": False,
            "max_redemptions": None,
            "metadata": params.get("metadata", {}),
            "name": params.get("name"),
            "percent_off": float(params["percent_off"]) if "percent_off" in params else None,
            "redeem_by": None,
            "times_redeemed": 0,
            "valid": True,
        }
        if (coupon["amount_off"] is None) == (coupon["percent_off"] is None):
            raise invalid("Must specify one of percent_off or amount_off.", "percent_off")
        self.books.add("coupon", coupon)
        self.books.emit("coupon.created", coupon)
        return coupon

    def create_feature(self, params: Obj) -> Obj:
        feature: Obj = {
            "id": self.books.new_id("feat"),
            "object": "entitlements.feature",
            "active": True,
            "livemode": False,
            "lookup_key": params["lookup_key"],
            "metadata": {},
            "name": params["name"],
        }
        return self.books.add("entitlements.feature", feature)

    def attach_feature(self, params: Obj, product_id: str) -> Obj:
        self.books.get("product", product_id)
        feature = self.books.get("entitlements.feature", params["entitlement_feature"])
        self.books.hidden[feature["id"]].setdefault("products", set()).add(product_id)
        attached = {"id": self.books.new_id("prodft"), "object": "product_feature", "livemode": False}
        return attached | {"entitlement_feature": feature}

    def entitlements(self, params: Obj) -> Obj:
        found = self.subscriptions.entitlements(params["customer"])
        return page(found, params, "/v1/entitlements/active_entitlements")

    def portal(self, params: Obj) -> Obj:
        customer = self._living(params.get("customer", ""))
        session_id = self.books.new_id("bps")
        return {
            "id": session_id,
            "object": "billing_portal.session",
            "configuration": "bpc_1Fake",
            "created": self.books.now,
            "customer": customer["id"],
            "flow": params.get("flow_data"),
            "livemode": False,
            "locale": None,
            "on_behalf_of": None,
            "return_url": params.get("return_url"),
            "url": f"https://billing.stripe.com/p/session/{session_id}",
        }

    def preview(self, params: Obj) -> Obj:
        sub = self.books.get("subscription", params.get("subscription"), "subscription")
        if params.get("customer") not in {None, sub["customer"]}:
            raise invalid("The subscription does not belong to the customer.", "subscription")
        return self.subscriptions.preview(sub, params)

    def pay(self, params: Obj, invoice_id: str) -> Obj:
        invoice = self.books.get("invoice", invoice_id)
        if invoice["status"] == "paid":
            raise invalid("Invoice is already paid", "invoice", "invoice_already_paid")
        if self.invoices.pay(invoice, params.get("payment_method")) == "requires_payment_method":
            raise invalid("Your card was declined.", None, "card_declined", 402)
        return invoice

    def finalize(self, params: Obj, invoice_id: str) -> Obj:
        invoice = self.books.get("invoice", invoice_id)
        self.invoices.finalize(invoice)
        return invoice

    def refund(self, params: Obj) -> Obj:
        charge_id = params.get("charge")
        if params.get("payment_intent"):
            charge_id = self.books.get("payment_intent", params["payment_intent"], "payment_intent")["latest_charge"]
        charge = self.books.get("charge", charge_id, "charge")
        amount = number(params["amount"], "amount", 1) if "amount" in params else None
        return self.money.refund(charge, amount, params.get("reason"), params.get("metadata"))


def _named(kind: str, pattern: str) -> bool:
    return kind.startswith(pattern[:-1]) if pattern.endswith("*") else kind == pattern
