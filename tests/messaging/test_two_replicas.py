"""Two replicas retry the same rows: a transaction is alone with its lane, between two of them anything happens."""

from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Permanent, Transient
from shared.messaging.consumer import Policy
from tests.conftest import eventually
from tests.messaging.harness import Deposited, Probe


async def test_an_error_is_never_laid_on_the_next_event_of_the_key(probe: Probe) -> None:
    """The first event failed here; before that was recorded another replica had done it and freed the second."""

    async def refuse(event: Deposited, tx: Tx) -> list[Event]:
        raise Transient("not now")

    replica = probe.start(refuse, policy=Policy(delays_s=(600.0, 600.0)))
    for n in (1, 2):
        await probe.send(probe.make("a", n))

    async def both_wait() -> bool:
        return [job["status"] for job in await probe.jobs()] == ["waiting"] * 2

    await eventually(both_wait)
    async with probe.db.transaction() as tx:
        first, second = await tx.fetch(text("select * from failed_jobs order by record_offset"))
        await tx.execute(
            text("update failed_jobs set status = 'resolved', due_at = null where id = :id"), id=first["id"]
        )
        await tx.execute(text("update failed_jobs set due_at = now() where id = :id"), id=second["id"])
    await replica.retries._fail_alone(first, Permanent("the first is refused"), probe=False)
    done, freed = await probe.jobs()
    assert done["status"] == "resolved"
    assert (freed["status"], freed["error_code"]) != ("dead", "REFUSED")
    assert freed["status"] == "waiting"
