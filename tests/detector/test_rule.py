import json
import warnings
from datetime import date
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector.domain.rule import SIDES, Chains, Rule, check_header, detect, side_of_quote
from shared.errors import Invalid
from tests.detector.chains import CBOE, SESSION, header, occ, plainly, recorded_aapl, row, table


def found_names(head, rows, rule: Rule | None = None) -> list[str]:
    return detect(Chains.of([(head, table(rows))]), rule or Rule()).contracts.to_pylist()


def faults(rows) -> dict[str, int]:
    return dict(detect(Chains.of([(header(), table(rows))]), Rule()).faults.get(0, {}))


@pytest.mark.parametrize(
    ("change", "met"),
    [
        ({}, True),
        ({"volume": 501.0, "open_interest": 400.0}, True),
        ({"volume": 500.0, "open_interest": 101.0}, False),
        ({"open_interest": 101.0}, True),
        ({"open_interest": 100.0}, False),
        ({"last": 0.11}, True),
        ({"last": 0.10}, False),
        ({"volume": 1250.0, "open_interest": 1000.0}, True),
        ({"volume": 1249.0, "open_interest": 1000.0}, False),
        ({"expiration": SESSION}, True),
        ({"expiration": date(2026, 7, 23)}, False),
        ({"bid": None, "ask": None, "iv": None}, True),
        ({"volume": None}, False),
        ({"open_interest": None}, False),
        ({"last": None}, False),
    ],
)
def test_the_rule_holds_at_each_threshold_as_published(change, met):
    assert found_names(header(), [row(**change)]) == ([row(**change)["contract"]] if met else [])


numbers = st.one_of(
    st.integers(0, 5_000).map(float), st.sampled_from([0.0, 100.0, 101.0, 500.0, 501.0, nan, inf, -1.0, None])
)
prices = st.one_of(st.floats(0, 500).map(lambda x: round(x, 2)), st.sampled_from([0.1, 0.11, nan, -2.0, inf, None]))
contracts = st.builds(
    lambda strike, right, expiration, volume, interest, last, bid, ask: row(
        strike=strike,
        right=right,
        expiration=expiration,
        volume=volume,
        open_interest=interest,
        last=last,
        bid=bid,
        ask=ask,
    ),
    st.integers(1, 400).map(lambda x: x / 2),
    st.sampled_from("CP"),
    st.dates(date(2026, 7, 20), date(2027, 7, 24)),
    numbers,
    numbers,
    prices,
    prices,
    prices,
)
rules = st.builds(
    Rule,
    st.integers(0, 2_000),
    st.integers(-1, 500),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.5, 1.1, 1.25]),
)


def unrepeated(rows):
    return list({each["contract"]: each for each in rows}.values())


@given(st.lists(contracts, max_size=40).map(unrepeated), rules)
def test_the_arrays_select_what_a_loop_over_contracts_selects(rows, rule):
    assert found_names(header(), rows, rule) == plainly(rule, header(), rows)


@given(st.lists(contracts, max_size=30).map(unrepeated), st.randoms())
def test_the_order_of_rows_changes_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert sorted(found_names(header(), rows)) == sorted(found_names(header(), shuffled))


@given(st.lists(st.lists(contracts, max_size=8).map(unrepeated), max_size=6))
def test_chains_laid_end_to_end_give_what_each_gives_alone(many):
    heads = [header(f"S{number}") for number in range(len(many))]
    found = detect(Chains.of([(head, table(rows)) for head, rows in zip(heads, many, strict=True)]), Rule())
    together = [[] for _ in many]
    for chain, name in zip(found.chain.tolist(), found.contracts.to_pylist(), strict=True):
        together[chain].append(name)
    assert together == [found_names(head, rows) for head, rows in zip(heads, many, strict=True)]


@pytest.mark.skipif(not CBOE.exists(), reason=f"the recorded chain is not on this machine: {CBOE}")
def test_the_recorded_chain_gives_exactly_what_the_published_rule_selects():
    published = [
        option["option"]
        for option in json.loads(CBOE.read_text())["data"]["options"]
        if option["volume"] > 500
        and option["open_interest"] > 100
        and option["last_trade_price"] > 0.10
        and option["volume"] / option["open_interest"] >= 1.25
    ]
    assert len(published) > 10
    assert found_names(header(close=333.02), recorded_aapl()) == published


