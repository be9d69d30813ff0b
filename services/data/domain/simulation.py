"""The simulated market: everything follows from (seed, symbol, day, time of day), nothing is remembered.

The clock. A simulated session is a day in UTC, any day of the week, and its date is the real date, so that a
demonstration works at any hour, a restart continues where the wall clock is, and "today's" alerts of a user
are one a day for each symbol as in the live market: what happens later in the day updates them. Sessions may
be made shorter (`session_s`, for tests and hurried demonstrations); then the date runs ahead of the calendar,
from the real date at midnight, by one day a session. `as_of` is always wall-clock time.

The spot walks real daily closes: on day n from one close of the data set to the next, along a Brownian
bridge.

Unusual prints. `unusual` contracts of a session are drawn, each with the moment at which its volume jumps;
the first at the open. From then on they meet the rule volume > 500, open interest > 100, last > 0.10 and
volume / open interest >= 1.25. No other contract ever does: its volume stays below its open interest.
"""

import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.data.domain.columns import Days, Flags, Floats, dates, numbers, strings
from services.data.domain.pricing import black_scholes
from services.data.domain.symbols import occ_name
from shared.contracts.data import CHAIN_SCHEMA
from shared.sessions import Sessions

STRIKES_EACH_SIDE: Final = 12
WEEKLIES: Final = 4
MONTHLIES: Final = 5
FRIDAY: Final = 4
BRIDGE_TERMS: Final = 64
MIN_SPREAD_USD: Final = 0.01
_YEAR_DAYS: Final = 365.0


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the simulated market is: its session's date, and how much of the session is over (0 to 1)."""

    session: date
    done: float


