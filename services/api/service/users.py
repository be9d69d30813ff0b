"""Users: signing up, onboarding, settings."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import msgspec

from services.api import store
from services.api.domain import MAX_WATCHED, normal_email
from services.api.service.by import By
from services.api.service.keys import Keys
from shared.contracts.api import InvestingStyle, Role, StockAdded, UserOnboarded, UserSettingsChanged, UserSignedUp
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import Conflict, NotFound
from shared.messaging.door import Done


class SettingsView(msgspec.Struct, frozen=True):
    """A user's settings."""

    user_id: UUID
    timezone: str
    alerts_enabled: bool
    min_score: float
    min_premium_usd: Decimal
    investing_style: InvestingStyle | None


class UserView(msgspec.Struct, frozen=True):
    """A user, as they see themselves."""

    id: UUID
    email: str
    role: str


class SignedUp(msgspec.Struct, frozen=True):
    """A new user and the id of their first key; the key itself is derived when it is shown."""

    user: UserView
    key_id: UUID


class Onboarded(msgspec.Struct, frozen=True):
    """How a user invests, and which stocks were added to their watchlist."""

    user_id: UUID
    investing_style: str
    added: Sequence[str]


class Users:
    """Use cases on users."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def sign_up(
        self, tx: Tx, by: By, email: str, *, role: Role = "user", external_id: str | None = None
    ) -> Done[SignedUp]:
        """Add a user and their first API key; raises Conflict when the address is taken."""
        user_id, key_id = by.new_id(), by.new_id()
        address = normal_email(email)
        if not await store.add_user(tx, id=user_id, email=address, external_id=external_id, role=role, now=by.now):
            raise Conflict("somebody has signed up with this address already")
        await self._keys.add(tx, user_id=user_id, key_id=key_id, name="first", role=role, now=by.now)
        first = _settings((await store.settings(tx, [user_id]))[0])
        told: list[Event] = [
            UserSignedUp(id=by.new_id(), time=by.now, user_id=user_id, email=address, role=role),
            _told(by, user_id, first),
            by.audit("sign_up.user", f"user/{user_id}", role=role),
            by.audit("add.key", f"key/{key_id}", user_id=str(user_id), role=role),
        ]
        return Done(SignedUp(UserView(user_id, address, role), key_id), told)

    async def onboard(
        self, tx: Tx, by: By, user_id: UUID, style: InvestingStyle, symbols: Sequence[str]
    ) -> Done[Onboarded]:
        """Record how a user invests and watch their first stocks. Doing it again changes the style and adds more."""
        if await store.lock_user(tx, user_id) is None:
            raise NotFound("there is no such user")
        await store.onboard(tx, user_id, style, by.now)
        added = await store.watch(tx, user_id, list(dict.fromkeys(symbols)), by.now)
        if await store.count_watched(tx, user_id) > MAX_WATCHED:
            raise Conflict(f"a watchlist holds at most {MAX_WATCHED} stocks")
        now = _settings((await store.settings(tx, [user_id]))[0])
        told: list[Event] = [
            UserOnboarded(id=by.new_id(), time=by.now, user_id=user_id, investing_style=style),
            _told(by, user_id, now),
        ]
        told += [
            StockAdded(id=by.new_id(), time=by.now, user_id=user_id, symbol=symbol, alerts_enabled=alerts)
            for symbol, alerts in added.items()
        ]
        told.append(by.audit("onboard.user", f"user/{user_id}", investing_style=style, added=list(added)))
        return Done(Onboarded(user_id, style, list(added)), told)

    async def settings(self, tx: Tx, user_ids: Sequence[UUID]) -> dict[UUID, bytes]:
        """Return the settings of several users at once, as JSON."""
        rows = await store.settings(tx, user_ids)
        return {row["user_id"]: msgspec.json.encode(_settings(row)) for row in rows}

    async def change_settings(self, tx: Tx, by: By, user_id: UUID, changes: dict[str, Any]) -> Done[SettingsView]:
        """Change some settings; return all of them."""
        row = await store.change_settings(tx, user_id, changes, by.now)
        if row is None:
            raise NotFound("there is no such user")
        view = _settings(row)
        if not changes:
            return Done(view)
        shown = {name: str(value) for name, value in changes.items()}
        return Done(view, [_told(by, user_id, view), by.audit("change.settings", f"user/{user_id}", **shown)])


def _told(by: By, user_id: UUID, view: SettingsView) -> UserSettingsChanged:
    return UserSettingsChanged(
        id=by.new_id(),
        time=by.now,
        user_id=user_id,
        timezone=view.timezone,
        alerts_enabled=view.alerts_enabled,
        min_score=view.min_score,
        min_premium_usd=view.min_premium_usd,
        investing_style=view.investing_style,
    )


def show_sign_up(show_key: Callable[[UUID], str]) -> Callable[[Any], Any]:
    """Return what turns the stored answer of a sign-up into the one that shows the key."""

    def show(value: Any) -> Any:
        stored = cast("dict[str, Any]", value)
        return {"user": stored["user"], "api_key": show_key(UUID(stored["key_id"])), "key_id": stored["key_id"]}

    return show


def _settings(row: Row) -> SettingsView:
    return SettingsView(*row.values())
