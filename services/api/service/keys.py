"""API keys: adding, listing, ending, and the one place where a key is shown."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import msgspec

from services.api import store
from services.api.domain import KeyParts, derive_secret, format_key
from services.api.service.by import By
from shared.contracts.api import Role
from shared.db import Tx
from shared.errors import Forbidden, NotFound
from shared.identity import Identity
from shared.messaging.door import Done


class KeyView(msgspec.Struct, frozen=True):
    """A key without its secret."""

    id: UUID
    name: str
    role: str
    created_at: datetime


class Keys:
    """Use cases on API keys. `forget` drops what this process remembers of a key that has ended."""

    def __init__(self, server_secret: str, forget: Callable[[UUID], None]) -> None:
        self._server_secret = server_secret
        self._forget = forget

    def show(self, key_id: UUID) -> str:
        """Return the key itself."""
        return format_key(key_id, derive_secret(self._server_secret, key_id))

    def show_added(self, value: Any) -> Any:
        """Turn the stored answer of `create` into the one that shows the key."""
        stored = cast("dict[str, Any]", value)
        return {**stored, "api_key": self.show(UUID(stored["id"]))}

    async def add(self, tx: Tx, *, user_id: UUID, key_id: UUID, name: str, role: Role, now: datetime) -> None:
        """Store a key's digest."""
        digest = KeyParts(key_id, derive_secret(self._server_secret, key_id)).digest
        await store.add_key(tx, id=key_id, user_id=user_id, name=name, role=role, digest=digest, now=now)

    async def create(self, tx: Tx, by: By, caller: Identity, user_id: UUID, *, name: str, role: Role) -> Done[KeyView]:
        """Add a key. Its role is at most the user's and the caller's; raises Forbidden, NotFound."""
        user = await store.lock_user(tx, user_id)
        if user is None:
            raise NotFound("there is no such user")
        if role == "admin" and not (user["role"] == "admin" and caller.is_admin):
            raise Forbidden("only an administrator makes a key with this role, and only for an administrator")
        key_id = by.new_id()
        await self.add(tx, user_id=user_id, key_id=key_id, name=name, role=role, now=by.now)
        told = by.audit("add.key", f"key/{key_id}", user_id=str(user_id), role=role, name=name)
        return Done(KeyView(key_id, name, role, by.now), [told])

    async def list(self, tx: Tx, user_id: UUID) -> list[KeyView]:
        """Return the user's live keys."""
        return [KeyView(*row.values()) for row in await store.keys(tx, user_id)]

    async def delete(self, tx: Tx, by: By, user_id: UUID, key_id: UUID) -> Done[None]:
        """End a key; raises NotFound."""
        if not await store.delete_key(tx, user_id, key_id, by.now):
            raise NotFound("there is no such key")
        tx.after_commit(lambda: self._forget(key_id))
        return Done(None, [by.audit("delete.key", f"key/{key_id}", user_id=str(user_id))])
