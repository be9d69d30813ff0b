"""Users' own rules. `rule_symbols` says which symbols those over activity look at; the symbol '' stands for all."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

PAGE: Final = 1_000

_LIST: Final = text("select * from rules where user_id = :user_id order by created_at, rule_id")
_ONE: Final = text("select * from rules where user_id = :user_id and rule_id = :rule_id for update")
_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended('alerts/rules/' || :user_id, 0))")
_ADD: Final = text("""
    insert into rules (rule_id, user_id, name, kind, symbols, min_score, min_premium_usd, expression, enabled,
        created_at)
    values (:rule_id, :user_id, :name, :kind, cast(:symbols as text[]), :min_score, :min_premium_usd,
        cast(:expression as jsonb), :enabled, :now)
    returning *""")
_CHANGE: Final = text("""
    update rules set name = :name, symbols = cast(:symbols as text[]), min_score = :min_score,
        min_premium_usd = :min_premium_usd, expression = cast(:expression as jsonb), enabled = :enabled
    where user_id = :user_id and rule_id = :rule_id
    returning *""")
_FORGET_SYMBOLS: Final = text("delete from rule_symbols where rule_id = :rule_id")
_ADD_SYMBOLS: Final = text("""
    insert into rule_symbols (symbol, user_id, rule_id)
    select unnest(case when symbols = '{}' then array[''] else symbols end), user_id, rule_id
    from rules where rule_id = :rule_id and kind = 'activity'""")
_REMOVE: Final = text("delete from rules where user_id = :user_id and rule_id = :rule_id")
_OVER: Final = """
    select r.user_id, r.rule_id, r.name, cast(r.expression as text) as expression
    from rules r left join users u using (user_id)
    where r.kind = :kind and r.kind <> 'activity' and r.enabled and coalesce(u.alerts_enabled, true)
      and {whose} and (r.user_id, r.rule_id) > (cast(:user_id as uuid), cast(:rule_id as uuid))
    order by r.user_id, r.rule_id limit :limit"""
_OVER_ALL: Final = text(_OVER.format(whose="true"))
_OVER_SOME: Final = text(_OVER.format(whose="r.user_id = any(cast(:user_ids as uuid[]))"))


class RuleStore:
    """Reads and writes rules, always inside the caller's transaction."""

    async def of_user(self, tx: Tx, user_id: UUID) -> list[Row]:
        """Return a user's own rules."""
        return await tx.fetch(_LIST, user_id=user_id)

    async def one(self, tx: Tx, user_id: UUID, rule_id: UUID) -> Row | None:
        """Return a rule of a user, and keep others from changing it until the end of the transaction."""
        return await tx.fetchrow(_ONE, user_id=user_id, rule_id=rule_id)

    async def lock(self, tx: Tx, user_id: UUID) -> None:
        """Keep others from counting this user's rules until the end of the transaction."""
        await tx.execute(_LOCK, user_id=str(user_id))

    async def add(self, tx: Tx, **fields: Any) -> Row | None:
        """Add a rule."""
        row = await tx.fetchrow(_ADD, **fields)
        await tx.execute(_ADD_SYMBOLS, rule_id=fields["rule_id"])
        return row

    async def change(self, tx: Tx, **fields: Any) -> Row | None:
        """Write a rule anew."""
        row = await tx.fetchrow(_CHANGE, **fields)
        await tx.execute(_FORGET_SYMBOLS, rule_id=fields["rule_id"])
        await tx.execute(_ADD_SYMBOLS, rule_id=fields["rule_id"])
        return row

    async def remove(self, tx: Tx, user_id: UUID, rule_id: UUID) -> bool:
        """Remove a rule; False when there was none."""
        return bool(await tx.execute(_REMOVE, user_id=user_id, rule_id=rule_id))

    async def over(self, tx: Tx, kind: str, user_ids: Sequence[UUID] | None, after: tuple[UUID, UUID]) -> list[Row]:
        """Return up to PAGE rules over a kind of event, by (user, rule): of some users, or of all (None)."""
        place = {"kind": kind, "user_id": after[0], "rule_id": after[1], "limit": PAGE}
        if user_ids is None:
            return await tx.fetch(_OVER_ALL, **place)
        return await tx.fetch(_OVER_SOME, **place, user_ids=list(user_ids))
