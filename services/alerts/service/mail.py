"""Fewer mails: what providers tell of those they took, and readers who want none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from prometheus_client import Counter

from services.alerts.domain.mail_events import (
    ENDS,
    MailEvent,
    Provider,
    address_hash,
    check_resend,
    check_sendgrid,
    of_resend,
    of_sendgrid,
    why_lost,
)
from services.alerts.domain.unsubscribing import UNSUBSCRIBED, Unsubscribe, UnsubscribeLinks
from services.alerts.service.audit import Actor, audited
from services.alerts.service.routing import Router
from services.alerts.store.mail import MailStore
from services.alerts.store.preferences import PreferenceStore
from shared.clock import Clock, NewId
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import NotFound
from shared.messaging.door import Done, Door
from shared.work import Settled

RECEIVED: Final = Counter(
    "openbell_alerts_mail_events_total", "What providers told of mails, by what it was", ["provider", "kind"]
)


@dataclass(frozen=True, slots=True)
class WebhookKeys:
    """How webhooks are checked, Resend's by any of its keys; none for a provider that sends none here."""

    sendgrid: EllipticCurvePublicKey | None = None
    resend: tuple[bytes, ...] = ()


class Mail:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        store: MailStore,
        preferences: PreferenceStore,
        keys: WebhookKeys,
        links: UnsubscribeLinks,
        door: Door,
        *,
        router: Router,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._router = router
        self._store = store
        self._preferences = preferences
        self._keys = keys
        self._links = links
        self._door = door
        self._clock = clock
        self._new_id = new_id

    # What providers tell

    async def sendgrid(self, body: bytes, signature: str | None, timestamp: str | None) -> int:
        """Take a webhook of SendGrid's; return how many events were new. Raises BadSignature and its kin."""
        if self._keys.sendgrid is None:
            raise NotFound("SendGrid's webhooks are not set up here")
        check_sendgrid(body, signature, timestamp, self._keys.sendgrid, self._clock())
        return await self._take(of_sendgrid(body))

    async def resend(self, body: bytes, event_id: str | None, timestamp: str | None, signatures: str | None) -> int:
        """Take a webhook of Resend's; return how many events were new. Raises BadSignature and its kin."""
        if not self._keys.resend:
            raise NotFound("Resend's webhooks are not set up here")
        check_resend(body, event_id, timestamp, signatures, keys=self._keys.resend, now=self._clock())
        return await self._take(of_resend(body, event_id or ""))

    async def _take(self, events: Sequence[MailEvent]) -> int:
        now = self._clock()

        async def keep(tx: Tx) -> Done[list[MailEvent]]:
            new = [event for event in sorted(events, key=_order) if await self._store.add(tx, event, now)]
            await self._store.hold(tx, {event.delivery_id for event in new if event.lost and event.delivery_id})
            return Done(new, [told for event in new for told in await self._apply(event, now, tx)])

        new = await self._door.run(keep)
        for event in new:
            RECEIVED.labels(event.provider, event.kind).inc()
        return len(new)

    async def _apply(self, event: MailEvent, now: datetime, tx: Tx) -> Sequence[Event]:
        """Act on an event; one that only waits is counted and nothing else.

        What did not arrive goes to the channel whose turn is next, as what was not taken. Where the delivery has not
        ended yet, its end does that (`Router.ended`).
        """
        if event.kind in {"delivered", "opened", "clicked"} and event.delivery_id is not None:
            await self._store.note(tx, event)
        if event.kind in ENDS:
            await self._store.suppress(tx, event, ENDS[event.kind], now)
        if not event.lost or event.delivery_id is None:
            return ()
        detail = why_lost(event.kind, event.detail)
        rows = await self._store.fail(tx, event.delivery_id, detail)
        ends = [Settled(row, "failed", row["attempts"], None, detail, {}, now) for row in rows]
        return await self._router.hand_on(ends, tx)

    # What readers want

    def check_link(self, token: str) -> Unsubscribe:
        """Return what a link stands for; raises LinkRefused."""
        return self._links.read(token, self._clock())

    async def unsubscribe(self, token: str, tx: Tx, *, everything: bool = False) -> Done[Unsubscribe]:
        """End mails of a link's kind, or `everything`, to the address that it came to; again changes nothing.

        Raises LinkRefused.
        """
        about, now = self.check_link(token), self._clock()
        actor, subject = Actor(str(about.user_id)), f"{about.user_id}/email"
        if everything or not about.kinds:
            ended = await self._store.end(tx, about.user_id, about.lane, UNSUBSCRIBED, now)
            return Done(about, [self._audited(actor, "unsubscribe.channel", subject)] if ended else [])
        ended = await self._preferences.switch_off(tx, about.user_id, ("email", about.lane), about.kinds, now)
        audit = [self._audited(actor, "unsubscribe.kind", f"{subject}/{about.kind}")] if ended else []
        return Done(about, audit)

    # What administrators lift

    async def lift(self, actor: Actor, address: str, tx: Tx) -> Done[None]:
        """Let an address get mail again; its user sets the channel anew. Raises NotFound."""
        if not await self._store.remove(tx, address):
            raise NotFound("this address is not suppressed")
        return Done(None, [self._audited(actor, "lift.suppression", address_hash(address))])

    def _audited(self, actor: Actor, action: str, subject: str) -> ActionAudited:
        return audited(actor, action, subject, id=self._new_id(), at=self._clock())


def _order(event: MailEvent) -> tuple[Provider, str]:
    """Rows are locked in one order, whichever way two webhooks repeat their events."""
    return event.provider, event.event_id
