"""Reading bytes that the client's parser refuses."""

import struct
from typing import Any

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from shared.messaging.ports import Unreadable
from shared.messaging.raw_fetch import read
from shared.messaging.record import headers_of
from shared.messaging.unpacked import LIMIT
from tests.conftest import eventually
from tests.messaging.batches import CODECS, One, batch, produce, sealed
from tests.messaging.harness import Deposited, Probe, record_effect

HERE = TopicPartition("t", 0)
THREE: list[One] = [
    (b"a", b"x" * 200, ((b"h", b"1"), (b"n", None))),
    (None, None, ()),
    (b"", b"", ((b"\xff\xfe", b"odd"),)),
]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(codec: str) -> None:
    found, following = read(batch(THREE, codec, base=40), HERE, 41)
    assert following == 40 + len(THREE)
    assert [(one.offset, one.key, one.value, one.headers) for one in _records(found)] == [
        (40 + number, *record) for number, record in enumerate(THREE) if number >= 1
    ]


def test_a_control_batch_is_stepped_over() -> None:
    data = batch(THREE[:1], base=5, attributes=0x20) + batch(THREE[:1], base=6)
    found, following = read(data, HERE, 5)
    assert ([one.offset for one in _records(found)], following) == ([6], 7)


def test_a_transaction_that_was_aborted_is_left_out_and_the_next_of_its_producer_is_not() -> None:
    """Producer 7 aborts, then commits; producer 8 commits meanwhile."""
    data = b"".join(
        (
            _transactional(7, 0),
            _transactional(8, 1),
            batch(THREE[:1], base=2),
            _mark(7, 3, commit=False),
            _transactional(7, 4),
            _mark(7, 5, commit=True),
        )
    )
    found, following = read(data, HERE, 0, [(7, 0)])
    assert ([one.offset for one in _records(found)], following) == ([1, 2, 4], 6)


def _transactional(producer: int, base: int, data: bytes | None = None) -> bytes:
    head = bytearray(data or batch(THREE[:1], base=base, attributes=0x10))
    struct.pack_into(">q", head, 43, producer)
    return sealed(bytes(head))


def _mark(producer: int, base: int, *, commit: bool) -> bytes:
    key = struct.pack(">hh", 0, int(commit))
    return _transactional(producer, base, batch([(key, bytes(6), ())], base=base, attributes=0x30))


def test_a_cut_off_tail_is_left_for_the_next_fetch() -> None:
    whole, cut = batch(THREE, base=0), batch(THREE, base=3)
    for length in (1, 11, 12, 60, len(cut) - 1):
        found, following = read(whole + cut[:length], HERE, 0)
        assert ([one.offset for one in _records(found)], following) == ([0, 1, 2], 3)


def test_a_batch_that_does_not_fit_its_checksum_is_unreadable_as_a_whole_and_the_next_is_read() -> None:
    bad = bytearray(batch(THREE, base=0))
    bad[-210] ^= 1
    found, following = read(bytes(bad) + batch(THREE[:1], base=3), HERE, 0)
    unreadable, after = found
    assert isinstance(unreadable, Unreadable)
    assert (unreadable.offset, unreadable.last_offset, unreadable.body) == (0, 2, bytes(bad))
    assert "checksum" in unreadable.reason
    assert following == 4
    assert not isinstance(after, Unreadable)
    assert after.offset == 3


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_body_that_cannot_be_unpacked_is_unreadable(codec: str) -> None:
    good = batch(THREE[:1], codec)
    found, following = read(sealed(good[:61] + b"\x00garbage" + good[69:]), HERE, 0)
    assert [type(one) for one in found] == [Unreadable]
    assert following == 1


def test_of_batches_too_large_to_unpack_one_is_read_and_the_others_wait_for_the_next_fetch() -> None:
    large: list[One] = [(None, bytes(LIMIT + 1), ())]
    first, second = batch(large, "gzip", base=0), batch(large, "gzip", base=1)
    found, following = read(first + second, HERE, 0)
    assert ([type(one) for one in found], following) == ([Unreadable], 1)
    found, following = read(second, HERE, following)
    assert ([type(one) for one in found], following) == ([Unreadable], 2)


