"""A test of a channel goes the way of every delivery, to one target."""

from uuid import UUID, uuid4

import pytest

from services.alerts.domain.channels import target_id
from services.alerts.ports import ChannelGone
from services.alerts.service.trials import AN_HOUR, Trials
from shared.clock import new_id
from shared.db import Row
from shared.errors import Conflict, NotFound, RateLimited
from tests.alerts.conftest import ACTOR, Bench

URL = "https://hooks.example.com/x"


async def send(bench: Bench, user_id: UUID, row: Row) -> UUID:
    trials = Trials(bench.audience, bench.notices, bench.router, clock=bench.clock, new_id=new_id)
    target = target_id(row["lane"])
    return await bench.door.run(lambda tx: trials.send(ACTOR, user_id, row["channel"], target, tx))


async def test_a_test_goes_to_one_target_by_the_worker_and_its_id_tells_how_it_ended(bench: Bench) -> None:
    user_id = await bench.user()
    rows = [await bench.channel(user_id, "webhook", f"{URL}{n}") for n in range(2)]
    delivery_id = await send(bench, user_id, rows[1])
    assert bench.webhook.sent == []
    await bench.deliver()
    (sent,) = bench.webhook.sent
    assert (sent.delivery_id, sent.target, sent.kind) == (delivery_id, bench.targets.open(rows[1]), "test")
    (delivery,) = await bench.rows("notice_deliveries")
    assert (delivery["id"], delivery["status"], delivery["last_error"]) == (delivery_id, "done", None)


async def test_a_test_of_what_is_gone_shows_its_reason_and_disables_the_target(bench: Bench) -> None:
    user_id = await bench.user()
    row = await bench.channel(user_id)
    bench.discord.errors = [ChannelGone("the webhook does not exist any more")]
    await send(bench, user_id, row)
    await bench.deliver()
    (delivery,) = await bench.rows("notice_deliveries")
    assert (delivery["status"], delivery["last_error"]) == ("failed", "the webhook does not exist any more")
    with pytest.raises(Conflict, match="does not exist"):
        await send(bench, user_id, row)


async def test_tests_are_few_and_go_to_ones_own_targets_only(bench: Bench) -> None:
    user_id = await bench.user()
    row = await bench.channel(user_id)
    with pytest.raises(NotFound):
        await send(bench, uuid4(), row)
    for _ in range(AN_HOUR):
        await send(bench, user_id, row)
        bench.clock.advance(60)
    with pytest.raises(RateLimited) as caught:
        await send(bench, user_id, row)
    assert caught.value.retry_after_s == 3600 - AN_HOUR * 60
    bench.clock.advance(caught.value.retry_after_s)
    await send(bench, user_id, row)
