"""Everything that a producer can send: never a stall, never a loss, never a crash.

Each record is an effect, is passed over because nobody handles its type, or lies in failed_jobs byte for byte; what
follows it takes effect. The fuse is out of the way: it stops a consumer that only fails, and here most records fail.
"""

import asyncio
import gc
import json
import os
import re
import struct
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import cramjam
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.codec import lz4_encode
from aiokafka.errors import KafkaError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Tx
from shared.messaging import unpacked
from shared.messaging.record import Headers, headers_of, unpack_headers
from tests.chaos.memory import Memory
from tests.conftest import eventually
from tests.messaging.batches import CODECS, One, batch, produce, sealed
from tests.messaging.harness import FAST, Deposited, Probe, Replica, record_effect

PATIENT = replace(FAST, fuse_keys=1_000_000)
HANDLED = Deposited.type.encode()


@dataclass
class Sent:
    """A record on its way, and where it lies."""

    one: One
    offset: int


async def send(probe: Probe, records: list[One], codec: str = "none", partition: int = 0) -> list[Sent]:
    """Put records into one batch; return where each lies."""
    first = await produce(probe.producer, probe.topic.name, partition, batch(records, codec))
    return [Sent(one, first + number) for number, one in enumerate(records)]


def good(probe: Probe, n: int, account: str = "good") -> One:
    event = probe.make(account, n)
    return account.encode(), event.to_bytes(), headers_of(event, "/t")


def with_headers(one: One, *headers: tuple[bytes, bytes | None], drop: bytes = b"") -> One:
    """Return the record with headers of these names replaced, or one left out."""
    names = {name for name, _ in headers} | {drop}
    return one[0], one[1], (*(pair for pair in one[2] if pair[0] not in names), *headers)


async def settled(probe: Probe, replica: Replica, sent: list[Sent], partition: int = 0) -> None:
    """Wait until a good record sent after these took effect, then account for each of them."""
    n = next(_NUMBERS)
    last = await send(probe, [good(probe, n, f"after-{n}")], partition=partition)
    await eventually(lambda: _effect(probe, f"after-{n}", n))
    await eventually(lambda: _stored(probe, partition, last[-1].offset + 1))
    rows = {row["record_offset"]: row for row in await _rows(probe, partition)}
    effects = set(await probe.effects())
    for one in sent:
        key, value, headers = one.one
        if row := rows.get(one.offset):
            assert (row["key"], row["value"], unpack_headers(row["headers"])) == (key, value, headers)
            assert row["error_code"]
            assert row["error_message"]
            _SEEN.add(_told(probe, headers))
            continue
        kinds = [content for name, content in headers if name == b"ce_type"]
        if kinds and kinds[-1] is not None and not re.match(rb"probe\.account\.deposited(\.v\d+)?$", kinds[-1]):
            continue  # nobody handles it
        if _told(probe, headers) in _SEEN:
            continue  # the same event again
        _SEEN.add(_told(probe, headers))
        assert value is not None
        assert (deposited := probe.event.from_bytes(value, id=uuid.uuid4(), time=datetime.now(UTC)))
        assert deposited.n in effects, f"lost: {one}"
    assert not any(task.done() for task in replica.tasks)
    await eventually(lambda: replica.delivery.health()[0])


_SEEN: set[tuple[str, bytes | None]] = set()
"""Ids of events that took effect or were parked, with their consumer: hypothesis likes to send some again."""
_NUMBERS = iter(range(1_000_000, 2_000_000))


def _told(probe: Probe, headers: Headers) -> tuple[str, bytes | None]:
    return probe.name, dict(headers).get(b"ce_id")


async def _effect(probe: Probe, account: str, n: int) -> bool:
    return n in await probe.effects(account)


async def _rows(probe: Probe, partition: int) -> list[Any]:
    async with probe.db.read() as tx:
        statement = text("select * from failed_jobs where consumer = :consumer and partition = :partition")
        return await tx.fetch(statement, consumer=probe.name, partition=partition)


async def _stored(probe: Probe, partition: int, offset: int) -> bool:
    async with probe.db.read() as tx:
        statement = text(
            "select max(next_offset) from consumer_offsets where consumer = :consumer and partition = :partition"
        )
        return (await tx.fetchval(statement, consumer=probe.name, partition=partition) or 0) >= offset


