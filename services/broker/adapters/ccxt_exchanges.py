"""What differs from exchange to exchange: which can be traded without doubt, what each takes, how an order is asked.

An exchange is taken only where ccxt hands it our order id: without that, a submit without an answer could never be
looked up, and might be doubled. The lists here were read from ccxt 4.5.64 and the exchanges' documents.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal, localcontext
from typing import Any, Final

from services.broker.adapters.ccxt_wire import Declined, Form
from services.broker.domain.checks import Capabilities
from services.broker.domain.instruments import Crypto
from services.broker.domain.orders import OrderType, Terms, TimeInForce
from services.broker.ports import VenueRefused
from shared.work import OutcomeUnknown

CARRIES_IDS: Final = frozenset(
    {
        "aster",
        "bigone",
        "binance",
        "binanceus",
        "bingx",
        "bitget",
        "bitmart",
        "bitrue",
        "bitstamp",
        "bittrade",
        "blockchaincom",
        "btcmarkets",
        "bullish",
        "bybit",
        "coinbase",
        "coinbaseexchange",
        "coinex",
        "coinsph",
        "cryptocom",
        "foxbit",
        "gate",
        "gemini",
        "hashkey",
        "hitbtc",
        "htx",
        "kraken",
        "kucoin",
        "latoken",
        "lbank",
        "mexc",
        "myokx",
        "okx",
        "okxus",
        "onetrading",
        "poloniex",
        "tokocrypto",
        "toobit",
        "weex",
        "whitebit",
        "woo",
    }
)
"""Spot exchanges to which ccxt passes a client order id that is free text."""
FORMS: Final[Mapping[str, Form]] = {
    "bitmart": "hex",  # 32 letters and digits
    "gate": "short",  # 28 characters
    "hitbtc": "hex",  # 32 characters
    "mexc": "hex",  # 32 characters
    "myokx": "hex",  # 32 letters and digits
    "okx": "hex",
    "okxus": "hex",
}
KNOWS_IDS: Final = frozenset({"bitstamp"})
"""Exchanges whose documents say that a known id is refused (Bitstamp: 400.019, "already exists"). Binance, Kraken and
WhiteBIT do so among open orders only, which is not enough."""
BY_OUR_ID: Final = frozenset({"binance", "binanceus", "bitstamp", "coinbaseexchange", "myokx", "okx", "okxus"})
"""Where ccxt's fetchOrder and cancelOrder take the client order id."""
ONE_BOOK: Final = frozenset({"binance", "binanceus"})
"""Where stop orders are told with all others; elsewhere a look-up could miss them."""

STRANGERS: Final = frozenset({"binanceus"})
"""Whose sandbox and WebSocket ccxt has from another company's exchange: our credentials do not go there."""

_CURRENCIES: Final = ("USD", "USDT", "USDC", "EUR", "BTC")
_SIMULATED: Final = "x-simulated-trading"  # OKX: the same address, and a header
_EXTRA: Final[Mapping[str, str]] = {"ioc": "IOC", "fok": "FOK"}


def capabilities(name: str, exchange: Any) -> Capabilities:
    """Return what an exchange takes. Raises VenueRefused for one that cannot be traded without doubt."""
    has: Mapping[str, Any] = exchange.has
    if exchange.id not in CARRIES_IDS or has.get("spot") is False:
        raise VenueRefused(f"{exchange.id} does not take our order ids through ccxt")
    if not (has.get("createOrder") and has.get("fetchOrder") is True and has.get("fetchMyTrades") is True):
        raise VenueRefused(f"{exchange.id} does not tell enough of its orders through ccxt")
    told = _features(exchange, "createOrder")
    types: set[OrderType] = {"market", "limit"} if has.get("createMarketOrder") is not False else {"limit"}
    if exchange.id in ONE_BOOK and told.get("triggerPrice"):
        types |= {"stop", "stop_limit"}
    in_force: Mapping[str, bool] = told.get("timeInForce") or {}
    times: set[TimeInForce] = {"gtc"}
    times |= {"ioc"} if in_force.get("IOC") else set()
    times |= {"fok"} if in_force.get("FOK") else set()
    by_cost = has.get("createMarketBuyOrderWithCost") is True
    return Capabilities(
        name,
        frozenset(types),
        {"crypto": frozenset(times)},
        notional=frozenset({"crypto"}) if by_cost else frozenset(),
        quotes=frozenset({"crypto"}) if has.get("fetchTicker") else frozenset(),
        most_legs=1,
    )


