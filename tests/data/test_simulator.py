import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.data.adapters.simulator import SimulatorSource
from services.data.domain.chain import Snapshot, Validators
from services.data.domain.columns import Floats
from services.data.domain.pricing import black_scholes
from services.data.domain.simulation import Plan, chain_at, expirations_after, moment_of, plan_session, spot_at
from services.data.domain.symbols import occ_columns
from shared.sessions import Sessions

NOW = datetime(2026, 11, 22, 6, 0, 1, 500_000, tzinfo=UTC)  # a Sunday: the simulated market does not mind


def simulator(
    closes: dict[str, Floats], sessions: Sessions, now: datetime = NOW, **fields_given: Any
) -> SimulatorSource:
    fields: dict[str, Any] = {"seed": 1, "unusual": 40, "session_s": 86_400.0, "tick_s": 2.0} | fields_given
    return SimulatorSource(closes=closes, sessions=sessions, clock=lambda: now, **fields)


async def chain_of(source: SimulatorSource, symbol: str = "AAPL") -> Snapshot:
    found = await source.fetch(symbol, Validators())
    assert isinstance(found, Snapshot)
    return found


def barchart(snapshot: Snapshot) -> set[str]:
    """Return what the published rule selects (reference/unusual_activity_definitions.json, barchart.us)."""
    return {
        told["contract"]
        for told in snapshot.contracts.to_pylist()
        if told["volume"] > 500
        and told["open_interest"] > 100
        and told["last"] > 0.10
        and told["volume"] / told["open_interest"] >= 1.25
    }


def test_the_closes_are_read_without_importing_the_package(closes: dict[str, Floats]) -> None:
    assert sorted(closes) == ["AAPL", "GOOG", "IBM", "META", "MSFT"]
    assert "bokeh_sampledata.stocks" not in sys.modules
    for name, prices in closes.items():
        assert np.abs(np.diff(np.log(prices))).max() < 0.25, f"{name}: an unadjusted split"


def unusual_at(plan: Plan, done: float) -> set[str]:
    """The contracts whose unusual print has happened: the ones that a detector must find."""
    return {plan.names[row] for row, at in zip(plan.unusual, plan.prints_at, strict=True) if at <= done}


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.dates(date(2025, 1, 1), date(2029, 12, 31)), st.floats(0, 1, exclude_max=True))
def test_the_rule_finds_the_injected_prints_and_nothing_else(
    sessions: Sessions, closes: dict[str, Floats], seed: int, day: date, done: float
) -> None:
    for symbol, prices in closes.items():
        plan = plan_session(symbol, day, prices, sessions, seed=seed, unusual=20)
        assert len(plan.unusual) == 20
        table = chain_at(plan, done)
        rule = (
            (table["volume"].to_numpy() > 500)
            & (table["open_interest"].to_numpy() > 100)
            & (table["last"].to_numpy() > 0.10)
            & (table["volume"].to_numpy() / table["open_interest"].to_numpy() >= 1.25)
        )
        assert set(np.array(plan.names)[rule]) == unusual_at(plan, done)
        assert unusual_at(plan, 0.0), "the first print comes with the open"


async def test_prints_come_at_the_known_rate(sessions: Sessions, closes: dict[str, Floats]) -> None:
    midnight = datetime(2026, 11, 22, tzinfo=UTC)
    seen = [
        len(barchart(await chain_of(simulator(closes, sessions, midnight + timedelta(hours=hour)))))
        for hour in range(24)
    ]
    assert seen == sorted(seen)
    assert seen[0] == 1
    assert 12 <= seen[12] <= 28
    last = simulator(closes, sessions, midnight + timedelta(seconds=86_398))
    assert len(barchart(await chain_of(last))) == 40


