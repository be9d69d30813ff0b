"""The outbox: events are rows of the transaction that made them, and the relay carries them to Kafka.

Rows of one key get their ids under a lock that lasts until the commit, so that a key's id order is its commit order.
The locks come last in a transaction, all of a statement's in one order.

There are two kinds. A transaction of few keys locks each of them, and shares the lock on the key's bucket: it waits for
no other key, and small transactions of several partitions do not take turns. One of many keys locks whole buckets, for
Postgres has room for so many locks only. Versions before this one lock buckets whatever they write: they and this one
can run side by side.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import text

from shared import telemetry
from shared.contracts.base import Event
from shared.db import Tx
from shared.messaging import metrics
from shared.messaging.record import Headers, bucket, headers_of, key_hash, pack_headers

FEW_KEYS: Final = 64

_ADD: Final = text(
    """
    with whole as materialized (
        select pg_advisory_xact_lock(cast(:space as int), b) from unnest(cast(:whole as int[])) b
    ), shared as materialized (
        select pg_advisory_xact_lock_shared(cast(:space as int), b) from unnest(cast(:shared as int[])) b
    ), buckets as materialized (
        select (select count(*) from whole) + (select count(*) from shared)
    ), keyed as materialized (
        select pg_advisory_xact_lock(cast(:key_space as int), k) from buckets, unnest(cast(:hashes as int[])) k
    ), ready as materialized (
        select (select count(*) from buckets) + (select count(*) from keyed)
    )
    insert into outbox (topic, key, value, headers)
    select r.topic, r.key, r.value, r.headers
    from ready, unnest(cast(:topics as text[]), cast(:keys as bytea[]), cast(:values as bytea[]),
                       cast(:headers as bytea[])) with ordinality r(topic, key, value, headers, n)
    order by r.n
    """
)

Message = tuple[str, bytes | None, bytes | None, Headers]
"""(topic, key, value, headers): what goes out."""


def _count(events: Sequence[Event]) -> None:
    of_type: defaultdict[type[Event], list[Event]] = defaultdict(list)
    for event in events:
        of_type[type(event)].append(event)
    for kind, some in of_type.items():
        state = next((name for name in ("state", "status") if hasattr(some[0], name)), None)
        states = Counter(str(getattr(one, state)) for one in some) if state else {"": len(some)}
        for said, times in states.items():
            metrics.PUBLISHED.labels(kind.type, said).inc(times)


class Outbox:
    """Writes events into the service's outbox table, inside the caller's transaction."""

    def __init__(self, service: str, wake: Callable[[], None]) -> None:
        self._source = f"/openbell/{service}"
        self._service = service
        self._space = zlib.crc32(f"outbox/{service}".encode()) - 2**31
        self._key_space = zlib.crc32(f"outbox-key/{service}".encode()) - 2**31
        self._wake = wake

    async def add(self, tx: Tx, events: Sequence[Event], letters: Sequence[Message] = ()) -> None:
        """Add events, then raw `letters`, in this order; the last statement of a transaction.

        Raises TypeError for an event whose topic this service may not publish to, RuntimeError outside a transaction.
        """
        trace = tuple(telemetry.headers()) if events else ()
        await self._insert(tx, [*(self._message(event, trace) for event in events), *letters])
        if events:
            tx.after_commit(lambda: _count(events))

    def _message(self, event: Event, trace: tuple[tuple[str, str], ...]) -> Message:
        if event.topic.owner != self._service and event.topic.name != "api.audit":
            raise TypeError(
                f"{self._service} may not publish {event.type}: {event.topic.name} belongs to {event.topic.owner}"
            )
        headers = headers_of(event, self._source, trace)
        return event.topic.name, event.key.encode(), event.to_bytes(), headers

    async def _insert(self, tx: Tx, messages: Sequence[Message]) -> None:
        if not messages:
            return
        if not tx.connection.is_in_transaction():
            raise RuntimeError(
                f"{messages[0][0]}: an event goes out with the transaction that made it true, and there is none; "
                "return it from a handler, or publish it through the Door (shared.messaging.door)"
            )
        topics, keys, values, headers = zip(*messages, strict=True)
        buckets = sorted({bucket(key) for key in keys})
        hashes = sorted({key_hash(key) for key in keys})
        few = len(hashes) <= FEW_KEYS
        await tx.execute(
            _ADD,
            space=self._space,
            whole=[] if few else buckets,
            shared=buckets if few else [],
            key_space=self._key_space,
            hashes=hashes if few else [],
            topics=list(topics),
            keys=list(keys),
            values=list(values),
            headers=[pack_headers(one) for one in headers],
        )
        tx.after_commit(self._wake)
