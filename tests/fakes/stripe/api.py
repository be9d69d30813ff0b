"""The endpoints: which request does what, with which parameters. What stripe-python cannot send is refused."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from tests.fakes.stripe.books import Books, Obj, invalid, listed, true
from tests.fakes.stripe.checkout import Checkout
from tests.fakes.stripe.desk import Desk
from tests.fakes.stripe.invoices import Invoices
from tests.fakes.stripe.money import Money, refunds_of
from tests.fakes.stripe.paging import page, parameters_of
from tests.fakes.stripe.subscriptions import AfterRetries, Subscriptions

KINDS: Final = {
    "balance_transactions": "balance_transaction",
    "charges": "charge",
    "checkout/sessions": "checkout.session",
    "coupons": "coupon",
    "promotion_codes": "promotion_code",
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
        self.desk = Desk(self.books, self.money, self.invoices, self.subscriptions, search_lag_s)
        get, sub = self.books.get, self.subscriptions
        self._table: list[tuple[str, str, str, Handler]] = [
            ("GET", "balance", "balance_retrieve", lambda p: self.desk.balance()),
            ("GET", "events", "event_list", self.desk.events),
            ("GET", "events/(evt_.+)", "event_retrieve", lambda p, i: self.desk.event(i)),
            ("POST", "customers", "customer_create", self.desk.create_customer),
            ("GET", "customers/search", "customer_search", self.desk.search_customers),
            ("POST", "customers/(cus_.+)", "customer_update", self.desk.update_customer),
            ("DELETE", "customers/(cus_.+)", "customer_delete", lambda p, i: self.desk.delete_customer(i)),
            ("GET", "customers/(cus_.+)/payment_methods", "customer_payment_method_list", self.desk.cards_of),
            ("POST", "products", "product_create", self.desk.create_product),
            ("POST", "products/(.+)/features", "product_feature_create", self.desk.attach_feature),
            ("POST", "products/(.+)", "product_update", self._updater("product")),
            ("POST", "prices", "price_create", self.desk.create_price),
            ("POST", "prices/(.+)", "price_update", self._updater("price")),
            ("POST", "coupons", "coupon_create", self.desk.create_coupon),
            ("POST", "entitlements/features", "entitlements.feature_create", self.desk.create_feature),
            ("GET", "entitlements/active_entitlements", "entitlements.active_entitlement_list", self.desk.entitlements),
            ("POST", "checkout/sessions", "checkout.session_create", self.checkout.create),
            (
                "POST",
                "checkout/sessions/([^/]+)/expire",
                "checkout.session_expire",
                lambda p, i: self.checkout.expire(get("checkout.session", i)),
            ),
            (
                "GET",
                "checkout/sessions/([^/]+)/line_items",
                "checkout.session_line_item_list",
                lambda p, i: self.checkout.lines_of(get("checkout.session", i)),
            ),
            ("POST", "billing_portal/sessions", "billing_portal.session_create", self.desk.portal),
            ("POST", "subscriptions", "subscription_create", sub.create),
            (
                "POST",
                "subscriptions/([^/]+)",
                "subscription_update",
                lambda p, i: sub.update(get("subscription", i), p),
            ),
            ("DELETE", "subscriptions/([^/]+)", "subscription_cancel", lambda p, i: sub.cancel(get("subscription", i))),
            (
                "POST",
                "subscriptions/([^/]+)/pause",
                "subscription_pause",
                lambda p, i: sub.pause(get("subscription", i)),
            ),
            (
                "POST",
                "subscriptions/([^/]+)/resume",
                "subscription_resume",
                lambda p, i: sub.resume(get("subscription", i)),
            ),
            ("POST", "invoices/create_preview", "invoice_create_preview", self.desk.preview),
            ("POST", "invoices/([^/]+)/pay", "invoice_pay", self.desk.pay),
            ("POST", "invoices/([^/]+)/finalize", "invoice_finalize_invoice", self.desk.finalize),
            ("POST", "invoices/([^/]+)/void", "invoice_void_invoice", self._ender("void")),
            ("POST", "invoices/([^/]+)/mark_uncollectible", "invoice_mark_uncollectible", self._ender("uncollectible")),
            (
                "POST",
                "payment_methods/([^/]+)/attach",
                "payment_method_attach",
                lambda p, i: self.money.attach(i, p["customer"]),
            ),
            ("POST", "payment_methods/([^/]+)/detach", "payment_method_detach", lambda p, i: self.desk.detach(i)),
            ("POST", "refunds", "refund_create", self.desk.refund),
        ]
        for path, kind in KINDS.items():
            self._table.append(("GET", path, f"{kind}_list", self._lister(path, kind)))
            self._table.append(("GET", f"{path}/([^/]+)", f"{kind}_retrieve", self._retriever(kind)))

    def call(self, method: str, path: str, params: Obj) -> Obj:
        """Do what a request asks; raises Refused."""
        path = path.removeprefix("/")
        if method == "GET" and (found := re.fullmatch(r"v2/core/events/(.+)", path)):
            return self.thin(self.desk.event(found[1]))
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

    def _matches(self, kind: str, thing: Obj, name: str, value: Any) -> bool:  # noqa: PLR0911 - a table of filters
        if kind == "subscription" and name == "status":
            wanted = {"ended": {"canceled", "incomplete_expired"}}.get(value, {value})
            return value == "all" or thing["status"] in wanted
        if kind == "subscription" and name == "price":
            return any(item["price"]["id"] == value for item in thing["items"]["data"])
        if kind == "invoice" and name == "subscription":
            return thing["parent"]["subscription_details"]["subscription"] == value
        if kind == "invoice_payment" and name == "payment":
            return thing["payment"].get(value["type"]) == value.get(value["type"])
        if kind == "promotion_code" and name == "code":
            return thing["code"].lower() == value.lower()
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
            ("customer", "subscriptions"): lambda: self._lister("subscriptions", "subscription")(
                {"customer": thing["id"]}
            ),
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


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _copy(thing: Any) -> Any:
    return json.loads(json.dumps(thing))
