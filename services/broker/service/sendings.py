"""What is said to venues: a claimed row for each order and wish, one at a time for an order.

    submit    checked right before it goes; while its outcome is unknown it is looked up, never just repeated
    replace   the same, for an order that takes the place of another one
    cancel    may be repeated
    look_up   asks how an order stands

A venue that asks to be left alone is, by all of the account's orders.

Whoever stalls so long that another worker takes the row over changes nothing more (`_ours`).

What would surprise you: a venue that does not refuse an id that it has seen gets no order twice. Where a look-up finds
nothing there for a minute, the order is over, and should it turn up after all, its fills count and are flagged.
"""

from collections.abc import Awaitable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.broker.domain.checks import Refusal
from services.broker.domain.exits import sent_as
from services.broker.domain.orders import OVER, ZERO, Order, Report
from services.broker.domain.shapes import resized
from services.broker.ports import Account, VenueRefused
from services.broker.service.asking import Asking, Follow, Told
from services.broker.service.checking import LATE, Checking, late
from services.broker.service.exits import Exits, exit_id
from services.broker.service.orders import Orders
from services.broker.service.venues import NoSuchVenue, Venues
from services.broker.store.accounts import AccountStore
from services.broker.store.orders import Stored, rest
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import Permanent, Transient
from shared.messaging.door import Done, Door
from shared.work import OutcomeUnknown, Performed, Policy, Settled, Started, Work, one_by_one

LEASE: Final = timedelta(seconds=15)
UNSEEN: Final = timedelta(seconds=60)
"""So long a venue that takes an id twice is asked for an order that it may have got."""
UNSEEN_ORDER: Final = Refusal("NOT_SENT", "the venue has not seen the order, and it is not sent twice: place it anew")
BARE: Final = "its position stays open, and other orders of it were canceled for this one: protect it anew, or close it"


class NotSent(Permanent):
    """The order was refused, or canceled before it was sent."""

    code = "NOT_SENT"


