"""Users as payment knows them: their address, and who they are at Stripe."""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

_GET: Final = text("select * from customers where user_id = :user_id")
_OF_STRIPE: Final = text("select * from customers where stripe_id = :stripe_id")
_KNOW: Final = text("""
    insert into customers (user_id, email, created_at) values (:user_id, cast(:email as text), :at)
    on conflict (user_id) do update set email = coalesce(excluded.email, customers.email)""")
_LINK: Final = text("""
    update customers set stripe_id = :stripe_id, told_email = cast(:email as text)
    where user_id = :user_id and stripe_id is null
        and not exists (select from customers where stripe_id = :stripe_id)""")
_ADOPT: Final = text("""
    update customers set stripe_id = :stripe_id where user_id = :user_id and stripe_id is null
        and not exists (select from customers where stripe_id = :stripe_id)""")
_UNLINK: Final = text("update customers set stripe_id = null, told_email = null where stripe_id = :stripe_id")
_TOLD: Final = text("""
    update customers set told_email = :email where user_id = :user_id and stripe_id = :stripe_id""")
_GONE: Final = text("""
    update customers set stripe_id = null, told_email = null where user_id = :user_id and stripe_id = :stripe_id""")
_PAGE: Final = text("""
    select * from customers where user_id > :after order by user_id limit :most""")


class CustomerStore:
    """Reads and writes customers."""

    async def get(self, tx: Tx, user_id: UUID) -> Row | None:
        """Return a user."""
        return await tx.fetchrow(_GET, user_id=user_id)

    async def of_stripe(self, tx: Tx, stripe_id: str) -> Row | None:
        """Return who a customer of Stripe's is."""
        return await tx.fetchrow(_OF_STRIPE, stripe_id=stripe_id)

    async def know(self, tx: Tx, user_id: UUID, email: str | None, at: datetime) -> None:
        """Note a user, and their address where it is known."""
        await tx.execute(_KNOW, user_id=user_id, email=email, at=at)

    async def link(self, tx: Tx, user_id: UUID, stripe_id: str, email: str | None) -> bool:
        """Note who a user is at Stripe, with the address that Stripe has; False when either is taken."""
        return bool(await tx.execute(_LINK, user_id=user_id, stripe_id=stripe_id, email=email))

    async def adopt(self, tx: Tx, user_id: UUID, stripe_id: str) -> str | None:
        """Make a customer that Stripe tells of the user's, if they have none.

        Return the one they have, '' for none, None for no such user.
        """
        await tx.execute(_ADOPT, user_id=user_id, stripe_id=stripe_id)
        row = await self.get(tx, user_id)
        return (row["stripe_id"] or "") if row is not None else None

    async def unlink(self, tx: Tx, stripe_id: str) -> None:
        """Make the customer nobody's."""
        await tx.execute(_UNLINK, stripe_id=stripe_id)

    async def told(self, tx: Tx, user_id: UUID, stripe_id: str, email: str) -> None:
        """Note the address that Stripe has."""
        await tx.execute(_TOLD, user_id=user_id, stripe_id=stripe_id, email=email)

    async def gone(self, tx: Tx, user_id: UUID, stripe_id: str) -> bool:
        """Forget who a user was at Stripe; False when they are somebody else by now."""
        return bool(await tx.execute(_GONE, user_id=user_id, stripe_id=stripe_id))

    async def page(self, tx: Tx, after: UUID, most: int) -> list[Row]:
        """Return the users behind `after`, in order."""
        return await tx.fetch(_PAGE, after=after, most=most)
