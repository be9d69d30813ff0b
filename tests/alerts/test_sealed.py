"""Where channels go is sealed at rest, opens for its own row alone, and is wrapped anew under another key."""

import base64
import itertools
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from services.alerts.domain.channels import lane_of
from services.alerts.domain.targets import webhook_of
from services.alerts.main import build
from services.alerts.service import Actor, Options
from services.alerts.service.targets import Targets, TargetUnreadable
from services.alerts.settings import DEVELOPMENT_KEYS
from services.alerts.store.targets import Place
from services.alerts.workers import Delivery, NoticeDelivery
from shared import migrate
from shared.contracts.alerts import Channel
from shared.db import Database, Row
from shared.identity import UnsafeSecret
from shared.service import Environment
from shared.settings import SharedSettings
from shared.work import Worker
from tests.alerts.conftest import ACTOR, NOW, WEBHOOK, Bench, activity
from tests.alerts.venues import VENUES, Venue
from tests.conftest import ManualClock

HOOK = "https://hooks.example.com/h00k-s3cret"
NEW = f"new:{base64.b64encode(b'2' * 32).decode()}"
SECRET_KINDS: tuple[Channel, ...] = ("discord", "webhook", "webpush", "fcm", "apprise")
EVERY_COLUMN = """
    select c.table_name as "table", c.column_name as "column" from information_schema.columns c
    join information_schema.tables t using (table_schema, table_name)
    where c.table_schema = 'alerts' and t.table_type = 'BASE TABLE'
      and c.data_type in ('text', 'character varying', 'json', 'jsonb', 'bytea', 'ARRAY')"""


async def everything(database: Database) -> str:
    """Return all that the schema holds in columns that could hold a secret."""
    async with database.read() as tx:
        columns = await tx.fetch(text(EVERY_COLUMN))
        assert len(columns) > 100, "it looks at the schema"
        held = []
        for one in columns:
            rows = await tx.fetch(text(f'select "{one["column"]}" as held from alerts."{one["table"]}"'))
            held += [repr(row["held"]) for row in rows]
    return "\n".join(held)


def unreadable_so_far() -> float:
    return REGISTRY.get_sample_value("openbell_alerts_targets_unreadable_total") or 0.0


@pytest.fixture
def venues() -> Iterator[dict[Channel, Venue]]:
    """A destination of each kind whose target is a secret, that can be made to fail."""
    with ExitStack() as servers:
        made: dict[Channel, Venue] = {}
        for kind in SECRET_KINDS:
            server, over = VENUES[kind]
            made[kind] = over(servers.enter_context(server()))
        yield made


class Everywhere:
    """A user with a channel of every kind, and the workers that deliver to them by the real adapters."""

    def __init__(self, bench: Bench, venues: dict[Channel, Venue], targets: Targets) -> None:
        self.bench, self.venues = bench, venues
        common: dict[str, Any] = {
            "router": bench.router,
            "targets": targets,
            "clicks": bench.clicks,
            "clock": bench.clock,
        }
        works = [
            work
            for kind, venue in venues.items()
            for work in (
                Delivery(kind, venue.sender, bench.store, bench.notices, bench.door, **common).work(2),
                NoticeDelivery(kind, venue.sender, bench.notices, bench.store, bench.door, **common).work(),
            )
        ]
        self.workers = [Worker(work, bench.door, bench.clock, draw=lambda: 0.5) for work in works]

    async def deliver(self) -> None:
        for worker in self.workers:
            await worker.turn()
            await worker.idle()

    async def close(self) -> None:
        for venue in self.venues.values():
            await venue.sender.close()


@pytest.fixture
async def everywhere(bench: Bench, venues: dict[Channel, Venue]) -> AsyncIterator[Everywhere]:
    bench.offer(
        Options(
            offered=("email", *SECRET_KINDS),
            discord_base=venues["discord"].target.partition("/api")[0],
            outward_base=None,
        )
    )
    made = Everywhere(bench, venues, bench.targets)
    yield made
    await made.close()


