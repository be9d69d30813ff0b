import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.data.adapters.cboe import FIELDS
from services.data.domain.chain import clean_chain, price
from shared.contracts.data import CHAIN_SCHEMA
from tests.data.fake_cboe import row

SESSION = date(2026, 7, 24)
GOOD = "AAPL260821C00330000"
OTHER = "AAPL260821P00330000"

FAULTY = [
    ("not_an_object", "row"),
    ("not_an_object", None),
    ("not_an_object", {"volume": 1}),
    ("not_an_object", row(GOOD, option=17)),
    ("not_occ", row("AAPL260231C00330000")),
    ("not_occ", row("nonsense")),
    ("expired", row("AAPL260723C00330000")),
    ("repeated", row(OTHER)),
    *[
        (f"bad_{name}", row(GOOD, **{name: value}))
        for name in ("volume", "open_interest")
        for value in (None, -1, math.nan, math.inf, "12", True, 1e12, 10**400, [])
    ],
    *[
        (f"bad_{name}", row(GOOD, **{key: value}))
        for name, key in (("bid", "bid"), ("ask", "ask"), ("last", "last_trade_price"))
        for value in (-0.01, math.nan, -math.inf, "1.0", 1e300, {}, False)
    ],
]


@pytest.mark.parametrize(("reason", "faulty"), FAULTY)
def test_a_faulty_row_is_dropped_with_its_reason_and_costs_no_other(reason: str, faulty: Any) -> None:
    table, dropped = clean_chain([row(OTHER), faulty], FIELDS, SESSION)
    assert table["contract"].to_pylist() == [OTHER]
    assert dropped == {reason: 1}


def test_a_contract_that_expires_in_the_session_stays() -> None:
    table, dropped = clean_chain([row("AAPL260724C00330000")], FIELDS, SESSION)
    assert table.num_rows == 1
    assert not dropped


def test_a_faulty_row_does_not_take_the_place_of_a_good_one() -> None:
    table, dropped = clean_chain([row(GOOD, volume=-1), row(GOOD, volume=7)], FIELDS, SESSION)
    assert table["volume"].to_pylist() == [7.0]
    assert dropped == {"bad_volume": 1}


@pytest.mark.parametrize("iv", [0, 0.0, None, -0.2, math.nan, math.inf, "0.3", 1e9])
def test_an_iv_that_is_none_is_null(iv: Any) -> None:
    table, dropped = clean_chain([row(GOOD, iv=iv)], FIELDS, SESSION)
    assert table["iv"].to_pylist() == [None]
    assert not dropped


def test_missing_prices_and_greeks_are_null() -> None:
    bare = {"option": GOOD, "volume": 5, "open_interest": 7}
    (told,) = clean_chain([bare], FIELDS, SESSION)[0].to_pylist()
    assert told["volume"] == 5.0
    assert [told[name] for name in ("bid", "ask", "last", "iv", "delta", "gamma", "theta", "vega")] == [None] * 8


def test_no_rows_make_an_empty_table() -> None:
    table, dropped = clean_chain([], FIELDS, SESSION)
    assert table.num_rows == 0
    assert table.schema.equals(CHAIN_SCHEMA)
    assert not dropped


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
_ROWS = st.lists(
    _JSON
    | st.fixed_dictionaries(
        {key: _JSON for key in FIELDS.values() if key != "option"},
        optional={"option": st.sampled_from([GOOD, OTHER, "X"])},
    ),
    max_size=6,
)


@settings(max_examples=100)
@given(_ROWS)
def test_whatever_comes_the_table_is_clean_and_every_row_is_accounted_for(rows: list[Any]) -> None:
    table, dropped = clean_chain(rows, FIELDS, SESSION)
    assert table.schema.equals(CHAIN_SCHEMA)
    assert table.num_rows + sum(dropped.values()) == len(rows)
    for told in table.to_pylist():
        assert told["volume"] >= 0
        assert told["open_interest"] >= 0
        for name in ("bid", "ask", "last"):
            assert told[name] is None or 0 <= told[name] < math.inf
        assert told["iv"] is None or 0 < told["iv"] < math.inf


@pytest.mark.parametrize("value", [None, 0, -1, math.nan, math.inf, "3", True])
def test_an_underlying_without_a_possible_price_has_none(value: Any) -> None:
    assert price(value) is None
