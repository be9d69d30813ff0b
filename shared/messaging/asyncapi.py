"""The AsyncAPI 3 document of all events: FastStream describes topics and payloads, we add the headers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from shared.contracts.base import Event

_ENVELOPE: Final = ("id", "time")
HEADERS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type"],
    "properties": {
        "ce_specversion": {"const": "1.0"},
        "ce_id": {"type": "string", "format": "uuid", "description": "which fact this is"},
        "ce_type": {"type": "string", "description": "the event's type with its version"},
        "ce_source": {"type": "string", "format": "uri-reference"},
        "ce_time": {"type": "string", "format": "date-time", "description": "a derived fact has its cause's"},
        "content-type": {"type": "string"},
        "traceparent": {"type": "string", "description": "W3C trace context"},
    },
}


def document(
    events: Sequence[type[Event]], readers: Mapping[str, Sequence[type[Event]]], version: str
) -> dict[str, Any]:
    """Return the document of `events`; `readers` says which service reads which of them."""
    broker = KafkaBroker("kafka:9092", description="Apache Kafka, or the embedded development broker")
    for event in events:
        by = [name for name, read in readers.items() if event in read]
        about = f"{(event.__doc__ or '').strip()} Read by: {', '.join(by) or 'nobody yet'}."
        broker.publisher(event.topic.name, schema=event, title=event.type, description=about)
    found: dict[str, Any] = (
        AsyncAPI(broker, title="Openbell", version=version, schema_version="3.0.0").to_specification().to_jsonable()
    )
    types = {event.type: event for event in events}
    for name, message in found["components"]["messages"].items():
        event = types[name.partition(":")[0]]
        message["headers"] = HEADERS
        message["contentType"] = event.content_type
    for schema in found["components"]["schemas"].values():
        _take_out_envelope(schema)
    return found


def _take_out_envelope(schema: dict[str, Any]) -> None:
    """Id and time travel in headers; the payload's schema does not name them."""
    properties = schema.get("properties", {})
    if all(name in properties for name in _ENVELOPE):
        for name in _ENVELOPE:
            del properties[name]
            schema["required"].remove(name)
