"""What an order is judged by, of its account and the market, in one statement: an order's time is round trips."""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from services.broker.store.accounts import ALL
from shared.db import Row, Tx

_SEEN: Final = text("""
    with own as (select created_at, id from orders where id = :order_id),
    earlier as (
        select o.created_at, o.terms from orders o, own
        where o.account_id = :account_id and o.created_at > cast(:minute as timestamptz)
          and (o.state <> 'rejected' or o.submits > 0) and (o.created_at, o.id) < (own.created_at, own.id)
        order by o.created_at desc limit :most)
    select
        array(select who from halts where who = any(:who)) as halts,
        (select count(*) from earlier where created_at <= cast(:window as timestamptz)) as before,
        (select coalesce(jsonb_agg(jsonb_build_object('at', created_at, 'terms', terms)), '[]')
            from earlier where created_at > cast(:window as timestamptz)) as recent,
        (select coalesce(jsonb_agg(jsonb_build_object('id', id, 'terms', terms, 'filled', cast(filled as text))), '[]')
            from orders
            where account_id = :account_id and symbols && cast(:symbols as text[]) and id <> :order_id
              and state not in ('filled', 'canceled', 'replaced', 'rejected', 'expired')) as working,
        (select coalesce(sum(reserved), 0) from orders
            where account_id = :account_id and id <> :order_id
              and (sent_at >= cast(:told_at as timestamptz) or state in ('pending_submit', 'unknown')
                or (updated_at >= cast(:told_at as timestamptz)
                    and sent_at >= cast(:told_at as timestamptz) - interval '1 minute'))
              and state <> 'new' and (state not in ('rejected', 'canceled', 'expired') or filled > 0)) as reserved,
        (select coalesce(jsonb_object_agg(symbol, cast(quantity as text)), '{}')
            from positions where account_id = :account_id and symbol = any(:symbols)) as held,
        (select coalesce(jsonb_object_agg(symbol,
                jsonb_build_object('bid', cast(bid as text), 'ask', cast(ask as text), 'at', at)), '{}')
            from quotes where symbol = any(:symbols)) as quotes,
        (cast(:plan as text) is null or exists(select from entitlements
            where user_id = :user_id and :plan = any(names) and (until is null or until > :now))) as entitled""")


async def seen(
    tx: Tx,
    *,
    order_id: UUID,
    account_id: UUID,
    user_id: UUID,
    symbols: list[str],
    plan: str | None,
    told_at: datetime | None,
    minute: datetime,
    window: datetime,
    most: int,
    now: datetime,
) -> Row:
    """Return what counts for an order now, with columns as follows; numbers in JSON are text.

    halts      whom a halt stops, of all and this user
    before     how many orders of the account were asked for earlier than it, after `minute` and up to `window`
    recent     [{at, terms}] of those after `window`; together at most `most`, the latest. Refused ones do not count
    working    [{id, terms, filled}] of its other orders of these symbols that are not over
    reserved   what orders have taken of the buying power since the venue told it, at `told_at`. One that was on its way
               then and of which something was heard since counts, too: it may not be in what was told
    held       {symbol: quantity}
    quotes     {symbol: {bid, ask, at}}
    entitled   whether the user's plan gives `plan`
    """
    row = await tx.fetchrow(
        _SEEN,
        order_id=order_id,
        account_id=account_id,
        user_id=user_id,
        symbols=symbols,
        plan=plan,
        told_at=told_at,
        minute=minute,
        window=window,
        most=most,
        now=now,
        who=[ALL, str(user_id)],
    )
    if row is None:
        raise AssertionError("it has one row whatever there is")
    return row
