"""Templates: which lays a message out, and what administrators write in the place of a packaged one.

What would surprise you: what is in use is read every few seconds at most and kept when Postgres does not answer, and a
template that cannot be rendered gives way to the next nearest, in the end to the packaged one: no delivery waits for a
template. How often that happened stands on its version, at most ten seconds later.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from prometheus_client import Counter

from services.alerts.domain.overrides import ANY_KIND, Place, candidates, check
from services.alerts.domain.templates import Rendered, Source, TemplateRefused, render
from services.alerts.domain.text import Message, context
from services.alerts.service.audit import Actor, audited
from services.alerts.store.templates import TemplateStore
from services.alerts.templates import packaged
from shared.clock import Clock, NewId
from shared.contracts.alerts import Channel
from shared.db import Row, Tx
from shared.errors import NotFound
from shared.messaging.door import Done, Door

FRESH: Final = timedelta(seconds=5)
NOTED: Final = timedelta(seconds=10)
FALLBACKS: Final = Counter(
    "openbell_alerts_template_fallbacks_total", "Templates of administrators that could not be rendered", ["channel"]
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draft:
    """A template as an administrator writes it."""

    subject: str
    text: str
    mjml: str | None = None
    comment: str = ""


class Templates:
    """Lays messages out, and writes, lists and takes back templates."""

    def __init__(self, store: TemplateStore, door: Door, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._door = door
        self._clock = clock
        self._new_id = new_id
        self._written: Mapping[Place, Source] = {}
        self._read_at: datetime | None = None
        self._failures: dict[tuple[Place, Source], tuple[int, datetime | None]] = {}

    # What messages look like

    async def rendered(self, channel: Channel, message: Message) -> Rendered | None:
        """Return how a message is laid out; None for a channel that gets the facts."""
        if channel == "webhook":
            return None
        ours = packaged()
        kinds = [ours.newest(channel, kind) for kind in (message.kind, ANY_KIND)]
        sees = context(message)
        for source in candidates(channel, message.kind, message.words, await self._in_use(), kinds):
            try:
                return render(source, sees, message.words, ours.partials)
            except TemplateRefused as error:
                await self._failed(source, error)
        raise TemplateRefused(f"no template of {channel} can lay this message out")

    async def _in_use(self) -> Mapping[Place, Source]:
        now = self._clock()
        if self._read_at is None or now - self._read_at >= FRESH:
            self._read_at = now  # before it is read: the others use what is known meanwhile
            try:
                async with self._door.read() as tx:
                    self._written = await self._store.used(tx)
            except Exception:  # noqa: BLE001 - whatever it is, messages go out with the templates known so far
                _log.warning("alerts.templates_not_read", exc_info=True)
        return self._written

    async def _failed(self, source: Source, error: TemplateRefused) -> None:
        FALLBACKS.labels(source.channel).inc()
        place = next((at for at, one in self._written.items() if one == source), None)
        if place is None:
            return
        now = self._clock()
        count, noted_at = self._failures.get((place, source), (0, None))
        self._failures[place, source] = count + 1, noted_at
        if noted_at is not None and now - noted_at < NOTED:
            return
        self._failures[place, source] = 0, now
        _log.warning("alerts.template_failed", extra={"template": source.version, "why": error.message})
        try:
            async with self._door.transaction() as tx:
                await self._store.failed(tx, source, place, count + 1, error.message, now)
        except Exception:  # noqa: BLE001 - whatever it is, the message goes out
            _log.warning("alerts.template_failure_not_noted", exc_info=True)

    # What administrators ask for

    def checked(self, place: Place, draft: Draft) -> Rendered:
        """Return how a draft lays out a made-up message. Raises TemplateRefused with part, line and reason."""
        channel, kind, language = place
        source = Source(channel, kind, f"{kind}@{language}.0", draft.subject, draft.text, draft.mjml)
        return check(source, packaged().partials)

    async def write(self, actor: Actor, place: Place, draft: Draft, tx: Tx) -> Done[Row]:
        """Write the next version of a template, which is used from now on. Raises TemplateRefused."""
        self.checked(place, draft)
        fields = {"subject": draft.subject, "text": draft.text, "mjml": draft.mjml, "comment": draft.comment}
        return await self._add(actor, place, fields, "write.template", tx)

    async def revert(self, actor: Actor, place: Place, version: int, tx: Tx) -> Done[Row]:
        """Write an older version once more, as the newest; 0 is the packaged one.

        Raises NotFound, and TemplateRefused where it does not hold any more.
        """
        fields: dict[str, Any] = {"subject": None, "text": None, "mjml": None, "comment": f"as version {version}"}
        if version > 0:
            row = await self._store.one(tx, place, version)
            if row is None:
                raise NotFound("there is no such version")
            if row["text"] is not None:
                self.checked(place, Draft(row["subject"], row["text"], row["mjml"]))
            fields |= {name: row[name] for name in ("subject", "text", "mjml")}
        elif not await self._store.versions(tx, place, 1):
            raise NotFound("there is no template to take back")
        return await self._add(actor, place, fields, "revert.template", tx)

    async def newest(self, tx: Tx) -> list[Row]:
        """Return the newest version of each."""
        return await self._store.newest(tx)

    async def versions(self, place: Place, limit: int, tx: Tx) -> list[Row]:
        """Return the versions of one, newest first. Raises NotFound."""
        if not (rows := await self._store.versions(tx, place, limit)):
            raise NotFound("no administrator has written this template: the packaged one is used")
        return rows

    async def _add(self, actor: Actor, place: Place, fields: Mapping[str, Any], action: str, tx: Tx) -> Done[Row]:
        now = self._clock()
        row = await self._store.add(tx, place, {**fields, "author": actor.name}, now)
        tx.after_commit(self._again)
        told = audited(actor, action, "/".join(place), id=self._new_id(), at=now, version=str(row["version"]))
        return Done(row, [told])

    def _again(self) -> None:
        self._read_at = None
