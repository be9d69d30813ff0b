"""A partition that does not get on says why."""

from datetime import datetime

from tests.conftest import eventually
from tests.messaging.harness import Probe, record_effect


async def test_a_partition_that_stands_still_hides_secrets_in_what_it_tells(probe: Probe) -> None:
    def broken_clock() -> datetime:
        raise RuntimeError("refused: password=hunter2")

    await probe.send(probe.make("a", 1))
    replica = probe.start(record_effect, clock=broken_clock)
    await eventually(lambda: "does not get on" in replica.delivery.health()[1])
    assert replica.delivery.health()[1].endswith("does not get on: RuntimeError: refused: password=***")
