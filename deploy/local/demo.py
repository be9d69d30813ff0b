"""The demo: two users with keys that stay the same from start to start, and watched symbols that always have news.

Seeded through the public API, as anybody would do it; the keys lie in `.openbell/demo.json`, with the gateway's
address, where `openbell` finds both.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from shared.service import Service

SYMBOLS: Final = ("AAPL", "GOOG", "IBM", "MSFT")
OK: Final = 200
CONFLICT: Final = 409
FILE: Final = "demo.json"

Demo = dict[str, str]


async def seed(
    home: Path, http: httpx.AsyncClient, new_admin: Callable[[], Awaitable[str]], place: Mapping[str, str]
) -> Demo:
    """Return the demo users' ids and keys, made at the first start, with where everything is in this one (`place`)."""
    file = home / FILE
    now = {"url": str(http.base_url), **place}
    if file.exists():
        demo: Demo = json.loads(file.read_text())
        if await _works(http, demo):
            return _written(file, demo | now)
    answer = await http.post("/api/users", json={"email": "demo@openbell.example"})
    if answer.status_code == CONFLICT:
        raise RuntimeError(f"the demo user exists but {file} with its key is gone; `make clean` begins anew")
    body = answer.raise_for_status().json()
    demo = {"user_id": body["user"]["id"], "api_key": body["api_key"], "admin_key": await new_admin()}
    auth = {"authorization": f"Bearer {demo['api_key']}"}
    onboarding = {"investing_style": "trader", "tickers": list(SYMBOLS)}
    path = f"/api/user/{demo['user_id']}/onboarding"
    (await http.post(path, json=onboarding, headers=auth)).raise_for_status()
    return _written(file, demo | now)


def _written(file: Path, demo: Demo) -> Demo:
    file.touch(mode=0o600)
    file.write_text(json.dumps(demo, indent=2) + "\n")
    return demo


async def _works(http: httpx.AsyncClient, demo: Demo) -> bool:
    auth: dict[str, Any] = {"authorization": f"Bearer {demo['api_key']}"}
    answer = await http.get(f"/api/user/{demo['user_id']}/settings", headers=auth)
    return answer.status_code == OK


def admin_maker(gateway: Service) -> Callable[[], Awaitable[str]]:
    """Return what makes the demo's administrator."""
    from services.api.main import create_admin  # noqa: PLC0415 - services are imported while Kafka starts

    return lambda: create_admin(gateway, "admin@openbell.example")
