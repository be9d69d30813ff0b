"""JSON answers, encoded once by msgspec: ids, times and decimals become strings."""

import dataclasses
from typing import Any

import msgspec
from litestar import Response
from pydantic import BaseModel


def plain_model(value: Any) -> Any:
    """Return JSON data for a pydantic model; raises TypeError for what is none."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON data")


_encoder = msgspec.json.Encoder(enc_hook=plain_model)


def encode(value: Any) -> bytes:
    """Return JSON of data, Structs, dataclasses or models."""
    return _encoder.encode(value)


def json_response(value: Any, *, status_code: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Return the value as a JSON answer."""
    return Response(encode(value), status_code=status_code, headers=headers, media_type="application/json")


def fields(instance: Any) -> dict[str, Any]:
    """Return a dataclass's fields, not copied deeply."""
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