def sandbox(exchange: Any) -> None:
    """Point a client to the exchange's sandbox. Raises VenueRefused unless nothing of it is the live exchange."""
    live = set(addresses(exchange.urls["api"]))
    if exchange.id in STRANGERS or not exchange.urls.get("test") or _all_features(exchange).get("sandbox") is False:
        raise VenueRefused(f"{exchange.id} has no sandbox: no paper trading there")
    try:
        exchange.set_sandbox_mode(True)
    except Exception as error:  # noqa: BLE001 - whatever it says, it is no sandbox
        raise VenueRefused(f"{exchange.id} has no sandbox: {type(error).__name__}") from None
    simulated = (exchange.headers or {}).get(_SIMULATED) == "1"
    if not simulated and live & set(addresses(exchange.urls["api"])):
        raise VenueRefused(f"{exchange.id}: its sandbox has addresses of the live exchange")


def prepare(exchange: Any) -> None:
    """Set what ccxt should and should not do by itself: spot only, one attempt, the exchange's clock."""
    options: dict[str, Any] = exchange.options
    types = (options.get("fetchMarkets") or {}) if isinstance(options.get("fetchMarkets"), dict) else {}
    if isinstance(types.get("types"), list) and "spot" in types["types"]:
        types["types"] = ["spot"]
    options |= {
        "defaultType": "spot",
        "maxRetriesOnFailure": 0,
        "adjustForTimeDifference": True,
        "warnOnFetchOpenOrdersWithoutSymbol": False,
    }
    if exchange.id in {"binance", "binanceus"}:
        import ccxt  # noqa: PLC0415 - the client is there, so this is

        options |= {"fetchMargins": False, "fetchCurrencies": False}  # other interfaces, other permissions
        # ccxt takes it for any other refusal (-2010)
        exchange.exceptions.setdefault("exact", {})["Duplicate order sent."] = ccxt.DuplicateOrderId


def currency(exchange: Any) -> str:
    """Return what money is told in: the first of the usual currencies that a market is quoted in."""
    quotes = {market["quote"] for market in exchange.markets.values() if market.get("spot")}
    return next((one for one in _CURRENCIES if one in quotes), "USD")


def request(exchange: Any, terms: Terms, client_id: str) -> tuple[str, tuple[Any, ...]]:
    """Return ccxt's method and arguments for an order. Raises Declined for what it could not carry out exactly."""
    leg, market = terms.legs[0], terms.type in {"market", "stop"}
    if len(terms.legs) > 1 or terms.order_class != "simple" or not isinstance(leg.instrument, Crypto):
        raise Declined("one crypto pair in a simple order, and nothing else")
    symbol = leg.instrument.key
    params = {"clientOrderId": client_id, **_in_force(terms, market=market)}
    if terms.notional is not None:
        if terms.type != "market" or leg.side != "buy":
            raise Declined("only what is bought at the market can be ordered by its value")
        return "create_market_buy_order_with_cost", (symbol, f"{terms.notional:f}", params)
    if terms.quantity is None or (terms.limit is None) != market:
        raise Declined("give a quantity, and a limit where there is one")
    amount = _exact(exchange.amount_to_precision, symbol, terms.quantity)
    price = None if terms.limit is None else _exact(exchange.price_to_precision, symbol, terms.limit)
    if terms.stop is not None:
        if exchange.id not in ONE_BOOK:
            raise Declined("no stop orders here")
        params["triggerPrice"] = _exact(exchange.price_to_precision, symbol, terms.stop)
    return "create_order", (symbol, "market" if market else "limit", leg.side, amount, price, params)


