"""After the run: the log and the database side by side, and whatever does not agree.

Nothing here asks the runtime: the topics are read with a plain consumer, the tables with plain SQL. The order to hold
is that of each key's records in the log, each event counted where it stands first.
"""

import asyncio
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contracts.topics import Topic
from tests.chaos.ledger.book import Sink
from tests.chaos.ledger.events import (
    CREDIT_CONSUMER,
    CREDITS,
    DEAD,
    DEBIT_CONSUMER,
    PAYOUT_EVERY,
    TRANSFERS,
    Credited,
    Kind,
)
from tests.chaos.ledger.producer import Sent

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Logged:
    """A record of the log."""

    partition: int
    offset: int
    key: str
    id: uuid.UUID
    valid: bool


@dataclass
class Findings:
    """Counts, and violations by kind with what shows them."""

    events_in: int = 0
    log_records: int = 0
    effects: int = 0
    credits_relayed_again: int = 0
    parked: int = 0
    dead: int = 0
    paid: int = 0
    payouts_unknown: int = 0
    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def blame(self, kind: str, what: str) -> None:
        """Add a violation."""
        self.violations[kind].append(what)


async def read_log(bootstrap: str, topic: Topic) -> list[Logged]:
    """Return all records of a topic, partition by partition, in order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_poll_records=5000)
    await consumer.start()
    found: list[Logged] = []
    try:
        parts = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        at = dict.fromkeys(parts, 0)
        async with asyncio.timeout(120):
            while any(at[part] < ends[part] for part in parts):
                for part, records in (await consumer.getmany(timeout_ms=500)).items():
                    at[part] = records[-1].offset + 1
                    for one in records:
                        headers = dict(one.headers)
                        name = headers.get("driver-id") or headers["ce_id"]
                        valid = "driver-id" not in headers
                        key = (one.key or b"").decode()
                        found.append(Logged(part.partition, one.offset, key, uuid.UUID(name.decode()), valid))
    finally:
        await consumer.stop()
    found.sort(key=lambda one: (one.partition, one.offset))
    return found


def credit_id(transfer: uuid.UUID) -> uuid.UUID:
    """Return the id that the credit of a transfer must have."""
    return uuid.uuid5(transfer, f"{Credited.type}/0")


async def verify(admin_url: str, bootstrap: str, sent: Sent, sink: Sink) -> Findings:
    """Compare everything."""
    transfers = await read_log(bootstrap, TRANSFERS)
    credited = await read_log(bootstrap, CREDITS)
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute("set search_path to ledger")
        effects = await connection.fetch("select id, book, account, event_id, seq, amount from effects order by id")
        failed = await connection.fetch("select * from failed_jobs order by id")
        totals = await connection.fetch("select book, account, total, effects from totals")
        payouts = await connection.fetch("select id, status, amount from payouts")
        stored = await connection.fetch("select topic, partition, next_offset from consumer_offsets")
        left = await connection.fetchval("select count(*) from outbox")
    finally:
        await connection.close()

    logged = {one.id for one in transfers}
    relayed = Counter(one.id for one in credited)
    found = Findings(events_in=len(sent.acknowledged), log_records=len(transfers) + len(credited))
    found.effects = len(effects)
    found.parked = sum(row["attempts"] > 0 or row["status"] == "dead" for row in failed)
    found.dead = sum(row["status"] == "dead" for row in failed)
    for id_ in sent.acknowledged - logged:
        found.blame("log", f"Kafka acknowledged {id_} and has it not")
    if left:
        found.blame("stall", f"{left} rows are left in the outbox")
    books = {book: [row for row in effects if row["book"] == book] for book in ("debit", "credit")}
    by_consumer = {
        name: [row for row in failed if row["consumer"] == name] for name in (DEBIT_CONSUMER, CREDIT_CONSUMER)
    }

    read_to = {(row["topic"], row["partition"]): row["next_offset"] for row in stored}
    transfers = _read(found, TRANSFERS, transfers, read_to)
    credited = _read(found, CREDITS, credited, read_to)
    in_log = {one.id for one in transfers}
    expected = {id_: _expected(sent.messages[id_].kind) for id_ in in_log}
    _settled_once(found, "debit", transfers, books["debit"], by_consumer[DEBIT_CONSUMER], expected)
    _in_order(found, "debit", transfers, books["debit"])

    booked = {row["event_id"] for row in books["debit"]}
    causes = {credit_id(id_): sent.messages[id_] for id_ in booked}
    found.credits_relayed_again = sum(relayed.values()) - len(relayed)
    for id_, cause in causes.items():
        if id_ not in relayed:
            found.blame("lost", f"the credit {id_} of the booked transfer {cause.id} never reached Kafka")
    for id_ in relayed.keys() - causes.keys():
        found.blame("invented", f"the credit {id_} follows from no booked transfer")
    expected = {one.id: _expected(causes[one.id].credit) for one in credited if one.id in causes}
    _settled_once(found, "credit", credited, books["credit"], by_consumer[CREDIT_CONSUMER], expected)
    _in_order(found, "credit", credited, books["credit"])
    _relayed_in_order(found, credited, books["debit"])
    _balance(found, effects, totals)
    _paid_once(found, books["credit"], payouts, sink)
    return found


def _read(found: Findings, topic: Topic, log: list[Logged], read_to: dict[tuple[str, int], int]) -> list[Logged]:
    """Return what the consumer says that it has read; the rest is not lost, it is late."""
    late = [one for one in log if one.offset >= read_to.get((topic.name, one.partition), 0)]
    for partition, count in Counter(one.partition for one in late).items():
        found.blame("stall", f"{count} records of {topic.name}/{partition} were never read")
    return [one for one in log if one.offset < read_to.get((topic.name, one.partition), 0)]


def _expected(kind: Kind) -> str | None:
    return DEAD.get(kind)


def _settled_once(
    found: Findings,
    book: str,
    log: Sequence[Logged],
    effects: Sequence[asyncpg.Record],
    failed: Sequence[asyncpg.Record],
    expected: dict[uuid.UUID, str | None],
) -> None:
    """Each event in the log took effect once or lies dead once, as its kind says."""
    times = Counter(row["event_id"] for row in effects)
    at = {(row["partition"], row["record_offset"]): row for row in failed}
    rows: defaultdict[uuid.UUID, list[asyncpg.Record]] = defaultdict(list)
    places: defaultdict[uuid.UUID, list[Logged]] = defaultdict(list)
    for one in log:
        places[one.id].append(one)
        if (row := at.get((one.partition, one.offset))) is not None:
            rows[one.id].append(row)
    for id_, code in expected.items():
        where = ", ".join(f"{one.partition}@{one.offset} {one.key}" for one in places[id_])
        dead = [row for row in rows[id_] if row["status"] == "dead"]
        told = f"{book} {id_} ({where})"
        if times[id_] > 1:
            found.blame("duplicated", f"{told} took effect {times[id_]} times")
        if times[id_] and dead:
            found.blame("duplicated", f"{told} took effect and is dead")
        stuck = [row for row in rows[id_] if row["status"] in {"waiting", "held"}]
        if stuck:
            found.blame(
                "stall", f"{told} still {stuck[0]['status']}: {stuck[0]['error_code']} due {stuck[0]['due_at']}"
            )
        elif not times[id_] and not dead:
            statuses = [row["status"] for row in rows[id_]]
            found.blame("lost", f"{told} has no effect and is not in failed_jobs as dead {statuses}")
        elif code is None and dead:
            found.blame("died", f"{told} died of {dead[0]['error_code']}: {dead[0]['error_message']}")
        elif code is not None and times[id_]:
            found.blame("invented", f"{told} took effect though it must die of {code}")
        elif code is not None and dead[0]["error_code"] != code:
            found.blame("died", f"{told} died of {dead[0]['error_code']} and not of {code}")
        elif len(dead) > 1 and places[id_][0].valid:
            found.blame("duplicated", f"{told} is dead {len(dead)} times")
        elif dead and not places[id_][0].valid and len(dead) != len(places[id_]):
            found.blame("lost", f"{told} lies {len(places[id_])} times in the log, {len(dead)} times in failed_jobs")
    for id_ in times.keys() - expected.keys():
        found.blame("invented", f"{book} {id_} took effect and is not in the log")


def _in_order(found: Findings, book: str, log: Sequence[Logged], effects: Sequence[asyncpg.Record]) -> None:
    """The effects of each key follow the order of its records."""
    place: dict[uuid.UUID, tuple[int, int]] = {}
    for one in log:
        place.setdefault(one.id, (one.partition, one.offset))
    last: dict[str, asyncpg.Record] = {}
    for row in effects:
        before = last.get(row["account"])
        if row["event_id"] not in place:
            continue
        if before is not None and place[before["event_id"]] > place[row["event_id"]]:
            found.blame(
                "reordered",
                f"{book} of {row['account']}: {before['event_id']} at {place[before['event_id']]} (row {before['id']}) "
                f"before {row['event_id']} at {place[row['event_id']]} (row {row['id']})",
            )
        last[row["account"]] = row


def _relayed_in_order(found: Findings, credited: Sequence[Logged], debits: Sequence[asyncpg.Record]) -> None:
    """What one payer told one payee stands in the log in the order in which it was booked."""
    booked: dict[uuid.UUID, tuple[int, str]] = {
        credit_id(row["event_id"]): (row["id"], row["account"]) for row in debits
    }
    seen: set[uuid.UUID] = set()
    last: dict[tuple[str, str], tuple[int, uuid.UUID, int]] = {}
    for one in credited:
        if one.id in seen or one.id not in booked:
            continue
        seen.add(one.id)
        row, payer = booked[one.id]
        before = last.get((payer, one.key))
        if before is not None and before[0] > row:
            found.blame(
                "reordered",
                f"relay, {payer} to {one.key}: credit {before[1]} of row {before[0]} at {one.partition}@{before[2]} "
                f"before {one.id} of row {row} at {one.partition}@{one.offset}",
            )
        last[payer, one.key] = (row, one.id, one.offset)


def _balance(found: Findings, effects: Sequence[asyncpg.Record], totals: Sequence[asyncpg.Record]) -> None:
    """The running totals are the sums of what took effect."""
    sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in effects:
        one = sums[row["book"], row["account"]]
        one[0] += row["amount"]
        one[1] += 1
    for row in totals:
        if sums[row["book"], row["account"]] != [row["total"], row["effects"]]:
            found.blame(
                "unbalanced", f"{row['book']} of {row['account']} is {row['total']} in {row['effects']} effects"
            )


def _paid_once(
    found: Findings, booked: Sequence[asyncpg.Record], payouts: Sequence[asyncpg.Record], sink: Sink
) -> None:
    """Every payout is done and was paid once, or says that nobody knows and was paid at most once."""
    found.paid = sum(sink.paid.values())
    rows = {str(row["id"]): row["status"] for row in payouts}
    due = {str(row["event_id"]) for row in booked if row["seq"] % PAYOUT_EVERY == 0}
    for id_ in due ^ rows.keys():
        found.blame("lost", f"payout {id_}: asked for {id_ in due}, has a row {id_ in rows}")
    for id_, status in rows.items():
        paid = sink.paid.get(id_, 0)
        found.payouts_unknown += status == "unknown"
        if paid > 1 or (paid and status == "failed"):
            found.blame("duplicated", f"payout {id_} is {status} and was paid {paid} times")
        if status == "done" and not paid:
            found.blame("lost", f"payout {id_} is done and was never paid")
        if status not in {"done", "unknown"}:
            found.blame("stall" if status != "failed" else "died", f"payout {id_} is {status}")
    for id_ in sink.paid.keys() - rows.keys():
        found.blame("invented", f"payout {id_} was paid and has no row")