class Sendings:
    """Says to venues what is to be said."""

    def __init__(
        self,
        orders: Orders,
        accounts: AccountStore,
        checking: Checking,
        venues: Venues,
        *,
        door: Door,
        clock: Clock,
        follow: Follow,
        exits: Exits,
    ) -> None:
        self._orders = orders
        self._store = orders.store
        self._accounts = accounts
        self._checking = checking
        self._venues = venues
        self._door = door
        self._clock = clock
        self._asking = Asking(self._store, accounts, venues, door=door, clock=clock, follow=follow)
        self._exits = exits
        self._judged: dict[UUID, Stored] = {}  # by the sending, what is about to be sent

    def work(self, concurrency: int) -> Work:
        """Return the work."""
        return Work(
            kind="venue",
            table="sendings",
            pauses="account_id",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="look_up",
            look_up=self.look_up,
            settled=one_by_one(self.settled),
            policy=Policy(
                concurrency=concurrency,
                lease_s=LEASE.total_seconds(),
                linger_s=0.002,
                base_s=0.25,
                cap_s=30.0,
                max_attempts=10_000,
                max_age_s=timedelta(days=2).total_seconds(),
            ),
        )

    # --- before it goes ---------------------------------------------------------------------------

    async def prepare(self, row: Row) -> Row | Started:
        """Judge an order right before it goes, and start it. Raises NotSent for one that must not go."""
        kind: str = row["kind"]
        self._judged.pop(row["id"], None)
        stored, account = await self._read(row["order_id"])
        if kind in {"cancel", "look_up"}:
            arrived_late = kind == "cancel" and stored.order.state in {"canceled", "rejected"}
            if stored.order.state in OVER and not arrived_late:
                raise NotSent(f"the order is {stored.order.state}")
            return row
        if stored.order.state == "pending_submit" and not row["uncertain"]:
            # It was judged, and the process died before it went.
            await self._told(row, account, Report("not_sent"))
        elif stored.order.state == "new" and late(stored, self._clock()):  # whether or not its venue answers
            await self._refuse(row, [LATE])
            raise NotSent(LATE.message)
        try:
            told = await self._asking.of(account, stored)
        except (VenueRefused, NoSuchVenue) as error:
            await self._refuse(row, [Refusal(error.code, error.message)])
            raise NotSent(error.message) from error

        async def judge(tx: Tx) -> Done[str | None]:
            return await self._judge(tx, row, account, told)

        if why_not := await self._door.run(judge):
            raise NotSent(why_not)
        return Started(row)

    async def _judge(self, tx: Tx, row: Row, account: Account, told: Told) -> Done[str | None]:
        """Let an order go, or refuse it; return why it does not go. One at a time for an account."""
        held_account = await self._accounts.lock_to_judge(tx, account.id)
        _, fresh = await self._locked(tx, row["order_id"])
        if fresh.order.state == "pending_submit":
            raise Transient("another worker has judged it meanwhile", retry_after_s=1)  # before its lease ran out
        if fresh.order.state != "new" or held_account is None:
            return Done(f"the order is {fresh.order.state}")
        refusals: Sequence[Refusal] = ()
        events: Sequence[Event] = ()
        taken = ZERO
        if held_account["closed_at"] is not None:
            refusals = [Refusal("ACCOUNT_CLOSED", "the account was closed: choose another one")]
        elif late(fresh, self._clock()):
            refusals = [LATE]
        elif told.held is not None:
            fresh, refusals = await self._sized(tx, fresh, told.held)
        else:
            fresh = await self._rest_only(tx, fresh)
        if not refusals:
            exits = fresh.row["parent"] is not None
            refusals, taken = await self._checking.judge(tx, held_account, fresh.order, told, exits=exits)
        if not refusals and fresh.order.replaces is not None:
            refusals, events = await self._replacing(tx, account, fresh.order, fresh.order.replaces)
        await self._ours(tx, row, goes=not refusals and fresh.order.terms.order_class != "oco")
        if refusals:
            return Done(refusals[0].message, await self._refused(tx, account, fresh, refusals))
        await self._exits.begin(tx, fresh.order)
        order, sent = await self._orders.report(tx, account, fresh, Report("submit_sent"), reserved=taken)
        if order.terms.order_class == "oco":  # nothing of it goes but its exits
            first = Report("replaced", replaced_by=exit_id(order.id, 0))
            _, ended = await self._orders.report(tx, account, Stored(order, fresh.row), first)
            return Done("its exits take its place", [*events, *sent, *ended])
        self._judged[row["id"]] = Stored(order, fresh.row)
        return Done(None, [*events, *sent])

    async def _sized(self, tx: Tx, stored: Stored, held: Decimal) -> tuple[Stored, Sequence[Refusal]]:
        """Give an order that closes a position the size of what is held; nothing is closed where that is gone."""
        await self._asking.alone(tx, stored)
        order = stored.order
        side = order.terms.legs[0].side
        if not held or (held > 0) != (side == "sell"):
            return stored, [Refusal("NOTHING_HELD", f"there is nothing left to {side}: {held:f} is held")]
        if abs(held) == order.terms.quantity:
            return stored, ()
        sized = resized(order, abs(held))
        await self._store.save(tx, [sized], self._clock())
        return Stored(sized, stored.row), ()

    async def _rest_only(self, tx: Tx, stored: Stored) -> Stored:
        """Let an order that is to be as large as the one it replaces fill what that one has left."""
        if stored.order.replaces is None:
            return stored
        old = await self._old(tx, stored.order.replaces)
        if stored.order.terms.quantity != old.order.terms.quantity or rest(old.order) == ZERO:
            return stored
        sized = resized(stored.order, rest(old.order))
        if sized != stored.order:
            await self._store.save(tx, [sized], self._clock())
        return Stored(sized, stored.row)

    async def _replacing(
        self, tx: Tx, account: Account, by: Order, replaces: UUID
    ) -> tuple[Sequence[Refusal], Sequence[Event]]:
        """Note at the old order that it is to be replaced."""
        old = await self._old(tx, replaces)
        if old.order.state not in {"accepted", "partially_filled"}:
            return [Refusal("ORDER_OVER", f"the order to be replaced is {old.order.state}: place a new one")], ()
        _, events = await self._orders.report(tx, account, old, Report("replace_asked", replaced_by=by.id))
        return (), events

    # --- out ----------------------------------------------------------------------------------------

    async def perform(self, row: Row) -> Performed:
        """Say it. What the venue answers becomes part of the order with the row's end."""
        stored = self._judged.pop(row["id"], None) or (await self._read(row["order_id"]))[0]
        order, account = stored.order, stored.account
        venue = await self._venues.of(account)
        match row["kind"]:
            case "submit":
                report = await self._carefully(row, account, venue.submit(sent_as(order)))
            case "replace" if order.replaces is not None:
                old, _ = await self._read(order.replaces)
                report = await self._carefully(row, account, venue.replace(sent_as(old.order), sent_as(order)))
            case "cancel":
                report = await venue.cancel(order)
            case _:
                report = await venue.look_up(order)
        return Performed({} if report is None else {"report": report})

    async def _carefully(self, row: Row, account: Account, saying: Awaitable[Report | None]) -> Report | None:
        """Keep in the order what an error says of whether it went out, and let the error go on."""
        try:
            return await saying
        except VenueRefused as error:
            await self._venues.forget(account.id)  # opened anew, its credentials may be others
            await self._told(row, account, Report("not_sent", reason=error.message))
            await self._refuse(row, [Refusal(error.code, error.message)])
            raise
        except Transient:
            await self._told(row, account, Report("not_sent"))
            raise
        except OutcomeUnknown as unknown:
            try:
                await self._told(row, account, Report("outcome_unknown"))
            except Exception as error:
                raise unknown from error  # a lost database is no sign that the venue has not got it
            raise

    async def look_up(self, row: Row) -> bool:
        """Whether what was said has taken effect, as the venue tells it."""
        if row["kind"] == "look_up":
            return False
        stored, account = await self._read(row["order_id"])
        if stored.order.state == "pending_submit":
            await self._told(row, account, Report("outcome_unknown"))
        venue = await self._venues.of(account)
        if stored.order.state == "new" and venue.knows_ids:
            return False
        report = await venue.look_up(stored.order)
        if row["kind"] == "cancel":
            order = await self._told(row, account, report)
            return order.state in OVER and report.kind not in {"accepted", "fill"}
        if report.kind == "not_found" and not venue.knows_ids:
            if self._clock() - row["created_at"] < UNSEEN:
                raise Transient("the venue has not seen it yet", retry_after_s=5)
            await self._told(row, account, report)
            await self._refuse(row, [UNSEEN_ORDER])
            raise NotSent(UNSEEN_ORDER.message)
        order = await self._told(row, account, report)
        if order.state != "new" and order.replaces is not None:
            old, _ = await self._read(order.replaces)
            await self._told(row, account, await venue.look_up(old.order), of=old.order.id)
        return order.state != "new"

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Take the venue's answer into the order."""
        row = settled.row
        account, stored = await self._locked(tx, row["order_id"])
        report: Report | None = settled.result.get("report")
        if settled.status != "done":
            if stored.order.state == "new" and settled.status == "failed":
                gave_up = Refusal("NOT_SENT", f"it could not be sent: {settled.detail}")
                return await self._give_up(tx, account, stored, [gave_up])
            return ()
        if report is None:
            return ()
        if row["kind"] == "look_up" and report.kind == "not_found" and not stored.order.seen:
            return await self._never_arrived(tx, account, stored, report)
        if row["kind"] != "replace" or stored.order.replaces is None:
            order, events = await self._orders.report(tx, account, stored, report)
            bare = order.state == "rejected" and stored.row["closes"]
            return [*events, *await self._orders.flag(tx, account, order.id, "CLOSE_REFUSED", BARE)] if bare else events
        old = await self._old(tx, stored.order.replaces)
        _, events = await self._orders.report(tx, account, old, report)
        of_new = Report("accepted") if report.kind == "replaced" else Report("rejected", reason=report.reason)
        return [*events, *(await self._orders.report(tx, account, stored, of_new))[1]]

    async def _never_arrived(self, tx: Tx, account: Account, stored: Stored, report: Report) -> Sequence[Event]:
        """End an order that the venue has not seen and that nobody sends any more."""
        order = stored.order
        if order.state in OVER or await self._store.going(tx, order.id):
            return ()
        if order.replaces is not None:
            old = await self._old(tx, order.replaces)
            if old.order.replaced_by == order.id and old.order.state not in OVER:
                return ()  # the venue has taken the wish and not carried it out yet
        events: list[Event] = []
        for one in ([Report("outcome_unknown")] if order.state == "pending_submit" else []) + [report]:
            order, happened = await self._orders.report(tx, account, Stored(order, stored.row), one)
            events += happened
        return [*events, *await self._give_up(tx, account, Stored(order, stored.row), [UNSEEN_ORDER])]

    # --- parts ----------------------------------------------------------------------------------

    async def _read(self, order_id: UUID) -> tuple[Stored, Account]:
        async with self._door.read() as tx:
            stored = await self._store.get(tx, order_id)
        if stored is None:
            raise AssertionError("orders are not deleted")
        return stored, stored.account

    async def _locked(self, tx: Tx, order_id: UUID) -> tuple[Account, Stored]:
        """Return an order; it is locked, and the one that it replaces."""
        stored = await self._store.lock_both(tx, order_id)
        if stored is None:
            raise AssertionError("orders are not deleted")
        return stored.account, stored

    async def _old(self, tx: Tx, order_id: UUID) -> Stored:
        """Return the order that another one replaces; both are locked already."""
        stored = await self._store.lock(tx, order_id)
        if stored is None:
            raise AssertionError("orders are not deleted")
        return stored

    async def _ours(self, tx: Tx, row: Row, *, goes: bool = False) -> None:
        """Raise Transient where another worker has the sending by now: what we know of it is old. Start it if it goes.

        Its order is locked, so whoever has claimed it since waits for what we do.
        """
        until = self._clock() + LEASE
        if not await (self._store.start(tx, row, until) if goes else self._store.ours(tx, row)):
            raise Transient("its lease has run out, and another worker has it")

    async def _told(self, row: Row, account: Account, report: Report, of: UUID | None = None) -> Order:
        """Take a report of the sending's order, or of another one, in, in a transaction of its own."""

        async def take(tx: Tx) -> Done[Order]:
            _, stored = await self._locked(tx, of or row["order_id"])
            await self._ours(tx, row)
            return Done(*await self._orders.report(tx, account, stored, report))

        return await self._door.run(take)

    async def _refuse(self, row: Row, refusals: Sequence[Refusal]) -> None:
        async def refuse(tx: Tx) -> Sequence[Event]:
            account, stored = await self._locked(tx, row["order_id"])
            await self._ours(tx, row)
            return await self._give_up(tx, account, stored, refusals)

        await self._door.publish(refuse)

    async def _give_up(self, tx: Tx, account: Account, stored: Stored, refusals: Sequence[Refusal]) -> Sequence[Event]:
        """Refuse an order that was not sent; one that it was to replace works on as it is."""
        events = await self._refused(tx, account, stored, refusals)
        if stored.order.replaces is None:
            return events
        old = await self._old(tx, stored.order.replaces)
        return [*events, *(await self._orders.report(tx, account, old, Report("replace_rejected")))[1]]

    async def _refused(self, tx: Tx, account: Account, stored: Stored, refusals: Sequence[Refusal]) -> Sequence[Event]:
        """Refuse an order that was not sent; one that was to close a position is flagged, unless that is gone."""
        events = await self._orders.refuse(tx, account, stored, refusals)
        if not events or not stored.row["closes"] or any(one.code == "NOTHING_HELD" for one in refusals):
            return events
        return [*events, *await self._orders.flag(tx, account, stored.order.id, "CLOSE_REFUSED", BARE)]