def _in_force(terms: Terms, *, market: bool) -> dict[str, str]:
    """Return how long it works, in ccxt's words. What goes at the market goes at once by itself."""
    wanted = terms.time_in_force
    if wanted not in {"gtc", *_EXTRA}:
        raise Declined(f"no {wanted} orders here: gtc, ioc or fok")
    if market and wanted == "fok":
        raise Declined("a market order is never all or nothing here: give a limit")
    return {"timeInForce": _EXTRA[wanted]} if not market and wanted in _EXTRA else {}


def _exact(rounded: Any, symbol: str, value: Decimal) -> str:
    """Return a number's text. Raises Declined where ccxt would round it."""
    text = f"{value:f}"
    try:
        with localcontext():  # ccxt sets the rounding and the traps of whatever context it finds
            kept = Decimal(rounded(symbol, text))
    except Exception as error:  # noqa: BLE001 - ccxt refuses numbers below a step by errors of several kinds
        raise Declined(f"{text} is below what {symbol} is traded in ({type(error).__name__})") from None
    if kept != value:
        raise Declined(f"{text} is no multiple of the step of {symbol}")
    return text


def listings(exchange: Any) -> Iterator[tuple[str, str]]:
    """Return how to ask for orders that are over: method, and ccxt's name of it."""
    has: Mapping[str, Any] = exchange.has
    for name, method in (
        ("fetchOrders", "fetch_orders"),
        ("fetchCanceledAndClosedOrders", "fetch_canceled_and_closed_orders"),
    ):
        if has.get(name) is True:
            yield method, name
            return
    for name, method in (
        ("fetchClosedOrders", "fetch_closed_orders"),
        ("fetchCanceledOrders", "fetch_canceled_orders"),
    ):
        if has.get(name) is True:
            yield method, name


def lists_all(exchange: Any) -> bool:
    """Return whether an order that is in no listing was never there; those of filled orders alone do not tell."""
    names = {name for _, name in listings(exchange)}
    whole = {"fetchOrders", "fetchCanceledAndClosedOrders"}
    return exchange.has.get("fetchOpenOrders") is True and (bool(names & whole) or len(names) > 1)


def wants_symbol(exchange: Any, name: str) -> bool:
    """Return whether a listing is given for one symbol at a time only."""
    return bool(_features(exchange, name).get("symbolRequired"))


def window_ms(exchange: Any, name: str) -> int | None:
    """Return how long a time one answer of a listing spans at most."""
    days = _features(exchange, name).get("untilDays")
    return None if days is None else int(days) * 86_400_000


def clock_is_off(exchange: Any, error: Exception) -> bool:
    """Return whether an exchange refuses our time, and can tell its own."""
    import ccxt  # noqa: PLC0415 - the client is there, so this is

    return isinstance(error, ccxt.InvalidNonce) and bool(exchange.has.get("fetchTime"))


def watches(exchange: Any) -> bool:
    """Return whether the exchange's WebSocket tells of orders."""
    return exchange.has.get("watchOrders") is True and exchange.id not in STRANGERS


def never_watches(error: Exception) -> bool:
    """Return whether asking for the WebSocket again is of no use."""
    import ccxt  # noqa: PLC0415 - same

    return isinstance(error, ccxt.NotSupported | ccxt.ArgumentsRequired | ccxt.AuthenticationError)


def in_doubt(exchange: Any) -> OutcomeUnknown:
    """Return the error of what only a person can find out, or a later look-up."""
    return OutcomeUnknown(f"{exchange.id} does not tell whether it has the order")


def _all_features(exchange: Any) -> Mapping[str, Any]:
    return (exchange.features or {}).get("spot") or {}


def _features(exchange: Any, name: str) -> Mapping[str, Any]:
    return _all_features(exchange).get(name) or {}


def addresses(urls: Any) -> Iterator[str]:
    """Return every address of what ccxt keeps as a tree."""
    if isinstance(urls, Mapping):
        for one in urls.values():
            yield from addresses(one)
    elif isinstance(urls, str):
        yield urls
