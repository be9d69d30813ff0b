"""The endpoints: which request does what, with which parameters. What stripe-python cannot send is refused."""

import importlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from stripe import RequestOptions

from tests.fakes.stripe.books import DAY, Books, Obj, invalid, listed, number, true
from tests.fakes.stripe.checkout import Checkout, new_customer
from tests.fakes.stripe.invoices import Invoices
from tests.fakes.stripe.money import Money, price_of, refunds_of
from tests.fakes.stripe.subscriptions import AfterRetries, Subscriptions

KINDS: Final = {
    "balance_transactions": "balance_transaction",
    "charges": "charge",
    "checkout/sessions": "checkout.session",
    "coupons": "coupon",
    "customers": "customer",
    "disputes": "dispute",
    "entitlements/features": "entitlements.feature",
    "invoice_payments": "invoice_payment",
    "invoices": "invoice",
    "payment_intents": "payment_intent",
    "payment_methods": "payment_method",
    "prices": "price",
    "products": "product",
    "refunds": "refund",
    "subscriptions": "subscription",
}
EXPANDABLE: Final = {
    "balance_transaction": "balance_transaction",
    "charge": "charge",
    "customer": "customer",
    "default_payment_method": "payment_method",
    "feature": "entitlements.feature",
    "invoice": "invoice",
    "latest_charge": "charge",
    "latest_invoice": "invoice",
    "payment_intent": "payment_intent",
    "payment_method": "payment_method",
    "product": "product",
    "subscription": "subscription",
}
PAGING: Final = frozenset({"limit", "starting_after", "ending_before", "expand", "created"})
Handler = Callable[..., Obj]


