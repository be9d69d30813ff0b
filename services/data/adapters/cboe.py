"""Cboe's delayed quotes: whole option chains as JSON, free, without a key, 15 minutes late.

Two clocks meet in one answer. Its `timestamp` is UTC: when Cboe wrote the answer. (Seen live by others at
15:10 UTC: "15:09:24". The recorded AAPL answer, 2026-07-25 03:44:38, is thus 23:44 in New York on the 24th,
the evening of the session whose last trades it shows.) `last_trade_time` is New York time. The timestamp
moves on when the market is closed, so a newer answer need not hold newer trades.

`current_price` is after hours; the underlying's price is `close`.

Unknown symbols answer 403 or 404, and so does everything when Cboe has blocked our address. So a 403 is believed
about its symbol only while `SURE_SYMBOL` is not refused as well.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final, cast

import httpx
import orjson

from services.data.domain.chain import Snapshot, Validators, clean_chain, price
from services.data.domain.symbols import parse_symbol
from services.data.ports import Ended, QuoteFeed, Unchanged, UnusableAnswer
from shared.clock import Clock
from shared.contracts.data import ChainHeader, Source
from shared.errors import NotFound, Permanent, Transient
from shared.external import Client
from shared.pacing import TokenBucket
from shared.sessions import Sessions, seconds_until_open

DELAY_S: Final = 900.0
SURE_SYMBOL: Final = "SPY"  # there as long as there are option chains
AHEAD: Final = timedelta(minutes=5)
FIELDS: Final = {
    "contract": "option",
    "bid": "bid",
    "ask": "ask",
    "last": "last_trade_price",
    "volume": "volume",
    "open_interest": "open_interest",
    "iv": "iv",
    "delta": "delta",
    "gamma": "gamma",
    "theta": "theta",
    "vega": "vega",
}
"""Our column: Cboe's key."""


