"""The ledger: exact amounts, entries that add up, rows that only grow, and the CSV of them."""

import csv
import io
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from services.payment.domain.ledger import Entry, Posting, Unbalanced, of_balance_transaction, of_hand, of_receipt
from services.payment.domain.money import MOST, BadAmount, Money, UnknownCurrency, fiat, known_currencies, price
from services.payment.service.ledger import export, harmless
from services.payment.service.settlement import CryptoMovement
from shared.db import Database
from tests.payment.ledger_bench import DAY, NOW, Bench, Client, moved, served

AMOUNTS = st.integers(-MOST, MOST)
CATEGORIES = ("charge", "refund", "dispute", "dispute_reversal", "fee", "payout", "topup", "no such thing")


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


def usd(minor: int) -> Money:
    return Money(minor, "USD", 2)


# Amounts


@given(minor=AMOUNTS, exponent=st.integers(0, 36))
def test_an_amount_loses_no_digit_between_minor_units_and_units(minor: int, exponent: int):
    units = Money(minor, "COIN", exponent).units
    sign, digits, shift = units.as_tuple()
    assert int("".join(map(str, digits))) * (-1 if sign else 1) == minor
    assert shift == -exponent


@given(minor=st.integers(1, 10**30), currency=st.sampled_from(sorted(known_currencies())))
def test_what_a_person_types_becomes_the_same_amount_as_stripe_writes(minor: int, currency: str):
    told = fiat(minor, currency.lower())
    assert price(told.units, currency) == told


def test_stripes_decimals_count_where_they_are_not_isos():
    assert [fiat(1500, code).units for code in ("usd", "jpy", "kwd", "isk")] == [
        Decimal("15.00"),
        Decimal(1500),
        Decimal("1.500"),
        Decimal("15.00"),
    ]


@pytest.mark.parametrize(
    ("units", "code", "error"),
    [
        ("0", "USD", BadAmount),
        ("-1", "USD", BadAmount),
        ("NaN", "USD", BadAmount),
        ("Infinity", "USD", BadAmount),
        ("0.001", "USD", BadAmount),
        ("1.5", "JPY", BadAmount),
        ("1e37", "USD", BadAmount),
        ("1e999", "USD", BadAmount),
        ("1", "XXX", UnknownCurrency),
        ("1", "BTC", UnknownCurrency),
    ],
)
def test_an_amount_that_cannot_be_paid_is_refused(units: str, code: str, error: type[Exception]):
    with pytest.raises(error):
        price(Decimal(units), code)


# Entries


