"""What each reader's message carries besides its words: in mail, the link that ends it."""

from dataclasses import replace

from services.alerts.domain.channels import lane_of
from services.alerts.domain.text import Message
from services.alerts.domain.unsubscribing import Unsubscribe, UnsubscribeLinks
from shared.clock import Clock
from shared.contracts.alerts import Channel


class Layout:
    """Lays out messages that name their user; others, such as the one that confirms an address, stay as they are."""

    def __init__(self, links: UnsubscribeLinks, clock: Clock) -> None:
        self._links = links
        self._clock = clock

    async def dress(self, channel: Channel, message: Message) -> Message:
        """Return the message as its reader gets it."""
        if channel != "email" or message.user_id is None:
            return message
        about = Unsubscribe(message.user_id, lane_of(channel, message.target), message.kind)
        return replace(message, unsubscribe=self._links.link(about, self._clock()))
