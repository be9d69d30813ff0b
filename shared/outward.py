"""Requests to URLs that users give: only to public hosts, and only to an address that was checked.

    outward = Outward()
    await outward.check(url)                       # when the URL comes in: raises AddressRefused
    answer = await outward.post(url, headers, body)

A name may lead elsewhere each time it is asked for (DNS rebinding), so a connection asks once, checks every address of
the answer and goes to one of these. Redirects are not followed and proxies of the environment are not asked; of an
answer 64 KiB are read, and all of it has to happen within a time.

What would surprise you: this is httpcore, the engine below httpx, because its network backend is the public place to
decide where a connection goes while certificates are still checked against the name.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpcore

from shared.clock import Clock, utc_now
from shared.errors import Invalid, Transient
from shared.work import OutcomeUnknown

LONGEST_WAIT_S: Final = 30 * 86_400.0
"""Longer waits are obeyed as this one."""
ANSWER_MAX: Final = 65_536

_ADDRESSES_TRIED: Final = 4
_IPV6_GLOBAL: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; the metadata service of one cloud
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # Azure's host, a public address that only machines of that cloud reach
        "2001::/32",  # Teredo and 6to4 lead to an IPv4 address of their own choice
        "2002::/16",
    )
)

Resolve = Callable[[str, int], Sequence[str]]
"""Return the addresses of a host, in a thread; raises OSError."""


class AddressRefused(Invalid):
    """This host is not a public one, or leads to an address that is not: it is not called."""

    code = "ADDRESS_REFUSED"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `wait_s` is what Retry-After asks for."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    wait_s: float | None


class Outward:
    """Posts to public hosts, over pooled connections; `allowed` is one origin that development excepts."""

    def __init__(
        self,
        *,
        allowed: str | None = None,
        connections: int = 32,
        timeout_s: float = 10.0,
        resolve: Resolve | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._allowed = None if allowed is None else place_of(allowed)
        self._connections = connections
        self._timeout_s = timeout_s
        self._resolve = resolve or _resolve
        self._clock = clock
        self._threads: ThreadPoolExecutor | None = None
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def check(self, url: str) -> None:
        """Raise AddressRefused for a URL whose host is not public, Invalid for one that is not known."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.addresses(*place_of(url))
        except (OSError, TimeoutError) as error:
            raise Invalid("this host is not known to the DNS") from error

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post once.

        Raises AddressRefused, Transient when nothing was sent, OutcomeUnknown when nobody knows; none holds the URL.
        """
        begun = _Begun()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(url, headers, body, begun)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout) as error:
            raise Transient(f"the host is not reachable: {type(error).__name__}") from None
        except OSError as error:  # TimeoutError is one as well
            if isinstance(error, TimeoutError) and begun:
                raise OutcomeUnknown("the host did not answer in time") from None
            if isinstance(error, TimeoutError):
                raise Transient("the host was not reached in time") from None
            raise Transient("the host is not known to the DNS") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise OutcomeUnknown(f"the host did not answer: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close the connections; another post opens new ones."""
        pool, self._pool = self._pool, None
        threads, self._threads = self._threads, None
        if pool is not None:
            await pool.aclose()
        if threads is not None:
            threads.shutdown(wait=False)

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host; raises AddressRefused when one of them is not public, OSError."""
        if (host, port) == self._allowed:
            return (host,)
        if self._threads is None:  # of our own: names that are slow to resolve hinder nothing else
            self._threads = ThreadPoolExecutor(16, thread_name_prefix="resolve")
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)
        except UnicodeError as error:  # a label that is empty or too long
            raise OSError("no name of a host") from error
        if not found or not all(is_public(address) for address in found):
            raise AddressRefused
        return found[:_ADDRESSES_TRIED]

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes, begun: "_Begun") -> Answer:
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                max_connections=self._connections, keepalive_expiry=30.0, network_backend=_Checked(self)
            )
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)
        told = [*{"user-agent": "Openbell (alerts)", **headers}.items()]
        more = {"timeout": limits, "trace": begun.hear}
        async with self._pool.stream("POST", url, headers=told, content=body, extensions=more) as answer:
            taken = b""
            async for part in answer.aiter_stream():
                taken += part
                if len(taken) >= ANSWER_MAX:
                    break
            got = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
            return Answer(answer.status, got, taken[:ANSWER_MAX], wait_of(got.get("retry-after"), self._clock()))


class _Begun:
    """Whether a request began to go out."""

    def __init__(self) -> None:
        self._sent = False

    def __bool__(self) -> bool:
        return self._sent

    async def hear(self, event: str, told: Mapping[str, object]) -> None:
        """Take what httpcore tells of a request."""
        del told
        self._sent = self._sent or event.endswith("send_request_headers.started")


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, outward: Outward) -> None:
        self._outward = outward
        self._inner: httpcore.AsyncNetworkBackend = cast(
            "Any", httpcore.AnyIOBackend
        )()  # typed as what stands in for it

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failed: Exception = httpcore.ConnectError()
        for address in await self._outward.addresses(host, port):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def is_public(address: str) -> bool:
    """Return whether an address is of the public internet, whichever way it is wrapped."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _IPV6_GLOBAL:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _REFUSED if net.version == ip.version)


def wait_of(retry_after: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After asks for, `LONGEST_WAIT_S` at most; None for what is no wait."""
    if retry_after is None:
        return None
    try:
        wait_s = float(retry_after)
    except ValueError:
        try:
            wait_s = max((parsedate_to_datetime(retry_after) - now).total_seconds(), 0.0)
        except (ValueError, TypeError, OverflowError):
            return None
    return min(wait_s, LONGEST_WAIT_S) if wait_s >= 0.0 else None


def place_of(url: str) -> tuple[str, int]:
    """Return the host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _resolve(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))
