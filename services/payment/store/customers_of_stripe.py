"""Who a customer of Stripe's is."""

from typing import Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Tx

_USER: Final = text("select user_id from customers where stripe_id = :stripe_id")
_EXISTS: Final = text("select true from customers where user_id = :user_id")
_LINK: Final = text("""
    update customers set stripe_id = :stripe_id where user_id = :user_id and stripe_id is null
        and not exists (select from customers where stripe_id = :stripe_id)""")
_LINKED: Final = text("select coalesce(stripe_id, '') from customers where user_id = :user_id")
_UNLINK: Final = text("update customers set stripe_id = null where stripe_id = :stripe_id")


class StripeCustomers:
    """Reads and writes `customers.stripe_id`."""

    async def user_of(self, tx: Tx, stripe_id: str) -> UUID | None:
        """Return whose a customer is."""
        return await tx.fetchval(_USER, stripe_id=stripe_id)

    async def exists(self, tx: Tx, user_id: UUID) -> bool:
        """Whether we know the user."""
        return bool(await tx.fetchval(_EXISTS, user_id=user_id))

    async def link(self, tx: Tx, user_id: UUID, stripe_id: str) -> str | None:
        """Make the customer the user's one, if they have none; return the one they have, None for no such user."""
        await tx.execute(_LINK, user_id=user_id, stripe_id=stripe_id)
        return await tx.fetchval(_LINKED, user_id=user_id)

    async def unlink(self, tx: Tx, stripe_id: str) -> None:
        """Make the customer nobody's."""
        await tx.execute(_UNLINK, stripe_id=stripe_id)
