from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.data.domain.symbols import occ_columns, occ_name, parse_contract, parse_symbol
from shared.errors import Invalid


@pytest.mark.parametrize(
    ("text", "symbol"), [("AAPL", "AAPL"), ("aapl", "AAPL"), ("BRK.B", "BRK.B"), ("_SPX", "_SPX"), ("F", "F")]
)
def test_a_symbol_is_read_in_upper_case(text: str, symbol: str) -> None:
    assert parse_symbol(text) == symbol


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "AAPL ",
        "AAPL\n",
        "../etc",
        "A/B",
        "A%2F",
        "BRK..B",
        "_",
        "1A",
        "TOOLONGX",
        "A\x00",
        "\u017fPY",
        "BRK.BB",
        "^SPX",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_symbol(text)


@settings(max_examples=100)
@given(st.text(max_size=12))
def test_what_passes_the_grammar_is_harmless_in_a_path(text: str) -> None:
    try:
        symbol = parse_symbol(text)
    except Invalid:
        return
    assert symbol.isascii()
    assert symbol.replace("_", "").replace(".", "").isalnum()


def test_contracts_of_other_roots_are_read_as_well() -> None:
    columns = occ_columns(["SPXW260821C05800000", "AAPL1260821P00000500", "BRKB270115C00470000"])
    assert columns.valid.all()
    assert columns.strike.tolist() == [5800.0, 0.5, 470.0]
    assert columns.right.tolist() == ["C", "P", "C"]
    assert [str(day) for day in columns.expiration] == ["2026-08-21", "2026-08-21", "2027-01-15"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "AAPL",
        "AAPL260231C00110000",
        "AAPL261321C00110000",
        "AAPL260800C00110000",
        "AAPL260821X00110000",
        "AAPL260821C0011000",
        "AAPL260821C00000000",
        "AAPL260821C00110000 ",
        "aapl260821C00110000",
        "260821C00110000",
        "AAPL٢60821C00110000",
    ],
)
def test_what_is_no_contract_is_marked(name: str) -> None:
    columns = occ_columns([name, "AAPL260821C00110000"])
    assert columns.valid.tolist() == [False, True]


def test_no_names_make_no_rows() -> None:
    assert occ_columns([]).valid.tolist() == []


@settings(max_examples=100)
@given(
    st.from_regex(r"[A-Z][A-Z0-9]{0,5}", fullmatch=True),
    st.dates(date(2000, 1, 1), date(2099, 12, 31)),
    st.sampled_from("CP"),
    st.integers(1, 99_999_999),
)
def test_a_written_name_reads_back(root: str, day: date, right: str, mills: int) -> None:
    name = occ_name(root, day.strftime("%y%m%d"), right, mills / 1000)
    columns = occ_columns([name])
    assert columns.valid[0]
    assert columns.expiration[0].item() == day
    assert columns.right[0] == right
    assert round(columns.strike[0] * 1000) == mills
    assert parse_contract(name) == name


@settings(max_examples=100)
@given(st.lists(st.text(max_size=24), max_size=20))
def test_any_text_is_answered_row_by_row(names: list[str]) -> None:
    columns = occ_columns(names)
    assert len(columns.valid) == len(columns.strike) == len(names)


def test_a_contract_is_read_with_padding_and_refused_otherwise() -> None:
    assert parse_contract("aapl  260821C00110000") == "AAPL260821C00110000"
    with pytest.raises(Invalid):
        parse_contract("AAPL260231C00110000")
