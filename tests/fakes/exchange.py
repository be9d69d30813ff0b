"""Binance's spot REST interface (api/v3), as far as ccxt uses it: signed requests, orders, trades, balances, filters.

One market, BTCUSD, which Binance's own testnet does not have: the conformance cases trade BTC/USD. Orders rest until
`fill`: it does not match. As there, fees are taken in what is received: in BTC of what is bought, in USD of what is
sold. Everything is on 127.0.0.1.
"""

import hashlib
import hmac
import json
import threading
import time
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

KEY: Final = "key-of-the-account"
SECRET: Final = "secret-of-the-account"
FEE: Final = Decimal("0.001")
ENDS: Final = {"canceled": "CANCELED", "expired": "EXPIRED", "rejected": "REJECTED"}
WORKING: Final = frozenset({"NEW", "PARTIALLY_FILLED", "PENDING_CANCEL"})
UNIT: Final = Decimal("0.00000001")

Answer = tuple[int, Any]


class Exchange:
    """An ASGI application and what is behind it. `orders` and `trades` are as the exchange would tell them."""

    def __init__(self, cash: Decimal = Decimal(100_000)) -> None:
        self.lock = threading.RLock()
        self.cash, self.coins = cash, Decimal(0)
        self.orders: list[dict[str, Any]] = []
        self.trades: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.skew_s = 0.0
        self.fee_coin: str | None = None  # what every fee is taken in, BNB for one; else what is received
        self.reason: str | None = None
        self.errors: list[tuple[int, Any]] = []  # answers to the next requests, whatever they ask
        self.lost: str | None = None
        self.holding = self.cut = False
        self.quote: tuple[str | None, str | None] = ("100.00", "100.02")
        self.page = 500  # how much a listing tells at once

    # A hand on it

    def order(self, client_id: str) -> dict[str, Any]:
        return next(one for one in reversed(self.orders) if one["clientOrderId"] == client_id)

    def fill(self, client_id: str, quantity: Decimal, price: Decimal) -> str:
        with self.lock:
            order = self.order(client_id)
            buys = order["side"] == "BUY"
            value = quantity * price
            fee = (quantity if buys else value) * FEE
            coin = self.fee_coin or ("BTC" if buys else "USD")
            self.coins += (quantity if buys else -quantity) - (fee if coin == "BTC" else 0)
            self.cash += (-value if buys else value) - (fee if coin == "USD" else 0)
            trade_id = 1000 + len(self.trades)
            self.trades.append(
                {
                    "symbol": "BTCUSD",
                    "id": trade_id,
                    "orderId": order["orderId"],
                    "price": _text(price),
                    "qty": _text(quantity),
                    "quoteQty": _text(value),
                    "commission": _text(fee),
                    "commissionAsset": coin,
                    "time": self.now(),
                    "isBuyer": buys,
                    "isMaker": True,
                }
            )
            done = Decimal(order["executedQty"]) + quantity
            order["executedQty"] = _text(done)
            order["cummulativeQuoteQty"] = _text(Decimal(order["cummulativeQuoteQty"]) + value)
            order["updateTime"] = self.now()
            if order["status"] in WORKING:
                whole = done >= Decimal(order["origQty"])
                order["status"] = "FILLED" if whole else order["status"].replace("NEW", "PARTIALLY_FILLED")
            return str(trade_id)

    def end(self, client_id: str, kind: str) -> None:
        with self.lock:
            self.order(client_id).update(status=ENDS[kind], updateTime=self.now())

    def now(self) -> int:
        return int((time.time() + self.skew_s) * 1000)

    # HTTP

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode() or body.decode()
        with self.lock:
            self.requests.append(f"{scope['method']} {scope['path']}")
            status, answer = self._answer(scope["method"], urlsplit(scope["path"]).path, query, headers)
        content = answer if isinstance(answer, str) else json.dumps(answer)
        kind = b"text/html" if isinstance(answer, str) else b"application/json"
        fields = [(b"content-type", kind), (b"retry-after", b"7")] if status == 429 else [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content.encode()})

    def _answer(self, method: str, path: str, query: str, headers: dict[str, str]) -> Answer:
        asked = dict(parse_qsl(query))
        if path.endswith(("/time", "/exchangeInfo")):
            return 200, {"timezone": "UTC", "serverTime": self.now(), "symbols": [_SYMBOL]}
        if path.endswith("/ticker/24hr"):
            bid, ask = self.quote
            return 200, {
                "symbol": "BTCUSD",
                "bidPrice": bid,
                "askPrice": ask,
                "lastPrice": "99.00",
                "closeTime": self.now(),
            }
        if self.errors:
            return self.errors.pop(0)
        if (refusal := self._refusal(asked, query, headers)) is not None:
            return refusal
        writes = method != "GET"
        lost, self.lost = (self.lost, None) if writes else (None, self.lost)
        if self.cut and not writes:
            self.cut, lost = False, "request"
        if lost == "request":
            return 503, "<html>Service Unavailable</html>"
        done = self._done(method, path.rsplit("/", 1)[1], asked)
        return (504, "<html>Gateway Time-out</html>") if lost else done

    def _refusal(self, asked: dict[str, str], query: str, headers: dict[str, str]) -> Answer | None:
        if headers.get("x-mbx-apikey") != KEY:
            return 401, {"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}
        signed, _, signature = query.rpartition("&signature=")
        if signature != hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest():
            return 400, {"code": -1022, "msg": "Signature for this request is not valid."}
        late_ms = self.now() - int(asked["timestamp"])
        if late_ms < -1000 or late_ms > int(asked.get("recvWindow", 5000)):
            return 400, {"code": -1021, "msg": "Timestamp for this request is outside of the recvWindow."}
        if asked.get("symbol", "BTCUSD") != "BTCUSD":
            return 400, {"code": -1121, "msg": "Invalid symbol."}
        return None

    def _done(self, method: str, name: str, asked: dict[str, str]) -> Answer:
        since, wanted = int(asked.get("startTime", 0)), int(asked.get("orderId", 0))
        answer: Answer = (404, "<html>Not Found</html>")
        match method, name:
            case "GET", "account":
                answer = 200, self._account()
            case "GET", "openOrders":
                answer = 200, [one for one in self.orders if one["status"] in WORKING]
            case "GET", "allOrders":
                answer = 200, [one for one in self.orders if one["time"] >= since][: self.page]
            case "GET", "myTrades":
                found = [one for one in self.trades if one["time"] >= since and wanted in {0, one["orderId"]}]
                answer = 200, found[: 500 if wanted else self.page]
            case "GET", "order":
                order = self._named(asked)
                answer = (200, order) if order else (400, {"code": -2013, "msg": "Order does not exist."})
            case "POST", "order":
                answer = self._place(asked)
            case "DELETE", "order":
                answer = self._cancel(asked)
            case _:
                pass
        return answer

    def _named(self, asked: dict[str, str]) -> dict[str, Any] | None:
        client_id, number = asked.get("origClientOrderId"), int(asked.get("orderId", 0))
        fits = [one for one in self.orders if client_id == one["clientOrderId"] or number == one["orderId"]]
        return fits[-1] if fits else None

    def _place(self, asked: dict[str, str]) -> Answer:
        reason, self.reason = self.reason, None
        if reason is not None:
            return 400, {"code": -2010, "msg": reason}
        client_id = asked["newClientOrderId"]
        if any(one["clientOrderId"] == client_id and one["status"] in WORKING for one in self.orders):
            return 400, {"code": -2010, "msg": "Duplicate order sent."}  # an id of an order that is over is taken
        if Decimal(asked.get("quantity", "1")) % Decimal("0.00001"):
            return 400, {"code": -1013, "msg": "Filter failure: LOT_SIZE"}
        now = self.now()
        order = {
            "symbol": "BTCUSD",
            "orderId": 1 + len(self.orders),
            "orderListId": -1,
            "clientOrderId": client_id,
            "price": asked.get("price", "0.00000000"),
            "origQty": asked.get("quantity", "0.00000000"),
            "executedQty": "0.00000000",
            "cummulativeQuoteQty": "0.00000000",
            "origQuoteOrderQty": asked.get("quoteOrderQty", "0.00000000"),
            "status": "NEW",
            "timeInForce": asked.get("timeInForce", "GTC"),
            "type": asked["type"],
            "side": asked["side"],
            "stopPrice": asked.get("stopPrice", "0.00000000"),
            "time": now,
            "updateTime": now,
            "isWorking": True,
        }
        self.orders.append(order)
        return 200, {**order, "transactTime": now, "fills": []}

    def _cancel(self, asked: dict[str, str]) -> Answer:
        order = self._named(asked)
        if order is None or order["status"] not in WORKING:
            return 400, {"code": -2011, "msg": "Unknown order sent."}
        held, self.holding = self.holding, False
        order.update(status="PENDING_CANCEL" if held else "CANCELED", updateTime=self.now())
        return 200, {**order, "origClientOrderId": order["clientOrderId"], "clientOrderId": "cancel-1"}

    def _account(self) -> Any:
        working = [one for one in self.orders if one["status"] in WORKING]
        bids = [one for one in working if one["side"] == "BUY"]
        cash = sum((_left(one) * Decimal(one["price"]) for one in bids), Decimal(0))
        coins = sum((_left(one) for one in working if one["side"] == "SELL"), Decimal(0))
        held = (("USD", self.cash, cash), ("BTC", self.coins, coins))
        return {
            "canTrade": True,
            "accountType": "SPOT",
            "updateTime": self.now(),
            "balances": [
                {"asset": coin, "free": _text(total - locked), "locked": _text(locked)} for coin, total, locked in held
            ],
        }


def _left(order: dict[str, Any]) -> Decimal:
    return max(Decimal(order["origQty"]) - Decimal(order["executedQty"]), Decimal(0))


def _text(value: Decimal) -> str:
    return f"{value.quantize(UNIT):f}"


_SYMBOL: Final = {
    "symbol": "BTCUSD",
    "status": "TRADING",
    "baseAsset": "BTC",
    "baseAssetPrecision": 8,
    "quoteAsset": "USD",
    "quotePrecision": 8,
    "quoteAssetPrecision": 8,
    "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT"],
    "quoteOrderQtyMarketAllowed": True,
    "cancelReplaceAllowed": True,
    "isSpotTradingAllowed": True,
    "isMarginTradingAllowed": False,
    "permissions": [],
    "permissionSets": [["SPOT"]],
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "maxPrice": "1000000.00", "tickSize": "0.01000000"},
        {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000", "applyMinToMarket": True},
    ],
}
