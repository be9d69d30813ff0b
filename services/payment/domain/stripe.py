"""What Stripe's objects mean here. An object is the JSON that Stripe gave, as Python values; never a StripeObject.

    Stripe says                     we say
    trialing, active                the same
    past_due                        past_due, with access until its first open invoice is older than the grace
    paused                          paused
    any of these, with its          paused: Stripe goes on without asking for money because nothing is delivered
      collection paused and "void"
    unpaid, incomplete_expired      expired
    canceled, or it is gone         canceled
    incomplete                      not yet a subscription: its first payment is under way

Collection paused in another way ("keep_as_draft", "mark_uncollectible") is what one does to give access for nothing:
the status counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

from services.payment.domain.plans import Plans
from services.payment.domain.subscriptions import State
from shared.contracts.payment import SubscriptionStatus

Object = Mapping[str, Any]
"""An object of Stripe's."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object that is fetched when something hints at it.

    `path` is where one is found, behind /v1/; with `query` it is a list, of which that parameter picks one owner's.
    `expand` are the references that come with it as whole objects. `listed` is the
    query of the sweep's list, None where the sweep does not look; `recent` narrows the list to the last days, for kinds
    of which there are more each month.
    """

    path: str
    query: str | None = None
    expand: tuple[str, ...] = ()
    listed: Mapping[str, str] | None = None
    recent: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "subscription": Kind("subscriptions/{id}", expand=("latest_invoice",), listed={"status": "all"}),
    "customer": Kind("customers/{id}", listed={}),
    "checkout.session": Kind("checkout/sessions/{id}", listed={}, recent=True),
    "price": Kind("prices/{id}", listed={}),
    "product": Kind("products/{id}", listed={}),
    "payment_intent": Kind("payment_intents/{id}", listed={}, recent=True),
    "invoice": Kind("invoices/{id}", expand=("payments.data.payment.payment_intent",), listed={}, recent=True),
    "charge": Kind("charges/{id}", expand=("balance_transaction",), listed={}, recent=True),
    "refund": Kind("refunds/{id}", expand=("balance_transaction", "charge"), listed={}, recent=True),
    "dispute": Kind("disputes/{id}", expand=("charge",), listed={}, recent=True),
    "payment_method": Kind("payment_methods/{id}"),
    "payout": Kind("payouts/{id}", expand=("balance_transaction",)),
    "balance_transaction": Kind("balance_transactions/{id}"),  # for the ledger, which reads their list
    "entitlements.active_entitlement_summary": Kind("entitlements/active_entitlements", query="customer"),
}
"""By the name that Stripe gives a kind in `object`. An entitlement summary goes by its customer's id."""

LONGEST: Final = 255
"""Characters of an id or a name of Stripe's."""

_PASSING: Final = frozenset(
    {"receipt_url", "hosted_invoice_url", "invoice_pdf", "url", "client_secret", "payments", "unpaid_since"}
)
"""Fields that are another each time they are asked for, or come only when they are (an invoice's payments)."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What an event says has changed. `object_kind` and `object_id` are None where it names nothing."""

    event_id: str
    event_type: str
    object_kind: str | None
    object_id: str | None
    customer: str | None
    livemode: bool
    created: datetime


def hint_of(event: Object) -> Hint:
    """Read an event, whole (v1) or thin (v2). Raises ValueError for what is none."""
    created = event.get("created")
    event_id, event_type = _text(event.get("id")), _text(event.get("type"))
    if event_id is None or event_type is None:
        raise ValueError("an event has an id and a type")
    if event.get("object") == "v2.core.event":
        if not isinstance(created, str):
            raise ValueError("a thin event's created is a time in ISO 8601")
        related = _mapping(event.get("related_object"))
        kind, object_id, customer = _text(related.get("type")), _text(related.get("id")), None
        at = datetime.fromisoformat(created)
    elif event.get("object") == "event":
        if isinstance(created, bool) or not isinstance(created, int):
            raise ValueError("an event's created is in seconds")
        changed = _mapping(_mapping(event.get("data")).get("object"))
        kind, object_id, customer = _text(changed.get("object")), _text(changed.get("id")), customer_of(changed)
        at = moment(created)
    else:
        raise ValueError("this is no event")
    if at is None or at.tzinfo is None:
        raise ValueError("an event's created says when")
    if kind == "customer":
        customer = object_id
    elif kind == "entitlements.active_entitlement_summary":
        object_id = customer
    return Hint(event_id, event_type, kind, object_id, customer, event.get("livemode") is True, at)


def reference(value: Any) -> str | None:
    """Return the id of what a field refers to, expanded or not."""
    return _text(_mapping(value).get("id")) if isinstance(value, Mapping) else _text(value)


