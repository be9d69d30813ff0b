"""The service under test: its schema, its two consumers and its effect on the outside.

Every booking writes one row of `effects`, whose ids follow the order of effect within a key (its lane is locked), and
moves a total. Nothing there is unique on purpose: a second effect must show, not be refused.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
from sqlalchemy import text

from shared import migrate
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import Permanent, Transient
from shared.messaging import tables
from shared.messaging.consumer import Consumer
from shared.messaging.ops import runs_table
from shared.work import COLUMNS, OutcomeUnknown, Performed, Work, create_indexes, create_pauses
from shared.work import Policy as WorkPolicy
from tests.chaos.ledger.events import (
    CREDIT_CONSUMER,
    DEBIT_CONSUMER,
    PAYOUT_EVERY,
    POLICY,
    Credited,
    Transferred,
)

SERVICE: Final = "ledger"

_TABLES: Final = (
    """
    create table effects (
        id bigint generated always as identity primary key,
        book text not null, account text not null, event_id uuid not null, payer text not null,
        seq bigint not null, amount bigint not null
    )
    """,
    """
    create table totals (
        book text not null, account text not null, total bigint not null, effects bigint not null,
        primary key (book, account)
    ) with (fillfactor = 50)
    """,
    "create table alembic_version as select '0000' as version_num",  # readiness asks for it
    f"create table payouts (id uuid primary key, amount bigint not null, {COLUMNS})",
)
_BOOK: Final = text(
    """
    with effect as (
        insert into effects (book, account, event_id, payer, seq, amount)
        select :book, r.account, r.event_id, r.payer, r.seq, r.amount
        from unnest(cast(:accounts as text[]), cast(:ids as uuid[]), cast(:payers as text[]), cast(:seqs as bigint[]),
                    cast(:amounts as bigint[])) with ordinality r(account, event_id, payer, seq, amount, n)
        order by r.n
    )
    insert into totals (book, account, total, effects)
    select :book, r.account, sum(r.amount), count(*)
    from unnest(cast(:accounts as text[]), cast(:amounts as bigint[])) r(account, amount)
    group by r.account order by r.account
    on conflict (book, account) do update
        set total = totals.total + excluded.total, effects = totals.effects + excluded.effects
    """
)
_PAY_OUT: Final = text(
    """
    insert into payouts (id, amount, due_at, created_at)
    select r.id, r.amount, now(), now()
    from unnest(cast(:ids as uuid[]), cast(:amounts as bigint[])) r(id, amount)
    """
)
_FAILED_BEFORE: Final = text(
    "select coalesce(max(attempts), 0) from failed_jobs where consumer = :consumer and event_id = :id"
)


async def make_schema(admin_url: str) -> None:
    """Make the schema `ledger`, its role and its tables."""
    await migrate.prepare(admin_url, [SERVICE])
    statements: list[str] = []
    tables.create(_Into(statements))
    tables.add_cluster(_Into(statements))
    statements += _TABLES
    create_indexes(_Into(statements), "payouts")
    create_pauses(_Into(statements))
    runs_table.create_table(_Into(statements))
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute(f"set role openbell_{SERVICE}; set search_path to {SERVICE}")
        for statement in statements:
            await admin.execute(statement)
    finally:
        await admin.close()


class _Into:
    def __init__(self, statements: list[str]) -> None:
        self._statements = statements

    def execute(self, sqltext: str) -> None:
        self._statements.append(sqltext)


def consumers(pay_soon: Callable[[], None]) -> list[Consumer]:
    """Return the two consumers; `pay_soon` wakes the payer."""
    debits = Consumer(DEBIT_CONSUMER, POLICY)
    debits.on(Transferred, debit)
    received = Consumer(CREDIT_CONSUMER, POLICY)

    async def credit_and_pay(events: Sequence[Credited], tx: Tx) -> list[Event]:
        tx.after_commit(pay_soon)
        return await credit(events, tx)

    received.on_batch(Credited, credit_and_pay)
    return [debits, received]


async def debit(event: Transferred, tx: Tx) -> list[Event]:
    """Book the payer's side and tell the payee's."""
    await _fail_as_asked(DEBIT_CONSUMER, event, tx)
    await tx.execute(
        _BOOK,
        book="debit",
        accounts=[event.payer],
        ids=[event.id],
        payers=[event.payer],
        seqs=[event.seq],
        amounts=[event.amount],
    )
    if event.slow_ms:
        await asyncio.sleep(event.slow_ms / 1000)  # a transaction that is easy to hit in the middle
    return [
        Credited.caused_by(
            event,
            payer=event.payer,
            payee=event.payee,
            amount=event.amount,
            seq=event.seq,
            fails=event.credit_fails,
            permanent=event.credit_permanent,
        )
    ]


async def credit(events: Sequence[Credited], tx: Tx) -> list[Event]:
    """Book the payees' side; every tenth is to be paid out."""
    for event in events:
        await _fail_as_asked(CREDIT_CONSUMER, event, tx)
    await tx.execute(
        _BOOK,
        book="credit",
        accounts=[event.payee for event in events],
        ids=[event.id for event in events],
        payers=[event.payer for event in events],
        seqs=[event.seq for event in events],
        amounts=[event.amount for event in events],
    )
    paid = [event for event in events if event.seq % PAYOUT_EVERY == 0]
    if paid:
        await tx.execute(_PAY_OUT, ids=[event.id for event in paid], amounts=[event.amount for event in paid])
    return []


async def _fail_as_asked(consumer: str, event: Transferred | Credited, tx: Tx) -> None:
    """Fail until the event has been parked or retried so often: the count is the runtime's own, in failed_jobs."""
    if event.permanent:
        raise Permanent("asked to fail for ever")
    if event.fails and await tx.fetchval(_FAILED_BEFORE, consumer=consumer, id=event.id) < event.fails:
        raise Transient("asked to fail for now")


def payouts(sink: tuple[str, int]) -> Work:
    """Return the work that pays: a sink that knows no idempotency, so an unknown outcome is left for a person."""

    async def pay(row: Row) -> Performed:
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(*sink)
        except (OSError, TimeoutError) as error:
            raise Transient("the sink does not answer") from error
        try:
            async with asyncio.timeout(5):
                writer.write(f"{row['id']}\n".encode())
                answer = await reader.readline()
        except (OSError, TimeoutError) as error:
            raise OutcomeUnknown("no answer") from error
        finally:
            writer.close()
        if answer != b"paid\n":
            raise OutcomeUnknown("half an answer")
        return Performed()

    policy = WorkPolicy(lease_s=6.0, base_s=0.5, cap_s=2.0, max_attempts=1000)
    return Work("payout", "payouts", pay, on_unknown="leave", policy=policy)


class Sink:
    """The other side: pays whatever it is told, as often as it is told."""

    def __init__(self) -> None:
        self.paid: defaultdict[str, int] = defaultdict(int)
        self.address = ("127.0.0.1", 0)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = ("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):
                self.paid[line.decode().strip()] += 1
                writer.write(b"paid\n")
        except OSError:
            pass
        finally:
            writer.close()
