"""A stand-in for tastytrade's open API: a real HTTP and WebSocket server over one account.

    async with FakeTastytrade() as fake:
        fake.hosts                                # where its API and its streamer answer
        fake.fill(order, Decimal(40), Decimal("9.5"))
        fake.fail("POST", "/orders", Fault(503))  # the next one, before it has an effect

`desk` keeps orders, positions, money and history; `wire` speaks: OAuth, the User-Agent, pages, errors, the streamer.
Its faults are the documented ones: no idempotency, tokens of fifteen minutes, 429 without a time, dropped frames,
replacements that a fill aborts.
"""

from tests.fakes.tastytrade.desk import Desk, Placed, Refused
from tests.fakes.tastytrade.wire import CLIENT_SECRET, REFRESH_TOKEN, FakeTastytrade, Fault

__all__ = ["CLIENT_SECRET", "REFRESH_TOKEN", "Desk", "FakeTastytrade", "Fault", "Placed", "Refused"]
