"""Webhooks as they came."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text

from services.payment.domain.stripe import Hint
from shared.db import Tx

_ADD: Final = text("""
    insert into webhooks (event_id, created, type, object_kind, object_id, customer, livemode, swept, body, received_at)
    select * from unnest(
        cast(:event_ids as text[]), cast(:createds as timestamptz[]), cast(:types as text[]), cast(:kinds as text[]),
        cast(:object_ids as text[]), cast(:customers as text[]), cast(:livemodes as boolean[]),
        cast(:swepts as boolean[]), cast(:bodies as bytea[]), cast(:ats as timestamptz[]))
    on conflict do nothing returning event_id""")
_KNOWN: Final = text("""
    select event_id from webhooks where event_id = any(cast(:event_ids as text[])) and created >= :since""")


@dataclass(frozen=True, slots=True)
class Webhook:
    """What came, or was asked for (`swept`), and what it says."""

    hint: Hint
    body: bytes
    received_at: datetime
    swept: bool = False


class WebhookStore:
    """Keeps webhooks; each event once."""

    async def add(self, tx: Tx, webhooks: Sequence[Webhook]) -> set[str]:
        """Add those that are new, all in one statement; return their event ids."""
        ordered = sorted(webhooks, key=lambda one: one.hint.event_id)  # one order for all, or two replicas deadlock
        hints = [one.hint for one in ordered]
        rows = await tx.fetch(
            _ADD,
            event_ids=[hint.event_id for hint in hints],
            createds=[hint.created for hint in hints],
            types=[hint.event_type for hint in hints],
            kinds=[hint.object_kind for hint in hints],
            object_ids=[hint.object_id for hint in hints],
            customers=[hint.customer for hint in hints],
            livemodes=[hint.livemode for hint in hints],
            swepts=[one.swept for one in ordered],
            bodies=[one.body for one in ordered],
            ats=[one.received_at for one in ordered],
        )
        return {row["event_id"] for row in rows}

    async def known(self, tx: Tx, event_ids: Sequence[str], since: datetime) -> set[str]:
        """Return which of these events, made since then, are here."""
        return {row["event_id"] for row in await tx.fetch(_KNOWN, event_ids=list(event_ids), since=since)}
