"""Requests to URLs that users give never reach what is not public, however it is written or named."""

import asyncio
import ipaddress
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Invalid, Transient
from shared.outward import ANSWER_MAX, LONGEST_WAIT_S, AddressRefused, Outward, is_public
from shared.work import OutcomeUnknown
from tests.fakes.posts import Answer, Posts, Request

PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",
)
PRIVATE_V6 = (
    "::/96",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "2001:db8::/32",
    "2002::/16",
    "2001::/32",
    "64:ff9b:1::/48",
)

private = st.sampled_from(PRIVATE).flatmap(lambda net: st.ip_addresses(v=4, network=net)).map(str)
public = st.ip_addresses(v=4).filter(
    lambda ip: not any(ip in ipaddress.ip_network(net) for net in (*PRIVATE, "192.88.99.0/24"))
)


def written(text: str) -> st.SearchStrategy[str]:
    """The ways in which a URL may write an IPv4 address."""
    ip = ipaddress.IPv4Address(text)
    a, b, c, d = ip.packed
    n = int(ip)
    return st.sampled_from(
        [
            str(ip),
            str(n),
            hex(n),
            f"0{n:o}",
            f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
            f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
            f"{a}.{n & 0xFFFFFF}",
            f"{a}.{b}.{n & 0xFFFF}",
            f"[::ffff:{ip}]",
            f"[::ffff:{n >> 16:x}:{n & 0xFFFF:x}]",
            f"[64:ff9b::{n >> 16:x}:{n & 0xFFFF:x}]",
            f"[::{n >> 16:x}:{n & 0xFFFF:x}]",
            f"[2002:{n >> 16:x}:{n & 0xFFFF:x}::1]",
        ]
    )


async def refuses(outward: Outward, url: str) -> bool:
    try:
        await outward.check(url)
    except Invalid:
        return True
    return False


@given(private.flatmap(written))
def test_no_way_to_write_a_private_address_gets_through(host: str) -> None:
    outward = Outward()
    assert asyncio.run(refuses(outward, f"https://{host}/x"))
    asyncio.run(outward.close())


@given(st.sampled_from(PRIVATE_V6).flatmap(lambda net: st.ip_addresses(v=6, network=net)))
def test_no_private_address_of_ipv6_is_public(ip: ipaddress.IPv6Address) -> None:
    assert not is_public(str(ip))


@given(public)
def test_a_public_address_is_let_through_also_when_it_is_wrapped(ip: ipaddress.IPv4Address) -> None:
    assert is_public(str(ip))
    assert is_public(f"::ffff:{ip}")
    assert is_public(f"64:ff9b::{int(ip) >> 16:x}:{int(ip) & 0xFFFF:x}")


@pytest.mark.parametrize("address", ["2606:4700::1111", "2a00:1450:4001:80b::200e"])
def test_public_addresses_of_ipv6_are_let_through(address: str) -> None:
    assert is_public(address)


@given(private, public)
def test_one_private_address_among_public_ones_is_enough_to_refuse(inside: str, outside: ipaddress.IPv4Address) -> None:
    outward = Outward(resolve=lambda _host, _port: [str(outside), inside])
    assert asyncio.run(refuses(outward, "https://hooks.example.com/x"))


class Echo(Posts):
    """Answers 200."""

    def take(self, request: Request) -> Answer:
        return Answer(200, {"path": request.path})


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture
async def outward(echo: Echo) -> AsyncIterator[Outward]:
    made = Outward(allowed=echo.base, timeout_s=0.5)
    yield made
    await made.close()


async def test_a_name_that_leads_inside_once_it_was_checked_is_not_followed(echo: Echo) -> None:
    port = int(echo.base.rpartition(":")[2])
    answers: list[Sequence[str]] = [["93.184.216.34"], ["127.0.0.1"]]
    outward = Outward(resolve=lambda _host, _port: answers.pop(0))
    url = f"http://rebinding.example.com:{port}/x"
    await outward.check(url)
    with pytest.raises(AddressRefused):
        await outward.post(url, {}, b"")
    assert echo.requests == []
    await outward.close()


class Pinned(Outward):
    """Finds this machine behind every name."""

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]


