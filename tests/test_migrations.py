"""Migrations go up, down and up again to the same schema; roles stay in theirs; old schemas stop the start."""

import importlib
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from shared import migrate, schema
from shared.db import Database
from shared.messaging import inbox
from shared.schema import SERVICES
from shared.service import Environment, SchemaTooOld
from shared.settings import SharedSettings

# What a schema is, a row a fact. Names of day and month partitions come from the clock, which a test may outlive:
# they are left out, all other facts about tables, columns, constraints, indexes and comments are in.
DUMP = """
with tables as (
    select c.* from pg_class c
    where c.relnamespace = cast($1 as regnamespace) and not c.relispartition
)
select format('table %s: kind %s, %s, owner %s, %s', relname, relkind, relpersistence, relowner::regrole,
              array_to_string(reloptions, ' ')) as fact
from tables where relkind in ('r', 'p', 'v', 'm', 'S')
union all
select format('column %s.%s %s: %s, null %s, default %s, identity "%s", generated "%s", storage %s', t.relname,
              row_number() over (partition by t.oid order by a.attnum), a.attname,
              format_type(a.atttypid, a.atttypmod), not a.attnotnull,
              pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attstorage)
from tables t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
where t.relkind in ('r', 'p', 'v', 'm')
union all
select format('constraint %s.%s: %s', t.relname, c.conname, pg_get_constraintdef(c.oid))
from tables t join pg_constraint c on c.conrelid = t.oid
union all
select format('index %s', pg_get_indexdef(i.indexrelid)) from tables t join pg_index i on i.indrelid = t.oid
union all
select format('partitions of %s: %s', t.relname, pg_get_partkeydef(t.oid)) from tables t where t.relkind = 'p'
union all
select format('comment on %s.%s: %s', t.relname, a.attname, d.description)
from tables t join pg_description d on d.objoid = t.oid and d.classoid = 'pg_class'::regclass
left join pg_attribute a on a.attrelid = t.oid and a.attnum = d.objsubid and d.objsubid > 0
union all
select format('function %s', pg_get_functiondef(p.oid)) from pg_proc p where p.pronamespace = cast($1 as regnamespace)
union all
select format('trigger %s', pg_get_triggerdef(g.oid)) from tables t join pg_trigger g on g.tgrelid = t.oid
where not g.tgisinternal
union all
select format('type %s', typname) from pg_type
where typnamespace = cast($1 as regnamespace) and typtype in ('e', 'd')
order by 1
"""


@pytest.fixture
async def empty_database(postgres: str) -> AsyncGenerator[str]:
    """An administrator's URL of a database without any schema of ours."""
    name = f"migrations_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"create database {name}")
    yield f"{postgres.rpartition('/')[0]}/{name}"
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def _dump(url: str, service: str) -> list[str]:
    connection = await asyncpg.connect(url)
    facts = [row["fact"] for row in await connection.fetch(DUMP, service)]
    await connection.close()
    return facts


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


def _revisions(service: str) -> list[str]:
    """Return the service's revisions, oldest first."""
    script = ScriptDirectory.from_config(migrate._config(service))
    return [one.revision for one in script.walk_revisions()][::-1]


def _role_url(url: str, service: str) -> str:
    return SharedSettings(database_url=url).service_database_url(service)


@pytest.mark.parametrize("service", SERVICES)
def test_revisions_are_numbers_in_order_and_their_files_begin_with_them(service: str):
    """A service compares the newest file's number with its schema's, as text (shared.schema)."""
    revisions = _revisions(service)
    files = sorted(path.name for path in schema.migrations(service).glob("versions/*.py"))
    assert revisions == sorted(revisions) == [name.partition("_")[0] for name in files]
    assert {len(revision) for revision in revisions} == {4}
    assert schema.head(service) == revisions[-1]


@pytest.mark.parametrize("service", SERVICES)
async def test_every_step_down_undoes_its_step_up_and_the_way_up_is_the_same_again(empty_database: str, service: str):
    await migrate.prepare(empty_database, [service])
    await migrate.upgrade(empty_database, service, "head")
    newest = await _dump(empty_database, service)
    assert any("failed_jobs" in fact for fact in newest)
    await migrate.downgrade(empty_database, service, "base")
    before = await _dump(empty_database, service)
    assert {fact for fact in before if "alembic_version" not in fact} == set()

    for revision in _revisions(service):
        await migrate.upgrade(empty_database, service, revision)
        after = await _dump(empty_database, service)
        await migrate.downgrade(empty_database, service, "-1")
        assert await _dump(empty_database, service) == before, f"{service} {revision} leaves something behind"
        await migrate.upgrade(empty_database, service, revision)
        assert await _dump(empty_database, service) == after, f"{service} {revision} is another schema the second time"
        before = after
    assert before == newest