async def set_all(bench: Bench, venues: dict[Channel, Venue]) -> tuple[UUID, list[str]]:
    """Set a channel of every kind; return the user and all that nobody may read."""
    user, secrets = await bench.user("AAPL", "MSFT"), list[str]()
    for kind, venue in venues.items():
        target = venue.target
        if kind in {"webhook", "webpush"}:  # these bases differ: each is the one that is allowed
            url = webhook_of(target).url if kind == "webhook" else json.loads(target)["endpoint"]
            offered: tuple[Channel, ...] = ("email", *SECRET_KINDS)
            origin = "/".join(url.split("/")[:3])
            discord = venues["discord"].target.partition("/api")[0]
            bench.offer(Options(offered=offered, discord_base=discord, outward_base=origin))
            target = url if kind == "webhook" else target
        row = await bench.channel(user, kind, target)
        secrets.append(venue.secret)
        if kind == "webhook":  # its receiver checks signatures by a secret of its own
            place = Place.of(row)
            async with bench.database.transaction() as tx:
                await bench.audience.new_target(tx, place, bench.targets.seal(place, venue.target), bench.clock())
            secrets += [secret.removeprefix("whsec_") for secret in webhook_of(venue.target).secrets]
        if kind == "webpush":
            secrets += json.loads(target)["keys"].values()
    await bench.channel(user, "email", "reader@example.org")
    return user, secrets


async def test_no_column_holds_a_target_after_messages_went_and_failed_everywhere(
    everywhere: Everywhere, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bench, venues = everywhere.bench, everywhere.venues
    user, secrets = await set_all(bench, venues)
    await bench.tell(activity(symbol="AAPL"))
    await everywhere.deliver()
    for kind, venue in venues.items():
        assert len(venue.received()) == 1, kind
        venue.disappear()
    await bench.tell(activity(symbol="MSFT"))
    await everywhere.deliver()
    rows = await bench.rows("deliveries")
    failed = [row for row in rows if row["channel"] != "email" and row["last_error"]]
    assert {row["channel"] for row in failed} == set(SECRET_KINDS), "each says why"
    held = await everything(bench.database)
    assert "reader@example.org" in held, "an address is no secret"
    fakes = ("mail.log", "uvicorn")  # the servers of this test log in this process
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith(fakes))
    assert len(secrets) == 8
    assert [secret for secret in secrets if secret in held or secret in logged] == []
    channels = {row["channel"]: row for row in await bench.rows("channels") if row["user_id"] == user}
    assert {kind: row["target"] for kind, row in channels.items()} == {
        **dict.fromkeys(SECRET_KINDS, ""),
        "email": "reader@example.org",
    }


async def test_a_row_that_was_copied_or_changed_does_not_open(bench: Bench) -> None:
    ours, theirs = await bench.user(), await bench.user()
    row = await bench.channel(ours, "webhook", HOOK)
    await bench.execute(f"""
        insert into channels (user_id, channel, target, lane, enabled, confirmed_at, created_at, updated_at, key_id,
            wrapped, body, shown)
        select '{theirs}', channel, target, lane, enabled, confirmed_at, created_at, updated_at, key_id, wrapped, body,
            shown from channels where user_id = '{ours}'""")
    copied = next(one for one in await bench.rows("channels") if one["user_id"] == theirs)
    with pytest.raises(TargetUnreadable):
        bench.targets.open(copied)
    await bench.execute("update channels set lane = 'webhook/another'")
    for one in await bench.rows("channels"):
        with pytest.raises(TargetUnreadable):
            bench.targets.open(one)
    assert webhook_of(bench.targets.open(row)).url == HOOK


async def test_the_same_target_is_one_and_its_lane_is_no_digest_that_anybody_can_make(bench: Bench) -> None:
    users = [await bench.user() for _ in range(2)]
    rows = [await bench.channel(user) for user in users]
    assert rows[0]["lane"] == rows[1]["lane"], "two users of one webhook wait for each other"
    assert rows[0]["lane"] != lane_of("discord", WEBHOOK)
    again = await bench.channel(users[0])
    assert (again["lane"], len(await bench.rows("channels"))) == (rows[0]["lane"], 2)
    mail = await bench.channel(users[0], "email", "Reader@example.org")
    assert mail["lane"] == lane_of("email", "reader@example.org"), "links in mails name it"


# A key that is not there


async def with_keys(bench: Bench, keys: str) -> None:
    """Deliver with other keys, as a replica does whose settings changed."""
    common: dict[str, Any] = {"router": bench.router, "targets": bench.keyed(keys), "clicks": bench.clicks}
    works = (
        Delivery("discord", bench.discord, bench.store, bench.notices, bench.door, clock=bench.clock, **common).work(8),
        NoticeDelivery(
            "discord", bench.discord, bench.notices, bench.store, bench.door, clock=bench.clock, **common
        ).work(),
    )
    for work in works:
        worker = Worker(work, bench.door, bench.clock, draw=lambda: 0.5)
        await worker.turn()
        await worker.idle()


