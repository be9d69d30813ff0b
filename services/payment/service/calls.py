"""Writes at Stripe: each stands in a table under its idempotency key before it is sent, and is sent by a worker.

    call = await calls.do(Call("customer.create", lane, user_id, "customers", params))

The key is the kind, the lane (what the call changes) and how many calls of the lane came before, so it is the same
whoever sends the call and however often. A lane has one call at a time: the same wish meanwhile joins it, another one
is refused with CHANGE_PENDING.

A call whose outcome is unknown is looked up at Stripe before it is repeated. Stripe forgets keys after a day; a call
that is older is not repeated at all: what the look-up does not find never happened. One that could not even be sent for
a quarter of an hour is given up, for nobody waits for it any more; but what nobody asked for and nobody would ask for
again (refunds, the ends of doubled or disputed subscriptions) is tried as long as a key lives.

What would surprise you: Stripe stores failures under a key too, so after a 500 the same key answers 500 for a day. Once
the look-up has shown that nothing happened, the call goes on under another key.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import orjson

from services.payment.ports import FailedReplay, Json, RawStripe, StripeRefused
from services.payment.service.lookups import LOOK_UPS
from services.payment.store.calls import CallStore
from shared.clock import Clock, NewId
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import Conflict, Permanent, Transient
from shared.messaging.door import Done as DoorDone
from shared.messaging.door import Door
from shared.work import Performed, Policy, Settled, Work, one_by_one

KEY_LIFE: Final = timedelta(hours=23)
"""Stripe may forget a key after 24 hours."""
GIVE_UP: Final = timedelta(minutes=15)
WAIT_S: Final = 8.0
"""The gateway gives up after 10 s, and its caller would not learn that the wish is kept."""
POLL_S: Final = 0.05
PATIENT: Final = frozenset({"refund.create", "doubles.check", "stop.at_end", "stop.now"})
PATIENT_LANES: Final = "double/"

Mark = Callable[[Tx, str, str], Awaitable[None]]
"""Notes that an object (Stripe's name of its kind, its id) must be fetched: our state follows what Stripe says."""
Done = Callable[[Tx, Row, Json], Awaitable[Sequence[Event]]]
"""What follows from a call that was carried out, in the transaction that records it: (tx, the call, its result)."""
Failed = Callable[[Tx, Row, str], Awaitable[Sequence[Event]]]
"""What follows from a call that did not work, or may not have, in the same way: (tx, the call, why)."""
Perform = Callable[[Row], Awaitable[Json | None]]
"""Does or finds what a call is about without the write; None: the write is needed."""


class ChangePending(Conflict):
    """An earlier change has not been carried out yet; ask again in a moment."""

    code = "CHANGE_PENDING"


class Pending(Transient):
    """Stripe has not answered yet. The wish is kept: ask again to hear what came of it."""

    code = "PAYMENT_PENDING"


class GivenUp(Permanent):
    """Stripe could not be reached; nothing was changed."""

    code = "PAYMENT_NOT_REACHED"
    status = 503


class NobodyKnows(Conflict):
    """Nobody knows whether Stripe carried this out; somebody of ours looks at it."""

    code = "PAYMENT_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Call:
    """A write that somebody asks for. `wish` is what makes two calls the same; the parameters where it is left out."""

    kind: str
    lane: str
    user_id: UUID
    path: str
    params: Json
    method: str = "post"
    wish: Json | None = None

    @property
    def meaning(self) -> bytes:
        """A hash of the wish."""
        wish = [self.kind, self.path, self.params if self.wish is None else self.wish]
        return hashlib.sha256(orjson.dumps(wish, option=orjson.OPT_SORT_KEYS)).digest()


@dataclass(slots=True)
class Hooks:
    """What else belongs to a kind of call."""

    before: dict[str, Perform] = field(default_factory=dict[str, Perform])
    after: dict[str, list[Done]] = field(default_factory=dict[str, list[Done]])
    failed: dict[str, list[Failed]] = field(default_factory=dict[str, list[Failed]])


class Calls:
    """Orders calls, waits for them, and performs them."""

    def __init__(
        self,
        stripe: RawStripe,
        store: CallStore,
        door: Door,
        *,
        mark: Mark,
        clock: Clock,
        new_id: NewId,
        wait_s: float = WAIT_S,
    ) -> None:
        self.stripe = stripe
        self._store = store
        self._door = door
        self.mark = mark
        self._clock = clock
        self._new_id = new_id
        self._wait_s = wait_s
        self._hooks = Hooks()
        self.wake: Callable[[], None] = _nothing

    def before(self, kind: str, perform: Perform) -> None:
        """Ask `perform` before a call of this kind is sent; what it returns stands for the answer."""
        self._hooks.before[kind] = perform

    def after(self, kind: str, done: Done) -> None:
        """Let `done` follow from calls of this kind."""
        self._hooks.after.setdefault(kind, []).append(done)

    def failed(self, kind: str, failed: Failed) -> None:
        """Let `failed` follow from calls of this kind that end otherwise."""
        self._hooks.failed.setdefault(kind, []).append(failed)

    async def last(self, tx: Tx, lane: str) -> Row | None:
        """Return the newest call of a lane."""
        return await self._store.last(tx, lane)

    async def order(self, tx: Tx, call: Call) -> Row:
        """Write a call to be made, or join the same one that is on its way. Raises ChangePending."""
        await self._store.lock(tx, call.lane)
        last = await self._store.last(tx, call.lane)
        return _joined(call, last) or await self._add(tx, call, last)

    async def order_after(self, tx: Tx, call: Call, seen: Row | None) -> tuple[Row, bool] | None:
        """As `order`, and whether the call is new; None when the lane's newest is not the one that was seen settled."""
        await self._store.lock(tx, call.lane)
        last = await self._store.last(tx, call.lane)
        if (joined := _joined(call, last)) is not None:
            return joined, False
        if last is not None and (seen is None or seen["id"] != last["id"] or open_(seen)):
            return None
        return await self._add(tx, call, last), True

    async def _add(self, tx: Tx, call: Call, last: Row | None) -> Row:
        ordinal = 1 if last is None else last["ordinal"] + 1
        key = f"openbell/{call.kind}/{call.lane}/{ordinal}"
        params = dict(call.params)
        if isinstance(params.get("metadata"), Mapping):
            params["metadata"] = {**params["metadata"], "call": key}
        tx.after_commit(self.wake)
        return await self._store.add(
            tx,
            self._clock(),
            id=self._new_id(),
            key=key,
            ordinal=ordinal,
            user_id=call.user_id,
            kind=call.kind,
            method=call.method,
            path=call.path,
            params=params,
            meaning=call.meaning,
            lane=call.lane,
        )

    async def result(self, call_id: UUID) -> Json:
        """Wait for what comes of a call; no transaction is open meanwhile.

        Raises StripeRefused with Stripe's reason, GivenUp, NobodyKnows, or Pending when it takes longer.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        while True:
            async with self._door.read() as tx:
                row = await self._store.get(tx, call_id)
            if row is not None and not open_(row):
                return _told(row)
            if loop.time() >= until:
                raise Pending(retry_after_s=5)
            await asyncio.sleep(POLL_S)

    async def do(self, call: Call) -> Json:
        """Order a call and wait for what comes of it."""

        async def order(tx: Tx) -> DoorDone[Row]:
            return DoorDone(await self.order(tx, call))

        return await self.result((await self._door.run(order))["id"])

    # --- the worker's side ----------------------------------------------------------------------

    def work(self) -> Work:
        """Return the work: what is unknown is looked up."""
        return Work(
            kind="stripe",
            table="stripe_calls",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="look_up",
            look_up=self.look_up,
            settled=one_by_one(self.settled),
            policy=Policy(
                lease_s=60, base_s=0.5, cap_s=600, max_attempts=10_000, max_age_s=timedelta(days=30).total_seconds()
            ),
        )

    async def prepare(self, row: Row) -> Row:
        """Let no call go out too late: see the module's docstring. Raises GivenUp."""
        patient = row["kind"] in PATIENT or row["lane"].startswith(PATIENT_LANES)
        limit = KEY_LIFE if row["uncertain"] or patient else GIVE_UP
        if self._clock() - row["created_at"] > limit:
            raise GivenUp("Stripe did not carry this out, and it is too late to ask again")
        return row

    async def perform(self, row: Row) -> Performed:
        """Send one call."""
        before = self._hooks.before.get(row["kind"])
        found = await before(row) if before is not None else None
        if found is None:
            key = row["key"] if not row["turn"] else f"{row['key']}/{row['turn']}"
            try:
                found = await self.stripe.write(row["path"], row["params"], key=key, method=row["method"])
            except FailedReplay:
                return await self._past_failure(row)
        return Performed(_kept(found))

    async def look_up(self, row: Row) -> bool:
        """Whether a call has taken effect; what it left is noted."""
        look = LOOK_UPS.get(row["kind"])
        found = await look(self.stripe, row) if look is not None else None
        if found is None:
            return False
        async with self._door.transaction() as tx:
            await self._store.found(tx, row["id"], _kept(found))
        return True

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Record what came of a call, have its object fetched, and do what follows from it."""
        row = settled.row
        if settled.status != "done":
            await self._store.refused(tx, row["id"], _refusal(settled.error, settled.detail))
            if row["path"].startswith("subscriptions/"):  # refused, perhaps, because it is not as we believe
                await self.mark(tx, "subscription", row["path"].split("/")[1])
            return [
                event
                for failed in self._hooks.failed.get(row["kind"], ())
                for event in await failed(tx, row, settled.detail)
            ]
        if settled.result:
            await self._store.found(tx, row["id"], settled.result)
        current = await self._store.get(tx, row["id"])
        result: Json = (current["result"] if current is not None else None) or {}
        if "id" in result:
            await self.mark(tx, result["object"], result["id"])
        events: list[Event] = []
        for done in self._hooks.after.get(row["kind"], ()):
            events += await done(tx, row, result)
        return events

    async def _past_failure(self, row: Row) -> Performed:
        if await self.look_up(row):
            return Performed()
        async with self._door.transaction() as tx:
            await self._store.turn(tx, row["id"], row["turn"])
        raise Transient("Stripe repeats an old failure; the call goes on under another key")


def open_(row: Row) -> bool:
    """Whether a call is on its way."""
    return row["status"] in {"pending", "claimed", "started"}


def _joined(call: Call, last: Row | None) -> Row | None:
    """Return the same call that is on its way. Raises ChangePending when another one is."""
    if last is None or not open_(last):
        return None
    if last["meaning"] != call.meaning:
        raise ChangePending
    return last


def _nothing() -> None:
    """Nobody works on calls yet; the worker's poll finds them."""


def _kept(found: Json) -> Mapping[str, Any]:
    """Return what is kept of an answer: the object and what a hook put under `kept`; no address, for it opens doors."""
    return {name: found[name] for name in ("id", "object", "status", "kept") if name in found}


def _refusal(error: Exception | None, detail: str) -> Mapping[str, Any]:
    if isinstance(error, StripeRefused):
        return {"message": error.message, "reason": error.reason, "param": error.param}
    return {"message": detail}


def _told(row: Row) -> Json:
    if row["status"] == "done":
        return row["result"] or {}
    refusal: dict[str, Any] = row["refusal"] or {}
    if row["status"] == "unknown":
        raise NobodyKnows
    if "reason" in refusal:
        raise StripeRefused(refusal["message"], reason=refusal["reason"], param=refusal["param"])
    raise GivenUp