@pytest.mark.parametrize(("length", "said"), [(10, None), (11, "more than 10 bytes"), (100_000, "more than 10 bytes")])
def test_a_number_longer_than_the_format_knows_is_unreadable(length: int, said: str | None) -> None:
    good = batch([(None, b"v", ())])
    endless = b"\x80" * (length - 1) + b"\x00"
    data = sealed(_resized(good[:61] + endless + good[62:]))
    (found,), _ = read(data, HERE, 0)
    assert isinstance(found, Unreadable) == (said is not None)
    assert said is None or said in found.reason  # pyright: ignore[reportAttributeAccessIssue]


def _resized(data: bytes) -> bytes:
    return data[:8] + struct.pack(">i", len(data) - 12) + data[12:]


def test_an_old_message_format_is_unreadable_and_costs_one_offset() -> None:
    old = bytearray(batch(THREE, base=7))
    old[16] = 1
    found, following = read(bytes(old), HERE, 7)
    assert ([type(one) for one in found], following) == ([Unreadable], 8)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_garbage_never_raises_and_never_goes_back(garbage: bytes, at: int) -> None:
    data = bytearray(batch(THREE))
    data[at : at + len(garbage)] = garbage
    _, following = read(bytes(data), HERE, 0)
    assert following >= 0


def test_a_negative_length_ends_the_reading() -> None:
    assert read(struct.pack(">qi", 0, -12) + b"x" * 80, HERE, 0) == ([], 0)


async def test_a_header_name_that_is_not_utf8_costs_nobody_anything(probe: Probe) -> None:
    account, other = await _in_two_partitions(probe)
    odd = probe.make(account, 1)
    body: One = (account.encode(), odd.to_bytes(), (*headers_of(odd, "/t"), (b"\xff\xfe-name", b"v")))
    for n in range(3):
        await probe.send(probe.make(other, n))
    await produce(probe.producer, probe.topic.name, await _partition(probe, account), batch([body]))
    await probe.send(probe.make(account, 2))
    probe.start(record_effect)
    await eventually(lambda: _has(probe, other, [0, 1, 2]))
    await eventually(lambda: _has(probe, account, [1, 2]))
    assert await probe.jobs() == []


async def test_the_dead_letter_of_such_a_record_is_published(probe: Probe) -> None:
    async def refuse(event: Deposited, tx: Any) -> list[Any]:
        if event.n == 1:
            raise RuntimeError("no")
        return await record_effect(event, tx)

    odd = probe.make("a", 1)
    body: One = (b"a", odd.to_bytes(), (*headers_of(odd, "/t"), (b"\xff\xfe-name", b"v"), (b"none", None)))
    await produce(probe.producer, probe.topic.name, 0, batch([body]))
    after = probe.make("a", 2)
    await probe.send(after, partition=0)
    probe.start(refuse)
    await eventually(lambda: _has(probe, "a", [2]))
    (letter,) = await probe.read_topic(f"{probe.name}.dlq", 1)
    assert letter.value == odd.to_bytes()
    assert ("openbell-header-name", b"\xff\xfe-name") in letter.headers
    assert ("none", None) in letter.headers
    (job,) = await probe.jobs("dead")
    async with probe.db.read() as tx:
        shown = await probe.failed_jobs.show(tx, job["id"])
    assert ["\\xff\\xfe-name", "v"] in shown["headers"]


def _records(found: list[Any]) -> list[Any]:
    assert not [one for one in found if isinstance(one, Unreadable)]
    return found


async def _partition(probe: Probe, account: str) -> int:
    return probe.producer._partition(probe.topic.name, None, None, None, account.encode(), b"")


async def _in_two_partitions(probe: Probe) -> tuple[str, str]:
    await probe.producer.partitions_for(probe.topic.name)
    first = await _partition(probe, "a")
    for letter in "bcdefgh":
        if await _partition(probe, letter) != first:
            return "a", letter
    raise AssertionError("all in one partition")


async def _has(probe: Probe, account: str, expected: list[int]) -> bool:
    return await probe.effects(account) == expected
