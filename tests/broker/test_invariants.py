"""Random lives of orders at venues of four manners, with every fault that there is, and processes that die anywhere.

Whatever happened, after reconciliation our orders, positions and cash are the venue's to the cent, no order took effect
twice, none is left in doubt, and what was refused says why. A life follows from its seed alone: OPENBELL_BROKER_LIVES
says how many there are for each manner, OPENBELL_BROKER_SEED which is the first.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pytest

from services.broker.domain import shapes
from services.broker.domain.orders import OVER, WORKING
from services.broker.ports import Update
from shared.contracts.base import Event
from shared.contracts.broker import (
    CancelRequested,
    CloseRequested,
    ExitTerms,
    LegTerms,
    OrderRequested,
    OrderTerms,
    ReplaceRequested,
)
from tests.broker.crashing import MortalBrokerage, mortal
from tests.fakes.venue import Desk
from tests.fakes.venue_books import START, Manner, Placed

D = Decimal
LIVES = int(os.environ.get("OPENBELL_BROKER_LIVES", "6"))
FIRST = int(os.environ.get("OPENBELL_BROKER_SEED", "1"))
MANNERS = {
    "plain": Manner(fee_rate=D("0.0003")),
    "takes an id twice": Manner(knows_ids=False),
    "totals first": Manner(totals_first=True, fee_rate=D("0.0007")),
    "both": Manner(knows_ids=False, totals_first=True),
}
SYMBOLS = {"AAPL": 100, "MSFT": 400}


class Life:
    """One account, what its owner does, and what happens to it."""

    def __init__(self, brokerage: MortalBrokerage, seed: int) -> None:
        self.brokerage = brokerage
        self.random = Random(seed)
        self.user = self.new_id()
        self.account = UUID(int=0)
        self.asked: list[UUID] = []
        self.foreign: list[UUID] = []
        self.frames: asyncio.Queue[Update | None] = asyncio.Queue()
        self.halted_with: list[UUID] | None = None
        self.drifted = False
        self.did: list[str] = []

    @property
    def desk(self) -> Desk:
        return self.brokerage.desk(self.account)

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def about(self) -> dict[str, Any]:
        now = self.brokerage.clock()
        return {"id": self.new_id(), "time": now, "account_id": self.account, "user_id": self.user}

    async def live(self) -> None:
        """Be born, act, and be reconciled."""
        self.account = await self.brokerage.account(self.user)
        self.listen()
        acts: list[Callable[[], Awaitable[None]]] = [
            *[self.place] * 5,
            *[self.replace] * 3,
            *[self.cancel] * 3,
            *[self.close] * 2,
            *[self.fill] * 6,
            *[self.hear] * 4,
            *[self.fault] * 4,
            *[self.settle] * 4,
            self.cancel_all,
            self.foreign_order,
            self.carry_out,
            self.drop,
            self.drift,
            self.bust,
            self.market,
            self.halt,
            self.look,
        ]
        for _ in range(self.random.randint(10, 24)):
            act = self.random.choice(acts)
            self.did.append(act.__name__)
            await self.may_die(act)
        await self.calm()

    async def may_die(self, act: Callable[[], Awaitable[None]]) -> None:
        if self.random.random() < 0.3:
            self.brokerage.fate.left = self.random.randint(0, 30)
        deaths = self.brokerage.deaths
        async with self.brokerage.dying():
            await act()
        if self.brokerage.deaths > deaths:
            self.did.append("died")
            self.listen()

    def listen(self) -> None:
        """Open the stream; what it told before is lost."""
        self.desk.listeners.clear()
        self.frames = asyncio.Queue()
        self.desk.listeners.append(self.frames)

    # --- the owner ------------------------------------------------------------------------------------

    async def command(self, event: Event) -> None:
        """Let a command come as Kafka brings it: again when the process died of it, and sometimes for no reason."""
        heard = False
        for _ in range(self.random.choice([1, 1, 1, 2])):
            async with self.brokerage.dying():
                await self.brokerage.hear(event)
                heard = True
        if not heard:
            self.listen()
            await self.brokerage.hear(event)
        if self.random.random() < 0.6:
            await self.brokerage.settle()

    def terms(self) -> OrderTerms:
        symbol, price = self.random.choice(list(SYMBOLS.items()))
        side = self.random.choice(["buy", "buy", "sell"])
        if self.random.random() < 0.1:  # it must not go out
            price = self.random.choice([price * 2, price // 20])
        if self.random.random() < 0.2:
            legs = (LegTerms(symbol=symbol, side=side),)  # type: ignore[arg-type]
            return OrderTerms(legs=legs, type="market", quantity=D(self.random.randint(1, 40)))
        limit, quantity = D(price), D(self.random.randint(1, 60))
        if self.random.random() < 0.3:
            sign = 1 if side == "buy" else -1
            exits = ExitTerms(take_profit=limit + sign * D("0.50"), stop_loss=limit - sign * D(10))
            legs = (LegTerms(symbol=symbol, side=side),)  # type: ignore[arg-type]
            given: dict[str, Any] = {"type": "limit", "order_class": "bracket", "exits": exits}
            return OrderTerms(legs=legs, quantity=quantity, limit=limit, **given)
        return OrderTerms(legs=(LegTerms(symbol=symbol, side=side),), type="limit", quantity=quantity, limit=limit)  # type: ignore[arg-type]

    async def place(self) -> None:
        order_id = self.new_id()
        self.asked.append(order_id)
        await self.command(OrderRequested(**self.about(), order_id=order_id, terms=self.terms()))

    async def foreign_order(self) -> None:
        order_id = self.new_id()
        self.foreign.append(order_id)
        about: dict[str, Any] = {**self.about(), "user_id": self.new_id()}
        await self.command(OrderRequested(**about, order_id=order_id, terms=self.terms()))

    async def replace(self) -> None:
        if self.asked:
            by = self.new_id()
            old = self.random.choice(self.asked[-4:])
            self.asked.append(by)
            quantity = D(self.random.randint(1, 60))
            await self.command(ReplaceRequested(**self.about(), order_id=old, by_order_id=by, quantity=quantity))

    async def cancel(self) -> None:
        if self.asked:
            await self.command(CancelRequested(**self.about(), order_id=self.random.choice(self.asked[-4:])))

    async def cancel_all(self) -> None:
        await self.command(CancelRequested(**self.about()))

    async def close(self) -> None:
        order_id = self.new_id()
        self.asked.append(order_id)
        symbol = self.random.choice(list(SYMBOLS))
        await self.command(CloseRequested(**self.about(), order_id=order_id, symbol=symbol))

    async def halt(self) -> None:
        """Halt the user, or resume: nothing that was not there before may have reached the venue meanwhile."""
        if self.halted_with is None:
            await self.brokerage.ask("POST", "/broker/halt", {}, user_id=self.user)
            self.halted_with = self.desk.submits()
        else:
            assert self.desk.submits() == self.halted_with
            await self.brokerage.ask("DELETE", "/broker/halt", user_id=self.user)
            self.halted_with = None

    # --- the venue --------------------------------------------------------------------------------------

    def any_placed(self, *, working: bool) -> Placed | None:
        found = [one for one in self.desk.placed if one.works or not working]
        return self.random.choice(found) if found else None

    async def fill(self) -> None:
        one = self.any_placed(working=self.random.random() < 0.9)
        if one is None or one.status == "rejected" or one.is_whole():
            return
        left = (one.order.terms.quantity or D(0)) - one.filled(0)
        size = left if self.random.random() < 0.5 else min(left, D(self.random.randint(1, 20)))
        price = D(SYMBOLS[one.order.terms.legs[0].instrument.key]) + D(self.random.randint(-50, 50)) / 100
        await self.desk.fill(one.order.id, size, price)

    async def bust(self) -> None:
        """Take a trade back."""
        done = [(one, execution) for one in self.desk.placed for execution in one.executions if not execution.busted]
        if done and self.random.random() < 0.3:
            one, execution = self.random.choice(done)
            await self.desk.bust(one.order.id, execution.id)

    async def carry_out(self) -> None:
        for one in self.desk.placed:
            if one.wish is not None and self.halted_with is None:
                await self.desk.carry_out(one.order.id)
                return

    async def fault(self) -> None:
        match self.random.randint(0, 7):
            case 0:
                self.desk.lose_next("request")
            case 1 | 2:
                self.desk.lose_next("answer")
            case 3:
                self.desk.limit_next(self.random.randint(1, 3))
            case 4:
                self.desk.refuse_next("not today")
            case 5:
                self.desk.hold_cancels()
            case 6:
                self.desk.lose_frames(self.random.randint(1, 4))
            case _:
                self.desk.revoked = not self.desk.revoked

    async def drop(self) -> None:
        self.listen()

    async def drift(self) -> None:
        if self.random.random() < 0.3 and self.desk.held:
            one = self.random.choice(list(self.desk.held.values()))
            self.desk.drift(one.instrument, one.quantity + self.random.randint(-3, 3))
            self.drifted = True

    # --- time and the process ---------------------------------------------------------------------------

    async def hear(self) -> None:
        """Take the frames of the stream, some of them twice."""
        account = await self.brokerage.account_of(self.account)
        while not self.frames.empty():
            update = self.frames.get_nowait()
            for _ in range(self.random.choice([1, 1, 2]) if update else 0):
                assert update is not None
                await self.brokerage.monitors._reconcile.told(account, update)

    async def settle(self) -> None:
        await self.brokerage.settle()

    async def market(self) -> None:
        self.brokerage.clock.advance(self.random.choice([1, 5, 30, 90]))
        by = self.random.choice([None, D(0), D(0), D(1), D(-1)])
        if by is not None:  # up or down, where brackets take their profit
            quotes = {name: (str(price + by), str(price + by + D("0.02"))) for name, price in SYMBOLS.items()}
            await self.brokerage.quotes(**quotes)
        await self.brokerage.protecting.exits.turn()
        await self.brokerage.worker.turn()
        await self.brokerage.worker.idle()

    async def look(self) -> None:
        if not self.desk.revoked and not self.desk._limited:
            await self.brokerage.reconcile(self.account)

    async def calm(self) -> None:
        """End all trouble, and let everything be looked at."""
        if self.halted_with is not None:
            await self.halt()
        self.desk.revoked = self.desk.hold = False
        self.desk._lost = self.desk.refusal = None
        self.desk._limited = self.desk.frames_to_lose = 0
        for one in self.desk.placed.copy():
            if one.wish is not None:
                await self.desk.carry_out(one.order.id)
        for _ in range(3):
            await self.brokerage.quotes()
            await self.brokerage.finish()
            await self.brokerage.reconcile(self.account)
            await self.brokerage.finish()
            self.brokerage.clock.advance(61)
            await self.brokerage.sweep()
        await self.brokerage.finish()

    # --- what must hold -----------------------------------------------------------------------------------

    async def check(self) -> None:
        rows = await self.brokerage.rows("select * from orders where account_id = :id", id=self.account)
        twice = [order_id for order_id, times in Counter(self.desk.submits()).items() if times > 1]
        assert not twice, "took effect twice"
        assert not {row["id"] for row in rows} & set(self.foreign)
        assert {row["id"] for row in rows} >= set(self.desk.submits())
        for row in rows:
            self.check_order(row)
        await self.check_exits(rows)
        held = {key: one.quantity for key, one in self.desk.held.items() if one.quantity}
        assert await self.brokerage.held(self.account) == held
        (account,) = await self.brokerage.rows("select * from accounts where id = :id", id=self.account)
        assert account["cash"] == self.desk.cash
        if not self.drifted:
            found = await self.brokerage.rows("select body from positions where account_id = :id", id=self.account)
            ours = START + sum((shapes.load_position(row["body"]).cash for row in found), D(0))
            assert abs(ours - self.desk.cash) < D("1e-9")

    async def check_exits(self, rows: list[dict[str, Any]]) -> None:
        """What works of exits, and what was filled, is no more than the entry filled; nobody's word is waited for."""
        flagged = {row["order_id"] for row in await self.brokerage.rows("select order_id from flags")}
        for exits in await self.brokerage.rows("select * from exits where account_id = :id", id=self.account):
            (entry,) = (row for row in rows if row["id"] == exits["order_id"])
            family = [row for row in rows if row["parent"] == entry["id"]]
            works = [row for row in family if row["state"] in WORKING]
            assert not (exits["over"] and works), family
            assert len({row["terms"]["type"] for row in works}) <= 1, "both ways out are at the venue"
            if not flagged & {row["id"] for row in (entry, *family)}:
                open_ = sum((D(row["terms"]["quantity"]) - row["filled"] for row in works), D(0))
                assert sum((row["filled"] for row in family), open_) <= entry["filled"], family

    def check_order(self, row: dict[str, Any]) -> None:
        there = next((one for one in self.desk.placed if one.order.id == row["id"]), None)
        assert row["state"] in (WORKING if there is not None and there.works else OVER), row
        if there is not None:
            assert row["state"] != "rejected", row
            assert row["filled"] == there.filled(0), row
        if row["state"] == "rejected":
            assert row["refusals"], row
            told = [
                one for one in self.brokerage.events("broker.order.rejected.v1") if one["order_id"] == str(row["id"])
            ]
            audited = [
                one for one in self.brokerage.events("api.action.audited.v1") if one["subject"] == str(row["id"])
            ]
            assert (len(told), len(audited)) == (1, 1), (row, told)


@pytest.mark.parametrize("manner", MANNERS)
async def test_whatever_happens_our_books_are_the_venues_and_nothing_took_effect_twice(
    database_url: str, manner: str
) -> None:
    async with mortal(database_url, MANNERS[manner]) as brokerage:
        for seed in range(FIRST, FIRST + LIVES):
            life = Life(brokerage, seed)
            try:
                await life.live()
                await life.check()
            except BaseException as error:
                error.add_note(f"OPENBELL_BROKER_SEED={seed} OPENBELL_BROKER_LIVES=1, {manner}: {' '.join(life.did)}")
                raise
        assert brokerage.deaths or LIVES < 3, "no process died: the lives prove less than they say"