async def test_a_chain_says_that_it_is_simulated_and_looks_like_one(
    sessions: Sessions, closes: dict[str, Floats]
) -> None:
    found = await chain_of(simulator(closes, sessions))
    header = found.header
    assert (header.source, header.simulated, header.delay_s) == ("simulator", True, 0.0)
    assert header.as_of == datetime(2026, 11, 22, 6, 0, 0, tzinfo=UTC)  # the tick, not the instant
    assert header.session == date(2026, 11, 22)
    assert 400 <= found.contracts.num_rows <= 600
    rows = found.contracts.to_pylist()
    assert occ_columns([told["contract"] for told in rows]).valid.all()
    assert header.close is not None
    for told in rows:
        assert told["expiration"] > header.session
        assert 0 <= told["bid"] <= told["last"] <= told["ask"]
        assert 0 < told["iv"] <= 2
        assert (0 if told["right"] == "C" else -1) <= told["delta"] <= (1 if told["right"] == "C" else 0)
        intrinsic = max((header.close - told["strike"]) * (1 if told["right"] == "C" else -1), 0.0)
        assert told["ask"] >= intrinsic - 0.05 * told["strike"]


async def test_two_simulators_with_one_seed_agree_and_others_do_not(
    sessions: Sessions, closes: dict[str, Floats]
) -> None:
    first = await chain_of(simulator(closes, sessions))
    again = await chain_of(simulator(closes, sessions))
    other = await chain_of(simulator(closes, sessions, seed=2))
    assert first.header == again.header
    assert first.contracts.equals(again.contracts)
    assert not first.contracts.equals(other.contracts)


async def test_volume_only_grows_and_open_interest_stays_within_a_session(
    sessions: Sessions, closes: dict[str, Floats]
) -> None:
    before = await chain_of(simulator(closes, sessions, NOW))
    after = await chain_of(simulator(closes, sessions, NOW + timedelta(hours=9)))
    assert before.contracts["contract"].equals(after.contracts["contract"])
    assert before.contracts["open_interest"].equals(after.contracts["open_interest"])
    growth = after.contracts["volume"].to_numpy() - before.contracts["volume"].to_numpy()
    assert growth.min() >= 0
    assert growth.max() > 0
    assert after.header.as_of > before.header.as_of


def test_the_session_is_the_date_and_shorter_sessions_run_ahead() -> None:
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert moment_of(noon, 86_400.0).session == date(2026, 11, 22)
    assert moment_of(noon, 86_400.0).done == 0.5
    assert moment_of(noon, 3600.0).session == date(2026, 12, 4)
    assert moment_of(noon + timedelta(minutes=15), 3600.0).done == 0.25


def test_the_spot_goes_from_one_real_close_to_the_next(sessions: Sessions, closes: dict[str, Floats]) -> None:
    plan = plan_session("AAPL", date(2026, 11, 23), closes["AAPL"], sessions, seed=3, unusual=5)
    step = int(np.flatnonzero(closes["AAPL"] == plan.first_close)[0])
    assert spot_at(plan, 0.0) == round(float(closes["AAPL"][step]), 2)
    assert abs(spot_at(plan, 1.0) - closes["AAPL"][step + 1]) < 0.01


def test_expirations_are_fridays_or_the_trading_day_before_a_holiday(sessions: Sessions) -> None:
    found = expirations_after(date(2026, 3, 30), sessions)
    assert date(2026, 4, 2) in found  # Good Friday is the 3rd
    assert date(2026, 4, 3) not in found
    assert found == sorted(set(found))
    assert date(2026, 11, 27) not in expirations_after(date(2026, 11, 27), sessions)


def test_prices_and_greeks_are_those_of_the_textbook() -> None:
    call, put = np.array([True]), np.array([False])
    strike, years, iv = np.array([40.0]), np.array([0.5]), np.array([0.2])
    long_call = black_scholes(42.0, strike, years, iv, call, rate=0.1)  # Hull, example 15.6
    long_put = black_scholes(42.0, strike, years, iv, put, rate=0.1)
    assert long_call.price[0] == pytest.approx(4.76, abs=0.005)
    assert long_put.price[0] == pytest.approx(0.81, abs=0.005)
    held = black_scholes(49.0, np.array([50.0]), np.array([0.3846]), np.array([0.2]), call, rate=0.05)  # chapter 19
    assert held.delta[0] == pytest.approx(0.522, abs=0.001)
    assert held.gamma[0] == pytest.approx(0.066, abs=0.001)
    assert held.vega[0] * 100 == pytest.approx(12.1, abs=0.05)
    assert held.theta[0] * 365 == pytest.approx(-4.31, abs=0.01)
