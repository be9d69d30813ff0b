"""Quotes of options come from chains: for the contracts that orders name and that are held, and for no other."""

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

from services.broker import READS
from services.broker.adapters.paper.adapter import PaperAdapter
from services.broker.domain.instruments import option
from services.broker.domain.tickets import Rules
from services.broker.main import assemble
from services.broker.ports import Account
from services.broker.service.calendar import Calendar
from services.broker.service.chains import quotes_of
from services.broker.workers.paper import hears
from shared.contracts.broker import LegTerms, OrderTerms
from shared.contracts.data import ChainCollected
from shared.service import Environment, Service
from tests.broker.brokerage import NOW, Brokerage, always_open
from tests.detector.chains import collected, header, row

D = Decimal
FRIDAY = date(2026, 12, 18)
LOW = option("AAPL", FRIDAY, "C", D(100)).key
HIGH = option("AAPL", FRIDAY, "C", D(110)).key


def chain(quotes: Mapping[str, tuple[float | None, float | None]], minute: float = 0) -> ChainCollected:
    """A chain of AAPL, so many minutes from now."""
    rows = [row(contract=name, expiration=FRIDAY, bid=bid, ask=ask) for name, (bid, ask) in quotes.items()]
    head = header().model_copy(update={"as_of": NOW + timedelta(minutes=minute)})
    return collected(head, rows)


async def buy(brokerage: Brokerage, account: UUID, **terms: Any) -> UUID:
    given: dict[str, Any] = {"type": "limit", "quantity": D(1), "limit": D("5.10"), **terms}
    return await brokerage.place_terms(account, OrderTerms(legs=(LegTerms(symbol=LOW, side="buy"),), **given))


async def quoted(brokerage: Brokerage) -> dict[str, tuple[Decimal, Decimal]]:
    found = await brokerage.rows("select symbol, bid, ask from quotes where underlying is not null")
    return {one["symbol"]: (one["bid"], one["ask"]) for one in found}


def test_a_contract_without_both_sides_has_no_quote() -> None:
    told = quotes_of(chain({LOW: (None, 5.1), HIGH: (2.0, 1.0), "X": (float("nan"), 1.0)}), {LOW, HIGH, "X"})
    assert told == []
    (one,) = quotes_of(chain({LOW: (0.0, 0.05), HIGH: (2.0, 2.1)}), {LOW})
    assert (one.symbol, one.bid, one.ask, one.at) == (LOW, D("0.0"), D("0.05"), NOW)


