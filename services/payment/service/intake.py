"""Webhooks come in: each event is kept once, as it came, and told.

What would surprise you: webhooks that meet share a transaction. One that comes alone is written at once; while two
transactions are under way, the others gather and are written by the next one. So a burst costs a few commits.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final
from uuid import NAMESPACE_URL, UUID

import orjson
from prometheus_client import Counter

from services.payment.domain.stripe import Hint, Object, hint_of
from services.payment.ports import NotConfigured, Webhooks
from services.payment.store.webhooks import Webhook, WebhookStore
from shared.clock import Clock
from shared.contracts.base import derived_id
from shared.contracts.payment import WebhookReceived
from shared.db import Tx
from shared.errors import Transient
from shared.messaging.door import Done, Door

_log = logging.getLogger(__name__)

TOGETHER: Final = 200
WRITERS: Final = 2  # one waits for Postgres while the other is written and answered

RECEIVED: Final = Counter(
    "openbell_payment_webhooks_total", "Webhooks that came, by what became of them", ["outcome"]
)  # kept, known
_KEPT, _AGAIN = RECEIVED.labels("kept"), RECEIVED.labels("known")
SWEPT: Final = Counter("openbell_payment_events_missed_total", "Events that Stripe could not deliver and we asked for")

_Waiting = tuple[Webhook, "asyncio.Future[bool]"]


class Intake:
    """Takes webhooks in. `webhooks` is None where Stripe is not set up."""

    def __init__(self, webhooks: Webhooks | None, store: WebhookStore, door: Door, clock: Clock) -> None:
        self._webhooks = webhooks
        self._store = store
        self._door = door
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._writing: set[asyncio.Task[None]] = set()

    async def take(self, body: bytes, signature: str | None) -> bool:
        """Keep one webhook and tell of it; return whether it was new.

        Raises NotConfigured, BadSignature, SignatureExpired, BadWebhook.
        """
        if self._webhooks is None:
            raise NotConfigured("Stripe is not set up here")
        now = self._clock()
        webhook = Webhook(self._webhooks.read(body, signature, now), body, now)
        new = await self._kept(webhook)
        (_KEPT if new else _AGAIN).inc()
        return new

    async def sweep(self, tx: Tx, events: Sequence[Object]) -> Done[int]:
        """Keep events that Stripe was asked for and tell of those that never came; the value is how many."""
        now = self._clock()
        swept = [
            Webhook(hint, orjson.dumps(event, default=str), now, swept=True)
            for event in events
            if (hint := _hint(event)) is not None
        ]
        told = await self._keep(tx, swept)
        tx.after_commit(lambda: SWEPT.inc(len(told)))
        return Done(len(told), told)

    async def _kept(self, webhook: Webhook) -> bool:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((webhook, future))
        return await future

    def _send(self) -> None:
        if self._waiting and len(self._writing) < WRITERS:
            batch, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            writing = asyncio.ensure_future(self._write(batch))
            self._writing.add(writing)
            writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writing.discard(writing)
        self._send()

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        webhooks = {one.hint.event_id: one for one, _ in reversed(batch)}  # of two of one event, the first
        try:
            new = await self._door.run(lambda tx: self._keep_new(tx, list(webhooks.values())))
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            told = error if isinstance(error, Exception) else Transient("the service is stopping")
            for _, future in batch:
                if not future.done():
                    future.set_exception(told)
            return
        for webhook, future in batch:
            if not future.done():
                future.set_result(webhook.hint.event_id in new and webhooks[webhook.hint.event_id] is webhook)

    async def _keep_new(self, tx: Tx, webhooks: Sequence[Webhook]) -> Done[set[str]]:
        told = await self._keep(tx, webhooks)
        return Done({one.event_id for one in told}, told)

    async def _keep(self, tx: Tx, webhooks: Sequence[Webhook]) -> list[WebhookReceived]:
        new = await self._store.add(tx, webhooks)
        return [_told(webhook) for webhook in webhooks if webhook.hint.event_id in new]


def _hint(event: Object) -> Hint | None:
    try:
        return hint_of(event)
    except ValueError:
        _log.exception("payment.no_event", extra={"id": str(event.get("id"))})
        return None


def _told(webhook: Webhook) -> WebhookReceived:
    hint = webhook.hint
    return WebhookReceived(
        id=_id_of(hint.event_id),
        time=webhook.received_at,
        provider="stripe",
        event_id=hint.event_id,
        event_type=hint.event_type,
        object_kind=hint.object_kind,
        object_id=hint.object_id,
        customer=hint.customer,
        livemode=hint.livemode,
        created=hint.created,
    )


def _id_of(event_id: str) -> UUID:
    return derived_id(NAMESPACE_URL, f"stripe/event/{event_id}")
