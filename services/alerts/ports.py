"""What a channel's sender must do; tests/alerts/test_senders.py holds every adapter to it.

How a send ends (see shared.work): it returns; `Transient` means not sent, try again; `Busy` names the wait
that the other side asked for; `Permanent` means that this message is refused; `ChannelGone` that every message
will be; `OutcomeUnknown` that it may have been sent.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from services.alerts.domain.text import Message
from shared.errors import Permanent


class ChannelGone(Permanent):
    """The destination does not exist any more, or refuses us for good."""

    code = "CHANNEL_GONE"


@dataclass(frozen=True, slots=True)
class Sent:
    """The other side took the message: the id it gave, how long it wants to be left alone, what laid it out."""

    provider_id: str
    pause_s: float = 0.0
    template: str | None = None


Check = Callable[[str], Awaitable[None]]
"""Asks of a target what no rule can tell, before it is written; raises Invalid. It is asked again when it is used."""


class Sender(Protocol):
    """Sends a message to its target."""

    async def send(self, message: Message) -> Sent:
        """Send; return once the other side has taken the message."""
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...