async def test_the_connection_goes_to_the_address_that_was_checked_and_names_the_host(echo: Echo) -> None:
    outward = Pinned()
    host = f"hooks.example.com:{echo.base.rpartition(':')[2]}"
    assert (await outward.post(f"http://{host}/x", {}, b"")).status == 200
    assert echo.requests[0].headers["host"] == host
    await outward.close()


async def test_silence_leaves_the_outcome_unknown_and_nobody_there_is_transient(echo: Echo, outward: Outward) -> None:
    echo.answer("/x", Answer(hang=True))
    with pytest.raises(OutcomeUnknown):
        await outward.post(f"{echo.base}/x", {}, b"")
    nobody = Outward(allowed="http://127.0.0.1:9")
    with pytest.raises(Transient):
        await nobody.post("http://127.0.0.1:9/x", {}, b"")
    await nobody.close()


async def test_the_origin_that_development_allows_is_that_one_only(echo: Echo, outward: Outward) -> None:
    assert (await outward.post(f"{echo.base}/x", {"x": "y"}, b"z")).status == 200
    assert (echo.requests[0].headers["x"], echo.requests[0].body) == ("y", b"z")
    for other in ("http://127.0.0.1:1/x", "https://127.0.0.1/x", echo.base.replace("127.0.0.1", "localhost")):
        with pytest.raises(AddressRefused):
            await outward.post(other, {}, b"")


async def test_a_redirect_is_an_answer_and_is_not_followed(echo: Echo, outward: Outward) -> None:
    echo.answer("/x", Answer(302, None, {"location": f"{echo.base}/secret"}))
    assert (await outward.post(f"{echo.base}/x", {}, b"")).status == 302
    assert [request.path for request in echo.requests] == ["/x"]


async def test_an_answer_without_end_is_cut(echo: Echo, outward: Outward) -> None:
    echo.answer("/x", Answer(200, endless=True))
    assert len((await outward.post(f"{echo.base}/x", {}, b"")).body) == ANSWER_MAX


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("12.5", 12.5),
        ("0", 0.0),
        ("-1", None),
        ("nan", None),
        ("soon", None),
        ("1e300", LONGEST_WAIT_S),
    ],
)
async def test_a_wait_is_read_from_retry_after(echo: Echo, outward: Outward, value: str, wait_s: float | None) -> None:
    echo.answer("/x", Answer(503, None, {"retry-after": value}))
    assert (await outward.post(f"{echo.base}/x", {}, b"")).wait_s == wait_s


async def test_a_wait_until_a_date_is_read_as_well(echo: Echo, outward: Outward) -> None:
    echo.answer("/x", Answer(503, None, {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}))
    assert (await outward.post(f"{echo.base}/x", {}, b"")).wait_s == LONGEST_WAIT_S
    echo.answer("/x", Answer(503, None, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    assert (await outward.post(f"{echo.base}/x", {}, b"")).wait_s == 0.0


async def test_a_name_that_nobody_knows_is_refused_on_write_and_tried_again_later() -> None:
    def resolve(_host: str, _port: int) -> Sequence[str]:
        raise OSError("no such host")

    outward = Outward(resolve=resolve)
    with pytest.raises(Invalid):
        await outward.check("https://nowhere.example.com/x")
    with pytest.raises(Transient):
        await outward.post("https://nowhere.example.com/x", {}, b"")
    await outward.close()


@pytest.mark.parametrize("host", ["a..b", ".example.com", "a" * 64 + ".example.com"])
async def test_what_cannot_be_a_name_is_refused_on_write_and_nothing_is_sent(outward: Outward, host: str) -> None:
    with pytest.raises(Invalid):
        await outward.check(f"https://{host}/x")
    with pytest.raises(Transient):
        await outward.post(f"https://{host}/x", {}, b"")


async def test_names_that_take_too_long_are_known_to_have_got_nothing() -> None:
    ended = threading.Event()

    def resolve(_host: str, _port: int) -> Sequence[str]:
        ended.wait()
        return ["192.0.2.1"]

    outward = Outward(resolve=resolve, timeout_s=0.05)
    with pytest.raises(Transient):
        await outward.post("https://slow.example.com/x", {}, b"")
    ended.set()
    await outward.close()
