"""What a user may say about where and when they are told: the bodies of `routes/preferences.py`, checked."""

from datetime import time
from typing import Annotated, Final, Literal, Self, get_args
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.alerts.domain.grouping import By, Grouping
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
from services.alerts.service import Said
from shared.contracts.alerts import Channel

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


class GroupingBody(BaseModel):
    """What of a kind rings together is told in one message; `*` is every kind that is not critical."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = ANY
    by: By = "kind"
    wait_s: int = Field(default=30, ge=1, le=3600)
    interval_s: int = Field(default=300, ge=10, le=86_400)
    repeat_s: int | None = Field(default=None, ge=300, le=86_400)

    @model_validator(mode="after")
    def _paced(self) -> Self:
        if self.repeat_s is not None and self.repeat_s < self.interval_s:
            raise ValueError("what is new comes before what is repeated: repeat_s is interval_s at least")
        if self.kind in DIGESTS | {TEST}:
            raise ValueError(f"{self.kind} comes by itself")
        return self


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

    groupings: list[GroupingBody] = Field(
        default_factory=list[GroupingBody],
        max_length=MAX_CAPS,
        description="What is told in one message, by kind, and how long it waits for more of it",
    )

    @model_validator(mode="after")
    def _groupings(self) -> Self:
        kinds = [one.kind for one in self.groupings]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"there is more than one grouping of {twice}")
        return self

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


def _inhibitions_of(data: PreferencesBody) -> tuple[Inhibition, ...]:
    return tuple(Inhibition(one.source, one.target, tuple(one.equal), one.minutes) for one in data.inhibitions)


def said_by(data: PreferencesBody) -> Said:
    """Return what a body says."""
    quiet = data.quiet_hours
    wishes = Wishes(
        quiet=quiet and Quiet(quiet.start, quiet.end),
        choices={(one.kind, one.channel): one.choice for one in data.choices},
        caps=tuple(Cap(one.kind, one.channel, one.per_hour) for one in data.caps),
        inhibitions=_inhibitions_of(data),
        turns=tuple(data.turns),
        escalations={one.kind: one.after_minutes for one in data.escalations},
    )
    groupings = tuple(Grouping(one.kind, one.by, one.wait_s, one.interval_s, one.repeat_s) for one in data.groupings)
    return Said(wishes, data.timezone, data.locale, groupings)
