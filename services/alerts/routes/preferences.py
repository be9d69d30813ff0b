"""What a user wants to be told where and when, and the log that says what came of it."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter

from services.alerts.domain.states import state_of
from services.alerts.routes.preference_bodies import PreferencesBody, said_by
from services.alerts.service import Actor, Preferences
from services.alerts.store.deliveries import DeliveryStore
from services.alerts.store.preferences import PreferenceStore
from shared.db import Row
from shared.http import Caller, Who, exchange_of
from shared.http.cursors import cursor_after, parse_cursor
from shared.identity import own
from shared.messaging.door import Door


class ChoiceView(msgspec.Struct, frozen=True):
    """A choice."""

    kind: str
    channel: str
    choice: str


class CapView(msgspec.Struct, frozen=True):
    """A cap."""

    kind: str
    channel: str
    per_hour: int


class GroupingView(msgspec.Struct, frozen=True):
    """A grouping."""

    kind: str
    by: str
    wait_s: int
    interval_s: int
    repeat_s: int | None


class InhibitionView(msgspec.Struct, frozen=True):
    """An inhibition."""

    source: str
    target: str
    equal: list[str]
    minutes: int


class EscalationView(msgspec.Struct, frozen=True):
    """An escalation."""

    kind: str
    after_minutes: int


class QuietView(msgspec.Struct, frozen=True):
    """Quiet hours, HH:MM."""

    start: str
    end: str


class PreferencesView(msgspec.Struct, frozen=True):
    """Preferences. `timezone` is the one that holds; `own_timezone` says that it was set here, not in the settings."""

    timezone: str
    own_timezone: bool
    locale: str | None
    quiet_hours: QuietView | None
    choices: list[ChoiceView]
    caps: list[CapView]
    inhibitions: list[InhibitionView]
    groupings: list[GroupingView]
    turns: list[str]
    escalations: list[EscalationView]
    updated_at: datetime | None


class LoggedDelivery(msgspec.Struct, frozen=True):
    """One delivery of an alert or a notice. `reason` says why it waits, or why it did not arrive.

    `template` is what laid out the message that was taken; `delivered_at`, `opened_at` and `clicked_at` are what a mail
    provider told of it; `because` says which channel did not take it before, or on which nobody acknowledged it.
    """

    id: UUID
    alert_id: UUID | None
    notice_id: UUID | None
    kind: str
    title: str | None
    channel: str
    state: str
    reason: str | None
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    settled_at: datetime | None
    template: str | None
    delivered_at: datetime | None
    opened_at: datetime | None
    clicked_at: datetime | None
    because: str | None


class DeliveryLog(msgspec.Struct, frozen=True):
    """Some deliveries, newest first; `next` is the cursor of the page after."""

    deliveries: list[LoggedDelivery]
    next: str | None


def handlers(
    preferences: Preferences, store: PreferenceStore, deliveries: DeliveryStore, door: Door
) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}/preferences", caller=Caller.USER)
    async def show(identity: Who, user_id: FromPath[UUID]) -> PreferencesView:
        """Return what the user wants to be told where and when."""
        own(identity, user_id)
        return await _shown(user_id, store, door)

    @put("/api/alerts/{user_id:uuid}/preferences", caller=Caller.USER)
    async def replace(
        request: Request[Any, Any, Any], identity: Who, user_id: FromPath[UUID], data: JSONBody[PreferencesBody]
    ) -> PreferencesView:
        """Replace all preferences. Quiet hours and caps hold for what rings from now on, choices for what waits."""
        own(identity, user_id)
        actor = Actor(str(identity.user_id), exchange_of(request.scope).request_id)
        said = said_by(data)
        await door.run(lambda tx: preferences.put(actor, user_id, said, tx))
        return await _shown(user_id, store, door)

    @get("/api/alerts/{user_id:uuid}/deliveries", caller=Caller.USER)
    async def log(
        identity: Who,
        user_id: FromPath[UUID],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        before: Annotated[str | None, QueryParameter(max_length=100)] = None,
    ) -> DeliveryLog:
        """Return the user's deliveries, newest first: what was sent, what waits, what was not told and why."""
        own(identity, user_id)
        cursor = parse_cursor(before)
        async with door.read() as tx:
            rows = await deliveries.log(tx, user_id, limit + 1, cursor)
        page = rows[:limit]
        more = cursor_after(page[-1]["created_at"], page[-1]["id"]) if len(rows) > limit else None
        return DeliveryLog([_logged(row) for row in page], more)

    return [show, replace, log]


async def _shown(user_id: UUID, store: PreferenceStore, door: Door) -> PreferencesView:
    async with door.read() as tx:
        row = await store.get(tx, user_id)
        usual = await store.users_timezone(tx, user_id) or "UTC"
    if row is None:
        return PreferencesView(usual, False, None, None, [], [], [], [], [], [], None)
    quiet = row["quiet_start"] and QuietView(f"{row['quiet_start']:%H:%M}", f"{row['quiet_end']:%H:%M}")
    return PreferencesView(
        timezone=row["timezone"] or usual,
        own_timezone=row["timezone"] is not None,
        locale=row["locale"],
        quiet_hours=quiet,
        choices=[ChoiceView(**one) for one in row["choices"]],
        caps=[CapView(**one) for one in row["caps"]],
        inhibitions=[InhibitionView(**one) for one in row["inhibitions"]],
        groupings=[GroupingView(**one) for one in row["groupings"]],
        turns=row["turns"],
        escalations=[EscalationView(**one) for one in row["escalations"]],
        updated_at=row["updated_at"],
    )


def _logged(row: Row) -> LoggedDelivery:
    return LoggedDelivery(
        id=row["id"],
        alert_id=row["alert_id"],
        notice_id=row["notice_id"],
        kind=row["kind"],
        title=row["title"],
        channel=row["channel"],
        state=state_of(row["status"], row["delivered_at"]),
        reason=row["last_error"],
        attempts=row["attempts"],
        created_at=row["created_at"],
        next_attempt_at=row["due_at"] if row["status"] == "pending" else None,
        settled_at=row["settled_at"],
        template=row["template"],
        delivered_at=row["delivered_at"],
        opened_at=row["opened_at"],
        clicked_at=row["clicked_at"],
        because=row["because"],
    )
