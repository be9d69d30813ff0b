"""The bodies that operators send, to a service or to the gateway. What is not named here is refused."""

import base64
import binascii
from typing import Annotated, Any, Final, Literal, Self

import orjson
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shared.messaging.consumer import Policy
from shared.messaging.ops import Edit, Filter
from shared.messaging.replay import Range

MAX_ROWS: Final = Policy().max_waiting // 2
"""A retry of so many, which all wait at once without a rate, does not stop their consumer."""


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - pydantic wants a ValueError
    return value


Flag = Annotated[bool, BeforeValidator(_flag)]
Rate = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False, description="Rows or events a second, at most")]
Reason = Annotated[str, Field(min_length=1, max_length=500)]
Short = Annotated[str, Field(min_length=1, max_length=200)]
OpenStatus = Literal["waiting", "held", "dead"]


class Order(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, frozen=True)


class Discard(Order):
    """Why a job is given up."""

    reason: Reason


class Redirect(Order):
    """Where a job's record goes instead."""

    topic: Short


class EditJob(Order):
    """What changes in a job's record: the body as JSON or as base64, the type, the time. The rest stays."""

    value: dict[str, Any] | None = None
    value_base64: str | None = None
    type: Short | None = None
    time: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if self.value is not None and self.value_base64 is not None:
            raise ValueError("value and value_base64 exclude each other")
        if self.value_base64 is not None:
            try:
                base64.b64decode(self.value_base64, validate=True)
            except binascii.Error as error:
                raise ValueError(f"value_base64: {error}") from error
        return self

    def change(self) -> Edit:
        """Return what is asked for."""
        body = None if self.value is None else orjson.dumps(self.value)
        if self.value_base64 is not None:
            body = base64.b64decode(self.value_base64)
        return Edit(body, self.type, self.time)


class Selection(Order):
    """Which jobs are meant: at least one of consumer, fingerprint, code, since and until. Dead and held by default."""

    consumer: Short | None = None
    fingerprint: Short | None = None
    code: Short | None = None
    statuses: Annotated[list[OpenStatus], Field(min_length=1)] = ["held", "dead"]
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    cap: Annotated[int, Field(ge=1, le=MAX_ROWS, description="How many rows at most, the oldest")] = 10_000
    rate: Rate | None = None
    dry_run: Flag = False

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not (self.consumer or self.fingerprint or self.code or self.since or self.until):
            raise ValueError("say which jobs: consumer, fingerprint, code, since or until")
        return self

    def chosen(self) -> Filter:
        """Return the filter."""
        return Filter(self.statuses, self.consumer, self.fingerprint, self.code, self.since, self.until)


class RetryMany(Selection):
    """Jobs to be run again."""


class DiscardMany(Selection):
    """Jobs to be given up, and why."""

    reason: Reason


class StartReplay(Order):
    """A topic's range to be read again into one consumer. The topic is the consumer's only one by default."""

    consumer: Short
    topic: Short | None = None
    partition: Annotated[int, Field(ge=0)] | None = None
    from_offset: Annotated[int, Field(ge=0)] | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    again: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    dry_run: Flag = False
    rate: Rate | None = None

    def range(self) -> Range:
        """Return what is to be read."""
        return Range(self.topic or "", self.partition, self.from_offset, self.since, self.until)
