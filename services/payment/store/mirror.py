"""What Stripe said last of each object."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import text

from services.payment.domain.stripe import Object, customer_of, same
from shared.db import Row, Tx

Change = Literal["missing", "changed", "deleted"]

_GET: Final = text("select * from stripe_objects where kind = :kind and id = :id")
_PUT: Final = text("""
    insert into stripe_objects as known (kind, id, customer, deleted, body, fetched_at, changed_at)
    values (:kind, :id, cast(:customer as text), :deleted, cast(:body as jsonb), :now, :now)
    on conflict (kind, id) do update set
        customer = coalesce(excluded.customer, known.customer), deleted = excluded.deleted,
        body = coalesce(excluded.body, known.body), fetched_at = excluded.fetched_at,
        changed_at = case when :changed then excluded.changed_at else known.changed_at end""")
_BELONGS: Final = text("update stripe_objects set user_id = :user_id where kind = :kind and id = :id")
_BODIES: Final = text("""
    select id, body, deleted from stripe_objects where kind = :kind and id = any(cast(:ids as text[]))""")
_UNSEEN: Final = text("""
    select id from stripe_objects
    where kind = :kind and not deleted and fetched_at < :before and id <> all(cast(:seen as text[]))""")
_WAITING: Final = text("""
    select o.id from stripe_objects o
    where o.kind = 'subscription' and not o.deleted and (cast(:user_id as uuid) is null or o.user_id = :user_id)
      and o.body ->> 'status' in ('trialing', 'active', 'past_due', 'paused')
      and not exists (select from subscriptions s where s.provider = 'stripe' and s.provider_id = o.id
            and s.status in ('trialing', 'active', 'past_due', 'paused'))
      and not exists (select from subscriptions s where s.user_id = o.user_id
            and s.status in ('trialing', 'active', 'past_due', 'paused'))
    order by o.id""")

_PLAN_PRICES: Final = text("""
    select p.body as price, d.body ->> 'name' as title,
        not p.deleted and coalesce((p.body ->> 'active')::boolean, false)
            and coalesce(not d.deleted and (d.body ->> 'active')::boolean, true) as active
    from stripe_objects p
        left join stripe_objects d on d.kind = 'product' and d.id = p.body ->> 'product'
    where p.kind = 'price' and p.body -> 'metadata' ->> 'openbell_plan' is not null""")
_AT_PRICE: Final = text("""
    select id from stripe_objects
    where kind = 'subscription' and not deleted and body @> cast(:having as jsonb)
      and body ->> 'status' in ('trialing', 'active', 'past_due', 'paused')""")


class MirrorStore:
    """Reads and writes `stripe_objects`."""

    async def get(self, tx: Tx, kind: str, object_id: str) -> Row | None:
        """Return an object as it was last told, or None."""
        return await tx.fetchrow(_GET, kind=kind, id=object_id)

    async def put(self, tx: Tx, kind: str, object_id: str, told: Object | None, now: datetime) -> Change | None:
        """Keep what Stripe said, None for gone; return what was new about it. The last body of what is gone stays."""
        known = await self.get(tx, kind, object_id)
        change = _change(known, told)
        customer = customer_of(told) if told is not None else None
        deleted = told is None
        body = None if told is None else dict(told)
        at = {"kind": kind, "id": object_id, "now": now}
        await tx.execute(_PUT, **at, customer=customer, deleted=deleted, body=body, changed=change is not None)
        return change

    async def belongs(self, tx: Tx, kind: str, object_id: str, user_id: UUID) -> None:
        """Note whose an object is."""
        await tx.execute(_BELONGS, kind=kind, id=object_id, user_id=user_id)

    async def bodies(self, tx: Tx, kind: str, ids: Sequence[str]) -> Mapping[str, Any]:
        """Return what is known of these, by id; None for what is gone."""
        rows = await tx.fetch(_BODIES, kind=kind, ids=list(ids))
        return {row["id"]: None if row["deleted"] else row["body"] for row in rows}

    async def unseen(self, tx: Tx, kind: str, seen: Sequence[str], before: datetime) -> list[str]:
        """Return the ids of what is known, was last told before then, and is not among `seen`."""
        return [row["id"] for row in await tx.fetch(_UNSEEN, kind=kind, seen=list(seen), before=before)]

    async def waiting(self, tx: Tx, user_id: UUID | None = None) -> list[str]:
        """Return open subscriptions that are not their user's one, now that nothing is in their way."""
        return [row["id"] for row in await tx.fetch(_WAITING, user_id=user_id)]

    async def plan_prices(self, tx: Tx) -> list[Row]:
        """Return prices that name a plan, with the name of their product, and whether both are active."""
        return await tx.fetch(_PLAN_PRICES)

    async def at_price(self, tx: Tx, price: str) -> list[str]:
        """Return open subscriptions with this price."""
        having = {"items": {"data": [{"price": {"id": price}}]}}
        return [row["id"] for row in await tx.fetch(_AT_PRICE, having=having)]


def _change(known: Row | None, told: Object | None) -> Change | None:
    if known is None:
        return "missing"
    if told is None:
        return None if known["deleted"] else "deleted"
    return None if not known["deleted"] and same(known["body"], told) else "changed"
