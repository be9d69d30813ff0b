"""The rules of payment on chains: addresses, amounts, and what receipts make of an invoice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.payment.domain.addresses import bitcoin_problem, evm_problem
from services.payment.domain.chains import Asset, Chain
from services.payment.domain.crypto import (
    NEXT,
    Receipt,
    State,
    base_units,
    free_amount,
    in_units,
    judge,
    next_for,
    usd_worth,
)
from services.payment.domain.periods import period_after
from shared.errors import Invalid

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
LOCK_ENDS = START + timedelta(minutes=15)
AMOUNT, NEEDED = 1000, 3

EVM = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
P2WPKH = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
P2TR = "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"
P2PKH = "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"
P2SH = "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy"


@pytest.mark.parametrize("address", [P2WPKH, P2WPKH.upper(), P2TR, P2PKH, P2SH])
def test_addresses_of_bitcoin_are_taken(address: str):
    assert bitcoin_problem(address, "mainnet") is None
    assert "another network" in str(bitcoin_problem(address, "testnet"))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("mipcBbFg9gMiCh81Kj8tqqdgoZub1ZJRfn", "testnet"),
        ("2MzQwSSnBHWHqSAqtTVQ6v47XtaisrJa1Vc", "regtest"),
        ("tb1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3q0sl5k7", "signet"),
        ("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "regtest"),
    ],
)
def test_addresses_of_test_networks_are_taken_there_and_not_on_the_main_one(address: str, network: Any):
    assert bitcoin_problem(address, network) is None
    assert "another network" in str(bitcoin_problem(address, "mainnet"))


@pytest.mark.parametrize(
    "address",
    [
        P2WPKH[:-1] + "5",
        P2PKH[:-1] + "3",
        P2WPKH[:10] + P2WPKH[10:].upper(),
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",  # BIP 350: bech32 where bech32m belongs
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh",  # BIP 350: bech32m where bech32 belongs
        "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P",  # BIP 173: a program of 16 bytes for version 0
        EVM,
        "",
        "1",
        "bc1",
        "bc1q",
        "1" * 34,
        "ü" * 30,
        "l" * 2000,
    ],
)
def test_what_is_no_address_of_bitcoin_is_refused(address: str):
    assert bitcoin_problem(address, "mainnet") is not None


@pytest.mark.parametrize("address", [EVM.lower(), EVM.replace("5aA", "5AA"), EVM[:-1], EVM[2:], P2WPKH, "", EVM + "0"])
def test_what_is_no_evm_address_with_its_checksum_is_refused(address: str):
    assert evm_problem(EVM) is None
    assert evm_problem(address) is not None


@given(st.text(max_size=100), st.sampled_from(["mainnet", "testnet", "signet", "regtest"]))
def test_any_text_can_be_asked_about(text: str, network: Any):
    bitcoin_problem(text, network)
    evm_problem(text)


@given(st.integers(0, len(P2WPKH) - 1), st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
def test_one_wrong_sign_of_an_address_is_always_noticed(place: int, sign: str):
    wrong = P2WPKH[:place] + sign + P2WPKH[place + 1 :]
    assert (bitcoin_problem(wrong, "mainnet") is None) == (wrong == P2WPKH)


BITCOIN: dict[str, Any] = {
    "name": "bitcoin",
    "kind": "bitcoin",
    "assets": [{"symbol": "BTC", "decimals": 8}],
    "shared_address": P2WPKH,
}
ETHEREUM: dict[str, Any] = {
    "name": "ethereum",
    "kind": "evm",
    "chain_id": 1,
    "assets": [{"symbol": "ETH", "decimals": 18}],
    "addresses": [EVM],
}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (BITCOIN, {"shared_address": EVM}),
        (BITCOIN, {"network": "testnet"}),
        (BITCOIN, {"shared_address": P2WPKH.upper()}),
        (BITCOIN, {"chain_id": 1}),
        (BITCOIN, {"shared_address": None}),
        (BITCOIN, {"assets": [{"symbol": "WBTC", "decimals": 8, "contract": EVM}]}),
        (BITCOIN, {"confirmations": [{"blocks": 6}, {"blocks": 2}]}),
        (BITCOIN, {"confirmations": [{"up_to_usd": 5, "blocks": 1}]}),
        (BITCOIN, {"final_blocks": 2}),
        (BITCOIN, {"assets": [{"symbol": "BTC", "decimals": 6}]}),
        (ETHEREUM, {"assets": [{"symbol": "ETH", "decimals": 8}]}),
        (ETHEREUM, {"chain_id": None}),
        (ETHEREUM, {"addresses": [EVM.lower()]}),
        (ETHEREUM, {"addresses": [EVM, EVM]}),
        (ETHEREUM, {"assets": [{"symbol": "ETH", "decimals": 18}, {"symbol": "POL", "decimals": 18}]}),
        (ETHEREUM, {"assets": [{"symbol": "USDC", "decimals": 6, "contract": "0x12"}]}),
    ],
)
def test_a_chain_that_cannot_work_is_refused_at_the_start(fields: dict[str, Any], wrong: dict[str, Any]):
    assert Chain.model_validate(fields)
    with pytest.raises(ValidationError):
        Chain.model_validate(fields | wrong)


def test_confirmations_grow_with_the_amount():
    chain = Chain.model_validate(BITCOIN)
    assert [chain.confirmations_for(Decimal(usd)) for usd in (1, 100, 101, 1000, 5000)] == [1, 1, 2, 2, 6]


def test_a_price_becomes_base_units_rounded_up():
    btc, eth = Asset(symbol="BTC", decimals=8), Asset(symbol="ETH", decimals=18)
    assert base_units(Decimal(29), Decimal(100_000), btc) == 29_000
    assert base_units(Decimal(29), Decimal("99999.99"), btc) == 29_001
    assert base_units(Decimal(29), Decimal(3000), eth) == 9_666_670_000_000_000
    for bad in ("0", "-1", "NaN", "Infinity", "1e-999", "1e400"):
        with pytest.raises(Invalid):
            base_units(Decimal(bad), Decimal(1), btc)
        with pytest.raises(Invalid):
            base_units(Decimal(1), Decimal(bad), btc)


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.sampled_from([0, 6, 8, 18]))
def test_an_amount_is_worth_the_price_and_hardly_more(cents: int, rate_cents: int, decimals: int):
    price, rate = Decimal(cents) / 100, Decimal(rate_cents) / 100
    asset = Asset(symbol="ANY", decimals=decimals)
    amount = base_units(price, rate, asset)
    assert amount > 0
    assert in_units(amount, decimals) * rate >= price
    assert in_units(amount - asset.step, decimals) * rate < price


@given(st.integers(0, 2**256 - 1), st.sampled_from([0, 6, 8, 18, 36]))
def test_units_and_their_worth_keep_every_digit_that_a_chain_can_write(amount: int, decimals: int):
    units = in_units(amount, decimals)
    assert Fraction(units) == Fraction(amount, 10**decimals)
    assert abs(Fraction(usd_worth(units, Decimal("1.01"))) - Fraction(units) * 101 / 100) <= Fraction(1, 200)


@given(st.integers(1, 10**6), st.sampled_from([1, 10]), st.sets(st.integers(1, 10**6)))
def test_exact_amounts_are_free_and_cost_one_percent_more_at_most(amount: int, step: int, taken: set[int]):
    free = free_amount(amount, step, taken)
    if free is not None:
        assert free not in taken
        assert amount <= free <= amount + amount // 100
        assert (free - amount) % step == 0


def test_periods_end_on_the_same_day_or_the_months_last():
    assert period_after(START, "month") == datetime(2026, 2, 28, 12, tzinfo=UTC)
    assert period_after(datetime(2026, 12, 5, tzinfo=UTC), "month") == datetime(2027, 1, 5, tzinfo=UTC)
    assert period_after(datetime(2024, 2, 29, tzinfo=UTC), "year") == datetime(2025, 2, 28, tzinfo=UTC)


def test_periods_return_to_the_day_they_began_on():
    end, ends = datetime(2026, 1, 31, tzinfo=UTC), list[str]()
    for _ in range(5):
        end = period_after(end, "month", 31)
        ends.append(f"{end:%m-%d}")
    assert ends == ["02-28", "03-31", "04-30", "05-31", "06-30"]
    moved = datetime(2026, 3, 3, tzinfo=UTC)  # by a change of plan: it is on no anchor's day any more
    assert period_after(moved, "month", 31) == datetime(2026, 4, 3, tzinfo=UTC)


def seen(amount: int, status: Any = "mined", confirmations: int = NEEDED, *, late: bool = False) -> Receipt:
    at = LOCK_ENDS + timedelta(seconds=1) if late else START
    return Receipt(amount, status, at, confirmations if status == "mined" else 0)


@pytest.mark.parametrize(
    ("receipts", "state"),
    [
        ([], "new"),
        ([seen(1000, "seen")], "seen"),
        ([seen(1000, confirmations=2)], "confirming"),
        ([seen(1000)], "paid"),
        ([seen(400), seen(600)], "paid"),
        ([seen(400), seen(600, confirmations=1)], "confirming"),
        ([seen(400), seen(600, "seen")], "seen"),
        ([seen(999)], "paid_partial"),
        ([seen(1001)], "paid_over"),
        ([seen(1000), seen(1, "seen")], "paid"),
        ([seen(1000, late=True)], "paid_late"),
        ([seen(400), seen(600, late=True)], "paid_late"),
        ([seen(1000), seen(5, late=True)], "paid_over"),
        ([seen(1000, "lost")], "seen"),
        ([seen(400), seen(600, "lost")], "seen"),
        ([seen(1000, "dropped")], "invalid"),
        ([seen(1000, "dropped"), seen(1000)], "paid"),
        ([seen(1000, "dropped"), seen(400)], "paid_partial"),
    ],
)
def test_a_state_follows_from_what_came(receipts: list[Receipt], state: str):
    verdict = judge(amount=AMOUNT, expires_at=LOCK_ENDS, needed=NEEDED, receipts=receipts, now=START)
    assert verdict.state == state


def test_an_invoice_without_a_payment_expires_when_its_lock_ends():
    assert judge(amount=1, expires_at=LOCK_ENDS, needed=1, receipts=[], now=LOCK_ENDS).state == "expired"


def test_every_state_says_what_the_customer_may_do():
    assert set(NEXT) == set(get_args(State))


RECEIPTS = st.lists(
    st.builds(
        seen,
        st.integers(1, 1500),
        st.sampled_from(["seen", "mined", "lost", "dropped"]),
        st.integers(0, 5),
        late=st.booleans(),
    ),
    max_size=5,
)
RANK = {"new": 0, "expired": 0, "invalid": 0, "seen": 1, "confirming": 2}


@given(RECEIPTS, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_receipts_never_matters(receipts: list[Receipt], chance: Any, expired: bool):
    now = LOCK_ENDS if expired else START
    shuffled = list(receipts)
    chance.shuffle(shuffled)
    one, two = (
        judge(amount=AMOUNT, expires_at=LOCK_ENDS, needed=NEEDED, receipts=given_, now=now)
        for given_ in (receipts, shuffled)
    )
    assert one == two


@given(RECEIPTS)
def test_an_invoice_is_whole_exactly_when_enough_is_confirmed_and_never_by_what_is_gone(receipts: list[Receipt]):
    verdict = judge(amount=AMOUNT, expires_at=LOCK_ENDS, needed=NEEDED, receipts=receipts, now=START)
    deep = sum(one.amount for one in receipts if one.status == "mined" and one.confirmations >= NEEDED)
    assert verdict.confirmed == deep
    assert (verdict.state in {"paid", "paid_over", "paid_late"}) == (deep >= AMOUNT)
    alive = [one for one in receipts if one.status != "dropped"]
    kept = judge(amount=AMOUNT, expires_at=LOCK_ENDS, needed=NEEDED, receipts=alive, now=START)
    assert (kept.received, kept.confirmed) == (verdict.received, verdict.confirmed)


@given(RECEIPTS, st.integers(1, 5))
def test_more_blocks_never_move_an_invoice_backwards(receipts: list[Receipt], blocks: int):
    later = [
        Receipt(one.amount, one.status, one.at, one.confirmations + blocks) if one.status == "mined" else one
        for one in receipts
    ]
    before, after = (
        judge(amount=AMOUNT, expires_at=LOCK_ENDS, needed=NEEDED, receipts=given_, now=START)
        for given_ in (receipts, later)
    )
    assert after.received == before.received
    assert after.confirmed >= before.confirmed
    if before.state in {"paid", "paid_over"}:
        assert after.state in {"paid", "paid_over"}
    elif before.state == "paid_late":
        assert after.state in {"paid", "paid_over", "paid_late"}
    else:
        assert RANK.get(after.state, 3) >= RANK.get(before.state, 3) or after.state == "seen"


@pytest.mark.parametrize(
    ("state", "more", "actions"),
    [
        ("new", {}, ("pay", "tell_transaction")),
        ("seen", {}, ("wait", "tell_transaction")),
        ("confirming", {}, ("wait",)),
        ("paid", {"granted": True}, ()),
        ("paid", {}, ("ask_refund",)),  # there is another subscription by now
        ("paid_over", {"granted": True}, ("ask_refund",)),
        ("paid_over", {}, ("ask_refund",)),
        ("paid_partial", {}, ("pay_rest", "ask_refund")),
        ("paid_partial", {"expired": True}, ("ask_refund",)),
        ("paid_partial", {"shared": True}, ("ask_refund",)),  # a rest would be nobody's exact amount
        ("paid_late", {}, ("wait", "ask_refund")),
        ("paid_late", {"granted": True}, ()),
        ("expired", {"expired": True}, ("new_invoice", "tell_transaction")),
        ("expired", {"expired": True, "held": False}, ("new_invoice",)),
        ("invalid", {"expired": True}, ("new_invoice", "tell_transaction")),
        ("invalid", {"expired": True, "held": False}, ("new_invoice",)),
    ],
)
def test_what_a_customer_may_do_in_each_state(state: State, more: dict[str, bool], actions: tuple[str, ...]):
    about = {"granted": False, "expired": False, "shared": False, "held": True} | more
    following = next_for(state, **about)
    assert following.actions == actions
    assert following.message
