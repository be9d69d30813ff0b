"""A release can be taken back: what the version before reads and writes is still there on the newer schema.

Proved for each migration: tables and columns of the schema before it are still there, nothing new has to be given,
nothing that was unique is not, and an administrator who may create roles, and no more, is enough. What a migration
makes of old rows is not looked at. An exception stands in KNOWN: to go back over it, run its downgrade too.
"""

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import asyncpg
import pytest

from shared import migrate
from shared.schema import SERVICES, migrations

COLUMNS = """
select c.relname || '.' || a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
       a.attnotnull and d.oid is null and a.attidentity = '' as needed
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = cast($1 as regnamespace) and c.relkind in ('r', 'p') and not c.relispartition
"""
RULES = """
select c.relname || ': ' || pg_get_constraintdef(k.oid) as rule, k.contype = 'u' as unique_, c.relname as table,
       array(select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum = any(k.conkey)) as columns
from pg_class c join pg_constraint k on k.conrelid = c.oid
where c.relnamespace = cast($1 as regnamespace) and not c.relispartition and k.contype in ('c', 'f', 'x')
union all
select c.relname || ': unique ' || array_to_string(array(select pg_get_indexdef(i.indexrelid, n, true)
                                                         from generate_series(1, i.indnkeyatts) n), ', ')
           || coalesce(' where ' || pg_get_expr(i.indpred, i.indrelid), ''), true, c.relname,
       array(select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum = any(i.indkey))
from pg_class c join pg_index i on i.indrelid = c.oid and i.indisunique
where c.relnamespace = cast($1 as regnamespace) and not c.relispartition
"""
KNOWN = {
    "alerts 0004": "an enabled channel has to be confirmed, which code of 0003 does not write",
    "alerts 0008": "channels are unique with their lane; `on conflict` of code of 0007 names user and channel",
    "alerts 0009": "the check of a delivery's status became wider: no break",
}


@pytest.fixture(scope="module")
async def administered(postgres: str) -> AsyncGenerator[str]:
    """The URL of a database whose owner may create roles and is no superuser, as CloudNativePG sets it up."""
    name = f"rollback_{uuid.uuid4().hex[:12]}"
    superuser = await asyncpg.connect(postgres)
    await superuser.execute(f"create role {name} login createrole")
    await superuser.execute(f"create database {name} owner {name}")
    for service in SERVICES:  # other tests share the server and its roles; a cluster has only ours
        if await superuser.fetchval("select true from pg_roles where rolname = $1", f"openbell_{service}"):
            await superuser.execute(f"grant openbell_{service} to {name} with admin option")
    where = postgres.rpartition("@")[2].rpartition("/")[0]
    yield f"postgresql://{name}@{where}/{name}"
    await superuser.execute(f"drop database {name} with (force)")
    await superuser.execute(f"drop owned by {name} cascade")
    await superuser.execute(f"drop role {name}")
    await superuser.close()


@dataclass(frozen=True)
class Schema:
    """A schema as code sees it: column -> (type, must be given); rule -> columns it is about; and what is unique."""

    columns: dict[str, tuple[str, bool]] = field(default_factory=dict)
    rules: dict[str, set[str]] = field(default_factory=dict)
    unique: set[str] = field(default_factory=set)


async def _schema(url: str, service: str) -> Schema:
    connection = await asyncpg.connect(url)
    columns = {row["name"]: (row["type"], row["needed"]) for row in await connection.fetch(COLUMNS, service)}
    rules = await connection.fetch(RULES, service)
    await connection.close()
    about = {row["rule"]: {f"{row['table']}.{column}" for column in row["columns"]} for row in rules}
    return Schema(columns, about, {row["rule"] for row in rules if row["unique_"]})


def _broken(before: Schema, after: Schema) -> set[str]:
    """Return what code of the schema before trips over on the one after."""
    old, new = before.columns, after.columns
    tables = {name.partition(".")[0] for name in old}
    return {
        *(f"{name} is gone" for name in old.keys() - new.keys()),
        *(f"{name} is now {new[name][0]}" for name in old.keys() & new.keys() if new[name][0] != old[name][0]),
        *(
            f"{name} has to be given"
            for name, (_, must) in new.items()
            if must and not old.get(name, ("", False))[1] and name.partition(".")[0] in tables
        ),
        *(f"new: {rule}" for rule, about in after.rules.items() if rule not in before.rules and about & old.keys()),
        *(f"gone: {rule}" for rule in before.unique - after.unique),  # `on conflict` names it
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_the_version_before_runs_on_the_new_schema(administered: str, service: str):
    await migrate.prepare(administered, [service])
    revisions = sorted(file.name[:4] for file in (migrations(service) / "versions").glob("[0-9]*.py"))
    before = Schema()
    found: dict[str, str] = {}
    for revision in revisions:
        await migrate.upgrade(administered, service, revision)
        after = await _schema(administered, service)
        if broken := _broken(before, after):
            found[f"{service} {revision}"] = ", ".join(sorted(broken))
        before = after
    assert found.keys() == {name for name in KNOWN if name.startswith(f"{service} ")}, found
