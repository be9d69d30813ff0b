"""What a message looks like on each channel, made of something that its user was told, and not sent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args
from uuid import UUID

from services.alerts.domain.clicks import Clicks
from services.alerts.domain.text import Message
from services.alerts.service.layout import Layout
from services.alerts.service.messages import of_alert, of_notice
from services.alerts.store.previews import PreviewStore
from shared.contracts.alerts import Channel
from shared.db import Row, Tx
from shared.errors import NotFound

ALERT = "alert"
Payloads = Mapping[Channel, Callable[[Message], Any]]
"""What is posted for a message, by channel; mail has none."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A message on one channel. `template` laid it out; a signed webhook has none."""

    channel: Channel
    template: str | None
    subject: str
    text: str
    html: str | None
    payload: Any


class Previews:
    """Shows messages."""

    def __init__(self, store: PreviewStore, layout: Layout, clicks: Clicks, payloads: Payloads) -> None:
        self._store = store
        self._layout = layout
        self._clicks = clicks
        self._payloads = payloads

    async def message(
        self, tx: Tx, user_id: UUID, *, kind: str | None, alert_id: UUID | None, notice_id: UUID | None
    ) -> Message:
        """Return the message of an alert or a notice of the user's, by id, else the newest of its kind.

        Without any of the three: the newest alert, else the newest notice. Raises NotFound.
        """
        row = None
        if notice_id is None and kind in {None, ALERT}:
            row = await self._store.alert(tx, user_id, alert_id)
            if row is not None:
                link = self._clicks.link(user_id, row["alert_id"])
                return of_alert(_nowhere(row), link, repeat=False)
        if alert_id is None and kind != ALERT:
            row = await self._store.notice(tx, user_id, notice_id, kind)
        if row is None:
            raise NotFound("there is no such alert or notice to show a message of")
        return of_notice(_nowhere(row), self._clicks.link(user_id, row["notice_id"]))

    async def shown(self, message: Message) -> Sequence[Shown]:
        """Return it on every channel."""
        return [await self._on(channel, message) for channel in get_args(Channel)]

    async def _on(self, channel: Channel, message: Message) -> Shown:
        dressed = await self._layout.dress(channel, message)
        made, payload = dressed.rendered, self._payloads.get(channel)
        posted = None if payload is None else payload(dressed)
        if made is None:
            return Shown(channel, None, dressed.title, "\n".join([*dressed.lines, *dressed.notes]), None, posted)
        return Shown(channel, made.version, made.subject, made.text, made.html, posted)


def _nowhere(row: Row) -> Row:
    """Return what a delivery would read, without a target."""
    return cast("Row", {**row, "target": "", "escalated": False})
