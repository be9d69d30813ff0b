"""What the payment service does without being asked, and when: its table of jobs."""

from tests.payment.inprocess import InProcess

OURS = {
    "stripe-sweep": "*/15 * * * *",
    "renewals": "0 0 * * *",
    "reminders": "5,20,35,50 * * * *",
    "invariants": "*/15 * * * *",
    "lapses": "* * * * *",
    "assert-customers": "40 3 * * *",
    "retention": "40 4 * * *",
    "calls-retention": "50 4 * * *",
}


async def test_the_service_does_these_by_the_clock_in_utc(running: InProcess) -> None:
    jobs = {job.name: job.cron for job in running.service._jobs}
    assert {name: jobs.get(name) for name in OURS} == OURS


async def test_each_of_them_runs_in_a_service_that_nothing_has_happened_to(running: InProcess) -> None:
    for job in running.service._jobs:
        await job.run(running.clock())
    await running.settle()
    assert await running.rows("select * from failed_jobs") == []
    assert await running.rows("select * from subscriptions") == []
    assert running.told == []