class Api:
    """An account behind its endpoints."""

    def __init__(self, now: int, retry_days: tuple[int, ...], after_retries: AfterRetries, search_lag_s: int) -> None:
        self.books = Books(now)
        self.money = Money(self.books)
        self.invoices = Invoices(self.books, self.money, retry_days)
        self.subscriptions = Subscriptions(self.books, self.money, self.invoices, after_retries)
        self.checkout = Checkout(self.books, self.money, self.invoices, self.subscriptions)
        self.search_lag_s = search_lag_s
        get, sub, inv = self.books.get, self.subscriptions, self.invoices
        self._table: list[tuple[str, str, str, Handler]] = [
            ("GET", "balance", "balance_retrieve", lambda p: self._balance()),
            ("GET", "events", "event_list", self._events),
            ("GET", "events/(evt_.+)", "event_retrieve", lambda p, i: self._event(i)),
            ("POST", "customers", "customer_create", self._create_customer),
            ("GET", "customers/search", "customer_search", self._search_customers),
            ("POST", "customers/(cus_.+)", "customer_update", self._update_customer),
            ("DELETE", "customers/(cus_.+)", "customer_delete", lambda p, i: self._delete_customer(i)),
            ("GET", "customers/(cus_.+)/payment_methods", "customer_payment_method_list", self._cards_of),
            ("POST", "products", "product_create", self._create_product),
            ("POST", "products/(.+)/features", "product_feature_create", self._attach_feature),
            ("POST", "products/(.+)", "product_update", self._updater("product")),
            ("POST", "prices", "price_create", self._create_price),
            ("POST", "prices/(.+)", "price_update", self._updater("price")),
            ("POST", "coupons", "coupon_create", self._create_coupon),
            ("POST", "entitlements/features", "entitlements.feature_create", self._create_feature),
            ("GET", "entitlements/active_entitlements", "entitlements.active_entitlement_list", self._entitlements),
            ("POST", "checkout/sessions", "checkout.session_create", self.checkout.create),
            ("POST", "checkout/sessions/([^/]+)/expire", "checkout.session_expire",
             lambda p, i: self.checkout.expire(get("checkout.session", i))),
            ("GET", "checkout/sessions/([^/]+)/line_items", "checkout.session_line_item_list",
             lambda p, i: self.checkout.lines_of(get("checkout.session", i))),
            ("POST", "billing_portal/sessions", "billing_portal.session_create", self._portal),
            ("POST", "subscriptions", "subscription_create", sub.create),
            ("POST", "subscriptions/([^/]+)", "subscription_update", lambda p, i: sub.update(get("subscription", i), p)),
            ("DELETE", "subscriptions/([^/]+)", "subscription_cancel", lambda p, i: sub.cancel(get("subscription", i))),
            ("POST", "subscriptions/([^/]+)/pause", "subscription_pause", lambda p, i: sub.pause(get("subscription", i))),
            ("POST", "subscriptions/([^/]+)/resume", "subscription_resume",
             lambda p, i: sub.resume(get("subscription", i))),
            ("POST", "invoices/create_preview", "invoice_create_preview", self._preview),
            ("POST", "invoices/([^/]+)/pay", "invoice_pay", self._pay),
            ("POST", "invoices/([^/]+)/finalize", "invoice_finalize_invoice", self._finalize),
            ("POST", "invoices/([^/]+)/void", "invoice_void_invoice", self._ender("void")),
            ("POST", "invoices/([^/]+)/mark_uncollectible", "invoice_mark_uncollectible", self._ender("uncollectible")),
            ("POST", "payment_methods/([^/]+)/attach", "payment_method_attach",
             lambda p, i: self.money.attach(i, p["customer"])),
            ("POST", "payment_methods/([^/]+)/detach", "payment_method_detach", lambda p, i: self._detach(i)),
            ("POST", "refunds", "refund_create", self._refund),
        ]
        for path, kind in KINDS.items():
            name = kind.removeprefix("")
            self._table.append(("GET", path, f"{name}_list", self._lister(path, kind)))
            self._table.append(("GET", f"{path}/([^/]+)", f"{name}_retrieve", self._retriever(kind)))
        del inv

    def call(self, method: str, path: str, params: Obj) -> Obj:
        """Do what a request asks; raises Refused."""
        path = path.removeprefix("/")
        if method == "GET" and (found := re.fullmatch(r"v2/core/events/(.+)", path)):
            return self.thin(self._event(found[1]))
        for verb, pattern, names, handler in self._table:
            found = re.fullmatch("v1/" + pattern, path) if verb == method else None
            if found is not None and all("/" not in part for part in found.groups()):
                for name in sorted(params.keys() - parameters_of(names)):
                    raise invalid(f"Received unknown parameter: {name}", name, "parameter_unknown")
                expand = params.pop("expand", [])
                return self._expanded(handler(params, *found.groups()), expand)
        message = f"Unrecognized request URL ({method}: /{path})."
        raise invalid(message, None, "resource_missing", 404)

    def thin(self, event: Obj) -> Obj:
        """Return a v1 event as a v2 notification: what happened to which object, without the object."""
        thing = event["data"]["object"]
        path = next((path for path, kind in KINDS.items() if kind == thing["object"]), thing["object"])
        related = {"id": thing.get("id"), "type": thing["object"], "url": f"/v1/{path}/{thing.get('id')}"}
        return {
            "id": event["id"],
            "object": "v2.core.event",
            "context": None,
            "created": _iso(event["created"]),
            "livemode": False,
            "reason": None,
            "related_object": related,
            "type": f"v1.{event['type']}",
        }

    def _lister(self, path: str, kind: str) -> Handler:
        def answer(params: Obj) -> Obj:
            found = [one for one in self.books.kinds[kind].values() if not one.get("deleted")]
            found = [one for one in found if self._fits(kind, one, params)]
            return page(found, params, f"/v1/{path}")

        return answer

    def _retriever(self, kind: str) -> Handler:
        return lambda params, object_id: self.books.get(kind, object_id)

    def _updater(self, kind: str) -> Handler:
        def update(params: Obj, object_id: str) -> Obj:
            thing = self.books.get(kind, object_id)
            fields = {name: true(value) if name == "active" else value for name, value in params.items()}
            self.books.change(f"{kind}.updated", thing, **fields)
            return thing

        return update

    def _ender(self, status: str) -> Handler:
        def end(params: Obj, invoice_id: str) -> Obj:
            invoice = self.books.get("invoice", invoice_id)
            if invoice["status"] != "open":
                raise invalid(f"You can only pass in open invoices. This invoice is {invoice['status']}.", "invoice")
            self.invoices.end(invoice, status)
            return invoice

        return end

    def _fits(self, kind: str, thing: Obj, params: Obj) -> bool:
        if kind == "subscription" and "status" not in params and thing["status"] == "canceled":
            return False
        return all(self._matches(kind, thing, name, value) for name, value in params.items() if name not in PAGING)

    def _matches(self, kind: str, thing: Obj, name: str, value: Any) -> bool:
        if kind == "subscription" and name == "status":
            wanted = {"ended": {"canceled", "incomplete_expired"}}.get(value, {value})
            return value == "all" or thing["status"] in wanted
        if kind == "subscription" and name == "price":
            return any(item["price"]["id"] == value for item in thing["items"]["data"])
        if kind == "invoice" and name == "subscription":
            return thing["parent"]["subscription_details"]["subscription"] == value
        if kind == "invoice_payment" and name == "payment":
            return thing["payment"].get(value["type"]) == value.get(value["type"])
        if name in {"ids", "lookup_keys"}:
            return thing["id" if name == "ids" else "lookup_key"] in value
        if name == "active":
            return thing["active"] is true(value)
        if name == "customer_details":
            return (thing["customer_details"] or {}).get("email") == value["email"]
        return thing.get(name) == value

    def _expanded(self, thing: Obj, paths: list[str]) -> Obj:
        thing = _copy(thing)
        for path in paths:
            self._expand(thing, path.split("."))
        return thing

    def _expand(self, thing: Any, path: list[str]) -> None:
        if not path or thing is None:
            return
        if isinstance(thing, list):
            for one in thing:
                self._expand(one, path)
            return
        name, rest = path[0], path[1:]
        virtual = {
            ("invoice", "payments"): lambda: listed(_copy(self.invoices.payments(thing)), "/v1/invoice_payments"),
            ("charge", "refunds"): lambda: _copy(refunds_of(self.books, thing)),
            ("checkout.session", "line_items"): lambda: _copy(self.checkout.lines_of(thing)),
            ("customer", "subscriptions"): lambda: self._lister("subscriptions", "subscription")({"customer": thing["id"]}),
        }.get((str(thing.get("object")), name))
        if virtual is not None:
            thing[name] = _copy(virtual())
        elif isinstance(thing.get(name), str):
            if name not in EXPANDABLE:
                raise invalid(f"This property cannot be expanded ({name}).", "expand")
            thing[name] = _copy(self.books.get(EXPANDABLE[name], thing[name]))
        elif name not in thing:
            raise invalid(f"This property cannot be expanded ({name}).", "expand")
        self._expand(thing[name], rest)

    def _balance(self) -> Obj:
        net: dict[str, int] = {}
        for moved in self.books.kinds["balance_transaction"].values():
            net[moved["currency"]] = net.get(moved["currency"], 0) + moved["net"]
        available = [{"amount": amount, "currency": currency} for currency, amount in net.items()]
        return {"object": "balance", "available": available, "pending": [], "livemode": False}

    def _events(self, params: Obj) -> Obj:
        oldest = self.books.now - 30 * DAY
        found = [event for event in self.books.events.values() if event["created"] >= oldest]
        if "delivery_success" in params:
            wanted = true(params["delivery_success"])
            found = [event for event in found if (event["id"] not in self.books.undelivered) is wanted]
        kinds = [params["type"]] if "type" in params else params.get("types")
        if kinds is not None:
            found = [event for event in found if any(_named(event["type"], kind) for kind in kinds)]
        return page(found, params, "/v1/events")

    def _event(self, event_id: str) -> Obj:
        event = self.books.events.get(event_id)
        if event is None or event["created"] < self.books.now - 30 * DAY:
            raise invalid(f"No such event: '{event_id}'", "id", "resource_missing", 404)
        return event

    def _create_customer(self, params: Obj) -> Obj:
        customer = new_customer(self.books, params)
        if params.get("payment_method"):
            customer["invoice_settings"]["default_payment_method"] = self.money.attach(
                params["payment_method"], customer["id"]
            )["id"]
        return customer

    def _search_customers(self, params: Obj) -> Obj:
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
        found = found[::-1]
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

    def _update_customer(self, params: Obj, customer_id: str) -> Obj:
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

    def _delete_customer(self, customer_id: str) -> Obj:
        customer = self._living(customer_id)
        for sub in self.books.of("subscription", customer=customer_id):
            if sub["status"] not in {"canceled", "incomplete_expired"}:
                self.subscriptions.cancel(sub)
        self.books.emit("customer.deleted", customer)
        return self.books.add("customer", {"id": customer_id, "object": "customer", "deleted": True})

    def _cards_of(self, params: Obj, customer_id: str) -> Obj:
        found = list(self.books.of("payment_method", customer=customer_id))
        return page(found, params, f"/v1/customers/{customer_id}/payment_methods")

    def _detach(self, card_id: str) -> Obj:
        card = self.books.get("payment_method", card_id, "payment_method", "PaymentMethod")
        self.books.change("payment_method.detached", card, customer=None)
        for customer in self.books.of("customer"):
            settings = customer.get("invoice_settings") or {}
            if settings.get("default_payment_method") == card_id:
                settings["default_payment_method"] = None
        return card

    def _create_product(self, params: Obj) -> Obj:
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

    def _create_price(self, params: Obj) -> Obj:
        self.books.get("product", params.get("product"), "product")
        price = price_of(self.books, params)
        self.books.emit("price.created", price)
        return price

    def _create_coupon(self, params: Obj) -> Obj:
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

    def _create_feature(self, params: Obj) -> Obj:
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

    def _attach_feature(self, params: Obj, product_id: str) -> Obj:
        self.books.get("product", product_id)
        feature = self.books.get("entitlements.feature", params["entitlement_feature"])
        self.books.hidden[feature["id"]].setdefault("products", set()).add(product_id)
        attached = {"id": self.books.new_id("prodft"), "object": "product_feature", "livemode": False}
        return attached | {"entitlement_feature": feature}

    def _entitlements(self, params: Obj) -> Obj:
        found = self.subscriptions.entitlements(params["customer"])
        return page(found, params, "/v1/entitlements/active_entitlements")

    def _portal(self, params: Obj) -> Obj:
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

    def _preview(self, params: Obj) -> Obj:
        sub = self.books.get("subscription", params.get("subscription"), "subscription")
        if params.get("customer") not in {None, sub["customer"]}:
            raise invalid("The subscription does not belong to the customer.", "subscription")
        return self.subscriptions.preview(sub, params)

    def _pay(self, params: Obj, invoice_id: str) -> Obj:
        invoice = self.books.get("invoice", invoice_id)
        if invoice["status"] == "paid":
            raise invalid("Invoice is already paid", "invoice", "invoice_already_paid")
        if self.invoices.pay(invoice, params.get("payment_method")) == "requires_payment_method":
            raise invalid("Your card was declined.", None, "card_declined", 402)
        return invoice

    def _finalize(self, params: Obj, invoice_id: str) -> Obj:
        invoice = self.books.get("invoice", invoice_id)
        self.invoices.finalize(invoice)
        return invoice

    def _refund(self, params: Obj) -> Obj:
        charge_id = params.get("charge")
        if params.get("payment_intent"):
            charge_id = self.books.get("payment_intent", params["payment_intent"], "payment_intent")["latest_charge"]
        charge = self.books.get("charge", charge_id, "charge")
        amount = number(params["amount"], "amount", 1) if "amount" in params else None
        return self.money.refund(charge, amount, params.get("reason"))


