"""What the answers of other people's APIs say, read without trust."""

import json
from typing import Any, cast

import httpx


def json_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the answer's object; empty for anything else."""
    return object_of(answer.content)


def object_of(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds; empty for anything else."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", told) if isinstance(told, dict) else {}


def seconds(value: object, longest_s: float) -> float | None:
    """Return a wait in seconds, decimals included, `longest_s` at most; None for what is not one."""
    try:
        wait_s = float(str(value))
    except ValueError:
        return None
    return min(wait_s, longest_s) if wait_s >= 0.0 else None