async def _outbox_is_empty(probe: Probe) -> bool:
    async with probe.db.read() as tx:
        return await tx.fetchval(text("select count(*) from outbox")) == 0


# By name


def _body(value: bytes) -> Any:
    return lambda one: (one[0], value, one[2])


def _head(*headers: tuple[bytes, bytes | None], drop: bytes = b"") -> Any:
    return lambda one: with_headers(one, *headers, drop=drop)


def _key(key: bytes | None) -> Any:
    return lambda one: (key, one[1], one[2])


_FIELDS = b"".join(b',"f%d":0' % n for n in range(60_000))
POISON: dict[str, Any] = {
    "no value": lambda one: (one[0], None, one[2]),
    "no key and no value": lambda one: (None, None, one[2]),
    "an empty value": _body(b""),
    "a NUL": _body(b"\x00"),
    "no UTF-8": _body(b'{"account": "\xff\xfe", "n": 1}'),
    "a byte order mark": _body(b'\xef\xbb\xbf{"account": "bom", "n": 1}'),
    "a list": _body(b"[]"),
    "null": _body(b"null"),
    "wrong types": _body(b'{"account": {}, "n": "many"}'),
    "a NUL in a string": _body(b'{"account": "nul\\u0000", "n": 1}'),
    "a lone surrogate": _body(b'{"account": "\\ud800", "n": 1}'),
    "control characters": _body(b'{"account": "\\u0001\\u001b[2J\\u202e", "n": 910001}'),
    "raw control characters": _body(b'{"account": "\x01\x1b[2J", "n": 1}'),
    "a huge integer": _body(b'{"account": "big", "n": ' + b"9" * 5000 + b"}"),
    "an integer that Postgres has no room for": _body(b'{"account": "big", "n": 4294967296}'),
    "infinity": _body(b'{"account": "inf", "n": 1e999}'),
    "not a number": _body(b'{"account": "nan", "n": NaN}'),
    "the same key twice": _body(b'{"account": "a", "account": "twice", "n": 1, "n": 910002}'),
    "deep nesting": _body(b'{"account": "deep", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep nesting beside the fields": _body(b'{"account": "deep", "n": 910003, "x": ' + b"[" * 190 + b"]" * 190 + b"}"),
    "very many fields": _body(b'{"account": "wide", "n": 910004' + _FIELDS + b"}"),
    "a long text": _body(b'{"account": "' + b"x" * 900_000 + b'", "n": 910005}'),
    "as large as the topic takes": _body(os.urandom(1_040_000)),
    "no type": _head(drop=b"ce_type"),
    "a type without a value": _head((b"ce_type", None)),
    "an empty type": _head((b"ce_type", b"")),
    "a type that is no UTF-8": _head((b"ce_type", b"\xff\xfe")),
    "a type with a NUL": _head((b"ce_type", HANDLED + b"\x00")),
    "a version of the future": _head((b"ce_type", b"probe.account.deposited.v9999999999")),
    "a version of hundred thousand digits": _head((b"ce_type", b"probe.account.deposited.v" + b"9" * 100_000)),
    "a version in other digits": _head((b"ce_type", "probe.account.deposited.v²".encode())),
    "the type twice, the last of the future": _head((b"ce_type", HANDLED), (b"ce_type", b"probe.account.deposited.v7")),
    "no id": _head(drop=b"ce_id"),
    "an id without a value": _head((b"ce_id", None)),
    "an id that is none": _head((b"ce_id", b"17")),
    "an id with a NUL": _head((b"ce_id", b"\x00" * 36)),
    "an id of a megabyte": _head((b"ce_id", b"f" * 900_000)),
    "no time": _head(drop=b"ce_time"),
    "a time of the year one": _head((b"ce_time", b"0001-01-01T00:00:00+14:00")),
    "a time of the last year": _head((b"ce_time", b"9999-12-31T23:59:59-14:00")),
    "a time in weeks": _head((b"ce_time", b"2026-W47-7T10:00:00+00:00")),
    "a time without a zone": _head((b"ce_time", b"2026-11-22T10:00:00")),
    "a time with a leap second": _head((b"ce_time", b"2026-11-22T23:59:60Z")),
    "a time with a zone of days": _head((b"ce_time", b"2026-11-22T10:00:00+99:99")),
    "a time with a NUL": _head((b"ce_time", b"2026-11-22T10:00:00Z\x00")),
    "a time in digits of elsewhere": _head((b"ce_time", "\uff12\uff10\uff12\uff16-11-22T10:00:00Z".encode())),
    "a header without a name": _head((b"", b"x")),
    "a header name that is no UTF-8": _head((b"\xff\xfe\xfd", b"x")),
    "a header value with a NUL": _head((b"traceparent", b"\x00\xff")),
    "a huge header": _head((b"x", b"\x00" * 900_000)),
    "ten thousand headers": lambda one: (one[0], one[1], (*one[2], *((b"h%d" % n, None) for n in range(10_000)))),
    "no key": _key(None),
    "an empty key": _key(b""),
    "a key with a NUL": _key(b"\x00"),
    "a key that is no UTF-8": _key(b"\xff\xfe"),
    "a key longer than an index takes": _key(os.urandom(5_000)),
    "a key as large as the topic takes": _key(os.urandom(1_000_000)),
}
_LONG_KEYS = {name: change for name, change in POISON.items() if name.startswith("a key longer")}
_BOTH = {  # what fails, under a key that cannot be fenced
    f"{name}, and {other}": lambda one, first=change, second=POISON[other]: second(first(one))
    for name, change in _LONG_KEYS.items()
    for other in ("no type", "no value", "a version of the future", "an id that is none", "a NUL in a string")
}


@pytest.mark.apache  # the embedded broker keeps 2 MB of a topic, read or not
@pytest.mark.parametrize("hold", [False, True])
async def test_whatever_is_sent_is_accounted_for_and_what_follows_takes_effect(probe: Probe, hold: bool) -> None:
    replica = probe.start(record_effect, policy=replace(PATIENT, hold=hold))
    numbers = iter(range(5_000_000))
    sent: list[Sent] = []
    for change in (POISON | _BOTH).values():
        n = next(numbers)
        account = f"k{n}"
        sent += await send(probe, [change(good(probe, n, account))])
        sent += await send(probe, [good(probe, 100_000 + n, f"other{n}")])
    await settled(probe, replica, sent)
    await eventually(lambda: _outbox_is_empty(probe))  # every dead letter went out
    async with probe.db.read() as tx:
        for job in await probe.jobs():  # and a person can look at every one
            await probe.failed_jobs.show(tx, job["id"])


@pytest.mark.apache  # as above
async def test_what_is_sent_under_one_key_does_not_stop_that_key(probe: Probe) -> None:
    """All poison has the key of the good records: these wait for retries at most, then take effect in order."""
    replica = probe.start(record_effect, policy=replace(PATIENT, delays_s=(0.02,)))
    sent: list[Sent] = []
    changes = [change for name, change in POISON.items() if "version" not in name and "future" not in name]  # held
    for number, change in enumerate(changes):
        poison = change(good(probe, 700_000 + number, "one"))
        sent += await send(probe, [(b"one" if poison[0] == b"one" else poison[0], *poison[1:])])
        sent += await send(probe, [good(probe, number, "one")])
    await settled(probe, replica, sent)
    await eventually(lambda: _in_order(probe, "one", len(changes)), 60)


async def _in_order(probe: Probe, account: str, at_least: int) -> bool:
    found = [n for n in await probe.effects(account) if n < 700_000]
    assert found == sorted(found)
    return len(found) >= at_least


# Fuzzed

_NAMES = st.sampled_from([b"ce_type", b"ce_id", b"ce_time", b"ce_specversion", b"content-type", b"traceparent", b""])
_TEXT = st.text(max_size=40).map(lambda one: one.encode("utf-8", "surrogatepass"))
_TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(lambda one: one.isoformat().encode())
_CONTENT = st.one_of(
    st.none(),
    st.binary(max_size=60),
    _TEXT,
    _TIMES,
    st.uuids().map(lambda one: str(one).encode()),
    st.sampled_from([HANDLED, b"probe.account.deposited.v2", b"probe.account.closed.v1", b"\x00" * 70_000]),
)


def _json(value: Any) -> bytes:
    """Only json writes NaN and lone surrogates."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_FLAT = _LEAF | st.lists(_LEAF, max_size=4) | st.dictionaries(st.text(max_size=8), _LEAF, max_size=4)
_JSON = _FLAT | st.lists(_FLAT, max_size=4) | st.dictionaries(st.text(max_size=8), _FLAT, max_size=4)
_VALUES = st.one_of(
    st.none(),
    st.binary(max_size=300),
    st.builds(lambda account, n: _json({"account": account, "n": n}), _JSON, _JSON),
    st.builds(_json, _JSON),
)


@st.composite
def poisons(draw: st.DrawFn) -> Any:
    """A change to a good record: any of its headers, its key, its value, or several."""
    headers = draw(st.lists(st.tuples(_NAMES | st.binary(max_size=12), _CONTENT), max_size=4))
    key = draw(st.none() | st.sampled_from(["keep"]) | st.binary(max_size=3000))
    value = draw(st.just("keep") | _VALUES)
    double = draw(st.booleans())

    def change(one: One) -> One:
        changed = one if double else with_headers(one, *headers)
        pairs: Headers = (*one[2], *headers) if double else changed[2]
        return (one[0] if isinstance(key, str) else key, one[1] if isinstance(value, str) else value, pairs)

    return change


@pytest.fixture
async def fuzzed(probe: Probe) -> tuple[Probe, Replica]:
    return probe, probe.start(record_effect, policy=PATIENT)


@settings(
    max_examples=int(os.environ.get("OPENBELL_POISON_EXAMPLES", "25")),
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(poisons(), min_size=1, max_size=12), codec=st.sampled_from(list(CODECS)))
async def test_whatever_hypothesis_thinks_of_is_accounted_for(
    fuzzed: tuple[Probe, Replica], changes: list[Any], codec: str
) -> None:
    probe, replica = fuzzed
    records = [change(good(probe, n := next(_NUMBERS), f"k{n}")) for change in changes]
    sent = await send(probe, records, codec)
    await settled(probe, replica, sent)


# Batches


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
async def test_a_bomb_is_parked_as_it_lies_there_and_memory_is_bounded(probe: Probe, codec: str) -> None:
    data = bomb(codec, 150_000_000)
    assert len(data) < probe.topic.max_message_bytes
    replica = probe.start(record_effect, policy=PATIENT)
    before = await send(probe, [good(probe, 1)])
    await eventually(lambda: _effect(probe, "good", 1))
    gc.collect()
    grown = Memory()
    await produce(probe.producer, probe.topic.name, 0, data)
    await settled(probe, replica, before)
    assert grown.peak_mb() < 130, "64 MiB to look at it, its bytes, and what a test needs"
    (job,) = await probe.jobs()
    assert (job["error_code"], job["status"]) == ("CORRUPT_BATCH", "dead")
    (row,) = await _rows(probe, 0)
    assert row["value"][12:] == stored(data, row["value"])[12:]


def stored(data: bytes, row: bytes) -> bytes:
    """Return the batch as the broker wrote it: with its offset and its own epoch."""
    return row[:16] + data[16:]


def bomb(codec: str, size: int) -> bytes:
    """Return a batch of one record that is `size` zeros."""
    plain = batch([(b"k", bytes(size), headers_of_bomb())])
    body = plain[61:]
    packed = {
        "gzip": lambda: cramjam.gzip.compress(body, 9),
        "lz4": lambda: lz4_encode(body),
        "zstd": lambda: cramjam.zstd.compress(body, 3),
    }[codec]()
    head = bytearray(plain[:61])
    struct.pack_into(">i", head, 8, 61 - 12 + len(packed))
    struct.pack_into(">h", head, 21, CODECS[codec])
    return sealed(bytes(head) + bytes(packed))


def headers_of_bomb() -> Headers:
    return ((b"ce_type", HANDLED),)


async def test_many_batches_that_unpack_to_much_are_read_in_pieces(probe: Probe) -> None:
    """Each is allowed, all of a fetch together are not."""
    packed = batch([(b"k", bytes(20_000_000), ((b"ce_type", b"probe.other.v1"),))], "zstd")
    for _ in range(30):
        await produce(probe.producer, probe.topic.name, 0, packed)
    gc.collect()
    grown = Memory()
    replica = probe.start(record_effect, policy=PATIENT)
    await settled(probe, replica, [])
    assert grown.peak_mb() < 300, "600 MB when all are unpacked at once"
    assert await probe.jobs() == []


@pytest.mark.parametrize("damage", ["checksum", "count", "length", "fields", "magic 0", "magic 1"])
async def test_a_batch_that_is_none_is_refused_or_parked_and_nothing_stands(probe: Probe, damage: str) -> None:
    replica = probe.start(record_effect, policy=PATIENT)
    whole = bytearray(batch([(b"k", b"x" * 100, ())] * 3))
    match damage:
        case "checksum":
            whole[-3] ^= 1
        case "count":
            struct.pack_into(">i", whole, 57, 7)
            whole = bytearray(sealed(bytes(whole)))
        case "length":
            whole[61] = 0x7F
            whole = bytearray(sealed(bytes(whole)))
        case "fields":
            whole[65] = 0xFF
            whole[66] = 0xFF
            whole = bytearray(sealed(bytes(whole)))
        case _:
            whole[16] = int(damage[-1])
    taken = True
    try:
        async with asyncio.timeout(5):
            await produce(probe.producer, probe.topic.name, 0, bytes(whole))
    except (KafkaError, TimeoutError):
        taken = False
    await settled(probe, replica, [])
    assert bool(await probe.jobs()) == taken


@pytest.mark.apache
async def test_an_aborted_transaction_never_happened_and_an_open_one_holds_its_partition_only(probe: Probe) -> None:
    """Read committed: what a producer took back is no event. Until it says so, at most its time-out, others wait."""
    replica = probe.start(record_effect, policy=PATIENT)
    producer = AIOKafkaProducer(bootstrap_servers=probe.address.bootstrap, transactional_id=probe.name)
    await producer.start()
    try:
        await producer.begin_transaction()
        await _into(producer, probe, probe.make("taken back", 1))
        await send(probe, [good(probe, 2)])
        await send(probe, [good(probe, 3, "elsewhere")], partition=1)
        await eventually(lambda: _effect(probe, "elsewhere", 3))
        assert await probe.effects("good") == []
        await producer.abort_transaction()
        await eventually(lambda: _effect(probe, "good", 2))
        await producer.begin_transaction()
        await _into(producer, probe, probe.make("kept", 4))
        await producer.commit_transaction()
        await eventually(lambda: _effect(probe, "kept", 4))
    finally:
        await producer.stop()
    assert await probe.effects("taken back") == []
    assert await probe.jobs() == []
    await settled(probe, replica, [])


async def _into(producer: AIOKafkaProducer, probe: Probe, event: Deposited) -> None:
    headers = [(name.decode(), value) for name, value in headers_of(event, "/t")]
    await producer.send_and_wait(
        probe.topic.name, event.to_bytes(), key=event.key.encode(), partition=0, headers=headers
    )


# What handlers do


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("not even that")


async def _leaked(event: Deposited, tx: Tx) -> list[Event]:
    raise asyncio.CancelledError


async def _mute(event: Deposited, tx: Tx) -> list[Event]:
    raise Mute


async def _surrogates(event: Deposited, tx: Tx) -> list[Event]:
    raise ValueError("\ud800\x00 not a text")


@pytest.mark.parametrize("failing", [_leaked, _mute, _surrogates])
async def test_however_a_handler_fails_its_record_is_parked(probe: Probe, failing: Any) -> None:
    async def handle(event: Deposited, tx: Tx) -> list[Event]:
        return await (failing if event.account == "bad" else record_effect)(event, tx)

    replica = probe.start(handle, policy=PATIENT)
    sent = await send(probe, [good(probe, 1, "bad")])
    await settled(probe, replica, sent)
    (job,) = await probe.jobs()
    assert job["error_message"]


def test_what_unpacks_is_measured_before_it_is_unpacked() -> None:
    one = batch([(b"k", b"x" * 100_000, ())], "zstd")
    for codec in CODECS:
        data = batch([(b"k", b"x" * 100_000, ())], codec)
        assert unpacked.readable(data) == len(data)
    assert unpacked.readable(one, 50_000) == 0
    assert unpacked.readable(one * 3, 250_000) == 2 * len(one)
    assert unpacked.readable(one + one[:30]) == len(one) + 30
