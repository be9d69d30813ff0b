"""Nobody is billed for what they may not use: what a refund or a dispute holds back is ended at Stripe.

    refunded in full, disputed          the subscription ends with its period
    disputed, while a payment is due    it ends at once, and so does Stripe's asking for that payment
    a dispute is lost                   it ends at once, unless it was of a payment of an earlier period

Each is one call for a refund or a dispute, whoever applies which object when; what its user or a person at Stripe
decides afterwards stays. A call that does not work is audited and counted, for a person has to look.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from prometheus_client import Counter

from services.payment.domain.stripe import Object, customer_of
from services.payment.ports import Json, NoSuchObject
from services.payment.service.audit import Audit
from services.payment.service.calls import Call, Calls, open_
from services.payment.service.refresh import Appliers
from services.payment.store.money import MoneyStore
from shared.contracts.base import Event
from shared.db import Row, Tx

UNRESOLVED: Final = Counter(
    "openbell_payment_stops_unresolved_total",
    "Subscriptions that could not be ended after a refund or a dispute: a person has to look",
)
_OVER: Final = frozenset({"canceled", "incomplete_expired"})


class Stops:
    """Ends at Stripe what is held back here."""

    def __init__(self, calls: Calls, store: MoneyStore, *, audit: Audit) -> None:
        self._calls = calls
        self._store = store
        self._audit = audit
        for kind in ("stop.at_end", "stop.now"):
            calls.before(kind, self._ended_already)
            calls.failed(kind, self._unresolved)

    def register(self, appliers: Appliers) -> None:
        """Look whenever something is applied that a hold is made of, after what it means has been noted."""
        for kind in ("subscription", "invoice", "charge", "dispute"):
            appliers.on(kind, self.applied)

    async def applied(self, tx: Tx, told: Object | None, object_id: str) -> list[Event]:
        """Order the calls for a user's subscriptions that are held back, each once."""
        del object_id
        customer = _customer(told)
        user_id = await self._store.user_of(tx, customer) if customer is not None else None
        if user_id is None:
            return []
        events: list[Event] = []
        for held in await self._store.held_at_stripe(tx, user_id):
            call = _call(held)
            last = await self._calls.last(tx, call.lane)
            if last is not None and (open_(last) or last["kind"] in {call.kind, "stop.now"}):
                continue  # one that is on its way has the subscription applied again when it has arrived
            await self._calls.order(tx, call)
            about = {"subscription": held["provider_id"], "because": held["about"], "how": call.kind}
            events.append(self._audit.of(None, "stop.subscription", str(user_id), **about))
        return events

    async def _ended_already(self, row: Row) -> Json | None:
        try:
            said = await self._calls.stripe.read(row["path"])
        except NoSuchObject:
            return {}
        at_end = row["kind"] == "stop.at_end" and said.get("cancel_at_period_end") is True
        return said if at_end or said["status"] in _OVER else None

    async def _unresolved(self, tx: Tx, row: Row, why: str) -> Sequence[Event]:
        tx.after_commit(UNRESOLVED.inc)
        about = {"kind": row["kind"], "call": row["key"], "why": why}
        return [self._audit.of(None, "stop.failed", str(row["user_id"]), **about)]


def _call(held: Row) -> Call:
    subscription, user_id = held["provider_id"], held["user_id"]
    path, lane = f"subscriptions/{subscription}", f"stop/{subscription}/{held['about']}"
    if held["lost"] or held["status"] == "past_due":
        return Call("stop.now", lane, user_id, path, {}, "delete")
    return Call("stop.at_end", lane, user_id, path, {"cancel_at_period_end": True, "metadata": {}})


def _customer(told: Object | None) -> str | None:
    """Return whose an object is; a dispute is about a charge that comes with it."""
    if told is None:
        return None
    charge: Any = told.get("charge")
    named = cast("Object", charge) if isinstance(charge, Mapping) else None
    return customer_of(told) or (customer_of(named) if named is not None else None)
