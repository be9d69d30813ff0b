"""What the answers of other people's APIs say, read without trust."""

from typing import Any, cast

import httpx


def json_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the answer's object; empty for anything else."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}


def seconds(value: object, longest_s: float) -> float | None:
    """Return a wait in seconds, decimals included, `longest_s` at most; None for what is not one."""
    try:
        wait_s = float(str(value))
    except ValueError:
        return None
    return min(wait_s, longest_s) if wait_s >= 0.0 else None
