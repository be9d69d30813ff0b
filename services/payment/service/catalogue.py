"""All plans: those of the settings, and those that Stripe's prices name, as we know these prices at the moment.

Nothing is kept beside the mirror of Stripe's objects, so a plan follows what webhooks and the sweep tell of its price
and its product. Coins and administrators know the plans of the settings alone.
"""

from datetime import datetime

from services.payment.domain.plans import Plan, Plans, Priced, names_plan, priced
from services.payment.domain.stripe import Object
from services.payment.service.refresh import Refresh
from services.payment.store.mirror import MirrorStore
from shared.contracts.base import Event
from shared.db import Row, Tx


class Catalogue:
    """Knows the plans of the settings by itself, and asks the database for others."""

    def __init__(self, settings: Plans, mirror: MirrorStore) -> None:
        self.settings = settings
        self._mirror = mirror

    async def plans(self, tx: Tx) -> Plans:
        """Return all plans."""
        rows = await self._mirror.plan_prices(tx)
        return self.settings.beside(found for row in rows if (found := _priced(row)) is not None)

    async def get(self, tx: Tx, name: str) -> Plan | None:
        """Return a plan by its name."""
        return self.settings.get(name) or (await self.plans(tx)).get(name)

    async def named(self, tx: Tx, name: str) -> Plan:
        """Return a plan by its name. Raises NotFound."""
        return self.settings.get(name) or (await self.plans(tx)).named(name)

    async def learn(self, tx: Tx, subscription: Object, now: datetime) -> None:
        """Note prices that name a plan and come with a subscription before anybody has told of them."""
        for item in (subscription.get("items") or {}).get("data") or ():
            price = item.get("price") or {}
            if names_plan(price) and await self._mirror.get(tx, "price", price["id"]) is None:
                await self._mirror.put(tx, "price", price["id"], price, now)


class PriceChanges:
    """Applies prices that name a plan: who has the plan is told what it allows now."""

    def __init__(self, mirror: MirrorStore, refresh: Refresh) -> None:
        self._mirror = mirror
        self._refresh = refresh

    async def price(self, tx: Tx, told: Object | None, object_id: str) -> list[Event]:
        """Have the subscriptions at this price fetched again; tell the auditor of one that cannot be a plan."""
        if told is None or not names_plan(told):
            return []
        try:
            priced(told, None, active=False)
        except ValueError as error:
            return await self._refresh.audit(tx, "refuse.stripe_plan", object_id, why=str(error))
        having = await self._mirror.at_price(tx, object_id)
        await self._refresh.want(tx, [("subscription", one) for one in having])
        return []


def _priced(row: Row) -> Priced | None:
    try:
        return priced(row["price"], row["title"], active=row["active"])
    except ValueError:
        return None  # the auditor was told when the price came
