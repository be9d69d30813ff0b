"""The runtime's pure parts: headers, decoding, the fuse, the inbox's days."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from shared.contracts.topics import DAY_MS, TOPICS
from shared.messaging import inbox
from shared.messaging.consumer import Consumer, Policy
from shared.messaging.decode import decode
from shared.messaging.failed import judge
from shared.messaging.fuse import Fuse
from shared.messaging.record import Headers, Record, headers_of, pack_headers, unpack_headers
from shared.messaging.writer import partition_of
from tests.conftest import ManualClock
from tests.messaging.harness import Deposited, Probe, record_effect

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEADERS = st.lists(st.tuples(st.binary(max_size=20), st.none() | st.binary(max_size=40))).map(tuple)
NAMES = [b"ce_id", b"ce_type", b"ce_time", b"ce_specversion"]


class Known(Deposited):
    topic = TOPICS[0]


def consumer(**policy: object) -> Consumer:
    made = Consumer("probe.rules", replace(Policy(), **policy))  # type: ignore[arg-type]
    made.on(Known, record_effect)
    return made


@given(HEADERS)
def test_headers_are_kept_byte_for_byte(headers: Headers) -> None:
    assert unpack_headers(pack_headers(headers)) == headers


@given(
    key=st.none() | st.binary(max_size=8),
    value=st.none() | st.binary(max_size=60) | st.just(b'{"account":"a","n":1}') | st.text().map(str.encode),
    others=HEADERS,
    known=st.dictionaries(
        st.sampled_from(NAMES),
        st.none()
        | st.binary(max_size=40)
        | st.just(Known.type.encode())
        | st.uuids().map(lambda one: str(one).encode())
        | st.datetimes().map(lambda one: (one.isoformat() + "+14:00").encode())
        | st.just(b"0001-01-01T00:00:00+14:00")
        | st.just(NOW.isoformat().encode()),
    ),
    hold=st.booleans(),
)
def test_decoding_never_raises_whatever_the_record_is(
    key: bytes | None, value: bytes | None, others: Headers, known: dict[bytes, bytes | None], hold: bool
) -> None:
    record = Record("t", 0, 7, key, value, (*others, *known.items()))
    item = decode(consumer(hold=hold), record, NOW)
    assert item is None or (item.event is None) == (item.failure is not None)


def test_a_time_outside_the_calendar_is_a_bad_envelope() -> None:
    event = Known(id=uuid.uuid4(), time=NOW, account="a", n=1)
    headers = dict(headers_of(event, "/t")) | {b"ce_time": b"0001-01-01T00:00:00+14:00"}
    item = decode(consumer(), Record("t", 0, 7, b"a", event.to_bytes(), tuple(headers.items())), NOW)
    assert item is not None
    assert item.failure is not None
    assert item.failure.code == "BAD_ENVELOPE"


def fuse(**policy: object) -> tuple[Fuse, ManualClock]:
    clock = ManualClock(NOW)
    seconds = lambda: clock.now.timestamp()  # noqa: E731, PLW0108 - the clock moves
    made = Fuse("probe.fuse", replace(Policy(), **policy), seconds)  # type: ignore[arg-type]
    return made, clock


def test_the_fuse_opens_after_failures_of_distinct_keys_in_a_row() -> None:
    one, _ = fuse(fuse_keys=3)
    for key in "aaaaabbbbb":
        one.failed(key)
    assert not one.is_open, "two keys only"
    one.succeeded()
    for key in "abc":
        assert not one.is_open
        one.failed(key)
    assert one.is_open


def test_the_fuse_opens_by_ratio_counted_in_events() -> None:
    one, _ = fuse(fuse_keys=5, fuse_window=20)
    opened = False
    for n in range(10):  # one key between successes: never five in a row
        one.failed(n)
        one.failed(n)
        opened = opened or one.is_open
        one.succeeded()
    assert opened
    other, _ = fuse(fuse_keys=5, fuse_window=20)
    for n in range(10):
        other.failed(n)
        other.failed(n)
        assert not other.is_open
        other.succeeded(10)  # a batch is worth its events


def test_an_open_fuse_gives_one_probe_in_each_interval_and_takes_an_unspent_one_back() -> None:
    one, clock = fuse(fuse_keys=1, probe_every_s=30)
    assert not one.take_probe()
    one.failed("a")
    assert not one.take_probe()
    clock.advance(30)
    assert [one.take_probe(), one.take_probe()] == [True, False]
    one.unspent()
    assert [one.take_probe(), one.take_probe()] == [True, False]
    one.succeeded()
    assert not one.is_open
    one.unspent()
    assert not one.take_probe()


def test_retries_follow_the_policy_within_a_tenth() -> None:
    policy = Policy()
    for attempts, delay_s in enumerate(policy.delays_s):
        for draw in (-1.0, 0.0, 1.0):
            failure = judge(RuntimeError("x"), attempts, policy, NOW, draw)
            assert failure.due_at is not None
            assert (failure.due_at - NOW).total_seconds() == pytest.approx(delay_s * (1 + draw / 10))
    assert judge(RuntimeError("x"), 3, policy, NOW, 0).status == "dead"
    assert judge(RuntimeError("x"), 3, replace(policy, hold=True), NOW, 0).status == "held"


def test_the_inbox_outlives_every_topic() -> None:
    longest = max(topic.retention_ms for topic in TOPICS)
    assert longest <= (inbox.KEEP_DAYS - 2) * DAY_MS
    assert not any(topic.compact for topic in TOPICS), "a compacted topic keeps records for ever: think again"


async def test_inbox_days_are_made_and_dropped(probe: Probe) -> None:
    async def days() -> list[str]:
        async with probe.db.read() as tx:
            rows = await tx.fetch(text("select relname from pg_class where relname ~ '^inbox_[0-9]{8}$' order by 1"))
        return [row["relname"] for row in rows]

    now = datetime.now(UTC)
    before = await days()
    assert len(before) == inbox.KEEP_DAYS + inbox.AHEAD_DAYS + 1
    assert before[-1] == f"inbox_{now + timedelta(days=inbox.AHEAD_DAYS):%Y%m%d}"
    async with probe.db.transaction() as tx:
        await inbox.roll(tx, now + timedelta(days=2))
    after = await days()
    assert after[:-2] == before[2:]
    for edge in (now, now + timedelta(days=2)):
        for time in (edge - timedelta(days=inbox.KEEP_DAYS - 1), edge + timedelta(days=inbox.AHEAD_DAYS - 1)):
            assert inbox.in_window(time, edge)
    assert f"inbox_{inbox.day_of(now - timedelta(days=inbox.KEEP_DAYS - 1)):%Y%m%d}" in before


@given(st.binary(max_size=300), st.integers(1, 16))
def test_a_key_goes_to_the_partition_that_every_other_client_chooses(key: bytes, partitions: int) -> None:
    every = list(range(partitions))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, every, every)