def customer_of(thing: Object) -> str | None:
    """Return whose an object is, by Stripe's id of the customer."""
    return reference(thing.get("customer"))


def subscription_of(invoice: Object) -> str | None:
    """Return the subscription that an invoice bills, by Stripe's id."""
    return reference(_mapping(_mapping(invoice.get("parent")).get("subscription_details")).get("subscription"))


def user_named(thing: Object) -> UUID | None:
    """Return the user that we, or the checkout, wrote on an object."""
    for named in (_mapping(thing.get("metadata")).get("user_id"), thing.get("client_reference_id")):
        try:
            return UUID(str(named))
        except ValueError:
            continue
    return None


def moment(seconds: Any) -> datetime | None:
    """Return a time that Stripe gave in Unix seconds. Raises ValueError for one beyond all calendars."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("a time beyond all calendars") from error


def state_of(subscription: Object, plans: Plans, grace: timedelta, now: datetime) -> State | None:
    """Return a subscription as we call it; None while it is not one yet."""
    status = _status(subscription)
    if status is None:
        return None
    item = _item(subscription, plans)
    period_end = moment(item.get("current_period_end") or subscription.get("current_period_end"))
    return State(
        provider="stripe",
        provider_id=subscription["id"],
        plan=_plan(subscription, item, plans),
        status=status,
        period_start=moment(item.get("current_period_start") or subscription.get("current_period_start")),
        period_end=period_end,
        trial_end=moment(subscription.get("trial_end")),
        grace_until=_unpaid_since(subscription, item, now) + grace if status == "past_due" else None,
        cancel_at_period_end=_ends(subscription, period_end),
    )


def is_open(subscription: Object) -> bool:
    """Whether Stripe's subscription is one of ours that is not over."""
    return _status(subscription) in {"trialing", "active", "past_due", "paused"}


def same(one: Any, other: Any) -> bool:
    """Whether two answers say the same of an object: expanded or not, whatever passes with each answer left out."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        first, second = cast("Object", one), cast("Object", other)
        names = (first.keys() | second.keys()) - _PASSING
        return all(same(first.get(name), second.get(name)) for name in names)
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        return reference(one) is not None and reference(one) == reference(other)
    if _is_list(one) and _is_list(other):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Decimal) or isinstance(other, Decimal):  # what was kept as JSON is text
        return str(one) == str(other)
    return one == other


def _status(subscription: Object) -> SubscriptionStatus | None:
    said = subscription.get("status")
    held = _mapping(subscription.get("pause_collection")).get("behavior") == "void"
    known: Mapping[Any, SubscriptionStatus | None] = {
        "trialing": "paused" if held else "trialing",
        "active": "paused" if held else "active",
        "past_due": "paused" if held else "past_due",
        "paused": "paused",
        "canceled": "canceled",
        "unpaid": "expired",
        "incomplete_expired": "expired",
        "incomplete": None,
    }
    if said not in known:
        raise ValueError("a subscription's status that we do not know")
    return known[said]


def _item(subscription: Object, plans: Plans) -> Object:
    """Return the item that is one of our plans, else the first."""
    found = _mapping(subscription.get("items")).get("data")
    items = [_mapping(item) for item in cast("Sequence[Any]", found)] if _is_list(found) else []
    ours = [item for item in items if plans.of_price(reference(item.get("price")) or "") is not None]
    return (ours or items or [{}])[0]


def _plan(subscription: Object, item: Object, plans: Plans) -> str:
    """Return the plan's name: by its price, by the price's own name, by what we wrote when the subscription began."""
    price = _mapping(item.get("price"))
    priced = plans.of_price(reference(item.get("price")) or "")
    if priced is not None:
        return priced.name
    for name in (price.get("lookup_key"), _mapping(subscription.get("metadata")).get("plan")):
        if isinstance(name, str) and name in plans:
            return name
    return reference(item.get("price")) or "unknown"


def _unpaid_since(subscription: Object, item: Object, now: datetime) -> datetime:
    """Return when the payment that is missing was asked for: a property of what Stripe says, not of when we heard."""
    invoice = _mapping(subscription.get("latest_invoice"))
    return moment(subscription.get("unpaid_since") or invoice.get("created") or item.get("current_period_start")) or now


def _ends(subscription: Object, period_end: datetime | None) -> bool:
    cancel_at = moment(subscription.get("cancel_at"))
    at_the_end = cancel_at is not None and period_end is not None and cancel_at <= period_end
    return subscription.get("cancel_at_period_end") is True or at_the_end


def _mapping(value: Any) -> Object:
    return cast("Object", value) if isinstance(value, dict) else {}  # JSON's; an ABC takes ten times as long to ask


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _text(value: Any) -> str | None:
    """Return a name or an id, None for what Stripe would not give and no index could hold."""
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST and "\x00" not in value else None
