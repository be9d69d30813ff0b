from datetime import date, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector.domain.rule import Chains, Rule, detect
from services.detector.domain.scoring import POINTS, describe, price_or_none, score
from tests.detector.chains import SESSION, header, row, table
from tests.detector.test_rule import contracts, unrepeated


def scored(*rows, change=0, close: float | None = 100.0):
    found = detect(Chains.of([(header(close=close), table(rows))]), Rule())
    return score(found, np.full(len(found), change))


def part(name, change=0, close: float | None = 100.0, **fields):
    parts, _ = scored(row(**fields), change=change, close=close)
    return parts[name][0]


def test_the_points_of_all_parts_make_a_hundred():
    assert sum(POINTS.values()) == 100


@given(
    st.lists(contracts, max_size=30).map(unrepeated),
    st.integers(0, 10**9),
    st.one_of(st.none(), st.floats(0.01, 1e6)),
)
def test_a_score_lies_in_0_to_100_and_is_the_sum_of_its_parts(rows, change, close):
    loose = Rule(volume=0, open_interest=0, last_usd=0, ratio=0)
    found = detect(Chains.of([(header(close=close), table(rows))]), loose)
    parts, scores = score(found, np.full(len(found), change))
    assert parts.keys() == POINTS.keys()
    for name, points in parts.items():
        assert ((points >= 0) & (points <= POINTS[name])).all()
    assert ((scores >= 0) & (scores <= 100)).all()
    assert scores == pytest.approx(np.sum(list(parts.values()), axis=0))


@pytest.mark.parametrize(
    ("volume", "interest", "points"),
    [(1_250, 1_000, 0.0), (5_000, 1_000, 12.5), (20_000, 1_000, 25.0), (90_000, 200, 25)],
)
def test_volume_over_open_interest_scores_by_its_logarithm(volume, interest, points):
    assert part("volume_oi", volume=float(volume), open_interest=float(interest)) == pytest.approx(points, abs=0.005)


@pytest.mark.parametrize(
    ("volume", "last", "points"),
    [(1_000, 0.11, 0.52), (1_000, 1.0, 12.5), (10_000, 1.0, 25.0), (100_000, 1.0, 25.0)],
)
def test_premium_scores_by_its_logarithm_up_to_a_million(volume, last, points):
    assert part("premium", volume=float(volume), last=last) == pytest.approx(points, abs=0.005)


@pytest.mark.parametrize(("strike", "points"), [(90.0, 0.0), (100.0, 0.0), (107.5, 7.5), (115.0, 15.0), (300.0, 15.0)])
def test_out_of_the_money_scores_up_to_15_percent(strike, points):
    assert part("otm", strike=strike) == pytest.approx(points)


def test_out_of_the_money_scores_nothing_when_unknown():
    assert part("otm", close=None) == 0


@pytest.mark.parametrize(("days", "points"), [(0, 10.0), (30, 5.0), (90, 1.25), (3_000, 0.0)])
def test_nearer_expiry_scores_more(days, points):
    assert part("dte", expiration=SESSION + timedelta(days=days)) == pytest.approx(points)


def test_buying_pressure_scores_more_than_the_middle_and_no_quote_scores_nothing():
    lasts = {"above_ask": 1.2, "ask": 1.1, "mid": 1.05, "below_bid": 0.9, "bid": 1.0}
    points = [part("side", last=last) for last in lasts.values()]
    assert points == sorted(points, reverse=True)
    assert points[0] == 10
    assert part("side", bid=None) == 0


@pytest.mark.parametrize(("change", "points"), [(0, 0.0), (250, 7.5), (500, 15.0), (2_000, 15.0)])
def test_trades_since_the_last_snapshot_score_against_open_interest(change, points):
    assert part("change", change=change, open_interest=400.0) == pytest.approx(points)


def test_a_contract_is_told_in_full_best_first():
    rows = [
        row(strike=101.0, volume=600.0),
        row(volume=3_000.0),
        row(right="P", strike=90.0, bid=None, iv=0.0),
    ]
    found = detect(Chains.of([(header(), table(rows))]), Rule())
    told = describe(found, np.array([600, 1_000, 0]))[0]
    assert [each.score for each in told] == sorted((each.score for each in told), reverse=True)
    best = next(each for each in told if each.volume == 3_000)
    assert (best.right, best.expiration, best.strike) == ("C", date(2026, 8, 21), Decimal(110))
    assert (best.bid, best.ask, best.last) == (Decimal("1.0"), Decimal("1.1"), Decimal("1.1"))
    assert (best.open_interest, best.volume_oi_ratio, best.volume_change) == (400, 7.5, 1_000)
    assert best.premium_usd == Decimal(330_000)
    assert (best.dte, best.otm_pct, best.iv, best.side) == (28, 10.0, 0.3, "ask")
    assert best.score == pytest.approx(sum(best.parts.model_dump().values()))
    put = next(each for each in told if each.right == "P")
    assert (put.bid, put.iv, put.side, put.otm_pct) == (None, None, "unknown", 10.0)


@pytest.mark.parametrize(
    ("value", "price"), [(None, None), (float("nan"), None), (0.0, None), (333.020001, Decimal("333.02"))]
)
def test_an_underlying_price_is_decimal_or_none(value, price):
    assert price_or_none(value) == price