async def test_an_order_is_judged_by_the_chain_that_came_before_it(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    assert await brokerage.codes(await buy(brokerage, account)) == ["NO_QUOTE"]
    await brokerage.hear(chain({LOW: (5.0, 5.1), HIGH: (2.0, 2.1)}))
    assert await quoted(brokerage) == {}
    assert await brokerage.state(await buy(brokerage, account)) == "accepted"
    assert await quoted(brokerage) == {LOW: (D("5.0"), D("5.1"))}
    assert await brokerage.codes(await buy(brokerage, account, limit=D("6.00"))) == ["PRICE_COLLAR"]


async def test_a_vertical_is_judged_by_both_of_its_contracts(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    await brokerage.hear(chain({LOW: (5.0, 5.1), HIGH: (2.0, 2.1)}))
    legs = LegTerms(symbol=LOW, side="buy"), LegTerms(symbol=HIGH, side="sell")
    given: dict[str, Any] = {"type": "limit", "order_class": "multi_leg", "strategy": "vertical", "quantity": D(1)}
    good = await brokerage.place_terms(account, OrderTerms(legs=legs, limit=D("3.10"), **given))
    far = await brokerage.place_terms(account, OrderTerms(legs=legs, limit=D("4.00"), **given))
    assert (await brokerage.state(good), await brokerage.codes(far)) == ("accepted", ["PRICE_COLLAR"])


async def test_what_was_named_once_follows_each_chain_and_grows_old_with_it(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    await brokerage.hear(chain({LOW: (5.0, 5.1), HIGH: (2.0, 2.1)}))
    await buy(brokerage, account)
    brokerage.clock.advance(120)
    assert await brokerage.codes(await buy(brokerage, account)) == ["NO_QUOTE"]
    await brokerage.hear(chain({LOW: (6.0, 6.1), HIGH: (3.0, 3.1)}, 1.5))
    await brokerage.hear(chain({LOW: (4.0, 4.1), HIGH: (3.0, 3.1)}, 1))
    assert await quoted(brokerage) == {LOW: (D("6.0"), D("6.1"))}
    assert await brokerage.state(await buy(brokerage, account, limit=D("6.00"))) == "accepted"


async def test_what_is_held_follows_though_no_order_named_it(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    brokerage.desk(account).drift(option("AAPL", FRIDAY, "C", D(110)), D(2))
    await brokerage.reconcile(account)
    assert (await brokerage.held(account))[HIGH] == 2
    await brokerage.hear(chain({LOW: (5.0, 5.1), HIGH: (2.0, 2.1)}))
    assert await quoted(brokerage) == {HIGH: (D("2.0"), D("2.1"))}
    _, shown = await brokerage.ask("GET", f"/broker/positions?account_id={account}")
    assert [(one["symbol"], D(one["value"])) for one in shown] == [(HIGH, D(410))]


async def test_a_chain_from_the_future_is_none_and_old_contracts_are_forgotten(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    await brokerage.hear(chain({LOW: (5.0, 5.1)}, 1))
    assert await brokerage.codes(await buy(brokerage, account)) == ["NO_QUOTE"]
    await brokerage.hear(chain({LOW: (5.0, 5.1)}))
    await buy(brokerage, account)
    (job,) = (one for one in brokerage.service._jobs if one.name == "chains-retention")
    await job.run(NOW + timedelta(days=13))
    assert LOW in await quoted(brokerage)
    await job.run(NOW + timedelta(days=15))
    assert await quoted(brokerage) == {}
    assert await brokerage.rows("select * from chains") == []


class PaperBrokerage(Brokerage):
    """The service over the paper venue."""

    def _service(self) -> Service:
        env = Environment(self._shared, self.clock, Random(1), "test")
        service, calendar = Service("broker", env, READS), Calendar(always_open)
        paper = PaperAdapter(service.db, self.clock, Rules(lambda now: (now, now + timedelta(hours=1))))
        service.closes(paper)

        async def no_secrets(account: Account) -> Mapping[str, str]:
            del account
            return {}

        heard = [hears(paper, calendar)]
        return assemble(service, env, self.settings, [paper], no_secrets, calendar=calendar, hear=heard)


async def test_the_paper_venue_fills_a_contract_and_a_vertical_by_the_chain(database_url: str) -> None:
    brokerage = PaperBrokerage(database_url)
    try:
        account = await brokerage.account(venue="paper")
        await brokerage.hear(chain({LOW: (5.0, 5.1), HIGH: (2.0, 2.1)}))
        single = await buy(brokerage, account)
        legs = LegTerms(symbol=LOW, side="buy"), LegTerms(symbol=HIGH, side="sell")
        given: dict[str, Any] = {"type": "limit", "order_class": "multi_leg", "quantity": D(1)}
        rests = await brokerage.place_terms(account, OrderTerms(legs=legs, limit=D("3.00"), **given))
        assert [await brokerage.state(one) for one in (single, rests)] == ["filled", "accepted"]
        brokerage.clock.advance(30)
        await brokerage.hear(chain({LOW: (4.8, 4.9), HIGH: (2.0, 2.1)}, 0.5))
        await brokerage.reconcile(account)
        assert await brokerage.state(rests) == "filled"
        assert await brokerage.held(account) == {LOW: 2, HIGH: -1}
    finally:
        await brokerage.service.close()
