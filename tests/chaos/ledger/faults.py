"""What is done to the system: a plan drawn from a seed, and each fault.

A fault takes the lock of what it strikes, so that two faults never fight over one process; different targets are
struck at the same time. Each has chance of its own, drawn from the plan's, so that timing does not change its choices.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

import asyncpg

from tests.chaos.ledger.monitor import Monitor
from tests.chaos.ledger.servers import Kafka, Postgres, Replica, role_of

_log = logging.getLogger(__name__)

_MID_TRANSACTION: Final = """
    select count(*) from pg_stat_activity
    where usename = $1 and client_port = any($2::int[]) and state in ('active', 'idle in transaction')
      and backend_xid is not null
"""
_BACKEND: Final = "select pid from pg_stat_activity where usename = $1 order by random() limit 1"


@dataclass
class World:
    """What can be struck."""

    postgres: Postgres
    kafka: Kafka
    replicas: list[Replica]
    extra: Replica
    monitor: Monitor
    kills: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    mid_transaction: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come."""

    at_s: float
    kind: str
    seed: str


Fault = Callable[[World, Random], Awaitable[None]]


@asynccontextmanager
async def _striking(lock: asyncio.Lock, rest_s: float) -> AsyncGenerator[None]:
    """Hold a target, and for a while longer, so that it works a little before it is struck again."""
    await lock.acquire()
    try:
        yield
    finally:
        asyncio.get_running_loop().call_later(rest_s, lock.release)


async def kill_replica(world: World, draw: Random) -> None:
    """SIGKILL one; it comes back after up to two seconds."""
    await _kill_replicas(world, draw.sample(world.replicas, 1), draw)


async def kill_two(world: World, draw: Random) -> None:
    """SIGKILL two at once."""
    await _kill_replicas(world, draw.sample(world.replicas, 2), draw)


async def kill_all(world: World, draw: Random) -> None:
    """SIGKILL all at once."""
    await _kill_replicas(world, world.replicas, draw)


async def _kill_replicas(world: World, replicas: Sequence[Replica], draw: Random) -> None:
    async with AsyncExitStack() as held:
        for replica in sorted(replicas, key=lambda one: one.name):
            await held.enter_async_context(_striking(replica.lock, 3))
        for replica in replicas:
            await replica.kill()
            world.kills["replica"] += 1
        await asyncio.sleep(draw.uniform(0, 2))
        for replica in replicas:
            await replica.start()


async def redeploy(world: World, draw: Random) -> None:
    """SIGTERM one, as a deployment does; start it again."""
    replica = draw.choice(world.replicas)
    async with _striking(replica.lock, 3):
        if not await replica.stop():
            world.done["hung at SIGTERM"] += 1
        await replica.start()


async def stop_short(world: World, draw: Random) -> None:
    """SIGSTOP one in the middle of a transaction, for less than any time-out."""
    await _stop(world, draw, draw.uniform(1, 5))


async def stop_session(world: World, draw: Random) -> None:
    """SIGSTOP one in the middle of a transaction until its group has thought it dead: it wakes as a zombie."""
    await _stop(world, draw, draw.uniform(12, 20))


async def stop_long(world: World, draw: Random) -> None:
    """SIGSTOP one in the middle of a transaction until Postgres, too, has given up its sessions."""
    await _stop(world, draw, draw.uniform(32, 36))


async def _stop(world: World, draw: Random, seconds: float) -> None:
    replica = draw.choice(world.replicas)
    async with _striking(replica.lock, 3):
        if await _stop_in_transaction(world, replica):
            world.mid_transaction += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            replica.signal(signal.SIGCONT)


async def _stop_in_transaction(world: World, replica: Replica) -> bool:
    """Stop it; let it go and try again until one of its sessions has written and not committed (at most 3 s)."""
    deadline = time.monotonic() + 3
    try:
        async with asyncio.timeout(6):
            connection = await asyncpg.connect(world.postgres.admin_url)
            try:
                while True:
                    replica.signal(signal.SIGSTOP)
                    await asyncio.sleep(0.03)  # what was under way at the server ends
                    if await connection.fetchval(_MID_TRANSACTION, role_of(), replica.proxy.upstream_ports()):
                        return True
                    if time.monotonic() > deadline:
                        return False
                    replica.signal(signal.SIGCONT)
                    await asyncio.sleep(0.02)
            finally:
                connection.terminate()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        replica.signal(signal.SIGSTOP)
        return False