def moment_of(now: datetime, session_s: float) -> Moment:
    """Return the simulated moment of a wall-clock time; see the module's docstring."""
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC)
    ahead, into = divmod((now - midnight).total_seconds(), session_s)
    return Moment(midnight.date() + timedelta(days=int(ahead)), into / session_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """A symbol's session, decided at its open: contracts, what they will have traded, where the spot goes."""

    symbol: str
    session: date
    names: list[str]
    expiration: Days
    call: Flags
    strike: Floats
    iv: Floats
    open_interest: Floats
    full_volume: Floats  # at the end of the session, without unusual prints
    unusual: npt.NDArray[np.int64]  # rows
    prints_at: Floats  # for each unusual row, the part of the session after which it has printed
    print_size: Floats  # contracts
    first_close: float
    last_close: float
    wobble: Floats  # the Brownian bridge's coefficients, USD


def plan_session(  # one draw after another, in an order that the seed fixes
    symbol: str, session: date, closes: Floats, sessions: Sessions, *, seed: int, unusual: int
) -> Plan:
    """Decide a session. `closes` are daily closes in USD, oldest first; at least two."""
    rng = np.random.default_rng([seed, zlib.crc32(symbol.encode()), session.toordinal()])
    step = session.toordinal() % (len(closes) - 1)
    first, last = float(closes[step]), float(closes[step + 1])
    expirations = expirations_after(session, sessions)
    ladder = strikes_around(first)
    count = len(expirations) * len(ladder) * 2
    expiration = np.repeat(np.array(expirations, "datetime64[D]"), len(ladder) * 2)
    strike = np.tile(np.repeat(ladder, 2), len(expirations))
    call = np.tile(np.array([True, False]), count // 2)
    years = np.maximum((expiration - np.datetime64(session)).astype(float), 0.5) / _YEAR_DAYS
    away = np.log(strike / first)
    base = rng.uniform(0.20, 0.40)
    iv = np.clip(base - 0.12 * away + 0.9 * away**2 / np.sqrt(years + 0.1), 0.05, 2.0)
    near = np.exp(-np.abs(away) * 12) / np.sqrt(years * 12 + 1)
    open_interest = np.floor(rng.lognormal(6.0, 1.0, count) * (0.2 + near)) + 1
    full_volume = np.floor(open_interest * rng.uniform(0.0, 0.95, count) * (0.1 + 0.9 * near))
    # An unusual print must qualify at any moment: worth more than 0.10 whatever the spot does.
    lowest, highest = min(first, last) * 0.94, max(first, last) * 1.06
    floor_price = np.where(
        call,
        black_scholes(lowest, strike, years, iv, call).price,
        black_scholes(highest, strike, years, iv, call).price,
    )
    fit = np.flatnonzero((floor_price > 0.2) & (open_interest >= 150))  # noqa: PLR2004 - the rule's, with room
    chosen = rng.choice(fit, size=min(unusual, len(fit)), replace=False)
    size = np.ceil(np.maximum(open_interest[chosen] * rng.uniform(1.3, 9.0, len(chosen)), 501))
    prints_at = rng.uniform(0.0, 1.0, len(chosen))
    prints_at[:1] = 0.0
    names = [
        occ_name(symbol.lstrip("_").replace(".", ""), when, "C" if is_call else "P", usd)
        for when, is_call, usd in zip(_yymmdd(expiration), call, strike, strict=True)
    ]
    wobble = rng.standard_normal(BRIDGE_TERMS) * base * first / np.sqrt(252)
    return Plan(
        symbol=symbol,
        session=session,
        names=names,
        expiration=expiration,
        call=call,
        strike=strike,
        iv=iv,
        open_interest=open_interest,
        full_volume=full_volume,
        unusual=chosen,
        prints_at=prints_at,
        print_size=size,
        first_close=first,
        last_close=last,
        wobble=wobble,
    )


def spot_at(plan: Plan, done: float) -> float:
    """Return the underlying's price: from close to close, plus a Brownian bridge (Karhunen-Loeve series)."""
    k = np.arange(1, BRIDGE_TERMS + 1)
    bridge = float(np.sum(plan.wobble * np.sqrt(2) * np.sin(np.pi * k * done) / (np.pi * k)))
    straight = plan.first_close + (plan.last_close - plan.first_close) * done
    low, high = sorted((plan.first_close, plan.last_close))
    return round(min(max(straight + bridge, low * 0.95), high * 1.05), 2)


def chain_at(plan: Plan, done: float) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
    """Return the chain after that part of the session, as a table of CHAIN_SCHEMA."""
    remaining = (plan.expiration - np.datetime64(plan.session)).astype(float) + 1 - done
    priced = black_scholes(spot_at(plan, done), plan.strike, remaining / _YEAR_DAYS, plan.iv, plan.call)
    half_spread = np.maximum(priced.price * 0.01, MIN_SPREAD_USD / 2)
    bid = np.maximum(np.floor((priced.price - half_spread) * 100) / 100, 0.0)
    ask = np.ceil((priced.price + half_spread) * 100) / 100
    volume = np.floor(plan.full_volume * done)
    printed = plan.prints_at <= done
    rows = plan.unusual[printed]
    volume[rows] += plan.print_size[printed]
    last = np.round(priced.price, 2)
    last[rows] = ask[rows]  # whoever was in a hurry paid the ask
    columns = {
        "contract": strings(plan.names),
        "expiration": dates(plan.expiration),
        "right": strings(np.where(plan.call, "C", "P").tolist()),
        "strike": numbers(plan.strike),
        "bid": numbers(bid),
        "ask": numbers(ask),
        "last": numbers(last),
        "volume": numbers(volume),
        "open_interest": numbers(plan.open_interest),
        "iv": numbers(np.round(plan.iv, 4)),
        "delta": numbers(np.round(priced.delta, 4)),
        "gamma": numbers(np.round(priced.gamma, 5)),
        "theta": numbers(np.round(priced.theta, 4)),
        "vega": numbers(np.round(priced.vega, 4)),
    }
    return pa.Table.from_arrays([columns[name] for name in CHAIN_SCHEMA.names], schema=CHAIN_SCHEMA)


def expirations_after(session: date, sessions: Sessions) -> list[date]:
    """Return the next Fridays and the third Fridays of the months after them, all after `session`.

    A Friday without trading gives way to the trading day before it.
    """
    first = session + timedelta(days=(FRIDAY - session.weekday()) % 7)
    fridays = [first + timedelta(weeks=week) for week in range(WEEKLIES + 1)]
    third = [_third_friday(session.year, session.month + month) for month in range(MONTHLIES + 2)]
    monthlies = [day for day in third if day > fridays[WEEKLIES]][:MONTHLIES]
    traded = (sessions.on_or_before(day) for day in (*fridays, *monthlies))
    return sorted({found.day for found in traded if found is not None and found.day > session})


def strikes_around(spot: float) -> Floats:
    """Return strikes on both sides of the spot, in the usual steps of about 2.5% of it."""
    steps = np.array([0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0])
    step = float(steps[np.argmin(np.abs(steps - spot * 0.025))])
    middle = max(round(spot / step), STRIKES_EACH_SIDE + 1)
    return np.arange(middle - STRIKES_EACH_SIDE, middle + STRIKES_EACH_SIDE + 1).astype(np.float64) * step


def _third_friday(year: int, month: int) -> date:
    first = date(year + (month - 1) // 12, (month - 1) % 12 + 1, 1)
    return first + timedelta(days=(FRIDAY - first.weekday()) % 7 + 14)


def _yymmdd(days: Days) -> list[str]:
    return [str(day).replace("-", "")[2:] for day in days]
