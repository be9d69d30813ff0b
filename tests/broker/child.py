"""The brokerage as a process of its own, over the venue that the test serves at OPENBELL_TEST_VENUE.

What is said goes there and back pickled: both ends are the test's own.
"""

import asyncio
import os
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx

from services.broker import READS
from services.broker.domain.checks import TradeRules
from services.broker.domain.instruments import Instrument
from services.broker.domain.orders import Order, Report
from services.broker.main import assemble
from services.broker.ports import Account, Balance, Changes, Held, Update
from services.broker.service.calendar import Calendar
from services.broker.settings import BrokerSettings
from shared.errors import Transient
from shared.process import main
from shared.service import Environment, Service
from shared.work import OutcomeUnknown
from tests.broker.brokerage import always_open
from tests.fakes.venue_books import PLAIN


class RemoteVenue:
    """One account at the venue of the test."""

    capabilities = PLAIN.capabilities
    knows_ids = PLAIN.knows_ids

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=60)

    async def _ask(self, method: str, *given: Any) -> Any:
        try:
            answer = await self._http.post(f"/{method}", content=pickle.dumps(given))
        except httpx.ConnectError as error:
            raise Transient("no venue") from error
        except httpx.HTTPError as error:
            raise OutcomeUnknown("no answer") from error
        found = pickle.loads(answer.content)  # noqa: S301 - both ends are the test's own
        if isinstance(found, Exception):
            raise found
        return found

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        rules: Mapping[str, TradeRules] = await self._ask("rules", list(instruments))
        return rules

    async def submit(self, order: Order) -> Report:
        report: Report = await self._ask("submit", order)
        return report

    async def cancel(self, order: Order) -> Report | None:
        report: Report | None = await self._ask("cancel", order)
        return report

    async def replace(self, order: Order, by: Order) -> Report | None:
        report: Report | None = await self._ask("replace", order, by)
        return report

    async def look_up(self, order: Order) -> Report:
        report: Report = await self._ask("look_up", order)
        return report

    async def changes(self, since: datetime) -> Changes:
        changes: Changes = await self._ask("changes", since)
        return changes

    async def positions(self) -> list[Held]:
        held: list[Held] = await self._ask("positions")
        return held

    async def balance(self) -> Balance:
        balance: Balance = await self._ask("balance")
        return balance

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[AsyncIterator[Update]]:
        yield self._frames(await self._ask("frames", None))

    async def _frames(self, told: list[Update]) -> AsyncIterator[Update]:
        seen = len(told)
        while True:
            await asyncio.sleep(0.05)  # the stand-in is asked for frames over HTTP, which tells nobody by itself
            for update in await self._ask("frames", seen):
                seen += 1
                yield update

    async def close(self) -> None:
        await self._http.aclose()


class RemoteAdapter:
    """The kind of venue."""

    name = PLAIN.name
    capabilities = PLAIN.capabilities
    secrets = frozenset[str]()

    def open(self, account: Account, secrets: Mapping[str, str]) -> RemoteVenue:
        del account, secrets
        return RemoteVenue(os.environ["OPENBELL_TEST_VENUE"])


async def _nothing(account: Account) -> Mapping[str, str]:
    del account
    return {}


def build(env: Environment) -> Service:
    """Build the service as its own process does."""
    service = Service("broker", env, READS)
    return assemble(service, env, BrokerSettings(), [RemoteAdapter()], _nothing, calendar=Calendar(always_open))


if __name__ == "__main__":
    main(build)
