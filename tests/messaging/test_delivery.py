"""From Kafka to an effect: once, in order, or parked."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import NotYet, Permanent, SomeFailed, Transient
from shared.messaging.lane import Lanes
from shared.messaging.record import Record, headers_of, lane_of
from tests.conftest import eventually
from tests.messaging.harness import FAST, INSERT, Deposited, Probe, long_ago, record_effect


async def test_an_event_takes_effect_once_though_it_is_sent_twice(probe: Probe) -> None:
    twice = probe.make("a", 1)
    for event in (twice, twice, probe.make("a", 2)):
        await probe.send(event)
    probe.start(record_effect)
    await eventually(lambda: _has(probe, "a", [1, 2]))
    await probe.send(twice)
    await probe.send(probe.make("a", 3))
    await eventually(lambda: _has(probe, "a", [1, 2, 3]))
    assert await probe.jobs() == []


async def test_a_restart_goes_on_where_the_last_one_stopped(probe: Probe) -> None:
    first = probe.start(record_effect)
    await probe.send(probe.make("a", 1))
    await eventually(lambda: _has(probe, "a", [1]))
    await first.stop()
    await probe.send(probe.make("a", 2))
    probe.start(record_effect)
    await eventually(lambda: _has(probe, "a", [1, 2]))


PATIENT = replace(FAST, delays_s=(0.2,) * 20)


async def test_events_behind_a_failing_one_wait_for_it_and_other_keys_flow(probe: Probe) -> None:
    down = True

    async def flaky(event: Deposited, tx: Tx) -> list[Event]:
        await tx.execute(INSERT, account=event.account, n=event.n)
        if event.n == 1 and event.account == "a" and down:
            raise Transient("not now")
        return []

    for n in range(1, 6):
        await probe.send(probe.make("a", n))
        await probe.send(probe.make("b", n))
    probe.start(flaky, policy=PATIENT)
    await eventually(lambda: _has(probe, "b", [1, 2, 3, 4, 5]))
    await eventually(lambda: _statuses(probe, ["waiting"] * 5))
    assert await probe.effects("a") == []
    down = False
    await eventually(lambda: _has(probe, "a", [1, 2, 3, 4, 5]))
    assert {job["status"] for job in await probe.jobs()} == {"resolved"}


async def test_a_batch_handler_gets_a_lane_at_once_and_a_bad_event_costs_only_itself(probe: Probe) -> None:
    sizes: list[int] = []

    async def many(events: Sequence[Deposited], tx: Tx) -> list[Event]:
        sizes.append(len(events))
        for event in events:
            if event.n == 7:
                raise Permanent("seven is refused")
            await tx.execute(INSERT, account=event.account, n=event.n)
        return []

    for n in range(20):
        await probe.send(probe.make("a", n))
    probe.start(many, batch=True)
    await eventually(lambda: _has(probe, "a", [n for n in range(20) if n != 7]))
    (job,) = await probe.jobs()
    assert (job["status"], job["error_code"], job["error_message"]) == ("dead", "REFUSED", "seven is refused")
    assert max(sizes) > 1


async def test_a_permanent_failure_is_dead_at_once_and_published_byte_for_byte(probe: Probe) -> None:
    async def refuse(event: Deposited, tx: Tx) -> list[Event]:
        raise Permanent("a rule says no", field="n")

    event = probe.make("a", 1)
    partition, offset = await probe.send(event)
    probe.start(refuse)
    await eventually(lambda: _statuses(probe, ["dead"]))
    (letter,) = await probe.read_topic(f"{probe.name}.dlq", 1)
    assert (letter.key, letter.value) == (b"a", event.to_bytes())
    headers = dict(letter.headers)
    assert headers["ce_id"] == str(event.id).encode()
    assert headers["openbell-dlq-offset"] == str(offset).encode()
    assert headers["openbell-dlq-partition"] == str(partition).encode()
    assert headers["openbell-dlq-code"] == b"REFUSED"


async def test_retries_end_and_the_key_is_released(probe: Probe) -> None:
    async def never(event: Deposited, tx: Tx) -> list[Event]:
        if event.n == 1:
            raise RuntimeError("always")
        return await record_effect(event, tx)

    await probe.send(probe.make("a", 1))
    await probe.send(probe.make("a", 2))
    probe.start(never)
    await eventually(lambda: _has(probe, "a", [2]))
    dead, behind = await probe.jobs()
    assert (dead["status"], dead["attempts"], dead["error_code"]) == ("dead", len(FAST.delays_s) + 1, "RuntimeError")
    assert behind["status"] == "resolved"


async def test_a_slow_retry_keeps_no_other_lane_waiting(probe: Probe) -> None:
    """The retry of one key takes long; a key of another lane fails meanwhile and is retried in time."""
    slow, quick = "a", next(one for one in "bcdefgh" if lane_of_account(one) != lane_of_account("a"))
    failed: set[str] = set()
    entered, gate = asyncio.Event(), asyncio.Event()

    async def once_then(event: Deposited, tx: Tx) -> list[Event]:
        if event.account not in failed:
            failed.add(event.account)
            raise Transient("the first time")
        if event.account == slow:
            entered.set()
            await gate.wait()
        return await record_effect(event, tx)

    probe.start(once_then)
    await probe.send(probe.make(slow, 1))
    await entered.wait()
    await probe.send(probe.make(quick, 1))
    await eventually(lambda: _has(probe, quick, [1]))
    assert await probe.effects(slow) == []
    gate.set()
    await eventually(lambda: _has(probe, slow, [1]))


def lane_of_account(account: str) -> int:
    return lane_of(Record("t", 0, 0, account.encode(), None, ()), Lanes.count)


async def test_a_consumer_that_holds_keeps_the_key_until_a_person_decides(probe: Probe) -> None:
    async def refuse_first(event: Deposited, tx: Tx) -> list[Event]:
        if event.n == 1:
            raise Permanent("no")
        return await record_effect(event, tx)

    await probe.send(probe.make("a", 1))
    await probe.send(probe.make("a", 2))
    await probe.send(probe.make("b", 3))
    probe.start(refuse_first, policy=replace(FAST, hold=True))
    await eventually(lambda: _statuses(probe, ["held", "waiting"]))
    await eventually(lambda: _has(probe, "b", [3]))
    assert await probe.effects("a") == []
    held = (await probe.jobs("held"))[0]
    await probe.act(lambda tx: probe.failed_jobs.discard(tx, held["id"], "test", "wrong order"))
    await eventually(lambda: _has(probe, "a", [2]))


async def test_a_missing_prerequisite_waits_longer_than_a_failure(probe: Probe) -> None:
    tries = 0

    async def wait(event: Deposited, tx: Tx) -> list[Event]:
        nonlocal tries
        tries += 1
        if tries < 7:
            raise NotYet("the user is not here yet")
        return await record_effect(event, tx)

    await probe.send(probe.make("a", 1))
    probe.start(wait)
    await eventually(lambda: _has(probe, "a", [1]))


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "bytes that are not JSON": ({"value": b"\x00\xff{"}, "dead", "UNDECODABLE"),
    "JSON of the wrong shape": ({"value": b'{"account": 7}'}, "dead", "UNDECODABLE"),
    "JSON that is no object": ({"value": b"[1, 2]"}, "dead", "UNDECODABLE"),
    "a tombstone": ({"value": None}, "dead", "UNDECODABLE"),
    "an empty value": ({"value": b""}, "dead", "UNDECODABLE"),
    "no type header": ({"drop": b"ce_type"}, "dead", "NO_TYPE"),
    "no id header": ({"drop": b"ce_id"}, "dead", "BAD_ENVELOPE"),
    "an id that is none": ({"set": (b"ce_id", b"7")}, "dead", "BAD_ENVELOPE"),
    "a header value that is not UTF-8": ({"set": (b"ce_id", b"\xff\xfe")}, "dead", "BAD_ENVELOPE"),
    "a time that is none": ({"set": (b"ce_time", b"yesterday")}, "dead", "BAD_ENVELOPE"),
    "a time without a zone": ({"set": (b"ce_time", b"2026-11-22T10:00:00")}, "dead", "BAD_ENVELOPE"),
    "a time that the inbox forgot": ({"set": (b"ce_time", long_ago().isoformat().encode())}, "dead", "OUT_OF_WINDOW"),
    "an unknown version": ({"set": (b"ce_type", b"probe.account.deposited.v9")}, "held", "UNKNOWN_VERSION"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_input_is_parked_with_its_reason_and_the_consumer_goes_on(probe: Probe, kind: str) -> None:
    change, status, code = BAD[kind]
    event = probe.make("bad", 1)
    headers = dict(headers_of(event, "/test"))
    if "drop" in change:
        headers.pop(change["drop"])
    if "set" in change:
        headers[change["set"][0]] = change["set"][1]
    changes = {"value": change["value"]} if "value" in change else {}
    await probe.send(event, tuple(headers.items()), **changes)
    await probe.send(probe.make("good", 2))
    probe.start(record_effect)
    await eventually(lambda: _has(probe, "good", [2]))
    await eventually(lambda: _statuses(probe, [status]))
    (job,) = await probe.jobs()
    assert job["error_code"] == code
    async with probe.db.read() as tx:
        shown = await probe.failed_jobs.show(tx, job["id"])
    assert shown["headers"] == [
        [name.decode(), (value or b"").decode("utf-8", "backslashreplace")] for name, value in headers.items()
    ]
    if "value" in change:
        assert shown["value_bytes"] == (None if change["value"] is None else len(change["value"]))


async def test_a_type_that_nobody_names_passes(probe: Probe) -> None:
    event = probe.make("a", 1)
    await probe.send(event, tuple((dict(headers_of(event, "/t")) | {b"ce_type": b"probe.account.closed.v1"}).items()))
    await probe.send(probe.make("a", 2))
    probe.start(record_effect)
    await eventually(lambda: _has(probe, "a", [2]))
    assert await probe.jobs() == []


async def test_what_a_person_retries_runs_again_with_its_id(probe: Probe) -> None:
    broken = True

    async def mended_later(event: Deposited, tx: Tx) -> list[Event]:
        if broken:
            raise Permanent("bad deploy")
        return await record_effect(event, tx)

    await probe.send(probe.make("a", 1))
    probe.start(mended_later)
    await eventually(lambda: _statuses(probe, ["dead"]))
    broken = False
    (job,) = await probe.jobs()
    await probe.act(lambda tx: probe.failed_jobs.retry(tx, job["id"], "test"))
    await eventually(lambda: _has(probe, "a", [1]))
    (job,) = await probe.jobs()
    assert (job["status"], job["resolved_by"]) == ("resolved", "test")


async def test_the_fuse_stops_a_consumer_that_only_fails_and_a_probe_starts_it_again(probe: Probe) -> None:
    broken = True

    async def down(event: Deposited, tx: Tx) -> list[Event]:
        if broken:
            raise RuntimeError("our own fault")
        return await record_effect(event, tx)

    replica = probe.start(down, policy=replace(FAST, fuse_keys=5))
    for n in range(40):
        await probe.send(probe.make(f"k{n}", n))
    await eventually(lambda: replica.fuse.is_open)
    assert replica.delivery.health()[0] is False
    parked = len(await probe.jobs())
    assert parked < 40, "the rest stays in Kafka"
    broken = False
    await eventually(lambda: _count(probe, 40))
    assert not replica.fuse.is_open
    assert all(job["status"] == "resolved" for job in await probe.jobs())


async def test_an_open_fuse_tries_one_event_in_each_interval_and_no_more(probe: Probe) -> None:
    tried: list[float] = []

    async def down(event: Deposited, tx: Tx) -> list[Event]:
        tried.append(monotonic())
        raise RuntimeError("our own fault")

    every_s = 3.0
    replica = probe.start(down, policy=replace(FAST, fuse_keys=5, probe_every_s=every_s))
    for n in range(40):
        await probe.send(probe.make(f"k{n}", n))
    await eventually(lambda: replica.fuse.is_open)
    opened = monotonic()
    await eventually(lambda: len([at for at in tried if at > opened + every_s / 2]) >= 3)
    probes = [at for at in tried if at > opened + every_s / 2]
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert min(gaps) > every_s - 0.1


async def test_a_handler_that_hangs_is_cut_and_parked(probe: Probe) -> None:
    async def hang(event: Deposited, tx: Tx) -> list[Event]:
        if event.n == 1:
            await asyncio.Event().wait()
        return await record_effect(event, tx)

    replica = probe.start(hang)
    replica.lanes.deadline_s = 0.3  # type: ignore[misc]
    await probe.send(probe.make("a", 1))
    await probe.send(probe.make("b", 2))
    await eventually(lambda: _has(probe, "b", [2]))
    await eventually(lambda: _jobs_with(probe, "DEADLINE"))


@pytest.mark.apache
async def test_the_mark_of_a_transactions_end_is_no_lag(probe: Probe) -> None:
    event = probe.make("a", 1)
    producer = AIOKafkaProducer(bootstrap_servers=probe.address.bootstrap, transactional_id=probe.name)
    await producer.start()
    try:
        async with producer.transaction():
            headers = [(name.decode(), value) for name, value in headers_of(event, "/test")]
            sent = await producer.send_and_wait(probe.topic.name, event.to_bytes(), b"a", headers=headers)
    finally:
        await producer.stop()
    replica = probe.start(record_effect)
    await eventually(lambda: _has(probe, "a", [1]))

    async def at_the_end() -> bool:
        async with probe.db.read() as tx:
            found = await tx.fetchval(
                text("select next_offset from consumer_offsets where partition = :partition"), partition=sent.partition
            )
        return found == sent.offset + 2

    await eventually(at_the_end)
    assert replica.delivery.health() == (True, "2 partitions")


async def test_another_kafka_is_read_from_its_start_though_its_offsets_look_known(probe: Probe) -> None:
    """Postgres says that three records were read, but of a Kafka that is gone; these three are new."""
    events = [probe.make("a", n) for n in (1, 2, 3)]
    ends = [await probe.send(event) for event in events]
    async with probe.db.transaction() as tx:
        await tx.execute(
            text(
                """
                insert into consumer_offsets (consumer, topic, partition, next_offset, cluster)
                values (:consumer, :topic, :partition, :next_offset, 'one-that-is-gone')
                """
            ),
            consumer=probe.name,
            topic=probe.topic.name,
            partition=ends[-1][0],
            next_offset=ends[-1][1] + 1,
        )
    first = probe.start(record_effect)
    await eventually(lambda: _has(probe, "a", [1, 2, 3]))
    (note,) = await probe.jobs()
    assert (note["status"], note["error_code"]) == ("dead", "OTHER_CLUSTER")
    await first.stop()
    probe.start(record_effect)
    await probe.send(probe.make("a", 4))
    await eventually(lambda: _has(probe, "a", [1, 2, 3, 4]))
    assert len(await probe.jobs()) == 1, "the second start knows where it is"


async def test_what_was_to_follow_a_commit_does_not_follow_what_was_undone(probe: Probe) -> None:
    counted: list[int] = []

    async def count(events: Sequence[Deposited], tx: Tx) -> list[Event]:
        for event in events:
            tx.after_commit(lambda n=event.n: counted.append(n))
        if bad := [event for event in events if event.n == 3]:
            raise SomeFailed({event.id: Permanent("three is refused") for event in bad})
        return []

    for n in range(5):
        await probe.send(probe.make("a", n))
    probe.start(count, batch=True)
    await eventually(lambda: sorted(counted) == [0, 1, 2, 4])
    await eventually(lambda: _statuses(probe, ["dead"]))
    assert sorted(counted) == [0, 1, 2, 4]


async def test_a_log_that_was_cut_before_it_was_read_is_a_visible_gap(probe: Probe) -> None:
    partition, offset = await probe.send(probe.make("a", 1))
    async with probe.db.transaction() as tx:
        await tx.execute(
            text("insert into consumer_offsets values (:c, :t, :p, :o, now())"),
            c=probe.name,
            t=probe.topic.name,
            p=partition,
            o=offset + 500,
        )
    probe.start(record_effect)  # stored beyond the end: a younger log; everything is read
    await eventually(lambda: _has(probe, "a", [1]))


async def _has(probe: Probe, account: str, expected: list[int]) -> bool:
    return await probe.effects(account) == expected


async def _count(probe: Probe, expected: int) -> bool:
    return len(await probe.effects()) == expected


async def _statuses(probe: Probe, expected: list[str]) -> bool:
    return [job["status"] for job in await probe.jobs()] == expected


async def _jobs_with(probe: Probe, code: str) -> bool:
    return [job["error_code"] for job in await probe.jobs()] == [code]
