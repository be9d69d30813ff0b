"""Closing aiokafka's clients so that no connection outlives them."""

import asyncio
from traceback import walk_tb
from typing import Any


def leave_nothing_open(client: Any) -> None:
    """Have a client close its first connection too when it is cancelled while it asks that for the brokers."""
    bootstrap = client.bootstrap

    async def careful() -> None:
        try:
            await bootstrap()
        except asyncio.CancelledError as error:
            for frame, _ in walk_tb(error.__traceback__):  # nobody else knows that connection
                if (connection := frame.f_locals.get("bootstrap_conn")) is not None:
                    connection.close()
            raise

    client.bootstrap = careful


def close_all(client: Any) -> None:
    """Close all connections of a client, and let it make no other."""
    for connection in list(client._conns.values()):  # noqa: SLF001 - closing in aiokafka's way may be cut short
        connection.close()
    if client._sync_task is not None:  # noqa: SLF001 - it would connect again
        client._sync_task.cancel()  # noqa: SLF001