def page(found: list[Obj], params: Obj, url: str) -> Obj:
    """Return a page, newest first. `starting_after` goes to older ones, `ending_before` to newer ones."""
    limit = number(params.get("limit", 10), "limit", 1, 100)
    found = [thing for thing in found if _created(thing, params.get("created"))][::-1]
    ids = [thing["id"] for thing in found]
    for name in ("starting_after", "ending_before"):
        if name in params and params[name] not in ids:
            raise invalid(f"No such object: '{params[name]}'", name, "resource_missing")
    if "ending_before" in params:
        newer = found[: ids.index(params["ending_before"])]
        return listed(newer[-limit:], url, more=len(newer) > limit)
    rest = found[ids.index(params["starting_after"]) + 1 :] if "starting_after" in params else found
    return listed(rest[:limit], url, more=len(rest) > limit)


@cache
def parameters_of(names: str) -> frozenset[str]:
    """Return what stripe-python's types allow an endpoint to take: "checkout.session_create" names the file."""
    group, _, name = names.rpartition(".")
    module = importlib.import_module(f"stripe.params.{group + '.' if group else ''}_{name}_params")
    kind = getattr(module, "".join(part.capitalize() for part in name.split("_")) + "Params")
    return frozenset(kind.__annotations__) - frozenset(RequestOptions.__annotations__)


def _created(thing: Obj, wanted: Any) -> bool:
    at = thing.get("created", 0)
    if not isinstance(wanted, dict):
        return wanted is None or at == int(wanted)
    tests: dict[str, Callable[[int], bool]] = {
        "gt": lambda bound: at > bound,
        "gte": lambda bound: at >= bound,
        "lt": lambda bound: at < bound,
        "lte": lambda bound: at <= bound,
    }
    return all(tests[name](int(bound)) for name, bound in wanted.items())


def _named(kind: str, pattern: str) -> bool:
    return kind.startswith(pattern[:-1]) if pattern.endswith("*") else kind == pattern


def _iso(at: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _copy(thing: Any) -> Any:
    import json

    return json.loads(json.dumps(thing))
