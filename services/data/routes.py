"""GET /realtime-options/{symbol}: the last good chain, with where it is from and how old it is."""

from datetime import date, datetime
from typing import Annotated

import msgspec
from litestar import get
from litestar.params import FromPath, QueryParameter
from litestar.types import ControllerRouterHandler

from services.data.service import DataService, LastGood
from shared.http import Caller
from shared.messaging.door import Door


class OptionRow(msgspec.Struct, frozen=True):
    """One contract. Prices are USD a share; `open_interest` is of the previous session."""

    contract: str
    expiration: date
    right: str
    strike: float
    bid: float | None
    ask: float | None
    last: float | None
    volume: int | None
    open_interest: int | None
    iv: float | None
    delta: float | None
    gamma: float | None
    theta: float | None
    vega: float | None


class Underlying(msgspec.Struct, frozen=True):
    """The underlying's quote, USD a share; `close` is of the regular session."""

    close: float | None
    bid: float | None
    ask: float | None


class OptionChain(msgspec.Struct, frozen=True):
    """A chain. `as_of` is the source's time, `delay_s` its delay then, `age_s` the time since `as_of`.

    `failures` counts fetches that failed since: above 0, the source does not answer and this is the last
    good.
    """

    symbol: str
    source: str
    simulated: bool
    session: date
    as_of: datetime
    delay_s: float
    age_s: float
    failures: int
    underlying: Underlying
    count: int
    contracts: list[OptionRow]


def handlers(service: DataService, door: Door) -> list[ControllerRouterHandler]:
    """Return the routes."""

    @get("/realtime-options/{symbol:str}", caller=Caller.USER)
    async def realtime_options(
        symbol: FromPath[str],
        contract: Annotated[str | None, QueryParameter(description="An OCC name: AAPL260724C00110000")] = None,
    ) -> OptionChain:
        """Return the last good option chain of a symbol, or one contract of it."""
        async with door.read() as tx:
            return as_answer(await service.last_good(symbol, contract, tx))

    return [realtime_options]


def as_answer(last: LastGood) -> OptionChain:
    """Return the chain as it is served."""
    header = last.header
    columns = {name: last.contracts[name].to_pylist() for name in OptionRow.__struct_fields__}
    for name in ("volume", "open_interest"):
        columns[name] = [None if value is None else int(value) for value in columns[name]]
    rows = [OptionRow(*row) for row in zip(*columns.values(), strict=True)]
    return OptionChain(
        symbol=header.symbol,
        source=header.source,
        simulated=header.simulated,
        session=header.session,
        as_of=header.as_of,
        delay_s=header.delay_s,
        age_s=round(last.age_s, 1),
        failures=last.failures,
        underlying=Underlying(header.close, header.bid, header.ask),
        count=len(rows),
        contracts=rows,
    )
