"""Subscriptions: begun, tried, renewed, changed, paused, ended; what they entitle to."""

from typing import Any, Literal

from tests.fakes.stripe.books import DAY, HOUR, Books, Obj, invalid, listed, number, true
from tests.fakes.stripe.invoices import Invoices
from tests.fakes.stripe.lines import Lines, after, period_end
from tests.fakes.stripe.money import Money

LIVE = frozenset({"trialing", "active", "past_due"})
OVER = frozenset({"canceled", "incomplete_expired"})
AfterRetries = Literal["cancel", "unpaid", "past_due"]


class Subscriptions:
    """What happens to subscriptions, by request and by the clock."""

    def __init__(self, books: Books, money: Money, invoices: Invoices, after_retries: AfterRetries) -> None:
        self.books = books
        self.money = money
        self.invoices = invoices
        self.after_retries: AfterRetries = after_retries
        self.lines = Lines(books)
        invoices.settled = self._settled

    def create(self, params: Obj, *, authenticated: bool = False) -> Obj:
        """Begin a subscription, as POST /v1/subscriptions says."""
        books = self.books
        customer = books.get("customer", params.get("customer"), "customer")
        prices = [(books.get("price", item["price"], "items[0][price]"), item) for item in params.get("items", [])]
        if not prices:
            raise invalid("Missing required param: items.", "items", "parameter_missing")
        if any(not price["active"] or price["recurring"] is None for price, _ in prices):
            raise invalid("The price specified is inactive or not recurring.", "items[0][price]")
        sub_id = books.new_id("sub")
        trial_end = self._trial_end(params)
        first = prices[0][0]
        ends = trial_end or after(books.now, first, books.now)
        items = [self.lines.item(sub_id, price, int(item.get("quantity", 1)), ends) for price, item in prices]
        sub: Obj = {
            "id": sub_id,
            "object": "subscription",
            "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
            "billing_cycle_anchor": trial_end or books.now,
            "billing_mode": {"type": "classic"},
            "cancel_at": None,
            "cancel_at_period_end": true(params.get("cancel_at_period_end", "false")),
            "canceled_at": None,
            "cancellation_details": {"comment": None, "feedback": None, "reason": None},
            "collection_method": params.get("collection_method", "charge_automatically"),
            "created": books.now,
            "currency": first["currency"],
            "customer": customer["id"],
            "days_until_due": None,
            "default_payment_method": params.get("default_payment_method"),
            "default_source": None,
            "default_tax_rates": [],
            "description": params.get("description"),
            "discounts": [],
            "ended_at": None,
            "items": listed(items, f"/v1/subscription_items?subscription={sub_id}"),
            "latest_invoice": None,
            "livemode": False,
            "metadata": params.get("metadata", {}),
            "next_pending_invoice_item_invoice": None,
            "pause_collection": None,
            "pending_setup_intent": None,
            "pending_update": None,
            "schedule": None,
            "start_date": books.now,
            "status": "trialing" if trial_end else "incomplete",
            "test_clock": None,
            "trial_end": trial_end,
            "trial_settings": params.get("trial_settings")
            or {"end_behavior": {"missing_payment_method": "create_invoice"}},
            "trial_start": books.now if trial_end else None,
        }
        books.add("subscription", sub)
        self.discount(sub, params.get("discounts") or [])
        if params.get("payment_behavior") == "error_if_incomplete" and not trial_end:
            self._must_pay(sub, customer)
        books.emit("customer.subscription.created", sub)
        invoice = self.invoices.draft(
            sub, [self.lines.line(item, free=bool(trial_end)) for item in items], "subscription_create"
        )
        sub["latest_invoice"] = invoice["id"]
        self.invoices.finalize(invoice, authenticated=authenticated)
        if trial_end:
            self._entitle(sub)
            books.later(max(books.now, trial_end - 3 * DAY), lambda: self._trial_will_end(sub, trial_end))
            books.later(trial_end, lambda: self._end_trial(sub, trial_end))
        else:
            books.later(books.now + 23 * HOUR, lambda: self._expire(sub))
            self._await_period(sub)
        return sub

    def update(self, sub: Obj, params: Obj) -> Obj:
        """Change a subscription, as POST /v1/subscriptions/{id} says."""
        if sub["status"] in OVER:
            raise invalid("A canceled subscription can only update its cancellation_details and metadata.", "id")
        fields: Obj = {}
        if "cancel_at_period_end" in params:
            ends = true(params["cancel_at_period_end"])
            at = period_end(sub) if ends else None
            fields |= {"cancel_at_period_end": ends, "cancel_at": at, "canceled_at": self.books.now if ends else None}
            reason = "cancellation_requested" if ends else None
            fields["cancellation_details"] = sub["cancellation_details"] | {"reason": reason}
        if "metadata" in params:
            merged = sub["metadata"] | (params["metadata"] or {})
            fields["metadata"] = {name: value for name, value in merged.items() if value != ""}
        if "default_payment_method" in params:
            fields["default_payment_method"] = params["default_payment_method"] or None
        if "pause_collection" in params:
            behaviour = params["pause_collection"]
            fields["pause_collection"] = {"resumes_at": None} | behaviour if behaviour else None
        if "discounts" in params:
            self.discount(sub, params["discounts"] or [])
        if "items" in params:
            self._change_items(sub, params, fields)
        self.books.change("customer.subscription.updated", sub, **fields)
        if params.get("trial_end") == "now" and sub["status"] == "trialing":
            self._end_trial(sub, sub["trial_end"])
        self._entitle(sub)
        return sub

    def preview(self, sub: Obj, params: Obj) -> Obj:
        """Return the invoice that would come next, or at once, with the items that the request asks for."""
        details = params.get("subscription_details", {})
        lines = [line for _, line in self._pending(sub)]
        future = [dict(item) for item in sub["items"]["data"]]
        when = number(details.get("proration_date", self.books.now), "proration_date", 0, 2**40)
        if "items" in details:
            future, prorated = self.lines.replaced(sub, details["items"], when)
            lines += prorated if details.get("proration_behavior", "create_prorations") != "none" else []
        at_once = details.get("proration_behavior") == "always_invoice"
        if not at_once and not sub["cancel_at_period_end"]:
            lines += [self.lines.line(item, start=item["current_period_end"]) for item in future]
        reason = "subscription_update" if at_once else "upcoming"
        return self.invoices.draft(sub, lines, reason, preview=True)

    def cancel(self, sub: Obj, reason: str = "cancellation_requested") -> Obj:
        """End it now."""
        if sub["status"] in OVER:
            raise invalid(f"No such subscription: '{sub['id']}'", "id", "resource_missing", 404)
        now = self.books.now
        for invoice in self.books.of("invoice", customer=sub["customer"]):
            if invoice["parent"]["subscription_details"]["subscription"] == sub["id"]:
                invoice.update(auto_advance=False, next_payment_attempt=None)
        sub.update(status="canceled", canceled_at=sub["canceled_at"] or now, ended_at=now)
        sub["cancellation_details"] = sub["cancellation_details"] | {"reason": reason}
        self.books.emit("customer.subscription.deleted", sub)
        self._entitle(sub)
        return sub

    def pause(self, sub: Obj, why: str = "pause_requested") -> Obj:
        """Stop billing and access."""
        details = {"type": "subscription", "transitioned_at": self.books.now, "subscription": {"type": why}}
        sub["status_details"] = {"paused": details}
        self.books.change("customer.subscription.updated", sub, status="paused")
        self.books.emit("customer.subscription.paused", sub)
        self._entitle(sub)
        return sub

    def resume(self, sub: Obj) -> Obj:
        """Go on with a new period that begins now."""
        if sub["status"] != "paused":
            raise invalid("You can only resume a subscription that is paused.", "id")
        sub["billing_cycle_anchor"] = self.books.now
        invoice = self._next_period(sub, self.books.now, "subscription_cycle", status="active")
        self.books.emit("customer.subscription.resumed", sub)
        self.invoices.finalize(invoice)
        self._entitle(sub)
        return sub

    def discount(self, sub: Obj, discounts: list[Obj]) -> None:
        """Give the first coupon named to a subscription."""
        sub["discounts"] = []
        for wanted in discounts[:1]:
            coupon = self.books.get("coupon", wanted.get("coupon"), "discounts[0][coupon]")
            if not coupon["valid"]:
                raise invalid(f"Coupon expired: {coupon['id']}", "discounts[0][coupon]", "coupon_expired")
            self.books.hidden[sub["id"]]["coupon"] = coupon
            sub["discounts"] = [self.books.new_id("di")]
            coupon["times_redeemed"] += 1

    def _trial_end(self, params: Obj) -> int | None:
        if params.get("trial_period_days"):
            return self.books.now + number(params["trial_period_days"], "trial_period_days", 1, 730) * DAY
        if params.get("trial_end") not in {None, "now"}:
            return number(params["trial_end"], "trial_end", self.books.now, 2**40)
        return None

    def _must_pay(self, sub: Obj, customer: Obj) -> None:
        if self.money.behaviour(self.money.card_of(customer, sub)) != "pays":
            del self.books.kinds["subscription"][sub["id"]]
            raise invalid("Your card was declined.", None, "card_declined", 402)

    def _change_items(self, sub: Obj, params: Obj, fields: Obj) -> None:
        behaviour = params.get("proration_behavior", "create_prorations")
        when = number(params.get("proration_date", self.books.now), "proration_date", 0, 2**40)
        items, lines = self.lines.replaced(sub, params["items"], when)
        free = sub["status"] == "trialing"
        before = sub["items"]["data"][0]["price"]["recurring"]["interval"]
        fields["items"] = sub["items"] | {"data": items}
        resets = items[0]["price"]["recurring"]["interval"] != before and not free
        if behaviour != "none" and not free:
            for line in lines if not resets else lines[:1]:
                self.books.add(
                    "invoiceitem", {"id": line["id"], "object": "invoiceitem", "line": line, "of": sub["id"]}
                )
        if resets:
            self.books.change("customer.subscription.updated", sub, items=fields.pop("items"))
            sub["billing_cycle_anchor"] = self.books.now
            self.invoices.finalize(self._next_period(sub, self.books.now, "subscription_update"))
        elif behaviour == "always_invoice" and not free:
            pending = [line for _, line in self._pending(sub, take=True)]
            invoice = self.invoices.draft(sub, pending, "subscription_update")
            fields["latest_invoice"] = invoice["id"]
            self.invoices.finalize(invoice)

    def _pending(self, sub: Obj, *, take: bool = False) -> list[tuple[str, Obj]]:
        found = [(item["id"], item["line"]) for item in self.books.of("invoiceitem", of=sub["id"])]
        for item_id, _ in found if take else []:
            del self.books.kinds["invoiceitem"][item_id]
        return found

    def _trial_will_end(self, sub: Obj, trial_end: int) -> None:
        if sub["status"] == "trialing" and sub["trial_end"] == trial_end:
            self.books.emit("customer.subscription.trial_will_end", sub)

    def _end_trial(self, sub: Obj, trial_end: int) -> None:
        if sub["status"] != "trialing" or sub["trial_end"] != trial_end:
            return
        if sub["cancel_at_period_end"]:
            self.cancel(sub, sub["cancellation_details"]["reason"])
            return
        sub["trial_end"] = self.books.now
        missing = sub["trial_settings"]["end_behavior"]["missing_payment_method"]
        card = self.money.card_of(self.books.get("customer", sub["customer"]), sub)
        if card is None and missing == "cancel":
            self.cancel(sub, "payment_failed")
        elif card is None and missing == "pause":
            self.pause(sub, "trial_end_without_payment_method")
        else:
            sub["billing_cycle_anchor"] = self.books.now
            self.invoices.soon(self._next_period(sub, self.books.now, "subscription_cycle", status="active"))

    def _await_period(self, sub: Obj) -> None:
        ends = period_end(sub)
        self.books.later(ends, lambda: self._renew(sub, ends))

    def _renew(self, sub: Obj, ends: int) -> None:
        if sub["status"] not in {"active", "past_due", "unpaid"} or period_end(sub) != ends:
            return
        if sub["cancel_at_period_end"]:
            self.cancel(sub, sub["cancellation_details"]["reason"])
            return
        invoice = self._next_period(sub, ends, "subscription_cycle")
        if sub["status"] == "unpaid" or (sub["pause_collection"] or {}).get("behavior") == "keep_as_draft":
            invoice["auto_advance"] = False
        self.invoices.soon(invoice)

    def _next_period(self, sub: Obj, start: int, reason: str, **fields: Any) -> Obj:
        """Begin a period and write its invoice."""
        items = [dict(item) for item in sub["items"]["data"]]
        for item in items:
            ends = after(sub["billing_cycle_anchor"], item["price"], start)
            item.update(current_period_start=start, current_period_end=ends)
        self.books.change("customer.subscription.updated", sub, items=sub["items"] | {"data": items}, **fields)
        self._await_period(sub)
        pending = [line for _, line in self._pending(sub, take=True)]
        invoice = self.invoices.draft(sub, [*pending, *(self.lines.line(item) for item in items)], reason)
        sub["latest_invoice"] = invoice["id"]
        return invoice

    def _expire(self, sub: Obj) -> None:
        if sub["status"] != "incomplete":
            return
        self.books.change("customer.subscription.updated", sub, status="incomplete_expired", ended_at=self.books.now)
        self.invoices.end(self.books.get("invoice", sub["latest_invoice"]), "void")

    def _settled(self, invoice: Obj, how: str) -> None:
        sub = self.invoices.subscription_of(invoice)
        if sub is None or sub["status"] in OVER or sub["status"] == "trialing":
            return
        if how == "gave_up" and self.after_retries == "cancel":
            self.cancel(sub, "payment_failed")
            return
        after_retries = self.after_retries if self.after_retries != "cancel" else "canceled"
        failing = "past_due" if sub["status"] not in {"incomplete", "unpaid", "paused"} else sub["status"]
        became = {"paid": "active", "processing": "active", "failed": failing, "gave_up": after_retries}[how]
        if how == "paid" and self._owes(sub):
            became = sub["status"]
        self.books.change("customer.subscription.updated", sub, status=became)
        self._entitle(sub)

    def _owes(self, sub: Obj) -> bool:
        latest = self.books.kinds["invoice"].get(sub["latest_invoice"] or "")
        return latest is not None and latest["status"] == "open" and latest["attempted"]

    def _entitle(self, sub: Obj) -> None:
        """Tell what the customer may use, when it is other than before."""
        customer = sub["customer"]
        entitled = self.entitlements(customer)
        names = sorted(one["lookup_key"] for one in entitled)
        if self.books.hidden[customer].get("entitled", []) == names:
            return
        self.books.hidden[customer]["entitled"] = names
        url = f"/v1/entitlements/active_entitlements?customer={customer}"
        summary = {
            "object": "entitlements.active_entitlement_summary",
            "customer": customer,
            "entitlements": listed(entitled, url),
            "livemode": False,
        }
        self.books.emit("entitlements.active_entitlement_summary.updated", summary)

    def entitlements(self, customer: str) -> list[Obj]:
        """Return a customer's active entitlements."""
        subs = [sub for sub in self.books.of("subscription", customer=customer) if sub["status"] in LIVE]
        products = {item["price"]["product"] for sub in subs for item in sub["items"]["data"]}
        features = [
            one
            for one in self.books.of("entitlements.feature")
            if self.books.hidden[one["id"]].get("products", set()) & products
        ]
        return [
            {
                "id": f"ent_{customer}_{one['id']}",
                "object": "entitlements.active_entitlement",
                "feature": one["id"],
                "livemode": False,
                "lookup_key": one["lookup_key"],
            }
            for one in features
        ]