async def rebalance(world: World, draw: Random) -> None:
    """A member more for a while."""
    async with world.extra.lock:
        await world.extra.start()
        await asyncio.sleep(draw.uniform(4, 10))
        if draw.random() < 0.5:
            await world.extra.stop()
        else:
            await world.extra.kill()
            world.kills["replica"] += 1


async def kill_postgres(world: World, draw: Random) -> None:
    """SIGKILL the postmaster; it recovers from its log."""
    async with _striking(world.postgres.lock, 2):
        await world.postgres.kill()
        world.kills["postgres"] += 1
        await asyncio.sleep(draw.uniform(0, 1.5))
        await world.postgres.start()


async def quit_postgres(world: World, draw: Random) -> None:
    """Immediate shutdown."""
    async with _striking(world.postgres.lock, 2):
        await world.postgres.quit()
        await asyncio.sleep(draw.uniform(0, 1))
        await world.postgres.start()


async def kill_backend(world: World, draw: Random) -> None:
    """SIGKILL one session's process: Postgres throws out all and recovers."""
    async with _striking(world.postgres.lock, 2):
        async with asyncio.timeout(30):
            while (pid := await _some_session(world)) is None:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            world.kills["postgres session"] += 1
        await asyncio.sleep(draw.uniform(0.5, 1))


