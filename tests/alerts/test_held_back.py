"""What was held back is told in one digest, whenever it was held back and however often the digest is made."""

import pytest

from services.alerts.service.sections.held_back import MOST
from services.alerts.store.digests import DigestStore
from tests.alerts.conftest import Bench
from tests.alerts.test_digests import Desk
from tests.alerts.test_notices import receipt


@pytest.fixture
def desk(bench: Bench) -> Desk:
    return Desk(bench)


async def test_a_notice_from_before_the_period_is_told_in_one_digest_only(desk: Desk) -> None:
    bench = desk.bench
    user = await bench.user()
    await bench.channel(user)
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.execute("update notice_deliveries set status = 'digested', created_at = created_at - interval '9 days'")
    (title,) = [row["title"] for row in await bench.rows("notices")]
    await desk.choose(user)
    await desk.next(user)
    await desk.next(user)
    (lines,) = await desk.lines(user)
    assert lines[0] == "Held back for this digest:"
    assert lines[1].startswith(title)


async def test_a_digest_that_is_made_again_says_what_it_said(desk: Desk) -> None:
    bench, user = desk.bench, await desk.held_back()
    await desk.next(user)
    (digest,) = await bench.rows("digests")
    before = await desk.lines(user)
    await bench.door.publish(lambda tx: desk.digests.make(digest["id"], tx))
    async with bench.door.read() as tx:
        assert await DigestStore().sections(tx, digest["id"]) == digest["sections"]
    assert await desk.lines(user) == before
    assert len(await bench.rows("notice_deliveries")) == 1


async def test_all_that_was_held_back_is_named_and_of_very_much_how_much_more_there_is(desk: Desk) -> None:
    bench = desk.bench
    user = await bench.user()
    await bench.channel(user)
    await bench.handle(bench.telling.tell, [receipt(user, plan=f"plan {number}") for number in range(MOST + 3)])
    await bench.execute("update notice_deliveries set status = 'digested'")
    await desk.choose(user)
    await desk.next(user)
    (lines,) = await desk.lines(user)
    assert (len(lines), lines[-1]) == (1 + MOST + 1, "and 3 more")
