"""What coins are worth: a public spot price over HTTP, or figures of the settings.

The HTTP interface is Coinbase's: GET /v2/prices/BTC-USD/spot, {"data": {"amount": "…", "base": "BTC", "currency":
"USD"}}. An answer about another pair, or whose amount is no positive number, counts as no answer.
"""

import logging
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import httpx

from services.payment.ports import Rate, RateUnavailable
from shared.clock import Clock
from shared.external import Client


class FixedRates:
    """Rates of the settings: for development, and for a person who keeps them up to date."""

    def __init__(self, usd: Mapping[str, Decimal], clock: Clock) -> None:
        self._usd = dict(usd)
        self._clock = clock

    async def rate(self, symbol: str) -> Rate:
        """Return the rate; raises RateUnavailable for an asset that has none."""
        if symbol not in self._usd:
            raise RateUnavailable(asset=symbol)
        return Rate(self._usd[symbol], "settings", self._clock())

    async def close(self) -> None:
        """Nothing is open."""


class SpotRates:
    """Spot prices of an exchange."""

    def __init__(self, base_url: str, clock: Clock, *, timeout_s: float = 5.0) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._base = base_url.rstrip("/")
        self._clock = clock
        self._timeout_s = timeout_s
        self._http: httpx.AsyncClient | None = None

    async def rate(self, symbol: str) -> Rate:
        """Ask for the rate; raises RateUnavailable."""
        if self._http is None:
            self._http = Client("rates", timeout=self._timeout_s, headers={"user-agent": "Openbell (payment)"})
        try:
            answer = await self._http.get(f"{self._base}/v2/prices/{symbol}-USD/spot")
        except httpx.HTTPError:
            raise RateUnavailable(asset=symbol) from None
        amount = _amount(answer, symbol) if answer.is_success else None
        if amount is None:
            raise RateUnavailable(asset=symbol)
        return Rate(amount, "spot", self._clock())

    async def close(self) -> None:
        """Close the connections; another question opens new ones."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()


def _amount(answer: httpx.Response, symbol: str) -> Decimal | None:
    try:
        data = answer.json()["data"]
        amount = Decimal(str(data["amount"]))
        told = (data["base"], data["currency"])
    except (ValueError, KeyError, TypeError, InvalidOperation):
        return None
    return amount if told == (symbol, "USD") and amount.is_finite() and amount > 0 else None