class CboeSource:
    """Asks Cboe, with conditional requests, for one symbol at a time."""

    name: Source = "cboe"
    delay_s: float = DELAY_S
    quotes: QuoteFeed | None = None

    def __init__(
        self,
        *,
        base_url: str,
        sessions: Sessions,
        clock: Clock,
        rate_per_s: float = 2.0,
        poll_every_s: float = 60.0,
        timeout_s: float = 20.0,
        max_bytes: int = 64_000_000,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.poll_every_s = poll_every_s
        self._sessions = sessions
        self._clock = clock
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._sleep = sleep
        self._bucket = TokenBucket(rate_per_s, burst=max(rate_per_s, 1.0))
        self._parsing = asyncio.Semaphore(1)  # one large answer in memory as Python objects, not all of a batch
        self._client = Client(
            "cboe",
            base_url=base_url,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            headers={"accept": "application/json", "user-agent": "openbell (+option chains, delayed)"},
        )

    def offers(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """Ask for every configured symbol: only Cboe knows which it has."""
        return tuple(symbols)

    def opens_in_s(self, now: datetime) -> float:
        """Return 0 in the session as Cboe shows it: New York's hours, 15 minutes later."""
        return seconds_until_open(self._sessions, now, self.delay_s)

    async def reachable(self, within_s: float) -> bool:
        """Say whether Cboe answers at all; any status will do."""
        try:
            async with asyncio.timeout(within_s):
                await self._client.head("/")
        except (httpx.HTTPError, TimeoutError):
            return False
        return True

    async def fetch(self, symbol: str, known: Validators) -> Snapshot | Unchanged | Ended:
        """Return the newest chain, or Unchanged on 304."""
        path = _path(parse_symbol(symbol))
        headers = {"if-none-match": known.etag, "if-modified-since": known.last_modified}
        request = self._client.build_request("GET", path, headers={k: v for k, v in headers.items() if v})
        await self._sleep(self._bucket.reserve(self._clock()))
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    if response.status_code == HTTPStatus.NOT_MODIFIED:
                        return Unchanged()
                    if response.status_code == HTTPStatus.FORBIDDEN:
                        await self._check_not_blocked()
                    _check_status(response, symbol)
                    body = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise Transient("Cboe did not answer in time", symbol=symbol) from error
        except httpx.DecodingError as error:
            raise UnusableAnswer("Cboe's answer does not decompress", symbol=symbol) from error
        except httpx.HTTPError as error:
            raise Transient(f"Cboe cannot be reached: {type(error).__name__}", symbol=symbol) from error
        validators = Validators(response.headers.get("etag"), response.headers.get("last-modified"))
        async with self._parsing:
            snapshot = await asyncio.to_thread(
                parse_answer,
                body,
                source=self.name,
                sessions=self._sessions,
                symbol=symbol,
                validators=validators,
            )
        if snapshot.header.as_of > self._clock() + AHEAD:
            raise UnusableAnswer("Cboe's answer is dated in the future", symbol=symbol)
        return snapshot

    async def _check_not_blocked(self) -> None:
        """Raise Transient when Cboe refuses even what it surely has."""
        await self._sleep(self._bucket.reserve(self._clock()))
        answer = await self._client.head(_path(SURE_SYMBOL))
        if answer.status_code == HTTPStatus.FORBIDDEN:
            raise Transient("Cboe refuses everything we ask for", status=HTTPStatus.FORBIDDEN)

    async def _read(self, response: httpx.Response) -> bytes:
        parts = bytearray()
        async for part in response.aiter_bytes():
            parts += part
            if len(parts) > self._max_bytes:
                raise UnusableAnswer("Cboe's answer is too large", max_bytes=self._max_bytes)
        return bytes(parts)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def parse_answer(
    body: bytes,
    *,
    source: Source,
    sessions: Sessions,
    symbol: str | None = None,
    validators: Validators = Validators(),  # noqa: B008 - frozen
) -> Snapshot:
    """Return the chain of one Cboe option answer; raises UnusableAnswer with what is wrong.

    With `symbol`, an answer about another one is refused.
    """
    answer = _object(_decode(body), "answer")
    data = _object(answer.get("data"), "data")
    rows = data.get("options")
    if not isinstance(rows, list):
        raise UnusableAnswer("the answer has no list of options")
    told = answer.get("symbol", data.get("symbol"))
    if not isinstance(told, str) or (symbol is not None and told != symbol):
        raise UnusableAnswer("the answer is about another symbol", asked=symbol, told=str(told)[:32])
    as_of = _timestamp(answer.get("timestamp"))
    try:
        session = sessions.at(as_of - timedelta(seconds=DELAY_S))
    except ValueError as error:
        raise UnusableAnswer(f"the answer's time: {error}") from error
    contracts, dropped = clean_chain(cast("list[Any]", rows), FIELDS, session.day)
    if contracts.num_rows == 0:
        raise UnusableAnswer("the chain is empty", symbol=told, dropped=dict(dropped))
    header = ChainHeader(
        symbol=parse_symbol(told),
        session=session.day,
        as_of=as_of,
        source=source,
        simulated=False,
        delay_s=DELAY_S,
        close=price(data.get("close")),
        bid=price(data.get("bid")),
        ask=price(data.get("ask")),
    )
    return Snapshot(header, contracts, validators, dropped)


def _path(symbol: str) -> str:
    return f"/api/global/delayed_quotes/options/{symbol}.json"


def _decode(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass  # a literal NaN is not JSON, yet some writers emit it: one such row must not cost the chain
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer("the answer is not JSON", starts=body[:40].decode("latin-1")) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnusableAnswer(f"the {what} is not an object")
    return cast("dict[str, Any]", value)


def _timestamp(value: Any) -> datetime:
    try:
        return datetime.strptime(value, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except (TypeError, ValueError) as error:
        raise UnusableAnswer("the answer's timestamp is not a time", timestamp=str(value)[:40]) from error


def _check_status(response: httpx.Response, symbol: str) -> None:
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    if status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
        raise NotFound("Cboe does not know this symbol", symbol=symbol, status=status)
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Transient("Cboe asks for patience", retry_after_s=_retry_after_s(response), status=status)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        raise Transient("Cboe gave up on the request", status=status)
    raise Permanent("Cboe refused the request", status=status)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds of Retry-After; its date form is rare and our own back-off serves as well."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None
