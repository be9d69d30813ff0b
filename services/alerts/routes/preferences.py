"""What a user wants to be told where and when, and the log that says what came of it."""

from datetime import datetime, time
from typing import Annotated, Any, Final, Literal, Self, get_args
from uuid import UUID
from zoneinfo import available_timezones

import msgspec
from litestar import Request, get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.alerts.domain.routing import (
    ANY,
    DIGESTS,
    TEST,
    Cap,
    Choice,
    Equal,
    Inhibition,
    Quiet,
    Wishes,
    circle,
)
from services.alerts.domain.states import state_of
from services.alerts.service import Actor, Preferences, Said
from services.alerts.store.deliveries import DeliveryStore
from services.alerts.store.preferences import PreferenceStore
from shared.contracts.alerts import Channel
from shared.db import Row
from shared.http import Caller, Who, exchange_of
from shared.http.cursors import cursor_after, parse_cursor
from shared.identity import own
from shared.messaging.door import Door

MAX_CHOICES: Final = 200
MAX_CAPS: Final = 50

Kind = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9_.]{0,63})$")]


def _timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("this is no time zone: they are named like America/New_York")
    return name


def _minute(at: time) -> time:
    if at.tzinfo is not None or at.second or at.microsecond:
        raise ValueError("a time of quiet hours reads HH:MM, by the clock on your wall")
    return at


Minute = Annotated[time, AfterValidator(_minute)]


class ChoiceBody(BaseModel):
    """A choice for a kind on a channel; `*` is every one of them. The nearest choice wins, the kind's first."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = ANY
    channel: Channel | Literal["*"] = ANY
    choice: Choice


class CapBody(BaseModel):
    """At most so many in an hour of UTC; what is over goes into the digest."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = ANY
    channel: Channel | Literal["*"] = ANY
    per_hour: int = Field(ge=1, le=10_000)


class EscalationBody(BaseModel):
    """What of a kind nobody acknowledges in time goes to the channel whose turn is next."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = ANY
    after_minutes: int = Field(ge=1, le=1440)


class InhibitionBody(BaseModel):
    """While the source fires, the target is not told where `equal` is the same; `*` is all that is not critical."""

    model_config = ConfigDict(extra="forbid")

    source: Kind
    target: Kind
    equal: list[Equal] = Field(default_factory=list[Equal], max_length=len(get_args(Equal)))
    minutes: int = Field(ge=1, le=1440)

    @model_validator(mode="after")
    def _aimed(self) -> Self:
        if self.source == ANY:
            raise ValueError("name the one kind that holds back others: the source is no *")
        if self.source == self.target:
            raise ValueError(f"{self.source} does not hold itself back: to hear less of it, set a cap or switch it off")
        if unheld := {self.source, self.target} & (DIGESTS | {TEST}):
            raise ValueError(f"{', '.join(sorted(unheld))} neither holds anything back nor is held back")
        if len(set(self.equal)) < len(self.equal):
            raise ValueError("name each field of equal once")
        return self


class QuietBody(BaseModel):
    """From when until when nothing goes out but what is critical; 22:00 to 07:00 spans midnight."""

    model_config = ConfigDict(extra="forbid")

    start: Minute
    end: Minute

    @model_validator(mode="after")
    def _stretch(self) -> Self:
        if self.start == self.end:
            raise ValueError("quiet hours that end when they start are none: leave them out")
        return self


class PreferencesBody(BaseModel):
    """All preferences; what is left out is as if nothing had been said of it."""

    model_config = ConfigDict(extra="forbid")

    timezone: Annotated[str, AfterValidator(_timezone)] | None = None
    locale: str | None = Field(default=None, pattern=r"^[a-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}$")
    quiet_hours: QuietBody | None = None
    choices: list[ChoiceBody] = Field(default_factory=list[ChoiceBody], max_length=MAX_CHOICES)
    caps: list[CapBody] = Field(default_factory=list[CapBody], max_length=MAX_CAPS)
    turns: list[Channel] = Field(
        default_factory=list[Channel],
        max_length=len(get_args(Channel)),
        description="Channels that take turns: one is told only what those before it could not take",
    )

    escalations: list[EscalationBody] = Field(
        default_factory=list[EscalationBody],
        max_length=MAX_CAPS,
        description="In how many minutes the next in turn is told what you did not acknowledge, by kind",
    )

    inhibitions: list[InhibitionBody] = Field(
        default_factory=list[InhibitionBody],
        max_length=MAX_CAPS,
        description="What is not told while something of another kind fires",
    )

    @model_validator(mode="after")
    def _inhibitions(self) -> Self:
        pairs = [(one.source, one.target) for one in self.inhibitions]
        if twice := next((pair for pair in pairs if pairs.count(pair) > 1), None):
            raise ValueError(f"there is more than one inhibition of {twice[1]} by {twice[0]}")
        if kinds := circle(_inhibitions_of(self)):
            raise ValueError(f"these would hold each other back, and none would be told: {', '.join(kinds)}")
        return self

    @model_validator(mode="after")
    def _escalations(self) -> Self:
        kinds = [one.kind for one in self.escalations]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"there is more than one escalation for {twice}")
        if kinds and not self.turns:
            raise ValueError("say in turns which channel is told next: escalations go from one to the other")
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        for what, said in (("choice", self.choices), ("cap", self.caps)):
            places = [(one.kind, one.channel) for one in said]
            if twice := next((place for place in places if places.count(place) > 1), None):
                raise ValueError(f"there is more than one {what} for {twice[0]} on {twice[1]}")
        if len(set(self.turns)) < len(self.turns):
            raise ValueError("a channel has one turn")
        if len(self.turns) == 1:
            raise ValueError("one channel alone takes no turns: name two at least")
        return self


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
        said = _said(data)
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


def _inhibitions_of(data: PreferencesBody) -> tuple[Inhibition, ...]:
    return tuple(Inhibition(one.source, one.target, tuple(one.equal), one.minutes) for one in data.inhibitions)


def _said(data: PreferencesBody) -> Said:
    quiet = data.quiet_hours
    wishes = Wishes(
        quiet=quiet and Quiet(quiet.start, quiet.end),
        choices={(one.kind, one.channel): one.choice for one in data.choices},
        caps=tuple(Cap(one.kind, one.channel, one.per_hour) for one in data.caps),
        inhibitions=_inhibitions_of(data),
        turns=tuple(data.turns),
        escalations={one.kind: one.after_minutes for one in data.escalations},
    )
    return Said(wishes, data.timezone, data.locale)


async def _shown(user_id: UUID, store: PreferenceStore, door: Door) -> PreferencesView:
    async with door.read() as tx:
        row = await store.get(tx, user_id)
        usual = await store.users_timezone(tx, user_id) or "UTC"
    if row is None:
        return PreferencesView(usual, False, None, None, [], [], [], [], [], None)
    quiet = row["quiet_start"] and QuietView(f"{row['quiet_start']:%H:%M}", f"{row['quiet_end']:%H:%M}")
    return PreferencesView(
        timezone=row["timezone"] or usual,
        own_timezone=row["timezone"] is not None,
        locale=row["locale"],
        quiet_hours=quiet,
        choices=[ChoiceView(**one) for one in row["choices"]],
        caps=[CapView(**one) for one in row["caps"]],
        inhibitions=[InhibitionView(**one) for one in row["inhibitions"]],
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
