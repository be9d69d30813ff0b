"""What every event is: a frozen fact with an id, a time, a type, a topic and a key.

An event's `id` and `time` travel in the CloudEvents headers, not in the body, so that an operator who edits a
body cannot change which fact it is. A fact derived from another takes an id derived from its cause and the
cause's time: run again, it is the same fact, and every inbox recognises it.
"""

from datetime import datetime
from hashlib import sha1
from typing import Any, ClassVar, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import from_json

from shared.contracts.topics import Topic

parse_uuid = TypeAdapter(UUID).validate_python
"""Read a UUID from text, eight times as fast as its constructor. Raises ValueError."""


def derived_id(cause: UUID, name: str) -> UUID:
    """Return the version 5 UUID of a name below another (RFC 9562, section 5.5); uuid.uuid5, three times as fast."""
    digest = bytearray(sha1(cause.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return parse_uuid(digest.hex())


class Event(BaseModel):
    """Base of all events. Subclasses set `type` and `topic` and define `key`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: ClassVar[str]
    topic: ClassVar[Topic]
    content_type: ClassVar[str] = "application/json"

    id: UUID = Field(exclude=True)
    time: AwareDatetime = Field(exclude=True)

    @property
    def key(self) -> str:
        """The entity whose order matters."""
        raise TypeError(f"{type(self).__name__} does not say which key its order follows: define `key`")

    @classmethod
    def caused_by(cls, cause: "Event", ordinal: object = 0, /, **fields: Any) -> Self:
        """Build the fact that follows from `cause`.

        `ordinal` tells facts of one type from the same cause apart; it must not depend on time or chance.
        """
        return cls(id=derived_id(cause.id, f"{cls.type}/{ordinal}"), time=cause.time, **fields)

    def to_bytes(self) -> bytes:
        """Return the body as it travels."""
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, body: bytes, *, id: UUID, time: datetime) -> Self:  # noqa: A002 - the field's own name
        """Read a body back; raises ValueError (pydantic's ValidationError is one) with what is wrong."""
        fields = from_json(body)
        if not isinstance(fields, dict):
            raise ValueError(f"the body is JSON but not an object: {type(fields).__name__}")  # noqa: TRY004 - as promised
        fields["id"], fields["time"] = id, time
        return cls.model_validate(fields)
