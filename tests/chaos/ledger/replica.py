"""One process of the ledger service, built of `shared.service.Service` as every service is. It is told to die.

Environment: the OPENBELL_ settings, CHAOS_REPLICA (its name) and CHAOS_SINK (host:port of the outside).
SIGTERM stops it as a deployment would, SIGUSR1 writes the stack of every task to its log.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import traceback
from typing import Any

import uvloop

from shared import logs
from shared.lean import collect_rarely, keep_pandas_out
from shared.messaging.delivery import Delivery
from shared.messaging.kafka import wait_for_kafka
from shared.process import until_signal
from shared.service import Environment, Service
from shared.work import Worker
from tests.chaos.ledger.book import SERVICE, consumers, payouts
from tests.chaos.ledger.events import Credited, Transferred

_log = logging.getLogger(__name__)


class Ledger(Service):
    """A service without migrations: its schema is made by the driver, so no version is asked for."""

    async def start(self) -> None:
        async with self.db.read() as tx:
            await tx.connection.execute("select 1")
        await wait_for_kafka(self.kafka, timeout_s=10)
        self._broken.pop("start", None)
        for runner in (self.relay, *self._runners):
            self._tasks.append(asyncio.create_task(self._supervise(runner), name=f"{self.name} {runner.name}"))
        _log.warning("service_started", extra={"replica": self._env.replica})


def build(env: Environment, sink: tuple[str, int]) -> Ledger:
    """Wire it."""
    service = Ledger(SERVICE, env, reads=(Transferred, Credited))
    payer = Worker(payouts(sink), service.door, env.clock)
    for consumer in consumers(payer.wake):
        service.consume(consumer)
    service.work(payer)
    return service


def dump(service: Service) -> None:
    """Write where every task stands, and what the Kafka client thinks of every partition."""
    for delivery in (one for one in service._runners if isinstance(one, Delivery)):
        for name, partition in delivery._partitions.items():
            reader: Any = partition._kafka
            subscription = reader._subscription.subscription
            state = subscription.assignment.state_value(name) if subscription.assignment else None
            about: dict[str, Any] = {"partition": f"{name.topic}/{name.partition}", "following": partition.following}
            if state is not None:
                about |= {"position": state._position, "paused": state.paused, "highwater": state.highwater}
                about |= {"status": str(state._status), "buffered": name in reader._fetcher._records}
            about |= {"in_flight": list(reader._fetcher._in_flight), "fetching": not reader._fetcher._fetch_task.done()}
            _log.warning("partition", extra=about)
    for task in asyncio.all_tasks():
        frames = [f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" for frame in task.get_stack()]
        coroutine = task.get_coro()
        deeper: list[str] = []
        while coroutine is not None:
            inner = getattr(coroutine, "cr_await", None)
            frame = getattr(inner, "cr_frame", None)
            if frame is None:
                deeper.append(repr(inner)[:200])
                break
            deeper.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
            coroutine = inner
        _log.warning("task", extra={"task": task.get_name(), "stack": frames + deeper})


async def tell_health(service: Service) -> None:
    """Write readiness to the log whenever it changes; the driver's reader wants to know what stood still."""
    before = ""
    while True:
        await asyncio.sleep(1)
        checks = await service.readiness()
        now = json.dumps({name: detail for name, (ok, detail) in checks.items() if not ok})
        if now != before:
            _log.warning("health", extra={"red": json.loads(now)})
            before = now


async def main() -> None:
    """Run until a signal."""
    env = Environment(replica=os.environ["CHAOS_REPLICA"])
    logs.configure(env.settings.log_level)
    host, _, port = os.environ["CHAOS_SINK"].rpartition(":")
    service = build(env, (host, int(port)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, dump, service)
    collect_rarely()
    async with service.running():
        health = asyncio.create_task(tell_health(service))
        await until_signal()
        health.cancel()


if __name__ == "__main__":
    keep_pandas_out()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except Exception:  # noqa: BLE001 - the log is all that is left of it
        traceback.print_exc()
        sys.exit(1)
