"""Schemas, roles and migrations: each service has one schema, one role, one Alembic version table in it.

    python -m shared.migrate up            all services, to their heads (as a role that may create roles)
    python -m shared.migrate down alerts   one service, one step back

A service refuses to start when its schema is older than its code needs.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from shared.schema import SERVICES, migrations
from shared.settings import SharedSettings

# A stopped process must not block its successor.
_ROLE_SETTINGS: Final = {
    "idle_in_transaction_session_timeout": "30s",
    "transaction_timeout": "60s",
    "lock_timeout": "10s",
}

# A migration takes as long as it takes, also as a role with the settings above; for locks it does not wait long.
_LIMITS: Final = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")


async def prepare(admin_url: str, services: Sequence[str] = SERVICES, password: str | None = None) -> None:
    """Create each service's role and schema where they are missing, and set the role's time-outs."""
    engine = create_async_engine(_sqlalchemy_url(admin_url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for service in services:
            role = f"openbell_{service}"
            known = await connection.scalar(text("select 1 from pg_roles where rolname = :role"), {"role": role})
            if not known:
                await connection.execute(text(f"create role {role} login"))
            if password:
                quoted = password.replace("'", "''").replace(":", r"\:")
                await connection.execute(text(f"alter role {role} password '{quoted}'"))
            for name, value in _ROLE_SETTINGS.items():
                await connection.execute(text(f"alter role {role} set {name} = '{value}'"))
            await connection.execute(text(f"grant {role} to current_user"))
            await connection.execute(text(f"create schema if not exists {service} authorization {role}"))
    await engine.dispose()


async def upgrade(url: str, service: str, revision: str = "head") -> None:
    """Bring one service's schema up to `revision`. `url` is the service role's or an administrator's."""
    await _run(url, service, lambda config: command.upgrade(config, revision))


async def downgrade(url: str, service: str, revision: str = "-1") -> None:
    """Take one service's schema back."""
    await _run(url, service, lambda config: command.downgrade(config, revision))


async def upgrade_all(admin_url: str, services: Sequence[str] = SERVICES, password: str | None = None) -> None:
    """Prepare and upgrade every service."""
    await prepare(admin_url, services, password)
    for service in services:
        await upgrade(admin_url, service)


def run_env(connection: Connection, context: Any, service: str) -> None:
    """Run migrations on a connection, in the service's schema and as its role; each env.py calls this."""
    for limit in _LIMITS:
        connection.execute(text(f"set {limit} = 0"))
    connection.execute(text(f"set role openbell_{service}"))
    connection.execute(text(f"set search_path to {service}"))
    connection.execute(text("set lock_timeout = '10s'"))
    connection.commit()
    context.configure(connection=connection, version_table_schema=service, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


async def _run(url: str, service: str, action: Callable[[Config], None]) -> None:
    engine = create_async_engine(_sqlalchemy_url(url))
    config = _config(service)

    def with_connection(connection: Connection) -> None:
        config.attributes["connection"] = connection
        action(config)

    try:
        async with engine.connect() as connection:
            await connection.run_sync(with_connection)
    finally:
        await engine.dispose()


def _config(service: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations(service)))
    config.set_main_option("path_separator", "os")
    config.attributes["service"] = service
    return config


def _sqlalchemy_url(url: str) -> str:
    return "postgresql+asyncpg://" + url.partition("://")[2]


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    settings = SharedSettings()
    password = settings.database_password.get_secret_value() if settings.database_password else None
    match list(arguments):
        case ["up"]:
            asyncio.run(upgrade_all(settings.database_url, password=password))
        case ["down", service] if service in SERVICES:
            asyncio.run(downgrade(settings.database_url, service))
        case _:
            sys.stderr.write((__doc__ or "") + "\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
