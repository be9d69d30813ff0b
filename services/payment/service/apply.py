"""What follows from Stripe's subscriptions, customers and checkout sessions. Everything else is mirrored only."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from services.payment.domain.stripe import Object, customer_of, reference, state_of, subscription_of, user_named
from services.payment.domain.subscriptions import OVER, State
from services.payment.service.catalogue import Catalogue
from services.payment.service.refresh import Appliers, Refresh
from services.payment.service.subscriptions import AlreadySubscribed, Subscriptions
from services.payment.store.customers import CustomerStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import NotYet

SECOND: Final = Counter(
    "openbell_payment_second_subscriptions_total", "Times that a user's second open subscription was set aside"
)
STRANGERS: Final = Counter(
    "openbell_payment_strangers_total", "Times that an object of nobody we know was put off", ["kind"]
)


class Apply:
    """The appliers of subscriptions, customers and checkout sessions."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        store: SubscriptionStore,
        customers: CustomerStore,
        mirror: MirrorStore,
        refresh: Refresh,
        *,
        catalogue: Catalogue,
        grace: timedelta,
        clock: Clock,
    ) -> None:
        self._subscriptions = subscriptions
        self._store = store
        self._customers = customers
        self._mirror = mirror
        self._refresh = refresh
        self._catalogue = catalogue
        self._grace = grace
        self._clock = clock

    def register(self, appliers: Appliers) -> None:
        """Name them in the table."""
        appliers.on("subscription", self.subscription)
        appliers.on("customer", self.customer)
        appliers.on("checkout.session", self.session)
        appliers.on("invoice", self.invoice)

    async def subscription(self, tx: Tx, told: Object | None, object_id: str) -> list[Event]:
        """Make the user's subscription what Stripe says. Raises NotYet while nobody knows the customer.

        A user's second open one is set aside, counted and audited; it is taken when nothing is in its way any more.
        """
        if told is None:
            return await self._gone(tx, object_id)
        now = self._clock()
        await self._catalogue.learn(tx, told, now)
        state = state_of(told, await self._catalogue.plans(tx), self._grace, now)
        user_id = await self.owner(tx, "subscription", told, object_id)
        if user_id is None:
            if state is None or state.status in OVER:
                return []
            STRANGERS.labels("subscription").inc()
            raise NotYet("a subscription of a customer whom nobody knows")
        await self._mirror.belongs(tx, "subscription", object_id, user_id)
        if state is None:
            return []
        await self._want_invoice(tx, reference(told.get("latest_invoice")))
        await self._store.lock_user(tx, user_id)
        if told["status"] == "incomplete_expired" and await self._store.of_provider(tx, "stripe", object_id) is None:
            return []  # nobody ever paid: it never began
        return await self._become(tx, user_id, state, object_id)

    async def customer(self, tx: Tx, told: Object | None, object_id: str) -> list[Event]:
        """Link the customer to the user whom it names; a deleted one is no user's any more."""
        if told is None:
            await self._customers.unlink(tx, object_id)
            return []
        user_id = user_named(told)
        if user_id is None:
            return []
        linked = await self._customers.adopt(tx, user_id, object_id)
        if linked is None:  # not a user yet
            STRANGERS.labels("customer").inc()
            raise NotYet("a customer that names a user whom nobody knows")
        await self._mirror.belongs(tx, "customer", object_id, user_id)
        if linked != object_id:
            return await self._refresh.audit(tx, "set_aside.customer", object_id, user_id=str(user_id), kept=linked)
        return []

    async def invoice(self, tx: Tx, told: Object | None, object_id: str) -> list[Event]:
        """Ask for the subscription that waits for a payment when an invoice waits no more: its grace may be another."""
        del object_id
        if told is None or told.get("status") == "open":
            return []
        subscription = subscription_of(told)
        row = await self._store.of_provider(tx, "stripe", subscription) if subscription is not None else None
        if row is not None and row["status"] == "past_due":
            await self._refresh.want(tx, [("subscription", row["provider_id"])])
        return []

    async def session(self, tx: Tx, told: Object | None, object_id: str) -> list[Event]:
        """Ask for what a finished checkout has made."""
        if told is None or told.get("status") != "complete":
            return []
        user_id = await self.owner(tx, "checkout.session", told, object_id)
        if user_id is not None:
            await self._mirror.belongs(tx, "checkout.session", object_id, user_id)
        made = [(kind, reference(told.get(kind))) for kind in ("subscription", "invoice", "payment_intent", "customer")]
        await self._refresh.want(tx, [(kind, made_id) for kind, made_id in made if made_id is not None])
        return []

    async def owner(self, tx: Tx, kind: str, told: Object, object_id: str) -> UUID | None:
        """Return whose an object is: as known before, its customer's user, or the user whom it names."""
        known = await self._mirror.get(tx, kind, object_id)
        if known is not None and known["user_id"] is not None:
            return UUID(str(known["user_id"]))
        customer = customer_of(told)
        if customer is not None and (row := await self._customers.of_stripe(tx, customer)) is not None:
            return UUID(str(row["user_id"]))
        named = user_named(told)
        if named is not None and await self._customers.get(tx, named) is not None:
            if customer is not None:
                await self._customers.adopt(tx, named, customer)
            return named
        return None

    async def _become(self, tx: Tx, user_id: UUID, state: State, object_id: str) -> list[Event]:
        try:
            events = await self._subscriptions.become(tx, user_id, state)
        except AlreadySubscribed:
            tx.after_commit(SECOND.inc)
            return await self._refresh.audit(tx, "set_aside.subscription", object_id, user_id=str(user_id))
        if state.status in OVER:
            waiting = await self._mirror.waiting(tx, user_id)
            await self._refresh.want(tx, [("subscription", one) for one in waiting if one != object_id])
        return events

    async def _want_invoice(self, tx: Tx, invoice: str | None) -> None:
        """Ask for the latest invoice where it is not known: it says what a refund or a dispute of its payment holds."""
        if invoice is not None and invoice not in await self._mirror.bodies(tx, "invoice", [invoice]):
            await self._refresh.want(tx, [("invoice", invoice)])

    async def _gone(self, tx: Tx, object_id: str) -> list[Event]:
        """Cancel a subscription that Stripe knows no more."""
        row = await self._store.of_provider(tx, "stripe", object_id)
        if row is None or row["status"] in OVER:
            return []
        user_id = UUID(str(row["user_id"]))
        await self._store.lock_user(tx, user_id)
        over = State("stripe", object_id, row["plan"], "canceled", row["current_period_start"])
        return await self._become(tx, user_id, over, object_id)
