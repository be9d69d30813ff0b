"""Subscriptions, whoever takes the money: the one place where they change, and where that is told."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from services.payment.domain.subscriptions import OVER, State, entitled_until, entitlements
from services.payment.service.catalogue import Catalogue
from services.payment.store.subscriptions import SubscriptionStore, state_of
from shared.clock import Clock, NewId
from shared.contracts.base import Event
from shared.contracts.payment import SubscriptionChanged
from shared.db import Row, Tx
from shared.errors import Conflict, NotFound

LAPSED_AT_ONCE: Final = 500
LAPSES_WITHIN: Final = timedelta(minutes=5)


class AlreadySubscribed(Conflict):
    """You have a subscription already: change or cancel that one."""

    code = "ALREADY_SUBSCRIBED"


class Subscriptions:
    """Takes a transaction, returns what happened."""

    def __init__(self, store: SubscriptionStore, catalogue: Catalogue, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._new_id = new_id

    async def become(self, tx: Tx, user_id: UUID, state: State, subscription_id: UUID | None = None) -> list[Event]:
        """Make the subscription what its provider says it is; the user must be locked.

        It is found by its provider's id, or by `subscription_id` where nobody else knows it; one that is not found is
        new, and kept even if it is over by now: its provider knows it. Raises AlreadySubscribed when the user has
        another that is not over.
        """
        now = self._clock()
        row = await self._find(tx, user_id, state, subscription_id)
        other = await self._store.open(tx, user_id)
        if state.status not in OVER and other is not None and (row is None or other["id"] != row["id"]):
            raise AlreadySubscribed
        if row is None:
            if state.status in OVER and state.provider_id is None:
                return []
            subscription_id = subscription_id or self._new_id()
            await self._store.add(tx, subscription_id, user_id, state, now)
        else:
            subscription_id = UUID(str(row["id"]))
            if state != state_of(row):
                await self._store.change(tx, subscription_id, state, now)
        return await self._tell(tx, subscription_id, user_id, state, now)

    async def shown(self, tx: Tx, user_id: UUID) -> dict[str, Any]:
        """Return the user's subscription as it is now: the one that is not over, else the last. Raises NotFound."""
        row = await self._store.latest(tx, user_id)
        if row is None:
            raise NotFound("you have no subscription")
        state = await self._allowed(tx, user_id, state_of(row))
        allowed = entitlements(state, await self._catalogue.get(tx, state.plan), self._clock())
        return dict(row) | {"status": state.status, "entitlements": allowed, "entitled_until": entitled_until(state)}

    async def review(self, tx: Tx, user_id: UUID) -> list[Event]:
        """Tell what a user may use if that has changed by something else; the user must be locked."""
        events: list[Event] = []
        for row in await self._store.telling_of(tx, user_id):
            events += await self._tell(tx, row["id"], user_id, state_of(row), self._clock())
        return events

    async def told_wrong(self, tx: Tx, row: Row) -> bool:
        """Whether what was told of a subscription is not what follows from its state.

        What has ended by the clock alone within LAPSES_WITHIN is not wrong yet: a job tells it each minute.
        """
        now = self._clock()
        state = await self._allowed(tx, row["user_id"], state_of(row))
        told: Sequence[str] = (row["told"] or {}).get("entitlements", ())
        until = entitled_until(state)
        if until is not None and now - LAPSES_WITHIN < until <= now:
            return False
        return tuple(told) != entitlements(state, await self._catalogue.get(tx, state.plan), now)

    async def lapse(self, tx: Tx) -> list[Event]:
        """Tell of subscriptions whose access has ended by the clock alone."""
        events: list[Event] = []
        for row in await self._store.lapsed(tx, self._clock(), LAPSED_AT_ONCE):
            await self._store.lock_user(tx, row["user_id"])
            events += await self.review(tx, row["user_id"])  # what was read before the lock may be of yesterday
        return events

    async def _find(self, tx: Tx, user_id: UUID, state: State, subscription_id: UUID | None) -> Row | None:
        if state.provider_id is not None:
            return await self._store.of_provider(tx, state.provider, state.provider_id)
        row = await self._store.open(tx, user_id)
        return row if row is not None and row["id"] == subscription_id else None

    async def _allowed(self, tx: Tx, user_id: UUID, state: State) -> State:
        """Return the state as it counts: paused while a refund or a dispute holds back what was paid for."""
        if state.status in OVER or not await self._store.held(tx, user_id, state):
            return state
        return replace(state, status="paused")

    async def _tell(self, tx: Tx, subscription_id: UUID, user_id: UUID, state: State, now: datetime) -> list[Event]:
        state = await self._allowed(tx, user_id, state)
        changed = SubscriptionChanged(
            id=subscription_id,
            time=now,
            user_id=user_id,
            subscription_id=subscription_id,
            version=0,
            provider=state.provider,
            plan=state.plan,
            status=state.status,
            entitlements=entitlements(state, await self._catalogue.get(tx, state.plan), now),
            entitled_until=entitled_until(state),
            current_period_end=state.period_end,
            cancel_at_period_end=state.cancel_at_period_end,
        )
        version = await self._store.tell(tx, subscription_id, changed.model_dump(mode="json"))
        if version is None:
            return []
        return [changed.model_copy(update={"id": uuid5(subscription_id, f"version/{version}"), "version": version})]


async def once(store: SubscriptionStore, tx: Tx, name: str, at: datetime, event: Event) -> Sequence[Event]:
    """Return the event when nobody has been told of `name` yet."""
    return [event] if await store.first_notice(tx, name, at) else []
