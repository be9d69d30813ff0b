"""Fan-outs: claimed rows (shared.work) of a (symbol, session) that many rules look at, and the pages of its users.

A fan-out is several rows, one a part: its users are parted by the last byte of their ids, so that several pages are
done at once, in one process or in several. Within a part the pages follow the order of users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from services.alerts.domain.matching import Cause, Line, Stock
from shared import retention
from shared.contracts.base import derived_id
from shared.db import Row, Tx

KEPT: Final = timedelta(days=2)
_NOBODY: Final = UUID(int=0)

# No more is counted than is asked for: the rules of one symbol may be very many.
_CROWDED: Final = text("""
    select s.symbol, s.session from unnest(cast(:symbols as text[]), cast(:sessions as date[])) s (symbol, session)
    where (select count(*) from (
            (select from watched w where w.symbol = s.symbol limit :above + 1)
            union all
            (select from rule_symbols r where r.symbol = s.symbol limit :above + 1)
            union all
            (select from rule_symbols r where r.symbol = '' limit :above + 1)) looking) > :above
      or exists (select from fan_outs f
            where f.symbol = s.symbol and f.session = s.session and f.settled_at is null)""")
_ADD: Final = text("""
    insert into fan_outs (id, part, parts, symbol, session, cause_id, cause_time, as_of, source, delay_s, lane, due_at,
        created_at)
    select r.id, r.part, r.parts, r.symbol, r.session, r.cause_id, r.cause_time, r.as_of, r.source, r.delay_s, r.lane,
        cast(:now as timestamptz), :now
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, part int, parts int, symbol text, session date,
        cause_id uuid, cause_time timestamptz, as_of timestamptz, source text, delay_s float8, lane text)
    on conflict (id) do nothing""")
_OLDER_OF_TWO: Final = text("""
    select exists (select from fan_outs mine join fan_outs later using (symbol, session, part, parts)
        where mine.id = :id and mine.after_user is null and later.settled_at is null
          and (later.created_at, later.id) > (mine.created_at, mine.id))""")
_PLACE: Final = text("select after_user, settled_at from fan_outs where id = :id for update")
OF_PART: Final = "mod(get_byte(uuid_send({user}), 15), :parts) = :part"
_MINE: Final = OF_PART.format(user="user_id")
_LAST: Final = text(f"""
    select user_id from (
        select user_id from (
            (select user_id from watched where symbol = :symbol and user_id > :after and {_MINE}
                order by user_id limit :users)
            union
            (select distinct user_id from rule_symbols where symbol = :symbol and user_id > :after and {_MINE}
                order by user_id limit :users)
            union
            (select distinct user_id from rule_symbols where symbol = '' and user_id > :after and {_MINE}
                order by user_id limit :users)) looking
        order by user_id limit :users) page
    order by user_id desc limit 1""")  # noqa: S608 - our own words
_MOVE: Final = text("update fan_outs set after_user = :last where id = :id")
# One statement, so that the lines are those of the cause.
_NEWEST: Final = text("""
    select f.cause_id, f.cause_time, f.as_of, f.source, f.delay_s, array(
        select c.line from contracts c where c.symbol = f.symbol and c.session = f.session) as lines
    from fan_outs f where f.symbol = :symbol and f.session = :session order by f.as_of desc, f.id desc limit 1""")
_FORGET: Final = retention.slice_of("fan_outs", "settled_at < :before")


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of an event: a Cause."""

    id: UUID
    time: datetime
    as_of: datetime
    source: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Page:
    """The users of a part after one and up to another; what their rules are held against."""

    stock: Stock
    part: int
    parts: int
    after: UUID
    last: UUID
    cause: Seen
    lines: tuple[Line, ...]


class FanOutStore:
    """Reads and writes fan-outs, always inside the caller's transaction."""

    async def crowded(self, tx: Tx, stocks: Sequence[Stock], above: int) -> set[Stock]:
        """Return the stocks that more rules than `above` look at, or of which a fan-out is under way."""
        rows = await tx.fetch(
            _CROWDED,
            symbols=[symbol for symbol, _ in stocks],
            sessions=[session for _, session in stocks],
            above=above,
        )
        return {(row["symbol"], row["session"]) for row in rows}

    async def add(self, tx: Tx, causes: Sequence[tuple[Stock, Cause]], parts: int, now: datetime) -> None:
        """Add a fan-out of so many parts for each stock."""
        rows: list[dict[str, Any]] = [
            {
                "id": derived_id(cause.id, f"fan-out/{part}"),
                "part": part,
                "parts": parts,
                "symbol": symbol,
                "session": session,
                "cause_id": cause.id,
                "cause_time": cause.time,
                "as_of": cause.as_of,
                "source": cause.source,
                "delay_s": cause.delay_s,
                "lane": f"{symbol}/{session}/{part}",
            }
            for (symbol, session), cause in causes
            for part in range(parts)
        ]
        await tx.execute(_ADD, rows=rows, now=now)

    async def needless(self, tx: Tx, fan_out_id: UUID) -> bool:
        """Whether a part that has not begun may end, because that of a later fan-out of its stock waits."""
        return bool(await tx.fetchval(_OLDER_OF_TWO, id=fan_out_id))

    async def next_page(self, tx: Tx, fan_out: Row, users: int) -> Page | None:
        """Return the next page and keep where it ends; None after the last one.

        Others with the same row wait until the end of the transaction, and go on behind it.
        """
        symbol: str = fan_out["symbol"]
        session: date = fan_out["session"]
        mine = {"part": fan_out["part"], "parts": fan_out["parts"]}
        place = await tx.fetchrow(_PLACE, id=fan_out["id"])
        if place is None or place["settled_at"] is not None:
            return None
        after: UUID = place["after_user"] or _NOBODY
        last: UUID | None = await tx.fetchval(_LAST, symbol=symbol, after=after, users=users, **mine)
        newest = await tx.fetchrow(_NEWEST, symbol=symbol, session=session)
        if last is None or newest is None:
            return None
        await tx.execute(_MOVE, id=fan_out["id"], last=last)
        cause = Seen(newest["cause_id"], newest["cause_time"], newest["as_of"], newest["source"], newest["delay_s"])
        lines = msgspec.convert(newest["lines"], tuple[Line, ...])
        return Page((symbol, session), **mine, after=after, last=last, cause=cause, lines=lines)

    async def forget(self, transaction: retention.Transaction, now: datetime) -> None:
        """Delete fan-outs that ended days ago."""
        await retention.forget(transaction, _FORGET, before=now - KEPT)
