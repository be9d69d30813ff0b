"""What tests of payment share."""

import uuid
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from tests.conftest import _with_database


@pytest.fixture
async def other_database_url(postgres: str, template: str) -> AsyncGenerator[str]:
    """A second database like `database_url`."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"create database {name} template {template}")
    yield _with_database(postgres, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()