@given(
    amount=st.integers(-(10**12), 10**12),
    fee=st.integers(-(10**9), 10**9),
    category=st.sampled_from(CATEGORIES),
    code=st.sampled_from(["usd", "jpy", "kwd"]),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_every_balance_transaction_adds_up_and_moves_its_net_at_stripe(amount: int, fee: int, category: str, code: str):
    entry = of_balance_transaction(moved(amount, fee, category, currency=code))
    if entry is None:
        assert amount == fee == 0
        return
    assert sum(posting.money.minor for posting in entry.postings) == 0
    at_stripe = sum(posting.money.minor for posting in entry.postings if posting.account == "assets:stripe")
    assert at_stripe == amount - fee
    assert all(posting.money.minor for posting in entry.postings)


@given(coins=st.integers(1, MOST), cents=st.integers(0, 10**12), back=st.booleans())
def test_a_receipt_of_coins_adds_up_in_both_currencies(coins: int, cents: int, back: bool):
    sign = -1 if back else 1
    entry = of_receipt("crypto/x", Money(sign * coins, "ETH", 18), usd(sign * cents), at=NOW, about="crypto/i")
    for currency in ("ETH", "USD"):
        assert sum(one.money.minor for one in entry.postings if one.money.currency == currency) == 0
    assert entry.postings[0] == Posting("assets:crypto", Money(sign * coins, "ETH", 18))


def test_an_entry_that_does_not_add_up_is_none():
    with pytest.raises(Unbalanced):
        Entry("k", "other", NOW, "a", (Posting("assets:bank", usd(1)),))
    with pytest.raises(Unbalanced):
        Entry("k", "other", NOW, "a", (Posting("assets:bank", usd(1)), Posting("assets:stripe", Money(-1, "EUR", 2))))
    with pytest.raises(Unbalanced):
        Entry("k", "other", NOW, "a", ())
    with pytest.raises(Unbalanced):
        of_balance_transaction(moved(100, 3) | {"net": 98})
    with pytest.raises(Unbalanced):
        of_receipt("k", Money(0, "ETH", 18), None, at=NOW, about="a")
    with pytest.raises(Unbalanced):
        of_receipt("k", Money(5, "ETH", 18), usd(-1), at=NOW, about="a")


def test_each_kind_of_movement_has_its_place():
    def places(category: str, amount: int, fee: int, **more: Any) -> dict[str, int]:
        entry = of_balance_transaction(moved(amount, fee, category, **more))
        assert entry is not None
        return {posting.account: posting.money.minor for posting in entry.postings}

    assert places("charge", 2900, 114) == {"assets:stripe": 2786, "expenses:fees": 114, "income:subscriptions": -2900}
    assert places("refund", -500, 0) == {"assets:stripe": -500, "income:refunds": 500}
    assert places("dispute", -2900, 1500) == {
        "assets:stripe": -4400,
        "expenses:dispute_fees": 1500,
        "expenses:disputes": 2900,
    }
    assert places("dispute_reversal", 2900, 0, source="du_1") == {"assets:stripe": 2900, "expenses:disputes": -2900}
    assert places("payout", -1000, 0) == {"assets:stripe": -1000, "assets:bank": 1000}
    assert places("fee", -200, 0) == {"assets:stripe": -200, "expenses:fees": 200}
    assert places("martian", 7, 0) == {"assets:stripe": 7, "equity:unclassified": -7}


def test_an_adjustment_of_2018_is_a_dispute_by_its_source():
    old = {"id": "txn_1", "amount": -25000, "fee": 1500, "net": -26500, "created": 1516145022, "currency": "usd"}
    entry = of_balance_transaction(old | {"source": "dp_1Bl3mM", "type": "adjustment"})
    assert entry is not None
    assert (entry.kind, entry.about) == ("dispute", "stripe/dp_1Bl3mM")


# Rows


async def test_adding_an_entry_again_changes_nothing(bench: Bench) -> None:
    entry = of_balance_transaction(moved(2900, 114))
    results = [await _add(bench, entry) for _ in range(3)]
    assert results == [True, False, False]
    other = of_balance_transaction(moved(9999, 1))  # the same id
    assert not await _add(bench, other)
    assert await bench.balances() == {
        ("assets:stripe", "USD"): 2786,
        ("expenses:fees", "USD"): 114,
        ("income:subscriptions", "USD"): -2900,
    }


async def test_two_that_add_the_same_entry_at_once_add_it_once(bench: Bench) -> None:
    entry = of_balance_transaction(moved(2900, 114))
    async with bench.database.transaction() as first:
        assert await bench.ledger.add(first, entry)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await _add(bench, entry, impatient=True)
    assert not await _add(bench, entry)
    assert len(await bench.rows("select * from ledger_postings")) == 3


async def test_the_largest_amounts_are_kept_to_the_last_digit(bench: Bench) -> None:
    await _add(bench, of_receipt("crypto/1", Money(MOST, "WEI", 18), usd(1), at=NOW, about="crypto/i"))
    assert (await bench.balances())["assets:crypto", "WEI"] == MOST
    with pytest.raises(BadAmount):
        Money(MOST + 1, "WEI", 18)


@pytest.mark.parametrize(
    "statement",
    [
        "update ledger_entries set about = 'x'",
        "update ledger_postings set amount = amount + 1",
        "delete from ledger_postings",
        "delete from ledger_entries",
        "truncate ledger_postings",
        "truncate ledger_entries cascade",
    ],
)
async def test_what_is_written_stays(bench: Bench, statement: str) -> None:
    await _add(bench, of_balance_transaction(moved(2900, 114)))
    before = await bench.balances()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await _execute(bench, statement)
    assert refused.value.sqlstate == "OB001"
    assert await bench.balances() == before


ENTRY = "insert into ledger_entries values ('stripe/txn_new', 'other', now(), 'a', null, 2, now())"
POSTING = "insert into ledger_postings values ('stripe/txn_new', {line}, 'assets:bank', '{currency}', 2, {amount})"


@pytest.mark.parametrize(
    "postings",
    [
        [],
        [("USD", 5), ("USD", -4)],
        [("USD", 5), ("EUR", -5)],
        [("USD", 5), ("USD", -5), ("USD", 1)],
        [("USD", 5), ("USD", -5), ("USD", 1), ("USD", -1)],
    ],
)
async def test_the_database_refuses_an_entry_that_does_not_add_up(
    bench: Bench, postings: list[tuple[str, int]]
) -> None:
    lines = [
        POSTING.format(line=line, currency=currency, amount=amount) for line, (currency, amount) in enumerate(postings)
    ]
    with pytest.raises(asyncpg.PostgresError) as refused:
        await _execute(bench, ENTRY, *lines)
    assert refused.value.sqlstate == "OB002"
    assert not await bench.rows("select * from ledger_entries")


async def test_nothing_is_added_to_an_entry_later(bench: Bench) -> None:
    await _add(bench, of_hand("stripe/txn_new", usd(5), at=NOW, about="a"))
    lines = [POSTING.format(line=line, currency="USD", amount=amount) for line, amount in ((8, 1), (9, -1))]
    with pytest.raises(asyncpg.PostgresError) as refused:
        await _execute(bench, *lines)
    assert refused.value.sqlstate == "OB002"


@given(chance=st.randoms(use_true_random=False), count=st.integers(1, 12))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_movements_in_any_order_and_again_make_the_same_ledger(
    bench: Bench, chance: random.Random, count: int
) -> None:
    run = uuid4().hex
    categories = [chance.choice(CATEGORIES) for _ in range(count)]
    movements = [
        moved(chance.randint(-5000, 5000), chance.randint(0, 90), category, id=f"txn_{run}{number}")
        for number, category in enumerate(categories)
    ]
    before = await bench.balances()
    shuffled = movements + chance.choices(movements, k=count)
    chance.shuffle(shuffled)
    for movement in shuffled:
        await _add(bench, of_balance_transaction(movement))
    after = await bench.balances()
    at_stripe = ("assets:stripe", "USD")
    assert after.get(at_stripe, 0) - before.get(at_stripe, 0) == sum(one["net"] for one in movements)
    assert sum(after.values()) == 0
    assert not await bench.rows("select 1 from ledger_postings group by entry having sum(amount) <> 0")


def coins(kind: str, asset: str, amount: str, decimals: int, worth: Decimal | None) -> CryptoMovement:
    return CryptoMovement("crypto/chain/0xab/0#1", kind, None, None, asset, Decimal(amount), decimals, worth, NOW)


async def test_coins_that_came_and_were_taken_back_leave_nothing(bench: Bench) -> None:
    one = coins("received", "ETH", "0.010000000000000001", 18, Decimal("29.00"))
    for _ in range(2):
        async with bench.database.transaction() as tx:
            await bench.ledger.add_coins(tx, one)
    assert await bench.balances() == {
        ("assets:crypto", "ETH"): 10**16 + 1,
        ("equity:conversion", "ETH"): -(10**16) - 1,
        ("equity:conversion", "USD"): 2900,
        ("income:subscriptions", "USD"): -2900,
    }
    async with bench.database.transaction() as tx:
        await bench.ledger.add_coins(tx, replace(one, kind="reversed"))
    assert set((await bench.balances()).values()) == {0}


async def test_coins_that_nobody_knows_the_reason_of_wait_for_a_person(bench: Bench) -> None:
    async with bench.database.transaction() as tx:
        await bench.ledger.add_coins(tx, coins("received", "BTC", "0.001", 8, None))
    assert await bench.balances() == {("assets:crypto", "BTC"): 100_000, ("equity:unclassified", "BTC"): -100_000}


# The export


@pytest.mark.parametrize("text_", ["=1+1", "+1", "-1", "@x", "\t=1", "  =1", "%0", "|x"])
def test_no_text_is_taken_for_a_formula(text_: str):
    assert harmless(text_) == f"'{text_}"
    assert harmless("stripe/txn_1") == "stripe/txn_1"


async def test_the_export_tells_each_posting_once_across_pages(bench: Bench) -> None:
    user = uuid4()
    for number in range(10):  # several at the same moment
        at = NOW + timedelta(hours=number // 4)
        await _add(bench, of_hand(f"manual/{number}", usd(100 + number), at=at, about=f"=cmd({number})", user_id=user))
    lines = await _exported(bench, since=NOW, until=NOW + DAY)
    assert [line["entry"] for line in lines[::2]] == [f"manual/{number}" for number in range(10)]
    assert [line["debit"] or line["credit"] for line in lines[:4]] == ["1.00", "1.00", "1.01", "1.01"]
    assert {line["about"][:6] for line in lines} == {"'=cmd("}
    assert {line["user_id"] for line in lines} == {str(user)}
    assert len(await _exported(bench, since=NOW, until=NOW + timedelta(hours=1))) == 8
    assert not await _exported(bench, since=NOW + DAY, until=NOW + 2 * DAY)


async def test_an_amount_of_base_units_is_exported_with_all_its_decimals(bench: Bench) -> None:
    await _add(bench, of_receipt("crypto/1", Money(1, "ETH", 18), None, at=NOW, about="crypto/i"))
    coins, other = await _exported(bench, since=NOW, until=NOW + DAY)
    assert (coins["debit"], coins["credit"]) == ("0.000000000000000001", "")
    assert (other["account"], other["credit"]) == ("equity:unclassified", "0.000000000000000001")


@pytest.fixture
async def client(bench: Bench, database_url: str) -> AsyncIterator[Client]:
    async with served(bench, database_url) as client:
        yield client


async def test_an_administrator_reads_the_ledger_as_csv_and_that_is_audited(client: Client) -> None:
    await _add(client.bench, of_balance_transaction(moved(2900, 114)))
    query = {"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
    answer = await client("GET", "/pay/ledger/export", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert len(list(csv.DictReader(io.StringIO(answer.text)))) == 3
    ((name, body),) = await client.bench.told()
    assert (name, body["action"], body["actor"]) == ("action.audited", "export.ledger", str(client.admin))


async def test_a_user_does_not_read_the_ledger(client: Client) -> None:
    query = {"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
    assert (await client("GET", "/pay/ledger/export", role="user", params=query)).status_code == 403


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"from": "2026-11-01T00:00:00Z"},
        {"from": "2026-11-01T00:00:00", "to": "2026-12-01T00:00:00Z"},
        {"from": "2026-12-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"},
        {"from": "1026-11-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"},
        {"from": "yesterday", "to": "2026-11-01T00:00:00Z"},
        {"from": "0001-01-01T00:00:00+12:00", "to": "2026-11-01T00:00:00Z"},
        {"from": "2026-11-01T00:00:00Z", "to": "9999-12-31T23:59:59-12:00"},
    ],
)
async def test_an_export_of_no_period_is_refused(client: Client, query: dict[str, str]) -> None:
    answer = await client("GET", "/pay/ledger/export", params=query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION_ERROR")


async def _add(bench: Bench, entry: Entry | None, *, impatient: bool = False) -> bool:
    async with bench.database.transaction() as tx:
        if impatient:
            await tx.execute(text("set local lock_timeout = '50ms'"))
        return await bench.ledger.add(tx, entry)


async def _execute(bench: Bench, *statements: str) -> None:
    async with bench.database.transaction() as tx:
        for statement in statements:
            await tx.execute(text(statement))


async def _exported(bench: Bench, **period: Any) -> list[dict[str, str]]:
    parts = [part async for part in export(bench.ledger_store, bench.door, period["since"], period["until"], page=3)]
    return list(csv.DictReader(io.StringIO(b"".join(parts).decode())))


def test_an_entry_names_its_user():
    user: UUID = uuid4()
    entry = of_balance_transaction(moved(1), user)
    assert entry is not None
    assert replace(entry, user_id=None).user_id is None
    assert entry.user_id == user
