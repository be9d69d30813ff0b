import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.domain import caller_address, derive_secret, format_key, parse_key, symbol
from shared.clock import new_id
from shared.errors import Invalid


@pytest.mark.parametrize(("raw", "expected"), [("aapl", "AAPL"), (" brk.b ", "BRK.B"), ("_spx", "_SPX"), ("A", "A")])
def test_a_symbol_is_read_in_any_case(raw: str, expected: str):
    assert symbol(raw) == expected


@pytest.mark.parametrize(
    "raw", ["", " ", "1A", ".A", "A B", "A/B", "ß", "\u017f", "A\n", "\tA", "_", "__A", "_1A", "A" * 11, "A%", "\uff21"]
)
def test_what_is_no_symbol_is_refused(raw: str):
    with pytest.raises(Invalid):
        symbol(raw)


@given(st.text(max_size=12))
def test_a_symbol_is_its_own_symbol(raw: str):
    try:
        found = symbol(raw)
    except Invalid:
        return
    assert symbol(found) == found
    assert found.isascii()


@given(st.text(min_size=32))
def test_a_key_reads_back_and_its_digest_is_of_its_secret_alone(server_secret: str):
    key_id = new_id()
    secret = derive_secret(server_secret.encode("utf-8", "replace").decode(), key_id)
    parts = parse_key(format_key(key_id, secret))
    assert parts is not None
    assert (parts.id, parts.secret) == (key_id, secret)
    assert len(parts.digest) == 32


def test_secrets_differ_by_key_and_by_server():
    one, other = new_id(), new_id()
    assert len({derive_secret("a" * 32, one), derive_secret("a" * 32, other), derive_secret("b" * 32, one)}) == 3


@pytest.mark.parametrize(
    "text", ["", "ob_", "ob_1_2", "ob_" + "0" * 32 + "_" + "a" * 42, "sk_" + "0" * 32 + "_" + "a" * 43]
)
def test_what_is_no_key_is_none(text: str):
    assert parse_key(text) is None


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "expected"),
    [
        ("192.0.2.1", None, 0, "192.0.2.1"),
        ("192.0.2.1", "6.6.6.6", 0, "192.0.2.1"),
        ("10.0.0.1", "6.6.6.6, 192.0.2.1", 1, "192.0.2.1"),
        ("10.0.0.1", "6.6.6.6, 192.0.2.1, 10.0.0.2", 2, "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1", 5, "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", None, 0, "2001:db8:1:2::"),
        ("::ffff:192.0.2.1", None, 0, "192.0.2.1"),
        (None, None, 0, "unknown"),
        ("10.0.0.1", "nonsense" * 20, 1, ("nonsense" * 20)[:64]),
    ],
)
def test_a_caller_is_limited_by_an_address_they_cannot_choose(
    peer: str | None, forwarded: str | None, proxies: int, expected: str
):
    assert caller_address(peer, forwarded, proxies) == expected
