"""What a write left at Stripe: asked before a write whose outcome nobody knows is repeated.

Every object that we make or change bears `call`, the key of the call, in its metadata. Lists are read and never the
search, which runs a minute behind.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.payment.ports import FailedReplay, Json, NoSuchObject, RawStripe
from shared.db import Row
from shared.errors import Transient
from shared.work import OutcomeUnknown

PAGE: Final = 100
SKEW: Final = timedelta(hours=1)
"""How far Stripe's clock and ours may be apart."""

LookUp = Callable[[RawStripe, Row], Awaitable[Json | None]]
"""Returns the object if the call has taken effect."""


async def pages(stripe: RawStripe, path: str, params: Json) -> AsyncIterator[Json]:
    """Yield all objects of a list, newest first."""
    after: Mapping[str, Any] = {}
    while True:
        page = await stripe.read(path, {**params, **after, "limit": PAGE})
        for one in page["data"]:
            yield one
        if not page.get("has_more") or not page["data"]:
            return
        after = {"starting_after": page["data"][-1]["id"]}


async def ask(stripe: RawStripe, path: str, params: Json, key: str) -> Json:
    """POST what changes nothing that lasts. Raises Transient where nobody knows whether it was carried out."""
    try:
        return await stripe.write(path, params, key=key)
    except (OutcomeUnknown, FailedReplay) as error:
        raise Transient(error.message) from error


async def customers_of(stripe: RawStripe, user_id: UUID, email: str) -> list[Json]:
    """Return the customers with this address that we made for the user, oldest first."""
    found = [
        one
        async for one in pages(stripe, "customers", {"email": email})
        if (one.get("metadata") or {}).get("user_id") == str(user_id)
    ]
    return sorted(found, key=lambda one: one["created"])


async def _made(stripe: RawStripe, row: Row, path: str, params: Json) -> Json | None:
    async for one in pages(stripe, path, params):
        if (one.get("metadata") or {}).get("call") == row["key"]:
            return one
    return None


def _since(row: Row) -> Json:
    return {"created": {"gte": int((row["created_at"] - SKEW).timestamp())}}


async def _customer(stripe: RawStripe, row: Row) -> Json | None:
    return await _made(stripe, row, "customers", _since(row))


async def _session(stripe: RawStripe, row: Row) -> Json | None:
    return await _made(stripe, row, "checkout/sessions", {"customer": row["params"]["customer"], **_since(row)})


async def _refund(stripe: RawStripe, row: Row) -> Json | None:
    return await _made(
        stripe,
        row,
        "refunds",
        {name: row["params"][name] for name in ("payment_intent", "charge") if name in row["params"]},
    )


async def _bears_the_key(stripe: RawStripe, row: Row) -> Json | None:
    one = await stripe.read(row["path"])
    return one if (one.get("metadata") or {}).get("call") == row["key"] else None


async def _closed(stripe: RawStripe, row: Row) -> Json | None:
    one = await stripe.read(row["path"].removesuffix("/expire"))
    return one if one["status"] != "open" else None


async def _canceled(stripe: RawStripe, row: Row) -> Json | None:
    try:
        one = await stripe.read(row["path"])
    except NoSuchObject:
        return None
    return one if one["status"] == "canceled" else None


async def _resumed(stripe: RawStripe, row: Row) -> Json | None:
    one = await stripe.read(row["path"].removesuffix("/resume"))
    return one if one["status"] != "paused" else None


LOOK_UPS: Final[Mapping[str, LookUp]] = {
    "customer.create": _customer,
    "customer.update": _bears_the_key,
    "checkout.create": _session,
    "checkout.expire": _closed,
    "subscription.update": _bears_the_key,
    "subscription.cancel": _canceled,
    "subscription.resume": _resumed,
    "stop.at_end": _bears_the_key,
    "stop.now": _canceled,
    "refund.create": _refund,
}
"""By kind of call. A kind that is not here only reads, and is repeated as it is."""
