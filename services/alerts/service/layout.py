"""What each reader's message carries besides its words: its layout, and in mail the link that ends it."""

from dataclasses import replace

from services.alerts.domain.channels import lane_of
from services.alerts.domain.text import Message, fitted, visible
from services.alerts.domain.unsubscribing import Unsubscribe, UnsubscribeLinks
from services.alerts.service.templates import Templates
from shared.clock import Clock
from shared.contracts.alerts import Channel


class Layout:
    """Lays messages out for every channel; only those that name their user can be unsubscribed from."""

    def __init__(self, links: UnsubscribeLinks, templates: Templates, clock: Clock) -> None:
        self._links = links
        self._templates = templates
        self._clock = clock

    async def dress(self, channel: Channel, message: Message) -> Message:
        """Return the message as its reader gets it."""
        message = visible(fitted(message))
        if channel == "email" and message.user_id is not None:
            about = Unsubscribe(message.user_id, lane_of(channel, message.target), message.kind)
            message = replace(message, unsubscribe=self._links.link(about, self._clock()))
        return replace(message, rendered=await self._templates.rendered(channel, message))