async def _some_session(world: World) -> int | None:
    try:
        connection = await asyncpg.connect(world.postgres.admin_url, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return None
    try:
        return await connection.fetchval(_BACKEND, role_of())
    finally:
        connection.terminate()


async def kill_kafka(world: World, draw: Random) -> None:
    """SIGKILL the broker."""
    async with _striking(world.kafka.lock, 6):
        await world.kafka.kill()
        world.kills["kafka"] += 1
        await asyncio.sleep(draw.uniform(0, 2))
        await world.kafka.start()


async def freeze_kafka(world: World, draw: Random) -> None:
    """SIGSTOP the broker: connections stand and nobody answers."""
    async with _striking(world.kafka.lock, 6):
        process = world.kafka.server.process
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(draw.uniform(2, 14))
        finally:
            process.send_signal(signal.SIGCONT)


async def cut_kafka(world: World, draw: Random) -> None:
    """Reset some connections to Kafka."""
    for _ in range(draw.randint(1, 5)):
        world.kafka.proxy.reset(draw.uniform(0.3, 1))
        await asyncio.sleep(draw.uniform(0.1, 1))


async def half_open_kafka(world: World, draw: Random) -> None:
    """Some connections to Kafka die towards one side only."""
    proxy = world.kafka.proxy
    proxy.half_open(draw.choice(("client", "server")), draw.uniform(0.2, 0.8))
    try:
        await asyncio.sleep(draw.uniform(3, 15))
    finally:
        proxy.let_go()


async def stall_kafka(world: World, draw: Random) -> None:
    """Nothing passes to or from Kafka for a while, then all of it."""
    with world.kafka.proxy.stalled():
        await asyncio.sleep(draw.uniform(1, 12))


async def slow_kafka(world: World, draw: Random) -> None:
    """A slow way to Kafka."""
    with world.kafka.proxy.latency(draw.uniform(0.02, 0.2)):
        await asyncio.sleep(draw.uniform(2, 6))


async def cut_postgres(world: World, draw: Random) -> None:
    """Reset some connections of one replica to Postgres, a few times."""
    proxy = draw.choice(world.replicas).proxy
    for _ in range(draw.randint(1, 5)):
        proxy.reset(draw.uniform(0.3, 1))
        await asyncio.sleep(draw.uniform(0.05, 0.6))


async def half_open_postgres(world: World, draw: Random) -> None:
    """Some connections of one replica to Postgres die towards one side only."""
    proxy = draw.choice(world.replicas).proxy
    proxy.half_open(draw.choice(("client", "server")), draw.uniform(0.2, 0.8))
    try:
        await asyncio.sleep(draw.uniform(3, 15))
    finally:
        proxy.let_go()


async def stall_postgres(world: World, draw: Random) -> None:
    """Nothing passes between one replica and Postgres for a while, then all of it: what was sent commits late."""
    with draw.choice(world.replicas).proxy.stalled():
        await asyncio.sleep(draw.uniform(1, 12))


async def slow_postgres(world: World, draw: Random) -> None:
    """A slow way from one replica to Postgres."""
    with draw.choice(world.replicas).proxy.latency(draw.uniform(0.01, 0.1)):
        await asyncio.sleep(draw.uniform(2, 6))


KILLS: Final[dict[str, tuple[Fault, int, int]]] = {
    "kill replica": (kill_replica, 1, 5),
    "kill two replicas": (kill_two, 2, 5),
    "kill all replicas": (kill_all, 3, 12),
    "kill postgres": (kill_postgres, 1, 14),
    "kill postgres session": (kill_backend, 1, 16),
    "kill kafka": (kill_kafka, 1, 5),
}
"""Name -> (fault, kills, weight). A group waits ten seconds for its dead: they mostly die together."""
OTHERS: Final[dict[str, tuple[Fault, int]]] = {
    "immediate shutdown of postgres": (quit_postgres, 3),
    "freeze kafka": (freeze_kafka, 3),
    "redeploy": (redeploy, 4),
    "rebalance": (rebalance, 5),
    "stop replica": (stop_short, 6),
    "stop replica past its session": (stop_session, 5),
    "stop replica past postgres": (stop_long, 2),
    "kafka reset": (cut_kafka, 4),
    "kafka half-open": (half_open_kafka, 4),
    "kafka stall": (stall_kafka, 3),
    "kafka latency": (slow_kafka, 2),
    "postgres reset": (cut_postgres, 4),
    "postgres half-open": (half_open_postgres, 4),
    "postgres stall": (stall_postgres, 4),
    "postgres latency": (slow_postgres, 2),
}
"""Name -> (fault, weight)."""


def plan(seed: int, kills: int, seconds: float, only: Sequence[str] = ()) -> list[Planned]:
    """Draw faults until there are so many kills, for each two kills one other fault, spread over the time.

    `only` narrows it to some kinds. The longest kinds come early enough to end within the time.
    """
    draw = Random(f"{seed}/faults")
    deadly = [name for name in KILLS if not only or name in only]
    others = [name for name in OTHERS if not only or name in only]
    kinds: list[str] = []
    planned = 0
    while deadly and planned < kills:
        kind = draw.choices(deadly, [KILLS[name][2] for name in deadly])[0]
        kinds.append(kind)
        planned += KILLS[kind][1]
    if others:
        count = max(1, kills // 2)
        kinds += draw.sample(others, min(count, len(others)))  # each once, as far as there is room
        kinds += draw.choices(others, [OTHERS[name][1] for name in others], k=max(0, count - len(others)))
    draw.shuffle(kinds)
    step = seconds / max(1, len(kinds))
    late = seconds - 40
    found = [
        Planned(
            max(0.0, min(n * step + draw.uniform(0, step), late if "past" in kind else seconds)), kind, f"{seed}/{n}"
        )
        for n, kind in enumerate(kinds)
    ]
    return sorted(found, key=lambda one: one.at_s)


async def execute(world: World, faults: Sequence[Planned]) -> None:
    """Do what was planned, when it was planned or as soon as its target is free; return when all is whole again."""
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for fault in faults:
            await asyncio.sleep(max(0.0, fault.at_s - (time.monotonic() - begun)))
            group.create_task(_do(world, fault), name=fault.kind)


async def _do(world: World, fault: Planned) -> None:
    action = KILLS[fault.kind][0] if fault.kind in KILLS else OTHERS[fault.kind][0]
    began = time.monotonic()
    _log.warning("fault", extra={"kind": fault.kind, "planned_s": round(fault.at_s, 1)})
    await action(world, Random(fault.seed))
    world.done[fault.kind] += 1
    world.monitor.healed(fault.kind, began)
    _log.warning("healed", extra={"kind": fault.kind, "took_s": round(time.monotonic() - began, 1)})
