"""What was held back is told in one digest, whenever it was held back and however often the digest is made."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from asyncpg.exceptions import CheckViolationError
from sqlalchemy import text

from services.alerts.service.sections.held_back import MOST
from services.alerts.store.digests import DigestStore
from shared.errors import Permanent
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


async def silence(desk: Desk, user: UUID, hours: float) -> None:
    now = desk.bench.clock()
    async with desk.bench.door.transaction() as tx:
        await tx.execute(
            text("""insert into silences (silence_id, user_id, author, comment, created_at, starts_at, ends_at)
                values (:id, :user_id, 'ada', '', :now, :now, :ends_at)"""),
            id=uuid4(),
            user_id=user,
            now=now,
            ends_at=now + timedelta(hours=hours),
        )


async def told(desk: Desk) -> list[bool]:
    """Whether each digest on its way to the channel names what was held back."""
    await desk.bench.deliver()
    return ["Held back" in str(message) for message in desk.bench.discord.sent]


async def test_what_a_silenced_digest_held_is_told_by_the_next_one(desk: Desk) -> None:
    user = await desk.held_back()
    await silence(desk, user, hours=24)
    await desk.next(user)
    assert await told(desk) == []
    assert [any("AAPL" in line for line in lines) for lines in await desk.lines(user)] == [True], "the app shows it"
    await desk.next(user)
    assert await told(desk) == [True]
    await desk.next(user)
    assert await told(desk) == [True]


async def test_a_silence_between_a_digest_and_its_delivery_lets_the_next_one_tell(desk: Desk) -> None:
    user = await desk.held_back()
    await desk.next(user)
    await silence(desk, user, hours=1)
    assert await told(desk) == []
    await desk.next(user)
    assert await told(desk) == [True]


async def test_what_no_channel_took_with_a_digest_is_told_by_the_next_one(desk: Desk) -> None:
    user = await desk.held_back()
    await desk.next(user)
    desk.bench.discord.errors = [Permanent("refused")]
    await told(desk)
    desk.bench.discord.sent.clear()
    await desk.next(user)
    assert await told(desk) == [True]
    await desk.next(user)
    assert await told(desk) == [True]


async def test_what_could_not_be_given_back_with_a_digests_end_is_with_its_next_end(desk: Desk) -> None:
    bench, user = desk.bench, await desk.held_back()
    await desk.next(user)
    await bench.execute("alter table deliveries add constraint stays check (digest_id is not null) not valid")
    bench.discord.errors = [Permanent("refused")] * 2
    with pytest.raises(CheckViolationError):
        await bench.deliver()
    assert [row["status"] for row in await bench.rows("notice_deliveries")] == ["started"]
    await bench.execute("alter table deliveries drop constraint stays")
    for _ in range(3):
        bench.clock.advance(31)
        await bench.deliver()
    assert [row["status"] for row in await bench.rows("notice_deliveries")] == ["failed"]
    bench.discord.sent.clear()
    await desk.next(user)
    assert await told(desk) == [True]
    await desk.next(user)
    assert await told(desk) == [True]


async def test_what_one_of_two_channels_took_is_told(desk: Desk) -> None:
    user = await desk.held_back()
    await desk.bench.channel(user, "email", None)
    await desk.next(user)
    desk.bench.discord.errors = [Permanent("refused")]
    await told(desk)
    desk.bench.discord.sent.clear()
    await desk.next(user)
    assert await told(desk) == []


async def test_a_reader_without_channels_is_told_by_the_app(desk: Desk) -> None:
    user = await desk.held_back()
    await desk.bench.execute("delete from channels")
    await desk.next(user)
    await desk.next(user)
    assert len(await desk.lines(user)) == 1