async def test_without_its_key_a_message_waits_with_a_reason_and_goes_when_the_key_is_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.channel(await bench.user("AAPL"))
    await bench.tell(activity())
    before, waiting = unreadable_so_far(), None
    for _ in range(40):
        await with_keys(bench, NEW)
        (waiting,) = await bench.rows("deliveries")
        assert (waiting["status"], waiting["attempts"], waiting["uncertain"]) == ("pending", 0, False)
        bench.clock.advance(150)  # it is asked more often than the lane is looked at
    assert waiting is not None
    assert waiting["last_error"] == "This target does not open here; an operator has to look at the keys."
    assert 15 <= unreadable_so_far() - before <= 21, "looked at every five minutes, no storm"
    assert bench.discord.sent == []
    assert WEBHOOK.rpartition("/")[2] not in caplog.text
    told = [vars(record)["why"] for record in caplog.records if record.getMessage() == "alerts.target_unreadable"]
    assert told[0] == "the key 'development-only' is not in the settings"
    bench.clock.advance(300)
    await with_keys(bench, f"{NEW},{DEVELOPMENT_KEYS}")
    (sent,) = bench.discord.sent
    assert sent.target == WEBHOOK
    assert [row["status"] for row in await bench.rows("deliveries")] == ["done"]


async def test_without_its_key_a_list_still_shows_and_a_new_target_is_refused_for_now(bench: Bench) -> None:
    user = await bench.user()
    await bench.channel(user, "webhook", HOOK)
    bench.targets = bench.keyed(NEW)
    bench.offer(Options(offered=("webhook", "email")))
    with pytest.raises(TargetUnreadable):
        await bench.channel(user, "webhook", "https://hooks.example.com/another")
    assert (await bench.channel(user, "email", "reader@example.org"))["target"] == "reader@example.org"
    assert len(await bench.rows("channels")) == 2


# Another key


async def many(bench: Bench, count: int) -> list[UUID]:
    users = [await bench.user() for _ in range(count)]
    for user in users:
        await bench.channel(user, "webhook", HOOK)
    return users


async def test_a_rotation_wraps_all_anew_in_slices_and_is_audited(bench: Bench) -> None:
    await many(bench, 5)
    bodies = {row["user_id"]: row["body"] for row in await bench.rows("channels")}
    both = bench.keyed(f"{NEW},{DEVELOPMENT_KEYS}", slice_rows=2)
    done = await both.rotate(Actor("admin"), None)
    assert (done.rewrapped, done.unreadable, done.next, done.readable) == (5, [], None, 0)
    assert done.keys == {"new": 6}, "five targets and the key of lanes"
    alone = bench.keyed(NEW)
    for row in await bench.rows("channels"):
        assert webhook_of(alone.open(row)).url == HOOK
        assert row["body"] == bodies[row["user_id"]], "only data keys are wrapped anew"
    assert any(b"rotate.targets" in row["value"] for row in await bench.rows("outbox"))
    again = await both.rotate(Actor("admin"), None)
    assert (again.rewrapped, again.next) == (0, None)
    bench.targets = alone
    bench.offer(Options(offered=("webhook",)))
    lanes = {row["lane"] for row in await bench.rows("channels")}
    await many(bench, 1)
    assert {row["lane"] for row in await bench.rows("channels")} == lanes, "lanes outlive keys"


async def test_a_rotation_goes_on_where_it_ended_and_names_what_does_not_open(bench: Bench) -> None:
    users = sorted(await many(bench, 3))
    await bench.execute(f"update channels set wrapped = '\\x00' where user_id = '{users[1]}'")
    both = bench.keyed(f"{NEW},{DEVELOPMENT_KEYS}")
    first = next(row for row in await bench.rows("channels") if row["user_id"] == users[0])
    done = await both.rotate(Actor("admin"), Place.of(first))
    lane = first["lane"]
    assert (done.rewrapped, done.unreadable) == (1, [f"{users[1]}/{lane}"])
    assert done.keys == {"development-only": 3, "new": 1}, "what is before was not looked at, nor the key of lanes"
    done = await both.rotate(Actor("admin"), None)
    assert (done.rewrapped, done.unreadable, done.keys) == (
        1,
        [f"{users[1]}/{lane}"],
        {"development-only": 1, "new": 3},
    )


def test_production_refuses_developments_keys(database_url: str) -> None:
    settings = SharedSettings.model_validate(
        {"database_url": database_url, "environment": "production", "identity_secret": "x7" * 20}
    )
    with pytest.raises(UnsafeSecret, match="OPENBELL_ALERTS_TARGET_KEYS"):
        build(Environment(settings, ManualClock(NOW)))


# From before


