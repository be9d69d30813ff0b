"""The command against a real gateway over HTTP, with real rows behind it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from cli.main import main
from services.api.main import Gateway
from tests.api.conftest import Person, rows
from tests.api.test_forwarding import served
from tests.api.test_operations import dead

Run = Callable[..., Awaitable[int]]


@pytest.fixture
async def run(gateway: Gateway, admin: Person, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Run]:
    """Run the command in a thread beside the gateway, whose background runs are carried out."""
    carrying = asyncio.create_task(gateway.operations.runs.run())
    async with served(gateway.app) as url:
        monkeypatch.setenv("OPENBELL_URL", url)
        monkeypatch.setenv("OPENBELL_API_KEY", admin.key)
        yield lambda *words: asyncio.to_thread(main, words)
    carrying.cancel()
    await asyncio.gather(carrying, return_exceptions=True)


async def test_a_group_is_found_counted_retried_and_the_run_is_awaited(run: Run, gateway: Gateway, capsys):
    for offset in range(3):
        await dead(gateway, offset)
    assert await run("failed", "groups", "--json") == 4, "the other services are not there"
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["rows"] == 3
    fingerprint = ("--fingerprint", group["fingerprint"])
    assert await run("failed", "retry", *fingerprint, "--dry-run") == 4
    assert "would retry 3 of 3" in capsys.readouterr().out
    assert {row["status"] for row in await rows(gateway, "select status from failed_jobs")} == {"dead"}
    assert await run("failed", "retry", *fingerprint, "--rate", "10", "--yes") == 4
    assert "done 3" in capsys.readouterr().out
    assert {row["status"] for row in await rows(gateway, "select status from failed_jobs")} == {"waiting"}
    assert await run("runs", "list", "--json") == 4
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert await run("runs", "wait", f"api/{listed['id']}") == 0
    assert await run("runs", "cancel", f"api/{listed['id']}") == 1


async def test_one_job_is_shown_and_discarded_once(run: Run, gateway: Gateway, capsys):
    await dead(gateway)
    (row,) = await rows(gateway, "select id from failed_jobs")
    job = f"api/{row['id']}"
    assert await run("failed", "show", job) == 0
    assert "api.things" in capsys.readouterr().out
    assert await run("failed", "discard", job, "--reason", "old") == 0
    assert await run("failed", "discard", job, "--reason", "old") == 1
    assert "CONFLICT" in capsys.readouterr().err


async def test_a_user_is_told_that_this_is_not_for_them(run: Run, ada: Person, capsys):
    assert await run("--key", ada.key, "lag") == 1
    assert "FORBIDDEN" in capsys.readouterr().err
