"""A POST that is sent again is answered again, not done again (the IETF Idempotency-Key draft).

    @post("/api/watchlist/{user_id:uuid}", caller=Caller.USER)
    async def add(request: Request, identity: Who, user_id: FromPath[UUID], data: JSONBody[AddStock]) -> Response:
        return await answer_once(request, door, lambda tx: watchlists.add(command, tx), status_code=201)

The answer is stored in the transaction of the effect, so either both are there or neither is: it holds when twenty
copies of a request race and when the process dies between effect and answer. A use case that raises stores nothing;
its repetition is judged afresh. The key's scope is the caller.

What would surprise you: `show` builds the answer from the stored value, also the first time. A secret that can be
derived is made there, so that it is in a replay and never in the table.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Protocol, cast

import msgspec
from litestar import Request, Response
from litestar.status_codes import HTTP_204_NO_CONTENT
from sqlalchemy import text

from shared import retention
from shared.db import Tx
from shared.errors import Conflict, Invalid, Permanent
from shared.http.json import encode
from shared.identity import Identity
from shared.messaging.door import Done, Door

HEADER: Final = "idempotency-key"
REPLAYED_HEADER: Final = "idempotent-replayed"
RETENTION: Final = timedelta(hours=24)

_KEY: Final = re.compile(r'"(?P<quoted>[!#-\[\]-~]{1,255})"|(?P<bare>[!#-\[\]-~]{1,255})')

_CREATE: Final = (
    """
    create table idempotency_keys (
        caller text not null,
        key text not null,
        fingerprint bytea not null,
        status_code integer not null,
        value bytea not null,
        created_at timestamptz not null,
        primary key (caller, key)
    )
    """,
    "create index idempotency_keys_created_at on idempotency_keys (created_at)",
)

# Locks are the database's: the schema's name lets several services take one key at the same moment.
_LOCK: Final = text("select pg_try_advisory_xact_lock(hashtextextended(current_schema() || :name, 0))")
_FIND: Final = text(
    """
    select fingerprint, status_code, value from idempotency_keys
    where caller = :caller and key = :key and created_at > :since
    """
)
_STORE: Final = text(
    """
    insert into idempotency_keys (caller, key, fingerprint, status_code, value, created_at)
    values (:caller, :key, :fingerprint, :status_code, :value, :now)
    on conflict (caller, key) do update
        set fingerprint = excluded.fingerprint, status_code = excluded.status_code, value = excluded.value,
            created_at = excluded.created_at
    """
)
_FORGET: Final = retention.slice_of("idempotency_keys", "created_at <= :since")


class Operations(Protocol):
    """The part of `alembic.op` used here."""

    def execute(self, sqltext: str) -> None:
        """Run one statement."""
        ...


def create(op: Operations) -> None:
    """Create the table in the schema that is being migrated."""
    for statement in _CREATE:
        op.execute(statement)


def drop(op: Operations) -> None:
    """Drop it."""
    op.execute("drop table idempotency_keys")


async def forget(transaction: retention.Transaction, now: datetime) -> int:
    """Delete what is past its retention; return how many."""
    return await retention.forget(transaction, _FORGET, since=now - RETENTION)


class MalformedKey(Permanent):
    """Idempotency-Key must be 1 to 255 visible ASCII characters, quoted or not."""

    code: ClassVar[str] = "IDEMPOTENCY_KEY_MALFORMED"
    status: ClassVar[int] = 400


class KeyReused(Invalid):
    """This Idempotency-Key was used for another request."""

    code: ClassVar[str] = "IDEMPOTENCY_KEY_REUSED"


class InFlight(Conflict):
    """A request with this Idempotency-Key is being worked on; send it again in a moment."""

    code: ClassVar[str] = "IDEMPOTENCY_KEY_IN_FLIGHT"


@dataclass(frozen=True, slots=True)
class Call:
    """One request as its repetitions are recognised by: who, which key, and a hash of all that it asks."""

    caller: str
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was answered, first or again. `value` is JSON, to the byte the same each time."""

    status_code: int
    value: bytes
    replayed: bool


def parse_key(raw: str) -> str:
    """Return the key without quotes; raises MalformedKey."""
    match = _KEY.fullmatch(raw.strip())
    if match is None:
        raise MalformedKey
    return match["quoted"] or match["bare"]


async def call_of(request: Request[Any, Any, Any], caller: str | None = None) -> Call | None:
    """Return the call that a request makes, or None without the header. `caller` stands in where nobody is known."""
    raw = request.headers.getall(HEADER, [])
    if not raw:
        return None
    if len(raw) > 1:
        raise MalformedKey("Idempotency-Key was sent more than once")
    if caller is None:
        caller = str(cast("Identity", request.scope["user"]).user_id)
    digest = hashlib.sha256()
    for part in (request.method.encode(), request.scope["path"].encode(), request.scope["query_string"]):
        digest.update(part + b"\n")
    digest.update(await request.body())
    return Call(caller, parse_key(raw[0]), digest.digest())


async def run_once(
    door: Door,
    call: Call | None,
    use_case: Callable[[Tx], Awaitable[Done[Any]]],
    *,
    status_code: int,
    now: datetime,
) -> Outcome:
    """Run the use case unless `call` was answered before; its value must be plain JSON data, a Struct or a model.

    Raises InFlight while another transaction works on the same key, KeyReused when the key meant something else,
    and whatever the use case raises.
    """

    async def once(tx: Tx) -> Done[Outcome]:
        if call is not None:
            if not await tx.fetchval(_LOCK, name=f"idempotency/{call.caller}/{call.key}"):
                raise InFlight
            # a statement of its own: its snapshot is younger than the lock, so it sees what the last holder committed
            found = await tx.fetchrow(_FIND, caller=call.caller, key=call.key, since=now - RETENTION)
            if found is not None:
                if found["fingerprint"] != call.fingerprint:
                    raise KeyReused
                return Done(Outcome(found["status_code"], found["value"], replayed=True))
        done = await use_case(tx)
        value = encode(done.value)
        if call is not None:
            await tx.execute(
                _STORE,
                caller=call.caller,
                key=call.key,
                fingerprint=call.fingerprint,
                status_code=status_code,
                value=value,
                now=now,
            )
        return Done(Outcome(status_code, value, replayed=False), done.events, done.letters)

    return await door.run(once)


async def answer_once(
    request: Request[Any, Any, Any],
    door: Door,
    use_case: Callable[[Tx], Awaitable[Done[Any]]],
    *,
    status_code: int = 201,
    show: Callable[[Any], Any] | None = None,
    caller: str | None = None,
) -> Response[bytes]:
    """Answer a POST: run the use case, or repeat what it answered to the same Idempotency-Key."""
    now = request.app.state["service"].clock()
    outcome = await run_once(door, await call_of(request, caller), use_case, status_code=status_code, now=now)
    headers: Mapping[str, str] = {REPLAYED_HEADER: "true"} if outcome.replayed else {}
    body = encode(show(msgspec.json.decode(outcome.value))) if show else outcome.value
    if outcome.status_code == HTTP_204_NO_CONTENT:
        body = b""
    return Response(body, status_code=outcome.status_code, headers=headers, media_type="application/json")
