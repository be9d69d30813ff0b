"""The switch that stops everything: when its answer comes, nothing goes out any more."""

import asyncio
from uuid import UUID, uuid4

from services.broker.store.accounts import AccountStore
from shared.contracts.broker import LegTerms, OrderRequested, OrderTerms
from tests.broker.brokerage import USER, Brokerage
from tests.broker.stall import Stall
from tests.conftest import eventually

TERMS = OrderTerms(legs=(LegTerms(symbol="AAPL", side="buy"),), type="limit", quantity=1, limit=100)  # type: ignore[arg-type]


async def halted(brokerage: Brokerage) -> bool:
    return bool(await brokerage.rows("select 1 from halts"))


async def ask(brokerage: Brokerage, account: UUID) -> UUID:
    order = uuid4()
    about = {"id": uuid4(), "time": brokerage.clock(), "account_id": account, "user_id": USER}
    await brokerage.hear(OrderRequested(**about, order_id=order, terms=TERMS))  # type: ignore[arg-type]
    return order


async def test_a_halt_is_answered_when_what_was_judged_before_it_is_at_its_venue(brokerage: Brokerage) -> None:
    account, stall = await brokerage.account(), Stall()
    brokerage.desk(account).before_submits = [stall]
    order = await ask(brokerage, account)
    await brokerage.worker.turn()
    await eventually(stall.begun.is_set)
    halting = asyncio.create_task(brokerage.ask("POST", "/broker/halt", {}))
    await eventually(lambda: halted(brokerage))
    assert (await brokerage.ask("GET", "/broker/halt"))[0] == 200  # takes as long as the answer would
    assert not halting.done()
    stall.end.set()
    assert (await halting)[0] == 204
    assert brokerage.desk(account).submits() == [order]


async def test_a_halt_waits_for_what_is_being_judged(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    async with brokerage.service.db.transaction() as tx:
        await AccountStore().lock_to_judge(tx, account)
        halting = asyncio.create_task(brokerage.ask("POST", "/broker/halt", {}))
        waiting = "select 1 from pg_locks where locktype = 'advisory' and not granted"
        await eventually(lambda: _some(brokerage, waiting))
        assert not await halted(brokerage)
    assert (await halting)[0] == 204


async def test_a_halt_of_one_user_waits_for_nobody_elses_orders(brokerage: Brokerage) -> None:
    account, stall = await brokerage.account(), Stall()
    brokerage.desk(account).before_submits = [stall]
    await ask(brokerage, account)
    await brokerage.worker.turn()
    await eventually(stall.begun.is_set)
    async with asyncio.timeout(4):
        assert (await brokerage.ask("POST", "/broker/halt", {}, user_id=uuid4()))[0] == 204
    stall.end.set()
    await brokerage.worker.idle()


async def _some(brokerage: Brokerage, statement: str) -> bool:
    return bool(await brokerage.rows(statement))
