"""Alpaca's public quotes of crypto pairs: the top of its own order book, free, without a key, all pairs in one answer.

A pair that Alpaca does not trade is left out of the answer, or has the whole request refused (400): see `PairSource`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, cast

import httpx

from services.data.domain.pairs import PairQuote, fault
from services.data.ports import PairQuotes, UnusableAnswer
from shared.clock import Clock
from shared.errors import Invalid, Permanent, Transient
from shared.external import Client

AHEAD: Final = timedelta(seconds=5)
PATH: Final = "/v1beta3/crypto/us/latest/quotes"
_NAMES: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY})


class AlpacaPairs:
    """Asks Alpaca for all pairs at once."""

    name = "alpaca"
    simulated = False

    def __init__(self, *, base_url: str, clock: Clock, every_s: float, timeout_s: float = 10.0) -> None:
        self.every_s = every_s
        self._clock = clock
        self._timeout_s = timeout_s
        self._client = Client(
            "alpaca_data",
            base_url=base_url,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            headers={"accept": "application/json", "user-agent": "openbell (+crypto quotes)"},
        )

    async def quotes(self, pairs: Sequence[str]) -> PairQuotes:
        """Return the quotes of pairs."""
        try:
            answer = await self._client.get(PATH, params={"symbols": ",".join(pairs)})
        except httpx.DecodingError as error:
            raise UnusableAnswer("Alpaca's answer does not decompress") from error
        except httpx.HTTPError as error:
            raise Transient(f"Alpaca cannot be reached: {type(error).__name__}") from error
        _check_status(answer)
        told = _told(answer.content)
        found = list[PairQuote]()
        dropped = Counter[str]()
        latest = self._clock() + AHEAD
        for pair in pairs:
            quote = _quote(pair, told[pair]) if pair in told else None
            why = ("unreadable" if pair in told else None) if quote is None else fault(quote, latest)
            if why is not None:
                dropped[why] += 1
            elif quote is not None:
                found.append(quote)
        return PairQuotes(found, dropped)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _check_status(answer: httpx.Response) -> None:
    status = answer.status_code
    if status == HTTPStatus.OK:
        return
    if status in _NAMES:
        raise Invalid("Alpaca does not take one of the pairs", status=status)
    if (
        status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT}
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        after = answer.headers.get("retry-after", "")
        wait_s = float(after) if after.isascii() and after.isdigit() else None
        raise Transient("Alpaca asks for patience", retry_after_s=wait_s, status=status)
    raise Permanent("Alpaca refused the request", status=status)


def _told(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer("Alpaca's answer is not JSON", starts=body[:40].decode("latin-1")) from error
    quotes = cast("dict[str, Any]", answer).get("quotes") if isinstance(answer, dict) else None
    if not isinstance(quotes, dict):
        raise UnusableAnswer("Alpaca's answer has no quotes")
    return cast("dict[str, Any]", quotes)


def _quote(pair: str, told: Any) -> PairQuote | None:
    """Return a quote: `bp` and `ap` are its prices, `t` is when it was made. None when that is not what was told."""
    if not isinstance(told, dict):
        return None
    fields = cast("dict[str, Any]", told)
    bid, ask, at = _number(fields.get("bp")), _number(fields.get("ap")), fields.get("t")
    try:
        as_of = datetime.fromisoformat(at) if isinstance(at, str) else None
    except ValueError:
        return None
    if bid is None or ask is None or as_of is None or as_of.tzinfo is None:
        return None
    return PairQuote(pair, as_of, bid, ask)


def _number(told: Any) -> Decimal | None:
    return Decimal(told) if isinstance(told, int | Decimal) and not isinstance(told, bool) else None