async def from_before(database_url: str, count: int) -> None:
    """Set channels as code of the version before does, on its schema; then bring the schema to this one."""
    await migrate.downgrade(database_url, "alerts", "0024")
    await old_code_sets(database_url, [uuid4() for _ in range(count)])
    await migrate.upgrade(database_url, "alerts", "head")


async def old_code_sets(database_url: str, users: list[UUID], target: str = WEBHOOK) -> None:
    connection = await asyncpg.connect(database_url)
    statement = """
        insert into alerts.channels (user_id, channel, target, lane, enabled, reason, confirmed_at, created_at,
            updated_at)
        values ($1, 'discord', $2, $3, true, null, $4, $4, $4)
        on conflict (user_id, channel, lane) do update set target = excluded.target, enabled = excluded.enabled,
            reason = excluded.reason, confirmed_at = excluded.confirmed_at, updated_at = excluded.updated_at"""
    for user in users:
        await connection.execute(statement, user, target, lane_of("discord", WEBHOOK), NOW)
    await connection.close()


@pytest.fixture
async def upgraded(database_url: str, open_database: Callable[[str], Database]) -> Bench:
    await from_before(database_url, 5)
    return Bench(open_database("alerts"), ManualClock(datetime.now(UTC)))


def targets_of(rows: list[Row]) -> list[str]:
    return [row["target"] for row in rows]


async def test_for_a_day_after_the_migration_old_code_reads_all_that_is_set_and_then_all_is_sealed(
    upgraded: Bench, database_url: str
) -> None:
    bench = upgraded
    await bench.targets.seal_readable(bench.clock())
    row = await bench.channel(await bench.user())
    assert row["lane"] == lane_of("discord", WEBHOOK)
    assert targets_of(await bench.rows("channels")) == [WEBHOOK] * 6, "the old replicas go on"
    assert (await bench.targets.rotate(ACTOR, None)).readable == 6
    bench.clock.advance(timedelta(days=1, minutes=1).total_seconds())
    assert (await bench.channel(await bench.user()))["target"] == ""
    await bench.targets.seal_readable(bench.clock())
    rows = await bench.rows("channels")
    assert targets_of(rows) == [""] * 7
    assert {bench.targets.open(one) for one in rows} == {WEBHOOK}
    sealed = next(one for one in rows if one["lane"] == lane_of("discord", WEBHOOK))
    again = await bench.channel(sealed["user_id"])
    assert (again["lane"], again["target"]) == (sealed["lane"], ""), "set again it stays where its messages wait"
    # A replica that ends late, over a row that is sealed; a webhook's text changes with its secret.
    await old_code_sets(database_url, [sealed["user_id"]], f"{WEBHOOK}-newer")
    late = next(one for one in await bench.rows("channels") if one["target"])
    assert (late["body"] is not None, bench.targets.open(late)) == (True, f"{WEBHOOK}-newer")
    await bench.targets.seal_readable(bench.clock())
    assert targets_of(await bench.rows("channels")) == [""] * 7
    assert WEBHOOK not in await everything(bench.database)


async def test_sealing_that_is_broken_off_goes_on_and_a_message_arrives_whichever_half_it_goes_to(
    upgraded: Bench,
) -> None:
    bench = upgraded
    bench.clock.advance(timedelta(days=2).total_seconds())
    calls = itertools.count(1)

    def dies_in_the_second_slice(length: int) -> bytes:
        if next(calls) > 3 * 3:  # a data key and two nonces for each
            raise KeyboardInterrupt
        return os.urandom(length)

    slices = bench.keyed(DEVELOPMENT_KEYS, slice_rows=2, random_bytes=dies_in_the_second_slice)
    with pytest.raises(KeyboardInterrupt):
        await slices.seal_readable(bench.clock())
    rows = await bench.rows("channels")
    assert sorted(targets_of(rows)) == ["", "", WEBHOOK, WEBHOOK, WEBHOOK], "a slice, and nothing of the next"
    for row in rows:
        async with bench.database.transaction() as tx:
            await bench.audience.watch(tx, row["user_id"], "AAPL")
    await bench.tell(activity(as_of=bench.clock()))
    for _ in rows:  # they share a lane
        await bench.deliver()
    assert [sent.target for sent in bench.discord.sent] == [WEBHOOK] * 5
    await bench.targets.seal_readable(bench.clock())
    assert targets_of(await bench.rows("channels")) == [""] * 5


async def test_a_fresh_installation_seals_from_the_first(bench: Bench) -> None:
    (row,) = await bench.rows("sealing")
    assert (row["starts_at"], row["body"]) == (None, None)
    assert (await bench.channel(await bench.user()))["target"] == ""
