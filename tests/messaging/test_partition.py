"""A partition knows where to read on, and says why when it does not get on."""

from datetime import datetime

from sqlalchemy import text

from tests.conftest import eventually
from tests.messaging.harness import Probe, record_effect


async def test_a_partition_that_stands_still_hides_secrets_in_what_it_tells(probe: Probe) -> None:
    def broken_clock() -> datetime:
        raise RuntimeError("refused: password=hunter2")

    await probe.send(probe.make("a", 1))
    replica = probe.start(record_effect, clock=broken_clock)
    await eventually(lambda: "does not get on" in replica.delivery.health()[1])
    assert replica.delivery.health()[1].endswith("does not get on: RuntimeError: refused: password=***")


async def test_a_small_batch_stores_its_position_in_the_transaction_of_its_effects(probe: Probe) -> None:
    probe.start(record_effect)
    partition, offset = await probe.send(probe.make("a", 1))

    async def stored() -> bool:
        async with probe.db.read() as tx:
            return await tx.fetchval(
                text(
                    """
                    select o.xmin = e.xmin and o.next_offset = :following
                    from consumer_offsets o, effects e where o.partition = :partition
                    """
                ),
                following=offset + 1,
                partition=partition,
            )

    await eventually(stored)
