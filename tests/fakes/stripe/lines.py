"""Items of subscriptions and lines of invoices: whole periods, and parts of them."""

import calendar
from datetime import UTC, datetime

from tests.fakes.stripe.books import DAY, Books, Obj, invalid, true


class Lines:
    """Makes items and lines."""

    def __init__(self, books: Books) -> None:
        self.books = books

    def item(self, sub_id: str, price: Obj, quantity: int, ends: int) -> Obj:
        """Make an item whose period begins now."""
        return {
            "id": self.books.new_id("si"),
            "object": "subscription_item",
            "created": self.books.now,
            "current_period_end": ends,
            "current_period_start": self.books.now,
            "discounts": [],
            "metadata": {},
            "price": price,
            "quantity": quantity,
            "subscription": sub_id,
            "tax_rates": [],
        }

    def line(self, item: Obj, *, free: bool = False, start: int | None = None) -> Obj:
        """Bill an item for its period, or for the one that begins at `start`."""
        begins: int = item["current_period_start"] if start is None else start
        ends: int = item["current_period_end"]
        if begins == ends:
            ends = after(begins, item["price"], begins)
        amount = 0 if free else item["price"]["unit_amount"] * item["quantity"]
        return self.billed(item, amount, (begins, ends), proration=False)

    def billed(self, item: Obj, amount: int, period: tuple[int, int], *, proration: bool) -> Obj:
        """Return a line of an invoice."""
        price = item["price"]
        details = {
            "invoice_item": None,
            "proration": proration,
            "subscription": item["subscription"],
            "subscription_item": item["id"],
        }
        return {
            "id": self.books.new_id("il"),
            "object": "line_item",
            "amount": amount,
            "currency": price["currency"],
            "description": None,
            "discountable": not proration,
            "livemode": False,
            "metadata": {},
            "parent": {"type": "subscription_item_details", "subscription_item_details": details},
            "period": {"start": period[0], "end": period[1]},
            "pricing": {
                "type": "price_details",
                "price_details": {"price": price["id"], "product": price["product"]},
                "unit_amount_decimal": price["unit_amount_decimal"],
            },
            "quantity": item["quantity"],
            "subtotal": amount,
        }

    def replaced(self, sub: Obj, wanted: list[Obj], when: int) -> tuple[list[Obj], list[Obj]]:
        """Return the items as they would be, and the credit and debit for the rest of the period."""
        items = {item["id"]: dict(item) for item in sub["items"]["data"]}
        lines: list[Obj] = []
        for change in wanted:
            old = items.get(change.get("id", ""))
            if change.get("id") and old is None:
                raise invalid(f"No such subscription item: '{change['id']}'", "items[0][id]", "resource_missing", 404)
            if old is not None:
                lines.append(self.prorated(old, when, -1))
            if true(change.get("deleted", "false")):
                items.pop(change["id"])
                continue
            price = self.books.get("price", change["price"], "items[0][price]") if "price" in change else None
            base = old or self.item(sub["id"], price or {}, 1, period_end(sub))
            new = (
                base | ({"price": price} if price else {}) | {"quantity": int(change.get("quantity", base["quantity"]))}
            )
            items[new["id"]] = new
            lines.append(self.prorated(new, when, 1))
        return list(items.values()), [line for line in lines if line["amount"]]

    def prorated(self, item: Obj, when: int, sign: int) -> Obj:
        """Return the part of an item's price for the rest of its period; sign -1 gives it back."""
        start, end = item["current_period_start"], item["current_period_end"]
        whole = item["price"]["unit_amount"] * item["quantity"]
        part = (2 * whole * max(0, end - when) + (end - start)) // (2 * (end - start))
        return self.billed(item, sign * part, (when, end), proration=True)


def period_end(sub: Obj) -> int:
    """Return when the period of a subscription's items ends."""
    return max(item["current_period_end"] for item in sub["items"]["data"])


def after(anchor: int, price: Obj, start: int) -> int:
    """Return the end of the period that begins at `start`: whole months from the anchor, or days and weeks."""
    every, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    if every in {"day", "week"}:
        return start + count * DAY * (7 if every == "week" else 1)
    months = count * (12 if every == "year" else 1)
    first = datetime.fromtimestamp(anchor, UTC)
    periods = 1
    while _plus(first, periods * months) <= start:
        periods += 1
    return _plus(first, periods * months)


def _plus(first: datetime, months: int) -> int:
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    day = min(first.day, calendar.monthrange(year, month + 1)[1])
    return int(first.replace(year=year, month=month + 1, day=day).timestamp())
