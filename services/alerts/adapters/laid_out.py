"""A sender that has each message laid out for its reader before another one sends it.

What would surprise you: what goes wrong here is Transient, for nothing was sent.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.alerts.domain.text import Message
from services.alerts.ports import Sender, Sent
from shared.errors import OpenbellError, Transient

Dress = Callable[[Message], Awaitable[Message]]


class LaidOut:
    """Sends what `dress` makes of a message."""

    def __init__(self, sender: Sender, dress: Dress) -> None:
        self._sender = sender
        self._dress = dress

    async def send(self, message: Message) -> Sent:
        """Lay the message out and send it; see services.alerts.ports for how it may end."""
        try:
            dressed = await self._dress(message)
        except OpenbellError:
            raise
        except Exception as error:
            raise Transient(f"the message could not be laid out: {type(error).__name__}") from error
        sent = await self._sender.send(dressed)
        return replace(sent, template=dressed.rendered.version if dressed.rendered is not None else None)

    async def close(self) -> None:
        """Close the other one."""
        await self._sender.close()