@pytest.mark.parametrize(
    ("bid", "ask", "last", "side"),
    [
        (0.50, 0.55, 0.55, "ask"),
        (0.50, 0.55, 0.56, "above_ask"),
        (0.50, 0.55, 0.54, "mid"),
        (0.50, 0.55, 0.50, "bid"),
        (0.50, 0.55, 0.49, "below_bid"),
        (0.00, 0.05, 0.05, "ask"),
        (0.50, 0.50, 0.50, "mid"),
        (0.50, 0.50, 0.51, "above_ask"),
        (0.55, 0.50, 0.52, "unknown"),
        (0.00, 0.00, 0.05, "unknown"),
        (-1.0, 0.05, 0.05, "unknown"),
        (nan, 0.05, 0.05, "unknown"),
        (0.01, nan, 0.05, "unknown"),
        (0.01, inf, 0.05, "unknown"),
    ],
)
def test_the_side_is_where_the_last_trade_stands_against_the_quote(bid, ask, last, side):
    (code,) = side_of_quote(np.array([bid]), np.array([ask]), np.array([last]))
    assert SIDES[code] == side


GOOD = row(strike=200.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"last": nan}, "nan_last"),
        ({"volume": nan}, "nan_volume"),
        ({"open_interest": nan}, "nan_open_interest"),
        ({"volume": -5.0}, "negative_volume"),
        ({"open_interest": -5.0}, "negative_open_interest"),
        ({"open_interest": 0.0}, "zero_open_interest"),
        ({"volume": inf}, "absurd_number"),
        ({"last": 1e12}, "absurd_number"),
        ({"expiration": date(2026, 7, 1)}, "expired"),
        ({"right": "X", "contract": occ()}, "not_a_contract"),
        ({"strike": nan, "contract": occ()}, "not_a_contract"),
        ({"contract": "AAPL\n260821C00110000"}, "not_a_contract"),
        ({"contract": "AAPL260821C00110000\n"}, "not_a_contract"),
        ({"contract": "'; drop table activity"}, "not_a_contract"),
        ({"contract": ""}, "not_a_contract"),
    ],
)
def test_a_broken_row_is_counted_by_reason_and_costs_only_itself(change, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [row(**change), GOOD]
        assert found_names(header(), rows) == [GOOD["contract"]]
        assert faults(rows) == {reason: 1}


@pytest.mark.parametrize("change", [{"bid": 2.0, "ask": 1.0}, {"bid": nan}])
def test_a_broken_quote_costs_a_contract_its_side_not_its_place(change):
    found = detect(Chains.of([(header(), table([row(**change)]))]), Rule())
    assert [SIDES[side] for side in found.side] == ["unknown"]
    assert sum(found.faults[0].values()) == 1


def test_a_contract_that_stands_twice_is_taken_once():
    rows = [row(volume=1_000.0), row(volume=9_000.0), GOOD]
    found = detect(Chains.of([(header(), table(rows))]), Rule())
    assert found.volume.tolist() == [1_000.0, 2_000.0]
    assert found.faults == {0: {"repeated": 1}}


def test_a_chain_without_faults_or_contracts_has_none():
    assert faults([GOOD]) == {}
    assert found_names(header(), []) == []
    assert len(detect(Chains.of([]), Rule())) == 0


def test_missing_numbers_are_no_faults():
    assert faults([row(bid=None, ask=None, last=None, volume=None, open_interest=None)]) == {}


@pytest.mark.parametrize("right", ["C", "P"])
@pytest.mark.parametrize(("strike", "away"), [(110.0, 10.0), (90.0, -10.0), (100.0, 0.0)])
def test_out_of_the_money_is_a_percentage_of_the_underlying(right, strike, away):
    found = detect(Chains.of([(header(close=100.0), table([row(strike=strike, right=right)]))]), Rule())
    assert found.otm_pct.tolist() == pytest.approx([away if right == "C" else -away])


@pytest.mark.parametrize("close", [None, 0.0, -3.0, nan, inf])
def test_without_an_underlying_price_moneyness_is_unknown(close):
    found = detect(Chains.of([(header(close=close), table([row()]))]), Rule())
    assert np.isnan(found.otm_pct).all()


def test_days_to_expiry_count_from_the_session():
    rows = [row(expiration=SESSION), row(expiration=date(2026, 8, 24))]
    assert detect(Chains.of([(header(), table(rows))]), Rule()).dte.tolist() == [0, 31]


@pytest.mark.parametrize("symbol", ["AAPL", "BRK.B", "_SPX", "^VIX", "BF/B", "A"])
def test_tickers_are_accepted(symbol):
    check_header(header(symbol))


@pytest.mark.parametrize("symbol", ["", " ", "AAPL ", "A\x00", "../etc", "aapl", "A B", "ÄÖ", "A" * 21, "A\n", "<b>"])
def test_a_symbol_that_is_no_ticker_is_refused(symbol):
    with pytest.raises(Invalid, match="not a ticker"):
        check_header(header(symbol))
