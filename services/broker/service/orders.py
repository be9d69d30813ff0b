"""What becomes of an order: reports go through the rules, and what follows is stored and told in one transaction."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from services.broker.domain import shapes
from services.broker.domain.checks import Refusal
from services.broker.domain.lifecycle import Step, apply, average_price, filled, fills, is_whole
from services.broker.domain.orders import (
    OVER,
    Anomaly,
    Fact,
    Fill,
    FillBooked,
    FillWithdrawn,
    IllegalTransition,
    Order,
    Report,
)
from services.broker.ports import Account
from services.broker.service.books import Books
from services.broker.store.orders import Flag, OrderStore, Stored
from shared.clock import Clock, NewId
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event, derived_id
from shared.contracts.broker import OrderChanged, OrderFilled, OrderFlagged, OrderRejected
from shared.db import Tx

SYSTEM: Final = "system"


class Orders:
    """Changes orders. Whoever calls has locked the order's row."""

    def __init__(self, store: OrderStore, books: Books, *, clock: Clock, new_id: NewId) -> None:
        self.store = store
        self._books = books
        self._clock = clock
        self._new_id = new_id
        self.wake: Callable[[], None] = _nothing

    async def report(
        self, tx: Tx, account: Account, stored: Stored, report: Report, *, reserved: Decimal | None = None
    ) -> tuple[Order, Sequence[Event]]:
        """Take a report in; return the order as it is then, and what happened. For `reserved`, see the store's save."""
        orders, events = await self.reports(tx, account, [(stored, report)], reserved=reserved)
        return orders[stored.order.id], events

    async def reports(
        self,
        tx: Tx,
        account: Account,
        told: Sequence[tuple[Stored, Report]],
        *,
        reserved: Decimal | None = None,
    ) -> tuple[dict[UUID, Order], Sequence[Event]]:
        """Take a report of each of several orders in; return the orders as they are then, and what happened."""
        steps = [(stored, report, apply(stored.order, report)) for stored, report in told]
        after = {step.order.id: step.order for _, _, step in steps}
        changed = [step.order for stored, _, step in steps if step.order != stored.order]
        versions = await self.store.save(tx, changed, self._clock(), reserved)
        events: list[Event] = []
        for stored, report, step in steps:
            if step.order != stored.order or step.facts:
                version = versions.get(step.order.id, stored.row["version"])
                events += await self._follow(tx, account, stored, report, step, version)
        facts = [fact for _, _, step in steps for fact in step.facts]
        booked = [fact.fill for fact in facts if isinstance(fact, FillBooked)]
        withdrawn = [fact.fill for fact in facts if isinstance(fact, FillWithdrawn)]
        if booked or withdrawn:
            events += await self._books.book(tx, account, booked, withdrawn)
        return after, events

    async def _follow(  # noqa: PLR0917 - all of one step
        self, tx: Tx, account: Account, stored: Stored, report: Report, step: Step, version: int
    ) -> list[Event]:
        """Do what follows from a step besides the fills, and return what it tells."""
        order, facts = step.order, step.facts
        anomalies = {fact.code for fact in facts if isinstance(fact, Anomaly)}
        booked = [fact.fill for fact in facts if isinstance(fact, FillBooked)]
        withdrawn = [fact.fill for fact in facts if isinstance(fact, FillWithdrawn)]
        if "STILL_WORKS" in anomalies or (order.state == "pending_cancel" and stored.order.state != "pending_cancel"):
            await self.store.send(tx, self._new_id(), order.id, "cancel", self._clock())
            tx.after_commit(self.wake)
        if "FILLS_MISSING" in anomalies or (not report.looked_up and any(fill.provisional for fill in booked)):
            await self.store.send(tx, self._new_id(), order.id, "look_up", self._clock())
            tx.after_commit(self.wake)
        if order.state == "canceled" and not order.submits:
            await self.store.unsend(tx, order.id)
        events: list[Event] = []
        if _shows(stored.order, order):
            events.append(self._changed(account, order, version, stored.row["parent"]))
        told = _to_tell(stored.order, order, booked, withdrawn)
        events += [self._filled(account, order, fill) for fill in told]
        events += [event for fact in facts for event in await self._flagged(tx, account, order, fact)]
        if order.state == "rejected" and stored.order.state != "rejected" and report.kind == "rejected":
            refusals = [Refusal("VENUE_REJECTED", order.reason or "no reason")]
            await self.store.refused(tx, order.id, [{"code": one.code, "message": one.message} for one in refusals])
            events += self.refusal(account, order.id, refusals)
        return events

    async def refuse(self, tx: Tx, account: Account, stored: Stored, refusals: Sequence[Refusal]) -> Sequence[Event]:
        """End an order that was not sent, for these reasons; nothing where it is not waiting to be sent any more."""
        if stored.order.state != "new":
            return ()
        reason = "; ".join(f"{one.code}: {one.message}" for one in refusals)
        _, events = await self.report(tx, account, stored, Report("refused", reason=reason))
        await self.store.refused(tx, stored.order.id, [{"code": one.code, "message": one.message} for one in refusals])
        return [*events, *self.refusal(account, stored.order.id, refusals)]

    def refusal(
        self, account: Account, order_id: UUID, refusals: Sequence[Refusal], named: UUID | None = None
    ) -> list[Event]:
        """Return what tells that an order does not go out, to its user and to the auditor.

        `named` is the account that was asked for, where that is not the asker's.
        """
        codes = ",".join(one.code for one in refusals)
        audited = self.audited(account.user_id, "refuse.order", order_id, codes=codes, account=str(named or account.id))
        return [self._rejected(account, order_id, refusals), audited]

    def audited(self, user_id: UUID | None, action: str, subject: object, **details: Any) -> Event:
        """Return what the auditor hears; nobody stands for the system itself."""
        now = self._clock()
        return ActionAudited(
            id=self._new_id(),
            time=now,
            service="broker",
            actor=SYSTEM if user_id is None else str(user_id),
            request_id=None,
            action=action,
            subject=str(subject),
            at=now,
            details=details,
        )

    async def flag(self, tx: Tx, account: Account, order_id: UUID, code: str, message: str) -> list[Event]:
        """Keep what a person should look at; return what tells of it, once for the same words."""
        flag_id = derived_id(order_id, f"{code}/{message}")
        new = await self.store.flag(tx, Flag(flag_id, account.id, order_id, code, message, self._clock()))
        return [OrderFlagged(**self._about(account, order_id), code=code, message=message)] if new else []

    # --- what is told ---------------------------------------------------------------------------

    def _about(self, account: Account, order_id: UUID) -> dict[str, Any]:
        return {
            "id": self._new_id(),
            "time": self._clock(),
            "account_id": account.id,
            "user_id": account.user_id,
            "order_id": order_id,
            "venue": account.venue,
            "mode": account.mode,
        }

    def _changed(self, account: Account, order: Order, version: int, parent: UUID | None) -> OrderChanged:
        return OrderChanged(
            **self._about(account, order.id),
            version=version,
            state=order.state,
            terms=shapes.to_contract(order.terms),
            filled=filled(order),
            parent=parent,
            venue_order_id=order.venue_order_id,
            replaces=order.replaces,
            replaced_by=order.replaced_by,
            reason=order.reason,
        )

    def _rejected(self, account: Account, order_id: UUID, refusals: Sequence[Refusal]) -> OrderRejected:
        return OrderRejected(
            **self._about(account, order_id),
            codes=tuple(one.code for one in refusals),
            reasons=tuple(one.message for one in refusals),
        )

    def _filled(self, account: Account, order: Order, fill: Fill) -> OrderFilled:
        so_far, average = average_price(order, fill.instrument.key)
        return OrderFilled(
            **self._about(account, order.id),
            fill_id=fill.id,
            symbol=fill.instrument.key,
            side=fill.side,
            quantity=fill.quantity,
            price=fill.price,
            fee=fill.fee,
            at=fill.at,
            whole=is_whole(order),
            filled=so_far,
            average_price=average,
        )

    async def _flagged(self, tx: Tx, account: Account, order: Order, fact: Fact) -> list[Event]:
        """Keep and tell what a person should look at, once, though the venue goes on telling it."""
        if not isinstance(fact, (Anomaly, IllegalTransition)):
            return []
        code = fact.code if isinstance(fact, Anomaly) else "ILLEGAL_TRANSITION"
        return await self.flag(tx, account, order.id, code, fact.message)


def _to_tell(before: Order, after: Order, booked: Sequence[Fill], withdrawn: Sequence[Fill]) -> list[Fill]:
    """Return the fills to tell: executions as they come, and when the order ends what only a total stands for.

    What comes of its executions afterwards was told with that total. What stands in the place of a busted one is told.
    """
    if before.state in OVER:
        return [] if any(one.provisional for one in withdrawn) else list(booked)
    ended = fills(after) if after.state in OVER else ()
    return [*(one for one in booked if not one.provisional), *(one for one in ended if one.provisional)]


def _shows(before: Order, after: Order) -> bool:
    """Whether others should hear of the difference."""
    return (before.state, filled(before), before.replaced_by, before.venue_order_id) != (
        after.state,
        filled(after),
        after.replaced_by,
        after.venue_order_id,
    )


def _nothing() -> None:
    """Nobody sends yet; the worker's poll finds what is to be sent."""
