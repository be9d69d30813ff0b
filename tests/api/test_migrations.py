"""What migrations of the gateway make of the rows that they find."""

import uuid
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from shared import migrate

ADA = "01980000-0000-7000-8000-0000000000aa"

ROWS = f"""
set search_path to api;
insert into users (id, email, role, created_at) values ('{ADA}', 'ada@example.com', 'user', '2026-07-01');
insert into stock_settings (user_id, symbol, alerts_enabled, note, updated_at) values
    ('{ADA}', 'AAPL', false, 'watched', '2026-07-02'),
    ('{ADA}', 'IBM', true, 'removed', '2026-07-02'),
    ('{ADA}', 'MSFT', true, 'removed before the log reached us', '2026-07-02');
insert into watchlist (user_id, symbol, added_at) values ('{ADA}', 'AAPL', '2026-07-01');
insert into audit_log (id, service, actor, action, subject, at, details)
values (gen_random_uuid(), 'api', '{ADA}', 'remove.stock', 'watchlist/{ADA}', '2026-07-03', '{{"symbol": "IBM"}}')
"""


@pytest.fixture
async def before_history(postgres: str) -> AsyncGenerator[str]:
    """An administrator's URL of a database whose schema of the gateway has no history of settings."""
    name = f"gateway_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"create database {name}")
    url = f"{postgres.rpartition('/')[0]}/{name}"
    await migrate.prepare(url, ["api"])
    await migrate.upgrade(url, "api", "0002")
    yield url
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def test_the_history_of_settings_begins_with_what_was_known_before_it(before_history: str):
    connection = await asyncpg.connect(before_history)
    await connection.execute(ROWS)
    await migrate.upgrade(before_history, "api", "0003")
    found = await connection.fetch(
        "select symbol, alerts_enabled, from_at::date::text, until_at::date::text from api.stock_settings_history"
        " order by symbol"
    )
    await connection.close()
    assert [tuple(row) for row in found] == [
        ("AAPL", False, "2026-07-02", None),
        ("IBM", True, "2026-07-02", "2026-07-03"),
        ("MSFT", True, "2026-07-02", "2026-07-02"),
    ]