@pytest.mark.parametrize("service", SERVICES)
async def test_a_schema_in_use_can_be_taken_down(empty_database: str, service: str):
    await migrate.upgrade_all(empty_database, [service])
    database = Database(_role_url(empty_database, service), schema=service, size=1)
    async with database.transaction() as tx:
        await inbox.roll(tx, datetime.now(UTC))
    await database.close()

    await migrate.downgrade(empty_database, service, "base")

    connection = await asyncpg.connect(empty_database)
    left = await connection.fetch("select tablename from pg_tables where schemaname = $1", service)
    await connection.close()
    assert [row["tablename"] for row in left] == ["alembic_version"]


async def test_migrating_what_is_new_already_changes_nothing(empty_database: str):
    await migrate.upgrade_all(empty_database)
    before = {service: await _dump(empty_database, service) for service in SERVICES}
    await migrate.upgrade_all(empty_database)
    assert {service: await _dump(empty_database, service) for service in SERVICES} == before


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_does_not_start_on_an_older_schema(empty_database: str, service: str):
    await migrate.upgrade_all(empty_database, [service])

    await _execute(empty_database, f"update {service}.alembic_version set version_num = '0000'")
    with pytest.raises(SchemaTooOld, match=r"is at 0000, this code needs .*; run `make migrate`"):
        await _start(empty_database, service)

    await _execute(empty_database, f"delete from {service}.alembic_version")
    with pytest.raises(SchemaTooOld, match="is at None"):
        await _start(empty_database, service)


async def _start(url: str, service: str) -> None:
    """Start the service on that database; there is no Kafka, so nothing but the schema can stop it first."""
    settings = SharedSettings(database_url=url, kafka_bootstrap="127.0.0.1:1")
    built = importlib.import_module(f"services.{service}.main").build(Environment(settings))
    try:
        await built.start()
    finally:
        await built.stop()


async def test_a_migration_may_take_longer_than_its_role_s_transactions(empty_database: str):
    await migrate.prepare(empty_database, ["data"])
    name = empty_database.rpartition("/")[2]
    for limit in ("transaction_timeout", "statement_timeout"):
        await _execute(empty_database, f"alter role openbell_data in database {name} set {limit} = '1s'")
    await _execute(empty_database, _SLOW)
    await migrate.upgrade(_role_url(empty_database, "data"), "data")
    assert any("failed_jobs" in fact for fact in await _dump(empty_database, "data"))


_SLOW = """
    create function slow() returns event_trigger language plpgsql as 'begin perform pg_sleep(1.2); end';
    create event trigger slow on ddl_command_start when tag in ('ALTER TABLE') execute function slow();
"""


async def test_a_role_has_no_rights_outside_its_schema(database_url: str):
    for service in SERVICES:
        connection = await asyncpg.connect(_role_url(database_url, service))
        assert await connection.fetchval(f"select count(*) from {service}.failed_jobs") == 0
        for other in (one for one in SERVICES if one != service):
            for statement in (
                f"select * from {other}.failed_jobs",
                f"delete from {other}.outbox",
                f"create table {other}.mine (id int)",
                f"set role openbell_{other}",
            ):
                await _refused(connection, statement)
        for statement in ("create table public.mine (id int)", "create schema mine", "create role mine"):
            await _refused(connection, statement)
        await connection.close()


async def _refused(connection: "asyncpg.Connection[Any]", statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)


async def test_roles_have_time_outs_so_that_a_stopped_process_cannot_block_its_successor(database_url: str):
    for service in SERVICES:
        connection = await asyncpg.connect(_role_url(database_url, service))
        found = {name: await connection.fetchval(f"show {name}") for name in migrate._ROLE_SETTINGS}
        await connection.close()
        assert found == {
            "idle_in_transaction_session_timeout": "30s",
            "transaction_timeout": "1min",
            "lock_timeout": "10s",
        }
