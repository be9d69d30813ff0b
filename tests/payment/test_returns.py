"""Where people may be sent back to after paying: our own origins and no other."""

import pytest

from services.payment.domain.returns import ReturnNotAllowed, Returns
from tests.payment.buying import OURS


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        "https://app.openbell.example.evil.example/",
        "https://app.openbell.example@evil.example/",
        "https://evil.example\\@app.openbell.example/",
        "https:\\\\evil.example",
        "//evil.example/",
        "/account",
        "javascript:alert(1)//app.openbell.example",
        "http://app.openbell.example/",
        "https://app.openbell.example:8443/",
        "https://app.openbell.example:port/",
        "https://app.openbell.example\t.evil.example/",
        "https://app%2eopenbell.example/",
        "https:app.openbell.example/",
        "https://[app.openbell.example/",
        "https://app.openbell.example/" + "a" * 2000,
        "https://аpp.openbell.example/",  # noqa: RUF001 - a Cyrillic letter is the trick
    ],
)
def test_nobody_is_sent_to_a_stranger(url: str) -> None:
    with pytest.raises(ReturnNotAllowed):
        Returns([OURS], OURS).to(url)


def test_our_own_addresses_are_allowed() -> None:
    returns = Returns([OURS, "http://127.0.0.1:8100/"], f"{OURS}/account")
    assert returns.to(None) == f"{OURS}/account"
    for url in ("https://app.openbell.example", "https://APP.openbell.example:443/a?b=@c#d", "http://127.0.0.1:8100/x"):
        assert returns.to(url) == url
    for no_origin in ("app.openbell.example", "https://app.openbell.example/path", "https://u@app.openbell.example"):
        with pytest.raises(ValueError, match="no origin"):
            Returns([no_origin], OURS)
    with pytest.raises(ReturnNotAllowed):
        Returns([OURS], "https://evil.example/")
